"""Numbers, intervals and lists as text."""

import math
from collections.abc import Iterable, Sequence

from metagenrl_pl.results.statistics import Interval, mean_interval


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


def format_returns(returns: Sequence[float], decimals: int) -> str:
    """`mean ± half-width (number)` of the returns of agents, a dash for none."""
    if not returns:
        return "–"
    if not all(map(math.isfinite, returns)):
        return f"diverged ({len(returns)})"
    interval = mean_interval(returns)
    half_width = f" ± {interval.high - interval.mean:,.{decimals}f}" if len(returns) > 1 else ""
    return f"{interval.mean:,.{decimals}f}{half_width} ({len(returns)})"


def decimals_for(values: Iterable[float]) -> int:
    """As many decimals as the largest of some returns needs."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 10 else 2


def join_names(names: Sequence[str]) -> str:
    """A list of names that stays unambiguous where a name has a comma."""
    return ("; " if any("," in name for name in names) else ", ").join(names)
