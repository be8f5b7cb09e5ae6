"""Run folders: what was meta-tested in each, by which objective."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metagenrl_pl.objectives.pretrained import pretrained_path
from metagenrl_pl.results.methods import find_method
from metagenrl_pl.results.origin import Origin, origin_in_card, origin_in_config, read_card, read_config, with_defaults
from metagenrl_pl.results.rows import MetaTestRow, read_rows


class Run(NamedTuple):
    """One run folder.

    Args:
        folder: where it is.
        name: what it is called on a page; no two runs share it.
        rows: of its `meta_test.csv`, all stages.
        origin: of its learned objective; None for a run that tests none.
        meta_trains: whether its agents meta-train an objective, not only use one.
        window_length: time steps of its agents' windows.
        agent: settings of its agents; empty if unknown.
    """

    folder: Path
    name: str
    rows: Sequence[MetaTestRow]
    origin: Origin | None
    meta_trains: bool = False
    window_length: int | None = None
    agent: Mapping[str, Any] = {}

    @property
    def stage(self) -> int:
        """Env steps of meta-training behind its newest objective."""
        return max((row.meta_training_env_steps or 0 for row in self.rows), default=0)

    @property
    def number(self) -> int:
        """That at the end of its folder's name, `seed_N`; 0 if there is none."""
        match = re.search(r"_(\d+)$", self.folder.name)
        return int(match[1]) if match else 0


def depends_on_meta_training(row: MetaTestRow) -> bool:
    """Whether a meta-trained objective trained the agent of a row."""
    return find_method(row.method).is_meta_trained or bool(row.meta_training_env_steps)


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs in folders and below them, each once, and a note for each that has not been meta-tested or cannot be read.

    A warning names those that cannot be read, and those of a path that has no others.

    Args:
        paths: run folders, or folders that hold run folders at any depth.

    Raises:
        ValueError: no such folder, one without a run, no `meta_test.csv` in any of them, or `read_run` refuses all.
    """
    folders: dict[Path, None] = {}
    untested: dict[Path, None] = {}
    empty: dict[Path, list[Path]] = {}  # the runs of each path without a meta-test
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; valid is a run folder or one that holds run folders")
        found = sorted(file.parent.resolve() for file in path.rglob("meta_test.csv"))
        folders |= dict.fromkeys(found)
        begun = sorted({file.parent.resolve() for file in path.rglob("config.yaml")} - set(found))
        untested |= dict.fromkeys(begun)
        empty |= {} if found else {path: begun}
    if empty and not (folders and all(empty.values())):
        without_run = next((path for path, begun in empty.items() if not begun), next(iter(empty)))
        raise ValueError(f"{without_run}: no meta_test.csv in this folder or below; has the run been meta-tested?")
    names = _short_names([*folders, *untested])
    runs: list[Run] = []
    refused: dict[Path, ValueError] = {}
    for folder in folders:
        try:
            runs.append(read_run(folder, names[folder]))
        except ValueError as error:
            refused[folder] = error
    if refused and not runs:
        raise next(iter(refused.values()))
    why_not = {**refused, **dict.fromkeys(untested, "it has a config.yaml and no meta_test.csv.")}
    notes = {folder: f"{names[folder]} is left out: {why}" for folder, why in why_not.items()}
    for folder in (*refused, *(folder for begun in empty.values() for folder in begun)):
        warnings.warn(notes[folder], stacklevel=2)
    return runs, list(notes.values())


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run folder: `meta_test.csv`, and `config.yaml` or the card of its objective.

    The configuration of the run that meta-trained an objective names its origin. A run that tests an objective from a file trains
    other agents in `env.train`: there the card names the origin, in the run's folder or else beside the file.

    Raises:
        ValueError: no `meta_test.csv`, nothing in it, other columns, an unreadable config or card, or a learned objective whose origin
            neither config nor card name.
    """
    path = folder / "meta_test.csv"
    if not path.exists():
        raise ValueError(f"{folder}: no meta_test.csv in this folder; has the run been meta-tested?")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: no result in it; was the run stopped during its meta-test?")
    config = read_config(folder / "config.yaml") if (folder / "config.yaml").exists() else {}
    card_paths = [folder / "objective.json"]
    objective = config.get("objective") or {}
    if given := objective.get("path"):
        card_paths.append(Path(given).with_suffix(".json"))
    elif str(objective.get("_target_")).endswith(".pretrained"):
        card_paths.append(pretrained_path(objective.get("name", "light")).with_suffix(".json"))
    card = next((read_card(file) for file in card_paths if file.exists()), {})
    meta_trains = config.get("meta", {}) is not None if config else card_paths[0].exists()
    origin = None
    if any(map(depends_on_meta_training, rows)):
        is_in_config = meta_trains and bool(config)
        origin = origin_in_config(folder / "config.yaml", config, card) if is_in_config else origin_in_card(card)
        if origin is None:
            tried = ", ".join(map(str, [folder / "config.yaml", *card_paths]))
            raise ValueError(f"{folder}: no file says how its learned objective was meta-trained; looked for {tried}")
    window_length = card.get("window_length", (config.get("agent") or {}).get("window_length"))
    return Run(folder, name or folder.name, rows, origin, meta_trains, window_length, with_defaults(config.get("agent") or {}))


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Folders without what all of them share."""
    shared = min((len(folder.parts) - 1 for folder in folders), default=0)
    while len({folder.parts[:shared] for folder in folders}) > 1:
        shared -= 1
    return {folder: "/".join(folder.parts[shared:]) for folder in folders}
