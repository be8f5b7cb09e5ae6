"""Small objectives, and random inputs of two agents for them, that several test files compute on."""

import itertools
from typing import Any

import torch
from torch import Tensor

from metagenrl_pl.objectives import LearnedMixture, LearnedObjective, Objective, ObjectiveInputs

NUM_AGENTS, NUM_WINDOWS, NUM_STEPS, NUM_ACTIONS = 2, 3, 5, 2
LENGTH = torch.tensor([[5, 3, 1], [5, 4, 2]])
REAL_ACTIONS = [2, 1]  # the second agent's second action dimension is padded
FIGURE_5 = [
    dict(zip(("use_time", "use_value", "use_lstm", "bounded_head"), values, strict=True))
    for values in itertools.product([True, False], repeat=4)
]


def small(**options: Any) -> LearnedObjective:
    return LearnedObjective(**{"hidden_units": 4, "context_units": 3, **options})


def small_mixture(**options: Any) -> LearnedMixture:
    return LearnedMixture(**{"hidden_units": 4, "context_units": 3, **options})


def random_inputs(length: Tensor = LENGTH, seed: int = 0) -> ObjectiveInputs:
    """With zeros where padded, and a terminal at the end of each agent's second window."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.arange(NUM_STEPS + 1)
    valid = (step[:-1] < length[..., None]).double()
    terminated = torch.zeros_like(valid)
    terminated[:, 1] = (step[:-1] == length[:, 1, None] - 1).double()
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])

    def actions() -> Tensor:
        uniform = torch.rand(*valid.shape, NUM_ACTIONS, generator=generator) * 2 - 1
        return uniform * valid[..., None] * mask[:, None, None]

    return ObjectiveInputs(
        policy_action=actions(),
        replay_action=actions(),
        reward=torch.randn(valid.shape, generator=generator) * valid,
        value=3 + 2 * torch.randn(*length.shape, NUM_STEPS + 1, generator=generator) * (step <= length[..., None]),
        terminated=terminated,
        valid=valid,
        action_weight=mask / mask.sum(-1, keepdim=True),
        critic_gradient=actions(),
    )


def loss_of(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    return objective.loss(objective.stacked_parameters(NUM_AGENTS), inputs)


def action_gradient_of(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    return objective.action_gradient(objective.stacked_parameters(NUM_AGENTS), inputs)
