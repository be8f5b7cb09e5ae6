"""The learned mixture of the critic and REINFORCE."""

import math
from pathlib import Path

import torch
from objectives_inputs import NUM_AGENTS, NUM_STEPS, action_gradient_of, loss_of, random_inputs, small_mixture

from metagenrl_pl.objectives import CriticObjective, LearnedMixture, LearnedObjective, Reinforce


def test_the_mixture_weighs_both_gradients_by_what_the_network_says() -> None:
    """All weights of the head's last layer 0: softplus of its bias everywhere, here of 2 and -1."""
    objective, inputs = small_mixture(), random_inputs()
    with torch.no_grad():  # a test's own change
        objective.get_parameter("head.out.weight").zero_()
        objective.get_parameter("head.out.bias").copy_(torch.tensor([2.0, -1.0]))
    parts = []
    for part in (CriticObjective(), Reinforce()):
        gradient = part.action_gradient({}, inputs)
        # Root mean square over 9 and 11 valid steps (LENGTH), each the mean over 2 and 1 action dimensions.
        mean_square = (gradient**2).sum((1, 2, 3)) / torch.tensor([9 * 2, 11 * 1])
        parts.append(gradient / mean_square.sqrt()[:, None, None, None])
    expected = math.log(1 + math.exp(2)) * parts[0] + math.log(1 + math.exp(-1)) * parts[1]
    torch.testing.assert_close(action_gradient_of(objective, inputs), expected, rtol=1e-6, atol=1e-9)


def test_the_mixtures_weights_depend_on_what_comes_later() -> None:
    """They are positive, differ from step to step, and follow what happens at a later step, not at an earlier one."""
    objective, inputs = small_mixture(), random_inputs(torch.full((2, 3), NUM_STEPS))
    later = inputs._replace(terminated=inputs.terminated.clone())
    later.terminated[:, 0, 3] = 1.0
    parameters = objective.stacked_parameters(NUM_AGENTS)
    before, after = (objective.weights(parameters, x) for x in (inputs, later))
    assert before.shape == (2, 3, NUM_STEPS, 2) and (before > 0).all() and before[:, :, 0].ne(before[:, :, 1]).all()
    changed = before.ne(after).all(-1)
    assert changed[:, 0, :4].all() and not changed[:, 0, 4:].any() and not changed[:, 1:].any()


def test_a_mixture_is_saved_with_its_options(tmp_path: Path) -> None:
    objective, inputs = small_mixture(discount=0.9, gae_lambda=0.5, use_time=False), random_inputs()
    objective.save(tmp_path / "mixture.safetensors")
    loaded = LearnedObjective.load(tmp_path / "mixture.safetensors")
    assert type(loaded) is LearnedMixture and loaded.architecture == objective.architecture
    assert torch.equal(loss_of(loaded, inputs), loss_of(objective, inputs))
    assert not torch.equal(loss_of(small_mixture(use_time=False), inputs), loss_of(objective, inputs))
