"""The learned objective L_alpha: an LSTM that reads windows of experience backwards in time (paper section 3.2, figure 2)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metagenrl_pl.agents.stacked_networks import (
    Parameters,
    StackedMLP,
    glorot_uniform,
    inverse_root_mean_square,
    mixed,
    stacked_linear,
)
from metagenrl_pl.agents.windows import valid_states
from metagenrl_pl.objectives.contract import CriticChoice, ObjectiveInputs, PullBack, check_critics
from metagenrl_pl.objectives.lstm import BackwardLSTM
from metagenrl_pl.objectives.parametric import ParametricObjective
from metagenrl_pl.objectives.reinforce import td_error
from metagenrl_pl.objectives.traced import SQUASH, ObjectiveNetworks, TracedObjective

_NORMALISATION_EPS = 1e-8
_WRITTEN_OUT = ("loss", "action_gradient", "read", "_of_each_action", "_context")  # methods whose derivatives are written by hand

TerminalRule = Literal["after", "before", "input"]
"""How a learned objective reads V(s') of a terminal state, see `LearnedObjective`."""


class LearnedObjective(ParametricObjective):
    """L_alpha(trajectory, pi(s), V): a small network reads each action dimension, and an LSTM their mean with rewards, values and time.

    No observation is an input, so the objective fits any environment. It has 15,497 parameters at the default sizes. The `use_` options
    and `bounded_head` are the variants of the paper's figure 5, except `use_critic_gradient`. `architecture` holds the constructor's
    arguments except the seed; a subclass adds its own. Files store the name of their class.

    Args:
        hidden_units: width of every hidden layer and of the LSTM; even, since half of the units are squared.
        context_units: width of the encoding of reward, time and values.
        use_time: whether t / T is an input.
        use_value: whether V(s) and V(s') are inputs.
        terminal: how a terminal state enters. Values are z-normalised over the batch, so 0 then means the mean value of the batch.
            `after`, as in the paper: V(s') becomes 0 after normalising, so a terminal state looks like a state of mean value.
            `before`: its value becomes 0, which is what it is worth, before normalising, and is left out of mean and variance.
            `input`: V(s') becomes 0 after normalising and is left out of mean and variance, and `terminated` is an input of its own.
        use_td_error: whether the TD error r + discount V(s') - V(s) is an input, scaled to root mean square 1. The paper normalises
            rewards and values separately, so its objective cannot compute whether an action was better than expected.
        discount: of the TD error.
        use_lstm: whether the loss of a step depends on later steps of the window; otherwise it depends on this step only.
        bounded_head: whether the output e becomes tanh(1e-3 e) / 1e-3.
        use_critic_gradient: whether the critic's action gradient dQ1/da, a constant scaled to root mean square 1, is a third input for
            each action dimension. Then the family of objectives contains DDPG/TD3 as well as REINFORCE. Not in the paper.
        critic_gradient_of: which gradient that is: `first` for the first critic, `both` for the mean of the twins.
        layer_norm_eps: added to the variance of the layer norms.
        seed: of the initial weights.

    Raises:
        ValueError: if `hidden_units` is odd, a width is not positive, `discount` is outside [0, 1], `terminal` or `critic_gradient_of`
            is not valid, or `critic_gradient_of` is `both` without `use_critic_gradient`.
    """

    #: Outputs of the head for each step.
    num_outputs = 1

    def __init__(
        self,
        hidden_units: int = 32,
        context_units: int = 8,
        use_time: bool = True,
        use_value: bool = True,
        terminal: TerminalRule = "after",
        use_td_error: bool = False,
        discount: float = 0.99,
        use_lstm: bool = True,
        bounded_head: bool = True,
        use_critic_gradient: bool = False,
        critic_gradient_of: CriticChoice = "first",
        layer_norm_eps: float = 1e-5,
        seed: int = 0,
    ) -> None:
        if hidden_units < 2 or hidden_units % 2:
            raise ValueError(f"hidden_units must be even and at least 2, got {hidden_units}")
        if context_units < 1:
            raise ValueError(f"context_units must be at least 1, got {context_units}")
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must be between 0 and 1, got {discount}")
        if terminal not in get_args(TerminalRule):
            raise ValueError(f"terminal must be {', '.join(get_args(TerminalRule))}, got {terminal!r}")
        if check_critics(critic_gradient_of) != "first" and not use_critic_gradient:
            raise ValueError(f"critic_gradient_of={critic_gradient_of} needs use_critic_gradient=true")
        super().__init__(
            hidden_units=hidden_units,
            context_units=context_units,
            use_time=use_time,
            use_value=use_value,
            terminal=terminal,
            use_td_error=use_td_error,
            discount=discount,
            use_lstm=use_lstm,
            bounded_head=bounded_head,
            use_critic_gradient=use_critic_gradient,
            critic_gradient_of=critic_gradient_of,
            layer_norm_eps=layer_norm_eps,
        )
        self.needs_value = use_value or use_td_error
        self.use_time, self.use_value, self.use_lstm, self.bounded_head = use_time, use_value, use_lstm, bounded_head
        self.needs_critic_gradient, self.critic_gradient_of = use_critic_gradient, critic_gradient_of
        self.use_td_error, self.discount = use_td_error, discount
        self.terminal, self.hidden_units = terminal, hidden_units
        self._action_transform = StackedMLP(3, mixed, layer_norm_eps, has_out=False, prefix="action_transform.")
        self._context_transform = StackedMLP(2, mixed, None, prefix="context_transform.")
        self._head = StackedMLP(2, mixed, layer_norm_eps, prefix="head.")
        generator = torch.Generator().manual_seed(seed)
        num_context = 1 + use_time + 2 * use_value + (terminal == "input") + use_td_error
        num_features = hidden_units + context_units
        parameters = self._action_transform.init(2 + use_critic_gradient, hidden_units, 0, generator)
        parameters |= self._context_transform.init(num_context, hidden_units, context_units, generator)
        if use_lstm:
            kernel = glorot_uniform(num_features + hidden_units, 4 * hidden_units, generator)
            parameters["lstm.weight_input"], parameters["lstm.weight_hidden"] = kernel.split([num_features, hidden_units])
            parameters["lstm.bias"] = torch.zeros(4 * hidden_units)
        parameters |= self._head.init(hidden_units if use_lstm else num_features, hidden_units, self.num_outputs, generator)
        for name, value in parameters.items():
            _register(self, name, nn.Parameter(value.clone()))
        self._written_out = self._networks, frozenset(parameters)  # no view, which could not be copied

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """L_alpha of every step, [P, B, T], 0 where padded."""
        error = self.read(parameters, inputs).squeeze(-1)
        if self.bounded_head:
            error = torch.tanh(SQUASH * error) / SQUASH
        return error * inputs.valid

    def loss_and_action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        if not self._is_written_out(parameters):
            return super().loss_and_action_gradient(parameters, inputs)
        with torch.no_grad():
            traced = self._trace(parameters, inputs)
            return traced.loss(), traced.action_gradient()

    def action_gradient_and_pull_back(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, PullBack]:
        """See `Objective`."""
        if not self._is_written_out(parameters):
            return super().action_gradient_and_pull_back(parameters, inputs)
        traced = self._trace(parameters, inputs)
        return traced.action_gradient(), traced.pull_back

    def _trace(self, parameters: Parameters, inputs: ObjectiveInputs) -> TracedObjective:
        read = self._of_each_action(inputs), self._context(inputs)
        return TracedObjective(self._networks, parameters, inputs, *read, self.bounded_head)

    def _is_written_out(self, parameters: Parameters) -> bool:
        """Whether derivatives are written by hand. In a subclass with another loss, network or parameter, autograd computes them."""
        has_methods = all(getattr(type(self), name) is getattr(LearnedObjective, name) for name in _WRITTEN_OUT)
        return has_methods and (self._networks, frozenset(parameters)) == self._written_out

    @property
    def _networks(self) -> ObjectiveNetworks:
        return ObjectiveNetworks(self._action_transform, self._context_transform, self._head)

    def read(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Outputs of the head for every step, [P, B, T, num_outputs]; undefined where padded."""
        num_agents, num_windows, num_steps, num_actions = inputs.policy_action.shape
        num_samples = num_windows * num_steps

        features = self._action_transform(parameters, self._of_each_action(inputs)).view(
            num_agents, num_samples, num_actions, self.hidden_units
        )
        features = (features * inputs.action_weight[:, None, :, None]).sum(2)  # mean over the real action dimensions
        context = self._context_transform(parameters, self._context(inputs).view(num_agents, num_samples, -1))
        features = torch.cat([features, context], -1)
        if self.use_lstm:
            projected = stacked_linear(features, parameters["lstm.weight_input"], parameters["lstm.bias"])
            features = BackwardLSTM(parameters["lstm.weight_hidden"], inputs.valid).forward(projected)
        return self._head(parameters, features).view(num_agents, num_windows, num_steps, self.num_outputs)

    def _of_each_action(self, inputs: ObjectiveInputs) -> Tensor:
        """What is read of each action dimension: the replayed action, the policy's and the critic's gradient, [P, B * T * A, 2 or 3]."""
        read = [inputs.replay_action, inputs.policy_action]  # `traced.py` counts on this order
        if self.needs_critic_gradient:
            assert inputs.critic_gradient is not None  # promised by needs_critic_gradient
            read.append(scaled_to_one(inputs.critic_gradient, inputs.action_weight, inputs.valid))
        return torch.stack(read, -1).flatten(1, 3)

    def _context(self, inputs: ObjectiveInputs) -> Tensor:
        """Normalised reward, t / T, V(s') and V(s) of every step, whether it terminated and its TD error, [P, B, T, 1 to 6]."""
        num_steps = inputs.reward.shape[-1]
        context = [normalise(inputs.reward, inputs.valid)]
        if self.use_time:
            time = torch.arange(num_steps, dtype=inputs.reward.dtype, device=inputs.reward.device) / num_steps
            context.append(time.expand_as(inputs.reward))
        if self.use_value:
            assert inputs.value is not None  # promised by needs_value
            context += self._values(inputs.value, inputs)
        if self.terminal == "input":
            context.append(inputs.terminated)
        if self.use_td_error:
            error = td_error(inputs, self.discount).unsqueeze(-1)
            context.append(scaled_to_one(error, torch.ones_like(error[:, 0, 0]), inputs.valid).squeeze(-1))
        # A padded reward of 0 may be far from a mean that hardly varies. Squared twice it would be infinite, and infinity times 0 is NaN.
        return torch.stack(context, -1) * inputs.valid.unsqueeze(-1)

    def _values(self, value: Tensor, inputs: ObjectiveInputs) -> list[Tensor]:
        """Normalised V(s') and V(s), [P, B, T] each, with terminal states as `terminal` says."""
        states, alive = valid_states(inputs.valid), 1 - inputs.terminated
        if self.terminal != "after":  # leave out the critic's value of terminal states, on which it is never trained
            after = nn.functional.pad(alive, (1, 0), value=1.0)
            value, states = value * after, states * after
        value = normalise(value, states)
        of_next = value[..., 1:]
        if self.terminal == "before":  # 0 may be far from values that hardly vary; no other entry is further away than this
            furthest = states.sum((1, 2), keepdim=True).sqrt()
            of_next = of_next.clamp(-furthest, furthest)
        return [of_next if self.terminal == "before" else of_next * alive, value[..., :-1]]


def normalise(x: Tensor, valid: Tensor) -> Tensor:
    """z-normalise [P, B, T] over each agent's valid entries: population variance, 1e-8 added under the root."""
    count = valid.sum((1, 2), keepdim=True)
    centred = x - (x * valid).sum((1, 2), keepdim=True) / count
    variance = (centred * centred * valid).sum((1, 2), keepdim=True) / count
    return centred * torch.rsqrt(variance + _NORMALISATION_EPS)


def scaled_to_one(x: Tensor, action_weight: Tensor, valid: Tensor) -> Tensor:
    """[P, B, T, A] over its root mean square over each agent's valid steps and action dimensions."""
    return x * inverse_root_mean_square(x, action_weight, valid)[:, None, None, None]


def _register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_parameter(leaf, parameter)
