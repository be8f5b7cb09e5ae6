"""Which environments a run uses, as its configuration describes them."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EnvironmentSpec:
    """Which environment to make.

    Args:
        id: a Gymnasium id, or `module:Id`.
        kwargs: for `gymnasium.make`.
        max_episode_steps: time limit in env steps; null keeps the environment's own limit.
        wrappers: put around it, the innermost first: `module.Class`, or a mapping with `wrapper` and `kwargs`.
        action_low, action_high: bounds of the actions that policies take, numbers or one number for each dimension; null keeps the
            environment's own. An environment with unbounded actions needs them.
        evaluation_kwargs: changes of `kwargs` in evaluations.
        name: in tables and files; by default the id with the settings in brackets, such as `Hopper-v5[max_episode_steps=100]`.

    Raises:
        ValueError: if a value has the wrong type, or the time limit is below 1.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    wrappers: Sequence[str | Mapping[str, Any]] = ()
    action_low: float | Sequence[float] | None = None
    action_high: float | Sequence[float] | None = None
    evaluation_kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise ValueError(f"environment {self.id}: id must be text")
        if not isinstance(self.name, str):
            raise ValueError(f"environment {self.id}: name must be text, got {self.name!r}")
        for key in ("kwargs", "evaluation_kwargs"):
            if not isinstance(getattr(self, key), Mapping):
                raise ValueError(f"environment {self.id}: {key} must be a mapping of names to values, got {getattr(self, key)!r}")
        limit = self.max_episode_steps
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"environment {self.id}: max_episode_steps must be null or a whole number from 1, got {limit!r}")
        if isinstance(self.wrappers, str) or not isinstance(self.wrappers, Sequence):
            raise ValueError(f"environment {self.id}: wrappers must be a list, got {self.wrappers!r}")
        for wrapper in self.wrappers:
            if not isinstance(wrapper, str) and not (
                isinstance(wrapper, Mapping) and {"wrapper"} <= set(wrapper) <= {"wrapper", "kwargs"}
            ):
                raise ValueError(
                    f"environment {self.id}: the wrapper {wrapper!r} must be module.Class, or a mapping with the keys wrapper, kwargs"
                )
            kwargs = split_wrapper(wrapper)[1]
            if not isinstance(kwargs, Mapping):
                raise ValueError(
                    f"environment {self.id}: kwargs of the wrapper {wrapper!r} must be a mapping of names to values, got {kwargs!r}"
                )
        if not self.name:
            object.__setattr__(self, "name", self._describe())  # frozen

    def _describe(self) -> str:
        changes = [f"{key}={value}" for key, value in self.kwargs.items()]
        changes += [] if self.max_episode_steps is None else [f"max_episode_steps={self.max_episode_steps}"]
        for wrapper in self.wrappers:
            path, kwargs = split_wrapper(wrapper)
            changes.append(path.rpartition(".")[2] + (f"({','.join(f'{k}={v}' for k, v in kwargs.items())})" if kwargs else ""))
        changes += [f"{key}={value}" for key in ("action_low", "action_high") if (value := getattr(self, key)) is not None]
        changes += [f"evaluation:{key}={value}" for key, value in self.evaluation_kwargs.items()]
        return self.id + (f"[{','.join(changes)}]" if changes else "")

    @property
    def for_evaluation(self) -> "EnvironmentSpec":
        """The same environment with the arguments of evaluations."""
        return replace(self, kwargs={**self.kwargs, **self.evaluation_kwargs})

    @classmethod
    def parse(cls, entry: "str | Mapping[str, Any] | EnvironmentSpec") -> "EnvironmentSpec":
        """Make a spec from an id, or from a mapping with `id` and any of the other arguments.

        Raises:
            ValueError: if the mapping has no id, an unknown key or an invalid value.
        """
        if isinstance(entry, EnvironmentSpec):
            return entry
        if isinstance(entry, str):
            return cls(entry)
        valid = ", ".join(cls.__dataclass_fields__)
        if not isinstance(entry, Mapping) or entry.get("id") is None:
            raise ValueError(f"environment {entry}: needs an id; valid is an id or a mapping with the keys {valid}")
        for key in entry:
            if key not in cls.__dataclass_fields__:
                raise ValueError(f"environment {entry['id']}: unknown key {key!r}; valid: {valid}")
        return cls(**{key: value for key, value in entry.items() if value is not None})


@dataclass(frozen=True)
class EnvironmentSets:
    """Environments for meta-training and for meta-testing.

    Args:
        train: assigned to the agents round robin.
        test: environments in which the frozen objective trains fresh agents.

    Raises:
        ValueError: if `train` is empty, an entry does not describe an environment or holds an object, or two that differ have the same
            name.
    """

    train: Sequence[str | Mapping[str, Any]]
    test: Sequence[str | Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train must name at least one environment, got []")
        specs: dict[str, EnvironmentSpec] = {}
        for spec in map(EnvironmentSpec.parse, (*self.train, *self.test)):
            if specs.setdefault(spec.name, spec) != spec:
                raise ValueError(
                    f"environment {spec.name}: two environments that differ have this name; valid are different names"
                )
            try:
                json.dumps([spec.kwargs, spec.evaluation_kwargs, *map(split_wrapper, spec.wrappers)], default=to_plain)
            except (TypeError, ValueError) as error:  # a file could not hold it, and its text may differ in a resumed run
                raise ValueError(
                    f"environment {spec.id}: its kwargs hold {error}; valid are numbers, text, lists and mappings, and a class of your "
                    "own, of an environment or wrapper, that makes the object from them"
                ) from error

    @property
    def train_specs(self) -> list[EnvironmentSpec]:
        """One spec for each entry of `train`."""
        return [EnvironmentSpec.parse(entry) for entry in self.train]

    def assign_round_robin(self, num_agents: int) -> list[EnvironmentSpec]:
        """The training environment of each agent. Agent i gets entry i modulo the number of entries."""
        specs = self.train_specs
        return [specs[i % len(specs)] for i in range(num_agents)]


def split_wrapper(wrapper: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The class and the arguments of an entry of `EnvironmentSpec.wrappers`."""
    return (wrapper, {}) if isinstance(wrapper, str) else (str(wrapper["wrapper"]), wrapper.get("kwargs") or {})


def to_plain(value: object) -> Any:
    """What JSON can hold of a value that it does not know: of NumPy's numbers and arrays, of paths and of other mappings and lists.

    Raises:
        TypeError: of anything else; the message shows it.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"the {type(value).__name__} {value!r}")
