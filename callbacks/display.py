"""Terminal output: one bar with an ETA over all stages of a run, a live table of the population, one of the meta-test's returns."""

import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from callbacks.schedule import agents_of, datamodule_of, env_steps_of, gather_from_agents, is_last, module_of, seconds_per_cycle
from callbacks.timeline import Stage, Timeline
from metagenrl_pl.common.commands import override, train_command
from metagenrl_pl.common.messages import format_value
from metagenrl_pl.launch.cli import default_folder
from metagenrl_pl.objectives.parametric import class_name
from metagenrl_pl.reporting.final_table import final_tables, returns_so_far
from metagenrl_pl.reporting.plots import draw_learning_curves
from metagenrl_pl.results.rows import read_rows
from metagenrl_pl.training.datamodule import MacroBatch

_MAX_ROWS = 20
Report = Callable[[int], None]
"""Called with the env steps that a stage has done."""


class PopulationDisplay(ProgressBar):
    """Shows one bar with an ETA over all stages of the run, a table of the agents, and the returns of the meta-test as they come in.

    If the output is not a terminal, prints plain lines instead.

    Args:
        refresh_per_second: refresh rate of the live display, in 1 / s.

    Raises:
        ValueError: if the rate is not positive.
    """

    def __init__(self, refresh_per_second: float = 2.0) -> None:
        super().__init__()
        if not refresh_per_second > 0:
            raise ValueError(f"refresh_per_second must be positive, got {refresh_per_second}")
        self._console = Console()
        self._timeline = Timeline()
        self._live: Live | None = None
        self._rate = refresh_per_second
        self._run_trainer: pl.Trainer | None = None
        self._training: Stage | None = None
        self._report: Report | None = None
        self._last_redraw = 0.0
        self._recent_returns: list[float | None] = []  # of each agent, also in other processes
        self._tested: dict[str, tuple[int, Mapping[str, float]]] = {}  # method -> env steps, environment -> return

    def disable(self) -> None:
        """Show nothing. Lightning calls this in every process except the first, which shows all agents."""
        self._console.quiet = True

    def enable(self) -> None:
        self._console.quiet = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run_trainer, self._timeline = trainer, Timeline()
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        agents, is_meta_training = agents_of(trainer), agents_of(trainer).learner.is_meta_training
        cost = seconds_per_cycle(agents.settings, len(agents.specs), is_meta_training)
        name, total = "meta-training" if is_meta_training else "training", datamodule_of(trainer).env_steps
        self._training = Stage(name, total, cost, agents.settings.warmup_env_steps)
        self._report = self._add(self._training, env_steps_of(trainer), lines_in_all=20, note=self._returns_text)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: MacroBatch, batch_idx: int
    ) -> None:
        assert self._report is not None  # made in on_train_start
        recent = agents_of(trainer).collector.recent_returns
        self._recent_returns = gather_from_agents(trainer, [fmean(returns) if returns else None for returns in recent])
        self._report(env_steps_of(trainer))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the terminal here too, since Lightning does not call `teardown` after an error."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._tested.clear()  # the final table tells them
            self._redraw(force=True)
            self._live.stop()
            self._live = None

    def add_stage(self, stage: Stage) -> Report:
        """Announce a part of the run other than training, such as a meta-test. Call the result with the env steps so far."""
        return self._add(stage, 0, lines_in_all=2, note=lambda: "")

    def show_returns(self, method: str, env_steps: int, returns: Mapping[str, float]) -> None:
        """Show a method's newest evaluation in a meta-test: the mean return in each environment."""
        self._tested[method] = env_steps, returns
        self._redraw()

    def _add(self, stage: Stage, first: int, lines_in_all: int, note: Callable[[], str]) -> Report:
        """Without a terminal, a stage prints `lines_in_all` lines, each with a note."""
        self._timeline.add(stage)
        stage.done = first
        lines = first * lines_in_all // stage.total

        def report(done: int) -> None:
            nonlocal lines
            self._timeline.advance(stage, done)
            if self._live is not None:
                self._redraw(force=done >= stage.total)
            elif done * lines_in_all // stage.total > lines:
                lines = done * lines_in_all // stage.total
                self._console.print(
                    f"{stage.name}: {done:,}/{stage.total:,} env steps, {format_seconds(self._timeline.elapsed)} elapsed, "
                    f"ETA {format_seconds(self._timeline.seconds_left())}{note()}",
                    highlight=False,
                    markup=False,  # names of environments have brackets
                    soft_wrap=True,
                )

        return report

    def _redraw(self, force: bool = False) -> None:
        if self._live is not None and (force or time.monotonic() - self._last_redraw > 1 / self._rate):
            self._last_redraw = time.monotonic()
            self._live.update(Group(*self._parts()), refresh=True)

    def _parts(self) -> list[RenderableType]:
        """What the terminal shows: the bar, the population while it trains, and the meta-test once it has results."""
        parts: list[RenderableType] = [self._bar(), *self._stage_lines()]
        if self._training is not None and self._timeline.active in (self._training, None):
            parts.append(self._table())
        if self._tested:
            parts.append(returns_so_far(self._tested))
        return parts

    def _bar(self) -> Table:
        left, share = self._timeline.seconds_left(), self._timeline.share()
        grid = Table.grid(padding=(0, 1), expand=False)
        times = f"{share:4.0%}  {format_seconds(self._timeline.elapsed)} elapsed, ETA {format_seconds(left)}"
        grid.add_row("total", Bar(total=1.0, completed=share, width=30), times)
        return grid

    def _stage_lines(self) -> list[Text]:
        stages = [stage for stage in self._timeline.stages if stage is self._timeline.active or (stage.is_beside and stage.done)]
        return [Text(f"{stage.name}: {stage.done:,}/{stage.total:,} env steps", style="dim") for stage in stages]

    def _returns_text(self) -> str:
        """For each environment, the mean over agents of the returns of their last episodes."""
        assert self._run_trainer is not None
        by_environment: dict[str, list[float]] = {}
        for spec, value in zip(agents_of(self._run_trainer).specs, self._recent_returns, strict=True):
            if value is not None:
                by_environment.setdefault(spec.name, []).append(value)
        return "".join(f", {name} {fmean(values):.1f}" for name, values in by_environment.items())

    def _table(self) -> Table:
        """The table of the first `_MAX_ROWS` agents: environment, recent returns and newest losses."""
        assert self._run_trainer is not None
        specs, metrics = agents_of(self._run_trainer).specs, module_of(self._run_trainer).metrics
        losses = {name: values for name, values in metrics.items() if name.endswith("_loss")}
        table = Table(title="population")
        table.add_column("agent", justify="right")
        table.add_column("environment", overflow="fold")  # the whole name, if need be in two lines
        table.add_column("return, last 10", justify="right")
        for name in losses:
            table.add_column(name.replace("_", " "), justify="right")
        for agent, value in enumerate(self._recent_returns[:_MAX_ROWS]):
            values = [f"{float(values[agent]):.3g}" for values in losses.values()]
            table.add_row(str(agent), Text(specs[agent].name), "-" if value is None else f"{value:.1f}", *values)
        if len(specs) > _MAX_ROWS:
            table.caption = f"and {len(specs) - _MAX_ROWS} more agents"
        return table


class FinalReport(pl.Callback):
    """Draws `<run_dir>/learning_curves.png`, prints the table of meta-test returns, and says what to type next, when a run ends.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: str) -> None:
        self._run_dir = Path(run_dir)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Draw and print in `teardown`, after the display has restored the terminal."""
        if not trainer.is_global_zero:
            return
        picture, rows = draw_learning_curves(self._run_dir), read_rows(self._run_dir / "meta_test.csv")
        console = Console()
        for table in final_tables(rows, console.width) if rows else []:
            console.print(table)
        lines = [f"Learning curves: {picture}"] if picture is not None else []
        if is_last(trainer):
            lines += self._next_lines(trainer, has_results=bool(rows))
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _next_lines(self, trainer: pl.Trainer, has_results: bool) -> list[str]:
        """Where the objective is, and the next commands: to test it, and to look at results of meta-tests if there are any."""
        objective, kind = self._run_dir / "objective.safetensors", type(agents_of(trainer).objective)
        run = shlex.quote(str(self._run_dir))
        report = [f"  metagenrl report {run}"] if has_results else []
        if not objective.exists():
            return ["Next:", *report, f"  metagenrl film {run}"] if has_results else []
        overrides = ["experiment=meta_test", override("objective.path", str(objective)), "env.train=[Hopper-v5]"]
        if kind.__module__.partition(".")[0] != "metagenrl_pl":  # a file imports no class of somebody else by itself
            overrides.insert(1, f"objective._target_={class_name(kind)}.load")
        overrides += _agent_overrides(module_of(trainer).run_config.get("agent", {}))
        return [f"Objective: {objective}", "Next:", f"  {train_command()} {' '.join(overrides)}", *report]


def _agent_overrides(agent: Mapping[str, Any]) -> list[str]:
    """What gives a test agents with these settings: the choice of `agent` with the fewest other settings, and those."""
    folder = default_folder() / "conf" / "agent"
    paper, small = (dict(OmegaConf.load(folder / f"{name}.yaml").items()) for name in ("paper", "small"))
    choices = {"small": {**paper, **small}, "paper": paper}  # small.yaml says what it changes
    other = {name: [key for key, value in agent.items() if choice.get(key) != value] for name, choice in choices.items()}
    name = min(other, key=lambda name: len(other[name]))
    chosen = [] if name == "small" else [f"agent={name}"]
    return [*chosen, *(shlex.quote(f"agent.{key}={format_value(agent[key], '')}") for key in other[name])]


class _Silent:
    """Replaces the display if it is switched off."""

    def add_stage(self, stage: Stage) -> Report:
        return lambda done: None

    def show_returns(self, method: str, env_steps: int, returns: Mapping[str, float]) -> None:
        """Show nothing."""


def progress_of(trainer: pl.Trainer) -> PopulationDisplay | _Silent:
    """The trainer's display, or a replacement that shows nothing."""
    display = trainer.progress_bar_callback
    return display if isinstance(display, PopulationDisplay) else _Silent()


def format_seconds(seconds: float) -> str:
    """Format a duration as `m:ss`, or `h:mm:ss` from one hour."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
