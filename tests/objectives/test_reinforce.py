"""REINFORCE: the generalised advantage, step by step, and the loss that it weighs."""

import itertools
from typing import Any

import pytest
import torch
from objectives_inputs import (
    NUM_AGENTS,
    NUM_WINDOWS,
    REAL_ACTIONS,
    action_gradient_of,
    loss_of,
    random_inputs,
    small_mixture,
)
from torch import Tensor

from metagenrl_pl.objectives import ObjectiveInputs, Reinforce
from metagenrl_pl.objectives.reinforce import generalised_advantage


def naive_advantage(inputs: ObjectiveInputs, discount: float, gae_lambda: float) -> Tensor:
    """Step by step: the sum of (discount lambda)^k times the k-th TD error ahead, up to a terminal or the window's end."""
    advantage = torch.zeros_like(inputs.reward)
    for p, b in itertools.product(range(NUM_AGENTS), range(NUM_WINDOWS)):
        length = int(inputs.valid[p, b].sum())
        for t in range(length):
            for k in range(length - t):
                ended = float(inputs.terminated[p, b, t + k])
                following = inputs.value[p, b, t + k + 1] * (1 - ended)
                td_error = inputs.reward[p, b, t + k] + discount * following - inputs.value[p, b, t + k]
                advantage[p, b, t] += (discount * gae_lambda) ** k * td_error
                if ended:
                    break
    return advantage


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_advantage(gae_lambda: float) -> None:
    inputs = random_inputs()
    inputs.terminated[0, 0, 2] = 1  # also in the middle of a window
    advantage = generalised_advantage(inputs, 0.9, gae_lambda) * inputs.valid
    torch.testing.assert_close(advantage, naive_advantage(inputs, 0.9, gae_lambda))
    assert not torch.allclose(advantage, naive_advantage(inputs, 0.9, 0.5))


def test_advantage_with_lambda_one_is_the_return_minus_the_value() -> None:
    """Rewards 1, 1, 1 with discount 0.5 and value 8 afterwards: 1 + 0.5 + 0.25 + 8 / 8 = 2.75, less V = 4."""
    ones = torch.ones(1, 1, 3)
    inputs = random_inputs()._replace(
        reward=ones, value=torch.tensor([[[4.0, 5.0, 6.0, 8.0]]]), terminated=torch.zeros_like(ones), valid=ones
    )
    assert generalised_advantage(inputs, 0.5, 1.0)[0, 0, 0].item() == pytest.approx(2.75 - 4)


def test_reinforce_loss_and_gradient() -> None:
    inputs, objective = random_inputs(), Reinforce(0.9, 0.7)
    advantage = naive_advantage(inputs, 0.9, 0.7)
    difference = inputs.policy_action - inputs.replay_action
    mean = torch.stack([difference[p, ..., :n].square().mean(-1) for p, n in enumerate(REAL_ACTIONS)])
    torch.testing.assert_close(loss_of(objective, inputs), mean * advantage)
    # The advantage is a constant: d/da (a_replay - a)^2 / A * GAE = 2 (a - a_replay) / A * GAE.
    expected = 2 * difference * inputs.action_weight[:, None, None] * advantage[..., None]
    torch.testing.assert_close(action_gradient_of(objective, inputs), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discount": 1.1}, "discount must be between 0 and 1, got 1.1"),
        ({"gae_lambda": -0.1}, "gae_lambda must be between 0 and 1"),
    ],
)
def test_reinforce_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reinforce(**arguments)
    with pytest.raises(ValueError, match=message):
        small_mixture(**arguments)
