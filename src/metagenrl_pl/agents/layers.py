"""Layers of stacked networks with first and second derivatives written out by hand.

Autograd gives the same derivatives, and tests compare both. By hand, nothing is computed that nobody needs, and each derivative takes few
operations: in eager updates of small networks most of the time is the overhead of operations.

With L a loss, dx = dL/dx, and x' the derivative of x along some direction, a layer y = f(x) offers four passes, in this order:

    forward           x -> y
    backward          dy -> dx            gradients
    tangent           x' -> y'            how y changes along the direction
    backward_tangent  (dy)' -> (dx)'      how the gradients change along it (Pearlmutter 1994)

The last pass gives what meta-gradients need. Second derivatives commute, so the gradient of <dL/dx, c> in a weight is the derivative of
dL/d weight along the direction x' = c. A layer keeps what later passes need of earlier ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from metagenrl_pl.agents.stacked_networks import ALIGNMENT, num_missing_inputs, stacked_linear

_WIDE = 128  # units from which on PyTorch's layer norm is faster than its parts


class Layer(ABC):
    """One run of a layer. Every tensor holds the rows of each agent, [P, N, units]."""

    @abstractmethod
    def forward(self, x: Tensor, /) -> Tensor:
        """From x, y."""

    @abstractmethod
    def backward(self, dy: Tensor, /) -> Tensor:
        """From dy, dx."""

    @abstractmethod
    def tangent(self, tx: Tensor, /) -> Tensor:
        """From x', y'."""

    @abstractmethod
    def backward_tangent(self, tdy: Tensor, /) -> Tensor:
        """From (dy)', (dx)'."""


class Chain(Layer):
    """Layers one after another."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """See Layer."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy: Tensor) -> Tensor:
        """See Layer."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def tangent(self, tx: Tensor) -> Tensor:
        """See Layer."""
        for layer in self.layers:
            tx = layer.tangent(tx)
        return tx

    def backward_tangent(self, tdy: Tensor) -> Tensor:
        """See Layer."""
        for layer in reversed(self.layers):
            tdy = layer.backward_tangent(tdy)
        return tdy


class Linear(Layer):
    """y = x W + b, padded as in `stacked_linear`.

    Args:
        weight: W, [P, in, out].
        bias: b, [P, out].
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._shape = weight.shape[1:]
        self._num_missing = num_missing_inputs(weight)
        self._weight, self._bias = self._padded(weight), bias
        self._num_rows = self._num_columns = 0  # what follows is set by the passes
        self._x = self._dy = self._tx = self._tdy = bias

    def _padded(self, weight: Tensor) -> Tensor:
        return functional.pad(weight, (0, 0, 0, self._num_missing)) if self._num_missing else weight

    def forward(self, x: Tensor) -> Tensor:
        """See Layer."""
        self._num_rows, self._num_columns, self._x = x.shape[1], x.shape[2], self._pad_rows_and_columns(x)
        return stacked_linear(self._x, self._weight, self._bias)[:, : self._num_rows]

    def backward(self, dy: Tensor) -> Tensor:
        """dy W^T."""
        self.keep_gradient(dy)
        return self._times_transposed_weight(self._dy)

    def keep_gradient(self, dy: Tensor) -> None:
        """In place of `backward` where nobody needs dx."""
        self._dy = pad_rows(dy)

    def tangent(self, tx: Tensor) -> Tensor:
        """x' W."""
        self._tx = self._pad_rows_and_columns(tx)
        return _product(self._tx, self._weight)[:, : self._num_rows]

    def tangent_along(self, weight: Tensor, bias: Tensor, tx: Tensor | None) -> Tensor:
        """x W' + b' + x' W, where the parameters have a direction as well, W' and b'; the input has none where x' is None."""
        of_parameters = stacked_linear(self._x, self._padded(weight), bias)[:, : self._num_rows]
        return of_parameters if tx is None else of_parameters + self.tangent(tx)

    def backward_tangent(self, tdy: Tensor) -> Tensor:
        """(dy)' W^T."""
        self.keep_gradient_tangent(tdy)
        return self._times_transposed_weight(self._tdy)

    def keep_gradient_tangent(self, tdy: Tensor) -> None:
        """In place of `backward_tangent` where nobody needs (dx)'."""
        self._tdy = pad_rows(tdy)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """dW = x^T dy and db, the sum of dy over rows."""
        return self._unpadded(_sum_of_outer_products(self._x, self._dy), self._dy)

    def gradient_tangents(self) -> tuple[Tensor, Tensor]:
        """(dW)' = x^T (dy)' + x'^T dy and (db)', the sum of (dy)' over rows."""
        weight = _sum_of_outer_products(self._x, self._tdy) + _sum_of_outer_products(self._tx, self._dy)
        return self._unpadded(weight, self._tdy)

    def _unpadded(self, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, : self._shape[0]], dy.sum(1)

    def _times_transposed_weight(self, dy: Tensor) -> Tensor:
        dx = dy * self._weight.mT if dy.shape[-1] == 1 else torch.bmm(dy, self._weight.mT)
        return dx[:, : self._num_rows, : self._num_columns]

    def _pad_rows_and_columns(self, x: Tensor) -> Tensor:
        return pad_rows(x, self._weight.shape[1] - x.shape[2])


def pad_rows(x: Tensor, num_columns: int = 0) -> Tensor:
    """[P, N, U] with zero rows up to what keeps an agent's bits its own (see `stacked_linear`), and some zero columns."""
    num_rows = -x.shape[1] % ALIGNMENT if x.device.type == "cpu" and not torch.compiler.is_compiling() else 0
    return functional.pad(x, (0, num_columns, 0, num_rows)) if num_rows or num_columns else x


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """[P, N, in] x [P, in, out] -> [P, N, out]; for a single output as in `stacked_linear`."""
    return (x * weight.mT).sum(-1, keepdim=True) if weight.shape[-1] == 1 else torch.bmm(x, weight)


def _sum_of_outer_products(x: Tensor, dy: Tensor) -> Tensor:
    """x^T dy, [P, in, out]; likewise."""
    return (x * dy).sum(1).unsqueeze(-1) if dy.shape[-1] == 1 else torch.bmm(x.mT, dy)


class Relu(Layer):
    """y = max(x, 0), whose derivative passes or stops everything."""

    def forward(self, x: Tensor) -> Tensor:
        """See Layer."""
        self._y = torch.relu(x)
        return self._y

    def backward(self, dy: Tensor) -> Tensor:
        """dy where y > 0."""
        return torch.ops.aten.threshold_backward(dy, self._y, 0)

    tangent = backward_tangent = backward


class Mixed(Layer):
    """Relu on the first half of the units, square on the second half; `mixed` with derivatives.

    Args:
        num_units: of x.
    """

    def __init__(self, num_units: int) -> None:
        self._half = num_units // 2

    def forward(self, x: Tensor) -> Tensor:
        """See Layer."""
        if torch.compiler.is_compiling():  # the compiler makes one loop of this, but slow code for the slices below
            is_square = torch.arange(x.shape[-1], device=x.device) >= self._half
            self._slope = torch.where(is_square, x + x, (x > 0).to(x.dtype))
            return x * torch.where(is_square, x, self._slope)
        self._slope = x + x  # the slope of the square; relu's slope replaces it in the first half
        self._slope[..., : self._half].gt_(0)
        y = x * self._slope
        y[..., self._half :].mul_(0.5)
        return y

    def backward(self, dy: Tensor) -> Tensor:
        """See Layer."""
        self._dy = dy
        return dy * self._slope

    def tangent(self, tx: Tensor) -> Tensor:
        """See Layer."""
        self._tx = tx
        return tx * self._slope

    def backward_tangent(self, tdy: Tensor) -> Tensor:
        """(dy)' slope + dy slope', where the slope of squares changes by 2 x'."""
        tdx = tdy * self._slope
        if torch.compiler.is_compiling():
            is_square = torch.arange(tdx.shape[-1], device=tdx.device) >= self._half
            return torch.where(is_square, tdx + 2 * self._dy * self._tx, tdx)
        tdx[..., self._half :].addcmul_(self._dy[..., self._half :], self._tx[..., self._half :], value=2)
        return tdx


class Norm(Layer):
    """Layer norm without scale and shift: y = r (x - <x>), with < > the mean over units and r = 1 / sqrt(<(x - <x>)^2> + eps).

    Args:
        eps: added to the variance.
    """

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """See Layer."""
        self._x = x
        if x.shape[-1] >= _WIDE and not torch.compiler.is_compiling():
            self._y, self._mean, self._r = torch.native_layer_norm(x, x.shape[-1:], None, None, self._eps)
            return self._y
        self._mean = x.mean(-1, keepdim=True)
        centred = x - self._mean
        self._r = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + self._eps)
        self._y = centred * self._r
        return self._y

    def backward(self, dy: Tensor) -> Tensor:
        """J dy, where J = r (I - (1 1^T + y y^T) / U) are the derivatives of a row; it is symmetric."""
        self._dy, self._dx = dy, self._times_jacobian(dy)
        return self._dx

    def tangent(self, tx: Tensor) -> Tensor:
        """J x'."""
        self._tx, self._ty = tx, self._times_jacobian(tx)
        return self._ty

    def backward_tangent(self, tdy: Tensor) -> Tensor:
        """J (dy)' + J' dy.

        1. J dy = r (dy - <dy> - y <y dy>).
        2. r depends on x by way of the variance: r' = -r^2 <y x'>.
        3. So J' dy = (r' / r) J dy - r (y' <y dy> + y <y' dy>) = -r (<y x'> dx + <y dy> y' + <y' dy> y).
        """
        tdx = self._times_jacobian(tdy)
        for a, b, c in ((self._y, self._tx, self._dx), (self._y, self._dy, self._ty), (self._ty, self._dy, self._y)):
            tdx = torch.addcmul(tdx, (a * b).mean(-1, keepdim=True) * self._r, c, value=-1)
        return tdx

    def _times_jacobian(self, dy: Tensor) -> Tensor:
        dy = dy.contiguous()  # the operator assumes this, and does not check
        layer_norm_backward = torch.ops.aten.native_layer_norm_backward
        return layer_norm_backward(dy, self._x, dy.shape[-1:], self._mean, self._r, None, None, [True, False, False])[0]


class ScaleShift(Layer):
    """y = x s + t, what follows a norm.

    Args:
        scale, shift: s and t, [P, U].
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self._scale, self._shift = scale.unsqueeze(1), shift.unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """See Layer."""
        self._x = x
        return torch.addcmul(self._shift, x, self._scale)

    def backward(self, dy: Tensor) -> Tensor:
        """See Layer."""
        self._dy = dy
        return dy * self._scale

    def tangent(self, tx: Tensor) -> Tensor:
        """See Layer."""
        self._tx = tx
        return tx * self._scale

    def backward_tangent(self, tdy: Tensor) -> Tensor:
        """See Layer."""
        self._tdy = tdy
        return tdy * self._scale

    def gradient_tangents(self) -> tuple[Tensor, Tensor]:
        """(ds)' and (dt)', [P, U]."""
        return (self._x * self._tdy + self._tx * self._dy).sum(1), self._tdy.sum(1)
