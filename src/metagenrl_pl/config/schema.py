"""Configs and the objects that they describe.

A composed config is compared with the *signatures* of the classes that it configures, so that a new class needs no schema of its
own. A user's mistake is a `ConfigError`, one line.
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
from typing import Any, Literal, Union, get_args, get_origin

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
from metagenrl_pl.config.former import removed_key_message, removed_target_message

_LISTS = (list, tuple, set, Sequence, Iterable, Collection)
_MAPPINGS = (dict, Mapping, DictConfig)
_SCALARS = (bool, int, float, str, Path, type(None))
_UNIONS = (Union, types.UnionType)


class ConfigError(ValueError):
    """A user's mistake: one line that names the key, the value and the valid choices."""


class _Misfit(ConfigError):
    """A value that does not fit the annotation of its key."""

    def __init__(self, value: Any, annotation: Any, key: str) -> None:
        super().__init__(f"{key}: expected {annotation_name(annotation)}, got {format_value(value)}")
        self.key = key


def validate(config: DictConfig, schema: type) -> DictConfig:
    """A resolved copy of `config` in which every key is known and every value fits; the argument is not changed.

    Keys of the root that are not set (`~logger`) have the default that a `schema` that is a dataclass gives them.

    The root is compared with the signature of `schema`, and so is every mapping that a dataclass annotates. A node with a
    `_target_`, wherever it is, is compared with the signature of that class or function. Checked are bool, int, float, str,
    Path, None, unions, `Literal`, lists, tuples and mappings of those; other annotations accept anything, but the nodes inside
    are still checked. Coerced are: a single value where a list is wanted (`env.train=Pendulum-v1`), an int where a float is, a
    whole float where an int is (`1e6`). `_partial_: true` permits missing arguments, `**kwargs` any key.

    Directly below the root a mapping that holds nodes holds nothing else (`callbacks: {save: {_target_: ...}, plot: null}`):
    null switches an entry off, a new entry needs a `_target_`.

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


def build(node: DictConfig, kind: type = object, **late: Any) -> Any:
    """The object that a `_target_` node describes.

    Args:
        node: A node of the config, with a `_target_`. Lists and mappings reach the constructor as plain Python.
        kind: What it has to be.
        late: Arguments that only code can give, passed as they are. A node whose required arguments come from here says
            `_partial_: true`; that is how `validate` knows.

    Raises:
        ConfigError: There is no `_target_`, the object is of another kind, or the constructor refused its arguments. The message
            begins with the key of the node. What counts as a refusal: a `ValueError`, an `OSError` (a file is not there), an
            `ImportError` (an optional package is not there), Lightning's `MisconfigurationException`, or a class that is abstract.
    """
    if "_target_" not in node:
        raise ConfigError(f"{node._get_full_key(None)}: nothing says what it is, it needs a _target_")
    try:
        built = instantiate(node, _partial_=True, _convert_="all")(**late)
    except Exception as error:
        explained = explanation(error, node._get_full_key(None), constructing=True)
        if explained is None:
            raise
        raise ConfigError(explained) from error
    if not isinstance(built, kind):
        raise ConfigError(f"{node._get_full_key('_target_')}={node._target_} is no {kind.__module__}.{kind.__qualname__}")
    return built


def explanation(error: Exception, key: str = "", constructing: bool = False) -> str | None:
    """The line for a user's mistake, None if `error` is a bug. `constructing`: a constructor of the node at `key` raised it."""
    while isinstance(error, InstantiationException):
        constructing = True
        named = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
        key = named[1] if named else key
        if not isinstance(error.__cause__, Exception):
            break
        error = error.__cause__
    if isinstance(error, ConfigError) and not constructing:
        return str(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    mistake = isinstance(error, (ValueError, OSError, ImportError, HydraException)) or "MisconfigurationException" in names
    mistake = mistake or (isinstance(error, TypeError) and str(error).startswith("Can't instantiate abstract class"))
    return f"{key}: {one_line(error)}" if constructing and mistake else None


def resolved_yaml(config: DictConfig) -> str:
    """The text of a run folder's config.yaml: every interpolation replaced by its value."""
    return OmegaConf.to_yaml(config, resolve=True)


def load_config(path: Path | str) -> DictConfig:
    """Read a config that `resolved_yaml` wrote.

    Raises:
        ConfigError: The file is missing, is no YAML, or is not a mapping.
    """
    try:
        config = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"cannot read the config {path}: {one_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"cannot read the config {path}: expected a mapping of keys to values")
    return config


def _arguments(target: Any, values: dict[Any, Any], key: str, complete: bool = True) -> dict[Any, Any]:
    """`values` as the keyword arguments of `target`; `complete`: none that is required may be missing."""
    parameters = parameters_of(target)
    values = {name: value for name, value in values.items() if value != "???"}
    if parameters is None:
        return {name: _check_nodes(value, join_key(key, name)) for name, value in values.items()}
    unknown = [name for name in values if name not in parameters]
    if unknown and "**" not in parameters:
        name = unknown[0]
        removed = removed_key_message(names_of(target), join_key(key, name), values[name])
        raise ConfigError(removed or key_message(key, name, parameters))
    for name, parameter in parameters.items():
        if complete and name != "**" and parameter.default is parameter.empty and name not in values:
            raise ConfigError(f"missing key '{join_key(key, name)}', which {getattr(target, '__name__', target)} requires")
    checked: dict[Any, Any] = dict.fromkeys(values)  # in their order
    # Plain values first: a node may repeat one (`seed: ${seed}`), whose mistake is reported under its own name.
    for name, value in sorted(values.items(), key=lambda item: isinstance(item[1], (dict, list))):
        parameter = parameters.get(name) or parameters["**"]
        keep = value is None and parameter.default is None  # `x: int = None`
        checked[name] = None if keep else _convert(value, parameter.annotation, join_key(key, name))
    return checked


def parameters_of(target: Any) -> dict[str, inspect.Parameter] | None:
    """What `target` takes by keyword, its annotations evaluated, with `**` for `**kwargs`; None if that is unknown."""
    if getattr(getattr(target, "__init__", None), "__module__", None) == "torch.nn.modules.module":
        return {}  # a module without a constructor of its own: torch's takes **kwargs only to refuse them
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some built-in types
        return None
    owners = inspect.getmro(target) if isinstance(target, type) else (target,)
    scope = ChainMap(*(vars(sys.modules[owner.__module__]) for owner in owners))  # what the names in the annotations mean
    parameters = {}
    for parameter in signature.parameters.values():
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, {}, scope)
            except (NameError, AttributeError, TypeError, SyntaxError):  # a name imported for type checkers only: not checked
                annotation = Any
        if parameter.kind is parameter.VAR_KEYWORD:
            parameters["**"] = parameter.replace(annotation=annotation)
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            parameters[parameter.name] = parameter.replace(annotation=annotation)
    return parameters


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """`value` as `annotation` wants it. Raises ConfigError if it does not fit."""
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
    """`value` as a `Literal` or a union wants it: a member that takes it as it is comes before one that needs a coercion."""
    members = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return value
    others = [member for member in members if get_origin(member) is not Literal]
    if not any(map(is_dataclass, others)):
        value = _check_nodes(value, key)  # a mistake inside a node is reported as such, not as a misfit of the union
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
        return int(value)
    if type(value) is not (str if kind is Path else kind):  # a bool is an int to isinstance; a path stays text, as in YAML
        raise _Misfit(value, kind, key)
    return value


def _list(value: Any, annotation: Any, key: str) -> list[Any]:
    """A list of values that fit the element's annotation; a single value is a list of one."""
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
    """`value`, which nothing describes, with the nodes inside it checked."""
    if isinstance(value, list):
        return [_check_nodes(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if _is_node(value):
        special = {name: item for name, item in value.items() if name in SPECIAL_KEYS}
        given = {name: item for name, item in value.items() if name not in SPECIAL_KEYS}
        complete = not value.get("_partial_") and "_args_" not in value
        return {**special, **_arguments(import_target(value["_target_"], key), given, key, complete)}
    if "." not in key and any(map(_is_node, value.values())):
        entries = [name for name, item in value.items() if item is None or _is_node(item)]
        for name in value:
            if name not in entries:
                raise ConfigError(key_message(key, name, entries) + " (a new entry needs a _target_)")
    return {name: _check_nodes(item, join_key(key, name)) for name, item in value.items()}


def import_target(target: Any, key: str) -> Any:
    """The class or function that the `_target_` of the node at `key` names. Raises ConfigError if there is none."""
    try:
        found = pydoc.locate(str(target))
    except pydoc.ErrorDuringImport as error:
        raise ConfigError(f"{key}._target_: cannot import {target}: {one_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"{key}._target_: {removed_target_message(str(target)) or f'there is no class or function {target}'}")
    return found


def names_of(target: Any) -> list[str]:
    """The names of a class and of its bases; none of a function."""
    return [owner.__name__ for owner in inspect.getmro(target)] if isinstance(target, type) else []


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value
