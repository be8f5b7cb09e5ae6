"""The learned objective: its parameters, what each option lets it read, its LSTM and its head."""

from typing import Any

import pytest
import torch
from objectives_inputs import FIGURE_5, LENGTH, NUM_AGENTS, NUM_STEPS, NUM_WINDOWS, loss_of, random_inputs, small
from random_population import random_windows
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import stacked_linear
from metagenrl_pl.agents.windows import valid_states
from metagenrl_pl.objectives import LearnedObjective, ObjectiveInputs
from metagenrl_pl.objectives.learned import normalise
from metagenrl_pl.objectives.lstm import BackwardLSTM


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
    expected = (torch.arange(NUM_STEPS) / NUM_STEPS) * inputs.valid
    torch.testing.assert_close(context[..., 1], expected)


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


def test_use_td_error() -> None:
    """It follows from rewards and values together, and whether it is positive stays visible."""
    objective, inputs = small(use_td_error=True, use_value=False, discount=0.9), random_inputs()
    value, valid = inputs.value * (1 + torch.arange(NUM_AGENTS)).view(-1, 1, 1), inputs.valid
    error = (inputs.reward + 0.9 * value[..., 1:] * (1 - inputs.terminated) - value[..., :-1]) * valid
    expected = error / ((error**2).sum((1, 2), keepdim=True) / valid.sum((1, 2), keepdim=True)).sqrt()
    context = objective._context(inputs._replace(value=value))
    torch.testing.assert_close(context[..., -1], expected, rtol=1e-6, atol=1e-6)
    assert objective.needs_value and objective.get_parameter("context_transform.hidden.0.weight").shape == (3, 4)
    with pytest.raises(ValueError, match=r"^discount must be between 0 and 1, got 1.5$"):
        small(use_td_error=True, discount=1.5)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_units": 5}, "hidden_units"),
        ({"hidden_units": 0}, "even"),
        ({"context_units": 0}, "at least 1"),
        ({"terminal": "never"}, "after, before, input, got 'never'"),
        ({"critic_gradient_of": "both"}, "critic_gradient_of=both needs use_critic_gradient=true"),
    ],
)
def test_refuses_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedObjective(**arguments)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("terminal", ["after", "before", "input"])
def test_a_terminal_state_of_mean_value(terminal: str) -> None:
    """Read after normalising, as in the paper, it gives the loss of a state that is not terminal."""
    objective, inputs = small(terminal=terminal), random_inputs()
    assert inputs.value is not None
    value, window = inputs.value.clone(), 1  # which ends in a terminal state, at its length
    for agent in range(NUM_AGENTS):
        last = int(LENGTH[agent, window])
        others = valid_states(inputs.valid)[agent].bool()
        others[window, last] = False
        value[agent, window, last] = value[agent][others].mean()  # so it is the mean of all as well
    inputs = inputs._replace(value=value)
    without = inputs._replace(terminated=torch.zeros_like(inputs.terminated))
    same = torch.allclose(loss_of(objective, inputs), loss_of(objective, without), atol=1e-9)
    assert same == (terminal == "after")


@pytest.mark.parametrize("options", [{}, {"terminal": "before"}, {"terminal": "input"}])
def test_rewards_and_values_may_not_vary(options: dict[str, Any]) -> None:
    """Then padded zeros and terminal states are far from the mean. Without an LSTM nothing else bounds them."""
    objective, inputs = LearnedObjective(use_lstm=False, **options).float(), random_inputs()
    reward, value = 100 * inputs.valid, 100 * valid_states(inputs.valid)
    inputs = ObjectiveInputs(*(tensor.float() for tensor in inputs._replace(reward=reward, value=value)))
    parameters = objective.stacked_parameters(NUM_AGENTS)
    gradient, pull_back = objective.action_gradient_and_pull_back(parameters, inputs)
    for found in (*objective.loss_and_action_gradient(parameters, inputs), gradient, *pull_back(gradient).values()):
        assert found.isfinite().all()


@pytest.mark.parametrize("terminal", ["before", "input"])
def test_the_critics_word_on_terminal_states_does_not_count(terminal: str) -> None:
    inputs = random_inputs()
    assert inputs.value is not None
    absurd = inputs.value.clone()
    for agent in range(NUM_AGENTS):
        absurd[agent, 1, int(LENGTH[agent, 1])] = 1e6
    for rule, same in ((terminal, True), ("after", False)):
        objective = small(terminal=rule)
        losses = [loss_of(objective, inputs._replace(value=value)) for value in (inputs.value, absurd)]
        assert torch.allclose(*losses) == same


def test_a_terminal_state_is_worth_nothing_if_it_counts_before_normalising() -> None:
    """So it lies as far below the mean value as 0 does."""
    inputs = random_inputs()
    assert inputs.value is not None
    of_next = small(terminal="before")._context(inputs)[..., 2]
    for agent in range(NUM_AGENTS):
        alive = valid_states(inputs.valid)[agent].bool()
        alive[1, int(LENGTH[agent, 1])] = False
        values = inputs.value[agent][alive]
        expected = -values.mean() / values.var(correction=0).sqrt()
        assert of_next[agent, 1, int(LENGTH[agent, 1]) - 1].item() == pytest.approx(expected.item(), rel=1e-6)
