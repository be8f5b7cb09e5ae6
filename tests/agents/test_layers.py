"""Hand-written derivatives of layers, the LSTM, networks and the learned objective: against autograd, in float64."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from objectives_inputs import NUM_AGENTS, random_inputs, small
from random_population import random_like, random_windows, small_population
from torch import Tensor, nn

from metagenrl_pl.agents.layers import Layer, Linear, Mixed, Norm, Relu, ScaleShift
from metagenrl_pl.agents.networks import TracedCritics, TracedPolicy
from metagenrl_pl.agents.stacked_networks import Parameters, StackedMLP, mixed, stacked_layer_norm, stacked_linear
from metagenrl_pl.agents.traced_mlp import TracedMLP
from metagenrl_pl.objectives import LearnedObjective, Objective, ObjectiveInputs
from metagenrl_pl.objectives.lstm import BackwardLSTM
from metagenrl_pl.objectives.traced import MeanOverActions

NUM_ROWS, NUM_IN, NUM_UNITS = 15, 5, 6


pytestmark = pytest.mark.usefixtures("float64")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(NUM_AGENTS, *shape, generator=torch.Generator().manual_seed(seed))


def assert_passes(layer: Layer, function: Callable[..., Tensor], x: Tensor, *others: Tensor, check: Callable[..., None]) -> None:
    """The four passes of a layer against autograd of the same function of x, and of other tensors that stay."""
    y, pull_back = torch.func.vjp(lambda x, *others: function(x, *others), x, *others)  # type: ignore[misc]
    dy, tx, tdy = (randn(*shape[1:], seed=seed) for seed, shape in enumerate((y.shape, x.shape, y.shape), 1))

    def gradients(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(lambda x, *others: function(x, *others), x, *others)[1](dy)  # type: ignore[misc]

    _, changes = torch.func.jvp(gradients, (x, dy), (tx, tdy))
    close = torch.testing.assert_close
    close(layer.forward(x), y)
    close(layer.backward(dy), pull_back(dy)[0])
    close(layer.tangent(tx), torch.func.jvp(lambda x: function(x, *others), (x,), (tx,))[1])
    close(layer.backward_tangent(tdy), changes[0])
    check(pull_back(dy)[1:], changes[1:])


def nothing_else(gradients: tuple[Tensor, ...], changes: tuple[Tensor, ...]) -> None:
    assert gradients == changes == ()


@pytest.mark.parametrize("num_out", [1, 4])
def test_linear(num_out: int) -> None:
    x, weight, bias = randn(NUM_ROWS, NUM_IN), randn(NUM_IN, num_out, seed=8), randn(num_out, seed=9)
    layer = Linear(weight, bias)

    def check(gradients: tuple[Tensor, ...], changes: tuple[Tensor, ...]) -> None:
        torch.testing.assert_close(layer.gradients(), gradients)
        torch.testing.assert_close(layer.gradient_tangents(), changes)

    assert_passes(layer, stacked_linear, x, weight, bias, check=check)


def test_scale_shift() -> None:
    x, scale, shift = randn(NUM_ROWS, NUM_UNITS), randn(NUM_UNITS, seed=8), randn(NUM_UNITS, seed=9)
    layer = ScaleShift(scale, shift)
    assert_passes(
        layer,
        lambda x, scale, shift: x * scale.unsqueeze(1) + shift.unsqueeze(1),
        x,
        scale,
        shift,
        check=lambda gradients, changes: torch.testing.assert_close(layer.gradient_tangents(), changes),
    )


def test_activations() -> None:
    x = randn(NUM_ROWS, NUM_UNITS)
    assert_passes(Relu(), torch.relu, x, check=nothing_else)
    assert_passes(Mixed(NUM_UNITS), mixed, x, check=nothing_else)


def test_norm() -> None:
    for num_units in (NUM_UNITS, 128):  # narrow and wide ones are computed differently
        ones, zeros = torch.ones(NUM_AGENTS, num_units), torch.zeros(NUM_AGENTS, num_units)
        for eps in (1e-5, 0.5):
            norm = partial(stacked_layer_norm, weight=ones, bias=zeros, eps=eps)
            assert_passes(Norm(eps), norm, randn(NUM_ROWS, num_units), check=nothing_else)


def test_mean_over_actions() -> None:
    weight = torch.tensor([[0.5, 0.5, 0], [1, 0, 0]])
    assert_passes(
        MeanOverActions(weight),
        lambda x: torch.einsum("pnau,pa->pnu", x.view(NUM_AGENTS, NUM_ROWS, 3, NUM_UNITS), weight),
        randn(NUM_ROWS * 3, NUM_UNITS),
        check=nothing_else,
    )


def plain_lstm(x: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """Window by window, step by step, as in a textbook."""
    hidden = []
    for agent, (length, rows) in enumerate(zip(valid.sum(-1).long(), x.unflatten(1, valid.shape[1:]), strict=True)):
        for n, window in zip(length.tolist(), rows, strict=True):
            h = c = torch.zeros(weight.shape[1])
            of_window = [torch.zeros(weight.shape[1])] * (len(window) - n)
            for z in reversed(window[:n]):
                i, g, f, o = (z + h @ weight[agent]).chunk(4)
                c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                of_window.insert(0, h)
            hidden += of_window
    return torch.stack(hidden).view(*x.shape[:2], -1)


@pytest.mark.parametrize("num_units", [4, 16])  # for the first, windows are padded
def test_lstm(num_units: int) -> None:
    valid = random_inputs().valid
    x, weight = randn(valid[0].numel(), 4 * num_units), randn(num_units, 4 * num_units, seed=8)
    layer = BackwardLSTM(weight, valid)
    assert_passes(
        layer,
        lambda x, weight: plain_lstm(x, weight, valid),
        x,
        weight,
        check=lambda gradients, changes: torch.testing.assert_close(layer.gradient_tangent(), changes[0]),
    )


def random_parameters(mlp: StackedMLP, num_out: int) -> Parameters:
    single = mlp.init(NUM_IN, NUM_UNITS, num_out, torch.Generator().manual_seed(0))
    return {name: randn(*p.shape, seed=seed) for seed, (name, p) in enumerate(single.items())}


@pytest.mark.parametrize("num_out", [1, 3])
@pytest.mark.parametrize(
    "mlp",
    [StackedMLP(2), StackedMLP(2, layer_norm_eps=None), StackedMLP(3, mixed, has_out=False), StackedMLP(1, mixed)],
    ids=["relu", "no_norm", "no_out", "mixed"],
)
def test_mlp(mlp: StackedMLP, num_out: int) -> None:
    parameters = random_parameters(mlp, num_out)
    last = f"norm.{mlp.num_hidden - 1}"  # without an output layer, its scale and shift are the caller's
    if not mlp.has_out:
        parameters[f"{last}.weight"], parameters[f"{last}.bias"] = (fill.expand(NUM_AGENTS, NUM_UNITS) for fill in (ONE, ZERO))
    traced, names = TracedMLP(mlp, parameters), [name for name in parameters if mlp.has_out or not name.startswith(last)]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return mlp({**parameters, **dict(zip(names, values, strict=True))}, x)

    def check(gradients: tuple[Tensor, ...], changes: tuple[Tensor, ...]) -> None:
        torch.testing.assert_close(traced.gradient_tangents(), dict(zip(names, changes, strict=True)))
        dy = randn(*function(x, *values).shape[1:], seed=1)
        torch.testing.assert_close(traced.backward_to_parameters(dy), dict(zip(names, gradients, strict=True)))

    x, values = randn(NUM_ROWS, NUM_IN), [parameters[name] for name in names]
    assert_passes(traced, function, x, *values, check=check)
    if mlp.has_out:
        direction = random_like(parameters, 7)
        _, expected = torch.func.jvp(lambda parameters: mlp(parameters, x), (parameters,), (direction,))
        torch.testing.assert_close(traced.tangent_of_parameters(direction), expected)


ONE, ZERO = torch.ones(()).double(), torch.zeros(()).double()


def test_policy() -> None:
    """J and its transpose, for agents of three sizes."""
    population, windows = small_population(), random_windows(3)
    networks, policy = population.networks, population.policy
    traced = TracedPolicy(networks, policy, windows.observation)
    action, pull_back = torch.func.vjp(lambda phi: networks.action(phi, windows.observation), policy)  # type: ignore[misc]
    daction, direction = random_like({"action": action}, 1)["action"], random_like(policy, 2)
    torch.testing.assert_close(traced.action, action)
    torch.testing.assert_close(traced.pull_back(daction), pull_back(daction)[0])
    _, expected = torch.func.jvp(lambda phi: networks.action(phi, windows.observation), (policy,), (direction,))
    torch.testing.assert_close(traced.push_forward(direction), expected)


def test_critics() -> None:
    population, windows = small_population(), random_windows(3)
    networks, critics = population.networks, population.critics
    traced = TracedCritics(networks, critics, windows.observation, windows.action)
    value, pull_back = torch.func.vjp(  # type: ignore[misc]
        lambda critics, action: networks.ensemble_q(critics, windows.observation, action), critics, windows.action
    )
    dvalue = random_like({"value": value}, 1)["value"]
    of_critics, of_action = pull_back(dvalue)
    torch.testing.assert_close(traced.value, value)
    torch.testing.assert_close(traced.action_gradient(dvalue), of_action * networks.action_mask[:, None, None])
    torch.testing.assert_close(traced.parameter_gradients(dvalue), of_critics)


class Doubled(LearnedObjective):
    """An objective of a user's: a loss of its own on a network that is there."""

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return 2 * super().loss(parameters, inputs)


class Deeper(LearnedObjective):
    """One with another network, and no method of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._action_transform = replace(self._action_transform, num_hidden=4)
        num_units, own = self.hidden_units, self.get_submodule("action_transform")
        own.get_submodule("hidden").add_module(
            "3", nn.ParameterDict({"weight": torch.eye(num_units), "bias": torch.zeros(num_units)})
        )
        own.get_submodule("norm").add_module(
            "3", nn.ParameterDict({"weight": torch.ones(num_units), "bias": torch.zeros(num_units)})
        )


class Reading(LearnedObjective):
    """One that reads the policy's action a second time."""

    def _of_each_action(self, inputs: ObjectiveInputs) -> Tensor:
        read = super()._of_each_action(inputs)
        return torch.cat([2 * read[..., 1:2], read[..., 1:]], -1)


class Descending(LearnedObjective):
    """One whose action gradient is no loss's."""

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return 3 * super().action_gradient(parameters, inputs)


@pytest.mark.parametrize("kind", [Reading, Descending])
def test_what_a_subclass_changes_is_not_taken_for_what_is_written_out(kind: type[LearnedObjective]) -> None:
    objective, inputs = kind(hidden_units=4, context_units=3), random_inputs()
    alpha = objective.stacked_parameters(NUM_AGENTS)
    direction = random_inputs(seed=4).policy_action
    expected, expected_pull_back = torch.func.vjp(lambda alpha: objective.action_gradient(alpha, inputs), alpha)  # type: ignore[misc]
    gradient, pull_back = objective.action_gradient_and_pull_back(alpha, inputs)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(objective.loss_and_action_gradient(alpha, inputs)[1], expected)
    torch.testing.assert_close(pull_back(direction), expected_pull_back(direction)[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"use_lstm": False}, {"bounded_head": False}, {"use_critic_gradient": True}, {"use_value": False, "use_td_error": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", [LearnedObjective, Doubled, Deeper])
def test_objective(kind: type[LearnedObjective], options: dict[str, bool]) -> None:
    """g and d <g, c> / d alpha, against autograd of the loss; a loss or network of a user's is not taken for another."""
    objective = kind(**{"hidden_units": 4, "context_units": 3, **options})
    inputs, alpha = random_inputs(), objective.stacked_parameters(NUM_AGENTS)
    alpha = {name: p + 0.1 * x for (name, p), x in zip(alpha.items(), random_like(alpha, 3).values(), strict=True)}
    expected, expected_pull_back = torch.func.vjp(  # type: ignore[misc]
        lambda alpha: Objective.action_gradient(objective, alpha, inputs), alpha
    )
    direction = random_inputs(seed=4).policy_action
    gradient, pull_back = objective.action_gradient_and_pull_back(alpha, inputs)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(pull_back(direction), expected_pull_back(direction)[0])
    if kind is Doubled:
        once, _ = small(**options).action_gradient_and_pull_back(alpha, inputs)
        torch.testing.assert_close(gradient, 2 * once)


def test_an_activation_without_a_layer_is_named() -> None:
    with pytest.raises(ValueError, match="no layer is written for the activation"):
        TracedMLP(StackedMLP(1, torch.sin), {})
