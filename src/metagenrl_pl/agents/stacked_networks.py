"""Stacked networks: the first axis of every parameter is the agent, so one tensor operation serves the whole population.

Parameters are flat dictionaries of tensors. Networks are pure functions of them, `out = network(parameters, x)`. `torch.func` can
differentiate such functions, and out-of-place updates return new dictionaries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Parameters = dict[str, Tensor]

ALIGNMENT = 16
"""Float32 entries in the widest vector register.

If a matrix has a multiple of them, all agents' matrices are equally aligned for BLAS.
"""

_NARROW = 32  # BLAS rounds matrices of at least this width alike, at any memory address


def mixed(x: Tensor) -> Tensor:
    """Relu on the first half of the units, square on the second half (the objective's activation)."""
    first, second = x.chunk(2, -1)
    return torch.cat([torch.relu(first), second * second], -1)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[P, N, in] x [P, in, out] + [P, out] -> [P, N, out], one matrix product for all agents.

    On a CPU with one thread, an agent's outputs and gradients do not depend on the other agents, bit for bit. BLAS would round
    small products differently at different memory addresses. So we pad the rows, and also the inputs of narrow layers.
    """
    if weight.shape[-1] == 1:
        # A matrix product would be far slower for several agents than for one, and would round differently.
        return (x * weight.mT).sum(-1, keepdim=True) + bias.unsqueeze(1)
    if torch.compiler.is_compiling():  # the compiler decides about rounding; it fuses a separate sum with the next operation
        return torch.bmm(x, weight) + bias.unsqueeze(1)
    if x.device.type == "cpu":
        num_rows, num_missing, num_inputs = x.shape[1], -x.shape[1] % ALIGNMENT, num_missing_inputs(weight)
        if num_missing or num_inputs:
            x = functional.pad(x, (0, num_inputs, 0, num_missing))
            weight = functional.pad(weight, (0, 0, 0, num_inputs)) if num_inputs else weight
            return torch.baddbmm(bias.unsqueeze(1), x, weight)[:, :num_rows]
    return torch.baddbmm(bias.unsqueeze(1), x, weight)


def num_missing_inputs(weight: Tensor) -> int:
    """Zero rows that [P, in, out] lacks so that `stacked_linear` gives every agent its own bits."""
    if torch.compiler.is_compiling() or weight.device.type != "cpu" or weight.shape[-1] == 1:
        return 0
    return -weight.shape[1] % ALIGNMENT if min(weight.shape[1:]) < _NARROW else 0


def stacked_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis of [P, N, U] with one scale and shift [P, U] per agent."""
    normed = functional.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(bias.unsqueeze(1), normed, weight.unsqueeze(1))


@dataclass(frozen=True)
class StackedMLP:
    """Hidden layers `linear -> activation -> layer norm`, then (optionally) a plain linear layer.

    Args:
        num_hidden: hidden layers.
        activation: applied before the norm.
        layer_norm_eps: added to the variance; None for no layer norm.
        has_out: whether a linear layer follows the hidden ones.
        prefix: of the names of this network's parameters.

    Parameters are named `hidden.K.weight|bias`, `norm.K.weight|bias`, `out.weight|bias`; weights are [P, in, out].
    """

    num_hidden: int
    activation: Callable[[Tensor], Tensor] = torch.relu
    layer_norm_eps: float | None = 1e-5
    has_out: bool = True
    prefix: str = ""

    def __call__(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Apply the network to N inputs of each agent: [P, N, in] -> [P, N, out]."""
        name = self.prefix
        for k in range(self.num_hidden):
            x = self.activation(stacked_linear(x, parameters[f"{name}hidden.{k}.weight"], parameters[f"{name}hidden.{k}.bias"]))
            if self.layer_norm_eps is not None:
                weight, bias = parameters[f"{name}norm.{k}.weight"], parameters[f"{name}norm.{k}.bias"]
                x = stacked_layer_norm(x, weight, bias, self.layer_norm_eps)
        return stacked_linear(x, parameters[f"{name}out.weight"], parameters[f"{name}out.bias"]) if self.has_out else x

    def init(self, num_in: int, num_units: int, num_out: int, generator: torch.Generator) -> Parameters:
        """Initial parameters of a single network, without agent axis: Glorot-uniform weights, zero biases, norms 1 and 0."""
        parameters = {}
        for k in range(self.num_hidden):
            parameters[f"{self.prefix}hidden.{k}.weight"] = glorot_uniform(num_units if k else num_in, num_units, generator)
            parameters[f"{self.prefix}hidden.{k}.bias"] = torch.zeros(num_units)
            if self.layer_norm_eps is not None:
                parameters[f"{self.prefix}norm.{k}.weight"] = torch.ones(num_units)
                parameters[f"{self.prefix}norm.{k}.bias"] = torch.zeros(num_units)
        if self.has_out:
            parameters[f"{self.prefix}out.weight"] = glorot_uniform(num_units, num_out, generator)
            parameters[f"{self.prefix}out.bias"] = torch.zeros(num_out)
        return parameters


class FlatLayout:
    """How stacked parameters are stored in one tensor, so that an optimizer, a moving average or a copy is a single operation.

    The tensor is [*lead, D]. The leading axes are the agent and, for critics, the twin. D is rounded up to a multiple of
    `ALIGNMENT`: vectorised kernels treat the end of a tensor differently, and would round some agents' entries differently.

    Args:
        parameters: [*lead, ...] each.
        num_lead: number of leading axes.
    """

    def __init__(self, parameters: Parameters, num_lead: int) -> None:
        self._num_lead = num_lead
        self._shapes = {name: p.shape[num_lead:] for name, p in parameters.items()}
        num_entries = sum(shape.numel() for shape in self._shapes.values())
        self._num_padded = -num_entries % ALIGNMENT

    def flatten(self, parameters: Parameters) -> Tensor:
        """Copy the parameters into one tensor, [*lead, D]."""
        parts = [parameters[name].flatten(self._num_lead) for name in self._shapes]
        return torch.cat([*parts, parts[0].new_zeros(*parts[0].shape[:-1], self._num_padded)], -1)

    def views(self, flat: Tensor) -> Parameters:
        """The parameters, [*lead, ...] each, as views of one tensor [*lead, D]."""
        parts = flat.split([*(shape.numel() for shape in self._shapes.values()), self._num_padded], -1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self._shapes.items(), parts[:-1], strict=True)}


def glorot_uniform(num_in: int, num_out: int, generator: torch.Generator) -> Tensor:
    """A weight [in, out], uniform in +-sqrt(6 / (in + out))."""
    return (2 * torch.rand(num_in, num_out, generator=generator) - 1) * math.sqrt(6 / (num_in + num_out))


_NO_NORM = 1e18
"""No gradient is so long. Its square is near the largest float32."""


def _squared_norm_per_agent(gradients: Parameters) -> Tensor:
    # Sum along the last axis. Along the first, an agent's rounding would depend on the number of agents.
    return torch.stack([(g * g).flatten(1).sum(1) for g in gradients.values()], 1).sum(1)


def norm_per_agent(gradients: Parameters, minimum: float = 0.0) -> Tensor:
    """Norm of each agent's gradient over all parameters, [P], and at least `minimum`. With 0, its derivative at 0 is infinite."""
    # Clamp before the root. The root's derivative is infinite at 0, so a saturated policy's zero gradient would give NaN.
    return _squared_norm_per_agent(gradients).clamp(min=minimum**2).sqrt()


def scale_per_agent(gradients: Parameters, scale: Tensor) -> Parameters:
    """Multiply each agent's gradient, [P, ...], by its own factor, [P]."""
    return {name: g * scale.view(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}


def inverse_root_mean_square(x: Tensor, action_weight: Tensor, valid: Tensor) -> Tensor:
    """1 / root mean square of [P, B, T, A] over each agent's valid steps and action dimensions, [P]. Adds 1e-8 under the root."""
    mean_square = ((x * x * action_weight[:, None, None]).sum(-1) * valid).sum((1, 2)) / valid.sum((1, 2))
    return torch.rsqrt(mean_square + 1e-8)


def clip_per_agent(gradients: Parameters, max_norm: float) -> Parameters:
    """Scale each agent's gradient, [P, ...], down to norm `max_norm` if it is larger. Differentiable, also at 0."""
    if max_norm > _NO_NORM:
        return gradients
    return scale_per_agent(gradients, max_norm / norm_per_agent(gradients, minimum=max_norm))
