"""Policy and critic of a stacked population as pure functions of their parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters, StackedMLP
from metagenrl_pl.agents.windows import Windows


@dataclass(frozen=True)
class Networks:
    """Policy a = tanh(mlp(s)) and critic Q(s, a) = mlp([s, a]) of P agents.

    Observations and actions of smaller environments are zero-padded to common sizes. `action_mask` keeps padded action dimensions
    at exactly 0. So a padded agent computes the same as it would alone.
    """

    mlp: StackedMLP
    action_mask: Tensor  # [P, A], 1 for the agent's real action dimensions

    @property
    def action_weight(self) -> Tensor:
        """1 / (number of real action dimensions), 0 where padded, [P, A]."""
        return self.action_mask / self.action_mask.sum(-1, keepdim=True)

    def action(self, policy: Parameters, observation: Tensor) -> Tensor:
        """Deterministic actions in [-1, 1]: [P, ..., O] -> [P, ..., A]."""
        flat = observation.reshape(observation.shape[0], -1, observation.shape[-1])
        action = torch.tanh(self.mlp(policy, flat)) * self.action_mask.unsqueeze(1)
        return action.view(*observation.shape[:-1], -1)

    def q(self, critic: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """Q(s, a) with one critic per agent: [P, ..., O], [P, ..., A] -> [P, ...]."""
        inputs = torch.cat([observation, action], -1)
        flat = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        return self.mlp(critic, flat).view(inputs.shape[:-1])

    def ensemble_q(self, critics: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """Q(s, a) with each of E critics per agent (twins: E = 2): parameters [P, E, ...] -> values [P, E, ...]."""
        inputs = torch.cat([observation, action], -1)
        num_agents, num_inputs = inputs.shape[0], inputs.shape[-1]
        num_critics = next(iter(critics.values())).shape[1]
        flat = inputs.reshape(num_agents, 1, -1, num_inputs).expand(-1, num_critics, -1, -1).flatten(0, 1)  # [E P, N, O + A]
        values = self.mlp({name: p.flatten(0, 1) for name, p in critics.items()}, flat)
        return values.view(num_agents, num_critics, *inputs.shape[1:-1])


def first_critic(critics: Parameters) -> Parameters:
    """Parameters of the first twin critic (Q1) of every agent: [P, 2, ...] -> [P, ...]."""
    return {name: p[:, 0] for name, p in critics.items()}


def bootstrap_observation(windows: Windows) -> Tensor:
    """The state after each window's last valid step, [P, B, O]."""
    index = windows.length[..., None, None].expand(-1, -1, 1, windows.states.shape[-1])
    return windows.states.gather(2, index).squeeze(2)


def window_values(networks: Networks, policy: Parameters, critic: Parameters, windows: Windows, action: Tensor) -> Tensor:
    """V(s) = Q1(s, pi(s)) of the `length + 1` states of each window, and 0 after them, [P, B, T + 1].

    Args:
        networks, policy, critic, windows: of P agents.
        action: pi(s) in the first T states of the windows, which callers have already computed, [P, B, T, A].
    """
    last = bootstrap_observation(windows)
    bootstrap = networks.q(critic, last, networks.action(policy, last))  # [P, B]
    values = networks.q(critic, windows.observation, action) * windows.valid
    values = torch.cat([values, torch.zeros_like(values[..., :1])], -1)
    position = torch.arange(values.shape[-1], device=values.device)
    return torch.where(position == windows.length[..., None], bootstrap[..., None], values)
