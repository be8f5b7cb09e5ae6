"""Policy and critic of a stacked population as pure functions of their parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters, StackedMLP
from metagenrl_pl.agents.traced_mlp import TracedMLP
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
        action = torch.tanh(TracedMLP(self.mlp, policy).forward(flat)) * self.action_mask.unsqueeze(1)
        return action.view(*observation.shape[:-1], -1)

    def q(self, critic: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """Q(s, a) with one critic per agent: [P, ..., O], [P, ..., A] -> [P, ...]."""
        return self.ensemble_q({name: p.unsqueeze(1) for name, p in critic.items()}, observation, action).squeeze(1)

    def ensemble_q(self, critics: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """Q(s, a) with each of E critics per agent (twins: E = 2): parameters [P, E, ...] -> values [P, E, ...]."""
        return TracedCritics(self, critics, observation, action).value


class TracedPolicy:
    """pi(s) of some states, with derivatives written out by hand (see `layers`): J = d pi / d phi and its transpose.

    Args:
        networks, policy: of P agents.
        observation: [P, ..., O].
    """

    def __init__(self, networks: Networks, policy: Parameters, observation: Tensor) -> None:
        self._mlp, mask = TracedMLP(networks.mlp, policy), networks.action_mask.unsqueeze(1)
        preactivation = self._mlp.forward(observation.flatten(1, -2)) * mask
        flat = torch.tanh(preactivation)
        self._slope = mask - flat * flat  # of tanh; 0 where padded
        self.action = flat.view(*observation.shape[:-1], -1)  # [P, ..., A]
        self.preactivation = preactivation.view_as(self.action)  # of tanh

    def pull_back(self, daction: Tensor, dpreactivation: Tensor | None = None) -> Parameters:
        """J^T da: the gradient in the parameters, [P, ...], from that in the actions and, if given, in what tanh is applied to."""
        dflat = daction.flatten(1, -2) * self._slope
        return self._mlp.backward_to_parameters(dflat if dpreactivation is None else dflat + dpreactivation.flatten(1, -2))

    def push_forward(self, direction: Parameters) -> Tensor:
        """J phi': how actions change along a direction of the parameters, [P, ..., A]."""
        return (self._mlp.tangent_of_parameters(direction) * self._slope).view_as(self.action)


class TracedCritics:
    """Q(s, a) under E critics per agent, with first derivatives written out by hand (see `layers`).

    Args:
        networks: of P agents.
        critics: [P, E, ...].
        observation, action: [P, ..., O] and [P, ..., A].
    """

    def __init__(self, networks: Networks, critics: Parameters, observation: Tensor, action: Tensor) -> None:
        self._mask, self._num_critics = networks.action_mask, next(iter(critics.values())).shape[1]
        self._mlp = TracedMLP(networks.mlp, {name: p.flatten(0, 1) for name, p in critics.items()})
        inputs = torch.cat([observation, action], -1).flatten(1, -2)
        if self._num_critics > 1:
            inputs = inputs.repeat_interleave(self._num_critics, 0)  # [P E, N, O + A]
        self._action_shape = action.shape
        self.value = self._mlp.forward(inputs).view(-1, self._num_critics, *action.shape[1:-1])  # [P, E, ...]

    def action_gradient(self, dvalue: Tensor) -> Tensor:
        """The gradient in the actions, 0 where padded, [P, ..., A], from that in the values, [P, E, ...]."""
        dinputs = self._mlp.backward(dvalue.reshape(-1, dvalue[0, 0].numel(), 1))
        daction = dinputs[..., -self._action_shape[-1] :].unflatten(0, (-1, self._num_critics)).sum(1)
        return (daction * self._mask.unsqueeze(1)).view(self._action_shape)

    def parameter_gradients(self, dvalue: Tensor) -> Parameters:
        """The gradient in the parameters, [P, E, ...], likewise."""
        gradients = self._mlp.backward_to_parameters(dvalue.reshape(-1, dvalue[0, 0].numel(), 1))
        return {name: g.unflatten(0, (-1, self._num_critics)) for name, g in gradients.items()}


def first_critic(critics: Parameters) -> Parameters:
    """Parameters of the first twin critic (Q1) of every agent: [P, 2, ...] -> [P, ...]."""
    return {name: p[:, 0] for name, p in critics.items()}


def first_critics(critics: Parameters) -> Parameters:
    """Q1 of every agent as an ensemble of one: [P, 2, ...] -> [P, 1, ...]."""
    return {name: p[:, :1] for name, p in critics.items()}


def bootstrap_observation(windows: Windows) -> Tensor:
    """The state after each window's last valid step, [P, B, O]."""
    index = windows.length[..., None, None].expand(-1, -1, 1, windows.states.shape[-1])
    return windows.states.gather(2, index).squeeze(2)


def window_values(
    networks: Networks, policy: Parameters, critic: Parameters, windows: Windows, action: Tensor, value: Tensor | None = None
) -> Tensor:
    """V(s) = Q1(s, pi(s)) of the `length + 1` states of each window, and 0 after them, [P, B, T + 1].

    Args:
        networks, policy, critic, windows: of P agents.
        action: pi(s) in the first T states of the windows, which callers have already computed, [P, B, T, A].
        value: V(s) of these T states if callers have already computed it, [P, B, T].
    """
    last = bootstrap_observation(windows)
    bootstrap = networks.q(critic, last, networks.action(policy, last))  # [P, B]
    value = networks.q(critic, windows.observation, action) if value is None else value
    values = torch.nn.functional.pad(value * windows.valid, (0, 1))
    position = torch.arange(values.shape[-1], device=values.device)
    return torch.where(position == windows.length[..., None], bootstrap[..., None], values)
