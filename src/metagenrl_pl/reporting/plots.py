"""The learning curves of a run as one picture."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.results.methods import Method, find_methods
from metagenrl_pl.results.rows import MetaTestRow, newest_stage, read_rows
from metagenrl_pl.results.training_curves import Curve, agent_curves, mean_curve

_AGENT_COLOUR = "#34495E"
_MAX_COLUMNS = 4
_RETURNS = ("episode_return", "evaluation_return")


def draw_learning_curves(run_dir: Path) -> Path | None:
    """Draw `<run_dir>/learning_curves.png` from what the folder holds of `metrics.csv` and `meta_test.csv`.

    A grid of panels. First one for each training environment: return against env steps per agent; thin lines are agents, the
    thick one is their mean. Evaluation returns count where there are any; exploration returns are faint then. Then one for each
    meta-test environment: return against env steps of the fresh agents; for each method thin lines are agents and a thick one is
    their mean; lighter lines are earlier stages of the learned objective; random actions are dashed.

    Returns:
        Path of the picture; None, and no picture, if there is nothing to draw yet.
    """
    training = agent_curves(run_dir / "metrics.csv", _RETURNS)
    test = _by_environment(read_rows(run_dir / "meta_test.csv"))
    num_panels = len(training) + len(test)
    if not num_panels:
        return None
    columns = min(_MAX_COLUMNS, num_panels)
    num_rows = math.ceil(num_panels / columns)
    columns = math.ceil(num_panels / num_rows)  # as few blank places as possible
    figure = Figure(figsize=(max(3.0 * columns, 5.5), 2.6 * num_rows + 0.6), layout="constrained")
    grid = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes in grid[num_panels:]:
        axes.set_visible(False)
    for axes, (environment, kinds) in zip(grid, training.items(), strict=False):
        _draw_training(axes, kinds)
        _style(axes, environment, "training: env steps per agent")
    rows = [row for environment_rows in test.values() for row in environment_rows]
    methods, newest = find_methods(row.method for row in rows), set(newest_stage(rows))
    for axes, (environment, environment_rows) in zip(grid[len(training) :], test.items(), strict=False):
        _draw_test(axes, environment_rows, newest, methods)
        _style(axes, environment, "meta-test: env steps of the fresh agent")
    for axes in grid[::columns]:
        axes.set_ylabel("return", fontsize=8, color="#444444")
    legend = [*(_training_legend(training) if training else []), *_test_legend(rows, methods)]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 2 * columns), frameon=False, fontsize=8)
    path = run_dir / "learning_curves.png"
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path


def _by_environment(rows: Sequence[MetaTestRow]) -> dict[str, list[MetaTestRow]]:
    groups: dict[str, list[MetaTestRow]] = defaultdict(list)
    for row in rows:
        groups[row.environment].append(row)
    return dict(sorted(groups.items()))


def _style(axes: Axes, environment: str, x_label: str) -> None:
    axes.set_title(environment, fontsize=9 if len(environment) <= 36 else 6, fontweight="bold", loc="left")
    axes.set_xlabel(x_label, fontsize=8, color="#444444")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7.5, color="#999999")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_training(axes: Axes, kinds: Mapping[str, Sequence[Curve]]) -> None:
    exploration, evaluation = kinds.get("episode_return", []), kinds.get("evaluation_return", [])
    if evaluation:
        for curve in exploration:
            axes.plot(*curve, color=_AGENT_COLOUR, linewidth=0.6, alpha=0.15)
    agents = evaluation or exploration
    for curve in agents:
        axes.plot(*curve, color=_AGENT_COLOUR, linewidth=0.8, alpha=0.4)
    axes.plot(*mean_curve(agents), color=_AGENT_COLOUR, linewidth=2.2)


def _draw_test(axes: Axes, rows: Sequence[MetaTestRow], newest: set[MetaTestRow], methods: Sequence[Method]) -> None:
    for method in methods:
        if method.is_meta_trained:
            _draw_earlier_stages(axes, [row for row in rows if row.method == method.name and row not in newest], method.colour)
    for method in reversed(methods):  # the learned objective on top
        own = [row for row in rows if row.method == method.name and row in newest]
        if not own:
            continue
        if not method.trains:  # one evaluation alone is no curve
            mean = float(np.mean([row.episode_return for row in own]))
            axes.axhline(mean, color=method.colour, linewidth=1.2, linestyle=_line_style(method))
            continue
        curves = _agent_curves(own)
        for curve in curves if len(curves) > 1 else []:
            axes.plot(*curve, color=method.colour, linewidth=0.7, alpha=0.4)
        axes.plot(*mean_curve(curves), color=method.colour, linewidth=2.4 if method.is_meta_trained else 1.7)


def _draw_earlier_stages(axes: Axes, rows: Sequence[MetaTestRow], colour: str) -> None:
    stages = sorted({row.meta_training_env_steps or 0 for row in rows})
    for index, stage in enumerate(stages):  # the older, the lighter
        curves = _agent_curves([row for row in rows if row.meta_training_env_steps == stage])
        axes.plot(*mean_curve(curves), color=colour, linewidth=1.0, alpha=0.15 + 0.35 * (index + 1) / len(stages))


def _line_style(method: Method) -> Literal["-", "--"]:
    return "-" if method.trains else "--"


def _agent_curves(rows: Sequence[MetaTestRow]) -> list[Curve]:
    """A curve for each seed; an agent that diverged has a gap, and so has the mean."""
    seeds: dict[int, list[MetaTestRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.env_steps):
        seeds[row.seed].append(row)
    return [(np.array([row.env_steps for row in own]), np.array([row.episode_return for row in own])) for own in seeds.values()]


def _training_legend(training: Mapping[str, Mapping[str, Sequence[Curve]]]) -> list[Line2D]:
    kinds = {kind for panel in training.values() for kind in panel}
    legend = [Line2D([], [], color=_AGENT_COLOUR, linewidth=2.2, label="training: mean (thin: agents)")]
    if len(kinds) == 2:
        legend.append(Line2D([], [], color=_AGENT_COLOUR, linewidth=0.9, alpha=0.25, label="exploring"))
    return legend


def _test_legend(rows: Sequence[MetaTestRow], methods: Sequence[Method]) -> list[Line2D]:
    legend = []
    for method in methods:
        legend.append(Line2D([], [], color=method.colour, linewidth=1.8, linestyle=_line_style(method), label=method.label))
        if method.is_meta_trained and len({row.meta_training_env_steps for row in rows if row.method == method.name}) > 1:
            legend.append(Line2D([], [], color=method.colour, linewidth=1.0, alpha=0.4, label="its earlier stages"))
    return legend
