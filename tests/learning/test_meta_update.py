"""The meta-gradient: exact, by finite differences and by two different paths; what receives it, and what must not change."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_population import SEEDS, random_like, random_windows, small_population, small_settings
from torch import Tensor

from metagenrl_pl.agents.networks import Networks, first_critic
from metagenrl_pl.agents.population import Population
from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent, scale_per_agent
from metagenrl_pl.learning.inner_step import SGD, Adam, AdamMoments, InnerStep
from metagenrl_pl.learning.learner import Learner, MetaSettings
from metagenrl_pl.learning.meta_update import (
    MetaTask,
    combine_meta_gradients,
    factored_meta_gradients,
    general_meta_gradients,
    inner_stepped,
    meta_gradients,
    meta_loss,
    policy_and_meta_gradients,
)
from metagenrl_pl.learning.policy_update import objective_inputs, policy_gradients
from metagenrl_pl.objectives import (
    CriticObjective,
    LearnedMixture,
    LearnedObjective,
    ObjectiveEnsemble,
    ParametricObjective,
    Reinforce,
)

NUM_WINDOWS = 3  # B


@pytest.fixture(autouse=True)
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small_objective(kind: Callable[..., ParametricObjective] = LearnedObjective, **options: Any) -> ParametricObjective:
    return kind(**{"hidden_units": 8, "context_units": 3, **options})


def fresh_ensemble(**architecture: Any) -> ObjectiveEnsemble:
    kinds = ("learned.LearnedObjective", "mixture.LearnedMixture")
    return ObjectiveEnsemble([{"class": f"metagenrl_pl.objectives.{kind}", "architecture": architecture} for kind in kinds])


def inner_step(kind: str, num_steps: int = 1) -> InnerStep:
    """With steps large enough that the policy's curvature weighs, and small enough that it does not saturate."""
    return SGD(step_size=0.02, num_steps=num_steps) if kind == "sgd" else Adam(learning_rate=0.01, num_steps=num_steps)


def task_of(population: Population, inner: InnerStep, judges: Parameters | None = None, advantage_share: float = 0.0) -> MetaTask:
    """Agents of three sizes, so padded, with windows of 1 to 4 steps."""
    windows = random_windows((inner.num_steps + 1) * NUM_WINDOWS)
    assert windows.length.unique().tolist() == [1, 2, 3, 4]
    moments = None
    if inner.needs_moments:
        # What is padded never had a gradient.
        real = {name: p.ne(0) | (name.endswith("bias") and name != "out.bias") for name, p in population.policy.items()}
        first = {name: 0.1 * x * real[name] for name, x in random_like(population.policy, 1).items()}
        second = {name: 0.01 * x**2 * real[name] for name, x in random_like(population.policy, 2).items()}
        moments = AdamMoments(first, second, torch.full((3,), 7.0))
    advantage = Reinforce() if advantage_share else None
    return MetaTask(population.policy, population.critics, windows, moments, judges, advantage, advantage_share)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("num_steps", "options", "advantage_share"),
    [
        (1, {}, 0),
        (1, {"use_critic_gradient": True}, 0),
        (1, {"use_lstm": False, "use_time": False}, 0),
        (1, {"bounded_head": False}, 0),
        (1, {"kind": LearnedMixture}, 0),
        (1, {}, 0.4),
        (2, {"use_value": False}, 0),
        (2, {"use_value": False}, 0.4),
    ],
    ids=["one", "one_critic_gradient", "one_no_lstm", "one_unbounded", "one_mixture", "one_advantage", "two", "two_advantage"],
)
def test_finite_differences(kind: str, num_steps: int, options: dict[str, Any], advantage_share: float) -> None:
    """Along one random direction in each parameter, for all agents at once: an agent's copy of alpha concerns its own loss alone.

    With several inner steps the values that later steps see are constants by definition, though the policy that they belong to
    depends on alpha; so finite differences are of an objective that does not read values.
    """
    population, objective, inner = small_population(), small_objective(**options), inner_step(kind, num_steps)
    task, alpha = task_of(population, inner, advantage_share=advantage_share), objective.stacked_parameters(3)
    gradients, loss = meta_gradients(population.networks, objective, inner, alpha, task)

    def losses(alpha: Parameters) -> Tensor:
        stepped = inner_stepped(population.networks, objective, inner, alpha, task)
        return meta_loss(population.networks, stepped, task)

    torch.testing.assert_close(loss, losses(alpha), rtol=1e-12, atol=0)
    assert (norm_per_agent(gradients) > 1e-6).all()
    directions = random_like(alpha, 5)
    directions, h = scale_per_agent(directions, 1 / norm_per_agent(directions)), 3e-6
    for name, direction in directions.items():
        plus, minus = (losses({**alpha, name: alpha[name] + step * direction}) for step in (h, -h))
        expected = (plus - minus) / (2 * h)  # rounding: about 1e-15 / h
        actual = (gradients[name] * direction).flatten(1).sum(1)
        error = (actual - expected).abs()
        assert (error <= 1e-6 * norm_per_agent({name: gradients[name]}) + 1e-8).all(), (name, actual, expected, error)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("advantage_share", [0.0, 0.4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_critic_gradient": True},
        {"use_lstm": False},
        {"use_value": False, "bounded_head": False},
        {"kind": LearnedMixture},
        {"kind": fresh_ensemble},
    ],
    ids=["plain", "critic_gradient", "no_lstm", "no_value_unbounded", "mixture", "ensemble"],
)
def test_two_paths_one_gradient(kind: str, options: dict[str, Any], advantage_share: float) -> None:
    population, objective, inner = small_population(), small_objective(**options), inner_step(kind)
    task, alpha = task_of(population, inner, advantage_share=advantage_share), objective.stacked_parameters(3)
    factored, loss = factored_meta_gradients(population.networks, objective, inner, alpha, task)
    general, same_loss = general_meta_gradients(population.networks, objective, inner, alpha, task)
    torch.testing.assert_close(loss, same_loss, rtol=1e-12, atol=0)
    assert factored.keys() == general.keys() == alpha.keys()
    for name, g in general.items():
        torch.testing.assert_close(factored[name], g, rtol=1e-9, atol=1e-11 * float(g.abs().max()))


@pytest.mark.parametrize("path", [factored_meta_gradients, general_meta_gradients])
def test_where_one_of_the_judges_is_always_lower_it_alone_judges(path: Any) -> None:
    population, objective, inner = small_population(), small_objective(), inner_step("sgd")
    alpha = objective.stacked_parameters(3)
    for lower in (0, 1):
        judges = {name: p.clone() for name, p in population.critics.items()}
        judges["out.bias"][:, lower] -= 100
        task = task_of(population, inner, judges)
        gradients, loss = path(population.networks, objective, inner, alpha, task)
        # The objective's inputs stay those of `critic`, the first one, whoever judges.
        alone = {name: p[:, [lower, lower]] for name, p in judges.items()}
        expected, same_loss = path(population.networks, objective, inner, alpha, task._replace(judges=alone))
        other, _ = path(population.networks, objective, inner, alpha, task._replace(judges=None))
        torch.testing.assert_close(loss, same_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)
        is_first = all(torch.allclose(g, other[name], rtol=1e-9, atol=1e-12) for name, g in gradients.items())
        assert is_first == (lower == 0)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_inner_steps_use_windows_of_their_own_and_the_loss_all(kind: str) -> None:
    population, objective, inner = small_population(), small_objective(), inner_step(kind, num_steps=2)
    task, alpha = task_of(population, inner), objective.stacked_parameters(3)

    def stepped_and_loss(changed: int) -> tuple[Parameters, Tensor]:
        """With other rewards and actions in the `changed`-th B windows."""
        index = slice(changed * NUM_WINDOWS, (changed + 1) * NUM_WINDOWS)
        parts = {name: getattr(task.windows, name).clone() for name in ("reward", "action", "states")}
        for x in parts.values():
            x[:, index] *= -0.5
        windows = task.windows._replace(**parts)
        changed_task = task._replace(windows=windows)
        stepped = inner_stepped(population.networks, objective, inner, alpha, changed_task)
        return stepped, meta_loss(population.networks, stepped, changed_task)

    original, (_, loss) = (
        inner_stepped(population.networks, objective, inner, alpha, task),
        meta_gradients(population.networks, objective, inner, alpha, task),
    )
    for k in range(3):
        stepped, changed_loss = stepped_and_loss(k)
        is_inner = k < inner.num_steps
        assert torch.equal(stepped["out.weight"], original["out.weight"]) == (not is_inner)
        assert (changed_loss != loss).all()


def test_meta_loss_is_the_mean_over_valid_steps() -> None:
    population, windows = small_population(), random_windows(NUM_WINDOWS)
    critic = first_critic(population.critics)
    loss = meta_loss(population.networks, population.policy, MetaTask(population.policy, population.critics, windows))
    for agent in range(3):
        observation = windows.observation[:, windows.valid[agent] > 0]  # [P, valid, O]
        value = population.networks.q(critic, observation, population.networks.action(population.policy, observation))
        torch.testing.assert_close(loss[agent], -value[agent].mean())


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
        task = MetaTask(policy, critics, windows, advantage=Reinforce(), advantage_share=share)
        gradients = torch.func.grad(lambda phi, task=task: meta_loss(networks, phi, task).sum())(policy)
        _, pull_back = torch.func.vjp(lambda phi: networks.action(phi, windows.observation), policy)  # type: ignore[misc]
        blend = (1 - share) * scaled[0] + share * scaled[1]
        (expected,) = pull_back(blend / windows.num_valid.view(-1, 1, 1, 1))
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("path", [factored_meta_gradients, general_meta_gradients])
def test_a_judge_of_larger_values_has_no_larger_say_than_its_share(path: Any) -> None:
    population, objective, inner = small_population(), small_objective(), inner_step("sgd")
    alpha = objective.stacked_parameters(3)
    gradients = []
    for factor in (1, 50):
        judges = {
            name: factor * p[:, :1] if name.startswith("out.") else p[:, :1].clone() for name, p in population.critics.items()
        }
        task = task_of(population, inner, judges, advantage_share=0.4)
        gradients.append(path(population.networks, objective, inner, alpha, task)[0])
    own = path(population.networks, objective, inner, alpha, task_of(population, inner, advantage_share=0.4))[0]
    for name, gradient in own.items():
        for other in gradients:
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))


FIGURE_5 = [
    dict(zip(("use_time", "use_value", "use_lstm", "bounded_head"), values, strict=True))
    for values in itertools.product([True, False], repeat=4)
]


@pytest.mark.parametrize("options", FIGURE_5, ids=str)
def test_every_parameter_that_matters_receives_a_gradient(options: dict[str, bool]) -> None:
    objective = small_objective(**options)
    # Without the bounded head the last two biases only add a constant to L.
    inert = {} if options["bounded_head"] else {"head.norm.1.bias", "head.out.bias"}
    population, inner = small_population(), inner_step("sgd")
    gradients, _ = meta_gradients(
        population.networks, objective, inner, objective.stacked_parameters(3), task_of(population, inner)
    )
    assert gradients.keys() == dict(objective.named_parameters()).keys()
    for name, gradient in gradients.items():
        largest = gradient.abs().flatten(1).amax(1)  # [P]
        assert gradient.isfinite().all(), name
        assert largest.eq(0).all() if name in inert else largest.gt(0).all(), name


def test_every_parameter_receives_a_gradient_in_float32_at_full_size() -> None:
    torch.set_default_dtype(torch.float32)
    population, objective, inner = small_population(), LearnedObjective(), SGD()
    gradients, _ = meta_gradients(
        population.networks, objective, inner, objective.stacked_parameters(3), task_of(population, inner)
    )
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().flatten(1).amax(1).gt(0).all(), name


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_saturated_agent_gives_no_nan(kind: str) -> None:
    """Its tanh is flat to the last bit, so its action gradient reaches no parameter at all."""
    population, objective, inner = small_population(), small_objective(), inner_step(kind)
    population.policy["out.bias"][1] = 100.0
    task, alpha = task_of(population, inner), objective.stacked_parameters(3)
    if task.moments is not None:
        for x in (*task.moments.first.values(), *task.moments.second.values()):
            x[1] = 0
    gradients, loss = meta_gradients(population.networks, objective, inner, alpha, task)
    norm = norm_per_agent(gradients)
    assert loss.isfinite().all() and norm[1] == 0 and (norm[[0, 2]] > 1e-6).all()


def gradients_of(*norms: float) -> Parameters:
    """One agent per norm, in the ratio 3 : 4 over two parameters."""
    norm = torch.tensor(norms)
    return {"a": 0.6 * norm[:, None], "b": 0.8 * norm[:, None, None]}  # [P, 1], [P, 1, 1]


def test_combine_clips_each_agent() -> None:
    """Norms 10, 0.1 and 1 become 1, 0.1 and 1: their mean is 2.1 / 3 = 0.7."""
    mean, norm = combine_meta_gradients(gradients_of(10, 0.1, 1), "clip")
    torch.testing.assert_close(norm, torch.tensor([10, 0.1, 1.0]))
    torch.testing.assert_close(mean, {"a": torch.tensor([0.6 * 0.7]), "b": torch.tensor([[0.8 * 0.7]])})


def test_combine_normalises_each_agent() -> None:
    """Norms 10 and 1e-6 become 1; an agent without a gradient stays without: the mean is 2 / 3."""
    mean, norm = combine_meta_gradients(gradients_of(10, 1e-6, 0), "normalize")
    torch.testing.assert_close(norm, torch.tensor([10, 1e-6, 0]))
    torch.testing.assert_close(mean, {"a": torch.tensor([0.6 * 2 / 3]), "b": torch.tensor([[0.8 * 2 / 3]])})


def test_combine_weighs_agents() -> None:
    """Norms 10, 0.1 and 1 become 1, 0.1 and 1, with weights 2, 1 and 1: (2 + 0.1 + 1) / 4 = 0.775."""
    mean, _ = combine_meta_gradients(gradients_of(10, 0.1, 1), "clip", weight=torch.tensor([2.0, 1.0, 1.0]))
    torch.testing.assert_close(mean, {"a": torch.tensor([0.6 * 0.775]), "b": torch.tensor([[0.8 * 0.775]])})


def bits(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor of nested dictionaries and lists, copied, by its path."""
    found = {}
    items = tensors.items() if isinstance(tensors, dict) else enumerate(tensors)
    for key, value in items:
        if isinstance(value, Tensor):
            found[str(key)] = value.detach().clone()
        elif isinstance(value, dict | list):
            found |= {f"{key}/{path}": x for path, x in bits(value).items()}  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_meta_step_changes_the_objective_alone(kind: str) -> None:
    population, objective = small_population(), small_objective()
    learner = Learner(population, objective, small_settings(), SEEDS, inner_step(kind), MetaSettings(annealing_env_steps=0))
    learner.update(random_windows, env_steps=0)  # so that every optimizer has a state

    def agents() -> dict[str, Tensor]:
        optimizers = {"critic": learner.critic_optimizer.state_dict(), "policy": learner.policy_optimizer.state_dict()}
        return bits({"population": population.state_dict(), "optimizers": optimizers, "streams": learner.state_dict()["streams"]})

    before, alpha = agents(), bits(dict(objective.named_parameters()))
    learner._update_objective(random_windows(2 * NUM_WINDOWS, seeds=[1, 2, 3]), env_steps=0)
    after = agents()
    assert len(after) > 40 and after.keys() == before.keys()
    assert all(torch.equal(after[path], before[path]) for path in before)
    assert all(not torch.equal(p, alpha[name]) for name, p in objective.named_parameters())


def test_the_factored_path_serves_one_inner_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def recording(name: str) -> Any:
        def path(networks: Networks, *_: Any) -> tuple[Parameters, Tensor]:
            used.append(name)
            return {}, torch.zeros(0)

        return path

    monkeypatch.setattr("metagenrl_pl.learning.meta_update.factored_meta_gradients", recording("factored"))
    monkeypatch.setattr("metagenrl_pl.learning.meta_update.general_meta_gradients", recording("general"))
    population, objective = small_population(), small_objective()
    for num_steps in (1, 2):
        inner = inner_step("sgd", num_steps)
        meta_gradients(population.networks, objective, inner, {}, task_of(population, inner))
    assert used == ["factored", "general"]


def test_the_inner_gradient_is_the_policy_gradient_of_its_windows() -> None:
    population, objective, inner = small_population(), small_objective(), inner_step("sgd")
    task, alpha = task_of(population, inner), objective.stacked_parameters(3)
    policy, *meta = policy_and_meta_gradients(population.networks, objective, inner, alpha, task)
    windows = task.windows.part(0, NUM_WINDOWS)
    expected = policy_gradients(population.networks, objective, alpha, task.policy, task.critics, windows)
    for name, gradient in policy.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)
    gradients, loss = meta_gradients(population.networks, objective, inner, alpha, task)
    assert torch.equal(meta[1], loss) and all(torch.equal(meta[0][name], g) for name, g in gradients.items())
