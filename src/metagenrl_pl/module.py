"""The Lightning face of learning: one macro batch is a few update cycles with manual optimization."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from metagenrl_pl.checkpoint_io import PROJECT_KEY
from metagenrl_pl.datamodule import MacroBatch
from metagenrl_pl.inner import InnerStep
from metagenrl_pl.learner import Learner, MetaSettings
from metagenrl_pl.objectives import Objective
from metagenrl_pl.population import AgentSettings, Population


class MetaGenRL(pl.LightningModule):
    """A population and the objective that it shares.

    One optimizer step per update cycle is tracked, the critics', so `trainer.global_step` counts update cycles. Agents are no
    submodules: the objective is all that processes would share.

    Args:
        sizes: observation and action size of each agent's environment.
        seeds: one for each agent.
        objective: what the policies descend.
        agent: settings of the agents.
        inner, meta: how the objective is meta-learned; None for a frozen objective or one with nothing to learn.
        compile: run the updates through `torch.compile`.
        run_config: kept in checkpoints, so that a checkpoint alone can rebuild its run; plain containers.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        objective: Objective,
        agent: AgentSettings,
        inner: InnerStep | None = None,
        meta: MetaSettings | None = None,
        compile: bool = False,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective = objective
        self.agent = agent
        self.learner = Learner(Population(sizes, seeds, agent), objective, agent, seeds, inner, meta, compile)
        self.run_config = dict(run_config or {})

    def setup(self, stage: str) -> None:
        """Move the population to the device of this process; Lightning moves the objective."""
        self.learner.to(self.trainer.strategy.root_device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Critics, policies and, in meta-training, the objective."""
        return self.learner.optimizers

    def training_step(self, batch: MacroBatch, batch_idx: int) -> None:
        """Let every agent act and learn for a few cycles."""
        optimizers = self.optimizers()
        critic_step = (optimizers[0] if isinstance(optimizers, list) else optimizers).step
        for collector in batch:
            if collector.num_collected >= self.agent.warmup_env_steps:
                self.learner.update(collector.draw, collector.env_steps, critic_step)
        self.learner.check_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the agents and the run's config."""
        # A run is one epoch. If its last batch were remembered as such, Lightning would refuse to make the run longer on a resume.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        checkpoint[PROJECT_KEY] = {"config": self.run_config, "learner": self.learner.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the agents.

        Raises:
            CheckpointError: if the checkpoint was saved with other agents.
        """
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        datamodule.check_agents(checkpoint[type(datamodule).__qualname__])  # Lightning restores the datamodule after the module
        self.learner.load_state_dict(checkpoint[PROJECT_KEY]["learner"])
