"""Check a configuration that comes from a file before anything in it is imported or built.

A checkpoint may be somebody else's. Its tensors cannot run code, but its configuration names classes. So a class has to be of a
trusted package and of the kind that its key needs, environments have to be of a trusted module, wrappers have to be of a trusted
package or Gymnasium's, and paths stay in the run folder.
"""

import pydoc
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from metagenrl_pl.common.commands import hydra_override
from metagenrl_pl.common.messages import join_key
from metagenrl_pl.config.schema import ConfigError, import_target

TRUSTED = ("metagenrl_pl", "callbacks", "torch", "pytorch_lightning")
"""Packages whose classes a file may name. Users add others by `trusted_packages`."""

Kinds = Mapping[str, type | tuple[type, ...]]

_LOADERS = ("load", "pretrained")  # class methods that read an objective
_GROUPS = ("callbacks", "logger")  # with one object below each key
_PLACES = ("callbacks", "logger", "trainer")  # groups whose objects write files
_ADDRESS = re.compile(r"\s*\S*://")  # not one within a sentence, as in notes on a run
_WRAPPER = re.compile(r"(.*\.wrappers\[\d+\])(\.wrapper)?")  # an environment's, by its name alone or as a mapping


def check_foreign(config: Any, kinds: Kinds, trusted: Collection[str] = (), folder: Path | None = None) -> None:
    """Check the configuration of a file.

    Args:
        config: plain containers.
        kinds: the class of the object at a root key, or of each object below it. Only these keys are checked. Nested objects of
            packages that the user has not named have to be objectives.
        trusted: packages beside `TRUSTED`.
        folder: of the run, in which paths have to lie; None if nothing is written.

    Raises:
        ConfigError: names the key, the value and what is valid.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"its configuration is a {type(config).__name__}; valid is a mapping")
    for key, node in _nodes(config, ""):
        if "_args_" in node:  # their names do not tell which of them are paths
            raise ConfigError(f"{key}._args_ may not be in a file; valid are arguments by name")
    for key, package in packages_of({root: config.get(root) for root in kinds}):
        if package not in {*TRUSTED, *trusted}:
            raise ConfigError(
                f"{key} is of the package {package}, which is not trusted in a file; valid are {', '.join(TRUSTED)}, or "
                f"trusted_packages=[{package}] (metagenrl film: --trust {package}) if you trust the file"
            )
    for root, kind in kinds.items():
        for key, node in _nodes(config.get(root), root):
            is_nested = key.count(".") > (root in _GROUPS)
            if not (is_nested and str(node["_target_"]).partition(".")[0] in trusted):
                _check_target(key, node["_target_"], kinds.get("objective", kind) if is_nested else kind)
    for key, name in _wrappers(config):
        if name.partition(".")[0] not in trusted:
            _check_wrapper(key, name)
    for key, text in _texts(config, ""):
        if "${" in text:
            raise ConfigError(f"{key}={text} is an interpolation, which a file may not hold; valid is its value")
    for key, text in _places_outside(config, folder) if folder is not None else ():
        raise ConfigError(
            f"{key}={text} would write outside of the run folder {folder}, which a file may not; valid is a path in it, or "
            f"{key.partition('[')[0]}=... on the command line"
        )


def packages_of(config: Any) -> Iterator[tuple[str, str]]:
    """Key and name of each package that a configuration names: for a class, a wrapper, or the module that registers an environment.

    Gymnasium is left out, but for a wrapper that is given a path: it may write there.
    """
    for key, node in _nodes(config, ""):
        yield f"{key}._target_", str(node["_target_"]).partition(".")[0]
    texts = list(_texts(config, ""))
    for key, name in _wrappers(config):
        package, place = name.partition(".")[0], key.removesuffix(".wrapper")
        has_path = any(one.startswith(f"{place}.kwargs") and _is_path(one, text) for one, text in texts)
        if package != "gymnasium" or has_path:
            yield key, package
    for key, text in texts:
        is_environment = "env" in key.split(".")[0] or ".environments" in key
        if is_environment and ":" in text and not key.endswith("_target_") and ".kwargs" not in key:
            yield key, text.partition(":")[0].partition(".")[0]


def confirmations(config: Any, folder: Path) -> list[str]:
    """Overrides that a resume of a run needs, for what a file may not decide: packages to trust, and places outside of the run folder."""
    packages = sorted({name for _, name in packages_of(config)} - {*TRUSTED})
    places = [hydra_override(key, text) for key, text in _places_outside(config, folder) if "[" not in key]
    return ([f"trusted_packages=[{','.join(packages)}]"] if packages else []) + places


def _check_target(key: str, name: Any, kind: type | tuple[type, ...]) -> None:
    """Raise a ConfigError unless `name` is a class of this kind, or a method that loads one."""
    target = import_target(name, key)
    if getattr(target, "__name__", None) in _LOADERS and isinstance(getattr(target, "__self__", None), type):
        target = target.__self__
    if not (isinstance(target, type) and issubclass(target, kind)):
        needed = " or ".join(f"{one.__module__}.{one.__qualname__}" for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigError(f"{key}._target_={name} is not what its key needs; valid is {needed} or a subclass")


def _check_wrapper(key: str, name: str) -> None:
    """Raise a ConfigError unless `name` is a class of wrappers."""
    import gymnasium as gym  # here, since this module is imported before it is known whether Gymnasium is installed

    try:
        target = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        target = None
    if not (isinstance(target, type) and issubclass(target, gym.Wrapper)):
        raise ConfigError(f"{key}={name} is not what its key needs; valid is gymnasium.Wrapper or a subclass")


def _wrappers(config: Any) -> Iterator[tuple[str, str]]:
    """Key and name of each wrapper of an environment."""
    for key, text in _texts(config, ""):
        if _WRAPPER.fullmatch(key):
            yield key, text


def _nodes(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield key, value
        for name, item in value.items():
            yield from _nodes(item, join_key(key, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nodes(item, f"{key}[{index}]")


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, join_key(key, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, f"{key}[{index}]")
    elif isinstance(value, str):
        yield key, value


def _places_outside(config: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """Key and text of each path or address to which an object of the configuration would write outside of the run folder."""
    for key, text in _texts(config, ""):
        if key.split(".")[0] in _PLACES and not _stays_in(folder, key, text):
            yield key, text


def _stays_in(folder: Path, key: str, text: str) -> bool:
    """Whether a text is no path, or one in the run folder."""
    path = text.removeprefix("sqlite:///")
    if _ADDRESS.match(path) or path.startswith("~") or re.match("file:", path, re.IGNORECASE):
        return False
    return not _is_path(key, text) or Path(path).resolve().is_relative_to(folder.resolve())


def _is_path(key: str, text: str) -> bool:
    return (
        key.endswith(("dir", "path", "folder", "root", "uri", "location"))
        or text.startswith(("/", "~", "sqlite:///"))
        or bool(_ADDRESS.match(text))
        or ".." in Path(text).parts
    )
