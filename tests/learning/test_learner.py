"""Update cycles: their order and delays, the annealing, a frozen objective, and continuing bit for bit."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from random_population import SEEDS, SIZES, random_windows, small_population, small_settings
from torch import Tensor

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.stacked_networks import Parameters, norm_per_agent, scale_per_agent
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.learning.inner_step import SGD, Adam, InnerStep
from metagenrl_pl.learning.learner import Learner, MetaSettings
from metagenrl_pl.learning.meta_update import meta_gradients
from metagenrl_pl.objectives import CriticObjective, LearnedObjective, Objective, Reinforce

B = 3  # windows per update, `small_settings`


def small_objective(seed: int = 0) -> LearnedObjective:
    return LearnedObjective(hidden_units=8, context_units=3, seed=seed)


def learner_of(
    objective: Objective,
    inner: InnerStep | None = None,
    meta: MetaSettings | None = None,
    seeds: list[int] = SEEDS,
    **settings: Any,
) -> Learner:
    every = small_settings(**settings)
    return Learner(small_population(seeds=seeds, settings=every), objective, every, seeds, inner, meta)


def meta_learner(num_inner_steps: int = 1, annealing_env_steps: int = 0, **settings: Any) -> Learner:
    inner, meta = SGD(num_steps=num_inner_steps), MetaSettings(annealing_env_steps=annealing_env_steps)
    return learner_of(small_objective(), inner, meta, **settings)


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


@pytest.mark.parametrize("inner", [None, SGD()])
def test_no_annealing_where_nothing_is_meta_learned(inner: InnerStep | None) -> None:
    """A frozen objective, though the settings of meta-training are there; and one without parameters."""
    frozen = learner_of(small_objective(), None, MetaSettings(annealing_env_steps=100))
    baseline = learner_of(Reinforce(), inner, MetaSettings(annealing_env_steps=100))
    for learner, same in ((frozen, learner_of(small_objective())), (baseline, learner_of(Reinforce()))):
        first, last = policy_gradient(learner, 0), policy_gradient(same, 100)
        assert all(torch.equal(g, last[name]) for name, g in first.items())
        assert learner.objective_optimizer is None


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
    assert learner.objective_optimizer is None and len(learner.optimizers) == 2
    assert learner.metrics.keys() == {"critic_loss", "policy_gradient_norm"}


def test_metrics_are_per_agent() -> None:
    learner = meta_learner()
    learner.update(numbered_draw(0), env_steps=0)
    assert len(learner.optimizers) == 3
    assert learner.metrics.keys() == {"critic_loss", "policy_gradient_norm", "meta_loss", "meta_gradient_norm"}
    for name, values in learner.metrics.items():
        assert values.shape == (3,) and values.unique().numel() == 3, name


def test_agreement() -> None:
    windows = random_windows(B)
    torch.testing.assert_close(learner_of(CriticObjective()).agreement(windows), torch.ones(3))
    assert (learner_of(CriticObjective("both")).agreement(windows) < 0.99).all()  # with the first critic, not with what it sees
    cosine = learner_of(small_objective()).agreement(windows)
    assert cosine.shape == (3,) and cosine.abs().lt(0.999).all() and cosine.ne(0).all()


# State


@pytest.mark.parametrize("num_before", [3, 4])
@pytest.mark.parametrize("inner", [SGD(), Adam()], ids=["sgd", "adam"])
def test_continues_bit_for_bit(num_before: int, inner: InnerStep) -> None:
    """In the middle of a policy's delay too; through a file, as plain containers."""

    def new(seed: int) -> Learner:
        return learner_of(small_objective(seed), inner, MetaSettings(annealing_env_steps=6), seeds=[s + seed for s in SEEDS])

    def run(learner: Learner, start: int, stop: int) -> None:
        for cycle in range(start, stop):
            learner.update(numbered_draw(cycle), env_steps=cycle)

    learner = new(seed=0)
    run(learner, 0, num_before)
    file = io.BytesIO()
    state = {
        "learner": learner.state_dict(),
        "objective": learner.objective.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in learner.optimizers],
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
    for optimizer, its_state in zip(resumed.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(its_state)
    assert_same(saved, snapshot(resumed))
    run(resumed, num_before, num_before + 3)
    assert_same(snapshot(learner), snapshot(resumed))
    assert resumed.num_updates == learner.num_updates == num_before + 3


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


# What is refused


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


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 0.0), ("gradient", "sum"), ("annealing_env_steps", -1)])
def test_meta_settings_refuse(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*, got {value!r}"):
        MetaSettings(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize("num_inner_steps", [1, 2])
def test_compiled_updates_compute_the_same(num_inner_steps: int) -> None:
    inner, meta, settings = SGD(num_steps=num_inner_steps), MetaSettings(annealing_env_steps=3), small_settings()
    results = []
    for compile in (False, True):
        learner = Learner(small_population(SIZES, SEEDS), small_objective(), settings, SEEDS, inner, meta, compile)
        for cycle in range(4):
            learner.update(numbered_draw(cycle), env_steps=cycle)
        results.append(snapshot(learner))
    start = snapshot(meta_learner())
    for kind, parameters in results[0].items():
        for name, p in parameters.items():
            # A fraction of Adam's steps of 1e-3, which magnify the last bits of a small gradient.
            torch.testing.assert_close(results[1][kind][name], p, rtol=1e-3, atol=1e-4)
    assert changed(start, results[1]) == POLICIES | {"objective"}


# Windows that policy step and inner step share


def sharing(annealing_env_steps: int = 0) -> Learner:
    return learner_of(small_objective(), SGD(), MetaSettings(annealing_env_steps=annealing_env_steps, share_windows=True))


def test_shared_windows_save_a_draw_after_the_annealing() -> None:
    drawn: list[int] = []

    def draw(num_windows: int) -> Windows:
        drawn.append(num_windows)
        return random_windows(num_windows)

    learner = sharing(annealing_env_steps=10)
    learner.update(draw, env_steps=9)
    assert drawn == [B, B, 2 * B]
    drawn.clear()
    learner.num_updates = 0
    learner.update(draw, env_steps=10)
    assert drawn == [B, 2 * B]


def test_shared_windows_take_the_policy_step_that_those_windows_give() -> None:
    windows = [random_windows(2 * B), random_windows(2 * B, seeds=[4, 5, 6])]
    shared, separate = sharing(), meta_learner()
    for learner, second in ((shared, windows[1]), (separate, windows[1].part(0, B))):
        draws = iter([windows[0].part(0, B), second, windows[1]])
        before = snapshot(learner)
        learner.update(lambda _, draws=draws: next(draws), env_steps=0)
        assert changed(before, snapshot(learner)) >= {"policy", "objective"}
    for name, p in shared.population.policy.items():
        torch.testing.assert_close(p, separate.population.policy[name], rtol=1e-4, atol=1e-5)
    # Its objective is judged before the policies' step, theirs after it.
    assert any(not torch.equal(p, q) for p, q in zip(shared.objective.parameters(), separate.objective.parameters(), strict=True))


# What judges the stepped policy, and how often the objective is updated


@pytest.mark.parametrize(("critic", "kind"), [("twin_minimum", "critics"), ("target_minimum", "target_critics")])
def test_the_judges_are_the_critics_that_the_setting_names(critic: Any, kind: str) -> None:
    """Both judges raised by 7 judge the policies 7 better; the first critic does not, though it is one of the twins."""
    losses = []
    for shift in (0.0, 7.0):
        learner = learner_of(small_objective(), SGD(), MetaSettings(critic=critic))
        getattr(learner.population, kind)["out.bias"] += shift
        learner._update_objective(random_windows(2 * B), env_steps=0)
        losses.append(learner.metrics["meta_loss"])
    torch.testing.assert_close(losses[0] - losses[1], torch.full((3,), 7.0), rtol=1e-4, atol=1e-4)
    first = learner_of(small_objective(), SGD(), MetaSettings())
    first._update_objective(random_windows(2 * B), env_steps=0)
    assert (first.metrics["meta_loss"] < losses[0]).any()


def test_the_second_critic_judges_alone() -> None:
    losses = {}
    for index, shift in ((0, 0.0), (0, 7.0), (1, 7.0)):
        learner = learner_of(small_objective(), SGD(), MetaSettings(critic="second"))
        learner.population.critics["out.bias"][:, index] += shift
        learner._update_objective(random_windows(2 * B), env_steps=0)
        losses[index, shift] = learner.metrics["meta_loss"]
    torch.testing.assert_close(losses[0, 0.0] - losses[1, 7.0], torch.full((3,), 7.0), rtol=1e-4, atol=1e-4)
    # The first one raised changes the objective's inputs, and by them a small inner step alone.
    torch.testing.assert_close(losses[0, 7.0], losses[0, 0.0], rtol=0, atol=0.1)


def test_the_eldest_critic_of_the_environment_judges() -> None:
    """Agents 0 and 2 are in one environment, the second has it to itself; the last agent is younger: grown up at 15 env steps."""
    lifetimes = Lifetimes(100, warmup=10, offsets=(0, 30, 95), num_environments=2)
    shifts = {None: torch.zeros(3), 0: torch.tensor([7.0, 0, 7]), 1: torch.tensor([0, 7.0, 0]), 2: torch.zeros(3)}
    losses = {}
    for raised in shifts:
        settings = small_settings()
        population = small_population([(3, 2), (5, 1), (3, 2)], settings=settings)
        learner = Learner(
            population, small_objective(), settings, SEEDS, SGD(), MetaSettings(critic="eldest"), lifetimes=lifetimes
        )
        if raised is not None:
            population.critics["out.bias"][raised, 0] += 7
        learner._update_objective(random_windows(2 * B, sizes=[(3, 2), (5, 1), (3, 2)]), env_steps=15)
        losses[raised] = learner.metrics["meta_loss"]
    for raised, shift in shifts.items():  # a raised one also changes the objective's inputs, and by them a small inner step
        torch.testing.assert_close(losses[None] - losses[raised], shift, rtol=0, atol=0.1)


def test_the_eldest_critic_needs_lives() -> None:
    with pytest.raises(
        ValueError, match="meta.critic=eldest needs agents of different ages in an environment; valid is a number"
    ):
        learner_of(small_objective(), SGD(), MetaSettings(critic="eldest"))


def test_returns_judge_by_the_share_that_the_setting_gives_them() -> None:
    """Rewards 3 higher at every step raise all advantages, so that nearness to replayed actions is worth more; to a critic nothing."""
    changes = []
    for share in (0.0, 1.0):
        losses = []
        for shift in (0.0, 3.0):
            learner = learner_of(small_objective(), SGD(step_size=1e-9), MetaSettings(advantage_share=share))
            windows = random_windows(2 * B)
            learner._update_objective(windows._replace(reward=windows.reward + shift * windows.valid), env_steps=0)
            losses.append(learner.metrics["meta_loss"])
        changes.append(losses[1] - losses[0])
    torch.testing.assert_close(changes[0], torch.zeros(3), rtol=0, atol=1e-5)
    assert (changes[1].abs() > 0.05).all()


def test_returns_judge_by_the_kind_of_advantage_that_the_setting_names() -> None:
    """With rewards far below what the critic expects every action was worse than expected: nothing is left to come nearer to."""
    losses = {}
    for kind in ("signed", "positive", "indicator"):
        settings = MetaSettings(advantage_share=1.0, advantage=kind)
        learner, windows = learner_of(small_objective(), SGD(), settings), random_windows(2 * B)
        learner._update_objective(windows._replace(reward=windows.reward - 100 * windows.valid), env_steps=0)
        losses[kind] = learner.metrics["meta_loss"]
    assert (losses["signed"] < -0.01).all()
    assert losses["positive"].eq(0).all() and losses["indicator"].eq(0).all()


def test_beginners_have_more_say_in_the_objective_where_asked_for() -> None:
    """Networks of 80, 40 and 10 env steps (births at 0, 40 and 70) and a half-life of 10: weights of 2**-8, 2**-4 and 2**-1."""
    lifetimes = Lifetimes(length=100, warmup=0, offsets=(0, 60, 30))
    assert lifetimes.age_of_networks(80).tolist() == [80, 40, 10]
    settings, windows = small_settings(), random_windows(2 * B)
    every: dict[int | None, dict[str, Tensor]] = {}
    for half_life in (None, 10):
        objective, meta = small_objective(), MetaSettings(gradient="normalize", half_life_env_steps=half_life)
        learner = Learner(small_population(), objective, settings, SEEDS, SGD(), meta, lifetimes=lifetimes)
        task = learner._meta_arguments(windows, 80)
        gradients = meta_gradients(*task)[0]
        learner._update_objective(windows, env_steps=80)
        every[half_life] = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    unit = scale_per_agent(gradients, 1 / norm_per_agent(gradients))
    for half_life, weight in ((None, torch.ones(3)), (10, torch.tensor([2.0**-8, 2.0**-4, 2.0**-1]))):
        expected = {name: (weight / weight.sum()) @ g.flatten(1) for name, g in unit.items()}
        for name, gradient in every[half_life].items():
            torch.testing.assert_close(gradient.flatten(), expected[name])


def test_agents_far_older_than_the_half_life_still_have_a_mean() -> None:
    lifetimes = Lifetimes(length=10**9, warmup=0, offsets=(0, 0, 0))
    every = []
    for half_life in (None, 1):
        objective, meta = small_objective(), MetaSettings(half_life_env_steps=half_life)
        learner = Learner(small_population(), objective, small_settings(), SEEDS, SGD(), meta, lifetimes=lifetimes)
        learner._update_objective(random_windows(2 * B), env_steps=10**6)
        every.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    torch.testing.assert_close(every[1], every[0])


def test_the_objective_is_updated_as_often_as_asked() -> None:
    drawn: list[int] = []

    def draw(num_windows: int) -> Windows:
        drawn.append(num_windows)
        return random_windows(num_windows, seeds=[len(drawn), 7, 8])

    def steps_of(learner: Learner) -> set[float]:
        assert learner.objective_optimizer is not None
        return {float(state["step"]) for state in learner.objective_optimizer.state.values()}

    learner = learner_of(small_objective(), SGD(), MetaSettings(annealing_env_steps=0, updates_per_cycle=3))
    learner.update(draw, env_steps=0)
    assert drawn == [B, B, 2 * B, 2 * B, 2 * B] and steps_of(learner) == {3}
    drawn.clear()
    learner = learner_of(small_objective(), SGD(), MetaSettings(annealing_env_steps=0, updates_per_cycle=3, share_windows=True))
    learner.update(draw, env_steps=0)
    assert drawn == [B, 2 * B, 2 * B, 2 * B] and steps_of(learner) == {3}  # the first one's windows are the policy's too


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"critic": "third"}, "critic must be first, second, twin_minimum, target_minimum or eldest, got 'third'"),
        ({"advantage_share": 1.5}, "advantage_share must be between 0 and 1, got 1.5"),
        ({"advantage": "negative"}, "advantage must be signed, positive or indicator, got 'negative'"),
        ({"half_life_env_steps": 0}, "half_life_env_steps must be at least 1, or null, got 0"),
        ({"updates_per_cycle": 0}, "updates_per_cycle must be at least 1, got 0"),
    ],
)
def test_meta_settings_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MetaSettings(**options)


@pytest.mark.parametrize("inner", [SGD(num_steps=2), Adam()])
def test_shared_windows_need_one_plain_step(inner: InnerStep) -> None:
    with pytest.raises(ValueError, match="meta.share_windows=true needs an inner loop of one step without moments"):
        learner_of(small_objective(), inner, MetaSettings(share_windows=True))


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


@pytest.mark.parametrize("decay", [None, 0.75])
def test_the_result_is_the_moving_average_of_the_objective_where_asked_for(decay: float | None) -> None:
    learner = learner_of(small_objective(), SGD(), MetaSettings(annealing_env_steps=0, average_decay=decay), policy_delay=1)
    teacher = learner_of(small_objective(), SGD(), MetaSettings(annealing_env_steps=0), policy_delay=1)
    expected: dict[str, Tensor] = {}
    for cycle in range(4):
        learner.update(numbered_draw(cycle), env_steps=0)
        teacher.update(numbered_draw(cycle), env_steps=0)
        for name, p in copied(dict(teacher.objective.named_parameters())).items():
            is_first = name not in expected or decay is None
            expected[name] = p if is_first else 0.75 * expected[name] + 0.25 * p
    assert_same(snapshot(learner), snapshot(teacher))  # agents are taught by the newest parameters
    for name, p in learner.result.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])
    assert (learner.result is learner.objective) == (decay is None)


def test_refuses_a_decay_that_is_none() -> None:
    with pytest.raises(ValueError, match="average_decay must be between 0 and 1, or null, got 1.0"):
        MetaSettings(average_decay=1.0)
