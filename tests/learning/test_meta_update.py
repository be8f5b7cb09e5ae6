"""The meta-gradient: exact, by finite differences and by two different paths; what receives it, and what must not change."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from objectives_inputs import FIGURE_5
from random_population import SEEDS, random_like, random_windows, small_population, small_settings
from torch import Tensor

from metagenrl_pl.agents.networks import Networks
from metagenrl_pl.agents.population import Population
from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent, scale_per_agent
from metagenrl_pl.learning.inner_step import SGD, Adam, AdamMoments, InnerStep
from metagenrl_pl.learning.judges import CriticJudge, Judge, ReturnsJudge
from metagenrl_pl.learning.learner import Learner
from metagenrl_pl.learning.meta_update import (
    MetaTask,
    combine_meta_gradients,
    factored_meta_gradients,
    general_meta_gradients,
    meta_gradients,
    meta_loss,
    run_inner_loop,
)
from metagenrl_pl.learning.policy_update import policy_gradients
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings
from metagenrl_pl.objectives import LearnedMixture, LearnedObjective, ParametricObjective

NUM_WINDOWS = 3  # B
CRITIC, RETURNS = CriticJudge(), ReturnsJudge(share=0.4)


pytestmark = pytest.mark.usefixtures("float64")


def small_objective(kind: Callable[..., ParametricObjective] = LearnedObjective, **options: Any) -> ParametricObjective:
    return kind(**{"hidden_units": 8, "context_units": 3, **options})


def inner_step(kind: str, num_steps: int = 1) -> InnerStep:
    """With steps large enough that the policy's curvature weighs, and small enough that it does not saturate."""
    return SGD(step_size=0.02, num_steps=num_steps) if kind == "sgd" else Adam(learning_rate=0.01, num_steps=num_steps)


def task_of(population: Population, inner: InnerStep) -> MetaTask:
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
    return MetaTask(population.policy, population.critics, windows, moments)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("num_steps", "options", "judge"),
    [
        (1, {}, CRITIC),
        (1, {"use_critic_gradient": True}, CRITIC),
        (1, {"use_lstm": False, "use_time": False}, CRITIC),
        (1, {"bounded_head": False}, CRITIC),
        (1, {"kind": LearnedMixture}, CRITIC),
        (1, {}, RETURNS),
        (2, {"use_value": False}, CRITIC),
        (2, {"use_value": False}, RETURNS),
    ],
    ids=["one", "one_critic_gradient", "one_no_lstm", "one_unbounded", "one_mixture", "one_returns", "two", "two_returns"],
)
def test_finite_differences(kind: str, num_steps: int, options: dict[str, Any], judge: Judge) -> None:
    """Along one random direction in each parameter, for all agents at once: an agent's copy of alpha concerns its own loss alone.

    With several inner steps the values that later steps see are constants by definition, though the policy that they belong to
    depends on alpha; so finite differences are of an objective that does not read values.
    """
    population, objective, inner = small_population(), small_objective(**options), inner_step(kind, num_steps)
    task, alpha = task_of(population, inner), objective.stacked_parameters(3)
    gradients, loss = meta_gradients(population.networks, objective, inner, judge, alpha, task)

    def losses(alpha: Parameters) -> Tensor:
        stepped = run_inner_loop(population.networks, objective, inner, alpha, task)
        return meta_loss(population.networks, judge, stepped, task)

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
@pytest.mark.parametrize("judge", [CRITIC, RETURNS], ids=["critic", "returns"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_critic_gradient": True},
        {"use_lstm": False},
        {"use_value": False, "bounded_head": False},
        {"kind": LearnedMixture},
    ],
    ids=["plain", "critic_gradient", "no_lstm", "no_value_unbounded", "mixture"],
)
def test_two_paths_one_gradient(kind: str, options: dict[str, Any], judge: Judge) -> None:
    population, objective, inner = small_population(), small_objective(**options), inner_step(kind)
    task, alpha = task_of(population, inner), objective.stacked_parameters(3)
    factored, loss = factored_meta_gradients(population.networks, objective, inner, judge, alpha, task)
    general, same_loss = general_meta_gradients(population.networks, objective, inner, judge, alpha, task)
    torch.testing.assert_close(loss, same_loss, rtol=1e-12, atol=0)
    assert factored.keys() == general.keys() == alpha.keys()
    for name, g in general.items():
        torch.testing.assert_close(factored[name], g, rtol=1e-9, atol=1e-11 * float(g.abs().max()))


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
        stepped = run_inner_loop(population.networks, objective, inner, alpha, changed_task)
        return stepped, meta_loss(population.networks, CRITIC, stepped, changed_task)

    original, (_, loss) = (
        run_inner_loop(population.networks, objective, inner, alpha, task),
        meta_gradients(population.networks, objective, inner, CRITIC, alpha, task),
    )
    for k in range(3):
        stepped, changed_loss = stepped_and_loss(k)
        is_inner = k < inner.num_steps
        assert torch.equal(stepped["out.weight"], original["out.weight"]) == (not is_inner)
        assert (changed_loss != loss).all()


@pytest.mark.parametrize("options", FIGURE_5, ids=str)
def test_every_parameter_that_matters_receives_a_gradient(options: dict[str, bool]) -> None:
    objective = small_objective(**options)
    # Without the bounded head the last two biases only add a constant to L.
    inert = {} if options["bounded_head"] else {"head.norm.1.bias", "head.out.bias"}
    population, inner = small_population(), inner_step("sgd")
    gradients, _ = meta_gradients(
        population.networks, objective, inner, CRITIC, objective.stacked_parameters(3), task_of(population, inner)
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
        population.networks, objective, inner, CRITIC, objective.stacked_parameters(3), task_of(population, inner)
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
    gradients, loss = meta_gradients(population.networks, objective, inner, CRITIC, alpha, task)
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


def test_combine_takes_a_parameter_without_axes() -> None:
    mean, norm = combine_meta_gradients({"scale": torch.tensor([3.0, -0.5])}, "clip")
    torch.testing.assert_close((mean["scale"], norm), (torch.tensor(0.25), torch.tensor([3.0, 0.5])))


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
    meta = MetaLearning(inner_step(kind), CRITIC, MetaSettings(annealing_env_steps=0))
    learner = Learner(population, objective, small_settings(), SEEDS, meta)
    learner.update(random_windows, env_steps=0)  # so that every optimizer has a state

    def agents() -> dict[str, Tensor]:
        optimizers = {name: learner.optimizers[name].state_dict() for name in ("critics", "policy")}
        return bits({"population": population.state_dict(), "optimizers": optimizers, "streams": learner.state_dict()["streams"]})

    before, alpha = agents(), bits(dict(objective.named_parameters()))
    learner.update_objective(random_windows(2 * NUM_WINDOWS, seeds=[1, 2, 3]))
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
        meta_gradients(population.networks, objective, inner, CRITIC, {}, task_of(population, inner))
    assert used == ["factored", "general"]


def test_the_inner_step_descends_the_policy_gradient_of_its_windows() -> None:
    """Summed over valid steps, where the policy update takes the mean."""
    population, objective, inner = small_population(), small_objective(), inner_step("sgd")
    task, alpha = task_of(population, inner), objective.stacked_parameters(3)
    windows = task.windows.part(0, NUM_WINDOWS)
    mean = policy_gradients(population.networks, objective, alpha, task.policy, task.critics, windows)
    expected = inner(task.policy, scale_per_agent(mean, windows.num_valid), windows.num_valid, None)
    stepped = run_inner_loop(population.networks, objective, inner, alpha, task)
    assert (norm_per_agent({name: p - task.policy[name] for name, p in stepped.items()}) > 1e-3).all()
    for name, p in stepped.items():
        torch.testing.assert_close(p, expected[name], rtol=1e-9, atol=1e-12)
