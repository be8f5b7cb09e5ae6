"""Numbers, intervals and lists as text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metagenrl_pl.results.statistics import Interval, mean_interval_over_seeds


def format_number(value: float, decimals: int = 2) -> str:
    """`value` with a fixed number of decimals, never as -0; an agent that diverged has no number."""
    return "diverged" if math.isnan(value) else f"{round(value, decimals) + 0.0:,.{decimals}f}"


def format_interval(interval: Interval | None, decimals: int = 2) -> str:
    """`mean [low, high]`, the mean alone where there is no interval, a dash for nothing."""
    if interval is None:
        return "–"
    if math.isnan(interval.low):
        return format_number(interval.mean, decimals)
    return f"{format_number(interval.mean, decimals)} [{format_number(interval.low, decimals)}, {format_number(interval.high, decimals)}]"


def format_returns(returns: Mapping[Any, Sequence[float]], decimals: int) -> str:
    """`mean ± half-width (number)` of the returns of agents, by meta-training seed; a dash for none."""
    num_agents = sum(map(len, returns.values()))
    if not num_agents:
        return "–"
    interval = mean_interval_over_seeds(returns)
    if math.isnan(interval.mean):
        return f"diverged ({num_agents})"
    half_width = "" if math.isnan(interval.low) else f" ± {interval.high - interval.mean:,.{decimals}f}"
    return f"{interval.mean:,.{decimals}f}{half_width} ({num_agents})"


def decimals_for(values: Iterable[float]) -> int:
    """As many decimals as the largest of some returns needs."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 10 else 2


def join_names(names: Sequence[str]) -> str:
    """A list of names that stays unambiguous where a name has a comma."""
    return ("; " if any("," in name for name in names) else ", ").join(names)
