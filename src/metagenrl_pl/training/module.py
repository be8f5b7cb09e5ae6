"""The Lightning side of learning: one macro batch is a few update cycles with manual optimization."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.training.checkpoint_io import FORMAT, PROJECT_KEY, CheckpointError
from metagenrl_pl.training.datamodule import MacroBatch


class MetaGenRL(pl.LightningModule):
    """A population and the objective that it shares.

    One optimizer step per update cycle is tracked, the critics', so `trainer.global_step` counts update cycles. Agents are no
    submodules: the objective is all that processes share.

    Args:
        agents: of this process.
        run_config: kept in checkpoints, so that a checkpoint alone can rebuild its run; plain containers.
    """

    def __init__(self, agents: Agents, run_config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.agents, self.learner, self.objective = agents, agents.learner, agents.objective
        self.run_config = dict(run_config or {})
        self.metrics: dict[str, np.ndarray] = {}  # of all agents after the newest macro batch, [P]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Critics, policies and, in meta-training, the objective."""
        return list(self.learner.optimizers.values())

    def training_step(self, batch: MacroBatch, batch_idx: int) -> None:
        """Let every agent act and learn for a few cycles.

        Raises:
            FloatingPointError: if an agent's losses are not finite.
            RuntimeError: if processes disagree about the objective.
        """
        optimizers = self.optimizers()
        critic_step = (optimizers[0] if isinstance(optimizers, list) else optimizers).step
        for draw in batch:
            self.agents.learn(draw, critic_step)
        self.metrics = self.learner.checked_metrics()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the agents, also those of other processes, their optimizers by name, and the run's config."""
        # A run is one epoch. If its last batch were remembered as such, Lightning would refuse to make the run longer on a resume.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        states = zip(self.learner.optimizers, checkpoint["optimizer_states"], strict=True)
        checkpoint[PROJECT_KEY] = {
            "format": FORMAT,
            "config": self.run_config,
            "environments": [spec.name for spec in self.agents.specs],
            "env_steps": self.agents.env_steps,
            "learner": self.learner.state_dict(),
            "optimizers": {name: self._gathered(state) if self._is_of_agents(name) else state for name, state in states},
        }
        checkpoint["optimizer_states"] = []  # by name above; Lightning's own list would be that of one process

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the agents of this process, and give Lightning their optimizers' states.

        Raises:
            CheckpointError: if the checkpoint was saved with other agents.
        """
        saved = checkpoint[PROJECT_KEY]
        self._check_agents(saved["environments"])
        self.learner.load_state_dict(saved["learner"])
        checkpoint["optimizer_states"] = [
            self._local(saved["optimizers"][name]) if self._is_of_agents(name) else saved["optimizers"][name]
            for name in self.learner.optimizers
        ]

    def _check_agents(self, saved: list[str]) -> None:
        ours = [spec.name for spec in self.agents.specs]
        if saved != ours:
            assert self.trainer.ckpt_path is not None  # Lightning loads from it
            raise CheckpointError(
                f"ckpt_path={Path(self.trainer.ckpt_path)}: saved with population.size={len(saved)} on "
                f"{', '.join(dict.fromkeys(saved))}, this run has population.size={len(ours)} on {', '.join(dict.fromkeys(ours))}"
            )

    @staticmethod
    def _is_of_agents(optimizer: str) -> bool:
        """Whether an optimizer holds one tensor for each agent of this process. The objective's is the same in all processes."""
        return optimizer != "objective"

    def _gathered(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """The state of an agents' optimizer, of all agents: one tensor [P, ...] for each quantity."""
        states = list(optimizer["state"].values())
        names = states[0] if states else ()
        gathered = {name: self.agents.placement.gather(torch.stack([state[name] for state in states])) for name in names}
        # New containers: the old ones belong to the optimizer itself.
        return {
            "state": {0: gathered} if states else {},
            "param_groups": [{**optimizer["param_groups"][0], "params": [0]}],
        }

    def _local(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """What `_gathered` gave, for the agents of this process: one state for each agent's tensor."""
        placement = self.agents.placement
        local = {name: placement.local_rows(value) for name, value in optimizer["state"].get(0, {}).items()}
        agents = range(len(placement.agents))
        return {
            "state": {i: {name: value[i] for name, value in local.items()} for i in agents} if local else {},
            "param_groups": [{**optimizer["param_groups"][0], "params": list(agents)}],
        }
