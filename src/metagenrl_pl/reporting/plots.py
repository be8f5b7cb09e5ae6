"""Learning curves: of a run as one picture, of several runs panel by panel."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from metagenrl_pl.common.files import atomic_write, read_csv
from metagenrl_pl.results.methods import Method, find_methods
from metagenrl_pl.results.rows import (
    MetaTestRow,
    interval_over_seeds,
    newest_stage,
    read_rows,
)

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00")
"""Of runs side by side."""

_AGENT_COLOUR = "#34495E"
_MAX_PANELS_PER_ROW = 4
_RETURNS = ("episode_return", "evaluation_return")

Curve = tuple[np.ndarray, np.ndarray]
"""Env steps [points], return [points]; only finite values, env steps ascending."""


def learning_curves(run_dir: Path) -> Path | None:
    """Draw `<run_dir>/learning_curves.png` from what the folder holds of `metrics.csv` and `meta_test.csv`.

    Upper part: a panel per meta-training environment, return against env steps per agent; thin lines are agents, the thick one
    is their mean. Evaluation returns count where there are any; exploration returns are faint then.
    Lower part: a panel per meta-test environment, return against env steps of the fresh agents; a line per method is the mean
    over seeds, shaded its 95 % interval; lighter lines are earlier stages of the learned objective; random actions are dashed.

    Returns:
        Path of the picture; None, and no picture, if there is nothing to draw yet.
    """
    training = agent_curves(run_dir / "metrics.csv", _RETURNS)
    test = _by_environment(read_rows(run_dir / "meta_test.csv"))
    parts = [panels for panels in (training, test) if panels]
    if not parts:
        return None

    columns = min(_MAX_PANELS_PER_ROW, max(len(panels) for panels in parts))
    heights = [0.8 + 2.7 * math.ceil(len(panels) / columns) for panels in parts]  # inches
    figure = Figure(figsize=(max(3.4 * columns, 7.5), sum(heights)), layout="constrained")
    subfigures = iter(figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0])
    if training:
        subfigure = next(subfigures)
        for axes, (environment, kinds) in zip(_panels(subfigure, training, columns), training.items(), strict=True):
            _draw_training(axes, environment, kinds)
        _finish(subfigure, columns, "Training", ("env steps per agent", "return"), _training_legend(training))
    if test:
        subfigure = next(subfigures)
        rows = [row for environment_rows in test.values() for row in environment_rows]
        methods = find_methods(row.method for row in rows)
        newest = set(newest_stage(rows))
        for axes, (environment, environment_rows) in zip(_panels(subfigure, test, columns), test.items(), strict=True):
            _draw_test(axes, environment, environment_rows, newest, methods)
        title = "Meta-test: fresh agents"
        y_label = "return (shaded: 95 % interval)" if len({row.seed for row in rows}) > 1 else "return (one seed)"
        _finish(subfigure, columns, title, ("env steps of the fresh agent", y_label), _test_legend(rows, methods))

    path = run_dir / "learning_curves.png"
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path


def meta_test_figure(environment: str, rows: Sequence[MetaTestRow]) -> Figure:
    """Return of fresh agents in one environment, a line per method: the mean over all rows, shaded its 95 % interval."""
    figure, axes = _single_panel()
    methods = find_methods(row.method for row in rows)
    _draw_test(axes, environment, rows, set(rows), methods)
    _show_lines(axes)
    _style(axes, ("env steps of the fresh agent", "return"))
    _add_legend(figure, _test_legend(rows, methods))
    return figure


def stages_figure(environment: str, rows: Sequence[MetaTestRow]) -> Figure:
    """Return of fresh agents in one environment, a line per stage of meta-training (the paper's figure 4), shaded its 95 % interval.

    Args:
        environment: for the title.
        rows: of learned and untrained objectives, the latter stage 0.
    """
    figure, axes = _single_panel()
    stages = sorted({row.meta_training_env_steps or 0 for row in rows})
    legend = []
    for index, stage in enumerate(stages):  # the later, the darker
        colour = colormaps["viridis_r"](0.1 + 0.9 * index / max(len(stages) - 1, 1))
        env_steps, mean, low, high = _seed_curve([row for row in rows if (row.meta_training_env_steps or 0) == stage])
        axes.fill_between(env_steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(env_steps, mean, color=colour, linewidth=1.8)
        legend.append(Line2D([], [], color=colour, linewidth=1.8, label=f"{stage:,}" if stage else "untrained"))
    axes.set_title(environment, fontsize=10)
    _show_lines(axes)
    _style(axes, ("env steps of the fresh agent", "return"))
    _add_legend(figure, legend)
    return figure


def training_figure(title: str, runs: Mapping[str, Sequence[Curve]], y_label: str) -> Figure:
    """What the agents of each run did during training: thin lines are agents, a thick one is the mean of a run."""
    figure, axes = _single_panel()
    legend = []
    for index, (name, curves) in enumerate(runs.items()):
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        for curve in curves:
            axes.plot(*curve, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(*_mean_curve(curves), color=colour, linewidth=2.2)
        legend.append(Line2D([], [], color=colour, linewidth=2.2, label=name))
    axes.set_title(title, fontsize=10)
    _style(axes, ("env steps per agent", y_label))
    _add_legend(figure, legend)
    return figure


def agent_curves(path: Path, kinds: Sequence[str]) -> dict[str, dict[str, list[Curve]]]:
    """From `metrics.csv`, if there is one: environment -> kind of metric -> a curve per agent that has one."""
    metric = re.compile(rf"({'|'.join(map(re.escape, kinds))})/(.+)/agent_(\d+)")
    curves: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    columns, rows = read_csv(path) if path.exists() else ([], [])
    for column in columns:
        if match := metric.fullmatch(column):
            points = [(int(row["env_steps"]), float(row[column])) for row in rows if row[column]]
            points = [point for point in points if math.isfinite(point[1])]
            if points:
                env_steps, returns = np.array(sorted(points)).T
                curves[match[2]][match[1]].append((env_steps, returns))
    return dict(sorted(curves.items()))


def _by_environment(rows: Sequence[MetaTestRow]) -> dict[str, list[MetaTestRow]]:
    groups: dict[str, list[MetaTestRow]] = defaultdict(list)
    for row in rows:
        groups[row.environment].append(row)
    return dict(sorted(groups.items()))


def _panels(subfigure: SubFigure, panels: Mapping[str, object], columns: int) -> list[Axes]:
    """An axes per panel, row by row; what is left of the last row stays blank."""
    grid = subfigure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return list(grid[: len(panels)])


def _finish(subfigure: SubFigure, columns: int, title: str, labels: tuple[str, str], legend: Sequence[Line2D]) -> None:
    """What all panels of a part share: title, labels, one legend."""
    subfigure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    subfigure.legend(handles=legend, loc="outside lower center", ncols=max(3, 2 * columns), frameon=False, fontsize=8)
    for index, axes in enumerate(subfigure.axes):
        _style(axes, (labels[0], "" if index else labels[1]))


def _style(axes: Axes, labels: tuple[str, str]) -> None:
    axes.set_xlabel(labels[0], fontsize=9, color="#444444")
    axes.set_ylabel(labels[1], fontsize=9, color="#444444")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color="#999999")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _single_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")  # readable on a phone's width
    return figure, figure.subplots()


def _show_lines(axes: Axes) -> None:
    """Cut off intervals that reach further beyond the lines than these span: those of two seeds would flatten everything else."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    values = values[np.isfinite(values)]
    if len(values) and np.ptp(values) > 0:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, values.min() - np.ptp(values)), min(high, values.max() + np.ptp(values)))


def _add_legend(figure: Figure, legend: Sequence[Line2D]) -> None:
    figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over agents at every env step that one of them has, from where all have begun; in between, agents are interpolated."""
    env_steps = np.unique(np.concatenate([steps for steps, _ in curves]))  # [points]
    returns = np.stack([np.interp(env_steps, *curve, left=np.nan) for curve in curves])  # [P, points]
    return env_steps, returns.mean(axis=0)


def _draw_training(axes: Axes, environment: str, kinds: Mapping[str, Sequence[Curve]]) -> None:
    exploration, evaluation = kinds.get("episode_return", []), kinds.get("evaluation_return", [])
    if evaluation:
        for curve in exploration:
            axes.plot(*curve, color=_AGENT_COLOUR, linewidth=0.6, alpha=0.15)
    agents = evaluation or exploration
    for curve in agents:
        axes.plot(*curve, color=_AGENT_COLOUR, linewidth=0.9, alpha=0.45)
    axes.plot(*_mean_curve(agents), color=_AGENT_COLOUR, linewidth=2.4)
    axes.set_title(environment, fontsize=10)


def _draw_test(
    axes: Axes, environment: str, rows: Sequence[MetaTestRow], newest: set[MetaTestRow], methods: Sequence[Method]
) -> None:
    for method in methods:
        if method.is_meta_trained:
            _draw_earlier_stages(axes, [row for row in rows if row.method == method.name and row not in newest], method.colour)
    for method in reversed(methods):  # the learned objective on top
        own = [row for row in rows if row.method == method.name and row in newest]
        if own and not method.trains:  # one evaluation alone is no curve
            axes.axhline(interval_over_seeds(own).mean, color=method.colour, linewidth=1.3, linestyle=_line_style(method))
        elif own:
            env_steps, mean, low, high = _seed_curve(own)
            axes.fill_between(env_steps, low, high, color=method.colour, alpha=0.16, linewidth=0)
            axes.plot(env_steps, mean, color=method.colour, linewidth=2.4 if method.is_meta_trained else 1.7)
    axes.set_title(environment, fontsize=10)


def _draw_earlier_stages(axes: Axes, rows: Sequence[MetaTestRow], colour: str) -> None:
    stages = sorted({row.meta_training_env_steps or 0 for row in rows})
    for index, stage in enumerate(stages):  # the older, the lighter
        env_steps, mean, _, _ = _seed_curve([row for row in rows if row.meta_training_env_steps == stage])
        axes.plot(env_steps, mean, color=colour, linewidth=1.0, alpha=0.15 + 0.35 * (index + 1) / len(stages))


def _line_style(method: Method) -> Literal["-", "--"]:
    return "-" if method.trains else "--"


def _seed_curve(rows: Sequence[MetaTestRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Env steps, mean over seeds, lower and upper end of its 95 % interval, each [points]."""
    seeds: dict[int, list[MetaTestRow]] = defaultdict(list)
    for row in rows:
        seeds[row.env_steps].append(row)
    points = [(env_steps, *interval_over_seeds(seeds[env_steps])) for env_steps in sorted(seeds)]
    env_steps, mean, low, high = np.array(points).T
    return env_steps, mean, low, high


def _training_legend(training: Mapping[str, Mapping[str, Sequence[Curve]]]) -> list[Line2D]:
    kinds = {kind for panel in training.values() for kind in panel}
    legend = [
        Line2D([], [], color=_AGENT_COLOUR, linewidth=2.4, label="mean of the agents"),
        Line2D([], [], color=_AGENT_COLOUR, linewidth=0.9, alpha=0.6, label="one agent"),
    ]
    if len(kinds) == 2:
        legend.append(Line2D([], [], color=_AGENT_COLOUR, linewidth=0.9, alpha=0.25, label="one agent, exploring"))
    return legend


def _test_legend(rows: Sequence[MetaTestRow], methods: Sequence[Method]) -> list[Line2D]:
    legend = []
    for method in methods:
        legend.append(Line2D([], [], color=method.colour, linewidth=1.8, linestyle=_line_style(method), label=method.label))
        if method.is_meta_trained and len({row.meta_training_env_steps for row in rows if row.method == method.name}) > 1:
            legend.append(Line2D([], [], color=method.colour, linewidth=1.0, alpha=0.4, label="its earlier stages"))
    return legend
