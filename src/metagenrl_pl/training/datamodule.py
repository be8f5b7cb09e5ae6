"""The Lightning face of experience: streams lazy macro batches of update cycles from environments and replay."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.agents.windows import widest
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import EnvironmentGroup, sizes_of
from metagenrl_pl.environments.workers import choose_num_workers, make_group
from metagenrl_pl.experience.collector import Collector
from metagenrl_pl.experience.replay import Replay, check_capacity, check_memory, memory_bytes
from metagenrl_pl.learning.learner import Learner
from metagenrl_pl.training.checkpoint_io import CheckpointError, replay_folder


@dataclass(frozen=True)
class ReplaySettings:
    """Where experience is kept.

    Args:
        capacity: slots of each agent's ring buffer: its env steps plus one for each episode.
        device: `auto` for the device of the updates, or a device's name.

    Raises:
        ValueError: if the capacity is not positive or there is no such device.
    """

    capacity: int = 1_000_000
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {self.capacity}")
        if self.device != "auto":
            try:
                torch.empty(0, device=self.device)
            except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
                raise ValueError(f"device={self.device} is not there; valid is auto, cpu or a GPU (cuda)") from error


class MacroBatch:
    """Some update cycles, handed out one at a time, so that their number changes the overhead and nothing else.

    In each cycle every agent chooses an action, then the collector is yielded, from which windows are drawn, and only then is the env
    step stored. So updates are computed while environments step, and the order is the same whether they do so at once or not.
    """

    def __init__(self, collector: Collector, num_cycles: int) -> None:
        self._collector, self._num_cycles = collector, num_cycles

    def __len__(self) -> int:
        return self._num_cycles

    def skip(self) -> None:
        """Leave its cycles to later batches."""
        self._num_cycles = 0

    def __iter__(self) -> Iterator[Collector]:
        for _ in range(self._num_cycles):
            self._collector.begin_step()
            yield self._collector
            self._collector.end_step()


class _MacroBatchLoader:
    """What Lightning iterates: the macro batches that are left. Has a length, or Lightning would fetch a batch ahead of its time."""

    def __init__(self, datamodule: "ReplayDataModule") -> None:
        self._datamodule = datamodule

    def __len__(self) -> int:
        """Macro batches of the whole run: those done before a resume and those that are left."""
        left = self._datamodule.env_steps - self._datamodule.collector.env_steps
        return self._datamodule.num_batches + math.ceil(max(left, 0) / self._datamodule.updates_per_batch)

    def __iter__(self) -> Iterator[MacroBatch]:
        datamodule = self._datamodule
        while (left := datamodule.env_steps - datamodule.collector.env_steps) > 0:
            datamodule.num_batches += 1
            yield MacroBatch(datamodule.collector, min(datamodule.updates_per_batch, left))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the datamodule restores the stream. That it is here tells Lightning that the stream can resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ReplayDataModule(pl.LightningDataModule):
    """Environments, collector and replay of the agents of this process.

    Args:
        specs: each agent's environment; of all agents, also those of other processes.
        seeds: one for each agent.
        agent: settings of the agents.
        replay: where experience is kept.
        env_steps: length of the run, in env steps of each agent.
        updates_per_batch: update cycles per Lightning batch (M).
        env_workers: processes that step environments; 0 for this one, None to choose.
        placement: which agents live here; all by default.
        lifetimes: when agents are born again, of all agents; never by default.

    Raises:
        ValueError: if a number is not positive, an environment cannot serve or the replay does not fit.
    """

    def __init__(
        self,
        specs: Sequence[EnvironmentSpec],
        seeds: Sequence[int],
        agent: AgentSettings,
        replay: ReplaySettings,
        env_steps: int,
        updates_per_batch: int,
        env_workers: int | None = 0,
        placement: Placement | None = None,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        super().__init__()
        self._lifetimes = lifetimes or Lifetimes.single(len(specs))
        for name, value in (("env_steps", env_steps), ("updates_per_batch", updates_per_batch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_capacity(replay.capacity, agent.window_length)
        self.env_steps, self.updates_per_batch, self.num_batches = env_steps, updates_per_batch, 0
        choose_num_workers(env_workers, len(specs))  # refuse a wrong number now
        self.specs, self.sizes, self.env_workers = list(specs), sizes_of(specs), env_workers
        self.placement = placement or Placement(len(specs))
        self.seeds, self._agent, self.replay_settings = list(seeds), agent, replay
        if replay.device == "cpu" or not torch.cuda.is_available():  # a GPU is asked in setup
            check_memory(self.replay_bytes, torch.device("cpu"))
        self.collector: Collector

    @property
    def replay_bytes(self) -> int:
        """Memory that the full replay needs in this process."""
        return memory_bytes(self.placement.local(self.sizes), self.replay_settings.capacity)

    @property
    def num_processes(self) -> int:
        """Training processes on this machine, which share its cores and its memory."""
        assert self.trainer is not None
        return getattr(self.trainer.strategy, "num_processes", 1)

    @property
    def replay_device(self) -> torch.device:
        """Where experience is kept: as configured, or where the updates are."""
        assert self.trainer is not None
        wanted = self.replay_settings.device
        return self.trainer.strategy.root_device if wanted == "auto" else torch.device(wanted)

    def setup(self, stage: str) -> None:
        """Make the replay on its device and the collector, which asks the population for actions."""
        assert self.trainer is not None
        try:
            sizes, padded_to = self.placement.local(self.sizes), widest(self.sizes)
            if self.replay_device.type == "cpu":
                check_memory(self.num_processes * self.replay_bytes, self.replay_device)
            replay = Replay(sizes, self.replay_settings.capacity, self._agent.window_length, self.replay_device, padded_to)
        except ValueError as error:  # only here is the device known, and whether it has the memory
            raise ConfigError(str(error)) from error
        learner = cast(Learner, self.trainer.lightning_module.learner)
        self.collector = Collector(
            self.make_group(self.placement.local(self.specs)),
            self.placement.local(self.seeds),
            replay,
            learner.population.act,
            exploration_noise=self._agent.exploration_noise,
            random_env_steps=self._agent.random_env_steps,
            update_device=self.trainer.strategy.root_device,
            lifetimes=self._lifetimes.of(self.placement),
            renew=learner.renew,
        )

    def train_dataloader(self) -> Any:
        """The stream of macro batches."""
        return _MacroBatchLoader(self)

    def make_group(self, specs: Sequence[EnvironmentSpec]) -> EnvironmentGroup:
        """Environments that run the way this run's do: in this process or in workers."""
        assert self.trainer is not None
        return make_group(specs, choose_num_workers(self.env_workers, len(specs), self.num_processes))

    def teardown(self, stage: str) -> None:
        """Close the environments."""
        self.collector.close()

    def state_dict(self) -> dict[str, Any]:
        """Environments, counters, random streams and open episodes of all agents. The replay is in files of its own."""
        collector = self.collector.state_dict()
        collector["agents"] = self.placement.gather_list(collector["agents"])
        return {
            "environments": [spec.name for spec in self.specs],
            "collector": collector,
            "num_batches": self.num_batches,
        }

    def check_agents(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse what `state_dict` gave in a run of other agents.

        Raises:
            CheckpointError: if their number or environments are others.
        """
        saved, ours = state_dict["environments"], [spec.name for spec in self.specs]
        if saved != ours:
            raise CheckpointError(
                f"ckpt_path={self._checkpoint}: saved with population.size={len(saved)} on {', '.join(dict.fromkeys(saved))}, "
                f"this run has population.size={len(ours)} on {', '.join(dict.fromkeys(ours))}"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the stream, with the replay that lies beside the checkpoint, if there is one.

        Raises:
            CheckpointError: if the replay is damaged.
        """
        self.num_batches = state_dict["num_batches"]
        folder = replay_folder(self._checkpoint)
        state = {**state_dict["collector"], "agents": self.placement.local(state_dict["collector"]["agents"])}
        if all(self.placement.gather_objects(folder.is_dir())):
            problems = [problem for problem in self.placement.gather_objects(self._load_replay(folder)) if problem]
            if problems:
                raise CheckpointError(
                    f"ckpt_path={self._checkpoint}: the replay beside it is damaged ({problems[0]}); "
                    f"remove the folder {folder} to resume with an empty replay"
                )
        else:
            rank_zero_warn(f"No replay beside {self._checkpoint.name}: it fills up anew before updates go on.")
            state["is_open"] = False
        lost = [self.placement.agents[agent] for agent in self.collector.load_state_dict(state)]
        lost = [agent for part in self.placement.gather_objects(lost) for agent in part]
        if lost:
            names = ", ".join(f"{agent} ({self.specs[agent].name})" for agent in lost)
            rank_zero_warn(f"Open episodes that could not be re-entered count as truncated, new ones begin: agents {names}.")

    @property
    def _checkpoint(self) -> Path:
        assert self.trainer is not None
        return Path(str(self.trainer.ckpt_path))

    def save_replay(self, folder: Path) -> None:
        """Write one file for each agent of this process."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, agent in enumerate(self.placement.agents):
            save_file(self.collector.replay.agent_state(i), _replay_file(folder, agent))

    def _load_replay(self, folder: Path) -> str | None:
        """Restore the replay of this process's agents; what is wrong with the files, if anything is."""
        for i, agent in enumerate(self.placement.agents):
            path = _replay_file(folder, agent)
            try:
                self.collector.replay.load_agent_state(i, load_file(path))
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                return f"{path.name}: {error}"
        return None


def _replay_file(folder: Path, agent: int) -> Path:
    return folder / f"agent_{agent:03d}.safetensors"
