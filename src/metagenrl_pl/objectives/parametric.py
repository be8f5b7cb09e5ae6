"""Objectives with parameters, which meta-learning trains and files store."""

import hashlib
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
from metagenrl_pl.common.messages import format_value, one_line, read_count
from metagenrl_pl.config.former import update_card, update_options
from metagenrl_pl.objectives.contract import Objective
from metagenrl_pl.objectives.pretrained import describe_card, pretrained_path

_FORMAT = "metagenrl_pl.objective.2"
_FORMAT_WITHOUT_CHECKSUM = "metagenrl_pl.objective.1"  # of 0.1.0, and of two pretrained files
_HOW_TO_CONSTRUCT = (
    "valid is a constructor with options and `seed`, which calls super().__init__(option=option, ...) with all JSON options"
)
_DEFAULT_CLASS = "metagenrl_pl.objectives.learned.LearnedObjective"  # the class of a file whose card does not name one


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

    def fresh(self, seed: int) -> Self:
        """An objective with the same options and the first parameters that its constructor makes from this seed.

        Raises:
            ValueError: if `architecture` does not say how to make it, or it has buffers, so that files of it could not be read either.
        """
        try:
            json.dumps(self.architecture)
            other = type(self)(**self.architecture, seed=seed)
        except TypeError as error:
            raise ValueError(f"it cannot be made again ({one_line(error)}); {_HOW_TO_CONSTRUCT}") from error
        if buffers := sorted(self.state_dict().keys() - dict(self.named_parameters()).keys()):
            raise ValueError(f"files keep no buffers, and it has {buffers[0]}; valid is register_buffer(..., persistent=False)")
        shapes, others = ({name: tuple(p.shape) for name, p in each.named_parameters()} for each in (self, other))
        if differing := sorted(name for name in shapes | others if shapes.get(name) != others.get(name)):
            raise ValueError(f"made again, its {differing[0]} has another shape; {_HOW_TO_CONSTRUCT}")
        return other

    def save(self, path: Path | str, card: Mapping[str, Any] | None = None) -> None:
        """Write the weights to a safetensors file and the card to a `.json` file with the same stem.

        Args:
            path: of the `.safetensors` file.
            card: how the objective was made (training environments, env steps, commit, seed). The architecture is added.

        Raises:
            ValueError: if the path is that of the card.
        """
        if Path(path).suffix == ".json":
            raise ValueError(f"{path} is where the card goes; valid is a .safetensors file")
        path, name = Path(path), class_name(type(self))
        own_class = {} if name == _DEFAULT_CLASS else {"class": name}
        card = {"format": _FORMAT, **own_class, "architecture": self.architecture, **{**self.card, **(card or {})}}
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        # Within the card, since safetensors writes several entries of metadata in any order, and equal objectives give equal files.
        text = json.dumps({**card, "sha256": _checksum(card, tensors)}, indent=2)
        with atomic_write(path) as file:
            file.write(save(tensors, metadata={"card": text}))
        with atomic_write(path.with_suffix(".json")) as file:
            file.write(f"{text}\n".encode())

    def extra_repr(self) -> str:
        """How it was made, in one line."""
        return ", ".join([f"{sum(p.numel() for p in self.parameters()):,} parameters", *describe_card(self.card)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    @classmethod
    def load(cls, path: Path | str, frozen: bool = True) -> Self:
        """Load an objective that `save` wrote, with its original class. Its card is in `.card`.

        For safety a file cannot import code: its class must have been imported before.

        Args:
            path: of the `.safetensors` file.
            frozen: true if its parameters are not trained; false if meta-training continues from them.

        Raises:
            ValueError: if the file is missing, damaged or not an objective of this project, or its class has not been imported or has
                options that were removed.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; valid is an objective.safetensors of a meta-training run"
            )
        try:
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {}).get("card", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
        saved_format = card.get("format") if isinstance(card, dict) else None
        if saved_format == _FORMAT and card.pop("sha256", None) != _checksum(card, tensors):
            raise ValueError(f"{path}: is damaged, its checksum is wrong; valid is a file as it was saved")
        if saved_format not in (_FORMAT, _FORMAT_WITHOUT_CHECKSUM):
            raise ValueError(f"{path}: not an objective of this project (its card does not name the format {_FORMAT!r})")
        name = str(card.pop("class", _DEFAULT_CLASS))
        kind = imported_class(name)
        if kind is None and name.startswith(f"{__package__}."):
            raise ValueError(
                f"{path}: is of the class {name}, which this version does not have; valid is the version that made it"
            )
        if kind is None:
            is_name = all(map(str.isidentifier, name.split(".")))  # otherwise a file could have any text pasted into a shell
            hint = f", as by objective._target_={name}.load if you trust this class" if is_name else ""
            raise ValueError(f"{path}: is of the class {name}; valid is a class that has been imported{hint}")
        if not issubclass(kind, cls):
            raise ValueError(f"{path}: is of the class {name}; valid is {cls.__name__} or a subclass")
        try:
            card = update_card(card)
            read_count({"env_steps": 0, **card}, "env_steps")
            objective = kind(**_known_options(kind, card.pop("architecture")))
            objective.load_state_dict(tensors)
            if wrong := [name for name, parameter in objective.named_parameters() if not parameter.isfinite().all()]:
                raise ValueError(
                    f"{wrong[0]} has numbers that are not finite; valid is an objective whose meta-training did not diverge"
                )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{path}: its weights do not fit its card ({one_line(error)})") from error
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


def _checksum(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a file's card and of each tensor's name, type, shape and values."""
    digest = hashlib.sha256(json.dumps(card).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def class_name(kind: type) -> str:
    """The name of a class in objective files: `<module>.<class>`."""
    return f"{kind.__module__}.{kind.__qualname__}"


def imported_class(name: str) -> type[ParametricObjective] | None:
    """The objective class with this name (see `class_name`), or None if it has not been imported."""
    known = _with_subclasses(ParametricObjective)
    return next((one for one in known if class_name(one) == name), None)


def _known_options(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a file, without removed options of version 0.1.0 that had no effect.

    Raises:
        ValueError: if the class does not have an option.
    """
    parameters, owners = inspect.signature(kind).parameters, [owner.__name__ for owner in kind.__mro__]
    options = update_options(owners, options, accepted=parameters.keys())
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in options.keys() - parameters.keys():
            raise ValueError(
                f"{kind.__name__} has no option {name}={format_value(options[name], '')}; valid: {', '.join(parameters)}"
            )
    return options


def _with_subclasses(kind: type[ParametricObjective]) -> Iterator[type[ParametricObjective]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)
