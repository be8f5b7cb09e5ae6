"""Stacked networks: every agent computes what it would alone."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metagenrl_pl.agents.stacked_networks import (
    FlatLayout,
    Parameters,
    StackedMLP,
    clip_per_agent,
    glorot_uniform,
    mixed,
    norm_per_agent,
    scale_per_agent,
    stacked_layer_norm,
    stacked_linear,
)

NUM_AGENTS, NUM_ROWS, NUM_IN, NUM_UNITS, NUM_OUT = 3, 5, 4, 6, 2


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_parameters(mlp: StackedMLP, generator: torch.Generator) -> Parameters:
    """Random in every entry, also biases and norms, so that none can be forgotten."""
    single = mlp.init(NUM_IN, NUM_UNITS, NUM_OUT, generator)
    return {name: randn(NUM_AGENTS, *p.shape, generator=generator) for name, p in single.items()}


def test_linear_of_one_agent_is_a_linear_layer(generator: torch.Generator) -> None:
    x, weight, bias = (randn(*shape, generator=generator) for shape in ((3, 5, 4), (3, 4, 2), (3, 2)))
    out = stacked_linear(x, weight, bias)
    for agent in range(NUM_AGENTS):
        torch.testing.assert_close(out[agent], F.linear(x[agent], weight[agent].T, bias[agent]))


@pytest.mark.parametrize("num_out", [1, 6, 64, 350])
@pytest.mark.parametrize("num_rows", [1, 3, 15, 32])
@pytest.mark.parametrize("num_in", [3, 17, 64])
def test_an_agent_gets_the_same_bits_whatever_its_neighbours(num_in: int, num_rows: int, num_out: int) -> None:
    """Forwards and backwards, alone, beside one and beside three others, from any place among them."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((4, num_rows, num_in), (4, num_in, num_out), (4, num_out), (4, num_rows, num_out))
        all_tensors = [torch.randn(shape, generator=generator) for shape in shapes]

        def computed(agents: slice, tensors: list[Tensor] = all_tensors) -> list[Tensor]:
            x, weight, bias, cotangent = (tensor[agents].clone() for tensor in tensors)
            out, pull_back = torch.func.vjp(stacked_linear, x, weight, bias)
            return [out, *pull_back(cotangent)]

        expected = computed(slice(0, 4))
        for agents in [slice(i, i + 1) for i in range(4)] + [slice(i, i + 2) for i in range(3)]:
            for name, one, all_of_them in zip(("out", "x", "weight", "bias"), computed(agents), expected, strict=True):
                assert torch.equal(one, all_of_them[agents]), (name, agents)


def test_padding_of_a_linear_layer_is_not_seen() -> None:
    """One row, three inputs: both are padded inside."""
    x, weight, bias = torch.randn(2, 1, 3), torch.randn(2, 3, 2), torch.randn(2, 2)
    assert stacked_linear(x, weight, bias).shape == (2, 1, 2)
    torch.testing.assert_close(stacked_linear(x, weight, bias), x @ weight + bias.unsqueeze(1))


# ---------------------------------------------------------------------------------------------------------------- FlatLayout


def agent_numbers(*lead: int) -> Parameters:
    """3 + 10 + 1 entries for each network, all different."""
    shapes = {"a": (3,), "b": (2, 5), "c": (1,)}
    sizes = {name: math.prod((*lead, *shape)) for name, shape in shapes.items()}
    return {name: 1 + 1000 * i + torch.arange(sizes[name]).view(*lead, *shapes[name]) for i, name in enumerate(shapes)}


@pytest.mark.parametrize("lead", [(4,), (4, 2)])  # policies; critics, of which there are two
def test_flat_parameters_come_back(lead: tuple[int, ...]) -> None:
    parameters = agent_numbers(*lead)
    layout = FlatLayout(parameters, len(lead))
    flat = layout.flatten(parameters)
    assert flat.shape == (*lead, 16) and flat.dtype == torch.int64  # 14 rounded up
    assert (flat[..., 14:] == 0).all() and (flat[..., :14] != 0).all()
    views = layout.views(flat)
    assert list(views) == list(parameters)
    assert all(torch.equal(views[name], p) for name, p in parameters.items())


def test_views_share_the_memory_of_the_flat_tensor() -> None:
    parameters = agent_numbers(4, 2)
    layout = FlatLayout(parameters, 2)
    flat = layout.flatten(parameters)
    views = layout.views(flat)
    flat[2, 1] = -7
    for name, view in views.items():
        assert (view[2, 1] == -7).all() and (view[2, 0] == parameters[name][2, 0]).all(), name
    views["b"][3, 0, 1, 4] = -9
    assert (flat == -9).sum() == 1 and flat[3, 0, 3 + 9] == -9
    assert (parameters["b"] > 0).all()  # of which `flatten` made a copy


@pytest.mark.parametrize(("num_entries", "padded"), [(1, 16), (16, 16), (17, 32), (160, 160)])
def test_a_flat_tensor_is_as_wide_as_whole_vectors(num_entries: int, padded: int) -> None:
    parameters = {"only": torch.ones(3, num_entries)}
    assert FlatLayout(parameters, 1).flatten(parameters).shape == (3, padded)


def test_layer_norm_of_one_agent_is_a_layer_norm(generator: torch.Generator) -> None:
    x, weight, bias = (randn(*shape, generator=generator) for shape in ((3, 5, 6), (3, 6), (3, 6)))
    out = stacked_layer_norm(x, weight, bias, 1e-2)
    for agent in range(NUM_AGENTS):
        torch.testing.assert_close(out[agent], F.layer_norm(x[agent], (6,), weight[agent], bias[agent], eps=1e-2))


def test_layer_norm_has_first_and_second_derivatives(generator: torch.Generator) -> None:
    """Reverse over reverse; through torch's layer norm, reverse over forward is silently wrong (torch 2.13), and nothing uses it."""
    inputs = [randn(*shape, generator=generator).requires_grad_() for shape in ((3, 5, 6), (3, 6), (3, 6))]

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return stacked_layer_norm(x, weight, bias, 1e-2)

    assert torch.autograd.gradcheck(norm, inputs) and torch.autograd.gradgradcheck(norm, inputs)


def test_mixed_is_relu_then_square() -> None:
    assert mixed(torch.tensor([-1.0, 2.0, -3.0, 4.0])).tolist() == [0.0, 2.0, 9.0, 16.0]


@pytest.mark.parametrize(
    "mlp",
    [
        StackedMLP(2, layer_norm_eps=1e-2),
        StackedMLP(3, mixed, 1e-5, has_out=False, prefix="a."),
        StackedMLP(1, mixed, None, prefix="b."),
    ],
    ids=["policy", "no_out", "no_norm"],
)
def test_stacked_agents_are_ordinary_networks(mlp: StackedMLP, generator: torch.Generator) -> None:
    parameters, x = random_parameters(mlp, generator), randn(NUM_AGENTS, NUM_ROWS, NUM_IN, generator=generator)
    out = mlp(parameters, x)
    assert out.shape == (NUM_AGENTS, NUM_ROWS, NUM_OUT if mlp.has_out else NUM_UNITS)
    for agent in range(NUM_AGENTS):
        own = {name.removeprefix(mlp.prefix): p[agent] for name, p in parameters.items()}
        h = x[agent]
        for k in range(mlp.num_hidden):
            h = mlp.activation(F.linear(h, own.pop(f"hidden.{k}.weight").T, own.pop(f"hidden.{k}.bias")))
            if mlp.layer_norm_eps is not None:
                h = F.layer_norm(h, (NUM_UNITS,), own.pop(f"norm.{k}.weight"), own.pop(f"norm.{k}.bias"), mlp.layer_norm_eps)
        if mlp.has_out:
            h = F.linear(h, own.pop("out.weight").T, own.pop("out.bias"))
        torch.testing.assert_close(out[agent], h)
        assert not own  # nothing is initialised that the network does not use


def test_init(generator: torch.Generator) -> None:
    single = StackedMLP(2).init(NUM_IN, NUM_UNITS, NUM_OUT, generator)
    shapes = {name: tuple(p.shape) for name, p in single.items() if name.endswith("weight")}
    assert shapes == {
        "hidden.0.weight": (4, 6),
        "hidden.1.weight": (6, 6),
        "norm.0.weight": (6,),
        "norm.1.weight": (6,),
        "out.weight": (6, 2),
    }
    for name, p in single.items():
        if name.endswith("bias"):
            assert p.eq(0).all()
        elif name.startswith("norm"):
            assert p.eq(1).all()
    again = StackedMLP(2).init(NUM_IN, NUM_UNITS, NUM_OUT, torch.Generator().manual_seed(0))
    assert all(torch.equal(single[name], again[name]) for name in single)


def test_glorot_bounds(generator: torch.Generator) -> None:
    weight = glorot_uniform(40, 60, generator)
    bound = math.sqrt(6 / (40 + 60))
    assert weight.shape == (40, 60)
    assert weight.abs().max() <= bound
    assert weight.min() < -0.99 * bound and weight.max() > 0.99 * bound
    # 2400 uniform draws: the variance, bound^2 / 3, has a standard error of 1.8 %, the mean one of 1.2 % of the bound.
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.08)
    assert abs(weight.mean().item()) < 0.05 * bound


def gradients_of(*sizes: float) -> Parameters:
    """One agent per size: 3, 4 and 12 times the size in two parameters, so the global norm is 13 sizes."""
    size = torch.tensor(sizes, dtype=torch.float64)
    return {"a": torch.stack([3 * size, 4 * size], 1).unsqueeze(1), "b": 12 * size.unsqueeze(1)}  # [P, 1, 2], [P, 1]


def test_norm_is_over_all_parameters_of_an_agent() -> None:
    torch.testing.assert_close(norm_per_agent(gradients_of(1, 0.5, 0)), torch.tensor([13, 6.5, 0], dtype=torch.float64))


def test_scale_is_one_factor_per_agent() -> None:
    scaled = scale_per_agent(gradients_of(1, 2, 3), torch.tensor([1, 10, 100], dtype=torch.float64))
    for name, expected in gradients_of(1, 20, 300).items():
        torch.testing.assert_close(scaled[name], expected)


def test_clip_touches_only_agents_above_the_bound() -> None:
    big, small = 1e6, 0.1
    clipped = clip_per_agent(gradients_of(big, small, 1), 2.0)
    expected = gradients_of(2 / 13, small, 2 / 13)
    for name in expected:
        torch.testing.assert_close(clipped[name], expected[name])
        assert torch.equal(clipped[name][1], gradients_of(big, small, 1)[name][1])  # bit for bit
    torch.testing.assert_close(norm_per_agent(clipped), torch.tensor([2, 1.3, 2], dtype=torch.float64))


@pytest.mark.parametrize("max_norm", [1e17, 1e20, math.inf])
def test_a_bound_that_no_gradient_reaches_changes_nothing(max_norm: float) -> None:
    """The square of 1e20 is no float32."""
    gradients = {name: gradient.float() for name, gradient in gradients_of(1, 0, 3).items()}
    for name, clipped in clip_per_agent(gradients, max_norm).items():
        torch.testing.assert_close(clipped, gradients[name])


def test_clip_of_a_zero_gradient_can_be_differentiated() -> None:
    """The norm's slope is infinite at 0; an agent whose actions are all saturated has exactly this gradient."""
    gradients = gradients_of(0, 0.01, 1)
    slopes = torch.func.grad(lambda g: sum(x.sum() for x in clip_per_agent(g, 1.0).values()))(gradients)
    for slope in slopes.values():
        assert slope[0].eq(1).all() and slope[1].eq(1).all()
        assert slope[2].isfinite().all() and not slope[2].eq(1).any()
