"""One-line error messages for mistakes in a config: they name the key, the value and the valid choices."""

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin

SPECIAL_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""Keys of a config node that Hydra itself reads."""


def key_message(parent: str, key: Any, valid: Iterable[Any]) -> str:
    """The message for an unknown `key` in the mapping at `parent`.

    It suggests the most similar of the `valid` keys, or lists them.
    """
    names = sorted({str(name) for name in valid} - {*SPECIAL_KEYS, "**"})
    near = difflib.get_close_matches(str(key), [*names, *SPECIAL_KEYS], n=1)
    hint = f"; did you mean '{join_key(parent, near[0])}'?" if near else f"; valid: {', '.join(names)}" if names else ""
    return f"unknown key '{join_key(parent, key)}'{hint}"


def choice_message(key: str, value: Any, valid: Iterable[Any]) -> str:
    """The message for a `value` that is not one of the `valid` values or descriptions of values."""
    names = [name if isinstance(name, str) else format_value(name) for name in valid]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{key}={format_value(value, '')} is not a choice; {hint}valid: {', '.join(names)}"


def one_line(error: Exception) -> str:
    """The message of `error` in one line, without the lines that Hydra and OmegaConf append."""
    message = re.split(r"\n\s*(?:See https:|Config search path:|full_key:|object_type=)", str(error))[0]
    return printable(" ".join(message.split())) or type(error).__name__


def format_warning(message: Warning | str, *_: object, **__: object) -> str:
    """A warning in one line, for `warnings.formatwarning`. Gymnasium's have colours and a mark of their own."""
    text = re.sub(r"\x1b\[[0-9;]*m(WARN: )?", "", str(message))
    return f"warning: {text}\n"


def printable(text: str) -> str:
    """A text without control characters, which could come from a file and steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def read_count(state: Mapping[str, Any], key: str) -> int:
    """A counter in a file's content.

    Raises:
        ValueError: if it is not a whole number from 0.
    """
    value = state[key]
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is {format_value(value)}; valid is a whole number from 0")
    return value


def annotation_name(annotation: Any) -> str:
    """A type annotation in words for users, such as `list[str] or null`."""
    if annotation in (None, type(None)):
        return "null"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(annotation_name(member) for member in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def format_value(value: Any, quote: str = "'") -> str:
    """A value as it is written on the command line: `null`, `true`, `'text'`."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "a mapping" if isinstance(value, dict) else f"{quote}{value}{quote}" if isinstance(value, str) else str(value)


def join_key(parent: str, name: Any) -> str:
    """The dotted key of `name` below `parent`, which is empty at the root."""
    return f"{parent}.{name}" if parent else str(name)
