"""Variants: runs that differ in the seed of their meta-training alone, and the runs that they may be compared with."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metagenrl_pl.common.messages import format_value
from metagenrl_pl.results.methods import LEARNED, UNTRAINED
from metagenrl_pl.results.origin import Origin
from metagenrl_pl.results.run_folders import Run

_NUMBERS = re.compile(r"\d+|seed_\d+.*")


class Variant(NamedTuple):
    """Runs that differ in the seed of their meta-training alone, and whose fresh agents have the same settings.

    Args:
        name: what its folders are called, as `light`; not always unique.
        title: the environments, and the settings in which it differs from most others.
        training_environments: of its meta-training.
        runs: its own.
        others: other runs of the same kind of agents, whose baselines serve where its own runs have none.
        incomparable: runs whose agents differ, by name, and the settings in which they differ. Their results are left out.
    """

    name: str
    title: str
    training_environments: tuple[str, ...]
    runs: Sequence[Run]
    others: Sequence[Run]
    incomparable: Mapping[str, Sequence[str]] = {}


def variants_of(runs: Sequence[Run]) -> list[Variant]:
    """Runs grouped by all that shaped their objectives but the seed: environments, settings, length of meta-training.

    Runs that tested in the same environments at other env steps, or agents of other settings, stay apart, since their results are not
    comparable.

    A setting that a card does not name separates no runs, so that the test of an objective from a file joins the runs that meta-trained it.
    """
    groups: list[list[tuple[Run, Origin]]] = []
    with_origin = [(run, run.origin) for run in runs if run.origin is not None]
    for run, origin in sorted(with_origin, key=lambda pair: -len(pair[1].settings)):
        for group in groups:
            first, first_origin = group[0]
            if (
                first.stage == run.stage
                and first_origin.training_environments == origin.training_environments
                and not first_origin.differences(origin)
                and all(_share_evaluations(member, run) for member, _ in group)
                and not _differing_agent_settings([member for member, _ in group], run)
            ):
                group.append((run, origin))
                break
        else:
            groups.append([(run, origin)])
    variants = []
    for group in groups:
        members = sorted((run for run, _ in group), key=runs.index)
        origin, rest = group[0][1], [run for run in runs if run not in members]
        incomparable = {run.name: differing for run in rest if (differing := _differing_agent_settings(members, run))}
        others = [_drop_other_untrained(run, origin) for run in rest if run.name not in incomparable]
        variants.append(
            Variant(_name(members), _title(group[0], groups), origin.training_environments, members, others, incomparable)
        )
    return sorted(variants, key=lambda variant: runs.index(variant.runs[0]))


def with_the_same_agents(runs: Sequence[Run], others: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Those of `others` whose agents have the settings of those of `runs`, and a note on each that is left out.

    The first of `runs` with known settings decides. Others with unknown settings are kept.
    """
    differing = [_differing_agent_settings(runs, other) for other in others]
    pairs = list(zip(others, differing, strict=True))
    notes = [note_on_agents(other.name, keys) for other, keys in pairs if keys]
    return [other for other, keys in pairs if not keys], notes


def note_on_agents(name: str, keys: Sequence[str]) -> str:
    """Why a run is left out whose agents differ in these settings."""
    return f"{name} is not compared: its agents differ in {', '.join(keys)}."


def _name(runs: Sequence[Run]) -> str:
    """The folder that most of the runs lie in, without folders that only number them, such as `seed_0`."""
    names = [[part for part in run.name.split("/") if not _NUMBERS.fullmatch(part)] for run in runs]
    count = Counter(parts[-1] for parts in names if parts)
    return count.most_common(1)[0][0] if count else LEARNED.label


def _differing_agent_settings(runs: Sequence[Run], other: Run) -> list[str]:
    """Settings in which the agents of a run differ from those of `runs`, of which the first with known settings decides."""
    agent = next((run.agent for run in runs if run.agent), {})
    keys = agent.keys() | other.agent.keys() if agent and other.agent else ()
    return sorted(f"agent.{key}" for key in keys if agent.get(key) != other.agent.get(key))


def _drop_other_untrained(run: Run, origin: Origin) -> Run:
    """The run, without the rows of its untrained objective if that differs in kind from the learned one."""
    if run.origin is None:
        return run
    differing = [key for key in run.origin.differences(origin) if key.startswith("objective.")]
    return run._replace(rows=[row for row in run.rows if row.method != UNTRAINED.name]) if differing else run


def _share_evaluations(one: Run, other: Run) -> bool:
    """Whether learned objectives were evaluated at the same env steps in the environments that both runs tested them in."""
    grids: list[dict[str, set[int]]] = []
    for run in (one, other):
        grids.append(defaultdict(set))
        for row in run.rows:
            if row.method == LEARNED.name:
                grids[-1][row.environment].add(row.env_steps)
    return all(grids[0][environment] == grids[1][environment] for environment in grids[0].keys() & grids[1].keys())


def _title(first: tuple[Run, Origin], groups: Sequence[Sequence[tuple[Run, Origin]]]) -> str:
    """The environments, and what is not as in most of the variants that share them."""
    run, origin = first
    title = f"Meta-trained on {', '.join(origin.training_environments)}"
    alike = [group[0] for group in groups if group[0][1].training_environments == origin.training_environments]
    settings = [other.settings for _, other in alike]
    distinct = {key for _, one in alike for _, other in alike for key in one.differences(other)}
    details = [
        _describe(key, origin.settings[key])
        for key in sorted(distinct & origin.settings.keys())
        if _is_unusual(origin.settings[key], [other[key] for other in settings if key in other])
    ]
    if _is_unusual(run.stage, [other.stage for other, _ in alike]):
        details.append(f"for {run.stage:,} env steps per agent")
    twins = [other for other, made in alike if other.stage == run.stage and not origin.differences(made)]
    differing = {other.name: _differing_agent_settings([run], other) for other in twins}
    if keys := sorted({key for keys in differing.values() for key in keys}):
        values = [_describe(key, run.agent.get(key.removeprefix("agent."))) for key in keys]
        details.append(f"tested with {' and '.join(values)}")
    if sum(not keys for keys in differing.values()) > 1:
        details.append(f"tested for {max(row.env_steps for row in run.rows):,}")
    return title + (f" ({', '.join(details)})" if details else "")


def _describe(key: str, value: Any) -> str:
    """A setting as a short text: of a class its name alone, `judge=ReturnsJudge`."""
    if key.endswith("._target_"):
        return f"{key.removesuffix('._target_')}={str(value).rpartition('.')[2]}"
    return f"{key}={format_value(value, quote='')}"


def _is_unusual(value: Any, values: Sequence[Any]) -> bool:
    """Whether a value is not the one that most have."""
    return any(2 * values.count(other) >= len(values) for other in values if other != value) or 2 * values.count(value) < len(
        values
    )
