"""The contract that every objective keeps: padding, agents that do not mix, and the action gradient; and what is refused."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from objectives_inputs import LENGTH, NUM_AGENTS, NUM_STEPS, action_gradient_of, loss_of, random_inputs, small, small_mixture
from torch import Tensor

from metagenrl_pl.objectives import (
    CriticObjective,
    LearnedObjective,
    Objective,
    ObjectiveInputs,
    Reinforce,
)


def small_with_critic_gradient() -> LearnedObjective:
    return small(use_value=False, use_critic_gradient=True)


OBJECTIVES: list[Callable[[], Objective]] = [small, small_with_critic_gradient, small_mixture, Reinforce, CriticObjective]


@pytest.mark.parametrize("make", OBJECTIVES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda objective: pickle.loads(pickle.dumps(objective))])
def test_an_objective_can_be_copied_and_sent_to_a_process(
    make: Callable[[], Objective], copied: Callable[[Objective], Objective]
) -> None:
    objective, inputs = make(), random_inputs()
    other = copied(objective)
    parameters = objective.stacked_parameters(NUM_AGENTS)
    assert torch.equal(other.loss(parameters, inputs), objective.loss(parameters, inputs))
    for one, another in zip(*(x.loss_and_action_gradient(parameters, inputs) for x in (objective, other)), strict=True):
        assert torch.equal(one, another)


def with_garbage_where_padded(inputs: ObjectiveInputs) -> ObjectiveInputs:
    """Other numbers in everything that belongs to no valid step."""
    other = random_inputs(torch.full_like(LENGTH, NUM_STEPS), seed=1)
    is_state = torch.cat([torch.ones_like(inputs.valid[..., :1]), inputs.valid], -1)
    masks = {"value": is_state} | {name: inputs.valid for name in ("reward", "terminated")}
    masks |= {name: inputs.valid[..., None] for name in ("policy_action", "replay_action", "critic_gradient")}
    changed = {}
    for name, mask in masks.items():
        garbage = 1 - getattr(inputs, name) if name == "terminated" else 100 * getattr(other, name) + 7
        changed[name] = torch.where(mask.expand_as(garbage) > 0, getattr(inputs, name), garbage)
    return inputs._replace(**changed)


@pytest.mark.parametrize("make", OBJECTIVES)
def test_padded_steps_have_no_loss_and_no_influence(make: Callable[[], Objective]) -> None:
    objective, inputs = make(), random_inputs()
    changed = with_garbage_where_padded(inputs)
    assert not torch.equal(changed.reward, inputs.reward) and not torch.equal(changed.value, inputs.value)
    padded = inputs.valid == 0
    for x in (inputs, changed):
        loss, gradient = loss_of(objective, x), action_gradient_of(objective, x)
        assert loss.shape == x.reward.shape and gradient.shape == x.policy_action.shape
        assert loss[padded].eq(0).all() and gradient[padded].eq(0).all()
        assert loss[~padded].ne(0).all()
    torch.testing.assert_close(loss_of(objective, changed), loss_of(objective, inputs), rtol=1e-10, atol=0)
    torch.testing.assert_close(
        action_gradient_of(objective, changed), action_gradient_of(objective, inputs), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("make", OBJECTIVES)
def test_agents_do_not_see_each_other(make: Callable[[], Objective]) -> None:
    objective, inputs, other = make(), random_inputs(), random_inputs(seed=1)
    mixed = inputs._replace(
        **{
            name: torch.stack([getattr(inputs, name)[0], getattr(other, name)[1]])
            for name in ("policy_action", "replay_action", "reward", "value", "critic_gradient")
        }
    )
    assert torch.equal(loss_of(objective, mixed)[0], loss_of(objective, inputs)[0])
    assert not torch.equal(loss_of(objective, mixed)[1], loss_of(objective, inputs)[1])
    assert torch.equal(action_gradient_of(objective, mixed)[0], action_gradient_of(objective, inputs)[0])


@pytest.mark.parametrize("make", [small, small_with_critic_gradient, small_mixture, Reinforce])
def test_padded_action_dimensions_are_not_seen(make: Callable[[], Objective]) -> None:
    objective, inputs = make(), random_inputs()
    replay, policy = inputs.replay_action.clone(), inputs.policy_action.clone()
    replay[1, ..., 1], policy[1, ..., 1] = 0.3, -0.9
    changed = inputs._replace(replay_action=replay, policy_action=policy)
    torch.testing.assert_close(loss_of(objective, changed), loss_of(objective, inputs), rtol=1e-12, atol=0)
    assert action_gradient_of(objective, changed)[1, ..., 1].eq(0).all()
    # One agent's mean is over its one real dimension: the same as if there were no second.
    alone = ObjectiveInputs(*(None if x is None else x[1:] for x in changed))  # type: ignore[arg-type]
    alone = alone._replace(
        action_weight=torch.ones(1, 1),
        **{name: getattr(alone, name)[..., :1] for name in ("policy_action", "replay_action", "critic_gradient")},
    )
    own = objective.loss(objective.stacked_parameters(1), alone)
    torch.testing.assert_close(own[0], loss_of(objective, inputs)[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", OBJECTIVES)
def test_the_loss_has_the_action_gradient(make: Callable[[], Objective]) -> None:
    """By autograd, as anybody's training loop takes it."""
    objective, inputs = make(), random_inputs()
    action = inputs.policy_action.clone().requires_grad_()
    loss_of(objective, inputs._replace(policy_action=action)).sum().backward()
    torch.testing.assert_close(action.grad, action_gradient_of(objective, inputs))


# Without the mixture: its loss holds g constant, though g depends on the action.
@pytest.mark.parametrize("make", [small, small_with_critic_gradient, Reinforce, CriticObjective])
def test_action_gradient_is_the_derivative_of_the_sum(make: Callable[[], Objective]) -> None:
    objective, inputs = make(), random_inputs()
    direction, h = random_inputs(seed=2).policy_action, 1e-6

    def moved(step: float) -> Tensor:
        return loss_of(objective, inputs._replace(policy_action=inputs.policy_action + step * direction)).sum((1, 2))

    expected = (moved(h) - moved(-h)) / (2 * h)
    gradient = action_gradient_of(objective, inputs)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), expected, rtol=1e-6, atol=1e-9)


def test_only_a_learned_objective_learns() -> None:
    assert [make().learns for make in OBJECTIVES] == [True, True, True, False, False]
    assert [make().needs_critic_gradient for make in OBJECTIVES] == [False, True, True, False, True]


@pytest.mark.parametrize("make", [small, small_mixture, CriticObjective])
def test_there_are_no_other_critics(make: Callable[..., Objective]) -> None:
    with pytest.raises(ValueError, match="critic_gradient_of must be first or both, got 'second'"):
        make(critic_gradient_of="second")
