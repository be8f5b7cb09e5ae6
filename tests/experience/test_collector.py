"""Collection: what is stored of an env step, exploration, and a resume in the middle of an episode."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import toy_environments
from torch import Tensor

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.common.streams import AgentStreams, derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import SerialGroup, Steps
from metagenrl_pl.experience.collector import Collector
from metagenrl_pl.experience.replay import Replay


def counting(max_episode_steps: int | None = None, **kwargs: Any) -> EnvironmentSpec:
    """Observes [number of the episode, steps done, sum of the last action]; the reward is the number of steps done."""
    return EnvironmentSpec("Counting-v0", kwargs, max_episode_steps)


def collect(
    *specs: EnvironmentSpec,
    seeds: list[int] | None = None,
    act: Callable[[Tensor], Tensor] | None = None,
    exploration_noise: float = 0.1,
    random_env_steps: int = 0,
    capacity: int = 1000,
    **lives: Any,
) -> Collector:
    """A collector for windows of 4 steps whose policy, by default, always takes the action 0.25 in every dimension."""
    environments = SerialGroup(specs)
    replay = Replay(environments.sizes, capacity, 4)
    act = act or (lambda observation: torch.full((len(specs), replay.action_size), 0.25))
    return Collector(environments, seeds or list(range(len(specs))), replay, act, exploration_noise, random_env_steps, **lives)


def steps(collector: Collector, num_steps: int) -> None:
    for _ in range(num_steps):
        collector.step()


def returns_by_time(collector: Collector, num_steps: int) -> list[dict[int, float]]:
    """Of each agent the returns of the episodes that end in the next steps, by the env steps at their ends."""
    returns: list[dict[int, float]] = [{} for _ in collector.recent_returns]
    for _ in range(num_steps):
        collector.step()
        for agent, values in enumerate(collector.take_returns()):
            assert len(values) <= 1
            if values:
                returns[agent][collector.env_steps] = values[0]
    return returns


def stored_actions(collector: Collector, agent: int = 0) -> Tensor:
    """Every action of an agent whose first episode is still running, in order, [steps, A]."""
    collector.replay.window_length, length = collector.env_steps, collector.replay.window_length
    windows = collector.draw(1)
    collector.replay.window_length = length
    return windows.action[agent, 0]


# --------------------------------------------------------------------------------------------------------- what is stored


def test_a_step_is_stored_between_the_states_before_and_after_it() -> None:
    collector = collect(counting(ends_after=7, num_actions=2), counting(9))
    steps(collector, 100)
    windows = collector.draw(300)
    episode, time, action_sum = windows.states.unbind(-1)
    valid = windows.valid.bool()
    start = time[..., :1]
    offset = torch.arange(5)
    assert torch.equal(time[..., 1:][valid], (start + offset)[..., 1:][valid])  # consecutive
    assert torch.equal(windows.reward[valid], time[..., 1:][valid])  # made by the step, with the state after it
    assert torch.equal(windows.action.sum(-1)[valid], action_sum[..., 1:][valid])
    assert torch.equal(episode[..., 1:][valid], episode[..., :1].expand(-1, -1, 4)[valid])
    for agent in range(2):
        assert len(episode[agent, :, 0].unique()) > 10  # every episode has a seed of its own
    assert not set(episode[0, :, 0].tolist()) & set(episode[1, :, 0].tolist())


def test_terminated_is_stored_and_truncated_is_not() -> None:
    collector = collect(counting(ends_after=5), counting(5), counting(5, ends_after=5))
    steps(collector, 30)
    windows = collector.draw(200)
    is_last = (windows.states[:, :, 1:, 1] == 5).float() * windows.valid
    assert (is_last.sum((1, 2)) > 0).all() and (is_last[..., :-1] == 0).all()
    assert torch.equal(windows.terminated[0], is_last[0])
    assert (windows.terminated[1] == 0).all()
    assert torch.equal(windows.terminated[2], is_last[2])  # both at once


def test_the_returns_of_episodes_are_told_once() -> None:
    collector = collect(counting(ends_after=3), counting(4), counting())
    steps(collector, 8)
    assert collector.take_returns() == [[6.0, 6.0], [10.0, 10.0], []]  # 1 + 2 + 3 and 1 + ... + 4
    assert collector.take_returns() == [[], [], []]
    steps(collector, 1)
    assert collector.take_returns() == [[6.0], [], []] and collector.env_steps == 9
    assert [list(returns) for returns in collector.recent_returns] == [[6.0] * 3, [10.0] * 2, []]


def test_a_return_is_told_when_its_episode_ends() -> None:
    collector = collect(counting(ends_after=3), counting(4))
    assert returns_by_time(collector, 9) == [{3: 6.0, 6: 6.0, 9: 6.0}, {4: 10.0, 8: 10.0}]


def test_recent_returns_are_those_of_the_last_ten_episodes() -> None:
    collector = collect(counting(1, global_randomness="reward"))
    toy_environments.Counting.steps_taken_by_all = 0
    steps(collector, 12)
    assert list(collector.recent_returns[0]) == list(range(3, 13))


def test_the_newest_step_can_be_drawn_at_once() -> None:
    collector = collect(counting(ends_after=6), counting())
    for number in range(1, 30):
        steps(collector, 1)
        windows = collector.draw(400)
        assert (windows.reward[1] == number).any()
        assert (windows.reward[0] == (number - 1) % 6 + 1).any()


def test_a_lost_episode_is_truncated_and_its_step_taken_in_the_next_one() -> None:
    """Agent 1 loses its episode in the fourth step, and the next episode in its first step."""
    collector = collect(counting(), counting())
    collector.environments = group = toy_environments.Losing(collector.environments.specs, {4: 1, 5: 1})
    steps(collector, 6)
    assert [len(seeds) for seeds in group.seeds] == [1, 3] and len(set(group.seeds[1])) == 3
    assert collector.replay.count.tolist() == [6, 6] and collector.env_steps == 6
    windows = collector.draw(200)
    lengths = windows.valid.sum(-1)
    assert lengths[0].unique().tolist() == [4] and lengths[1].unique().tolist() == [3]  # 6 steps; 3 and 3
    numbers = windows.observation[1, :, :, 0]
    assert numbers[:, :4].eq(numbers[:, :1]).all()  # no window reaches over the loss
    assert windows.observation[1, :, 0, 1].unique().tolist() == [0] and not windows.terminated.any()
    assert windows.reward[1, 0].tolist() == [1, 2, 3, 0]
    assert collector.take_returns() == [[], []]  # a truncated episode has no return to tell
    assert collector.newest_returns() == [1 + 2 + 3 + 4 + 5 + 6, 1 + 2 + 3]


def test_a_run_that_has_lost_an_episode_resumes() -> None:
    collector, other = collect(counting(), counting()), collect(counting(), counting())
    collector.environments = toy_environments.Losing(collector.environments.specs, {4: 1})
    steps(collector, 6)
    assert restored(other, saved(collector)) == []


# ------------------------------------------------------------------------------------------------------- halves of an env step


class Noting(SerialGroup):
    """Notes what it is asked for."""

    def __init__(self, specs: Sequence[EnvironmentSpec]) -> None:
        super().__init__(specs)
        self.asked: list[str] = []

    def reset(self, index: int, seed: int) -> np.ndarray:
        self.asked.append(f"reset {index}")
        return super().reset(index, seed)

    def begin_step(self, action: np.ndarray, is_open: np.ndarray | None = None) -> None:
        self.asked.append("begin")
        super().begin_step(action, is_open)

    def end_step(self) -> Steps:
        self.asked.append("end")
        return super().end_step()


def test_environments_step_between_the_halves() -> None:
    """The action is handed out in the first, and nothing is waited for before the second."""
    collector = collect(counting(ends_after=2), counting())
    collector.environments = group = Noting(collector.environments.specs)
    collector.begin_step()
    assert group.asked == ["reset 0", "reset 1", "begin"]
    collector.end_step()
    assert group.asked[3:] == ["end"]
    collector.step()
    assert group.asked[4:] == ["begin", "end", "reset 0"]  # an ended episode is followed by the next one at once


def test_a_step_is_stored_in_its_second_half() -> None:
    collector = collect(counting(), exploration_noise=0.5)
    steps(collector, 5)
    collector.begin_step()
    assert collector.env_steps == collector.num_collected == 5
    assert collector.draw(200).reward.max() == 5 and collector.take_returns() == [[]]
    collector.end_step()
    assert collector.env_steps == collector.num_collected == 6
    assert collector.draw(200).reward.max() == 6


def test_the_action_is_that_of_the_policy_in_the_first_half() -> None:
    """Whatever is learned while environments step."""
    weight = [0.25]
    collector = collect(counting(), act=lambda observation: torch.full((1, 1), weight[0]), exploration_noise=0.0)
    for number in range(1, 5):
        weight[0] = number / 8
        collector.begin_step()
        weight[0] = -1.0
        collector.end_step()
    assert stored_actions(collector)[:, 0].tolist() == [0.125, 0.25, 0.375, 0.5]


def test_what_is_drawn_between_the_halves_changes_no_step() -> None:
    one, other = (collect(counting(ends_after=3, num_actions=2), seeds=[7]) for _ in range(2))
    steps(one, 1)
    steps(other, 1)
    for _ in range(20):
        one.step()
        other.begin_step()
        other.sample(3, AgentStreams([1], "somebody else's"))
        other.end_step()
    states = one.replay.agent_state(0), other.replay.agent_state(0)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]) and same(one.draw(9), other.draw(9))


# -------------------------------------------------------------------------------------------------------------- exploration


def test_the_first_actions_are_uniform_and_the_policy_is_not_asked() -> None:
    asked = []

    def act(observation: Tensor) -> Tensor:
        asked.append(observation.clone())
        return torch.full((1, 2), 0.25)

    collector = collect(counting(num_actions=2), act=act, exploration_noise=0.0, random_env_steps=2000, capacity=3000)
    steps(collector, 2000)
    assert not asked
    steps(collector, 2)
    assert [observation[0, 1].item() for observation in asked] == [2000, 2001]  # the state that the action is taken in
    actions = stored_actions(collector)
    assert (actions[2000:] == 0.25).all()
    random = actions[:2000]
    assert random.min() >= -1 and random.max() <= 1 and len(random.unique()) > 3900
    quarters = torch.histc(random, 4, -1, 1)
    assert (quarters - 1000).abs().max() < 5 * (4000 * 3 / 16) ** 0.5  # five deviations


def test_policy_actions_are_noisy_and_stay_in_bounds() -> None:
    collector = collect(counting(num_actions=2), act=lambda observation: torch.tensor([[0.9, -0.5]]), exploration_noise=0.1)
    steps(collector, 900)
    first, second = stored_actions(collector).unbind(-1)
    assert first.max() == 1 and 0.1 < (first == 1).float().mean() < 0.22  # 16 % lie beyond one deviation
    assert abs(second.mean() + 0.5) < 0.02 and abs(second.std() - 0.1) < 0.015
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.17


@pytest.mark.parametrize("random_env_steps", [0, 100])
def test_padded_actions_are_zero_and_no_environment_sees_them(random_env_steps: int) -> None:
    collector = collect(counting(num_actions=1), counting(num_actions=3), random_env_steps=random_env_steps)
    steps(collector, 20)
    windows = collector.draw(100)
    assert (windows.action[0, ..., 1:] == 0).all() and (windows.action[0, ..., 0] != 0).any()
    assert (windows.action[1][windows.valid[1].bool()] != 0).all()
    assert torch.equal(windows.action.sum(-1), windows.states[:, :, 1:, 2] * windows.valid)


def test_agents_in_the_same_environment_differ() -> None:
    collector = collect(counting(), counting())
    steps(collector, 50)
    windows = collector.draw(50)
    assert not torch.equal(windows.reward[0], windows.reward[1])  # other windows
    assert (stored_actions(collector, 0) != stored_actions(collector, 1)).all()
    assert (windows.states[0, :, 0, 0] != windows.states[1, :, 0, 0]).all()  # other episodes


@pytest.mark.parametrize("random_env_steps", [0, 100])
def test_an_agents_experience_does_not_depend_on_the_others(random_env_steps: int) -> None:
    """Wider ones included."""
    specs = [counting(ends_after=9, num_actions=1), counting(7, num_actions=3)]
    together = collect(*specs, seeds=[4, 5], random_env_steps=random_env_steps)
    alone = collect(specs[0], seeds=[4], random_env_steps=random_env_steps)
    steps(together, 50)
    steps(alone, 50)
    assert together.replay.agent_state(0).keys() == alone.replay.agent_state(0).keys()
    assert all(torch.equal(value, together.replay.agent_state(0)[name]) for name, value in alone.replay.agent_state(0).items())
    assert torch.equal(together.draw(20).action[:1, ..., :1], alone.draw(20).action)


# ------------------------------------------------------------------------------------------------------------------- resume


def saved(collector: Collector) -> tuple[Any, list[dict[str, Tensor]]]:
    """State and replay, through a file."""
    file = io.BytesIO()
    replay = collector.replay
    torch.save((collector.state_dict(), [replay.agent_state(agent) for agent in range(len(replay.sizes))]), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def restored(collector: Collector, state: tuple[Any, list[dict[str, Tensor]]]) -> list[int]:
    for agent, rows in enumerate(state[1]):
        collector.replay.load_agent_state(agent, rows)
    return collector.load_state_dict(state[0])


def same(one: Windows, other: Windows) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def steep_policy(observation: Tensor) -> Tensor:
    """Whose actions tell observations apart that differ in the last bit, sooner or later."""
    return torch.stack([(observation.sum(-1) * 7).sin(), (observation[:, 0] * 13).sin()] * 3, -1)


@pytest.mark.parametrize("number", [3, 45])  # in the first episode, during random actions; later
@pytest.mark.parametrize("id", ["Pendulum-v1", "HalfCheetah-v5", "LunarLanderContinuous-v3", "Counting-v0"])
def test_a_resume_goes_on_as_if_it_had_never_stopped(id: str, number: int) -> None:
    def made(seeds: list[int]) -> Collector:
        specs = [EnvironmentSpec(id, max_episode_steps=20), counting(ends_after=13)]
        collector = collect(*specs, seeds=seeds, random_env_steps=10, capacity=60)
        collector._act = lambda observation: steep_policy(observation)[:, : collector.replay.action_size]
        return collector

    first, second = made([1, 2]), made([3, 4])
    steps(first, number)
    steps(second, 7)
    assert not same(first.draw(20), second.draw(20))

    state = saved(first)
    assert restored(second, state) == []
    assert second.env_steps == number and second.recent_returns == first.recent_returns
    for _ in range(60):
        first.step()
        second.step()
        assert same(first.draw(5), second.draw(5))
    returns = first.take_returns()
    assert returns == second.take_returns()
    assert len(returns[0]) >= (number + 60) // 20 and len(returns[1]) == (number + 60) // 13  # nobody had asked before
    assert first.recent_returns == second.recent_returns
    for agent in range(2):
        states = first.replay.agent_state(agent), second.replay.agent_state(agent)
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("randomness", ["observation", "reward", "length"])
def test_an_episode_that_does_not_reproduce_counts_as_truncated(randomness: str) -> None:
    specs = [counting(ends_after=50), counting(ends_after=49, global_randomness=randomness), counting(ends_after=50)]
    first, second = collect(*specs), collect(*specs)
    toy_environments.Counting.steps_taken_by_all = 0
    steps(first, 10)
    state = saved(first)
    toy_environments.Counting.steps_taken_by_all = 29  # so that `length` ends the episode with the last step, number 49
    assert restored(second, state) == [1]

    assert second.take_returns() == [[], [], []] and second.env_steps == 10
    before = second.draw(50)
    assert (before.terminated == 0).all() and before.reward[0].max() == 10
    steps(second, 3)
    windows = second.draw(400)
    episode, time = windows.states[1, ..., 0], windows.states[1, ..., 1]
    valid = windows.valid[1].bool()
    assert (windows.terminated == 0).all()
    assert torch.equal(episode[:, 1:][valid], episode[:, :1].expand(-1, 4)[valid]) and len(episode[:, 0].unique()) == 2
    assert time[episode == episode[time.argmax() // 5, 0]].max() == 10  # the old one as it was
    assert windows.states[0, ..., 1].max() == 13 and windows.states[2, ..., 1].max() == 13  # others are still in theirs
    returns = returns_by_time(second, 46)
    assert returns[0] == returns[2] == {50: 50 * 51 / 2}  # 1 + ... + 50
    if randomness != "length":
        assert list(returns[1]) == [59]
    if randomness == "observation":
        assert returns[1][59] == 49 * 50 / 2  # of the new episode alone


def test_a_resume_before_the_first_step() -> None:
    first, second = (collect(counting(ends_after=5), seeds=[seed]) for seed in (1, 2))
    assert restored(second, saved(first)) == []
    steps(first, 8)
    steps(second, 8)
    assert same(first.draw(10), second.draw(10)) and first.take_returns() == second.take_returns() == [[15.0]]


def test_a_resume_without_the_replay_begins_new_episodes() -> None:
    first, second = collect(counting(ends_after=50)), collect(counting(ends_after=50))
    steps(first, 10)
    seen = first.draw(20).states[0, :, 0, 0].unique()
    assert second.load_state_dict({**saved(first)[0], "is_open": False}) == []
    steps(second, 5)
    windows = second.draw(20)
    assert windows.states[0, ..., 1].max() == 5 and second.env_steps == 15
    assert not set(windows.states[0, :, 0, 0].tolist()) & set(seen.tolist())


def test_a_saved_state_is_a_copy() -> None:
    collector = collect(counting(ends_after=5))
    steps(collector, 3)
    state = collector.state_dict()
    before = io.BytesIO()
    torch.save(state, before)
    steps(collector, 4)
    after = io.BytesIO()
    torch.save(state, after)
    assert before.getvalue() == after.getvalue()
    assert state["agents"][0]["observation"][1] == 3


# ------------------------------------------------------------------------------------------------------------------- lives


def test_a_new_agent_acts_at_random_and_takes_over_with_its_own_experience_alone() -> None:
    renewed: list[tuple[int, int, int]] = []
    lifetimes = Lifetimes(60, warmup=20, offsets=(0, 30))  # new lives at 60, 120 and at 30, 90
    collector = collect(
        counting(ends_after=7),
        counting(),
        seeds=[5, 6],
        exploration_noise=0.0,
        random_env_steps=20,
        lifetimes=lifetimes,
        renew=lambda agent, seed: renewed.append((collector.env_steps, agent, seed)),
    )
    steps(collector, 45)
    first_life = collector.draw(200).states[1, :, 0, 0].unique().tolist()
    assert len(first_life) == 2 and not renewed  # episodes of the predecessor and of the new agent
    steps(collector, 6)
    assert renewed == [(50, 1, derive_seed(6, "life", 1))]
    windows = collector.draw(200)
    assert windows.states[1, :, 0, 0].unique().tolist() in [[episode] for episode in first_life]  # the new agent alone
    assert windows.states[1, ..., 1].max() == 21  # env steps since its birth
    assert len(windows.states[0, :, 0, 0].unique()) > 5  # nothing happened to the other agent
    # Uniform actions up to an age of 20, then the policy's 0.25.
    actions, ages = windows.action[1, ..., 0], windows.states[1, :, :-1, 1]
    is_policy = (actions - 0.25).abs() < 1e-6
    real = windows.valid[1].bool()
    assert torch.equal(is_policy[real], (ages >= 20)[real])
    steps(collector, 100)
    assert [(when, agent) for when, agent, _ in renewed] == [(50, 1), (80, 0), (110, 1), (140, 0)]
    assert len({seed for _, _, seed in renewed}) == 4


def test_what_an_agent_draws_does_not_depend_on_its_neighbours_lives() -> None:
    def actions(offsets: tuple[int, ...], seeds: list[int]) -> Tensor:
        specs = [counting()] * len(seeds)
        collector = collect(*specs, seeds=seeds, random_env_steps=10, lifetimes=Lifetimes(50, warmup=5, offsets=offsets))
        steps(collector, 40)
        return stored_actions(collector, seeds.index(6))

    assert torch.equal(actions((0,), [6]), actions((45, 0), [3, 6]))


def test_agents_with_the_same_seed_meet_the_same_episodes_in_every_life(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = collect(counting(3), counting(7), seeds=[5, 5], random_env_steps=10, lifetimes=Lifetimes(20, 10, (0, 0)))
    reset, seeds = collector.environments.reset, ([], [])  # type: ignore[var-annotated]

    def remember(agent: int, seed: int) -> np.ndarray:
        seeds[agent].append((collector.env_steps // 20, seed))
        return reset(agent, seed)

    monkeypatch.setattr(collector.environments, "reset", remember)
    steps(collector, 60)
    short, long = ([seed for life, seed in met if life == 2] for met in seeds)
    assert 1 < len(long) < len(short) and long == short[: len(long)]
    assert all(len(set(met)) == len(met) for met in seeds)  # no episode twice


def test_a_resume_goes_on_with_the_lives() -> None:
    def made() -> Collector:
        return collect(counting(), counting(9), random_env_steps=10, lifetimes=Lifetimes(50, warmup=10, offsets=(0, 25)))

    whole, first, second = made(), made(), made()
    steps(whole, 90)
    steps(first, 55)  # the first agent is new, the second about half a life old
    for agent in range(2):
        second.replay.load_agent_state(agent, first.replay.agent_state(agent))
    assert second.load_state_dict(first.state_dict()) == []
    steps(second, 35)
    for mine, other in zip(whole.draw(50), second.draw(50), strict=True):
        assert torch.equal(mine, other)
