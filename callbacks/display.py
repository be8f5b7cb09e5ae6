"""Terminal output: a progress bar with an ETA, a live table of the population, and the results of the meta-test."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from callbacks.schedule import agents_of, datamodule_of, env_steps_of, gather_from_agents, module_of
from metagenrl_pl.reporting.final_table import final_table
from metagenrl_pl.reporting.plots import learning_curves
from metagenrl_pl.results.rows import read_rows
from metagenrl_pl.training.datamodule import MacroBatch

_MAX_ROWS = 20


class PopulationDisplay(ProgressBar):
    """Shows a progress bar with an ETA and a table of the agents. If the output is not a terminal, prints plain lines instead.

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
        name = TextColumn("{task.description}", markup=False)
        times = (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        self._progress = Progress(name, BarColumn(), MofNCompleteColumn(), *times, console=self._console)
        self._live: Live | None = None
        self._rate = refresh_per_second
        self._run_trainer: pl.Trainer | None = None
        self._report: Callable[[int], None] | None = None
        self._last_redraw = 0.0
        self._recent_returns: list[float | None] = []  # of each agent, also in other processes

    def disable(self) -> None:
        """Show nothing. Lightning calls this in every process except the first, which shows all agents."""
        self._console.quiet = True

    def enable(self) -> None:
        self._console.quiet = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run_trainer = trainer
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        what = "meta-training" if agents_of(trainer).learner.is_meta_training else "training"
        self._report = self._add_bar(
            what, datamodule_of(trainer).env_steps, env_steps_of(trainer), lines_in_all=20, note=self._returns_text
        )

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
            self._redraw(force=True)
            self._live.stop()
            self._live = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Add a progress bar for a task other than training, such as a meta-test. Call the result with the env steps so far."""
        yield self._add_bar(description, total, 0, lines_in_all=2, note=lambda: "")

    def _add_bar(
        self, description: str, total: int, first: int, lines_in_all: int, note: Callable[[], str]
    ) -> Callable[[int], None]:
        """Add a progress bar. Without a terminal, it prints `lines_in_all` lines instead, each with a note."""
        bar = self._progress.add_task(description, total=total, completed=first)
        start, lines = time.monotonic(), first * lines_in_all // total

        def report(done: int) -> None:
            nonlocal lines
            self._progress.update(bar, completed=done)
            if self._live is not None:
                self._redraw(force=done >= total)
            elif done * lines_in_all // total > lines:
                lines = done * lines_in_all // total
                seconds = time.monotonic() - start
                eta = seconds / max(done - first, 1) * (total - done)
                self._console.print(
                    f"{description}: {done:,}/{total:,} env steps, {format_seconds(seconds)} elapsed, ETA {format_seconds(eta)}{note()}",
                    highlight=False,
                    markup=False,  # names of environments have brackets
                    soft_wrap=True,
                )

        return report

    def _redraw(self, force: bool = False) -> None:
        if self._live is not None and (force or time.monotonic() - self._last_redraw > 1 / self._rate):
            self._last_redraw = time.monotonic()
            self._live.update(Group(self._progress, self._table()), refresh=True)

    def _returns_text(self) -> str:
        """For each environment, the mean over agents of the returns of their last episodes."""
        assert self._run_trainer is not None
        by_environment: dict[str, list[float]] = {}
        for spec, value in zip(agents_of(self._run_trainer).specs, self._recent_returns, strict=True):
            if value is not None:
                by_environment.setdefault(spec.name, []).append(value)
        return "".join(f", {name} {fmean(values):.1f}" for name, values in by_environment.items())

    def _table(self) -> Table:
        """The table of the first `_MAX_ROWS` agents: environment, recent returns and newest metrics."""
        assert self._run_trainer is not None
        specs, metrics = agents_of(self._run_trainer).specs, module_of(self._run_trainer).metrics
        table = Table(title="population")
        table.add_column("agent", justify="right")
        table.add_column("environment")
        table.add_column("return, last 10", justify="right")
        for metric in metrics:
            table.add_column(metric.replace("_", " "), justify="right")
        for agent, value in enumerate(self._recent_returns[:_MAX_ROWS]):
            values = [f"{float(values[agent]):.3g}" for values in metrics.values()]
            table.add_row(str(agent), Text(specs[agent].name), "-" if value is None else f"{value:.1f}", *values)
        if len(specs) > _MAX_ROWS:
            table.caption = f"and {len(specs) - _MAX_ROWS} more agents"
        return table


class FinalReport(pl.Callback):
    """Draws `<run_dir>/learning_curves.png` and prints the table of meta-test returns when a run ends.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: str) -> None:
        self._run_dir = Path(run_dir)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Draw and print in `teardown`, after the display has restored the terminal."""
        if not trainer.is_global_zero:
            return
        picture, rows = learning_curves(self._run_dir), read_rows(self._run_dir / "meta_test.csv")
        console = Console()
        if rows:
            console.print(final_table(rows))
        if picture is not None:
            console.print(f"Learning curves: {picture}", soft_wrap=True, highlight=False, markup=False)


class _Silent:
    """Replaces the display if it is switched off."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None


def progress_of(trainer: pl.Trainer) -> PopulationDisplay | _Silent:
    """The trainer's display, or a replacement that shows nothing."""
    display = trainer.progress_bar_callback
    return display if isinstance(display, PopulationDisplay) else _Silent()


def format_seconds(seconds: float) -> str:
    """Format a duration as `m:ss`, or `h:mm:ss` from one hour."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
