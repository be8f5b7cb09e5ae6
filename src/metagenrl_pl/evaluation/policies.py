"""Policies of fresh agents on disk: what a meta-test leaves behind, so that its agents can be filmed."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.config.trust import check_foreign
from metagenrl_pl.environments.environment import EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.environments.spec import to_plain


class FreshAgents(NamedTuple):
    """Trained agents of a meta-test.

    Args:
        specs: environment of each agent.
        numbers: its `seed` in results.
        population: all of them; their critics are untrained.
    """

    specs: list[EnvironmentSpec]
    numbers: list[int]
    population: Population


def save_policies(
    folder: Path,
    method: str,
    population: Population | None,
    specs: Sequence[EnvironmentSpec],
    numbers: Sequence[int],
    placement: Placement,
) -> None:
    """Write `<folder>/<method>.safetensors`. Every process has to call this function; the first one writes.

    Args:
        folder: made if there is none.
        method: that has trained the agents.
        population: agents of this process; None if it has none.
        specs, numbers: environments and numbers of all agents.
        placement: of all agents.
    """
    own = {} if population is None else {name: p.detach().cpu() for name, p in population.policy.items()}
    parts = [part for part in placement.gather_objects(own) if part]
    if placement.rank == 0:
        policies = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        agents = [{**dataclasses.asdict(spec), "number": number} for spec, number in zip(specs, numbers, strict=True)]
        with atomic_write(folder / f"{method.replace('/', '_')}.safetensors") as file:
            file.write(save(policies, {"method": method, "agents": json.dumps(agents, default=to_plain)}))


def load_policies(path: Path, settings: AgentSettings, trusted: Collection[str] = ()) -> tuple[str, FreshAgents]:
    """The method's name and its agents, on the CPU.

    Args:
        path: of a file that `save_policies` has written.
        settings: of the agents.
        trusted: packages that its environments may name, see `check_foreign`.

    Raises:
        ValueError: if it is no such file, or names a package that is not trusted.
    """
    try:
        with safe_open(path, "pt") as file:
            described, names = file.metadata(), file.keys()
            policies = {name: file.get_tensor(name) for name in names}
        agents = json.loads(described["agents"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no policies of a meta-test") from error
    check_foreign({"env": {"test": agents}}, {"env": EnvironmentSets}, trusted)
    try:
        numbers = [agent.pop("number") for agent in agents]
        specs = [EnvironmentSpec(**agent) for agent in agents]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say which agents it holds ({one_line(error)})") from error
    population = Population(sizes_of(specs), [0] * len(specs), settings)
    shapes = ({name: tuple(p.shape) for name, p in tensors.items()} for tensors in (policies, population.policy))
    if differing := [f"{name}: {found}, not {own}" for name, found, own in _differences(*shapes)]:
        raise ValueError(f"{path} holds policies of other agents ({differing[0]})")
    for name, parameter in population.policy.items():
        parameter.data.copy_(policies[name])
    return described["method"], FreshAgents(specs, numbers, population)


def _differences(found: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(found.keys() | own.keys()):
        if found.get(name) != own.get(name):
            yield name, found.get(name), own.get(name)
