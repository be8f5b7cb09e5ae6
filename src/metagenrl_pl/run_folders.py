"""Run folders of several runs: what was meta-tested in each, and the regimes of meta-training that they belong to."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metagenrl_pl.config import ConfigError, load_config, located, parameters_of
from metagenrl_pl.envs import EnvironmentSpec
from metagenrl_pl.messages import one_line, shown
from metagenrl_pl.objectives.learned import pretrained_path
from metagenrl_pl.results import MetaTestRow, read_rows


class Origin(NamedTuple):
    """How a learned objective was made.

    Args:
        seed: of the meta-training.
        training_environments: their names, sorted.
        settings: what else made it, by dotted key.
        commit: of the code, empty if unknown.
        is_whole: whether the settings are all there were, those that are missing being null; not so in a card that has only some of them.
    """

    seed: int
    training_environments: tuple[str, ...]
    settings: Mapping[str, Any]
    commit: str = ""
    is_whole: bool = False


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


class Regime(NamedTuple):
    """Runs whose meta-training differs in its seed alone.

    Args:
        title: what tells it from the others.
        training_environments: of its meta-training.
        runs: its own.
        others: other runs of the same kind of agents, whose baselines serve where its own runs have none.
        strangers: runs of other agents, and in which settings those differ: nothing of theirs is comparable.
    """

    title: str
    training_environments: tuple[str, ...]
    runs: Sequence[Run]
    others: Sequence[Run]
    strangers: Mapping[str, Sequence[str]] = {}


def meta_training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes an objective beside seed, environments and length, of a run's configuration, by dotted key."""
    return {
        f"{group}.{key}": value
        for group in ("population", "objective", "agent", "inner", "meta")
        for key, value in (config.get(group) or {}).items()
        if (group, key) != ("objective", "seed")
    }


def depends_on_meta_training(row: MetaTestRow) -> bool:
    """Whether a row's agent was trained by a meta-trained objective; hand-made, untrained ones and random actions were not."""
    return row.method == "learned" or bool(row.meta_training_env_steps)


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs in folders and below them, each once, and a note for each that has not been meta-tested.

    Args:
        paths: run folders, or folders that hold run folders at any depth.

    Raises:
        ValueError: no such folder, no `meta_test.csv` in it or below, or what `read_run` refuses.
    """
    folders: dict[Path, None] = {}
    untested: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; valid is a run folder or one that holds run folders")
        found = sorted(file.parent for file in path.rglob("meta_test.csv"))
        if not found:
            raise ValueError(f"{path}: no meta_test.csv in this folder or below; has the run been meta-tested?")
        folders |= dict.fromkeys(folder.resolve() for folder in found)
        untested |= dict.fromkeys(file.parent.resolve() for file in path.rglob("config.yaml"))
    names = _short_names([*folders, *untested])
    runs = [read_run(folder, names[folder]) for folder in folders]
    notes = [
        f"{names[folder]} is left out: it has a config.yaml and no meta_test.csv." for folder in untested if folder not in folders
    ]
    return runs, notes


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run folder: `meta_test.csv`, and `config.yaml` or the card of its objective.

    The origin of a learned objective is the config's of the run that meta-trained it. A run that tests an objective from a file
    trains other agents in `env.train`: there its card tells, in the run's folder or else beside the file.

    Raises:
        ValueError: no `meta_test.csv`, nothing in it, other columns, an unreadable config, or results of a learned objective of which
            neither config nor card tell where it comes from.
    """
    path = folder / "meta_test.csv"
    if not path.exists():
        raise ValueError(f"{folder}: no meta_test.csv in this folder; has the run been meta-tested?")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: no result in it; was the run stopped during its meta-test?")
    config = _read_config(folder / "config.yaml")
    card_paths = [folder / "objective.json"]
    objective = config.get("objective") or {}
    if given := objective.get("path"):
        card_paths.append(Path(given).with_suffix(".json"))
    elif str(objective.get("_target_")).endswith(".pretrained"):
        card_paths.append(pretrained_path(objective.get("name", "light")).with_suffix(".json"))
    card = next((_read_card(file) for file in card_paths if file.exists()), {})
    meta_trains = config.get("meta", {}) is not None if config else card_paths[0].exists()
    origin = None
    if any(map(depends_on_meta_training, rows)):
        told = meta_trains and bool(config)
        origin = _origin_in_config(folder / "config.yaml", config, card) if told else _origin_in_card(card)
        if origin is None:
            tried = ", ".join(map(str, [folder / "config.yaml", *card_paths]))
            raise ValueError(f"{folder}: nothing tells how its learned objective was meta-trained; looked for {tried}")
    window_length = card.get("window_length", (config.get("agent") or {}).get("window_length"))
    return Run(folder, name or folder.name, rows, origin, meta_trains, window_length, _completed(config.get("agent") or {}))


def regimes_of(runs: Sequence[Run]) -> list[Regime]:
    """Runs grouped by all that shaped their objectives but the seed: environments, settings, length of meta-training.

    Runs that tested in the same environments at other env steps stay apart, since their results are not comparable.

    Settings that a card does not know do not tell runs apart, so that a test of an objective from a file joins the runs that meta-trained
    it.
    """
    groups: list[list[tuple[Run, Origin]]] = []
    with_origin = [(run, run.origin) for run in runs if run.origin is not None]
    for run, origin in sorted(with_origin, key=lambda pair: -len(pair[1].settings)):
        for group in groups:
            first, first_origin = group[0]
            if (
                first.stage == run.stage
                and first_origin.training_environments == origin.training_environments
                and not _differences(first_origin, origin)
                and all(_tested_alike(member, run) for member, _ in group)
            ):
                group.append((run, origin))
                break
        else:
            groups.append([(run, origin)])
    regimes = []
    for group in groups:
        members = sorted((run for run, _ in group), key=runs.index)
        (first, origin), rest = group[0], [run for run in runs if run not in members]
        strangers = {run.name: differing for run in rest if (differing := _other_agents(first, run))}
        others = [_comparable(run, origin) for run in rest if run.name not in strangers]
        regimes.append(Regime(_title(group[0], groups), origin.training_environments, members, others, strangers))
    return sorted(regimes, key=lambda regime: runs.index(regime.runs[0]))


def _other_agents(one: Run, other: Run) -> list[str]:
    """Settings in which their agents differ; none if those of one are unknown."""
    keys = one.agent.keys() | other.agent.keys() if one.agent and other.agent else ()
    return sorted(f"agent.{key}" for key in keys if one.agent.get(key) != other.agent.get(key))


def _comparable(run: Run, origin: Origin) -> Run:
    """The run without an untrained objective of another kind than the learned one."""
    if run.origin is None:
        return run
    differing = [key for key in _differences(run.origin, origin) if key.startswith("objective.")]
    return run._replace(rows=[row for row in run.rows if row.method != "untrained"]) if differing else run


def _tested_alike(one: Run, other: Run) -> bool:
    """Whether learned objectives were evaluated at the same env steps in the environments that both runs tested them in."""
    grids: list[dict[str, set[int]]] = []
    for run in (one, other):
        grids.append(defaultdict(set))
        for row in run.rows:
            if row.method == "learned":
                grids[-1][row.environment].add(row.env_steps)
    return all(grids[0][environment] == grids[1][environment] for environment in grids[0].keys() & grids[1].keys())


def _title(first: tuple[Run, Origin], groups: Sequence[Sequence[tuple[Run, Origin]]]) -> str:
    """The environments, and what is not as in most of the regimes that share them."""
    run, origin = first
    title = f"Meta-trained on {', '.join(origin.training_environments)}"
    alike = [group[0] for group in groups if group[0][1].training_environments == origin.training_environments]
    settings = [other.settings for _, other in alike]
    distinct = {key for _, one in alike for _, other in alike for key in _differences(one, other)}
    details = [
        f"{key}={shown(origin.settings[key], quote='')}"
        for key in sorted(distinct & origin.settings.keys())
        if _is_unusual(origin.settings[key], [other[key] for other in settings if key in other])
    ]
    if _is_unusual(run.stage, [other.stage for other, _ in alike]):
        details.append(f"for {run.stage:,} env steps per agent")
    twins = [other for other, made in alike if other.stage == run.stage and not _differences(origin, made)]
    if len(twins) > 1:
        details.append(f"tested for {max(row.env_steps for row in run.rows):,}")
    return title + (f" ({', '.join(details)})" if details else "")


def _is_unusual(value: Any, values: Sequence[Any]) -> bool:
    """Whether a value is not the one that most have."""
    return any(2 * values.count(other) >= len(values) for other in values if other != value) or 2 * values.count(value) < len(
        values
    )


def _differences(one: Origin, other: Origin) -> list[str]:
    keys = one.settings.keys() & other.settings.keys()
    if (
        one.is_whole and other.is_whole
    ):  # a key that one of them lacks was not there yet, or belongs to a component of another kind
        keys = one.settings.keys() | other.settings.keys()
    return [key for key in keys if one.settings.get(key) != other.settings.get(key)]


def _read_config(path: Path) -> dict[str, Any]:
    """As plain dictionaries; empty if there is no file."""
    config: Any = OmegaConf.to_container(load_config(path)) if path.exists() else {}
    return config


def _origin_in_config(path: Path, config: Mapping[str, Any], card: Mapping[str, Any]) -> Origin:
    try:
        seed, entries = config["seed"], config["env"]["train"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no config of a run: it lacks seed or env.train") from error
    names = {EnvironmentSpec.parse(entry).name for entry in entries}
    settings = _all_completed(meta_training_settings(config))
    return Origin(seed, tuple(sorted(names)), settings, str(card.get("commit") or ""), is_whole=True)


def _all_completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`_completed` for the groups of settings by dotted key."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in settings.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    return {f"{group}.{name}": value for group, node in groups.items() for name, value in _completed(node).items()}


def _completed(node: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of its class, for a run that is older than some of its keys is one that has their defaults."""
    try:
        parameters = parameters_of(located(node["_target_"], "")) if "_target_" in node else None
    except ConfigError:  # a component that is not here
        parameters = None
    defaults = {name: one.default for name, one in (parameters or {}).items() if one.default is not one.empty}
    return {**defaults, **node}


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable: {one_line(error)}") from error
    return card if isinstance(card, dict) else {}


def _origin_in_card(card: Mapping[str, Any]) -> Origin | None:
    if not {"training_environments", "seed"} <= card.keys():
        return None
    settings = card.get("settings")
    is_whole = settings is not None
    if settings is None:
        settings = {f"objective.{key}": value for key, value in card.get("architecture", {}).items()}
        for key, name in (("num_agents", "population.size"), ("window_length", "agent.window_length")):
            settings |= {name: card[key]} if key in card else {}
    else:
        settings = _all_completed(settings)
    return Origin(card["seed"], tuple(sorted(card["training_environments"])), settings, str(card.get("commit") or ""), is_whole)


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Folders without what all of them share."""
    shared = min((len(folder.parts) - 1 for folder in folders), default=0)
    while len({folder.parts[:shared] for folder in folders}) > 1:
        shared -= 1
    return {folder: "/".join(folder.parts[shared:]) for folder in folders}
