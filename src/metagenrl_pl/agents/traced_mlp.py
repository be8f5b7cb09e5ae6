"""A stacked network whose derivatives are written out by hand (see `layers`)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metagenrl_pl.agents.layers import Chain, Layer, Linear, Mixed, Norm, Relu
from metagenrl_pl.agents.stacked_networks import Parameters, StackedMLP, mixed

_ACTIVATIONS: dict[Callable[[Tensor], Tensor], Callable[[int], Layer]] = {torch.relu: lambda num_units: Relu(), mixed: Mixed}


class TracedMLP(Chain):
    """One run of a StackedMLP.

    A norm's scale and shift are folded into the linear layer that follows, (n s + t) W + b = n (s W) + (t W + b), since a weight is
    smaller than activations. Where no layer follows (`has_out` false) they are left to the caller, who can often apply them to fewer rows.

    Args:
        mlp: the network.
        parameters: of it, [P, ...].

    Raises:
        ValueError: if no layer is written for the network's activation.
    """

    def __init__(self, mlp: StackedMLP, parameters: Parameters) -> None:
        if mlp.activation not in _ACTIVATIONS:
            raise ValueError(f"no layer is written for the activation {mlp.activation}")
        self._mlp, self._parameters = mlp, parameters
        hidden = [f"{mlp.prefix}hidden.{k}" for k in range(mlp.num_hidden)]
        self._names = [*hidden, f"{mlp.prefix}out"] if mlp.has_out else hidden
        num_units = parameters[f"{hidden[0]}.bias"].shape[-1]
        self._linears = [Linear(*self._folded(k)) for k in range(len(self._names))]
        layers: list[Layer] = []
        for linear in self._linears[: mlp.num_hidden]:
            layers += [linear, _ACTIVATIONS[mlp.activation](num_units)]
            if mlp.layer_norm_eps is not None:
                layers.append(Norm(mlp.layer_norm_eps))
        super().__init__([*layers, *self._linears[mlp.num_hidden :]])

    def backward_to_parameters(self, dy: Tensor) -> Parameters:
        """The parameters' gradients, [P, ...]; those of the input are not computed."""
        for layer in reversed(self.layers[1:]):
            dy = layer.backward(dy)
        self._linears[0].keep_gradient(dy)
        return self._unfolded([linear.gradients() for linear in self._linears])

    def backward_tangent_to_parameters(self, tdy: Tensor) -> Parameters:
        """How the parameters' gradients change, [P, ...]."""
        for layer in reversed(self.layers[1:]):
            tdy = layer.backward_tangent(tdy)
        self._linears[0].keep_gradient_tangent(tdy)
        return self.gradient_tangents()

    def gradient_tangents(self) -> Parameters:
        """The same after `backward_tangent`."""
        return self._unfolded([linear.gradient_tangents() for linear in self._linears])

    def tangent_of_parameters(self, direction: Parameters) -> Tensor:
        """y' along a direction of the parameters, [P, N, out]; the input stays."""
        ty: Tensor | None = None
        for layer in self.layers:
            if isinstance(layer, Linear):
                ty = layer.tangent_along(*self._folded_direction(self._linears.index(layer), direction), ty)
            else:
                assert ty is not None  # the first layer is linear
                ty = layer.tangent(ty)
        assert ty is not None
        return ty

    def _of(self, k: int, parameters: Parameters) -> tuple[Tensor, ...]:
        """Weight and bias of the k-th linear layer and, where a norm precedes it, its scale s and shift t, [P, in, 1]."""
        own = parameters[f"{self._names[k]}.weight"], parameters[f"{self._names[k]}.bias"]
        if k == 0 or self._mlp.layer_norm_eps is None:
            return own
        norm = f"{self._mlp.prefix}norm.{k - 1}"
        return *own, parameters[f"{norm}.weight"].unsqueeze(-1), parameters[f"{norm}.bias"].unsqueeze(-1)

    def _folded(self, k: int) -> tuple[Tensor, Tensor]:
        """s W and t W + b."""
        weight, bias, *norm = self._of(k, self._parameters)
        if not norm:
            return weight, bias
        scale, shift = norm
        return scale * weight, (shift * weight).sum(1) + bias

    def _folded_direction(self, k: int, direction: Parameters) -> tuple[Tensor, Tensor]:
        """s' W + s W' and t' W + t W' + b'."""
        weight, _, *norm = self._of(k, self._parameters)
        tweight, tbias, *tnorm = self._of(k, direction)
        if not norm:
            return tweight, tbias
        (scale, shift), (tscale, tshift) = norm, tnorm
        return tscale * weight + scale * tweight, (tshift * weight + shift * tweight).sum(1) + tbias

    def _unfolded(self, gradients: Sequence[tuple[Tensor, Tensor]]) -> Parameters:
        """From the gradients G of s W and d of t W + b: dW = s G + t d, ds and dt the sums of W G and W d over outputs, db = d."""
        unfolded = {}
        for k, (of_weight, of_bias) in enumerate(gradients):
            unfolded[f"{self._names[k]}.bias"] = of_bias
            weight, _, *norm = self._of(k, self._parameters)
            if norm:
                scale, shift = norm
                name, by_output = f"{self._mlp.prefix}norm.{k - 1}", of_bias.unsqueeze(1)
                unfolded[f"{name}.weight"], unfolded[f"{name}.bias"] = (weight * of_weight).sum(-1), (weight * by_output).sum(-1)
                of_weight = torch.addcmul(scale * of_weight, shift, by_output)
            unfolded[f"{self._names[k]}.weight"] = of_weight
        return unfolded
