"""The part of a report that shows what objectives do with windows that are made by hand, each objective in a row of small heat maps."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.objectives import CriticObjective, LearnedMixture, Objective, ParametricObjective, Reinforce
from metagenrl_pl.reporting.numbers import format_number
from metagenrl_pl.reporting.probes import (
    PROBES,
    action_gradient_map,
    credit_by_delay,
    credit_matrix,
    critic_share_by_step,
    similarity,
)
from metagenrl_pl.reporting.svg import Line, heat_map, line_panel
from metagenrl_pl.results.comparisons import Comparison, Entry
from metagenrl_pl.results.methods import CRITIC, REINFORCE, UNTRAINED

_PAPERS_WINDOW_LENGTH = 20
_POINTS, _WINDOWS = 11, 12  # along an axis, and of noise, mirror images not counted: enough for a picture of this size


@dataclass(frozen=True)
class Cell:
    """A heat map and the cosine of the angle between it and the reference's; an empty picture where an objective looks at nothing."""

    picture: Markup | str = ""
    cosine: str = ""


@dataclass(frozen=True)
class Objectives:
    """What objectives do, side by side.

    Args:
        num_steps: of a window.
        header: of the columns.
        rows: name of the objective, and a cell for each column.
        panels: credit by delay, and the weights of mixtures.
        notes: on objectives that cannot be drawn.
    """

    num_steps: int
    header: list[str]
    rows: list[tuple[str, list[Cell]]]
    panels: list[Markup]
    notes: list[str]


def objectives_part(
    comparison: Comparison, keys: Mapping[str, str], colours: Mapping[str, str], report: Callable[[str], None] = lambda name: None
) -> Objectives | None:
    """What the first objective of each entry does, beside REINFORCE, DDPG/TD3 and an untrained one; None if there is no file.

    Args:
        comparison: whose objectives are drawn.
        keys, colours: of switches and lines, by the name of the entry.
        report: called with the name of each objective before it is drawn.

    Raises:
        ValueError: an objective file that cannot be read.
    """
    learned, notes = _load_learned(comparison)
    if not learned:
        return Objectives(0, [], [], [], notes) if notes else None
    num_steps, objectives = _with_references(comparison, learned)
    maps = _Maps(num_steps)
    rows = []
    for name, objective in objectives.items():
        report(name)
        rows.append((name, list(maps.cells(name, objective))))
    names = {entry.method.short_label: entry.name for entry in comparison.others}
    drawn = {name: colours.get(names.get(name, name), "#888888") for name in objectives}
    of_key = {name: keys.get(names.get(name, name), "") for name in objectives}
    lines = [Line(of_key[name], name, drawn[name], *credit_by_delay(matrix)) for name, matrix in maps.credits.items()]
    panels = [line_panel("Credit by delay", lines, "steps from action to reward", "share of largest")]
    mixtures = {name: one for name, one in learned.items() if isinstance(one, LearnedMixture)}
    if mixtures:
        panels.append(_share_panel(mixtures, num_steps, of_key, drawn))
    return Objectives(num_steps, [*PROBES.values(), "credit over time"], rows, panels, notes)


def objective_path(entry: Entry) -> Path | None:
    """The file of an entry's first objective; None if its runs have kept none."""
    assert entry.variant is not None
    paths = (run.folder / "objective.safetensors" for run in entry.variant.runs)
    return next((path for path in paths if path.exists()), None)


def _load_learned(comparison: Comparison) -> tuple[dict[str, ParametricObjective], list[str]]:
    learned, notes = {}, []
    for entry in comparison.learned:
        path = objective_path(entry)
        if path is not None:
            try:
                learned[entry.name] = ParametricObjective.load(path)
            except ValueError as error:
                reason = one_line(error).removeprefix(f"{path}: ")
                notes.append(f"{entry.name} is not drawn: {reason}")
    return learned, notes


def _with_references(comparison: Comparison, learned: Mapping[str, ParametricObjective]) -> tuple[int, dict[str, Objective]]:
    """Steps of a window, and all objectives to draw by name."""
    runs = [run for entry in comparison.learned if entry.variant is not None for run in entry.variant.runs]
    discount = next((run.origin.settings.get("agent.discount") for run in runs if run.origin is not None), None)
    first = next(iter(learned.values()))
    untrained = first.fresh(derive_seed(0, "untrained objective"))  # as in meta-tests
    objectives = {
        REINFORCE.name: Reinforce(discount=float(discount if discount is not None else 0.99)),
        CRITIC.name: CriticObjective(),
        UNTRAINED.name: untrained,
    }
    labels = {method.name: method.short_label for method in (REINFORCE, CRITIC, UNTRAINED)}
    num_steps = next((run.window_length for run in runs if run.window_length), _PAPERS_WINDOW_LENGTH)
    return num_steps, {labels[name]: one for name, one in objectives.items()} | dict(learned)


class _Maps:
    """Draws objectives one after the other and compares them with the first one of each picture: REINFORCE, by dQ/da DDPG/TD3."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._references: dict[str, np.ndarray] = {}
        self.credits: dict[str, np.ndarray] = {}

    def cells(self, name: str, objective: Objective) -> Iterator[Cell]:
        for probe, meaning in PROBES.items():
            # REINFORCE does not look at the critic's gradient; DDPG/TD3 looks at nothing else.
            is_of_critic = isinstance(objective, CriticObjective)
            if not (objective.needs_critic_gradient if probe == "critic_gradient" else not is_of_critic):
                yield Cell()
                continue
            gradient = action_gradient_map(objective, probe, self._num_steps, _POINTS, _WINDOWS).gradient
            picture = heat_map(gradient[::-1], f"dL/da of {name} by {meaning} and distance")
            yield Cell(picture, self._cosine(probe, gradient))
        if isinstance(objective, CriticObjective):
            yield Cell()
            return
        matrix = credit_matrix(objective, self._num_steps)
        self.credits[name] = matrix
        yield Cell(heat_map(matrix, f"Credit over time of {name}"), self._cosine("credit", matrix))

    def _cosine(self, probe: str, picture: np.ndarray) -> str:
        if probe not in self._references:
            self._references[probe] = picture
            return ""
        cosine = similarity(picture, self._references[probe])
        return "" if math.isnan(cosine) else format_number(cosine)


def _share_panel(
    mixtures: Mapping[str, LearnedMixture], num_steps: int, keys: Mapping[str, str], colours: Mapping[str, str]
) -> Markup:
    """DDPG/TD3's share of the weights of mixtures: solid where the action was better than expected, dashed elsewhere."""
    lines = []
    for name, mixture in mixtures.items():
        shares = critic_share_by_step(mixture, num_steps)
        for share, where, style in zip(shares, ("A > 0", "A ≤ 0"), ("solid", "dashed"), strict=True):
            lines.append(Line(keys[name], f"{name}, {where}", colours[name], range(num_steps), share, style=style))
    return line_panel("DDPG/TD3's share of the weights", lines, "step of the window", "share", y_range=(0.0, 1.0))
