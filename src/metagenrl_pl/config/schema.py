"""Check a config and build the objects that it describes.

A config is compared with the *signatures* of the classes that it names, so a new class needs no schema. A user's mistake raises
`ConfigError` with a one-line message.
"""

import inspect
import pydoc
import re
import sys
import types
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, overload

from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metagenrl_pl.common.messages import (
    SPECIAL_KEYS,
    annotation_name,
    choice_message,
    format_value,
    join_key,
    key_message,
    one_line,
)

_LISTS = (list, tuple, set, Sequence, Iterable, Collection)
_MAPPINGS = (dict, Mapping, DictConfig)
_SCALARS = (bool, int, float, str, Path, type(None))
_LARGEST = 2**53  # whole numbers up to here are exact in every format that they go through
_UNIONS = (Union, types.UnionType)
T = TypeVar("T")
U = TypeVar("U")


class ConfigError(ValueError):
    """A user's mistake. The message is one line that names the key, the value and the valid choices."""


class _Misfit(ConfigError):
    """A value that does not fit the annotation of its key."""

    def __init__(self, value: Any, annotation: Any, key: str) -> None:
        super().__init__(f"{key}: expected {annotation_name(annotation)}, got {format_value(value)}")
        self.key = key


def validate(config: DictConfig, schema: type) -> DictConfig:
    """Check that every key is known and every value fits; return a resolved copy of `config`.

    The root is compared with the signature of `schema`, a mapping with the dataclass that annotates it, and a node with the
    signature of its `_target_`. If `schema` is a dataclass, a root key that is not set (`~logger`) gets its default.

    We check bool, int, float, str, Path, None, unions, `Literal`, and lists, tuples and mappings of those. Other annotations
    accept any value, but we still check nodes inside it. A single value becomes a list (`env.train=Pendulum-v1`), an int a float,
    and a whole float (`1e6`) an int. `_partial_: true` permits missing arguments; `**kwargs` permits any key.

    Directly below the root, a mapping with nodes may hold only nodes (`callbacks: {save: {_target_: ...}, plot: null}`). There
    null switches an entry off, and a new entry needs a `_target_`.

    Raises:
        ConfigError: An unknown or missing key, a value that does not fit, or a `_target_` that cannot be imported.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {one_line(error)}") from error
    assert isinstance(values, dict)
    arguments = _arguments(schema, values, "")
    return OmegaConf.create(vars(schema(**arguments)) if is_dataclass(schema) else arguments)


@overload
def build(node: DictConfig, **late: Any) -> Any: ...
@overload
def build(node: DictConfig, kind: type[T], **late: Any) -> T: ...
@overload
def build(node: DictConfig, kind: tuple[type[T], type[U]], **late: Any) -> T | U: ...
def build(node: DictConfig, kind: type | tuple[type, ...] = object, **late: Any) -> Any:
    """Build the object that a `_target_` node describes.

    Args:
        node: A config node with a `_target_`. Its lists and mappings are passed as plain Python objects.
        kind: The class that the object must be an instance of; with several, one of them.
        late: Arguments that only code can give; they are passed unchanged. If they are required, the node needs `_partial_:
            true`, so that `validate` does not report them as missing.

    Raises:
        ConfigError: There is no `_target_`, the object is not a `kind`, or the constructor rejects its arguments. The message
            begins with the node's key. A constructor rejects arguments by a `ValueError`, `OSError` (missing file), `ImportError`
            (missing optional package) or Lightning's `MisconfigurationException`. An abstract class counts too.
    """
    if "_target_" not in node:
        raise ConfigError(f"{node._get_full_key(None)}: has no _target_; valid is a node that names its class as _target_")
    try:
        instance = instantiate(node, _partial_=True, _convert_="all")(**late)
    except Exception as error:
        message = explanation(error, node._get_full_key(None), constructing=True)
        if message is None:
            raise
        raise ConfigError(message) from error
    if not isinstance(instance, kind):
        names = " or ".join(f"{one.__module__}.{one.__qualname__}" for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigError(f"{node._get_full_key('_target_')}={node._target_} is no {names}")
    return instance


def explanation(error: Exception, key: str = "", constructing: bool = False) -> str | None:
    """The one-line message for a user's mistake, or None if `error` is a bug.

    `constructing` says that a constructor of the node at `key` raised `error`.
    """
    while isinstance(error, InstantiationException):
        constructing = True
        match = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
        key = match[1] if match else key
        if not isinstance(error.__cause__, Exception):
            break
        error = error.__cause__
    if isinstance(error, ConfigError) and not constructing:
        return str(error)
    if isinstance(error, OmegaConfBaseException) and not constructing:  # an interpolation of something that is not there
        return f"{error.full_key}: {one_line(error)}"
    names = {kind.__name__ for kind in type(error).__mro__}
    mistake = isinstance(error, (ValueError, OSError, ImportError, HydraException)) or "MisconfigurationException" in names
    mistake = mistake or (isinstance(error, TypeError) and str(error).startswith("Can't instantiate abstract class"))
    return f"{key}: {one_line(error)}" if constructing and mistake else None


def resolved_yaml(config: DictConfig) -> str:
    """The config as YAML text with all interpolations resolved, for the run folder's config.yaml."""
    return OmegaConf.to_yaml(config, resolve=True)


def load_config(path: Path | str) -> DictConfig:
    """Read a config that `resolved_yaml` wrote.

    Raises:
        ConfigError: The file is missing, is not YAML, or is not a mapping.
    """
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"cannot read the config {path}: {one_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"cannot read the config {path}: expected a mapping of keys to values")
    return config


def _arguments(target: Any, values: dict[Any, Any], key: str, complete: bool = True) -> dict[Any, Any]:
    """Check and convert `values` as keyword arguments of `target`. If `complete`, no required argument may be missing."""
    parameters = parameters_of(target)
    values = {name: value for name, value in values.items() if value != "???"}
    if parameters is None:
        return {name: _check_nodes(value, join_key(key, name)) for name, value in values.items()}
    unknown = [name for name in values if name not in parameters]
    if unknown and "**" not in parameters:
        raise ConfigError(key_message(key, unknown[0], parameters))
    for name, parameter in parameters.items():
        if complete and name != "**" and parameter.default is parameter.empty and name not in values:
            raise ConfigError(f"missing key '{join_key(key, name)}', which {getattr(target, '__name__', target)} requires")
    arguments: dict[Any, Any] = dict.fromkeys(values)  # keeps the order
    # Check plain values before nodes. A node may refer to a plain value (`seed: ${seed}`); its mistake belongs to the plain key.
    for name, value in sorted(values.items(), key=lambda item: isinstance(item[1], (dict, list))):
        parameter = parameters.get(name) or parameters["**"]
        keep = value is None and parameter.default is None  # `x: int = None`
        arguments[name] = None if keep else _convert(value, parameter.annotation, join_key(key, name))
    return arguments


def parameters_of(target: Any) -> dict[str, inspect.Parameter] | None:
    """The keyword parameters of `target` with evaluated annotations. `**` stands for `**kwargs`. None if they are unknown."""
    module = getattr(sys.modules.get("torch.nn"), "Module", None)  # this module does not import torch, which takes seconds
    if module and isinstance(target, type) and target.__init__ is module.__init__:  # type: ignore[misc]
        return {}  # a module without its own constructor: nn.Module accepts **kwargs only to reject them
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some built-in types
        return None
    owners = inspect.getmro(target) if isinstance(target, type) else (target,)
    scope = ChainMap(*(vars(sys.modules[owner.__module__]) for owner in owners))  # names that annotations may use
    parameters = {}
    for parameter in signature.parameters.values():
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, {}, scope)
            except (NameError, AttributeError, TypeError, SyntaxError):  # a name that is imported for type checkers only
                annotation = Any
        if parameter.kind is parameter.VAR_KEYWORD:
            parameters["**"] = parameter.replace(annotation=annotation)
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            parameters[parameter.name] = parameter.replace(annotation=annotation)
    return parameters


def defaults_of(target: Any) -> dict[str, Any]:
    """The defaults of the keyword parameters of `target` that have one."""
    parameters = parameters_of(target) or {}
    return {name: one.default for name, one in parameters.items() if one.default is not one.empty}


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """Convert `value` to the type of `annotation`. Raises ConfigError if it does not fit."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    kind = origin or (type(None) if annotation is None else annotation)
    if _is_node(value) or kind in (Any, object):
        return _check_nodes(value, key)
    if kind in _UNIONS or kind is Literal:
        return _choose_member(value, annotation, key)
    if kind in _SCALARS:
        return _scalar(value, kind, key)
    if kind in _LISTS:
        return _list(value, annotation, key)
    if value is None or (kind in _MAPPINGS and not isinstance(value, dict)):
        raise _Misfit(value, annotation, key)
    if kind in _MAPPINGS and len(arguments) == 2:
        items = _check_nodes(value, key).items()
        off = "." not in key  # null switches an entry off
        return {name: None if off and item is None else _convert(item, arguments[1], join_key(key, name)) for name, item in items}
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _arguments(kind, value, key)
    return _check_nodes(value, key)


def _choose_member(value: Any, annotation: Any, key: str) -> Any:
    """Convert `value` to a `Literal` or a union. A member that fits without conversion takes precedence."""
    members = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return value
    others = [member for member in members if get_origin(member) is not Literal]
    if not any(map(is_dataclass, others)):
        value = _check_nodes(value, key)  # so that a mistake inside a node is reported under its own key
    fits, misfits = [], []
    for member in others:
        try:
            fits.append(_convert(value, member, key))
        except ConfigError as error:
            misfits.append(error)
    exact = [fit for fit in fits if type(fit) is type(value) and fit == value]  # `auto` stays a str in `list[str] | str`
    if exact or fits:
        return (exact or fits)[0]
    if choices and not isinstance(value, (dict, list)):
        raise ConfigError(choice_message(key, value, [*choices, *map(annotation_name, others)]))
    inside = [error for error in misfits if not (isinstance(error, _Misfit) and error.key == key)]
    raise inside[0] if len(inside) == 1 else _Misfit(value, annotation, key)


def _scalar(value: Any, kind: type, key: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not (str if kind is Path else kind):  # not isinstance: a bool is an int. A path stays text, as in YAML.
        raise _Misfit(value, kind, key)
    if type(value) is int and abs(value) > _LARGEST:
        raise ConfigError(f"{key}={value:.0e} is too large; valid is a whole number up to {_LARGEST}")
    return value


def _list(value: Any, annotation: Any, key: str) -> list[Any]:
    """Convert `value` to a list whose elements fit the annotation. A single value becomes a list of one."""
    if value is None or isinstance(value, dict):
        raise _Misfit(value, annotation, key)
    items = value if isinstance(value, list) else [value]
    elements = get_args(annotation) or (Any,)
    if get_origin(annotation) is not tuple or elements[-1] is ...:
        elements = elements[:1] * len(items)
    if len(items) != len(elements):
        raise _Misfit(value, annotation, key)
    place = f"{key}[{{}}]" if items is value else key
    return [_convert(item, element, place.format(i)) for i, (item, element) in enumerate(zip(items, elements, strict=True))]


def _check_nodes(value: Any, key: str) -> Any:
    """Check the nodes inside a value that has no annotation of its own."""
    if isinstance(value, list):
        return [_check_nodes(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if _is_node(value):
        special = {name: item for name, item in value.items() if name in SPECIAL_KEYS}
        arguments = {name: item for name, item in value.items() if name not in SPECIAL_KEYS}
        complete = not value.get("_partial_") and "_args_" not in value
        return {**special, **_arguments(import_target(value["_target_"], key), arguments, key, complete)}
    if "." not in key and any(map(_is_node, value.values())):
        entries = [name for name, item in value.items() if item is None or _is_node(item)]
        for name in value:
            if name not in entries:
                raise ConfigError(key_message(key, name, entries) + " (a new entry needs a _target_)")
    return {name: _check_nodes(item, join_key(key, name)) for name, item in value.items()}


def import_target(target: Any, key: str) -> Any:
    """Import the class or function that the node at `key` names as its `_target_`. Raises ConfigError if there is none."""
    try:
        imported = pydoc.locate(str(target))
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{key}._target_: cannot import {target}: {one_line(error)}") from error
    if not callable(imported):
        raise ConfigError(f"{key}._target_: there is no class or function {target}")
    return imported


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value
