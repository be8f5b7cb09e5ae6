"""The update cycle of a population and its objective, in plain PyTorch: what meta-training and meta-testing share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.stacked_networks import clip_per_agent, norm_per_agent
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.common.streams import AgentStreams, to_device
from metagenrl_pl.learning.compiling import Compiled, Notify, ignore
from metagenrl_pl.learning.critic_update import critic_gradients
from metagenrl_pl.learning.inner_step import AdamMoments
from metagenrl_pl.learning.meta_update import MetaTask, combine_meta_gradients, meta_gradients
from metagenrl_pl.learning.metrics import AgentMetrics, check_agreement
from metagenrl_pl.learning.policy_update import action_gradient_agreement, policy_gradients
from metagenrl_pl.learning.settings import MetaLearning
from metagenrl_pl.objectives import Objective

Draw = Callable[[int], Windows]
"""Gives that many new windows of every agent."""


class Learner:
    """Critics, policies and (in meta-training) the objective, with their optimizers.

    The functions that compute gradients are attributes, `critic_gradients`, `policy_gradients` and `meta_gradients`: the plain ones, or
    compiled.

    Args:
        population: the agents.
        objective: what their policies descend.
        settings: of the agents.
        seeds: one for each agent, for the noise on targets.
        meta: how the objective is meta-learned; None keeps it frozen, and so does an objective without parameters to learn.
        placement: which of the agents that share the objective these are; all by default.
        compile: run the updates through `torch.compile`. Takes minutes, then each update is a few times faster.
        notify: called with a line when something is compiled.
    """

    def __init__(
        self,
        population: Population,
        objective: Objective,
        settings: AgentSettings,
        seeds: Sequence[int],
        meta: MetaLearning | None = None,
        placement: Placement | None = None,
        compile: bool = False,
        notify: Notify = ignore,
    ) -> None:
        self.population, self.objective, self.settings = population, objective, settings
        self.meta = meta if objective.learns else None
        self.placement = placement or Placement(population.num_agents)
        self.num_updates = 0
        self.metrics = AgentMetrics(self.placement)
        self._streams = AgentStreams(seeds, "target noise")
        self.is_compiled, self._notify = compile, notify
        self._choose_functions()
        self.critic_optimizer = _adam(population.rows["critics"], settings.critic_learning_rate)
        self.policy_optimizer = _adam(population.rows["policy"], settings.policy_learning_rate)
        self.objective_optimizer = _adam(objective.parameters(), self.meta.settings.learning_rate) if self.meta else None

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name: critics, policy and, in meta-training, objective."""
        optimizers: dict[str, torch.optim.Optimizer] = {"critics": self.critic_optimizer, "policy": self.policy_optimizer}
        return optimizers if self.objective_optimizer is None else {**optimizers, "objective": self.objective_optimizer}

    def update(self, draw: Draw, env_steps: int, critic_step: Callable[[], Any] | None = None) -> None:
        """One update cycle: critics; every `policy_delay` cycles also policies, targets and the objective, in this order.

        Args:
            draw: gives that many new windows of every agent.
            env_steps: taken by each agent so far, for the annealing.
            critic_step: steps the critics' optimizer, if somebody else has to see it.
        """
        num_windows = self.settings.num_windows
        self.update_critics(draw(num_windows), critic_step)
        if self.num_updates % self.settings.policy_delay == 0:
            self.update_policies(draw(num_windows), self._objective_share(env_steps))
            self._move_targets()
            if self.meta is not None:
                self.update_objective(draw((self.meta.inner.num_steps + 1) * num_windows))
        self.num_updates += 1

    def update_critics(self, windows: Windows, step: Callable[[], Any] | None = None) -> None:
        """Step both critics of every agent towards their targets (paper eq. 3); `step` as in `update`."""
        population, settings = self.population, self.settings
        noise = settings.target_noise * self._streams.normal(*windows.action.shape[1:], sizes=population.action_sizes)
        noise = to_device(noise.clamp(-settings.target_noise_clip, settings.target_noise_clip), population.device)
        gradients, loss = self.critic_gradients(
            population.networks,
            population.critics,
            population.target_policy,
            population.target_critics,
            windows,
            noise,
            settings.discount,
        )
        self.metrics.record("critic_loss", loss.clone())  # a CUDA graph writes the next one to the same place
        self.metrics.count_broken()
        _set_gradients(population.rows["critics"], population.critics_layout.flatten(gradients))
        (step or self.critic_optimizer.step)()

    def update_policies(self, windows: Windows, objective_share: Tensor | None = None) -> None:
        """Step every policy down the objective, or down its mixture with -Q while that is annealed (paper eq. 4, section 3.3)."""
        population = self.population
        gradients = self.policy_gradients(
            population.networks,
            self.objective,
            self.objective.stacked_parameters(population.num_agents),
            population.policy,
            population.critics,
            windows,
            objective_share,
        )
        self.metrics.record("policy_gradient_norm", norm_per_agent(gradients))
        clipped = clip_per_agent(gradients, self.settings.policy_max_gradient_norm)
        _set_gradients(population.rows["policy"], population.policy_layout.flatten(clipped))
        self.policy_optimizer.step()

    def update_objective(self, windows: Windows) -> None:
        """Step the objective down the mean of the agents' meta-gradients (paper eq. 5 and 6).

        Args:
            windows: of every agent, as many as `MetaTask` says.
        """
        assert self.meta is not None and self.objective_optimizer is not None
        population, (inner, judge, settings) = self.population, self.meta
        moments = self._policy_moments() if inner.needs_moments else None
        task = MetaTask(population.policy, population.critics, windows, moments)
        alpha = self.objective.stacked_parameters(population.num_agents)
        gradients, loss = self.meta_gradients(population.networks, self.objective, inner, judge, alpha, task)
        combined, norm = combine_meta_gradients(gradients, settings.gradient, self.placement.gather)
        self.metrics.record("meta_loss", loss.clone())  # as above
        self.metrics.record("meta_gradient_norm", norm)
        for name, p in self.objective.named_parameters():
            p.grad = combined[name]
        self.objective_optimizer.step()

    def _objective_share(self, env_steps: int) -> Tensor | None:
        """p of the annealing (paper section 3.3), a scalar; None once it is 1. Annealing belongs to meta-training alone."""
        if self.meta is None or env_steps >= self.meta.settings.annealing_env_steps:
            return None
        return torch.full((), env_steps / self.meta.settings.annealing_env_steps, device=self.population.device)

    def _move_targets(self) -> None:
        flat = self.population.flat
        for kind in ("policy", "critics"):
            flat[f"target_{kind}"].lerp_(flat[kind], self.settings.target_rate)

    def _policy_moments(self) -> AdamMoments:
        """What the policies' optimizer remembers; every policy has been stepped before the objective is."""
        states = [self.policy_optimizer.state[row] for row in self.population.rows["policy"]]
        first, second, num_steps = (torch.stack([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq", "step"))
        views = self.population.policy_layout.views
        return AdamMoments(views(first), views(second), num_steps)

    def _choose_functions(self) -> None:
        def prepare(function: Callable[..., Any], name: str) -> Callable[..., Any]:
            return Compiled(function, name, self._notify, self.population.device) if self.is_compiled else function

        self.critic_gradients = prepare(critic_gradients, "critic update")
        self.policy_gradients = prepare(policy_gradients, "policy update")
        self.meta_gradients = prepare(meta_gradients, "meta update")

    def renew(self, agent: int, seed: int) -> None:
        """Replace an agent by a fresh one with fresh optimizers (see `Lifetimes`)."""
        self.population.renew(agent, seed)
        for kind, optimizer in (("policy", self.policy_optimizer), ("critics", self.critic_optimizer)):
            for value in optimizer.state.get(self.population.rows[kind][agent], {}).values():
                value.zero_()  # moments and steps taken

    def agreement(self, windows: Windows) -> Tensor:
        """Cosine of the objective's action gradient with -dQ1/da, [P]."""
        population = self.population
        alpha = self.objective.stacked_parameters(population.num_agents)
        return action_gradient_agreement(
            population.networks, self.objective, alpha, population.policy, population.critics, windows
        )

    def checked_metrics(self) -> dict[str, np.ndarray]:
        """The newest metrics of all agents, [P] each; every process has to call it.

        Raises:
            FloatingPointError: if one of them is not finite; names the agent and the quantity.
            RuntimeError: if processes disagree about the objective.
        """
        metrics = self.metrics.gather(self.num_updates)
        check_agreement(self.objective, self.placement, self.num_updates)
        return metrics

    def to(self, device: torch.device) -> None:
        """Move population and objective to a device; before any optimizer has a state."""
        self.population.to(device)
        self.objective.to(device)
        self._choose_functions()

    def state_dict(self) -> dict[str, Any]:
        """All agents (gathered), counter and random streams. The objective and the optimizers are kept by their owner."""
        population = self.population.state_dict()
        return {
            "population": {
                kind: {name: self.placement.gather(p) for name, p in parameters.items()}
                for kind, parameters in population.items()
            },
            "num_updates": self.num_updates,
            "streams": self.placement.gather_list(self._streams.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, also in another number of processes."""
        self.population.load_state_dict(
            {
                kind: {name: self.placement.local_rows(p) for name, p in parameters.items()}
                for kind, parameters in state["population"].items()
            }
        )
        self.num_updates = state["num_updates"]
        self._streams.load_state_dict(self.placement.local(state["streams"]))


def _set_gradients(rows: Sequence[Tensor], gradients: Tensor) -> None:
    for row, gradient in zip(rows, gradients.unbind(), strict=True):
        row.grad = gradient


def _adam(parameters: Any, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), learning_rate, fused=True)
