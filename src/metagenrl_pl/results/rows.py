"""Results of meta-testing: `meta_test.csv` and the table made of it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from metagenrl_pl.common.files import append_csv, read_csv, write_csv
from metagenrl_pl.results.statistics import Interval, mean_interval

COLUMNS = ("environment", "method", "seed", "env_steps", "return", "meta_training_env_steps")
"""The header of `meta_test.csv`."""

METHOD_NAMES = {
    "learned": "learned objective",
    "untrained": "untrained objective",
    "reinforce": "off-policy REINFORCE (GAE)",
    "critic": "DDPG/TD3",
    "critic_both": "DDPG/TD3, mean of both critics",
    "ppo": "PPO (Stable-Baselines3)",
    "td3": "TD3 (Stable-Baselines3)",
    "random": "random actions",
}
"""Display name of each known method, in display order."""


class MetaTestRow(NamedTuple):
    """One evaluation of one fresh agent, a line of `meta_test.csv`.

    Args:
        environment: name of the environment.
        method: key of `METHOD_NAMES`, or any other word.
        seed: of the fresh agent.
        env_steps: that the fresh agent had been trained for.
        episode_return: undiscounted, the mean over the evaluation's episodes. The column is called `return`.
        meta_training_env_steps: env steps per agent that the objective had been meta-trained for; 0 if untrained, None (an empty
            cell) for a method without a learned objective.
    """

    environment: str
    method: str
    seed: int
    env_steps: int
    episode_return: float
    meta_training_env_steps: int | None = None


def append_rows(path: Path, rows: Iterable[MetaTestRow]) -> None:
    """Append to `meta_test.csv`, made with its header if there is none. On return the rows are on the disk.

    Raises:
        ValueError: the file has other columns.
    """
    if path.exists():
        _check_columns(path, read_csv(path)[0])
    append_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in rows))


def read_rows(path: Path) -> list[MetaTestRow]:
    """The rows of `meta_test.csv`; none if there is no file.

    A run that was killed between writing its rows and saving its checkpoint makes them again: of several rows that differ in
    their return alone, the last one counts.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.exists():
        return []
    columns, cells = read_csv(path)
    _check_columns(path, columns)
    rows = [
        MetaTestRow(
            environment=cell["environment"],
            method=cell["method"],
            seed=int(cell["seed"]),
            env_steps=int(cell["env_steps"]),
            episode_return=float(cell["return"]),
            meta_training_env_steps=int(stage) if (stage := cell["meta_training_env_steps"]) else None,
        )
        for cell in cells
    ]
    return list({row._replace(episode_return=0.0): row for row in rows}.values())


def drop_rows_after(path: Path, meta_training_env_steps: float = math.inf, env_steps: float = math.inf) -> None:
    """Drop what a resumed run is going to make again. The file is replaced as a whole.

    Args:
        path: of `meta_test.csv`; there may be none.
        meta_training_env_steps: where meta-training goes on: later stages go. Rows of that very stage, of earlier ones and of methods
            without a learned objective stay.
        env_steps: where the tested agents themselves go on: their later rows go.
    """
    if path.exists():
        rows = read_rows(path)
        kept = [
            row for row in rows if (row.meta_training_env_steps or 0) <= meta_training_env_steps and row.env_steps <= env_steps
        ]
        write_csv(path, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in kept))


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if columns and tuple(columns) != COLUMNS:
        raise ValueError(f"{path} has the columns {','.join(columns)}: valid are {','.join(COLUMNS)}")


def method_name(method: str) -> str:
    """Display name of a method; a method that `METHOD_NAMES` does not know is called what it is."""
    return METHOD_NAMES.get(method, method)


def methods_in_order(rows: Iterable[MetaTestRow]) -> list[str]:
    """The methods that occur: the known ones in the order of `METHOD_NAMES`, then the others by name."""
    occurring = {row.method for row in rows}
    return [method for method in METHOD_NAMES if method in occurring] + sorted(occurring - METHOD_NAMES.keys())


def newest_stage(rows: Sequence[MetaTestRow]) -> list[MetaTestRow]:
    """The rows of each method's latest objective, that is those with the method's largest `meta_training_env_steps`."""
    newest: dict[str, int] = {}
    for row in rows:
        newest[row.method] = max(newest.get(row.method, 0), row.meta_training_env_steps or 0)
    return [row for row in rows if (row.meta_training_env_steps or 0) == newest[row.method]]


def interval_over_seeds(rows: Iterable[MetaTestRow]) -> Interval:
    """95 % interval of the mean return; all NaN if a return is not finite, as that of an agent that diverged may be."""
    returns = [row.episode_return for row in rows]
    return mean_interval(returns) if all(map(math.isfinite, returns)) else Interval(math.nan, math.nan, math.nan)


def final_table(rows: Sequence[MetaTestRow]) -> Table:
    """Method by environment: mean return over seeds at each method's largest `env_steps`, with its 95 % interval.

    The latest stage of the learned objective counts. The best mean of an environment is bold.
    """
    rows = newest_stage(rows)
    environments = sorted({row.environment for row in rows})
    final: dict[tuple[str, str], list[MetaTestRow]] = {}
    for row in rows:
        cell = final.setdefault((row.environment, row.method), [])
        if cell and row.env_steps > cell[0].env_steps:
            cell.clear()
        if not cell or row.env_steps == cell[0].env_steps:
            cell.append(row)
    intervals = {key: interval_over_seeds(cell) for key, cell in final.items()}

    table = Table(title="Meta-test: return of fresh agents", caption=_caption(final))
    table.add_column("method")
    methods = methods_in_order(rows)
    columns = []
    for environment in environments:
        table.add_column(Text(environment), justify="right")
        columns.append(_column_texts([intervals.get((environment, method)) for method in methods]))
    for method, *texts in zip(methods, *columns, strict=True):
        table.add_row(Text(method_name(method)), *texts)
    return table


def _column_texts(intervals: Sequence[Interval | None]) -> list[Text]:
    """The cells of one environment: as many decimals everywhere as its largest mean needs, the best mean bold."""
    means = [interval.mean for interval in intervals if interval and not math.isnan(interval.mean)]
    best = max(means, default=math.nan)
    largest = max(map(abs, means), default=0.0)
    decimals = 0 if largest >= 1000 else 1 if largest >= 10 else 2
    texts = []
    for interval in intervals:
        text = f"{interval.mean:,.{decimals}f}" if interval else "-"
        if interval and not math.isnan(interval.low):
            text += f" ± {interval.high - interval.mean:,.{decimals}f}"
        texts.append(Text(text, style="bold" if interval and interval.mean == best else ""))
    return texts


def _caption(final: Mapping[tuple[str, str], Sequence[MetaTestRow]]) -> Text:
    """How many seeds, how long the fresh agents were trained (random actions are not), how long the objective."""
    seeds = [len(cell) for cell in final.values()]
    env_steps = [row.env_steps for (_, method), cell in final.items() if method != "random" for row in cell]
    stages = [row.meta_training_env_steps or 0 for (_, method), cell in final.items() if method == "learned" for row in cell]
    if not seeds:
        return Text("no results yet")
    if max(seeds) == 1:
        caption = "one seed: mean only, no interval"
    else:
        caption = f"mean ± half-width of the 95 % interval over {_span(seeds)} seeds"
    if env_steps:
        caption += f"; after {_span(env_steps)} env steps"
    if stages:
        caption += f"; objective meta-trained for {_span(stages)} env steps per agent"
    return Text(caption)


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
