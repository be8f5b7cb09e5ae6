"""The objective's LSTM with first and second derivatives written out by hand (see `layers`)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, library
from torch.nn import functional

from metagenrl_pl.agents.layers import Layer
from metagenrl_pl.agents.stacked_networks import ALIGNMENT

Loop = Callable[..., Sequence[Tensor]]


def _loop(z: Tensor, weight: Tensor, scale: Tensor, is_candidate: Tensor) -> list[Tensor]:
    """Run the cells over time.

    Args:
        z: scale times the projections, [T, P, B, 4 U].
        weight: scale times W, [P, U, 4 U].
        scale: 2 for the candidate, since tanh(x) = 2 sigmoid(2 x) - 1, and 1 for the gates, [4 U].
        is_candidate: 1 for the candidate, 0 for the gates, [4 U].

    Returns:
        Gates, [T, P, B, 4 U]; cell state before each step, tanh of the cell state after it, and hidden state, [T, P, B, U] each.
    """
    hidden = cell = z.new_zeros(*z.shape[1:3], weight.shape[1])
    states = []
    for z_of_step in z.unbind():
        gates = torch.addcmul(-is_candidate, scale, torch.sigmoid(torch.baddbmm(z_of_step, hidden, weight)))
        input_gate, candidate, forget_gate, output_gate = gates.chunk(4, -1)
        before, cell = cell, torch.addcmul(input_gate * candidate, forget_gate, cell)
        squashed = torch.tanh(cell)
        hidden = output_gate * squashed
        states.append((gates, before, squashed, hidden))
    return [torch.stack(parts) for parts in zip(*states, strict=True)]


def _tangent_loop(tz: Tensor, weight: Tensor, k: Tensor, a: Tensor, forget_gate: Tensor) -> list[Tensor]:
    """How the states change.

    Args:
        tz: z' from outside, [T, P, B, 4 U].
        weight: W, [P, U, 4 U].
        k, a, forget_gate: K, A and f, see `BackwardLSTM`, [T, P, B, 4 U], and [T, P, B, U] each.

    Returns:
        z' with its recurrent part, [T, P, B, 4 U]; c' before and after each step, and h', [T, P, B, U] each.
    """
    thidden = tcell = torch.zeros_like(a[0])
    states = []
    for tz_of_step, k_of_step, a_of_step, f_of_step in zip(tz, k, a, forget_gate, strict=True):
        tz_of_step = torch.baddbmm(tz_of_step, thidden, weight)
        by_input, by_candidate, by_forget, by_output = (k_of_step * tz_of_step).chunk(4, -1)
        before, tcell = tcell, torch.addcmul(by_input + by_candidate + by_forget, f_of_step, tcell)
        thidden = torch.addcmul(by_output, a_of_step, tcell)
        states.append((tz_of_step, before, tcell, thidden))
    return [torch.stack(parts) for parts in zip(*states, strict=True)]


def _backward_loop(
    dhidden: Tensor, weight: Tensor, k: Tensor, a: Tensor, forget_gate: Tensor, more_dcell: Tensor, more_dz: Tensor
) -> list[Tensor]:
    """The gradients with respect to z and c.

    Args:
        dhidden: dh from outside, [T, P, B, U].
        weight, k, a, forget_gate: as in `_tangent_loop`.
        more_dcell, more_dz: are added to dc and dz of every step, [T, P, B, U] and [T, P, B, 4 U].

    Returns:
        dz, and (dc, dc, dc, dh), [T, P, B, 4 U] each.
    """
    steps = list(zip(dhidden, k, a, forget_gate, more_dcell, more_dz, strict=True))
    dz, passed_on = torch.zeros_like(k[0]), torch.zeros_like(dhidden[0])
    states = []
    for dhidden_of_step, k_of_step, a_of_step, f_of_step, more_dcell_of_step, more_dz_of_step in reversed(steps):
        dh = torch.baddbmm(dhidden_of_step, dz, weight.mT)
        dcell = torch.addcmul(passed_on + more_dcell_of_step, a_of_step, dh)
        reached = torch.cat([dcell, dcell, dcell, dh], -1)
        dz, passed_on = torch.addcmul(more_dz_of_step, reached, k_of_step), f_of_step * dcell
        states.append((dz, reached))
    return [torch.stack(parts) for parts in zip(*reversed(states), strict=True)]


# Compiled, a loop of T steps would become T copies of its operations, which take minutes to compile. On the CPU a compiled update
# calls the loop as a single operator instead. On a GPU the copies are worth it: CUDA graphs launch them without Python.
_library = library.Library("metagenrl_pl", "FRAGMENT")


def _as_operator(name: str, arguments: str, loop: Loop, num_outputs: int, like: Callable[..., list[Tensor]]) -> Loop:
    """An operator that runs the loop where an update is compiled; the loop itself elsewhere.

    Args:
        name: of the operator.
        arguments: names of its tensors.
        loop: what it runs.
        num_outputs: of the loop.
        like: tensors of the shapes of its outputs, from its arguments.
    """
    outputs = ", ".join(["Tensor"] * num_outputs)
    _library.define(f"{name}({', '.join(f'Tensor {argument}' for argument in arguments.split())}) -> ({outputs})")
    _library.impl(name, lambda *tensors: tuple(loop(*tensors)), "CPU")
    _library.impl(name, lambda *tensors: tuple(like(*tensors)), "Meta")
    operator = getattr(torch.ops.metagenrl_pl, name)

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = operator(*tensors) if torch.compiler.is_compiling() else loop(*tensors)
        return outputs

    return run


def _gates_and_states(z: Tensor, *_: Tensor) -> list[Tensor]:
    return [z.new_empty(z.shape), *(z.new_empty(*z.shape[:-1], z.shape[-1] // 4) for _ in range(3))]


def _two_gates(dhidden: Tensor, weight: Tensor, k: Tensor, *_: Tensor) -> list[Tensor]:
    return [k.new_empty(k.shape), k.new_empty(k.shape)]


LOOPS: tuple[Loop, Loop, Loop] = (_loop, _tangent_loop, _backward_loop)
"""Forward, tangent and backward."""

OPERATORS: tuple[Loop, Loop, Loop] = (
    _as_operator("lstm", "z weight scale is_candidate", _loop, 4, _gates_and_states),
    _as_operator("lstm_tangent", "tz weight k a forget_gate", _tangent_loop, 4, _gates_and_states),
    _as_operator("lstm_backward", "dhidden weight k a forget_gate more_dcell more_dz", _backward_loop, 2, _two_gates),
)
"""The same for compiled updates on the CPU."""


class BackwardLSTM(Layer):
    """The recurrent part of an LSTM that runs from each window's last valid step, with zero initial state, to its first.

    Its input is the projection of the features, [P, B * T, 4 U], its output the hidden states, [P, B * T, U]. Inside, the first axis is the
    order in which steps are read, the last step first, [T, P, B, units]; gates are in the order input, candidate, forget, output:

        gates (i, g, f, o) = sigma(z), z = projection + h W;   c <- i g + f c;   h <- o tanh(c)

    Derivatives are sums over a few products that are known for all steps at once, K = dgates/dz * (g, i, c, tanh c) and
    A = o (1 - tanh^2 c), so that the loops over steps hold as little as possible:

        backward   dc <- f dc + A dh,     dz = K (dc, dc, dc, dh),              dh <- dz W^T + what comes from outside
        tangent    c' <- f c' + sum of K z' over the first three gates,         h' = K z' of the output gate + A c'

    Args:
        weight: W, [P, U, 4 U].
        valid: [P, B, T].
        as_operators: whether a compiled update calls the loops as operators. Autograd cannot differentiate operators, so this is
            for callers that need no autograd.
    """

    def __init__(self, weight: Tensor, valid: Tensor, as_operators: bool = False) -> None:
        self._weight, self._valid = weight, valid
        on_cpu = as_operators and weight.device.type == "cpu"
        self._loop, self._tangent_loop, self._backward_loop = OPERATORS if on_cpu else LOOPS
        num_units = weight.shape[1]
        # Narrow objectives: see stacked_linear.
        self._num_missing = -valid.shape[1] % ALIGNMENT if valid.shape[1] * num_units % ALIGNMENT else 0
        gate = torch.arange(4 * num_units, device=weight.device) // num_units
        self._is_candidate, self._is_forget = (gate == 1).to(weight.dtype), (gate == 2).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states. tanh(x) = 2 sigmoid(2 x) - 1: with scaled inputs one sigmoid, which is faster than tanh, serves all gates."""
        scale = 1 + self._is_candidate
        # Far below 0, input and forget gate are exactly 0: cell and hidden state stay 0 until the last valid step is reached.
        z = torch.where(self._valid.flatten(1, 2).unsqueeze(-1) > 0, torch.addcmul(self._is_forget, scale, x), -1e4)
        loop = self._loop(self._by_step(z), scale * self._weight, scale, self._is_candidate)
        self._gates, self._cell_before, self._squashed, self._hidden = loop
        return self._by_row(self._hidden)

    def backward(self, dy: Tensor) -> Tensor:
        """dz, for which K and A are computed."""
        input_gate, candidate, self._forget_gate, self._output_gate = self._gates.chunk(4, -1)
        self._slope = (1 - self._gates) * (self._gates + self._is_candidate)  # s (1 - s), of the candidate (1 - g) (1 + g)
        self._factor = torch.cat([candidate, input_gate, self._cell_before, self._squashed], -1)
        self._k = self._slope * self._factor
        self._squashed_slope = 1 - self._squashed * self._squashed
        self._a = self._output_gate * self._squashed_slope
        self._dz, self._reached = self._run_backward(self._by_step(dy), dy.new_zeros(1), dy.new_zeros(1))
        return self._by_row(self._dz)

    def tangent(self, tx: Tensor) -> Tensor:
        """h'."""
        loop = self._tangent_loop(self._by_step(tx), self._weight, self._k, self._a, self._forget_gate)
        tz, self._tcell_before, self._tcell, self._thidden = loop
        self._tgates = self._slope * tz
        return self._by_row(self._thidden)

    def backward_tangent(self, tdy: Tensor) -> Tensor:
        """(dz)': the recursion of `backward` for (dc)', (dh)' and (dz)', and what the changes of K, A and f add, for all steps at once.

        1. gates' = slope z'. The slope s (1 - s) changes by (1 - 2 s) s', that of the candidate by -2 g g'.
        2. K' = slope' factor + slope factor', where the factor changes by (g', i', c', (1 - tanh^2 c) c').
        3. A' = o' (1 - tanh^2 c) - 2 o tanh(c) (tanh c)'.
        4. (dz)' gains (dc, dc, dc, dh) K'; (dc)' gains dh A' and, from the step that was read next, dc f'.
        """
        tinput, tcandidate, tforget, toutput = self._tgates.chunk(4, -1)
        tsquashed = self._squashed_slope * self._tcell
        tslope = self._tgates * (1 - self._is_candidate - 2 * self._gates)
        tfactor = torch.cat([tcandidate, tinput, self._tcell_before, tsquashed], -1)
        tk = torch.addcmul(tslope * self._factor, self._slope, tfactor)
        ta = toutput * self._squashed_slope - 2 * self._output_gate * self._squashed * tsquashed
        dcell, dhidden = self._reached.unflatten(-1, (4, -1))[..., 2:, :].unbind(-2)
        more_dcell = dhidden * ta
        more_dcell = more_dcell + functional.pad((dcell * tforget)[1:], (0, 0, 0, 0, 0, 0, 0, 1))
        self._tdz, _ = self._run_backward(self._by_step(tdy), more_dcell, self._reached * tk)
        return self._by_row(self._tdz)

    def gradient_tangent(self) -> Tensor:
        """(dW)' = h^T (dz)' + h'^T dz, with the hidden states before each step, which are 0 before the first that is read."""
        before, tbefore, dz, tdz = (
            x.transpose(0, 1).flatten(1, 2) for x in (self._hidden[:-1], self._thidden[:-1], self._dz[1:], self._tdz[1:])
        )
        return torch.bmm(before.mT, tdz) + torch.bmm(tbefore.mT, dz)

    def _run_backward(self, dhidden: Tensor, more_dcell: Tensor, more_dz: Tensor) -> Sequence[Tensor]:
        every = [x.expand(len(dhidden), *x.shape[1:]) for x in (more_dcell, more_dz)]
        return self._backward_loop(dhidden, self._weight, self._k, self._a, self._forget_gate, *every)

    def _by_step(self, x: Tensor) -> Tensor:
        """[P, B * T, V] -> [T, P, B, V] in the order of reading, where B may be rounded up."""
        steps = torch.stack(x.unflatten(1, self._valid.shape[1:]).unbind(2)[::-1])
        return functional.pad(steps, (0, 0, 0, self._num_missing)) if self._num_missing else steps

    def _by_row(self, x: Tensor) -> Tensor:
        """The inverse of `_by_step`."""
        return torch.stack(x.unbind()[::-1], 2)[:, : self._valid.shape[1]].flatten(1, 2)
