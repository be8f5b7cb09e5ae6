"""Objectives with parameters, which meta-learning trains and files store."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.config.former import removed_key_message, removed_target_message, update_card, update_options
from metagenrl_pl.objectives.contract import Objective, ObjectiveInputs

_FORMAT = "metagenrl_pl.objective.1"
_PRETRAINED = Path(__file__).parents[1] / "pretrained"
_DEFAULT_CLASS = "metagenrl_pl.objectives.learned.LearnedObjective"  # the class of a file whose card does not name one


class UnknownObjectiveError(ValueError):
    """The objective in a file has a class that has not been imported, or an option that was removed."""


class ParametricObjective(Objective):
    """An objective whose `nn.Parameter`s are meta-learned. (`LearnedObjective` is the paper's.)

    A subclass makes its parameters in its constructor. Its `loss` uses the stacked parameters that it gets as an argument. The
    constructor takes options and the `seed` of the parameters as keyword arguments.

    Args:
        architecture: all arguments of the subclass's constructor except the seed. They must be JSON values, since files store
            them.
    """

    def __init__(self, **architecture: Any) -> None:
        super().__init__()
        self.architecture = architecture
        self.card: dict[str, Any] = {}

    def forward(
        self,
        policy_action: Tensor,
        replay_action: Tensor,
        reward: Tensor,
        value: Tensor | None,
        terminated: Tensor,
        valid: Tensor | None = None,
        critic_gradient: Tensor | None = None,
    ) -> Tensor:
        """Per-step loss for a single PyTorch policy. Descend its mean over valid steps.

        Learned objectives normalise rewards, values and the critic's gradient over all windows of the batch. So the loss of a
        step depends on the other steps. Use batches of the size that the objective was meta-trained with, not single windows.

        Args:
            policy_action: actions of the current policy, in [-1, 1], [B, T, A]. Gradients flow only through this argument.
            replay_action: actions in the replay, [B, T, A].
            reward: [B, T].
            value: Q1(s, pi(s)) of the T + 1 states, [B, T + 1]. Entry `length` belongs to the state after the last valid step.
                None if the objective does not use it.
            terminated: 1 or true if the episode terminated after the step (not if a time limit truncated it), [B, T].
            valid: 1 or true on real steps, which come first, 0 on padding, [B, T]; all valid by default.
            critic_gradient: dQ1/da at `policy_action`, [B, T, A], or the mean of both critics' if `critic_gradient_of` is `both`.
                None if the objective does not use it.

        Returns:
            The loss, [B, T], 0 where padded.

        Raises:
            ValueError: if an input that the objective uses is missing, or an input has the wrong shape.
        """
        steps = policy_action.shape[:-1]
        expected = {
            "replay_action": (replay_action, policy_action.shape),
            "reward": (reward, steps),
            "value": (value, (*steps[:-1], steps[-1] + 1)),
            "terminated": (terminated, steps),
            "valid": (valid, steps),
            "critic_gradient": (critic_gradient, policy_action.shape),
        }
        for name, (tensor, shape) in expected.items():
            if tensor is None and getattr(self, f"needs_{name}", False):
                raise ValueError(f"{name}=None: this objective needs it; valid is a tensor of {tuple(shape)}")
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name}: expected {tuple(shape)} beside actions of {tuple(policy_action.shape)}, got {tuple(tensor.shape)}"
                )

        def constant(tensor: Tensor) -> Tensor:
            return tensor.detach().to(policy_action.dtype)[None]

        num_actions = policy_action.shape[-1]
        inputs = ObjectiveInputs(
            policy_action[None],
            replay_action=constant(replay_action),
            reward=constant(reward),
            value=None if value is None else constant(value),
            terminated=constant(terminated),
            valid=constant(torch.ones_like(reward) if valid is None else valid),
            action_weight=policy_action.new_full((1, num_actions), 1 / num_actions),
            critic_gradient=None if critic_gradient is None else constant(critic_gradient),
        )
        return self.loss(self.stacked_parameters(1), inputs)[0]

    def save(self, path: Path | str, card: Mapping[str, Any] | None = None) -> None:
        """Write the weights to a safetensors file and the card to a `.json` file with the same stem.

        Args:
            path: of the `.safetensors` file.
            card: how the objective was made (training environments, env steps, commit, seed). The architecture is added.
        """
        path, name = Path(path), class_name(type(self))
        own_class = {} if name == _DEFAULT_CLASS else {"class": name}
        card = {"format": _FORMAT, **own_class, "architecture": self.architecture, **{**self.card, **(card or {})}}
        text = json.dumps(card, indent=2)
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        with atomic_write(path) as file:
            file.write(save(tensors, metadata={"card": text}))
        with atomic_write(path.with_suffix(".json")) as file:
            file.write(f"{text}\n".encode())

    @classmethod
    def load(cls, path: Path | str, frozen: bool = True) -> Self:
        """Load an objective that `save` wrote, with its original class. Its card is in `.card`.

        For safety a file cannot import code: its class must have been imported before.

        Args:
            path: of the `.safetensors` file.
            frozen: whether it only trains policies. Otherwise meta-training continues from its weights.

        Raises:
            ValueError: if the file is missing, damaged or not an objective of this project.
            UnknownObjectiveError: if its class has not been imported, or has options that were removed. It is a ValueError, too.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"objective.path={path}: no such file; valid is an objective.safetensors of a meta-training run")
        try:
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {}).get("card", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"objective.path={path}: not a readable safetensors file ({error})") from error
        if card.get("format") != _FORMAT:
            raise ValueError(
                f"objective.path={path}: not an objective of this project (its card does not name the format {_FORMAT!r})"
            )
        name = str(card.pop("class", _DEFAULT_CLASS))
        kind = imported_class(name)
        if kind is None and (message := removed_target_message(name)):
            raise UnknownObjectiveError(f"objective.path={path}: {message}")
        if kind is None or not issubclass(kind, cls):
            raise UnknownObjectiveError(
                f"objective.path={path}: is of the class {name}; valid is {cls.__name__} or a subclass that has been imported, as "
                "objective._target_=<module>.<class>.load does"
            )
        card = update_card(card)
        try:
            objective = kind(**_known_options(kind, card.pop("architecture")))
            objective.load_state_dict(tensors)
        except ValueError as error:
            raise type(error)(f"objective.path={path}: {error}") from error
        except (KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"objective.path={path}: its weights do not fit its card ({reason})") from error
        card.pop("format")
        objective.card = card
        return objective.requires_grad_(not frozen)

    @classmethod
    def pretrained(cls, name: str = "light", frozen: bool = True) -> Self:
        """Load an objective that comes with this package. Its `.card` names the training environments.

        Args:
            name: stem of a file in `metagenrl_pl/pretrained`.
            frozen: see `load`.

        Raises:
            ValueError: if there is no file with this name.
        """
        return cls.load(pretrained_path(name), frozen)


def class_name(kind: type) -> str:
    """The name of a class in objective files: `<module>.<class>`."""
    return f"{kind.__module__}.{kind.__qualname__}"


def imported_class(name: str) -> type[ParametricObjective] | None:
    """The objective class with this name (see `class_name`), or None if it has not been imported."""
    known = _with_subclasses(ParametricObjective)  # type: ignore[type-abstract]
    return next((one for one in known if class_name(one) == name), None)


def pretrained_path(name: str) -> Path:
    """The file of an objective that comes with this package. Its card lies in the same folder.

    Raises:
        ValueError: if there is no file with this name.
    """
    path = _PRETRAINED / f"{name}.safetensors"
    if path.parent != _PRETRAINED or not path.is_file():
        names = sorted(file.stem for file in _PRETRAINED.glob("*.safetensors"))
        raise ValueError(f"objective.name={name}: no pretrained objective of this name; valid is {', '.join(names)}")
    return path


def _known_options(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a file, without removed options of version 0.1.0 that had no effect.

    Raises:
        UnknownObjectiveError: if a removed option had an effect.
    """
    accepted, owners = inspect.signature(kind).parameters.keys(), [owner.__name__ for owner in kind.__mro__]
    options = update_options(owners, options, accepted)
    for name in options.keys() - accepted:
        if message := removed_key_message(owners, f"objective.{name}", options[name]):
            raise UnknownObjectiveError(message)
    return options


def _with_subclasses(kind: type[ParametricObjective]) -> Iterator[type[ParametricObjective]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)
