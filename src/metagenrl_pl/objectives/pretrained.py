"""Objectives that come with this package: their names, files and cards."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path(__file__).parents[1] / "pretrained"


class Pretrained(NamedTuple):
    """An objective that comes with this package.

    Args:
        name: for `ParametricObjective.pretrained` and `objective.name`.
        training_environments: of its meta-training, also of earlier runs.
        scores: of fresh agents by environment, at the end of their training: random actions 0, DDPG/TD3 1. None where DDPG/TD3 is not
            above random actions.
        chosen_by: validation environments, by whose scores it was chosen among objectives of several seeds. They are not unseen.
    """

    name: str
    training_environments: tuple[str, ...]
    scores: Mapping[str, float | None]
    chosen_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = {*self.training_environments, *self.chosen_by}
        text = f"{self.name}: meta-trained on {', '.join(self.training_environments)}"
        text += f"; scores in unseen environments: {self._scores_in([name for name in self.scores if name not in known])}"
        if self.chosen_by:
            text += f"; in the validation environments by which it was chosen: {self._scores_in(self.chosen_by)}"
        return text

    def _scores_in(self, environments: Sequence[str]) -> str:
        scores = {name: self.scores.get(name) for name in environments}
        return ", ".join(f"{name} {'-' if score is None else f'{score:.2f}'}" for name, score in scores.items())


def list_pretrained() -> list[Pretrained]:
    """All objectives that come with this package, by name."""
    return [_read_card(path) for path in sorted(_FOLDER.glob("*.json"))]


def pretrained_names() -> list[str]:
    """The names of the objectives that come with this package."""
    return sorted(file.stem for file in _FOLDER.glob("*.safetensors"))


def pretrained_path(name: str) -> Path:
    """The file of an objective that comes with this package. Its card lies in the same folder.

    Raises:
        ValueError: if there is no file with this name.
    """
    if name not in (names := pretrained_names()):
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no pretrained objective {name!r}; {hint}valid: {', '.join(names)}")
    return _FOLDER / f"{name}.safetensors"


def describe_card(card: Mapping[str, Any]) -> list[str]:
    """The parts of a card that its user needs: where it was meta-trained, for how long, and with which windows."""
    parts = []
    if environments := card.get("training_environments"):
        parts.append(f"meta-trained on {', '.join(environments)}")
    if env_steps := card.get("env_steps"):
        earlier = sum(run.get("env_steps", 0) for run in card.get("earlier", ()))
        after = f", after {earlier:,} in earlier runs" if earlier else ""
        parts.append(f"{env_steps:,} env steps of each of {card.get('num_agents', 'its')} agents{after}")
    if length := card.get("window_length"):
        parts.append(f"{card.get('settings', {}).get('agent.num_windows', 'some')} windows of {length} steps")
    return parts


def trained_in(card: Mapping[str, Any]) -> set[str]:
    """All environments that an objective was meta-trained in: in the run of its card, and in those whose objective that run continued."""
    return {name for run in (card, *(card.get("earlier") or ())) for name in run.get("training_environments") or ()}


def _read_card(path: Path) -> Pretrained:
    card = json.loads(path.read_text())
    scores = {name: score["normalised"] for name, score in card["scores"].items()}
    return Pretrained(path.stem, tuple(sorted(trained_in(card))), scores, tuple(card.get("chosen_by", ())))
