"""Curves of a population during training, from `metrics.csv`."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metagenrl_pl.common.files import ForeignFileError, read_cell, read_csv

STEP_COLUMN = "env_steps"
"""The first column of `metrics.csv`: env steps per agent, the x axis of every plot."""

Curve = tuple[np.ndarray, np.ndarray]
"""Env steps [points], values [points]; only finite values, env steps ascending."""


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of `metrics.csv`. The first column holds whole numbers, the others numbers or nothing.

    Raises:
        ForeignFileError: another program wrote it.
    """
    columns, rows = read_csv(path)
    if columns and columns[0] != STEP_COLUMN:
        raise ForeignFileError(f"{path} begins with the column {columns[0]!r}; valid is {STEP_COLUMN!r}")
    for number, row in enumerate(rows, 1):
        read_cell(path, number, row, STEP_COLUMN, int)
        for column in columns[1:]:
            if row[column]:
                read_cell(path, number, row, column, float)
    return columns, rows


def agent_curves(path: Path, kinds: Sequence[str]) -> dict[str, dict[str, list[Curve]]]:
    """From `metrics.csv`, if there is one: environment -> kind of metric -> a curve for each agent that has one.

    Raises:
        ForeignFileError: another program wrote it.
    """
    metric = re.compile(rf"({'|'.join(map(re.escape, kinds))})/(.+)/agent_(\d+)")
    curves: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    columns, rows = read_metrics(path) if path.exists() else ([], [])
    for column in columns:
        if match := metric.fullmatch(column):
            points = [(int(row[STEP_COLUMN]), float(row[column])) for row in rows if row[column]]
            points = [point for point in points if math.isfinite(point[1])]
            if points:
                env_steps, values = np.array(sorted(points)).T
                curves[match[2]][match[1]].append((env_steps, values))
    return dict(sorted(curves.items()))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over agents at every env step that one of them has, from where all have begun; in between, agents are interpolated."""
    env_steps = np.unique(np.concatenate([steps for steps, _ in curves]))  # [points]
    env_steps = env_steps[env_steps >= max(steps[0] for steps, _ in curves)]
    return env_steps, np.mean([np.interp(env_steps, *curve) for curve in curves], axis=0)


def thin_out(curve: Curve, num_points: int) -> Curve:
    """A curve of at most so many points, each the mean of neighbours."""
    env_steps, values = curve
    if len(env_steps) <= num_points:
        return curve
    parts = zip(np.array_split(env_steps, num_points), np.array_split(values, num_points), strict=True)
    means = [(steps.mean(), part.mean()) for steps, part in parts]
    return np.array([step for step, _ in means]), np.array([value for _, value in means])
