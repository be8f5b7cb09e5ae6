"""The datamodule: it streams update cycles to Lightning, and puts the agents' experience into checkpoints."""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load, save

from metagenrl_pl.common.files import atomic_write, checksum
from metagenrl_pl.common.messages import one_line, read_count
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.training.checkpoint_io import CheckpointError

Cycle = Callable[[Callable[[], Any] | None], None]


class MacroBatch:
    """A number of cycles that Lightning handles as one batch. The number affects Lightning's overhead, not the results.

    Iterating yields `cycle` as often. A batch holds no windows: each cycle draws its own from the replay, to which the cycles before
    have added.

    Args:
        cycle: steps environments and updates from the replay once, see `Agents.cycle`.
        num_cycles: of this batch.
    """

    def __init__(self, cycle: Cycle, num_cycles: int) -> None:
        self._cycle, self._num_cycles = cycle, num_cycles

    def __len__(self) -> int:
        return self._num_cycles

    def skip(self) -> None:
        """Make this batch empty. Its cycles belong to later batches then."""
        self._num_cycles = 0

    def __iter__(self) -> Iterator[Cycle]:
        return repeat(self._cycle, self._num_cycles)


class _MacroBatchLoader:
    """The remaining macro batches, for Lightning. Without a length, Lightning would fetch the next batch too early."""

    def __init__(self, datamodule: "ReplayDataModule") -> None:
        self._datamodule = datamodule

    def __len__(self) -> int:
        """Macro batches of the whole run: the finished and the remaining ones."""
        left = max(self._datamodule.env_steps_left, 0)
        return self._datamodule.num_batches + math.ceil(left / self._datamodule.updates_per_batch)

    def __iter__(self) -> Iterator[MacroBatch]:
        datamodule = self._datamodule
        while (left := datamodule.env_steps_left) > 0:
            datamodule.num_batches += 1
            yield MacroBatch(datamodule.agents.cycle, min(datamodule.updates_per_batch, left))

    def state_dict(self) -> dict[str, Any]:
        """Empty, since the datamodule restores the stream. The method shows Lightning that a run can resume within an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing, since the datamodule restores the stream."""


class ReplayDataModule(pl.LightningDataModule):
    """Gives Lightning macro batches of update cycles, and saves and restores the agents' experience.

    Args:
        agents: that act and learn.
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
        self._replay: dict[str, Any] | None = None  # folder and files of the replay of the checkpoint that is being saved

    @property
    def env_steps_left(self) -> int:
        """Remaining env steps of each agent."""
        return self.env_steps - self.agents.env_steps

    def train_dataloader(self) -> Any:
        return _MacroBatchLoader(self)

    def teardown(self, stage: str) -> None:
        self.agents.close()

    def state_dict(self) -> dict[str, Any]:
        """Counters, random streams and open episodes of all agents, and the checksums of the replay, which lies in separate files."""
        return {"collector": self.agents.state_dict(), "num_batches": self.num_batches, "replay": self._replay}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the experience, including the replay if it was saved with the checkpoint.

        Raises:
            CheckpointError: if the replay is damaged.
        """
        # The replay comes first, since the collector continues its open episodes. Without a replay these episodes have lost their
        # first steps, so `is_open` is false and new episodes begin.
        assert self.trainer is not None
        checkpoint, placement = Path(str(self.trainer.ckpt_path)), self.agents.placement
        self.num_batches, state = read_count(state_dict, "num_batches"), dict(state_dict["collector"])
        saved = state_dict["replay"]  # None if it was not saved
        folder = checkpoint.parent / (Path(saved["folder"]).name if saved else "")
        if all(placement.gather_objects(saved is not None and folder.is_dir())):
            problems = [problem for problem in placement.gather_objects(self._load_replay(folder, saved["files"])) if problem]
            if problems:
                raise CheckpointError(
                    f"ckpt_path={checkpoint}: the replay beside it is damaged ({problems[0]}); "
                    f"remove the folder {folder} to resume with an empty replay"
                )
        else:
            rank_zero_warn(f"No replay beside {checkpoint.name}: a new one is filled before updates continue.")
            state["is_open"] = False
        lost = self.agents.load_state_dict(state)
        if lost:
            names = ", ".join(f"{agent} ({self.agents.specs[agent].name})" for agent in lost)
            rank_zero_warn(f"Open episodes could not be repeated, so they count as truncated and new ones begin: agents {names}.")

    @contextmanager
    def saving_replay(self, folder: Path) -> Iterator[None]:
        """Write the replay of this process's agents to a new folder, one file per agent. A checkpoint that the body saves names it.

        Every process has to call it. If it or the body fails, the folder is removed, since it may be what fills the disk.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            checksums = []
            for i, agent in enumerate(self.agents.placement.agents):
                path = _replay_file(folder, agent)
                with atomic_write(path) as file:
                    file.write(save(self.agents.replay.agent_state(i)))
                checksums.append((path.name, checksum(path).hex()))
            self._replay = {"folder": folder.name, "files": dict(self.agents.placement.gather_list(checksums))}
            yield
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._replay = None

    def _load_replay(self, folder: Path, checksums: Mapping[str, str]) -> str | None:
        """Restore the replay of this process's agents. Returns an error message if a file is missing or damaged."""
        for i, agent in enumerate(self.agents.placement.agents):
            path = _replay_file(folder, agent)
            try:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() != checksums.get(path.name):
                    return f"{path.name}: its checksum is wrong"
                self.agents.replay.load_agent_state(i, load(content))
            except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
                return f"{path.name}: {one_line(error)}"
        return None


def _replay_file(folder: Path, agent: int) -> Path:
    return folder / f"agent_{agent:03d}.safetensors"
