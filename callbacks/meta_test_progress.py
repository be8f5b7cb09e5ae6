"""What the display shows of meta-tests: how much there is to do, how far it is, and returns as they come in."""

from collections.abc import Sequence

import pytorch_lightning as pl

from callbacks.display import Report, progress_of
from callbacks.schedule import agents_of, seconds_per_cycle
from callbacks.timeline import Stage
from metagenrl_pl.evaluation.background import BackgroundTests
from metagenrl_pl.results.methods import find_method
from metagenrl_pl.results.rows import MetaTestRow, mean_returns


class MetaTestProgress:
    """The stages of a run that are meta-tests.

    Args:
        trainer: of the run.
        num_agents: fresh agents of each test.
        env_steps: of each fresh agent.
    """

    def __init__(self, trainer: pl.Trainer, num_agents: int, env_steps: int) -> None:
        settings = agents_of(trainer).settings
        self._display, self._env_steps, self._warmup = progress_of(trainer), env_steps, settings.warmup_env_steps
        self._cost = seconds_per_cycle(settings, num_agents, is_meta_training=False)
        self._reports: dict[str, Report] = {}
        self._background: BackgroundTests | None = None
        self._report_background: Report = lambda env_steps: None

    def announce(self, method: str, num_tests: int = 1) -> None:
        """Announce the tests of a method, so that the display's ETA counts them from the start."""
        name, total = f"meta-test, {find_method(method).label}", num_tests * self._env_steps
        self._reports[method] = self._display.add_stage(Stage(name, total, self._cost, self._warmup))

    def announce_background(self, tests: BackgroundTests) -> None:
        """Announce the tests that another process makes meanwhile."""
        stage = Stage("meta-test of other methods", tests.num_env_steps, self._cost, self._warmup, is_beside=True)
        self._background, self._report_background = tests, self._display.add_stage(stage)

    def begin(self, method: str) -> Report:
        """What to call with the env steps of a test that begins. A later test of the same method goes on in its stage."""
        if method not in self._reports:
            self.announce(method)
        of_stage = self._reports[method]
        self._reports[method] = lambda env_steps: of_stage(self._env_steps + env_steps)

        def report(env_steps: int) -> None:
            self.show_background()
            of_stage(env_steps)

        return report

    def show(self, rows: Sequence[MetaTestRow]) -> None:
        """Show the newest evaluation of a method."""
        self._display.show_returns(rows[0].method, rows[0].env_steps, mean_returns(rows))

    def show_background(self) -> None:
        """Show how far the other process is, and its newest returns."""
        if self._background is not None:
            self._report_background(self._background.env_steps)
            for method, (env_steps, returns) in self._background.newest().items():
                self._display.show_returns(method, env_steps, returns)
