"""An ensemble of learned objectives: what several meta-trainings agree on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.objectives.contract import DirectedObjective, ObjectiveInputs
from metagenrl_pl.objectives.learned import scaled_to_one
from metagenrl_pl.objectives.parametric import (
    ParametricObjective,
    UnknownObjectiveError,
    class_name,
    imported_class,
    pretrained_path,
)


class ObjectiveEnsemble(DirectedObjective, ParametricObjective):
    """g = mean over members of their action gradients, each over its root mean square over the agent's valid steps.

    So every member has the same say, whatever the size of its loss, and where they contradict each other the policy moves less. Not in
    the paper. `of` makes one of objectives, `load_all` of files; a file of its own keeps all of them.

    Args:
        members: class and architecture of each, `{"class": "metagenrl_pl.objectives.learned.LearnedObjective", "architecture": {...}}`.
        seed: of the initial weights, each member's its own.

    Raises:
        ValueError: if there is no member, one is of a class that has not been imported, or members look at gradients of different critics.
    """

    def __init__(self, members: Sequence[Mapping[str, Any]], seed: int = 0) -> None:
        if not members:
            raise ValueError("members must name at least one objective, got []")
        super().__init__(members=[dict(member) for member in members])
        made = []
        for index, member in enumerate(members):
            if (kind := imported_class(member["class"])) is None:
                raise UnknownObjectiveError(
                    f"members: {member['class']} has not been imported; valid are classes of objectives that have been"
                )
            made.append(kind(**member["architecture"], seed=derive_seed(seed, "member", index)))
        looking = {one.critic_gradient_of: index for index, one in enumerate(made) if one.needs_critic_gradient}
        if len(looking) > 1:
            told = " and ".join(f"member {index} critic_gradient_of={of}" for of, index in looking.items())
            raise ValueError(f"members look at dQ/da of different critics, {told}; valid are members that look at the same")
        self.members = nn.ModuleList(made)
        self.needs_value = any(member.needs_value for member in made)
        self.needs_critic_gradient, self.critic_gradient_of = bool(looking), next(iter(looking), "first")

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """The mean, [P, B, T, A], 0 where padded."""
        slopes = []
        for index, member in enumerate(self.members):
            assert isinstance(member, ParametricObjective)  # as made above
            prefix = f"members.{index}."
            own = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
            slopes.append(scaled_to_one(member.action_gradient(own, inputs), inputs.action_weight, inputs.valid))
        return sum(slopes[1:], slopes[0]) / len(slopes)

    @classmethod
    def of(cls, objectives: Sequence[ParametricObjective]) -> Self:
        """An ensemble of these, with copies of their weights, frozen; its card tells where all of them come from.

        Raises:
            ValueError: if there are none.
        """
        ensemble = cls([{"class": class_name(type(one)), "architecture": one.architecture} for one in objectives])
        for member, one in zip(ensemble.members, objectives, strict=True):
            member.load_state_dict(one.state_dict())
        ensemble.card = _card_of([one.card for one in objectives], [type(one).__name__ for one in objectives], cls)
        return ensemble.requires_grad_(False)

    @classmethod
    def load_all(cls, members: Sequence[str]) -> Self:
        """An ensemble of objectives that have been saved, frozen.

        Args:
            members: paths of `.safetensors` files, and names of objectives that come with this package.

        Raises:
            ValueError: if there are none, or what `ParametricObjective.load` refuses.
        """
        objectives = []
        for member in members:
            path = Path(member)
            is_path = path.suffix or len(path.parts) > 1 or path.exists()
            try:
                objectives.append(ParametricObjective.load(path if is_path else pretrained_path(member)))
            except ValueError as error:  # names the key that a single objective would have
                raise type(error)(f"members: {member}: {str(error).partition(': ')[2]}") from error
        return cls.of(objectives)


def _card_of(cards: Sequence[Mapping[str, Any]], names: Sequence[str], kind: type) -> dict[str, Any]:
    """What is told of an ensemble: its members' settings, as lists where they are not alike, and the members' own cards."""
    every = [card.get("settings", {}) for card in cards]
    keys = dict.fromkeys(key for settings in every for key in settings)
    settings = {key: _common([settings[key] for settings in every if key in settings]) for key in keys}
    windows = {card["window_length"] for card in cards if "window_length" in card}
    return {
        "training_environments": sorted({name for card in cards for name in card.get("training_environments", ())}),
        "env_steps": max((card.get("env_steps", 0) for card in cards), default=0),
        **({"window_length": windows.pop()} if len(windows) == 1 else {}),
        "seed": next((card["seed"] for card in cards if "seed" in card), 0),
        "settings": {
            **settings,
            "objective._target_": f"metagenrl_pl.objectives.{kind.__name__}",
            "objective.members": list(names),
        },
        "members": [dict(card) for card in cards],
    }


def _common(values: list[Any]) -> Any:
    """What all of them are, else the list."""
    return values[0] if all(value == values[0] for value in values) else values
