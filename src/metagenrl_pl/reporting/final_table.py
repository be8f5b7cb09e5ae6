"""The table that a run prints at its end."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from metagenrl_pl.results.methods import find_method, find_methods
from metagenrl_pl.results.rows import MetaTestRow, interval_over_seeds, newest_stage
from metagenrl_pl.results.statistics import Interval


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
    methods = find_methods(row.method for row in rows)
    columns = []
    for environment in environments:
        table.add_column(Text(environment), justify="right")
        columns.append(_column_texts([intervals.get((environment, method.name)) for method in methods]))
    for method, *texts in zip(methods, *columns, strict=True):
        table.add_row(Text(method.label), *texts)
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
    env_steps = [row.env_steps for (_, method), cell in final.items() if find_method(method).trains for row in cell]
    stages = [
        row.meta_training_env_steps or 0
        for (_, method), cell in final.items()
        if find_method(method).is_meta_trained
        for row in cell
    ]
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
