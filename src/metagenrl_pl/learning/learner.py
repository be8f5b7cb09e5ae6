"""The update cycle of a population and its objective in plain PyTorch, for meta-training and meta-testing."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.stacked_networks import Parameters, clip_per_agent, norm_per_agent
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.common.messages import read_count
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.common.streams import AgentStreams, to_device
from metagenrl_pl.learning.compiling import Compiled, Notify, ignore
from metagenrl_pl.learning.critic_update import critic_gradients
from metagenrl_pl.learning.evolution import Evolution
from metagenrl_pl.learning.inner_step import AdamMoments
from metagenrl_pl.learning.meta_update import MetaTask, combine_meta_gradients, meta_gradients
from metagenrl_pl.learning.metrics import AgentMetrics, check_agreement
from metagenrl_pl.learning.policy_update import policy_gradients
from metagenrl_pl.learning.settings import MetaLearning
from metagenrl_pl.objectives import Objective

Draw = Callable[[int], Windows]
"""Draws this number of new windows of every agent."""


class Learner:
    """Critics, policies and (in meta-training) the objective, with their optimizers.

    The attributes `critic_gradients`, `policy_gradients` and `meta_gradients` are the functions that compute gradients, compiled
    or not.

    Args:
        population: the agents of this process.
        objective: that the policies descend.
        settings: of the agents.
        seeds: one for each agent, for the noise on target actions.
        meta: how the objective is meta-learned, by gradients or by evolution; None keeps it frozen. An objective without trainable
            parameters is always frozen.
        placement: which agents of all processes these are; all by default.
        compile: whether updates are compiled by `torch.compile`. This takes a minute or two, then saves about half of the time.
        notify: called with a message when something is compiled.
    """

    def __init__(
        self,
        population: Population,
        objective: Objective,
        settings: AgentSettings,
        seeds: Sequence[int],
        meta: MetaLearning | Evolution | None = None,
        placement: Placement | None = None,
        compile: bool = False,
        notify: Notify = ignore,
    ) -> None:
        self.population, self.objective, self.settings = population, objective, settings
        learning = meta if objective.learns else None
        self.meta = learning if isinstance(learning, MetaLearning) else None
        self.evolution = learning if isinstance(learning, Evolution) else None
        self.placement = placement or Placement(population.num_agents)
        self.num_updates = 0
        self.metrics = AgentMetrics(self.placement)
        self._streams = AgentStreams(seeds, "target noise")
        self.is_compiled, self._notify = compile, notify
        self._choose_functions()
        self.critic_optimizer = _adam(population.rows["critics"], settings.critic_learning_rate)
        self.policy_optimizer = _adam(population.rows["policy"], settings.policy_learning_rate)
        self.objective_optimizer = _adam(objective.parameters(), learning.settings.learning_rate) if learning else None
        self._generation = 0
        self._copies: Parameters | None = None  # made at first use, [P, ...]; None again when the objective changes

    @property
    def is_meta_training(self) -> bool:
        """Whether the objective changes."""
        return self.objective_optimizer is not None

    @property
    def alpha(self) -> Parameters:
        """The objective's parameters of each agent, [P, ...].

        While gradients meta-train the objective, all agents share it. Otherwise they have copies: perturbed ones in evolution, those
        given by `give_objectives`, or equal ones of a frozen objective.
        """
        if self.meta is not None:
            return self.objective.stacked_parameters(self.population.num_agents)
        if self._copies is None and self.evolution is not None:
            self._copies = self.evolution.perturbed(self.objective, self._generation)
        elif self._copies is None:
            self.give_objectives([self.objective] * self.population.num_agents)
        assert self._copies is not None
        return self._copies

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name: critics, policy and, in meta-training, objective."""
        optimizers: dict[str, torch.optim.Optimizer] = {"critics": self.critic_optimizer, "policy": self.policy_optimizer}
        return optimizers if self.objective_optimizer is None else {**optimizers, "objective": self.objective_optimizer}

    def give_objectives(self, objectives: Sequence[Objective]) -> None:
        """Let every agent of this process descend an objective of its own, frozen. All are of the kind of `objective`."""
        of_agents = [dict(objective.named_parameters()) for objective in objectives]
        device = self.population.device  # objectives may be on others
        self._copies = {name: torch.stack([p[name].detach().to(device) for p in of_agents]) for name in of_agents[0]}

    def update(self, draw: Draw, env_steps: int, critic_step: Callable[[], Any] | None = None) -> None:
        """One update cycle.

        It updates the critics, and every `policy_delay` cycles also policies, targets and objective, in this order.

        Args:
            draw: draws this number of new windows of every agent.
            env_steps: that each agent has taken so far, for the annealing.
            critic_step: called instead of the critics' `optimizer.step`. Lightning counts its calls.
        """
        num_windows = self.settings.num_windows
        self.update_critics(draw(num_windows), critic_step)
        if self.num_updates % self.settings.policy_delay == 0:
            self.update_policies(draw(num_windows), self._objective_share(env_steps))
            self.population.move_targets(self.settings.target_rate)
            if self.meta is not None:
                self.update_objective(draw((self.meta.inner.num_steps + 1) * num_windows))
        self.metrics.count_broken()
        self.num_updates += 1

    def update_critics(self, windows: Windows, step: Callable[[], Any] | None = None) -> None:
        """Step both critics of every agent towards their targets (paper eq. 3). `step` is called instead of `optimizer.step`."""
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
        self.metrics.record("critic_loss", loss.clone())  # clone: a CUDA graph writes the next loss to the same memory
        _set_gradients(population.rows["critics"], population.critics_layout.flatten(gradients))
        (step or self.critic_optimizer.step)()

    def update_policies(self, windows: Windows, objective_share: Tensor | None = None) -> None:
        """Step every policy down the objective, or during annealing down a mixture of it and -Q (paper eq. 4, section 3.3)."""
        population = self.population
        gradients = self.policy_gradients(
            population.networks,
            self.objective,
            self.alpha,
            population.policy,
            population.critics,
            windows,
            objective_share,
            self.settings.saturation_penalty,
        )
        flat = {"": population.policy_layout.flatten(gradients)}  # in one piece: fewer operations
        self.metrics.record("policy_gradient_norm", norm_per_agent(flat))
        _set_gradients(population.rows["policy"], clip_per_agent(flat, self.settings.policy_max_gradient_norm)[""])
        self.policy_optimizer.step()

    def update_objective(self, windows: Windows) -> None:
        """Step the objective down the mean of the agents' meta-gradients (paper eq. 5 and 6).

        Args:
            windows: (K + 1) B windows of every agent, as in `MetaTask`.
        """
        assert self.meta is not None and self.objective_optimizer is not None
        gradients, loss = self.gradients_of_objective(windows)
        combined, norm = combine_meta_gradients(gradients, self.meta.settings.gradient, self.placement.gather)
        self.metrics.record("meta_loss", loss.clone())  # clone as above
        self.metrics.record("meta_gradient_norm", norm)
        for name, p in self.objective.named_parameters():
            p.grad = combined[name]
        self.objective_optimizer.step()

    def gradients_of_objective(self, windows: Windows) -> tuple[Parameters, Tensor]:
        """Each agent's gradient of the objective, [P, ...], and its meta-loss, [P]; windows as in `update_objective`."""
        assert self.meta is not None
        population, (inner, judge, _) = self.population, self.meta
        moments = self._policy_moments() if inner.needs_moments else None
        task = MetaTask(population.policy, population.critics, windows, moments)
        gradients: tuple[Parameters, Tensor] = self.meta_gradients(
            population.networks, self.objective, inner, judge, self.alpha, task
        )
        return gradients

    def end_generation(self, returns: Sequence[float]) -> None:
        """Evolution: step the objective along the estimate of this generation, and perturb it anew for the next.

        Args:
            returns: of this process's agents, [P].
        """
        assert self.evolution is not None and self.objective_optimizer is not None
        every = torch.tensor(self.placement.gather_list(list(returns)), dtype=torch.float64)
        gradient = self.evolution.gradient(self.objective, self._generation, every)
        for name, p in self.objective.named_parameters():
            p.grad = gradient[name]
        self.objective_optimizer.step()
        self._generation, self._copies = self._generation + 1, None

    def _objective_share(self, env_steps: int) -> Tensor | None:
        """The objective's share p during annealing (paper section 3.3), a scalar.

        None outside meta-training. Once the share is 1, None as well, unless dQ/da is among the objective's inputs: then a share of 1
        costs nothing, and None would make torch compile the policy update a second time.
        """
        if self.meta is None or not (length := self.meta.settings.annealing_env_steps):
            return None
        has_slope = self.objective.needs_critic_gradient and self.objective.critic_gradient_of == "first"
        if env_steps >= length and not has_slope:
            return None
        return torch.full((), min(env_steps / length, 1.0), device=self.population.device)

    def _policy_moments(self) -> AdamMoments:
        """The moments of the policies' optimizer. They exist, since `update` steps the policies before the objective."""
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
                value.zero_()  # moments and number of steps

    def checked_metrics(self) -> dict[str, np.ndarray]:
        """The newest metrics of all agents, [P] each. Every process has to call it.

        Raises:
            FloatingPointError: if a metric is not finite. The message names the agent and the metric.
            RuntimeError: if the objectives of different processes differ.
        """
        metrics = self.metrics.gather(self.num_updates)
        check_agreement(self.objective, self.placement, self.num_updates)
        return metrics

    def to(self, device: torch.device) -> None:
        """Move population and objective to a device. Call it before any update, since optimizer states are not moved.

        A frozen objective is copied there, since its owner may use it elsewhere.
        """
        self.population.to(device)
        is_there = all(tensor.device == device for tensor in (*self.objective.parameters(), *self.objective.buffers()))
        if not is_there and not self.is_meta_training:
            self.objective = copy.deepcopy(self.objective)
        self.objective.to(device)
        self._choose_functions()

    def state_dict(self) -> dict[str, Any]:
        """Networks and random streams of all agents, gathered, and the counter. The Lightning module saves the rest."""
        population = self.population.state_dict()
        return {
            "population": {
                kind: {name: self.placement.gather(p) for name, p in parameters.items()}
                for kind, parameters in population.items()
            },
            "num_updates": self.num_updates,
            "generation": self._generation,
            "streams": self.placement.gather_list(self._streams.state_dict()),
            # The newest ones are logged until newer ones come.
            "metrics": {name: self.placement.gather(values) for name, values in self.metrics.newest.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`, also with another number of processes.

        Raises:
            ValueError: if it was saved with other agents.
        """
        lengths = {len(p) for parameters in state["population"].values() for p in parameters.values()} | {len(state["streams"])}
        if lengths != {self.placement.num_agents}:
            raise ValueError(f"it has {', '.join(map(str, sorted(lengths)))} agents, not {self.placement.num_agents}")
        self.population.load_state_dict(
            {
                kind: {name: self.placement.local_rows(p) for name, p in parameters.items()}
                for kind, parameters in state["population"].items()
            }
        )
        self.num_updates, self._generation = read_count(state, "num_updates"), read_count(state, "generation")
        self._copies = None
        self._streams.load_state_dict(self.placement.local(state["streams"]))
        for name, values in state.get("metrics", {}).items():
            self.metrics.record(name, self.placement.local_rows(values).to(self.population.device))


def _set_gradients(rows: Sequence[Tensor], gradients: Tensor) -> None:
    for row, gradient in zip(rows, gradients.unbind(), strict=True):
        row.grad = gradient


def _adam(parameters: Any, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), learning_rate, fused=True)
