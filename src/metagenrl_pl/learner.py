"""One cycle of updates for a population and its objective, in plain PyTorch: what meta-training and meta-testing share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from metagenrl_pl.batch import Windows
from metagenrl_pl.compiling import Compiled, Tell
from metagenrl_pl.inner import AdamMoments, InnerStep
from metagenrl_pl.lifetimes import Lifetimes
from metagenrl_pl.networks import second_critic
from metagenrl_pl.nn import Parameters, clip_per_agent, norm_per_agent
from metagenrl_pl.objectives import Objective, Reinforce
from metagenrl_pl.placement import Placement
from metagenrl_pl.population import AgentSettings, Population
from metagenrl_pl.streams import AgentStreams, sent
from metagenrl_pl.updates import (
    MetaTask,
    combine_meta_gradients,
    critic_gradients,
    meta_gradients,
    policy_and_meta_gradients,
    policy_gradients,
)
from metagenrl_pl.updates.policy import action_gradient_agreement

Draw = Callable[[int], Windows]


@dataclass(frozen=True)
class MetaSettings:
    """How the objective is meta-learned.

    Args:
        learning_rate: of Adam on the objective.
        gradient: whether each agent's gradient of the objective is clipped at norm 1 (the paper) or normalised to norm 1.
        annealing_env_steps: over how many env steps policies go over from the critic to the objective; 0 for at once.
        share_windows: whether, after the annealing, the policy step uses the inner step's windows and gradient, which saves the policy
            update; needs an inner loop of one SGD step.
        critic: what judges the policy after the inner step: the first critic (the paper), the second one, or the minimum of the twin
            critics or of their targets, which overestimate less; or the first critic of the agent of the same environment that has
            learned for longest, which knows more than a beginner's own. The objective's inputs are the agent's own first critic's in
            any case, so that the others do not share the errors that they come from.
        advantage_share: how much of the judgement is that of returns instead of a critic's: by how much the policy comes nearer to
            replayed actions whose generalised advantage is positive and away from others (the loss of off-policy REINFORCE). Both are
            scaled by their action gradients. 0 for the critic alone (the paper).
        advantage: what the returns' part of the judgement makes of advantages, see `Reinforce`.
        half_life_env_steps: of an agent's say: its weight in the mean of the agents' gradients halves with so many env steps of its life,
            so that beginners, which is all that the objective meets at meta-test time, count most. None for the same say at any age.
        updates_per_cycle: of the objective, each from windows of its own, for one policy step.
        average_decay: per update, of a moving average of the objective's parameters, which is what is exported and meta-tested; None for
            the newest parameters. Agents are taught by the newest ones in any case.

    Raises:
        ValueError: if a value is out of range.
    """

    learning_rate: float = 1e-3
    gradient: Literal["clip", "normalize"] = "clip"
    annealing_env_steps: int = 10_000
    share_windows: bool = False
    critic: Literal["first", "second", "twin_minimum", "target_minimum", "eldest"] = "first"
    advantage_share: float = 0.0
    advantage: Literal["signed", "positive", "indicator"] = "signed"
    half_life_env_steps: int | None = None
    updates_per_cycle: int = 1
    average_decay: float | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.gradient not in ("clip", "normalize"):
            raise ValueError(f"gradient must be clip or normalize, got {self.gradient!r}")
        if self.critic not in ("first", "second", "twin_minimum", "target_minimum", "eldest"):
            raise ValueError(f"critic must be first, second, twin_minimum, target_minimum or eldest, got {self.critic!r}")
        if not 0 <= self.advantage_share <= 1:
            raise ValueError(f"advantage_share must be between 0 and 1, got {self.advantage_share}")
        if self.advantage not in ("signed", "positive", "indicator"):
            raise ValueError(f"advantage must be signed, positive or indicator, got {self.advantage!r}")
        if self.half_life_env_steps is not None and self.half_life_env_steps < 1:
            raise ValueError(f"half_life_env_steps must be at least 1, or null, got {self.half_life_env_steps}")
        if self.updates_per_cycle < 1:
            raise ValueError(f"updates_per_cycle must be at least 1, got {self.updates_per_cycle}")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay must be between 0 and 1, or null, got {self.average_decay}")
        if self.annealing_env_steps < 0:
            raise ValueError(f"annealing_env_steps must not be negative, got {self.annealing_env_steps}")


class Learner:
    """Critics, policies and (in meta-training) the objective, with their optimizers.

    Args:
        population: the agents.
        objective: what their policies descend.
        settings: of the agents.
        seeds: one for each agent, for the noise on targets.
        inner, meta: how the objective is meta-learned; None keeps it frozen.
        compile: run the updates through `torch.compile`. Takes minutes, then each update is a few times faster.
        tell: told when something is compiled.
        placement: which of the agents that share the objective these are; all by default.
        lifetimes: of all agents that share the objective; a single one each by default.

    Raises:
        ValueError: if settings do not fit each other.
    """

    def __init__(
        self,
        population: Population,
        objective: Objective,
        settings: AgentSettings,
        seeds: Sequence[int],
        inner: InnerStep | None = None,
        meta: MetaSettings | None = None,
        compile: bool = False,
        placement: Placement | None = None,
        tell: Tell = lambda message: None,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self.placement = placement or Placement(population.num_agents)
        self._lifetimes = lifetimes or Lifetimes.single(self.placement.num_agents)
        self.population, self.objective, self.settings = population, objective, settings
        self.inner, self.meta = inner, meta if objective.learns and inner is not None else None
        if self.meta is not None and self.meta.share_windows and (inner is None or inner.num_steps > 1 or inner.needs_moments):
            raise ValueError(
                "meta.share_windows=true needs an inner loop of one step without moments; valid: inner=sgd, num_steps=1"
            )
        if self.meta is not None and self.meta.critic == "eldest" and not self._lifetimes.is_anybody_elder:
            raise ValueError(
                "meta.critic=eldest needs agents of different ages in an environment; valid is a number for "
                "population.lifetime_env_steps and a population.size above the number of environments, or another critic"
            )
        if self.meta is not None and self.meta.half_life_env_steps is not None and self._lifetimes.length is None:
            raise ValueError(
                f"meta.half_life_env_steps={self.meta.half_life_env_steps} needs agents of different ages; valid is a number for "
                "population.lifetime_env_steps, or null"
            )
        self.num_updates = 0
        self.metrics: dict[str, Tensor] = {}  # newest, one value per agent, [P]
        self._num_broken: Tensor | int = 0  # cycles in which an agent's critic loss was not finite, [P]
        self._streams = AgentStreams(seeds, "target noise")
        self.is_compiled, self._tell = compile, tell
        self._prepare_updates()
        self.critic_optimizer = _adam(population.rows["critics"], settings.critic_learning_rate)
        self.policy_optimizer = _adam(population.rows["policy"], settings.policy_learning_rate)
        self.objective_optimizer = _adam(objective.parameters(), self.meta.learning_rate) if self.meta else None
        decay = self.meta.average_decay if self.meta else None
        self._average = AveragedModel(objective, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay is not None else None

    @property
    def result(self) -> Objective:
        """What the objective has come to, for files and tests: the moving average of its parameters if there is one."""
        return self.objective if self._average is None else cast(Objective, self._average.module)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Critics, policies and, in meta-training, the objective."""
        every = [self.critic_optimizer, self.policy_optimizer, self.objective_optimizer]
        return [optimizer for optimizer in every if optimizer is not None]

    def _prepare_updates(self) -> None:
        def prepared(function: Callable[..., Any], name: str) -> Callable[..., Any]:
            return Compiled(function, name, self._tell, self.population.device) if self.is_compiled else function

        self._critic_gradients = prepared(critic_gradients, "critic update")
        self._policy_gradients = prepared(policy_gradients, "policy update")
        self._meta_gradients = prepared(meta_gradients, "meta update")
        self._policy_and_meta_gradients = prepared(policy_and_meta_gradients, "policy and meta update")

    def renew(self, agent: int, seed: int) -> None:
        """Put a fresh agent, with fresh optimizers, in the place of one (see `Lifetimes`)."""
        self.population.renew(agent, seed)
        for kind, optimizer in (("policy", self.policy_optimizer), ("critics", self.critic_optimizer)):
            for value in optimizer.state.get(self.population.rows[kind][agent], {}).values():
                value.zero_()  # moments and steps taken

    def update(self, draw: Draw, env_steps: int, critic_step: Callable[[], Any] | None = None) -> None:
        """One update cycle: critics; every `policy_delay` cycles also policies, targets and the objective, in this order.

        Args:
            draw: gives that many new windows of every agent.
            env_steps: taken by each agent so far, for the annealing.
            critic_step: steps the critics' optimizer, if somebody else has to see it.
        """
        self._update_critics(draw(self.settings.num_windows), critic_step or self.critic_optimizer.step)
        self._num_broken = self._num_broken + ~torch.isfinite(self.metrics["critic_loss"])
        if self.num_updates % self.settings.policy_delay == 0:
            share = self._objective_share(env_steps)
            num_left = self.meta.updates_per_cycle if self.meta is not None else 0
            if self.meta is not None and self.meta.share_windows and share is None:
                self._update_policies_and_objective(draw(2 * self.settings.num_windows), env_steps)
                num_left -= 1
            else:
                self._update_policies(draw(self.settings.num_windows), share)
                self._move_targets()
            for _ in range(num_left):
                assert self.inner is not None  # without one there is no meta
                self._update_objective(draw((self.inner.num_steps + 1) * self.settings.num_windows), env_steps)
        self.num_updates += 1

    def _update_critics(self, windows: Windows, step: Callable[[], Any]) -> None:
        population, settings = self.population, self.settings
        noise = settings.target_noise * self._streams.normal(*windows.action.shape[1:], sizes=population.action_sizes)
        noise = sent(noise.clamp(-settings.target_noise_clip, settings.target_noise_clip), population.device)
        gradients, loss = self._critic_gradients(
            population.networks,
            population.critics,
            population.target_policy,
            population.target_critics,
            windows,
            noise,
            settings.discount,
        )
        self.metrics["critic_loss"] = loss.clone()  # a CUDA graph writes the next one to the same place
        _set_gradients(population.rows["critics"], population.critics_layout.flatten(gradients))
        step()

    def _update_policies(self, windows: Windows, share: Tensor | None) -> None:
        population = self.population
        gradients = self._policy_gradients(
            population.networks,
            self.objective,
            self.objective.stacked_parameters(population.num_agents),
            population.policy,
            population.critics,
            windows,
            share,
        )
        self._step_policies(gradients)

    def _step_policies(self, gradients: Parameters) -> None:
        population = self.population
        flat = {"": population.policy_layout.flatten(gradients)}  # in one piece: fewer operations
        self.metrics["policy_gradient_norm"] = norm_per_agent(flat)
        _set_gradients(population.rows["policy"], clip_per_agent(flat, self.settings.policy_max_gradient_norm)[""])
        self.policy_optimizer.step()

    def _objective_share(self, env_steps: int) -> Tensor | None:
        """p of the annealing (paper section 3.3), a scalar; None once it is 1. Annealing belongs to meta-training alone."""
        if self.meta is None or env_steps >= self.meta.annealing_env_steps:
            return None
        return torch.full((), env_steps / self.meta.annealing_env_steps, device=self.population.device)

    def _move_targets(self) -> None:
        flat = self.population.flat
        for kind in ("policy", "critics"):
            flat[f"target_{kind}"].lerp_(flat[kind], self.settings.target_rate)

    def _update_objective(self, windows: Windows, env_steps: int) -> None:
        self._step_objective(env_steps, *self._meta_gradients(*self._meta_arguments(windows, env_steps)))

    def _update_policies_and_objective(self, windows: Windows, env_steps: int) -> None:
        """Both from the same gradients of the objective; the objective is judged by the policies before their step."""
        policy_gradients, *meta = self._policy_and_meta_gradients(*self._meta_arguments(windows, env_steps))
        self._step_policies(policy_gradients)
        self._move_targets()
        self._step_objective(env_steps, *meta)

    def _meta_arguments(self, windows: Windows, env_steps: int) -> tuple[Any, ...]:
        assert self.inner is not None and self.meta is not None
        population = self.population
        moments = self._policy_moments() if self.inner.needs_moments else None
        share = self.meta.advantage_share
        advantage = Reinforce(self.settings.discount, advantage=self.meta.advantage) if share > 0 else None
        judges = self._judges(env_steps)
        task = MetaTask(population.policy, population.critics, windows, moments, judges, advantage, share)
        return population.networks, self.objective, self.inner, self.objective.stacked_parameters(population.num_agents), task

    def _judges(self, env_steps: int) -> Parameters | None:
        """The critics that judge in place of the first one, [P, E, ...]."""
        assert self.meta is not None
        population = self.population
        if self.meta.critic == "eldest":
            index = torch.from_numpy(self._lifetimes.eldest(env_steps))
            every = self.placement.gather(population.flat["critics"][:, :1])
            return population.critics_layout.views(every[sent(self.placement.slice(index), population.device)])
        return {
            "first": None,
            "second": second_critic(population.critics),
            "twin_minimum": population.critics,
            "target_minimum": population.target_critics,
        }[self.meta.critic]

    def _step_objective(self, env_steps: int, gradients: Parameters, loss: Tensor) -> None:
        assert self.meta is not None and self.objective_optimizer is not None
        weight = None
        if self.meta.half_life_env_steps is not None:
            age = self._lifetimes.age_of_networks(env_steps)
            older = torch.from_numpy(age - age.min())  # than the youngest: a weight of 0 for all would be no mean
            weight = sent(torch.exp2(-older / self.meta.half_life_env_steps), self.population.device)
        self.metrics["meta_loss"] = loss.clone()  # as above
        combined, self.metrics["meta_gradient_norm"] = combine_meta_gradients(
            gradients, self.meta.gradient, self.placement.gather, weight
        )
        for name, p in self.objective.named_parameters():
            p.grad = combined[name]
        self.objective_optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self.objective)

    def _policy_moments(self) -> AdamMoments:
        """What the policies' optimizer remembers; every policy has been stepped before the objective is."""
        states, views = (
            [self.policy_optimizer.state[row] for row in self.population.rows["policy"]],
            self.population.policy_layout.views,
        )
        first, second, num_steps = (torch.stack([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq", "step"))
        return AdamMoments(views(first), views(second), num_steps)

    def agreement(self, windows: Windows) -> Tensor:
        """Cosine of the objective's action gradient with -dQ1/da, [P]."""
        population = self.population
        alpha = self.objective.stacked_parameters(population.num_agents)
        return action_gradient_agreement(
            population.networks, self.objective, alpha, population.policy, population.critics, windows
        )

    def checked_metrics(self) -> dict[str, np.ndarray]:
        """The newest metrics of all agents, also those of other processes, on the host, [P] each.

        Raises:
            FloatingPointError: if one of them is not finite; names the agent and the quantity. The agent is the one that broke first:
                by way of the objective it breaks the others within a few cycles.
            RuntimeError: if processes disagree about the objective. They compute it from the same numbers, so this is a fault.
        """
        if not self.metrics:
            return {}
        columns = torch.stack([*self.metrics.values(), torch.as_tensor(self._num_broken, device=self.population.device)], 1)
        rows = self.placement.gather(columns.float()).cpu().numpy()
        metrics = dict(zip(self.metrics, rows.T, strict=False))
        for name, values in metrics.items():
            is_broken = ~np.isfinite(values)
            if is_broken.any():
                agent = int((is_broken * (1 + rows[:, -1])).argmax())
                raise FloatingPointError(f"{name} of agent {agent} is {values[agent]} after {self.num_updates} updates")
        if len(set(self.placement.from_all(self._objective_checksum()))) > 1:
            raise RuntimeError(f"processes disagree about the objective after {self.num_updates} updates")
        return metrics

    def _objective_checksum(self) -> int:
        """The sum of the parameters' bits; nothing to compute for a single process."""
        if self.placement.world_size == 1:
            return 0
        bits = [p.detach().view(torch.int32).sum(dtype=torch.int64) for p in self.objective.parameters()]
        return int(sum(bits, torch.zeros((), dtype=torch.int64)))

    def to(self, device: torch.device) -> None:
        """Move population and objective to a device; before any optimizer has a state."""
        self.population.to(device)
        self.objective.to(device)
        if self._average is not None:
            self._average.to(device)
        self._prepare_updates()

    def state_dict(self) -> dict[str, Any]:
        """All agents (gathered), counter, random streams, moving average; the objective and the optimizers are kept by their owner."""
        population = self.population.state_dict()
        return {
            "population": {
                kind: {name: self.placement.gather(p) for name, p in parameters.items()}
                for kind, parameters in population.items()
            },
            "num_updates": self.num_updates,
            "streams": self.placement.gather_list(self._streams.state_dict()),
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, also in another number of processes."""
        self.population.load_state_dict(
            {
                kind: {name: self.placement.slice(p) for name, p in parameters.items()}
                for kind, parameters in state["population"].items()
            }
        )
        self.num_updates = state["num_updates"]
        self._streams.load_state_dict(self.placement.mine(state["streams"]))
        if self._average is not None:
            self._average.load_state_dict(state["average"])


def _set_gradients(rows: Sequence[Tensor], gradients: Tensor) -> None:
    for row, gradient in zip(rows, gradients.unbind(), strict=True):
        row.grad = gradient


def _adam(parameters: Any, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), learning_rate, fused=True)
