"""Objectives: the contract, the learned objective and its options, REINFORCE and the critic."""

import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_population import random_windows, small_population
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metagenrl_pl.lstm import BackwardLSTM
from metagenrl_pl.networks import first_critic
from metagenrl_pl.nn import Parameters, norm_per_agent, stacked_linear
from metagenrl_pl.objectives import (
    CriticObjective,
    LearnedMixture,
    LearnedObjective,
    Objective,
    ObjectiveEnsemble,
    ObjectiveInputs,
    ParametricObjective,
    Reinforce,
)
from metagenrl_pl.objectives.contract import check_loss
from metagenrl_pl.objectives.learned import normalise
from metagenrl_pl.objectives.parametric import UnknownObjectiveError, pretrained_path
from metagenrl_pl.objectives.reinforce import generalised_advantage
from metagenrl_pl.updates import policy_gradients
from metagenrl_pl.updates.policy import objective_inputs

NUM_AGENTS, NUM_WINDOWS, NUM_STEPS, NUM_ACTIONS = 2, 3, 5, 2
LENGTH = torch.tensor([[5, 3, 1], [5, 4, 2]])
REAL_ACTIONS = [2, 1]  # the second agent's second action dimension is padded


@pytest.fixture(autouse=True)
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(**options: Any) -> LearnedObjective:
    return LearnedObjective(**{"hidden_units": 4, "context_units": 3, **options})


def small_mixture(**options: Any) -> LearnedMixture:
    return LearnedMixture(**{"hidden_units": 4, "context_units": 3, **options})


def small_with_advantage() -> LearnedObjective:
    return small(use_advantage=True)


def small_ensemble() -> ObjectiveEnsemble:
    return ObjectiveEnsemble.of([small(seed=1), small_mixture(seed=2), small(use_value=False, use_critic_gradient=True)])


OBJECTIVES: list[Callable[[], Objective]] = [
    small,
    Reinforce,
    CriticObjective,
    small_mixture,
    small_with_advantage,
    small_ensemble,
]


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


# The contract


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


@pytest.mark.parametrize("make", [small, Reinforce, small_mixture, small_ensemble])
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


@pytest.mark.parametrize(
    "make", [small, Reinforce, CriticObjective, small_with_advantage]
)  # not those whose loss holds g constant
def test_action_gradient_is_the_derivative_of_the_sum(make: Callable[[], Objective]) -> None:
    objective, inputs = make(), random_inputs()
    direction, h = random_inputs(seed=2).policy_action, 1e-6

    def moved(step: float) -> Tensor:
        return loss_of(objective, inputs._replace(policy_action=inputs.policy_action + step * direction)).sum((1, 2))

    expected = (moved(h) - moved(-h)) / (2 * h)
    gradient = action_gradient_of(objective, inputs)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), expected, rtol=1e-6, atol=1e-9)


def test_only_the_learned_objective_learns() -> None:
    assert LearnedObjective().learns and not Reinforce().learns and not CriticObjective().learns
    assert [make().needs_critic_gradient for make in OBJECTIVES] == [False, False, True, True, False, True]


# The learned objective


def test_parameter_count() -> None:
    """The sizes behind 15,497.

    Action branch: 3 * 32 + 2 * 33 * 32 + 3 norms of 64 = 2400. Context branch: 5 * 32 + 33 * 32 + 33 * 8 = 1480.
    LSTM: (40 + 32 + 1) * 128 = 9344. Head: 2 * 33 * 32 + 2 norms of 64 + 33 = 2273.
    """
    assert sum(p.numel() for p in LearnedObjective().parameters()) == 2400 + 1480 + 9344 + 2273 == 15_497


def test_initial_weights_follow_from_the_seed() -> None:
    first, again, other = small(seed=1), small(seed=1), small(seed=2)
    for name, p in first.named_parameters():
        assert torch.equal(p, again.get_parameter(name))
        if name.endswith("weight") and "norm" not in name or name.startswith("lstm.weight"):
            assert not torch.equal(p, other.get_parameter(name))
    kernel = torch.cat([first.get_parameter("lstm.weight_input"), first.get_parameter("lstm.weight_hidden")])
    bound = (6 / (4 + 3 + 4 + 4 * 4)) ** 0.5  # one matrix [features + hidden, 4 hidden]
    assert 0.9 * bound < kernel.abs().max() <= bound


def test_normalise_over_valid_entries() -> None:
    x, valid = torch.tensor([[[1.0, 3.0, 99.0], [5.0, -7.0, -7.0]]]), torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    # Entries 1, 3 and 5: mean 3, population variance 8 / 3.
    expected = torch.tensor([-2.0, 0.0, 2.0]) / (8 / 3) ** 0.5
    torch.testing.assert_close(normalise(x, valid)[valid > 0], expected, rtol=1e-7, atol=1e-12)
    assert normalise(torch.full((1, 2, 3), 4.0), torch.ones(1, 2, 3)).eq(0).all()


def test_reward_and_value_are_seen_up_to_shift_and_scale() -> None:
    objective, inputs = small(), random_inputs()
    moved = inputs._replace(reward=5 + 100 * inputs.reward, value=-3 + 10 * inputs.value)
    torch.testing.assert_close(loss_of(objective, moved), loss_of(objective, inputs), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(loss_of(objective, inputs._replace(reward=-inputs.reward)), loss_of(objective, inputs))


FIGURE_5 = [
    dict(zip(("use_time", "use_value", "use_lstm", "bounded_head"), values, strict=True))
    for values in itertools.product([True, False], repeat=4)
]


@pytest.mark.parametrize("options", FIGURE_5, ids=str)
def test_options_change_the_parameters_that_they_should(options: dict[str, bool]) -> None:
    shapes = {name: tuple(p.shape) for name, p in small(**options).named_parameters()}
    expected = {name: tuple(p.shape) for name, p in small().named_parameters()}
    expected["context_transform.hidden.0.weight"] = (1 + options["use_time"] + 2 * options["use_value"], 4)
    if not options["use_lstm"]:
        expected = {name: shape for name, shape in expected.items() if not name.startswith("lstm.")}
        expected["head.hidden.0.weight"] = (4 + 3, 4)  # reads the features themselves
    assert shapes == expected


@pytest.mark.parametrize("use_time", [True, False])
def test_use_time(use_time: bool) -> None:
    """In windows where every step is the same step, only time tells steps apart."""
    inputs = random_inputs(torch.full_like(LENGTH, NUM_STEPS))
    same = {
        name: getattr(inputs, name)[:, :, :1].expand_as(getattr(inputs, name))
        for name in ("policy_action", "replay_action", "reward")
    }
    inputs = inputs._replace(
        **same, value=inputs.value[:, :, :1].expand_as(inputs.value), terminated=torch.zeros_like(inputs.valid)
    )
    loss = loss_of(small(use_time=use_time, use_lstm=False), inputs)
    is_constant = (loss - loss[..., :1]).abs().amax((1, 2)) < 1e-12
    assert is_constant.all() == (not use_time) and is_constant.any() == (not use_time)


def test_time_is_the_step_over_the_window_length() -> None:
    inputs = random_inputs()
    context = small()._context(inputs)
    torch.testing.assert_close(context[..., 1], (torch.arange(NUM_STEPS) / NUM_STEPS).expand_as(inputs.reward))


def test_use_critic_gradient() -> None:
    objective, inputs = small(use_critic_gradient=True), random_inputs()
    critic_gradient = torch.randn(inputs.policy_action.shape, generator=torch.Generator().manual_seed(9))
    critic_gradient = critic_gradient * (inputs.action_weight > 0)[:, None, None] * inputs.valid[..., None]
    loss = loss_of(objective, inputs._replace(critic_gradient=critic_gradient))
    assert not torch.allclose(loss, loss_of(objective, inputs._replace(critic_gradient=-critic_gradient)))
    scaled = critic_gradient * torch.tensor([3.0, 0.5]).view(-1, 1, 1, 1)  # each agent's own scale does not matter
    torch.testing.assert_close(loss_of(objective, inputs._replace(critic_gradient=scaled)), loss, rtol=1e-4, atol=1e-6)
    padded = critic_gradient + 5 * (inputs.action_weight == 0)[:, None, None]
    assert torch.equal(loss_of(objective, inputs._replace(critic_gradient=padded)), loss)
    assert objective.action_transform.get_parameter("hidden.0.weight").shape == (3, 4)


@pytest.mark.parametrize("use_value", [True, False])
def test_use_advantage(use_value: bool) -> None:
    """As the last of the context: scaled, its sign kept, at most 2; values are computed for it whether or not they are inputs."""
    objective, inputs = small(use_advantage=True, use_value=use_value, discount=0.9, gae_lambda=0.7), random_inputs()
    assert objective.needs_value
    reward = inputs.reward.clone()
    reward[0, 0, 0] = 1000.0  # as a fall's, it drowns the others
    advantage = naive_advantage(inputs._replace(reward=reward), 0.9, 0.7)
    scaled = advantage / ((advantage**2).sum((1, 2)) / inputs.valid.sum((1, 2))).sqrt()[:, None, None]
    assert scaled[0, 0, 0] > 2
    context = objective._context(inputs._replace(reward=reward))
    assert context.shape[-1] == (5 if use_value else 3)
    torch.testing.assert_close(context[..., -1], scaled.clamp(-2, 2), rtol=1e-6, atol=1e-9)
    # Rewards ten times as large, values as before: without this input that cannot be seen.
    larger = inputs._replace(reward=10 * inputs.reward)
    assert not torch.allclose(loss_of(objective, larger), loss_of(objective, inputs))
    torch.testing.assert_close(loss_of(small(), larger), loss_of(small(), inputs), rtol=1e-5, atol=1e-7)


def test_alone_it_takes_what_an_environment_gives() -> None:
    """Ends as booleans, and no values where they are not looked at."""
    batch = [torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.arange(6.0).view(2, 3)]
    ended = torch.tensor([[0, 0, 1], [0, 0, 0]])
    value = torch.arange(8.0).view(2, 4)
    objective = small()
    assert torch.equal(
        objective(*batch, value, ended.bool(), ended.bool().logical_not()), objective(*batch, value, ended * 1.0, 1.0 - ended)
    )
    assert small(use_value=False)(*batch, None, ended.bool()).shape == (2, 3)
    with pytest.raises(ValueError, match="looks at value, and it is not given"):
        objective(*batch, None, ended)
    with pytest.raises(ValueError, match=r"value: expected \(2, 4\) beside actions of \(2, 3, 1\), got \(2, 3\)"):
        objective(*batch, value[:, 1:], ended)


def test_alone_an_objective_asks_for_the_critic_gradient_that_it_looks_at() -> None:
    objective = small(use_critic_gradient=True)
    batch = [torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3)]
    with pytest.raises(ValueError, match="looks at critic_gradient"):
        objective(*batch)
    assert objective(*batch, critic_gradient=torch.ones(2, 3, 1)).shape == (2, 3)


@pytest.mark.parametrize("use_value", [True, False])
def test_use_value(use_value: bool) -> None:
    objective, inputs = small(use_value=use_value), random_inputs()
    loss = loss_of(objective, inputs)
    others = random_inputs(seed=1).value
    assert torch.equal(loss_of(objective, inputs._replace(value=others)), loss) == (not use_value)
    # Whether an episode ended reaches the objective through V(s') alone.
    unended = inputs._replace(terminated=torch.zeros_like(inputs.terminated))
    changed = (loss_of(objective, unended) - loss).abs().amax(2) > 1e-9  # [P, B]
    assert changed.tolist() == [[False, use_value, False]] * NUM_AGENTS
    # The value of the state after a terminal is hidden, though it takes part in the normalisation of the others.
    context = objective._context(inputs)
    if use_value:
        assert context[inputs.terminated > 0][:, 2].eq(0).all()
        assert context[(inputs.terminated == 0) & (inputs.valid > 0)][:, 2].ne(0).all()


@pytest.mark.parametrize("step", [0, 2, 4])
@pytest.mark.parametrize("use_lstm", [True, False])
def test_use_lstm(step: int, use_lstm: bool) -> None:
    """With the LSTM a step is judged by its future, never by its past; without, by itself. Other windows never matter."""
    objective, inputs = small(use_lstm=use_lstm), random_inputs(torch.full_like(LENGTH, NUM_STEPS))
    action = inputs.policy_action.clone()
    action[:, 1, step] *= 0.5
    before, after = loss_of(objective, inputs), loss_of(objective, inputs._replace(policy_action=action))
    changed = after != before
    expected = torch.zeros_like(changed)
    expected[:, 1, : step + 1] = use_lstm
    expected[:, 1, step] = True
    assert torch.equal(changed, expected)


def test_rewards_reach_other_steps_only_through_normalisation() -> None:
    """Swapping two rewards of the same agent keeps mean and variance."""
    objective, inputs = small(use_lstm=False), random_inputs()
    reward = inputs.reward.clone()
    reward[0, 0, 1], reward[0, 1, 2] = inputs.reward[0, 1, 2], inputs.reward[0, 0, 1]
    changed = (loss_of(objective, inputs._replace(reward=reward)) - loss_of(objective, inputs)).abs() > 1e-9
    assert changed.nonzero().tolist() == [[0, 0, 1], [0, 1, 2]]


def test_lstm_is_that_of_torch() -> None:
    """Read backwards from the last valid step, with forget bias +1; torch orders its gates input, forget, cell, output."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(NUM_AGENTS, NUM_WINDOWS * NUM_STEPS, 7, generator=generator)
    parameters = small().stacked_parameters(NUM_AGENTS)
    parameters["lstm.bias"] = torch.randn(NUM_AGENTS, 16, generator=generator)
    valid = random_inputs().valid
    projected = stacked_linear(features, parameters["lstm.weight_input"], parameters["lstm.bias"])
    hidden = BackwardLSTM(parameters["lstm.weight_hidden"], valid).forward(projected)
    hidden = hidden.view(NUM_AGENTS, NUM_WINDOWS, NUM_STEPS, 4)
    gate, cell, forget, output = range(4)

    def reordered(x: Tensor) -> Tensor:
        chunks = x.chunk(4, -1)
        return torch.cat([chunks[k] for k in (gate, forget, cell, output)], -1)

    for agent in range(NUM_AGENTS):
        lstm = torch.nn.LSTM(7, 4, batch_first=True)
        forget_bias = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(4)
        weights = [reordered(parameters[f"lstm.{name}"][agent]) for name in ("weight_input", "weight_hidden", "bias")]
        state = {"weight_ih_l0": weights[0].T, "weight_hh_l0": weights[1].T, "bias_ih_l0": weights[2], "bias_hh_l0": forget_bias}
        lstm.load_state_dict(state)
        for window in range(NUM_WINDOWS):
            length = int(LENGTH[agent, window])
            steps = features[agent].view(NUM_WINDOWS, NUM_STEPS, 7)[window, :length]
            expected = lstm(steps.flip(0)[None])[0][0].flip(0).detach()
            torch.testing.assert_close(hidden[agent, window, :length], expected)


def test_bounded_head() -> None:
    inputs, bounded, unbounded = random_inputs(), small(), small(bounded_head=False)
    torch.testing.assert_close(loss_of(bounded, inputs), 1e3 * torch.tanh(1e-3 * loss_of(unbounded, inputs)))
    for objective in (bounded, unbounded):
        with torch.no_grad():  # a test's own change
            objective.get_parameter("head.out.weight").mul_(1e5)
    assert loss_of(unbounded, inputs).abs().max() > 1e4
    assert 500 < loss_of(bounded, inputs).abs().max() <= 1000


def test_forward_is_the_stacked_loss_of_one_agent() -> None:
    objective, stacked = small(), random_inputs()
    gradient = action_gradient_of(objective, stacked)[0]
    names = ("policy_action", "replay_action", "reward", "value", "terminated", "valid")
    own = {name: getattr(stacked, name)[0].clone().requires_grad_() for name in names}
    loss = objective(**own)
    torch.testing.assert_close(loss, loss_of(objective, stacked)[0])
    loss.sum().backward()
    torch.testing.assert_close(own["policy_action"].grad, gradient)
    assert all(own[name].grad is None for name in names if name != "policy_action")
    assert all(p.grad is None for p in objective.parameters())


def test_forward_takes_all_steps_as_valid_by_default() -> None:
    objective, stacked = small(), random_inputs(torch.full_like(LENGTH, NUM_STEPS))
    own = {name: getattr(stacked, name)[0] for name in ("policy_action", "replay_action", "reward", "value", "terminated")}
    assert torch.equal(objective(**own), objective(**own, valid=torch.ones(NUM_WINDOWS, NUM_STEPS)))
    assert not torch.equal(objective(**own), objective(**own, valid=random_inputs().valid[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"hidden_units": 5}, "hidden_units"), ({"hidden_units": 0}, "even"), ({"context_units": 0}, "at least 1")],
)
def test_refuses_widths(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedObjective(**arguments)  # type: ignore[arg-type]


# Files


@pytest.mark.parametrize(
    "options", [*FIGURE_5[:1], *FIGURE_5[-1:], {"hidden_units": 6, "context_units": 2, "layer_norm_eps": 0.1}], ids=str
)
def test_save_and_load(options: dict[str, Any], tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    saved, path = small(**options, seed=5), tmp_path / "objective.safetensors"
    saved.save(path, {"environments": ["A-v1"], "env_steps": 7})
    loaded = LearnedObjective.load(path)
    assert loaded.architecture == saved.architecture
    assert loaded.card == {"environments": ["A-v1"], "env_steps": 7}
    assert all(torch.equal(p, loaded.get_parameter(name)) for name, p in saved.named_parameters())
    inputs = ObjectiveInputs(*(None if x is None else x.float() for x in random_inputs()))  # type: ignore[arg-type]
    assert torch.equal(loss_of(loaded, inputs), loss_of(saved, inputs))
    assert not torch.equal(loss_of(small(**options), inputs), loss_of(saved, inputs))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["objective.json", "objective.safetensors"]
    card = json.loads((tmp_path / "objective.json").read_text())
    assert card["architecture"] == saved.architecture and card["env_steps"] == 7


class Louder(LearnedObjective):
    """An objective of a user's own, with an option and a loss of its own."""

    def __init__(self, loudness: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.architecture["loudness"] = loudness

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return self.architecture["loudness"] * super().loss(parameters, inputs)


def test_a_subclass_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    objective, inputs = Louder(3.0, hidden_units=8, context_units=3), random_inputs()
    objective.save(tmp_path / "louder.safetensors")
    loaded = LearnedObjective.load(tmp_path / "louder.safetensors")
    assert type(loaded) is Louder and "class" not in loaded.card
    assert torch.equal(loss_of(loaded, inputs), loss_of(objective, inputs))
    fresh = type(loaded)(**loaded.architecture, seed=1)
    assert fresh.architecture == objective.architecture
    loaded.save(tmp_path / "again.safetensors")
    assert isinstance(Louder.load(tmp_path / "again.safetensors"), Louder)


def test_a_mixture_is_saved_with_its_options(tmp_path: Path) -> None:
    objective, inputs = small_mixture(discount=0.9, gae_lambda=0.5, use_time=False), random_inputs()
    objective.save(tmp_path / "mixture.safetensors")
    loaded = LearnedObjective.load(tmp_path / "mixture.safetensors")
    assert type(loaded) is LearnedMixture and loaded.architecture == objective.architecture
    assert torch.equal(loss_of(loaded, inputs), loss_of(objective, inputs))
    assert not torch.equal(loss_of(small_mixture(use_time=False), inputs), loss_of(objective, inputs))
    assert not torch.equal(loss_of(small_mixture(advantage="indicator"), inputs), loss_of(small_mixture(), inputs))


def test_a_class_that_is_not_wanted_or_not_there_is_named(tmp_path: Path) -> None:
    small().save(tmp_path / "plain.safetensors")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"is of the class .*\.LearnedObjective; valid is Louder or a subclass"):
        Louder.load(tmp_path / "plain.safetensors")

    Louder(hidden_units=8).save(tmp_path / "gone.safetensors", {"class": "this.Gone"})
    with pytest.raises(UnknownObjectiveError, match=r"gone.safetensors: is of the class this.Gone; valid is LearnedObjective or"):
        LearnedObjective.load(tmp_path / "gone.safetensors")
    assert "this" not in sys.modules  # a file makes nothing be imported


def test_the_card_is_kept_when_saved_again(tmp_path: Path) -> None:
    small().save(tmp_path / "a.safetensors", {"env_steps": 7, "seed": 1})
    LearnedObjective.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors", {"seed": 2})
    assert LearnedObjective.load(tmp_path / "b.safetensors").card == {"env_steps": 7, "seed": 2}


def broken_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.safetensors"
    small().save(whole)
    content = whole.read_bytes()
    tensors = {name: p.detach() for name, p in small().named_parameters()}
    with safe_open(whole, framework="pt") as file:
        metadata = file.metadata()
    card = json.loads(metadata["card"])
    newer = json.dumps({**card, "architecture": {**card["architecture"], "use_magic": True}})
    paths = {
        name: folder / f"{name}.safetensors"
        for name in ("missing", "truncated", "empty", "text", "foreign", "other", "newer", "bare")
    }
    paths["truncated"].write_bytes(content[: len(content) // 2])
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("not an objective\n" * 10)
    save_file({"weight": torch.ones(2)}, paths["foreign"], metadata={"format": "pt"})
    save_file({"weight": torch.ones(2)}, paths["other"], metadata=metadata)
    save_file(tensors, paths["newer"], metadata={"card": newer})
    save_file(tensors, paths["bare"])
    return paths | {"folder": folder}


def test_refuses_files_that_are_no_objective(tmp_path: Path) -> None:
    for kind, path in broken_files(tmp_path).items():
        with pytest.raises(ValueError) as caught:
            LearnedObjective.load(path)
        message = str(caught.value)
        assert message.startswith(f"objective.path={path}: "), kind
        assert "\n" not in message, kind


@pytest.mark.parametrize("card", sorted(Path(pretrained_path("light")).parent.glob("*.json")), ids=lambda path: path.stem)
def test_pretrained_objectives_have_cards_and_give_finite_gradients(card: Path) -> None:
    objective = LearnedObjective.pretrained(card.stem)
    told = {"training_environments", "env_steps", "num_agents", "window_length", "seed", "commit", "licence", "scores", "made_by"}
    assert told <= objective.card.keys()
    assert not any(p.requires_grad for p in objective.parameters())
    action = torch.linspace(-1, 1, 60).view(3, 10, 2).requires_grad_()
    reward, value = torch.linspace(0, 1, 30).view(3, 10), torch.linspace(0, 1, 33).view(3, 11)
    loss = objective(action, -action, reward, value, torch.zeros(3, 10), critic_gradient=torch.ones(3, 10, 2))
    (gradient,) = torch.autograd.grad(loss.sum(), action)
    assert gradient.isfinite().all() and gradient.any()
    assert f'pretrained("{card.stem}")' in (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("name", ["heavy", "../pretrained/light", ""])
def test_refuses_a_pretrained_objective_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^objective.name={name}: no pretrained objective of this name; valid is .*light"):
        LearnedObjective.pretrained(name)


# REINFORCE


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


def test_reinforce_may_imitate_those_actions_alone_that_were_better_than_expected() -> None:
    inputs = random_inputs()
    signed, positive, indicator = (loss_of(Reinforce(advantage=kind), inputs) for kind in ("signed", "positive", "indicator"))
    is_better = signed > 0
    assert is_better.any() and (signed < 0).any()
    assert torch.equal(positive, torch.where(is_better, signed, 0.0))
    advantage = generalised_advantage(inputs, 0.99, 0.97)
    assert indicator[~is_better].eq(0).all()
    torch.testing.assert_close(indicator[is_better], signed[is_better] / advantage[is_better])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"discount": 1.1}, "discount must be between 0 and 1, got 1.1"),
        ({"gae_lambda": -0.1}, "gae_lambda must be between 0 and 1"),
        ({"advantage": "negative"}, "advantage must be signed, positive or indicator, got 'negative'"),
    ],
)
def test_reinforce_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reinforce(**arguments)
    with pytest.raises(ValueError, match=message):
        small_mixture(**arguments)
    if "advantage" not in arguments:
        with pytest.raises(ValueError, match=message):
            small(**arguments)


# The critic


def test_critic_objective_is_the_deterministic_policy_gradient() -> None:
    """Against plain autograd: -dQ1/da of each step, and the policy gradient of -mean Q1(s, pi(s))."""
    population, windows = small_population(), random_windows(4)
    networks, critics, objective = population.networks, population.critics, CriticObjective()
    critic = first_critic(critics)
    action = networks.action(population.policy, windows.observation)
    inputs = objective_inputs(networks, objective, population.policy, critics, windows, action)

    leaf = action.clone().requires_grad_()
    (networks.q(critic, windows.observation, leaf) * windows.valid).sum().backward()
    expected = -leaf.grad * networks.action_mask[:, None, None]  # type: ignore[operator]
    torch.testing.assert_close(objective.action_gradient({}, inputs), expected)
    assert expected.abs().max() > 1e-3

    policy: Parameters = {name: p.clone().requires_grad_() for name, p in population.policy.items()}
    value = networks.q(critic, windows.observation, networks.action(policy, windows.observation))
    ((-value * windows.valid).sum((1, 2)) / windows.num_valid).sum().backward()
    gradients = policy_gradients(networks, objective, {}, population.policy, critics, windows)
    assert (norm_per_agent(gradients) > 1e-3).all()
    for name, p in policy.items():
        torch.testing.assert_close(gradients[name], p.grad)


def test_an_objective_sees_the_gradient_of_the_critics_that_it_names() -> None:
    """Of both: the mean of two plain autograd gradients."""
    population, windows = small_population(), random_windows(4)
    networks, policy, critics = population.networks, population.policy, population.critics
    action = networks.action(policy, windows.observation)
    slopes = []
    for twin in range(2):
        leaf = action.clone().requires_grad_()
        networks.q({name: p[:, twin] for name, p in critics.items()}, windows.observation, leaf).sum().backward()
        slopes.append(leaf.grad * networks.action_mask[:, None, None])  # type: ignore[operator]
    assert not torch.allclose(*slopes)
    for of, expected in (("first", slopes[0]), ("both", (slopes[0] + slopes[1]) / 2)):
        for objective in (
            small(use_critic_gradient=True, critic_gradient_of=of),
            small_mixture(critic_gradient_of=of),
            CriticObjective(of),
        ):
            inputs = objective_inputs(networks, objective, policy, critics, windows, action)
            assert inputs.critic_gradient is not None
            torch.testing.assert_close(inputs.critic_gradient, expected)
            if isinstance(objective, LearnedObjective):
                assert objective.architecture["critic_gradient_of"] == of
    for make in (small, small_mixture, CriticObjective):
        with pytest.raises(ValueError, match="critic_gradient_of must be first or both, got 'second'"):
            make(critic_gradient_of="second")


def test_annealing_is_from_the_first_critic_whatever_the_objective_looks_at() -> None:
    population, windows = small_population(), random_windows(4)
    arguments = (population.policy, population.critics, windows)
    alpha = small_mixture().stacked_parameters(3)
    annealed = [
        policy_gradients(population.networks, objective, alpha, *arguments, objective_share=torch.zeros(()))
        for objective in (CriticObjective(), small_mixture(critic_gradient_of="both"))
    ]
    for name, gradient in annealed[0].items():
        torch.testing.assert_close(annealed[1][name], gradient)


# ------------------------------------------------------------------------------------------------------------ the mixture


def test_the_mixture_weighs_both_gradients_by_what_the_network_says() -> None:
    """All weights of the head's last layer 0: softplus of its bias everywhere, here of 2 and -1."""
    objective, inputs = small_mixture(), random_inputs()
    with torch.no_grad():
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


# ----------------------------------------------------------------------------------------------------------- the ensemble


def test_in_an_ensemble_every_member_has_the_same_say() -> None:
    members, inputs = [small(seed=1), small_mixture(seed=2)], random_inputs()
    directions = []
    for member in members:
        gradient = action_gradient_of(member, inputs)
        mean_square = (gradient**2).sum((1, 2, 3)) / torch.tensor([9 * 2, 11 * 1])  # as above
        directions.append(gradient / mean_square.sqrt()[:, None, None, None])
    ensemble = ObjectiveEnsemble.of(members)
    assert ensemble.needs_value and ensemble.needs_critic_gradient and not ensemble.learns
    expected = (directions[0] + directions[1]) / 2
    torch.testing.assert_close(action_gradient_of(ensemble, inputs), expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # which has weights of its own
        for p in members[0].parameters():
            p.zero_()
    torch.testing.assert_close(action_gradient_of(ensemble, inputs), expected, rtol=1e-4, atol=1e-6)


def test_an_ensemble_sees_what_one_of_its_members_does() -> None:
    assert not ObjectiveEnsemble.of([small()]).needs_critic_gradient
    assert not ObjectiveEnsemble.of([small(use_value=False)]).needs_value
    assert ObjectiveEnsemble.of([small(use_value=False), small_mixture()]).needs_value
    assert ObjectiveEnsemble.of([small(), small_mixture(critic_gradient_of="both")]).critic_gradient_of == "both"
    with pytest.raises(
        ValueError, match="different critics, member 0 critic_gradient_of=first and member 1 critic_gradient_of=both"
    ):
        ObjectiveEnsemble.of([small_mixture(), small_mixture(critic_gradient_of="both")])


def test_an_ensemble_is_saved_whole_with_a_card_that_tells_of_its_members(tmp_path: Path) -> None:
    paths = []
    for seed, environment in ((4, "Pendulum-v1"), (5, "Reacher-v5")):
        paths.append(str(tmp_path / f"{seed}.safetensors"))
        settings = {
            "meta.gradient": "clip",
            "population.size": seed,
            "objective._target_": "metagenrl_pl.objectives.LearnedObjective",
        }
        card = {"seed": seed, "training_environments": [environment], "env_steps": 100 * seed, "window_length": 10}
        small(seed=seed).save(paths[-1], {**card, "settings": settings})
    ensemble = ObjectiveEnsemble.load_all([*paths, "mixture"])
    assert ensemble.card["training_environments"] == ["InvertedPendulum-v5", "Pendulum-v1", "Reacher-v5"]
    assert (ensemble.card["seed"], ensemble.card["env_steps"], ensemble.card["window_length"]) == (4, 24_000, 10)
    settings = ensemble.card["settings"]
    assert settings["population.size"] == [4, 5, 6] and settings["meta.gradient"] == ["clip", "clip", "normalize"]
    assert settings["objective._target_"] == "metagenrl_pl.objectives.ObjectiveEnsemble"
    assert settings["objective.members"] == ["LearnedObjective", "LearnedObjective", "LearnedMixture"]

    ensemble.save(tmp_path / "ensemble.safetensors")
    again = ParametricObjective.load(tmp_path / "ensemble.safetensors")
    assert type(again) is ObjectiveEnsemble and again.card["members"][1]["seed"] == 5 and not again.learns
    inputs = random_inputs()
    assert torch.equal(action_gradient_of(again.double(), inputs), action_gradient_of(ensemble.double(), inputs))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "members must name at least one objective, got []"),
        (["light", "heavy"], "members: heavy: no pretrained objective of this name; valid is "),
        (["light", "nothing.safetensors"], "members: nothing.safetensors: no such file; valid is an objective"),
        (["runs/folder"], "members: runs/folder: no such file; valid is an objective"),
    ],
)
def test_an_ensemble_names_the_member_that_is_none(members: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ObjectiveEnsemble.load_all(members)
    assert str(caught.value).startswith(message)


def test_an_ensemble_of_fresh_members_has_seeds_of_its_own() -> None:
    architecture = small_ensemble().architecture
    one, same, other = (ObjectiveEnsemble(**architecture, seed=seed) for seed in (1, 1, 2))
    kernels = [[p for p in ensemble.parameters() if p.ndim == 2] for ensemble in (one, same, other)]
    assert all(map(torch.equal, kernels[0], kernels[1])) and not any(map(torch.equal, kernels[0], kernels[2]))
    first, second, _ = (dict(member.named_parameters())["lstm.weight_hidden"] for member in one.members)
    assert not torch.equal(first, second)
    assert one.learns


def test_an_ensemble_with_a_member_of_an_unknown_class_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "ensemble.safetensors"
    ensemble = ObjectiveEnsemble.of([small()])
    ensemble.architecture["members"][0]["class"] = "no.Such"
    ensemble.save(path)
    for load in (ParametricObjective.load, lambda path: ObjectiveEnsemble.load_all([str(path)])):
        with pytest.raises(UnknownObjectiveError, match="members: no.Such has not been imported") as caught:
            load(path)
        assert str(path) in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ neighbours


@pytest.mark.parametrize("num_windows", [1, 3, 5, 16])
@pytest.mark.parametrize(("hidden_units", "context_units"), [(4, 2), (8, 8), (32, 8)])
def test_an_agents_gradients_are_the_same_bits_whatever_its_neighbours(
    hidden_units: int, context_units: int, num_windows: int
) -> None:
    """In float32, where rounding shows; narrow objectives included."""
    torch.set_default_dtype(torch.float32)
    objective = LearnedObjective(hidden_units, context_units)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        windows = random_windows(num_windows, 4, [(2, 3)] * 4, [4 * seed + agent for agent in range(4)])
        policy_action = torch.rand(windows.action.shape, generator=generator) * 2 - 1
        value = torch.randn(4, num_windows, 5, generator=generator)
        weight = torch.full((4, 3), 1 / 3)
        constants = (windows.action, windows.reward, value, windows.terminated, windows.valid, weight)

        def computed(agents: slice, policy_action: Tensor = policy_action, constants: Any = constants) -> list[Tensor]:
            inputs = ObjectiveInputs(policy_action[agents].clone(), *(x[agents].clone() for x in constants))
            alpha = objective.stacked_parameters(len(inputs.reward))
            gradients = torch.func.grad(lambda alpha: objective.loss(alpha, inputs).sum())(alpha)
            return [objective.loss(alpha, inputs), objective.action_gradient(alpha, inputs), *gradients.values()]

        expected = computed(slice(0, 4))
        for agents in [slice(i, i + 1) for i in range(4)] + [slice(i, i + 2) for i in range(3)]:
            assert all(torch.equal(one, other[agents]) for one, other in zip(computed(agents), expected, strict=True)), agents


class Odd(Objective):
    """Whose loss is what it was given to compute it."""

    def __init__(self, loss: Callable[[ObjectiveInputs], Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return self._loss(inputs)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda inputs: inputs.policy_action,
            "its loss has the shape (2, 3, 4, 5) for 2 agents, 3 windows, 4 steps and 5 action dim",
        ),
        (lambda inputs: inputs.policy_action.detach().sum(-1), "its loss does not depend on inputs.policy_action"),
        (lambda inputs: inputs.policy_action.sum(-1) / 0, "the gradient of its loss in the policy's action is not finite"),
    ],
)
def test_a_loss_that_teaches_nothing_is_refused(loss: Callable[[ObjectiveInputs], Tensor], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_loss(Odd(loss))
    assert str(caught.value).startswith(message)
    check_loss(Odd(lambda inputs: inputs.policy_action.sum(-1)))
    check_loss(Reinforce())
