"""The charts of a report: learning curves of fresh agents, meta-training, stages of an objective. Each is drawn once."""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from metagenrl_pl.reporting.svg import Line, line_panel
from metagenrl_pl.results.comparisons import Comparison, Entry
from metagenrl_pl.results.methods import LEARNED, UNTRAINED
from metagenrl_pl.results.rows import MetaTestRow
from metagenrl_pl.results.statistics import by_seed, mean_interval_over_seeds
from metagenrl_pl.results.training_curves import agent_curves, mean_curve, thin_out

LEARNED_COLOURS = ("#0072B2", "#D6336C", "#7048E8", "#0B8A6A", "#C2410C", "#1098AD", "#A61E4D", "#5C7A10", "#4C6EF5", "#8B5E34")
_STAGE_COLOURS = ("#9AB8D0", "#6F9FC4", "#4586B6", "#1D6CA3", "#0B5487", "#063E66")
_POINTS = 50  # of a line of meta-training


def colours_of(comparison: Comparison) -> dict[str, str]:
    """A colour for each entry, by name: learned objectives in turn, the others their method's own."""
    learned = (entry.name for entry in comparison.learned)
    colours = {name: LEARNED_COLOURS[index % len(LEARNED_COLOURS)] for index, name in enumerate(learned)}
    return colours | {entry.name: entry.method.colour for entry in comparison.others}


def learning_curve_panels(comparison: Comparison, keys: dict[str, str]) -> list[Markup]:
    """A panel for each environment, a line for each entry: mean over agents and its 95 % interval.

    Args:
        comparison: whose entries are drawn.
        keys: of their switches, by name.
    """
    colours = colours_of(comparison)
    panels = []
    for environment in sorted({curve.environment for entry in comparison.entries for curve in entry.curves}):
        curves = [curve for entry in comparison.entries for curve in entry.curves if curve.environment == environment]
        x_high = max(curve.env_steps[-1] for curve in curves)
        lines = [
            line
            for entry in comparison.entries
            if (line := _learning_curve(entry, environment, keys[entry.name], colours[entry.name], x_high))
        ]
        if any(math.isfinite(y) for line in lines for y in line.y):
            trained = [entry.name for entry in comparison.learned if entry.trained_in(environment)]
            title = f"{environment} (training)" if len(trained) == len(comparison.learned) > 0 else environment
            panels.append(line_panel(title, lines, "env steps of the fresh agent", "return"))
    return panels


def _learning_curve(entry: Entry, environment: str, key: str, colour: str, x_high: float) -> Line | None:
    returns: dict[int, list[tuple[int | None, float]]] = {}
    for curve in entry.curves:
        if curve.environment == environment:
            for env_steps, value in zip(curve.env_steps, curve.returns, strict=True):
                returns.setdefault(env_steps, []).append((curve.meta_training_seed, value))
    if not returns:
        return None
    x = sorted(returns)
    intervals = [mean_interval_over_seeds(by_seed(returns[env_steps])) for env_steps in x]
    if not entry.method.trains:  # one evaluation alone is no curve
        return Line(key, entry.name, colour, [0, x_high], [intervals[-1][0]] * 2, style="level")
    mean, low, high = zip(*intervals, strict=True)
    return Line(key, entry.name, colour, x, mean, low, high, "solid" if entry.variant is not None else "dashed")


def meta_training_panels(comparison: Comparison, keys: dict[str, str]) -> dict[str, list[Markup]]:
    """What the populations did while objectives were learned: quantity -> a panel for each environment; thin lines are seeds."""
    colours = colours_of(comparison)
    labels = {"episode_return": "Return while exploring", "agreement": "Agreement with the critic"}
    lines: dict[tuple[str, str], list[Line]] = {}
    for entry in comparison.learned:
        assert entry.variant is not None
        of_runs = [agent_curves(run.folder / "metrics.csv", tuple(labels)) for run in entry.variant.runs if run.meta_trains]
        for environment in sorted({name for of_run in of_runs for name in of_run}):
            for kind in labels:
                curves = [mean_curve(own) for of_run in of_runs if (own := of_run.get(environment, {}).get(kind))]
                if not curves:
                    continue
                key, colour = keys[entry.name], colours[entry.name]
                thin = [Line(key, entry.name, colour, *thin_out(curve, _POINTS), style="thin") for curve in curves]
                mean = Line(key, entry.name, colour, *thin_out(mean_curve(curves), _POINTS))
                lines.setdefault((kind, environment), []).extend([*(thin if len(curves) > 1 else []), mean])
    panels: dict[str, list[Markup]] = {}
    for (kind, environment), of_panel in sorted(lines.items()):
        panel = line_panel(environment, of_panel, "env steps per agent", "mean over agents")
        panels.setdefault(labels[kind], []).append(panel)
    return panels


def stage_panels(comparison: Comparison) -> dict[str, list[Markup]]:
    """Learning curves with the objective as it was at stages of meta-training (the paper's figure 4), of each entry that has several."""
    panels: dict[str, list[Markup]] = {}
    for entry in comparison.learned:
        assert entry.variant is not None
        rows = [row for run in entry.variant.runs for row in run.rows if row.method in (LEARNED.name, UNTRAINED.name)]
        for environment in sorted({row.environment for row in rows}):
            own = [row for row in rows if row.environment == environment]
            stages = sorted({row.meta_training_env_steps or 0 for row in own})
            if len([stage for stage in stages if stage]) > 1:
                lines = [_stage_line(own, stage, stages) for stage in stages]
                if any(math.isfinite(y) for line in lines for y in line.y):
                    panel = line_panel(environment, lines, "env steps of the fresh agent", "return")
                    panels.setdefault(entry.name, []).append(panel)
    return panels


def _stage_line(rows: Sequence[MetaTestRow], stage: int, stages: Sequence[int]) -> Line:
    """The later the stage, the darker."""
    index = round(stages.index(stage) / max(len(stages) - 1, 1) * (len(_STAGE_COLOURS) - 1))
    returns: dict[int, list[float]] = {}
    for row in rows:
        if (row.meta_training_env_steps or 0) == stage:
            returns.setdefault(row.env_steps, []).append(row.episode_return)
    x = sorted(returns)
    name = f"after {stage:,} env steps" if stage else "untrained"
    return Line("", name, _STAGE_COLOURS[index], x, [float(np.mean(returns[env_steps])) for env_steps in x])
