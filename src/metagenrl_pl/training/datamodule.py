"""The Lightning side of experience: streams lazy macro batches of update cycles from environments and replay."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.learning.learner import Draw
from metagenrl_pl.training.checkpoint_io import CheckpointError, replay_folder


class MacroBatch:
    """Some update cycles, handed out one at a time, so that their number changes the overhead and nothing else.

    Iterating lets every agent take an env step per cycle and yields the function that draws windows from replay (`Agents.steps`).
    """

    def __init__(self, agents: Agents, num_cycles: int) -> None:
        self._agents, self._num_cycles = agents, num_cycles

    def __len__(self) -> int:
        return self._num_cycles

    def skip(self) -> None:
        """Leave its cycles to later batches."""
        self._num_cycles = 0

    def __iter__(self) -> Iterator[Draw]:
        return self._agents.steps(self._num_cycles)


class _MacroBatchLoader:
    """What Lightning iterates: the macro batches that are left. Has a length, or Lightning would fetch a batch ahead of its time."""

    def __init__(self, datamodule: "ReplayDataModule") -> None:
        self._datamodule = datamodule

    def __len__(self) -> int:
        """Macro batches of the whole run: those done before a resume and those that are left."""
        left = max(self._datamodule.env_steps_left, 0)
        return self._datamodule.num_batches + math.ceil(left / self._datamodule.updates_per_batch)

    def __iter__(self) -> Iterator[MacroBatch]:
        datamodule = self._datamodule
        while (left := datamodule.env_steps_left) > 0:
            datamodule.num_batches += 1
            yield MacroBatch(datamodule.agents, min(datamodule.updates_per_batch, left))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the datamodule restores the stream. That it is here tells Lightning that the stream can resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ReplayDataModule(pl.LightningDataModule):
    """Streams the experience of agents.

    Args:
        agents: whose env steps and replay these are.
        env_steps: length of the run, in env steps of each agent.
        updates_per_batch: update cycles per Lightning batch (M).

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, agents: Agents, env_steps: int, updates_per_batch: int) -> None:
        super().__init__()
        for name, value in (("env_steps", env_steps), ("updates_per_batch", updates_per_batch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.agents, self.env_steps, self.updates_per_batch, self.num_batches = agents, env_steps, updates_per_batch, 0

    @property
    def env_steps_left(self) -> int:
        """Env steps of each agent until the end of the run."""
        return self.env_steps - self.agents.env_steps

    def train_dataloader(self) -> Any:
        """The stream of macro batches."""
        return _MacroBatchLoader(self)

    def teardown(self, stage: str) -> None:
        self.agents.close()

    def state_dict(self) -> dict[str, Any]:
        """Counters, random streams and open episodes of all agents. The replay is in files of its own."""
        return {"collector": self.agents.state_dict(), "num_batches": self.num_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the stream, with the replay beside the checkpoint if there is one.

        Raises:
            CheckpointError: if the replay is damaged.
        """
        assert self.trainer is not None
        checkpoint, placement = Path(str(self.trainer.ckpt_path)), self.agents.placement
        self.num_batches, state = state_dict["num_batches"], dict(state_dict["collector"])
        folder = replay_folder(checkpoint)
        if all(placement.gather_objects(folder.is_dir())):
            problems = [problem for problem in placement.gather_objects(self._load_replay(folder)) if problem]
            if problems:
                raise CheckpointError(
                    f"ckpt_path={checkpoint}: the replay beside it is damaged ({problems[0]}); "
                    f"remove the folder {folder} to resume with an empty replay"
                )
        else:
            rank_zero_warn(f"No replay beside {checkpoint.name}: it fills up anew before updates go on.")
            state["is_open"] = False
        lost = self.agents.load_state_dict(state)
        if lost:
            names = ", ".join(f"{agent} ({self.agents.specs[agent].name})" for agent in lost)
            rank_zero_warn(f"Open episodes that could not be re-entered count as truncated, new ones begin: agents {names}.")

    def save_replay(self, folder: Path) -> None:
        """Write one file for each agent of this process."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, agent in enumerate(self.agents.placement.agents):
            save_file(self.agents.replay.agent_state(i), _replay_file(folder, agent))

    def _load_replay(self, folder: Path) -> str | None:
        """Restore the replay of this process's agents; what is wrong with the files, if anything is."""
        for i, agent in enumerate(self.agents.placement.agents):
            path = _replay_file(folder, agent)
            try:
                self.agents.replay.load_agent_state(i, load_file(path))
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                return f"{path.name}: {error}"
        return None


def _replay_file(folder: Path, agent: int) -> Path:
    return folder / f"agent_{agent:03d}.safetensors"
