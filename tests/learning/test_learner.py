"""Update cycles: their order and delays, the annealing, a frozen objective, and continuing bit for bit."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from random_population import SEEDS, SIZES, random_windows, small_population, small_settings
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.common.placement import Placement
from metagenrl_pl.learning.critic_update import critic_gradients
from metagenrl_pl.learning.evolution import Evolution, EvolutionSettings
from metagenrl_pl.learning.inner_step import SGD, Adam, InnerStep
from metagenrl_pl.learning.judges import CriticJudge, Judge, ReturnsJudge
from metagenrl_pl.learning.learner import Learner
from metagenrl_pl.learning.meta_update import MetaTask, combine_meta_gradients, meta_gradients, run_inner_loop
from metagenrl_pl.learning.policy_update import policy_gradients
from metagenrl_pl.learning.settings import MetaLearning, MetaSettings
from metagenrl_pl.objectives import CriticObjective, LearnedObjective, Objective, Reinforce

B = 3  # windows per update, `small_settings`


def small_objective(seed: int = 0) -> LearnedObjective:
    return LearnedObjective(hidden_units=8, context_units=3, seed=seed)


def learner_of(objective: Objective, meta: MetaLearning | None = None, seeds: list[int] = SEEDS, **settings: Any) -> Learner:
    every = small_settings(**settings)
    return Learner(small_population(seeds=seeds, settings=every), objective, every, seeds, meta)


def meta_learning(inner: InnerStep | None = None, annealing_env_steps: int = 0) -> MetaLearning:
    return MetaLearning(inner or SGD(), CriticJudge(), MetaSettings(annealing_env_steps=annealing_env_steps))


def meta_learner(num_inner_steps: int = 1, annealing_env_steps: int = 0, **settings: Any) -> Learner:
    return learner_of(small_objective(), meta_learning(SGD(num_steps=num_inner_steps), annealing_env_steps), **settings)


def copied(parameters: Parameters) -> Parameters:
    return {name: p.detach().clone() for name, p in parameters.items()}


def snapshot(learner: Learner) -> dict[str, Parameters]:
    """All that is learned."""
    sets: dict[str, Parameters] = {**learner.population.parameter_sets, "objective": dict(learner.objective.named_parameters())}
    return {kind: copied(parameters) for kind, parameters in sets.items()}


def changed(before: dict[str, Parameters], after: dict[str, Parameters]) -> set[str]:
    return {
        kind
        for kind, parameters in before.items()
        if any(not torch.equal(p, after[kind][name]) for name, p in parameters.items())
    }


def assert_same(first: dict[str, Parameters], second: dict[str, Parameters]) -> None:
    for kind, parameters in first.items():
        for name, p in parameters.items():
            assert torch.equal(p, second[kind][name]), (kind, name)


class RecordingDraw:
    """New windows at each call; notes how many were asked for and what had changed by then since the cycle's start."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.num_calls = learner, 0
        self.start_cycle()

    def start_cycle(self) -> None:
        self.start = snapshot(self.learner)
        self.calls: list[tuple[int, set[str]]] = []

    def __call__(self, num_windows: int) -> Windows:
        self.calls.append((num_windows, changed(self.start, snapshot(self.learner))))
        self.num_calls += 1
        return random_windows(num_windows, seeds=[seed + 1000 * self.num_calls for seed in SEEDS])


def numbered_draw(cycle: int) -> Callable[[int], Windows]:
    """The same windows whenever the same cycle asks for as many."""
    return partial(random_windows, seeds=[seed + 1000 * cycle for seed in SEEDS])


CRITICS, POLICIES = {"critics"}, {"critics", "policy", "target_policy", "target_critics"}


@pytest.mark.parametrize("num_inner_steps", [1, 2])
@pytest.mark.parametrize("policy_delay", [1, 2, 3])
def test_order_and_delays(policy_delay: int, num_inner_steps: int) -> None:
    """Critics with B windows; every `policy_delay` cycles policies with B more, targets, the objective with (K + 1) B more."""
    learner = meta_learner(num_inner_steps, policy_delay=policy_delay)
    draw = RecordingDraw(learner)
    for cycle in range(4):
        draw.start_cycle()
        learner.update(draw, env_steps=0)
        end = changed(draw.start, snapshot(learner))
        if cycle % policy_delay == 0:
            assert draw.calls == [(B, set()), (B, CRITICS), ((num_inner_steps + 1) * B, POLICIES)]
            assert end == POLICIES | {"objective"}
        else:
            assert draw.calls == [(B, set())]
            assert end == CRITICS
    assert learner.num_updates == 4


def test_every_update_uses_the_windows_drawn_for_it() -> None:
    """Another second (third) batch changes policies (objective), and nothing that was updated before."""

    def after(other: int | None) -> dict[str, Parameters]:
        learner, calls = meta_learner(), 0

        def draw(num_windows: int) -> Windows:
            nonlocal calls
            calls += 1
            return random_windows(num_windows, seeds=[seed + 1000 * calls + (7 if calls == other else 0) for seed in SEEDS])

        learner.update(draw, env_steps=0)
        return snapshot(learner)

    usual = after(None)
    assert changed(usual, after(1)) == POLICIES | {"objective"}
    assert changed(usual, after(2)) == {"policy", "target_policy", "objective"}
    assert changed(usual, after(3)) == {"objective"}


def test_targets_move_by_their_rate() -> None:
    learner = learner_of(Reinforce(), target_rate=0.25)
    before = snapshot(learner)
    learner.update(numbered_draw(0), env_steps=0)
    for kind in ("policy", "critics"):
        for name, p in learner.population.parameter_sets[kind].items():
            # Targets start equal to their networks: 3/4 of the old value and 1/4 of the new one.
            expected = 0.75 * before[kind][name] + 0.25 * p
            torch.testing.assert_close(learner.population.parameter_sets[f"target_{kind}"][name], expected)


@pytest.mark.parametrize(("noise", "clip"), [(0.2, 0.5), (50.0, 0.3)])
def test_the_noise_on_target_actions_is_clipped(noise: float, clip: float) -> None:
    learner, seen = learner_of(Reinforce(), target_noise=noise, target_noise_clip=clip), []
    gradients = learner.critic_gradients
    learner.critic_gradients = lambda *arguments: (seen.append(arguments[5]), gradients(*arguments))[1]  # type: ignore[func-returns-value]
    learner.update(numbered_draw(0), env_steps=0)
    largest = seen[0].abs().max()
    assert largest == clip if noise > clip else 0 < largest <= clip


@pytest.mark.parametrize(("setting", "kind"), [("discount", "critics"), ("saturation_penalty", "policy")])
def test_a_setting_reaches_its_update(setting: str, kind: str) -> None:
    learned, changes = [], dict[str, Any]({setting: 0.5})
    for options in ({}, changes):
        learner = learner_of(small_objective(), **options)
        learner.population.policy["out.bias"].add_(3.0)  # so that there is something to penalise
        learner.update(numbered_draw(0), env_steps=0)
        learned.append(learner.population.parameter_sets[kind]["hidden.0.weight"])
    assert not torch.equal(*learned)


def test_somebody_else_may_step_the_critics() -> None:
    learner, usual, steps = learner_of(Reinforce()), learner_of(Reinforce()), []

    def step() -> None:
        steps.append(learner.num_updates)
        learner.critic_optimizer.step()

    for cycle in range(3):
        learner.update(numbered_draw(cycle), 0, critic_step=step)
        usual.update(numbered_draw(cycle), 0)
    assert steps == [0, 1, 2]
    assert_same(snapshot(learner), snapshot(usual))
    learner.update(numbered_draw(3), 0, critic_step=lambda: None)
    assert_same({"critics": snapshot(learner)["critics"]}, {"critics": snapshot(usual)["critics"]})


# Annealing


def policy_gradient(learner: Learner, env_steps: int) -> dict[str, Tensor]:
    """What the first cycle, from the same weights and windows, leaves as the policies' gradient."""
    learner.update(numbered_draw(0), env_steps)
    gradients = [row.grad for row in learner.population.rows["policy"] if row.grad is not None]
    return learner.population.policy_layout.views(torch.stack(gradients))


def test_annealing_goes_from_the_critic_to_the_objective() -> None:
    unclipped: dict[str, Any] = {"policy_max_gradient_norm": 1e9}
    critic = policy_gradient(learner_of(CriticObjective(), **unclipped), 0)
    objective = policy_gradient(learner_of(small_objective(), **unclipped), 0)
    assert critic.keys() == objective.keys() and not torch.allclose(critic["out.weight"], objective["out.weight"], rtol=0.1)
    for env_steps, share in ((0, 0.0), (25, 0.25), (100, 1.0), (1000, 1.0)):
        actual = policy_gradient(meta_learner(annealing_env_steps=100, **unclipped), env_steps)
        for name, g in actual.items():
            torch.testing.assert_close(g, share * objective[name] + (1 - share) * critic[name], rtol=1e-4, atol=1e-6)


def frozen_objective() -> LearnedObjective:
    return small_objective().requires_grad_(False)


@pytest.mark.parametrize("make", [frozen_objective, Reinforce])
def test_no_annealing_where_there_is_nothing_to_learn(make: Callable[[], Objective]) -> None:
    """Though the settings of meta-training are there: an objective whose parameters are frozen, and one without parameters."""
    learner, same = learner_of(make(), meta_learning(annealing_env_steps=100)), learner_of(make())
    first, last = policy_gradient(learner, 0), policy_gradient(same, 100)
    assert all(torch.equal(g, last[name]) for name, g in first.items())
    assert not learner.is_meta_training and learner.objective_optimizer is None


def test_no_annealing_without_meta_learning() -> None:
    first, last = (policy_gradient(learner_of(small_objective()), env_steps) for env_steps in (0, 10**6))
    assert all(torch.equal(g, last[name]) for name, g in first.items())


def test_policy_gradients_are_clipped_per_agent() -> None:
    clipped = policy_gradient(learner_of(small_objective(), policy_max_gradient_norm=1e-3), 0)
    unclipped = policy_gradient(learner_of(small_objective(), policy_max_gradient_norm=1e9), 0)
    for agent in range(3):
        norms = [torch.cat([g[agent].flatten() for g in x.values()]).norm() for x in (clipped, unclipped)]
        assert norms[0].item() == pytest.approx(1e-3, rel=1e-4) and norms[1] > 2e-3


# Frozen or learning


def test_a_frozen_objective_stays_as_it_is() -> None:
    learner = learner_of(small_objective())
    before, draw = snapshot(learner), RecordingDraw(learner)
    for _ in range(4):
        learner.update(draw, env_steps=0)
    assert changed(before, snapshot(learner)) == POLICIES
    assert [n for n, _ in draw.calls] == [B, B, B, B, B, B]  # nothing is drawn for the objective
    assert learner.objective_optimizer is None and learner.optimizers.keys() == {"critics", "policy"}
    assert learner.metrics.newest.keys() == {"critic_loss", "policy_gradient_norm"}


def test_metrics_are_per_agent() -> None:
    learner = meta_learner()
    learner.update(numbered_draw(0), env_steps=0)
    assert learner.optimizers.keys() == {"critics", "policy", "objective"}
    assert learner.metrics.newest.keys() == {"critic_loss", "policy_gradient_norm", "meta_loss", "meta_gradient_norm"}
    for name, values in learner.metrics.newest.items():
        assert values.shape == (3,) and values.unique().numel() == 3, name


# State


@pytest.mark.parametrize("num_before", [3, 4])
@pytest.mark.parametrize("inner", [SGD(), Adam()], ids=["sgd", "adam"])
def test_continues_bit_for_bit(num_before: int, inner: InnerStep) -> None:
    """In the middle of a policy's delay too; through a file, as plain containers."""

    def new(seed: int) -> Learner:
        return learner_of(small_objective(seed), meta_learning(inner, annealing_env_steps=6), seeds=[s + seed for s in SEEDS])

    def run(learner: Learner, start: int, stop: int) -> None:
        for cycle in range(start, stop):
            learner.update(numbered_draw(cycle), env_steps=cycle)

    learner = new(seed=0)
    run(learner, 0, num_before)
    file = io.BytesIO()
    state = {
        "learner": learner.state_dict(),
        "objective": learner.objective.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in learner.optimizers.items()},
    }
    torch.save(state, file)
    saved = snapshot(learner)
    run(learner, num_before, num_before + 3)
    assert changed(saved, snapshot(learner)) == POLICIES | {"objective"}

    file.seek(0)
    state, resumed = torch.load(file, weights_only=True), new(seed=100)
    assert changed(saved, snapshot(resumed)) == POLICIES | {"objective"}
    resumed.load_state_dict(state["learner"])
    resumed.objective.load_state_dict(state["objective"])
    for name, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    assert_same(saved, snapshot(resumed))
    run(resumed, num_before, num_before + 3)
    assert_same(snapshot(learner), snapshot(resumed))
    assert resumed.num_updates == learner.num_updates == num_before + 3


def test_a_resume_goes_on_with_the_generations_noise() -> None:
    def new() -> Learner:
        meta = Evolution(EvolutionSettings(), ["A", "A"], 10, 0, Placement(2))
        return Learner(small_population([(3, 2)] * 2, [5, 5]), small_objective(), small_settings(), [5, 5], meta)

    learner, resumed = new(), new()
    learner.end_generation([1.0, 2.0])
    resumed.load_state_dict(learner.state_dict())
    resumed.objective.load_state_dict(learner.objective.state_dict())
    assert all(torch.equal(p, resumed.alpha[name]) for name, p in learner.alpha.items())


def test_noise_on_targets_belongs_to_the_agent() -> None:
    """The stream of seed 12 gives the same noise in another place of another population."""
    size = [(3, 2)] * 2

    def critic_of_seed_12(seeds: list[int]) -> Tensor:
        settings = small_settings(target_noise=1.0)
        learner = Learner(small_population(size, seeds, settings), Reinforce(), settings, seeds)
        for cycle in range(3):
            batch_seeds = [seed + 1000 * cycle for seed in seeds]
            learner.update(partial(random_windows, sizes=size, seeds=batch_seeds), env_steps=0)
        return learner.population.critics["hidden.0.weight"][seeds.index(12)]

    assert torch.equal(critic_of_seed_12([12, 5]), critic_of_seed_12([6, 12]))


# Metrics that are not finite


def test_check_finite_names_the_agent() -> None:
    learner, healthy = learner_of(small_objective()), learner_of(small_objective())
    windows = [random_windows(B, seeds=[seed + k for seed in SEEDS]) for k in range(2)]
    learner.update(lambda _: windows[0], env_steps=0)
    healthy.update(lambda _: windows[0], env_steps=0)
    learner.checked_metrics()

    reward = windows[1].reward.clone()
    reward[1, 0, 0] = float("inf")
    learner.update(lambda _: windows[1]._replace(reward=reward), env_steps=0)
    healthy.update(lambda _: windows[1], env_steps=0)
    with pytest.raises(FloatingPointError, match=r"critic_loss of agent 1 is inf after 2 updates"):
        learner.checked_metrics()
    for name, p in learner.population.critics.items():  # the others were not touched by it
        assert torch.equal(p[[0, 2]], healthy.population.critics[name][[0, 2]])


# Compiled


@pytest.mark.parametrize(("sees_slope", "kinds"), [(True, 1), (False, 2)])
def test_the_end_of_the_annealing_needs_no_second_compilation_where_it_costs_nothing(sees_slope: bool, kinds: int) -> None:
    """The policy update is compiled once for a share of the objective, and once for None."""
    objective = LearnedObjective(hidden_units=8, context_units=3, use_critic_gradient=sees_slope)
    learner = learner_of(objective, MetaLearning(SGD(), CriticJudge(), MetaSettings(annealing_env_steps=2)))
    shares: list[Tensor | None] = []
    gradients = learner.policy_gradients
    learner.policy_gradients = lambda *arguments: (shares.append(arguments[6]), gradients(*arguments))[1]  # type: ignore[func-returns-value]
    for cycle in range(5):
        learner.update(numbered_draw(cycle), env_steps=cycle)
    assert len({share is None for share in shares}) == kinds
    assert [1.0 if share is None else float(share) for share in shares] == [0.0, 1.0, 1.0]


def test_a_frozen_objective_and_one_for_each_agent_have_the_same_layout() -> None:
    """So that meta-tests of a learned and of untrained objectives share a compiled update."""
    one, several = learner_of(small_objective().requires_grad_(False)), learner_of(small_objective().requires_grad_(False))
    several.give_objectives([small_objective(seed) for seed in range(len(SEEDS))])
    assert {name: p.stride() for name, p in one.alpha.items()} == {name: p.stride() for name, p in several.alpha.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("num_inner_steps", "judge"), [(1, CriticJudge()), (2, CriticJudge()), (1, ReturnsJudge())])
def test_compiled_updates_compute_the_same(num_inner_steps: int, judge: Judge) -> None:
    meta, settings = MetaLearning(SGD(num_steps=num_inner_steps), judge, MetaSettings(annealing_env_steps=3)), small_settings()
    results = []
    for compile in (False, True):
        learner = Learner(small_population(SIZES, SEEDS), small_objective(), settings, SEEDS, meta, compile=compile)
        for cycle in range(4):
            learner.update(numbered_draw(cycle), env_steps=cycle)
        results.append(snapshot(learner))
    start = snapshot(meta_learner())
    for kind, parameters in results[0].items():
        for name, p in parameters.items():
            # A fraction of Adam's steps of 1e-3, which magnify the last bits of a small gradient.
            torch.testing.assert_close(results[1][kind][name], p, rtol=1e-3, atol=1e-4)
    assert changed(start, results[1]) == POLICIES | {"objective"}


# The objective's step


@pytest.mark.parametrize("gradient", ["clip", "normalize"])
@pytest.mark.parametrize("judge", [CriticJudge(), ReturnsJudge(share=1.0)], ids=["critic", "returns"])
@pytest.mark.parametrize("inner", [SGD(step_size=1e-4), SGD(step_size=1e-4, num_steps=2)], ids=["one", "two"])
def test_the_objective_descends_what_its_meta_learning_gives(inner: InnerStep, judge: Judge, gradient: Any) -> None:
    """The mean of the agents' gradients, by the inner step, the judge and the rule that the learner was made with."""
    meta = MetaLearning(inner, judge, MetaSettings(gradient=gradient))
    learner, windows = learner_of(small_objective(), meta), random_windows((inner.num_steps + 1) * B)
    population, alpha = learner.population, learner.objective.stacked_parameters(3)
    task = MetaTask(copied(population.policy), copied(population.critics), windows)
    gradients, loss = meta_gradients(population.networks, learner.objective, inner, judge, alpha, task)
    expected, norm = combine_meta_gradients(gradients, gradient)
    assert (norm < 1).any()  # so that the rules differ
    learner.update_objective(windows)
    for name, p in learner.objective.named_parameters():
        assert p.grad is not None and torch.equal(p.grad, expected[name])
    assert torch.equal(learner.metrics.newest["meta_loss"], loss)
    assert torch.equal(learner.metrics.newest["meta_gradient_norm"], norm)


def test_the_critics_loss_and_the_norm_of_the_policies_gradient_are_recorded() -> None:
    """Both before the step, the norm also before the clipping."""
    learner, windows = learner_of(small_objective(), target_noise=0.0, policy_max_gradient_norm=1e-6), random_windows(B)
    p, newest = learner.population, learner.metrics.newest
    noise = torch.zeros_like(windows.action)
    _, loss = critic_gradients(
        p.networks, p.critics, p.target_policy, p.target_critics, windows, noise, learner.settings.discount
    )
    learner.update_critics(windows)
    assert torch.equal(newest["critic_loss"], loss)
    gradients = policy_gradients(p.networks, learner.objective, learner.alpha, p.policy, p.critics, windows)
    learner.update_policies(windows)
    torch.testing.assert_close(newest["policy_gradient_norm"], norm_per_agent(gradients))


def test_adams_inner_step_is_the_next_one_of_the_policies_own_optimizer() -> None:
    """With its moments and its clipping, on the same windows."""
    learner, windows = meta_learner(), random_windows(2 * B, seeds=[4, 5, 6])
    for cycle in range(3):
        learner.update(numbered_draw(cycle), env_steps=0)
    population, before = learner.population, copied(learner.population.policy)
    task = MetaTask(before, copied(population.critics), windows, learner._policy_moments())
    inner, alpha = Adam(learner.settings.policy_learning_rate), learner.objective.stacked_parameters(3)
    stepped = run_inner_loop(population.networks, learner.objective, inner, alpha, task)
    learner.update_policies(windows.part(0, B))
    for name, p in population.policy.items():
        assert not torch.equal(p, before[name])
        torch.testing.assert_close(stepped[name] - before[name], p - before[name], rtol=1e-3, atol=1e-6)


def test_every_update_can_be_made_alone() -> None:
    """In the order of a cycle they give the cycle's bits, but for the targets, which move within it."""
    together, apart = meta_learner(), meta_learner()
    together.update(numbered_draw(0), env_steps=0)
    draw, before = numbered_draw(0), snapshot(apart)
    for update, num_windows, changes in (
        (apart.update_critics, B, "critics"),
        (apart.update_policies, B, "policy"),
        (apart.update_objective, 2 * B, "objective"),
    ):
        update(draw(num_windows))
        assert changed(before, snapshot(apart)) == {changes}
        before = snapshot(apart)
        assert_same({changes: before[changes]}, {changes: snapshot(together)[changes]})
    assert apart.num_updates == 0


# New agents


def test_a_renewed_agent_learns_as_a_fresh_one_does() -> None:
    """Networks and optimizers, with their bias corrections; the other agents go on."""

    def run(seeds: list[int], num_before: int, renew: dict[int, int]) -> Learner:
        learner = learner_of(Reinforce(), seeds=seeds, target_noise=0.0)
        for cycle in range(-num_before, 5):
            if cycle == 0:
                for agent, seed in renew.items():
                    learner.renew(agent, seed)
            learner.update(numbered_draw(cycle), env_steps=0)
        return learner

    other_seeds = [SEEDS[0], 77, SEEDS[2]]
    renewed, fresh, old = run(SEEDS, 4, {1: 77}), run(other_seeds, 0, {}), run(SEEDS, 4, {})
    for kind, parameters in renewed.population.parameter_sets.items():
        for name, p in parameters.items():
            assert torch.equal(p[1], fresh.population.parameter_sets[kind][name][1]), (kind, name)
            assert torch.equal(p[[0, 2]], old.population.parameter_sets[kind][name][[0, 2]]), (kind, name)
    weights = [learner.population.policy["hidden.0.weight"][1] for learner in (renewed, old)]
    assert not torch.equal(*weights)
