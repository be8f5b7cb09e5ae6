"""Judges: what a policy's loss is made of, and what it does not depend on."""

import pytest
import torch
from random_population import random_windows, small_population
from torch import Tensor

from metagenrl_pl.agents.networks import first_critic
from metagenrl_pl.agents.population import Population
from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent, scale_per_agent
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.learning.judges import CriticJudge, Judge, ReturnsJudge
from metagenrl_pl.learning.policy_update import objective_inputs
from metagenrl_pl.objectives import CriticObjective, Reinforce

NUM_WINDOWS = 3  # B


pytestmark = pytest.mark.usefixtures("float64")


def loss_of(judge: Judge, population: Population, windows: Windows) -> Tensor:
    """Of the policies as they are, [P]."""
    action = population.networks.action(population.policy, windows.observation)
    return judge.loss(population.networks, action, population.policy, population.critics, windows)


def gradient_of(judge: Judge, population: Population, windows: Windows) -> Parameters:
    """In the stepped policies, at the policies as they are, [P, ...]."""
    networks, policy, critics = population.networks, population.policy, population.critics

    def total(stepped: Parameters) -> Tensor:
        return judge.loss(networks, networks.action(stepped, windows.observation), policy, critics, windows).sum()

    return torch.func.grad(total)(policy)


def unit(gradient: Parameters) -> Parameters:
    return scale_per_agent(gradient, 1 / norm_per_agent(gradient))


def assert_all_close(actual: Parameters, expected: Parameters) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=1e-9)


def with_larger_critics(population: Population, factor: float) -> Population:
    for name, p in population.critics.items():
        if name.startswith("out."):
            p.mul_(factor)
    return population


def test_the_critic_judges_by_the_mean_over_valid_steps() -> None:
    population, windows = small_population(), random_windows(NUM_WINDOWS)
    critic, loss = first_critic(population.critics), loss_of(CriticJudge(), population, windows)
    for agent in range(3):
        observation = windows.observation[:, windows.valid[agent] > 0]  # [P, valid, O]
        value = population.networks.q(critic, observation, population.networks.action(population.policy, observation))
        torch.testing.assert_close(loss[agent], -value[agent].mean())


@pytest.mark.parametrize("judge", [CriticJudge(), ReturnsJudge(0.4)], ids=["critic", "returns"])
def test_the_first_critic_judges_alone(judge: Judge) -> None:
    losses = {}
    for raised in (None, 0, 1):
        population = small_population()
        if raised is not None:
            population.critics["out.bias"][:, raised] += 7
        losses[raised] = loss_of(judge, population, random_windows(NUM_WINDOWS))
    assert torch.equal(losses[1], losses[None])
    assert (losses[0] < losses[None] - 0.1).all()
    if isinstance(judge, CriticJudge):
        torch.testing.assert_close(losses[0], losses[None] - 7)


def test_returns_judge_beside_the_critic() -> None:
    """Slopes of the meta-loss in the action: those of the critic and of REINFORCE, each with root mean square 1, by their shares."""
    population, windows = small_population(), random_windows(NUM_WINDOWS)
    networks, policy, critics = population.networks, population.policy, population.critics
    action = networks.action(policy, windows.observation)
    slopes = [
        made.action_gradient({}, objective_inputs(networks, made, policy, critics, windows, action))
        for made in (CriticObjective(), Reinforce())
    ]
    of_real = (networks.action_mask[:, None, None] * windows.valid[..., None]).bool()  # [P, B, T, A]
    scaled = torch.stack(slopes)
    for agent in range(3):
        scaled[:, agent] /= torch.stack([slope[agent][of_real[agent]].square().mean().sqrt() for slope in slopes]).view(
            -1, 1, 1, 1
        )

    for share in (0.3, 1.0):
        gradient = gradient_of(ReturnsJudge(share), population, windows)
        _, pull_back = torch.func.vjp(lambda phi: networks.action(phi, windows.observation), policy)  # type: ignore[misc]
        blend = (1 - share) * scaled[0] + share * scaled[1]
        (expected,) = pull_back(blend / windows.num_valid.view(-1, 1, 1, 1))
        assert_all_close(gradient, expected)


def test_without_a_share_of_returns_the_direction_is_the_critics() -> None:
    population, windows = small_population(), random_windows(NUM_WINDOWS)
    by_critic, none, some = (
        unit(gradient_of(judge, population, windows)) for judge in (CriticJudge(), ReturnsJudge(0.0), ReturnsJudge(0.4))
    )
    assert_all_close(none, by_critic)
    assert (norm_per_agent({name: g - by_critic[name] for name, g in some.items()}) > 0.1).all()


def test_the_share_means_the_same_for_values_of_any_size() -> None:
    """Rewards and critics 50 times as large make both parts 50 times as large; critics alone, the critic's part."""
    windows = random_windows(NUM_WINDOWS)
    larger = windows._replace(reward=50 * windows.reward)
    for judge, other in ((ReturnsJudge(0.4), larger), (ReturnsJudge(0.0), windows)):
        expected = gradient_of(judge, small_population(), windows)
        assert_all_close(gradient_of(judge, with_larger_critics(small_population(), 50), other), expected)
    norms = [
        norm_per_agent(gradient_of(CriticJudge(), with_larger_critics(small_population(), factor), windows)) for factor in (1, 50)
    ]
    torch.testing.assert_close(norms[1], 50 * norms[0])


def test_returns_judge_by_rewards_and_the_critic_does_not() -> None:
    """Rewards 3 higher at every step raise all advantages, so that nearness to replayed actions is worth more."""
    population, windows = small_population(), random_windows(NUM_WINDOWS)
    higher = windows._replace(reward=windows.reward + 3 * windows.valid)
    changes = {
        judge: loss_of(judge, population, higher) - loss_of(judge, population, windows)
        for judge in (CriticJudge(), ReturnsJudge(0.0), ReturnsJudge(1.0))
    }
    by_critic, by_no_returns, by_returns = changes.values()
    assert by_critic.eq(0).all() and by_no_returns.eq(0).all()
    assert (by_returns.abs() > 0.05).all()


def test_returns_judge_by_their_own_discount_and_lambda() -> None:
    population, windows = small_population(), random_windows(NUM_WINDOWS)
    usual = loss_of(ReturnsJudge(1.0), population, windows)
    for options in ({"discount": 0.5}, {"gae_lambda": 0.0}):
        assert loss_of(ReturnsJudge(1.0, **options), population, windows).ne(usual).all(), options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share must be between 0 and 1, got 1.5"),
        ({"share": -0.1}, "share must be between 0 and 1, got -0.1"),
        ({"discount": 1.1}, "discount must be between 0 and 1, got 1.1"),
        ({"gae_lambda": -0.1}, "gae_lambda must be between 0 and 1, got -0.1"),
    ],
)
def test_a_judge_by_returns_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReturnsJudge(**options)


@pytest.mark.parametrize("judge", [CriticJudge(), ReturnsJudge(0.4)], ids=["critic", "returns"])
def test_gradients_written_out_are_those_of_autograd(judge: Judge) -> None:
    population, windows = small_population(), random_windows(NUM_WINDOWS)
    networks, policy, critics = population.networks, population.policy, population.critics
    action = networks.action(policy, windows.observation) * 0.7  # not the action before the step
    loss, gradient = judge.loss_and_gradient(networks, action, policy, critics, windows)
    same_loss, expected = Judge.loss_and_gradient(judge, networks, action, policy, critics, windows)
    torch.testing.assert_close(loss, same_loss)
    torch.testing.assert_close(gradient, expected * networks.action_mask[:, None, None], rtol=1e-6, atol=1e-12)
