"""The methods whose returns are compared. Each is described here, once; tables, plots, reports and benchmarks read it from here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from metagenrl_pl.objectives import CriticObjective, Objective, ParametricObjective, Reinforce

_OTHER_COLOURS = ("#000000", "#7B4173", "#999933")


@dataclass(frozen=True)
class Method:
    """What trains fresh agents.

    Args:
        name: in `meta_test.csv`.
        label: in tables and legends.
        short_label: where there is little room.
        colour: of its lines.
        kind: class of the objectives that may have this name; None if no objective may.
        options: attributes that those objectives must have.
        trains: whether its agents learn, so that there is a learning curve.
        is_meta_trained: whether objectives that this project has meta-trained train its agents.
        is_one_policy: whether its agents are one policy, which its package has meta-trained, so that they are not independent.
        is_built_in: whether a meta-test makes its objective itself, so that no baseline may have this name.
        switch: the override of `callbacks.meta_test` that leaves it out; None if it cannot be left out, or is never tested there.
        experiment: the preset that trains agents with it alone.
        package: whose agents these are; None for this project's own.
        normalised_score: what normalised scores give it by definition, if anything.
    """

    name: str
    label: str
    short_label: str
    colour: str
    kind: type[Objective] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = True
    is_meta_trained: bool = False
    is_one_policy: bool = False
    is_built_in: bool = False
    switch: str | None = None
    experiment: str | None = None
    package: str | None = None
    normalised_score: float | None = None

    def fits(self, objective: Objective) -> bool:
        """Whether an objective may have this name."""
        return self._is_kind(objective) and all(getattr(objective, key) == value for key, value in self.options.items())

    def check(self, objective: Objective) -> None:
        """Refuse an objective of another kind.

        Raises:
            ValueError: says whose name it is.
        """
        if self.kind is None:
            raise ValueError(f"{self.name} is the name of {self.label}, not of an objective; valid is a name of your own")
        if not self._is_kind(objective):
            raise ValueError(
                f"{self.name} is the name of {self.kind.__name__}, not of {type(objective).__name__}; valid is a name of your own"
            )
        for key, value in self.options.items():
            if (given := getattr(objective, key)) != value:
                others = [f"{method.name}, or " for method in METHODS.values() if method.options and method.fits(objective)]
                raise ValueError(
                    f"{self.name} is the name of {self.kind.__name__} with {key}={value}, not {given}; valid is {''.join(others)}a name "
                    "of your own"
                )

    def _is_kind(self, objective: Objective) -> bool:
        return self.kind is not None and isinstance(objective, self.kind)


LEARNED = Method(
    "learned",
    "learned objective",
    "learned",
    "#0072B2",
    kind=ParametricObjective,
    is_meta_trained=True,
    is_built_in=True,
)
UNTRAINED = Method(
    "untrained",
    "untrained objective",
    "untrained",
    "#CC79A7",
    kind=ParametricObjective,
    is_built_in=True,
    switch="callbacks.meta_test.untrained=false",
)
REINFORCE = Method(
    "reinforce",
    "off-policy REINFORCE (GAE)",
    "REINFORCE (GAE)",
    "#E69F00",
    kind=Reinforce,
    switch="callbacks.meta_test.baselines.reinforce=null",
    experiment="baseline/off_policy_reinforce",
)
CRITIC = Method(
    "critic",
    "DDPG/TD3",
    "DDPG/TD3",
    "#009E73",
    kind=CriticObjective,
    options={"critic_gradient_of": "first"},
    switch="callbacks.meta_test.baselines.critic=null",
    experiment="baseline/ddpg",
    normalised_score=1.0,
)
CRITIC_BOTH = Method(
    "critic_both",
    "DDPG/TD3 (mean of both critics)",
    "DDPG/TD3 (both)",
    "#8C6D31",
    kind=CriticObjective,
    options={"critic_gradient_of": "both"},
)
PPO = Method("ppo", "PPO (Stable-Baselines3)", "PPO", "#D55E00", package="stable_baselines3")
TD3 = Method("td3", "TD3 (Stable-Baselines3)", "TD3 (SB3)", "#56B4E9", package="stable_baselines3")
ON_POLICY_REINFORCE = Method(
    "on_policy_reinforce",
    "on-policy REINFORCE (Stable-Baselines3)",
    "on-policy REINFORCE",
    "#F0E442",
    package="stable_baselines3",
)
RL2 = Method("rl2", "RL2 (sb3-contrib)", "RL2", "#882255", is_one_policy=True, package="sb3_contrib")
RANDOM = Method(
    "random",
    "random actions",
    "random",
    "#666666",
    trains=False,
    is_built_in=True,
    switch="callbacks.meta_test.random=false",
    normalised_score=0.0,
)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (LEARNED, UNTRAINED, REINFORCE, CRITIC, CRITIC_BOTH, PPO, TD3, ON_POLICY_REINFORCE, RL2, RANDOM)
}
"""Every known method by its name, in display order. Their colours differ for colour-blind readers too (Okabe & Ito)."""


def find_methods(names: Iterable[str]) -> list[Method]:
    """The methods of these names, each once: known ones in display order, then others by name, which get colours in turn."""
    occurring = set(names)
    others = sorted(occurring - METHODS.keys())
    return [method for name, method in METHODS.items() if name in occurring] + [
        Method(name, name, name, _OTHER_COLOURS[index % len(_OTHER_COLOURS)], kind=Objective) for index, name in enumerate(others)
    ]


def find_method(name: str) -> Method:
    """The method of this name; one that nothing describes is called what it is."""
    return METHODS.get(name) or find_methods([name])[0]


def reference_methods() -> tuple[Method, Method]:
    """The methods that normalised scores are measured by: the mean of the first is 0, of the second 1."""
    by_score = {method.normalised_score: method for method in METHODS.values()}
    return by_score[0.0], by_score[1.0]


def check_method(name: str | None, objective: Objective) -> None:
    """Refuse a name that belongs to an objective of another kind; None is no name.

    Raises:
        ValueError: says whose name it is.
    """
    if name is not None:
        find_method(name).check(objective)
