"""The tables of a run's meta-test: returns so far while it runs, and final returns at its end."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from metagenrl_pl.reporting.numbers import decimals_for, format_number
from metagenrl_pl.results.methods import find_method, find_methods
from metagenrl_pl.results.rows import MetaTestRow, final_rows, interval_over_agents, newest_stage
from metagenrl_pl.results.statistics import Interval


def final_tables(rows: Sequence[MetaTestRow], width: int) -> list[Table]:
    """Method by environment: mean return over seeds at each method's largest `env_steps`, with its 95 % interval.

    The latest stage of the learned objective counts. The best mean of an environment is bold. Every table has as many environments as
    fit beside each other with their whole names.

    Args:
        rows: of `meta_test.csv`.
        width: of the terminal, in characters.
    """
    rows = newest_stage(rows)
    environments = sorted({row.environment for row in rows})
    methods = find_methods(row.method for row in rows)
    final: dict[tuple[str, str], list[MetaTestRow]] = {}
    for row in final_rows(rows):
        final.setdefault((row.environment, row.method), []).append(row)
    intervals = {key: interval_over_agents([row.episode_return for row in cell]) for key, cell in final.items()}
    texts = {name: _column_texts([intervals.get((name, method.name)) for method in methods]) for name in environments}
    widths = {name: 3 + max(len(name), *map(len, column)) for name, column in texts.items()}
    left = width - 5 - max((len(method.label) for method in methods), default=6)
    tables: list[Table] = []
    for group in _groups(environments, widths, left) or [[]]:
        table = Table(title="Meta-test: return of fresh agents" if not tables else None)
        table.add_column("method", no_wrap=True)
        for environment in group:
            table.add_column(Text(environment), justify="right", overflow="fold")
        for index, method in enumerate(methods):
            table.add_row(Text(method.label), *(texts[environment][index] for environment in group))
        tables.append(table)
    tables[-1].caption = _caption(final)
    return tables


def _groups(environments: Sequence[str], widths: Mapping[str, int], most: int) -> list[list[str]]:
    """Environments in order, as many in a group as fit, at least one."""
    groups: list[list[str]] = []
    left = 0
    for environment in environments:
        if not groups or widths[environment] > left:
            groups.append([])
            left = most
        groups[-1].append(environment)
        left -= widths[environment]
    return groups


def returns_so_far(tested: Mapping[str, tuple[int, Mapping[str, float]]]) -> Table:
    """Environment by method, the newest evaluations of a meta-test that goes on.

    Args:
        tested: by method, the env steps of its fresh agents and their mean return in each environment.
    """
    methods = find_methods(tested)
    table = Table(title="meta-test so far: return of fresh agents")
    table.add_column("environment", overflow="fold")
    for method in methods:
        table.add_column(Text(method.short_label), justify="right")
    environments = sorted({environment for _, returns in tested.values() for environment in returns})
    for environment in environments:
        values = [tested[method.name][1].get(environment) for method in methods]
        decimals = decimals_for(value for value in values if value is not None)
        table.add_row(Text(environment), *("-" if value is None else format_number(value, decimals) for value in values))
    table.add_row(Text("after env steps"), *(f"{tested[method.name][0]:,}" for method in methods), style="dim")
    return table


def _column_texts(intervals: Sequence[Interval | None]) -> list[Text]:
    """The cells of one environment: as many decimals everywhere as its largest mean needs, the best mean bold."""
    means = [interval.mean for interval in intervals if interval and not math.isnan(interval.mean)]
    best = max(means, default=math.nan)
    decimals = decimals_for(means)
    texts = []
    for interval in intervals:
        text = format_number(interval.mean, decimals) if interval else "-"
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
