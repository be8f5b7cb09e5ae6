"""The Lightning module. A training step runs the update cycles of a macro batch, with manual optimization."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.training.checkpoint_io import FORMAT, PROJECT_KEY, CheckpointError
from metagenrl_pl.training.csv_logger import RunCSVLogger
from metagenrl_pl.training.datamodule import MacroBatch


class MetaGenRL(pl.LightningModule):
    """A population of agents and their shared objective.

    `trainer.global_step` counts update cycles, since only the critics' optimizer is stepped through Lightning. The objective is
    the only submodule: agents differ between processes, and each process holds only some of them.

    Args:
        agents: of this process.
        run_config: plain containers, stored in checkpoints. So a checkpoint alone is enough to resume its run.
    """

    def __init__(self, agents: Agents, run_config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.agents, self.learner, self.objective = agents, agents.learner, agents.objective
        self.run_config = dict(run_config or {})
        self.metrics: dict[str, np.ndarray] = {}  # of all agents after the newest macro batch, [P]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self.learner.optimizers.values())

    def on_train_start(self) -> None:
        """After a resume, remove what `metrics.csv` and TensorBoard show from after the checkpoint: it is logged again."""
        if self.agents.env_steps:
            for logger in self.trainer.loggers:
                if isinstance(logger, RunCSVLogger):
                    logger.keep_until(self.agents.env_steps)
                elif isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                    logger.experiment.close()
                    logger.experiment.purge_step = self.agents.env_steps + 1  # of the events in the file that it opens next

    def training_step(self, batch: MacroBatch, batch_idx: int) -> None:
        """Run the batch's cycles: every agent takes an env step and learns in each.

        Raises:
            FloatingPointError: if an agent's loss or gradient norm is not finite.
            RuntimeError: if the objectives of different processes differ.
        """
        optimizers = self.optimizers()
        critic_step = (optimizers[0] if isinstance(optimizers, list) else optimizers).step
        for cycle in batch:
            cycle(critic_step)
        self.metrics = self.learner.checked_metrics()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the agents of all processes, the optimizers by name, and the run's config."""
        # A run is one epoch. If the checkpoint marked its last batch, Lightning could not make the run longer on a resume.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        states = zip(self.learner.optimizers, checkpoint["optimizer_states"], strict=True)
        checkpoint[PROJECT_KEY] = {
            "format": FORMAT,
            "config": self.run_config,
            "environments": [spec.name for spec in self.agents.specs],
            "env_steps": self.agents.env_steps,
            "learner": self.learner.state_dict(),
            "optimizers": {name: self._gather_state(state) if self._is_per_agent(name) else state for name, state in states},
        }
        checkpoint["optimizer_states"] = []  # replaced by "optimizers" above: Lightning's list has the states of one process only

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the agents of this process, and give Lightning the states of their optimizers.

        Raises:
            CheckpointError: if the checkpoint was saved with other agents.
        """
        state = checkpoint[PROJECT_KEY]
        self._check_agents(state["environments"])
        self.learner.load_state_dict(state["learner"])
        checkpoint["optimizer_states"] = [
            self._local_state(state["optimizers"][name]) if self._is_per_agent(name) else state["optimizers"][name]
            for name in self.learner.optimizers
        ]
        for (name, optimizer), saved in zip(self.learner.optimizers.items(), checkpoint["optimizer_states"], strict=True):
            _check_optimizer(name, optimizer, saved)

    def _check_agents(self, saved_names: list[str]) -> None:
        names = [spec.name for spec in self.agents.specs]
        if saved_names != names:
            assert self.trainer.ckpt_path is not None  # Lightning loads from it
            raise CheckpointError(
                f"ckpt_path={Path(self.trainer.ckpt_path)}: saved with population.size={len(saved_names)} on "
                f"{', '.join(dict.fromkeys(saved_names))}, this run has population.size={len(names)} on "
                f"{', '.join(dict.fromkeys(names))}"
            )

    @staticmethod
    def _is_per_agent(optimizer: str) -> bool:
        """Whether an optimizer holds one tensor for each agent of this process. The objective's is the same in all processes."""
        return optimizer != "objective"

    def _gather_state(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """The optimizer state of all agents: one tensor [P, ...] for each quantity, such as `exp_avg`."""
        states = list(optimizer["state"].values())
        names = states[0] if states else ()
        tensors = {name: self.agents.placement.gather(torch.stack([state[name] for state in states])) for name in names}
        # New containers, since the old ones belong to the optimizer.
        return {
            "state": {0: tensors} if states else {},
            "param_groups": [{**optimizer["param_groups"][0], "params": [0]}],
        }

    def _local_state(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `_gather_state` for the agents of this process: one state for each agent's tensor."""
        placement = self.agents.placement
        states = optimizer["state"].get(0, {})
        if any(len(value) != placement.num_agents for value in states.values()):
            raise ValueError(f"an optimizer's state is not of {placement.num_agents} agents")
        local = {name: placement.local_rows(value) for name, value in states.items()}
        agents = range(len(placement.agents))
        return {
            "state": {i: {name: value[i] for name, value in local.items()} for i in agents} if local else {},
            "param_groups": [{**optimizer["param_groups"][0], "params": list(agents)}],
        }


def _check_optimizer(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raise a ValueError unless each tensor of a saved state has the shape of its parameter. PyTorch would notice it late or never."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, tensors in state["state"].items():
        for key, value in tensors.items():
            if value.shape not in ((), parameters[index].shape):
                raise ValueError(f"{key} of the optimizer {name} is {tuple(value.shape)}, not {tuple(parameters[index].shape)}")
