"""Evolve the objective: agents with perturbed objectives live their lives, and their returns give the direction of the next step.

Another way to meta-learn, without gradients through critics, as in Evolved Policy Gradients (EPG, Houthooft et al. 2018). The
estimate is that of OpenAI's evolution strategies (Salimans et al. 2017).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.objectives import Objective


@dataclass(frozen=True)
class EvolutionSettings:
    """How the objective is evolved.

    Args:
        learning_rate: of Adam on the objective.
        noise: standard deviation of the perturbations of the objective's parameters.

    Raises:
        ValueError: if a value is not positive and finite.
    """

    learning_rate: float = 1e-2
    noise: float = 0.05

    def __post_init__(self) -> None:
        for name in ("learning_rate", "noise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")


class Evolution:
    """Perturbations of the objective for each generation, and the gradient that follows from the agents' returns.

    The agents of a generation are born and replaced at the same time. Within an environment they form pairs: both agents of a
    pair have the same noise with opposite signs (antithetic sampling). The noise follows from the seed, the generation and the
    pair alone. So every process can compute the noise of all agents, and nothing has to be saved.

    Args:
        settings: noise and learning rate.
        environments: name of each agent's environment, of all processes.
        generation_env_steps: length of a generation's lives.
        seed: of the noise.
        placement: which agents belong to this process.

    Attributes:
        pairs: the first agent of each agent's pair, [P].

    Raises:
        ValueError: if an environment has an odd number of agents.
    """

    def __init__(
        self,
        settings: EvolutionSettings,
        environments: Sequence[str],
        generation_env_steps: int,
        seed: int,
        placement: Placement,
    ) -> None:
        self.settings, self.generation_env_steps = settings, generation_env_steps
        self._seed, self._placement = seed, placement
        self._agents_in: dict[str, list[int]] = defaultdict(list)
        for agent, environment in enumerate(environments):
            self._agents_in[environment].append(agent)
        self.pairs, self._sign = list(range(len(environments))), [1.0] * len(environments)
        for environment, agents in self._agents_in.items():
            if len(agents) % 2:
                raise ValueError(
                    f"meta=evolution needs an even number of agents in each environment, {environment} has {len(agents)}"
                )
            for first, second in zip(agents[::2], agents[1::2], strict=True):
                self.pairs[second], self._sign[second] = first, -1.0

    def ends_at(self, env_steps: int) -> bool:
        """Whether a generation has lived its life at an env step."""
        return env_steps > 0 and env_steps % self.generation_env_steps == 0

    def perturbed(self, objective: Objective, generation: int) -> Parameters:
        """The objective's parameters of each agent of this process, [P, ...]."""
        of_agents = [self._noise_of(objective, generation, agent) for agent in self._placement.agents]
        return {
            name: p.detach() + self.settings.noise * torch.stack([noise[name] for noise in of_agents]).to(p)
            for name, p in objective.named_parameters()
        }

    def gradient(self, objective: Objective, generation: int, returns: Tensor) -> dict[str, Tensor]:
        """The gradient that the objective descends: minus the estimated gradient of the expected shaped return.

        Returns are replaced by their ranks within an environment, from -1/2 to 1/2, since scales differ between environments.

        Args:
            objective: whose parameters were perturbed.
            generation: of the perturbations.
            returns: of all agents of all processes, [P].
        """
        gradient = {name: torch.zeros_like(p) for name, p in objective.named_parameters()}
        scale = 1 / (len(self.pairs) * self.settings.noise)
        for agent, shaped in enumerate(self._shape(returns)):
            for name, noise in self._noise_of(objective, generation, agent).items():
                gradient[name] -= scale * shaped * noise.to(gradient[name])
        return gradient

    def _shape(self, returns: Tensor) -> list[float]:
        shaped = [0.0] * len(self.pairs)
        for agents in self._agents_in.values():
            of_agents = returns[agents].cpu()
            differences = of_agents[:, None] - of_agents
            ranks = (differences > 0).sum(1) + ((differences == 0).sum(1) - 1) / 2  # from 0; ties share the mean of theirs
            for agent, rank in zip(agents, ranks.tolist(), strict=True):
                shaped[agent] = rank / (len(agents) - 1) - 0.5
        return shaped

    def _noise_of(self, objective: Objective, generation: int, agent: int) -> dict[str, Tensor]:
        """Noise for an agent's parameters, of standard deviation 1, on the CPU."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "evolution", generation, self.pairs[agent]))
        sign = self._sign[agent]
        return {name: sign * torch.randn(p.shape, generator=generator) for name, p in objective.named_parameters()}
