"""One run of the learned objective's network on some windows, with its derivatives written out by hand (see `layers`)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from metagenrl_pl.agents.layers import Chain, Layer, Linear, ScaleShift
from metagenrl_pl.agents.stacked_networks import Parameters, StackedMLP
from metagenrl_pl.agents.traced_mlp import TracedMLP
from metagenrl_pl.objectives.contract import ObjectiveInputs
from metagenrl_pl.objectives.lstm import BackwardLSTM

_POLICY_ACTION = 1  # its place in what is read of each action dimension
_LAST_NORM = "action_transform.norm.2"
SQUASH = 1e-3
"""A bounded head gives L = tanh(SQUASH e) / SQUASH of its output e, as in the paper's code."""


class ObjectiveNetworks(NamedTuple):
    """The networks of a learned objective.

    Args:
        action_transform: reads each action dimension.
        context_transform: reads reward, time and values.
        head: gives the output of each step.
    """

    action_transform: StackedMLP
    context_transform: StackedMLP
    head: StackedMLP


class MeanOverActions(Layer):
    """[P, N * A, U] -> [P, N, U], the mean over the agent's real action dimensions.

    Args:
        action_weight: 1 / their number, 0 where padded, [P, A].
    """

    def __init__(self, action_weight: Tensor) -> None:
        self._weight = action_weight[:, None, :, None]

    def forward(self, x: Tensor) -> Tensor:
        """See Layer."""
        return (x.unflatten(1, (-1, self._weight.shape[2])) * self._weight).sum(2)

    def backward(self, dy: Tensor) -> Tensor:
        """See Layer."""
        return (dy.unsqueeze(2) * self._weight).flatten(1, 2)

    tangent, backward_tangent = forward, backward


class TracedObjective:
    """One run of the network: `loss` gives L, `action_gradient` g = dL/da, and `pull_back`, called after it, d <g, c> / d alpha.

    Args:
        networks: that are run.
        parameters: alpha, [P, ...]. With "lstm.bias" and its like, an LSTM runs before the head.
        inputs: of P agents.
        of_each_action: inputs for each action dimension, first the replayed action, then the policy's, [P, B * T * A, 2 or 3].
        context: other inputs of each step, [P, B, T, 1 to 6].
        bounded_head: whether the output e becomes tanh(SQUASH e) / SQUASH.
    """

    def __init__(
        self,
        networks: ObjectiveNetworks,
        parameters: Parameters,
        inputs: ObjectiveInputs,
        of_each_action: Tensor,
        context: Tensor,
        bounded_head: bool,
    ) -> None:
        self._parameters, self._inputs = parameters, inputs
        self._num_units = parameters[f"{_LAST_NORM}.weight"].shape[-1]
        # The mean comes before the last norm's scale and shift, which then have fewer rows.
        self._of_actions = TracedMLP(networks.action_transform, parameters)
        self._last_norm = ScaleShift(*(parameters[f"{_LAST_NORM}.{name}"] for name in ("weight", "bias")))
        self._mean = Chain([MeanOverActions(inputs.action_weight), self._last_norm])
        self._actions = Chain([self._of_actions, self._mean])
        self._context = TracedMLP(networks.context_transform, parameters)
        self._head = TracedMLP(networks.head, parameters)
        self._lstm: tuple[Linear, BackwardLSTM] | None = None
        if "lstm.bias" in parameters:
            projection = Linear(parameters["lstm.weight_input"], parameters["lstm.bias"])
            self._lstm = projection, BackwardLSTM(parameters["lstm.weight_hidden"], inputs.valid, as_operators=True)
        self._reader = Chain([*(self._lstm or ()), self._head])

        encoding = self._context.forward(context.flatten(1, 2))
        self._num_others, self._num_context = of_each_action.shape[-1] - _POLICY_ACTION - 1, encoding.shape[-1]
        features = torch.cat([self._actions.forward(of_each_action), encoding], -1)
        self._error = self._reader.forward(features).view(inputs.valid.shape)
        self._squashed = torch.tanh(SQUASH * self._error) if bounded_head else None

    def loss(self) -> Tensor:
        """L of every step, [P, B, T]: tanh(SQUASH e) / SQUASH, or e; 0 where padded."""
        return (self._error if self._squashed is None else self._squashed / SQUASH) * self._inputs.valid

    def action_gradient(self) -> Tensor:
        """g, [P, B, T, A]."""
        derror = self._inputs.valid
        if self._squashed is not None:
            derror = derror * (1 - self._squashed * self._squashed)
        dfeatures = self._reader.backward(derror.flatten(1).unsqueeze(-1))
        dactions = self._actions.backward(dfeatures[..., : self._num_units])
        return dactions[..., _POLICY_ACTION].reshape(self._inputs.policy_action.shape)

    def pull_back(self, direction: Tensor) -> Parameters:
        """d <g, c> / d alpha, [P, ...], of a constant c, [P, B, T, A]: how dL / d alpha changes as actions move along c.

        1. Actions move along c; all other inputs of the network stay.
        2. e changes by e', so dL/de changes by L'' e', where L'' = -2 SQUASH tanh(SQUASH e) (1 - tanh(SQUASH e)^2).
        3. The changes of all gradients follow by backpropagation. The context's layers do not change, so they need a plain gradient only.
        """
        moving = functional.pad(direction.flatten(1).unsqueeze(-1), (_POLICY_ACTION, self._num_others))
        terror = self._reader.tangent(functional.pad(self._actions.tangent(moving), (0, self._num_context)))
        tderror = torch.zeros_like(terror)
        if self._squashed is not None:
            curvature = -2 * SQUASH * self._squashed * (1 - self._squashed * self._squashed) * self._inputs.valid
            tderror = curvature.flatten(1).unsqueeze(-1) * terror
        tdfeatures = self._reader.backward_tangent(tderror)
        tdactions = self._mean.backward_tangent(tdfeatures[..., : self._num_units])
        changes = {
            **self._of_actions.backward_tangent_to_parameters(tdactions),
            **self._context.backward_to_parameters(tdfeatures[..., self._num_units :]),
            **self._head.gradient_tangents(),
            **_named(f"{_LAST_NORM}.weight", f"{_LAST_NORM}.bias", self._last_norm),
        }
        if self._lstm is not None:
            projection, recurrent = self._lstm
            changes |= _named("lstm.weight_input", "lstm.bias", projection)
            changes["lstm.weight_hidden"] = recurrent.gradient_tangent()
        return {name: changes[name] for name in self._parameters}


def _named(weight: str, bias: str, layer: Linear | ScaleShift) -> Parameters:
    return dict(zip((weight, bias), layer.gradient_tangents(), strict=True))
