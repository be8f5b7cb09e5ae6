"""The Lightning face of learning: one macro batch is a few update cycles with manual optimization."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.windows import widest
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.learning.compiling import Notify
from metagenrl_pl.learning.inner_step import InnerStep
from metagenrl_pl.learning.learner import Learner, MetaSettings
from metagenrl_pl.objectives import Objective
from metagenrl_pl.training.checkpoint_io import FORMAT, PROJECT_KEY
from metagenrl_pl.training.datamodule import MacroBatch


class MetaGenRL(pl.LightningModule):
    """A population and the objective that it shares.

    One optimizer step per update cycle is tracked, the critics', so `trainer.global_step` counts update cycles. Agents are no
    submodules: the objective is all that processes share.

    Args:
        sizes: observation and action size of each agent's environment; of all agents, also those of other processes.
        seeds: one for each agent.
        objective: what the policies descend.
        agent: settings of the agents.
        inner, meta: how the objective is meta-learned; None for a frozen objective or one with nothing to learn.
        compile: run the updates through `torch.compile`.
        run_config: kept in checkpoints, so that a checkpoint alone can rebuild its run; plain containers.
        placement: which agents live in this process; all by default.
        notify: told when something is compiled.
        lifetimes: when agents are born again, of all agents; never by default.
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
        placement: Placement | None = None,
        notify: Notify = lambda message: None,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective = objective
        self.agent = agent
        self.placement = placement or Placement(len(sizes))
        my_seeds = self.placement.local(seeds)
        population = Population(self.placement.local(sizes), my_seeds, agent, widest(sizes))
        self.learner = Learner(population, objective, agent, my_seeds, inner, meta, compile, self.placement, notify, lifetimes)
        self.run_config = dict(run_config or {})
        self.metrics: dict[str, np.ndarray] = {}  # of all agents after the newest macro batch, [P]

    def setup(self, stage: str) -> None:
        """Move the population to the device of this process; Lightning moves the objective."""
        self.learner.to(self.trainer.strategy.root_device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Critics, policies and, in meta-training, the objective."""
        return self.learner.optimizers

    def training_step(self, batch: MacroBatch, batch_idx: int) -> None:
        """Let every agent act and learn for a few cycles.

        Raises:
            FloatingPointError: if an agent's losses are not finite.
            RuntimeError: if processes disagree about the objective.
        """
        optimizers = self.optimizers()
        critic_step = (optimizers[0] if isinstance(optimizers, list) else optimizers).step
        for collector in batch:
            if collector.num_collected >= self.agent.warmup_env_steps:
                self.learner.update(collector.draw, collector.env_steps, critic_step)
        self.metrics = self.learner.checked_metrics()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the agents, also those of other processes, and the run's config."""
        # A run is one epoch. If its last batch were remembered as such, Lightning would refuse to make the run longer on a resume.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        checkpoint[PROJECT_KEY] = {"format": FORMAT, "config": self.run_config, "learner": self.learner.state_dict()}
        self._gather_agent_moments(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the agents of this process.

        Raises:
            CheckpointError: if the checkpoint was saved with other agents.
        """
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        datamodule.check_agents(checkpoint[type(datamodule).__qualname__])  # Lightning restores the datamodule after the module
        self.learner.load_state_dict(checkpoint[PROJECT_KEY]["learner"])
        self._spread_agent_moments(checkpoint)

    def _gather_agent_moments(self, checkpoint: dict[str, Any]) -> None:
        """Of critics and policies, whose optimizers hold one tensor for each agent: all agents' states in one, [P, ...]."""
        for optimizer in checkpoint["optimizer_states"][:2]:  # the third is the objective's, the same in all processes
            states = list(optimizer["state"].values())
            names = states[0] if states else ()
            gathered = {name: self.placement.gather(torch.stack([state[name] for state in states])) for name in names}
            optimizer["state"] = {0: gathered} if states else {}  # new containers: the old belong to the optimizer itself
            optimizer["param_groups"] = [{**optimizer["param_groups"][0], "params": [0]}]

    def _spread_agent_moments(self, checkpoint: dict[str, Any]) -> None:
        """Undo it for the agents of this process."""
        num_agents = len(self.placement.agents)
        for optimizer in checkpoint["optimizer_states"][:2]:
            state = optimizer["state"].get(0, {})
            mine = {name: self.placement.local_rows(value) for name, value in state.items()}
            optimizer["state"] = {i: {name: value[i] for name, value in mine.items()} for i in range(num_agents)} if mine else {}
            optimizer["param_groups"] = [{**optimizer["param_groups"][0], "params": list(range(num_agents))}]
