"""Inner steps: what a policy step would do, differentiable in the gradient."""

import math

import pytest
import torch
from random_population import random_like
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.learning.inner_step import SGD, Adam, AdamMoments, InnerStep, NormalisedSGD

NUM_VALID = torch.tensor([10, 5, 8], dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("float64")


def policy_of_three() -> Parameters:
    return random_like({"weight": torch.empty(3, 4, 2), "bias": torch.empty(3, 2)}, seed=0)


def summed_gradient(seed: int) -> Parameters:
    """Of the sum; after division by `NUM_VALID`, agent 0 is far above norm 1, agent 1 far below and agent 2 at about 1."""
    scale = torch.tensor([1e4, 1e-2, 3.0])
    return {name: g * scale.view(-1, *[1] * (g.dim() - 1)) for name, g in random_like(policy_of_three(), seed).items()}


def test_sgd_steps_on_the_sum() -> None:
    policy, gradient = policy_of_three(), summed_gradient(1)
    stepped = SGD(step_size=0.5)(policy, gradient, NUM_VALID, None)
    for name in policy:
        torch.testing.assert_close(stepped[name], policy[name] - 0.5 * gradient[name])


def test_normalised_sgd_steps_as_far_for_every_agent() -> None:
    policy, gradient = policy_of_three(), summed_gradient(1)
    stepped = NormalisedSGD(step_size=0.5)(policy, gradient, NUM_VALID, None)
    larger = NormalisedSGD(step_size=0.5)(policy, {name: 10 * g for name, g in gradient.items()}, NUM_VALID, None)
    for agent in range(3):
        step = torch.cat([(policy[name] - stepped[name])[agent].flatten() for name in policy])
        direction = torch.cat([gradient[name][agent].flatten() for name in policy])
        torch.testing.assert_close(step, 0.5 * direction / direction.norm())
    for name in policy:
        torch.testing.assert_close(larger[name], stepped[name])


def test_normalised_sgd_does_not_step_without_a_gradient() -> None:
    policy = policy_of_three()
    gradient = {name: torch.zeros_like(p).requires_grad_() for name, p in policy.items()}
    stepped = NormalisedSGD()(policy, gradient, NUM_VALID, None)
    assert all(torch.equal(stepped[name], policy[name]) for name in policy)
    grads = torch.autograd.grad(sum(p.sum() for p in stepped.values()), list(gradient.values()))  # type: ignore[arg-type]
    assert all(torch.isfinite(g).all() for g in grads)


def test_normalised_sgd_derivative() -> None:
    policy = policy_of_three()

    def step(*gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(NormalisedSGD()(policy, dict(zip(policy, gradient, strict=True)), NUM_VALID, None).values())

    assert torch.autograd.gradcheck(step, [g.requires_grad_() for g in random_like(policy, 99).values()])


def real_optimizer(policy: Parameters, max_norm: float | None, num_steps: int) -> tuple[torch.optim.Adam, list[Tensor]]:
    """Adam, `num_steps` real steps on its way, each on the mean gradient, clipped agent by agent."""
    parameters = [policy[name].clone() for name in policy]
    optimizer = torch.optim.Adam(parameters, lr=0.01, fused=True)
    for seed in range(num_steps):
        real_step(optimizer, parameters, summed_gradient(seed), max_norm)
    return optimizer, parameters


def real_step(optimizer: torch.optim.Adam, parameters: list[Tensor], gradient: Parameters, max_norm: float | None) -> None:
    means = [(g.flatten(1) / NUM_VALID[:, None]).view_as(g) for g in gradient.values()]
    if max_norm is not None:
        for agent in range(3):
            norm = math.sqrt(sum(float((g[agent] ** 2).sum()) for g in means))
            for g in means:
                g[agent] *= min(1.0, max_norm / norm)
    for p, g in zip(parameters, means, strict=True):
        p.grad = g
    optimizer.step()


def moments_of(optimizer: torch.optim.Adam, policy: Parameters, parameters: list[Tensor]) -> AdamMoments:
    states = [optimizer.state[p] for p in parameters]
    first = {name: state["exp_avg"].clone() for name, state in zip(policy, states, strict=True)}
    second = {name: state["exp_avg_sq"].clone() for name, state in zip(policy, states, strict=True)}
    return AdamMoments(first, second, states[0]["step"].repeat(len(next(iter(policy.values())))))


@pytest.mark.parametrize("max_norm", [1.0, None])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_adam_is_the_step_of_the_real_optimizer(max_norm: float | None, num_steps: int) -> None:
    names = list(policy_of_three())
    optimizer, parameters = real_optimizer(policy_of_three(), max_norm, num_steps)
    before = [p.clone() for p in parameters]
    policy = dict(zip(names, before, strict=True))
    moments = moments_of(optimizer, policy, parameters)
    stepped = Adam(learning_rate=0.01, max_gradient_norm=max_norm)(policy, summed_gradient(99), NUM_VALID, moments)
    real_step(optimizer, parameters, summed_gradient(99), max_norm)
    for name, old, new in zip(names, before, parameters, strict=True):
        torch.testing.assert_close(stepped[name] - old, new - old, rtol=1e-10, atol=0)


def test_adam_leaves_moments_and_policy_alone() -> None:
    policy = policy_of_three()
    optimizer, parameters = real_optimizer(policy, 1.0, 2)
    moments = moments_of(optimizer, policy, parameters)
    old = moments_of(optimizer, policy, parameters)
    Adam()(policy, summed_gradient(99), NUM_VALID, moments)
    for name in policy:
        assert torch.equal(moments.first[name], old.first[name])
        assert torch.equal(moments.second[name], old.second[name])
        assert torch.equal(policy[name], policy_of_three()[name])
    assert moments.num_steps.tolist() == old.num_steps.tolist() == [2, 2, 2]


def test_adam_derivative() -> None:
    """Through both moments and the clipping, whose factor depends on the gradient too."""
    policy = policy_of_three()
    optimizer, parameters = real_optimizer(policy, 1.0, 2)
    moments = moments_of(optimizer, policy, parameters)

    def step(*gradient: Tensor) -> tuple[Tensor, ...]:
        stepped = Adam(learning_rate=1.0)(policy, dict(zip(policy, gradient, strict=True)), NUM_VALID, moments)
        return tuple(stepped.values())

    # Mean gradients of norm about 10, so that all are clipped, or about 0.3, so that none is.
    for scale in (20.0, 0.5):
        gradient = [(scale * g).requires_grad_() for g in random_like(policy, 99).values()]
        assert torch.autograd.gradcheck(step, gradient, rtol=1e-5)


@pytest.mark.parametrize("zero", ["one entry", "one agent"])
def test_no_nan_where_there_never_was_a_gradient(zero: str) -> None:
    policy = policy_of_three()
    first, second = ({name: torch.ones_like(p) for name, p in policy.items()} for _ in range(2))
    moments = AdamMoments(first, second, torch.full((3,), 3.0))
    gradient = random_like(policy, 1)
    for tensors in (moments.first, moments.second, gradient):
        if zero == "one entry":
            tensors["weight"][1, 0, 0] = 0
        else:
            for x in tensors.values():
                x[1] = 0

    def total(gradient: Parameters) -> Tensor:
        stepped = Adam()(policy, gradient, NUM_VALID, moments)
        assert torch.equal(stepped["weight"][1, 0, 0], policy["weight"][1, 0, 0])
        # As in the meta-loss, where what has no gradient has no effect either.
        return sum(((p - policy[name]) ** 2).sum() for name, p in stepped.items())  # type: ignore[return-value]

    slopes = torch.func.grad(total)(gradient)
    for slope in slopes.values():
        assert slope.isfinite().all() and slope[0].ne(0).all()


@pytest.mark.parametrize(
    ("inner", "arguments"),
    [
        (SGD, {"step_size": 0.0}),
        (SGD, {"step_size": float("nan")}),
        (SGD, {"num_steps": 0}),
        (Adam, {"num_steps": 0}),
        (Adam, {"learning_rate": -1e-3}),
        (Adam, {"max_gradient_norm": 0.0}),
    ],
)
def test_refuses(inner: type[InnerStep], arguments: dict[str, float]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        inner(**arguments)  # type: ignore[arg-type]
