"""The actor's loss for policies and critics of other people, against this project's own policy update."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from objectives_inputs import small, small_mixture
from random_population import random_windows, small_population
from torch import Tensor

from metagenrl_pl.integrations import WindowBatch, actor_loss, find_objective, meta_trained_with
from metagenrl_pl.learning.policy_update import objective_inputs, policy_gradients
from metagenrl_pl.objectives import CriticObjective, Objective, ParametricObjective, Reinforce

SIZES, SEEDS = [(3, 2)], [11]
LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 5.0])
MIDDLE, HALF = (HIGH + LOW) / 2, (HIGH - LOW) / 2


pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("has_bounds", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        small,
        partial(small, use_value=False),
        partial(small, use_critic_gradient=True),
        partial(small_mixture, critic_gradient_of="both"),
        CriticObjective,
        partial(CriticObjective, "both"),
        Reinforce,
    ],
)
def test_its_gradient_is_that_of_the_learners_policy_update(make: Callable[[], Objective], has_bounds: bool) -> None:
    """On windows of 1 to 4 steps, some of which end in a terminal. With bounds, policy and critics speak the environment's units."""
    objective, population = make(), small_population(SIZES, SEEDS)
    windows = random_windows(6, sizes=SIZES, seeds=SEEDS)
    networks, critics = population.networks, population.critics
    expected = policy_gradients(networks, objective, objective.stacked_parameters(1), population.policy, critics, windows)
    middle, half = (MIDDLE, HALF) if has_bounds else (torch.zeros(2), torch.ones(2))
    mine = {name: p.clone().requires_grad_() for name, p in population.policy.items()}
    theirs = {name: p.clone().requires_grad_() for name, p in critics.items()}

    def policy(states: Tensor) -> Tensor:
        return networks.action(mine, states[None])[0] * half.to(states) + middle.to(states)

    def critic(twin: int, states: Tensor, action: Tensor) -> Tensor:
        scaled = (action - middle.to(action)) / half.to(action)
        return networks.q({name: p[:, twin] for name, p in theirs.items()}, states[None], scaled[None])[0][:, None]

    states, action, *rest = (x[0] for x in windows)
    batch = WindowBatch(states, action * half.to(action) + middle.to(action), *rest)
    twins = [lambda s, a, twin=twin: critic(twin, s, a) for twin in range(2)]
    bounds = {"action_low": LOW, "action_high": HIGH} if has_bounds else {}
    loss = actor_loss(objective, policy, twins, batch, **bounds)
    loss.backward()
    inputs = objective_inputs(
        networks, objective, population.policy, critics, windows, networks.action(population.policy, windows.observation)
    )
    torch.testing.assert_close(
        loss, objective.loss(objective.stacked_parameters(1), inputs).sum() / windows.num_valid.sum(), atol=1e-9, rtol=1e-9
    )
    for name, p in mine.items():
        torch.testing.assert_close(p.grad, expected[name])
        assert p.grad is not None and p.grad.any()
    assert all(p.grad is None for p in theirs.values()) and all(p.grad is None for p in objective.parameters())


def test_autocast_reaches_policy_and_critics_but_not_the_objective() -> None:
    """What policy and critics compute is cast back. Here autocast would round nothing of it."""
    torch.set_default_dtype(torch.float32)  # autocast leaves float64 alone
    objective, windows = small(use_critic_gradient=True), random_windows(6, sizes=SIZES, seeds=SEEDS)
    batch = WindowBatch(*(x[0] for x in windows))
    weight = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]], requires_grad=True)

    def gradient(autocast: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = actor_loss(
                objective,
                policy=lambda states: (states[..., None] * weight).sum(1).tanh(),
                critics=[lambda states, action: (states[:, :2] * action).sum(1) - (action**2).sum(1)],
                windows=batch,
            )
        return torch.autograd.grad(loss, weight)[0]

    torch.testing.assert_close(gradient(autocast=True), gradient(autocast=False), rtol=0, atol=0)
    policy, critic = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()), torch.nn.Linear(5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = actor_loss(objective, policy, [lambda states, action: critic(torch.cat([states, action], -1))], batch)
    assert loss.isfinite() and torch.autograd.grad(loss, policy[0].weight)[0].dtype == torch.float32


def test_the_mean_is_over_valid_steps() -> None:
    objective, valid = small(), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    inputs = [
        torch.zeros(2, 3, 1),
        torch.ones(2, 3, 1),
        torch.arange(6.0).view(2, 3),
        torch.arange(8.0).view(2, 4),
        valid * 0,
        valid,
    ]
    steps = objective(*inputs)
    torch.testing.assert_close(objective(*inputs, reduction="mean"), steps[valid > 0].mean())
    with pytest.raises(ValueError, match="reduction='sum': valid is 'none' or 'mean'"):
        objective(*inputs, reduction="sum")


def test_probable_mistakes_are_warned_of_once(recwarn: pytest.WarningsRecorder) -> None:
    def call(objective: Objective, scale: float = 1.0, valid: list[float] | None = None, num_windows: int = 16) -> list[str]:
        action, zeros = torch.full((num_windows, 10, 1), scale), torch.zeros(num_windows, 10)
        marks = torch.ones(num_windows, 10) if valid is None else torch.tensor(valid).expand(num_windows, 10)
        for _ in range(2):
            objective(action, action, zeros, torch.zeros(num_windows, 11), zeros, marks, action)
        messages = [str(warning.message) for warning in recwarn]
        assert {warning.filename for warning in recwarn} <= {__file__}
        recwarn.clear()
        return messages

    light = ParametricObjective.pretrained
    assert call(light()) == []
    (message,) = call(light(), scale=2.0)
    assert message.startswith("actions reach 2; an objective expects them in [-1, 1]")
    (message,) = call(light(), valid=[0.0] + [1.0] * 9)
    assert message.startswith("valid has ones after a zero")
    (message,) = call(light(), num_windows=3)
    assert message == "3 windows of 10 steps are far from the 16 of 10 of this objective's meta-training"


def test_a_warning_names_the_line_that_calls_actor_loss(recwarn: pytest.WarningsRecorder) -> None:
    windows = random_windows(2, sizes=SIZES, seeds=SEEDS)
    networks, policy = small_population(SIZES, SEEDS).networks, small_population(SIZES, SEEDS).policy
    batch = WindowBatch(*(x[0] for x in windows))
    batch = batch._replace(action=3 * torch.ones_like(batch.action))
    actor_loss(Reinforce(), lambda s: networks.action(policy, s[None])[0], [lambda s, a: s.sum(-1, keepdim=True)], batch)
    assert [warning.filename for warning in recwarn if "actions reach 3" in str(warning.message)] == [__file__]


def test_an_objective_is_found_by_name_file_folder_or_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light = find_objective("light")
    assert isinstance(light, ParametricObjective) and meta_trained_with(light) == (16, 10, 1.0)
    light.save(path := tmp_path / "mine.safetensors")
    assert find_objective(path).state_dict().keys() == light.state_dict().keys() and find_objective(light) is light
    assert meta_trained_with(CriticObjective()) == (16, 10, 1.0)
    with pytest.raises(
        ValueError, match=r"^there is no pretrained objective 'Light'; did you mean 'light'\? valid: falling, light"
    ):
        find_objective("Light")
    with pytest.raises(ValueError, match=r"^nowhere.safetensors: no such file"):
        find_objective("nowhere.safetensors")
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="/run: is a folder; valid is an objective.safetensors of a meta-training run"):
        find_objective(str(tmp_path / "run"))
    light.save(tmp_path / "run" / "objective.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    light.save(tmp_path / "mixture" / "objective.safetensors")
    assert type(find_objective("mixture")) is not type(light)  # a folder does not hide a name of the package
    for place in ("run", "./run", "~/run", "~/mine.safetensors", tmp_path / "run"):
        assert find_objective(place).state_dict().keys() == light.state_dict().keys()


def test_padding_reaches_neither_policy_nor_critics() -> None:
    """Both see the real states alone, 3 of 2 steps, however long the padding."""
    seen: list[int] = []

    def policy(states: Tensor) -> Tensor:
        seen.append(len(states))
        assert (states == 5).all()
        return states.mean(-1, keepdim=True) / 10

    def critic(states: Tensor, action: Tensor) -> Tensor:
        seen.append(len(states))
        return states.sum(-1) + action[:, 0]

    losses = []
    for length in (2, 7):
        pad = (0, length - 2)
        states = torch.nn.functional.pad(torch.full((1, 3, 3), 5.0), (0, 0, *pad))
        steps = [torch.nn.functional.pad(x, pad) for x in (torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2))]
        batch = WindowBatch(states, torch.zeros(1, length, 1), *steps)
        losses.append(actor_loss(Reinforce(), policy, [critic], batch))
    torch.testing.assert_close(*losses)
    assert seen == [3, 3] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "light"}, "objective='light': valid is an objective"),
        ({"critics": lambda states, action: action}, "critics=function: valid is a list of one critic"),
        ({"critics": []}, r"critics=\[\]: valid is one critic"),
        ({"action_high": float("inf")}, "action_low=-1.0, action_high=inf: valid are finite bounds"),
        ({"action_high": -1.0}, "action_low=-1.0, action_high=-1.0: valid"),
        ({"action_low": 1.0, "action_high": -1.0}, "action_low=1.0, action_high=-1.0: valid"),
        (
            {"action_low": [-1.0] * 3, "action_high": [1.0] * 3},
            r"action_low=\[-1.0, -1.0, -1.0\], .* valid are numbers, or 1 of them",
        ),
        (
            {"critics": [lambda states, action: (action,)]},
            r"critics: a critic gives a tuple for 8 states; valid is a tensor of \[N\]",
        ),
        ({"critics": [lambda states, action: states.repeat(1, 2)]}, r"critics: a critic gives the shape \(8, 2\) for 8 states"),
        ({"critics": [lambda states, action: states[:, 0]]}, "critics: their values do not depend on the action"),
        (
            {"critics": [torch.no_grad()(lambda states, action: action[:, 0])]},
            "critics: their values do not depend on the action",
        ),
        ({"windows": (1, 2)}, "windows=tuple: valid is a WindowBatch, as WindowBuffer.sample gives"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, object], message: str) -> None:
    batch = WindowBatch(torch.zeros(2, 4, 1), torch.zeros(2, 3, 1), *torch.zeros(2, 2, 3), torch.ones(2, 3))
    arguments = {
        "objective": ParametricObjective.pretrained("light"),
        "policy": lambda states: states[:, :1],
        "critics": [lambda states, action: states[:, 0] + action[:, 0]],
        "windows": batch,
        "action_low": -1.0,
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        actor_loss(**{**arguments, **changes})  # type: ignore[arg-type]


def test_actions_without_an_axis_for_windows_are_refused() -> None:
    action, zeros = torch.zeros(10, 1), torch.zeros(10)
    with pytest.raises(ValueError, match=r"^policy_action: expected \[B, T, A\], got \(10, 1\)$"):
        Reinforce()(action, action, zeros, torch.zeros(11), zeros)


@pytest.mark.parametrize("wrong", [None, Path("light"), 3, CriticObjective])
def test_what_is_no_objective_is_named(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^(objective=|light: no such file|there is no)"):
        find_objective(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^there is no pretrained objective"):
        ParametricObjective.pretrained(wrong)  # type: ignore[arg-type]


def test_an_objective_does_not_take_the_place_of_its_card(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine.json is where the card goes; valid is a .safetensors file"):
        ParametricObjective.pretrained("light").save(tmp_path / "mine.json")
