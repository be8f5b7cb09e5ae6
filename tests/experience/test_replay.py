"""Replay: every window is compared with a list of all that ever happened, from which the buffer's content follows by counting."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch

from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.common.streams import AgentStreams
from metagenrl_pl.experience import memory
from metagenrl_pl.experience.memory import available_bytes, check_memory, memory_bytes, slots_for
from metagenrl_pl.experience.replay import Replay

SIZES = [(2, 1), (3, 4), (2, 1)]  # two groups, the first of two agents that are no neighbours
SEEDS = [11, 12, 13]
LENGTHS = (1, 2, 3, 4, 5, 9, 30)


class Step(NamedTuple):
    """What happened to one agent in one step; its states are counted over all its episodes, last states included."""

    state: int
    episode: int
    terminated: bool


class History:
    """Drives a replay with episodes of random lengths and remembers everything.

    Values are functions of agent, state and step, all whole or quarters, so that float32 holds them exactly.
    """

    def __init__(self, replay: Replay, lengths: Sequence[int] = LENGTHS, agents: Sequence[int] = (0, 1, 2)) -> None:
        self.replay = replay
        self.mirror: Replay | None = None  # gets the same
        self.agents = agents  # their numbers in the whole population
        self._rngs = [np.random.default_rng(agent) for agent in self.agents]
        self._lengths = lengths
        self.steps: list[list[Step]] = [[] for _ in self.agents]
        self._first_kept = [0] * len(self.agents)  # of `steps`
        self.states = [-1] * len(self.agents)  # newest one
        self._episodes, self._left = [-1] * len(self.agents), [0] * len(self.agents)
        for row in range(len(self.agents)):
            self._begin(row)

    def observation(self, row: int, state: int) -> np.ndarray:
        padded = np.zeros(self.replay.observation_size, np.float32)
        size = self.replay.sizes[row][0]
        padded[:size] = 1_000_000 * (self.agents[row] + 1) + 10 * state + np.arange(size)
        return padded

    def action(self, row: int, state: int) -> np.ndarray:
        padded = np.zeros(self.replay.action_size, np.float32)
        size = self.replay.sizes[row][1]
        padded[:size] = -state - np.arange(1, size + 1) / 8
        return padded

    @staticmethod
    def reward(state: int) -> float:
        return state + 0.25

    @property
    def _replays(self) -> list[Replay]:
        return [self.replay] if self.mirror is None else [self.replay, self.mirror]

    def _begin(self, row: int) -> None:
        self.states[row] += 1
        self._episodes[row] += 1
        self._left[row] = int(self._rngs[row].choice(self._lengths))
        size = self.replay.sizes[row][0]
        for replay in self._replays:
            replay.begin_episode(row, self.observation(row, self.states[row])[:size])
        if self._rngs[row].random() < 0.03:  # an episode without a step
            self._begin(row)

    def step(self) -> None:
        rows = range(len(self.agents))
        ends = [self._left[row] == 1 for row in rows]
        terminated = [ends[row] and bool(self._rngs[row].random() < 0.5) for row in rows]
        for row in rows:
            self.steps[row].append(Step(self.states[row], self._episodes[row], terminated[row]))
        action = np.stack([self.action(row, self.states[row]) for row in rows])
        reward = np.array([self.reward(self.states[row]) for row in rows], np.float32)
        observation = np.stack([self.observation(row, self.states[row] + 1) for row in rows])
        for replay in self._replays:
            replay.append(action, reward, np.array(terminated, np.float32), observation)
        for row in rows:
            self.states[row] += 1
            self._left[row] -= 1
            if ends[row]:
                self._begin(row)

    def keep_newest(self, row: int, num_steps: int) -> None:
        self._first_kept[row] = max(self._first_kept[row], len(self.steps[row]) - num_steps)
        for replay in self._replays:
            replay.keep_newest(row, num_steps)

    def stored(self, row: int) -> list[Step]:
        """A buffer holds an agent's newest states, and the steps that start from one of them."""
        newest = self.steps[row][self._first_kept[row] :][-self.replay.capacity :]
        return [step for step in newest if step.state > self.states[row] - self.replay.capacity]

    def window_from(self, row: int) -> dict[int, list[Step]]:
        """For every stored step, by its state: the window that drawing it gives."""
        stored, length = self.stored(row), self.replay.window_length
        windows = {}
        for i, step in enumerate(stored):
            begin, end = i, i + 1
            while end < len(stored) and stored[end].episode == step.episode and end < i + length:
                end += 1
            while begin > 0 and stored[begin - 1].episode == step.episode and end - begin < length:
                begin -= 1
            windows[step.state] = stored[begin:end] if end - begin < length else stored[begin : begin + length]
        return windows

    def check(self, windows: Windows) -> list[list[int]]:
        """Every window is one of those that can be drawn, in every value. Returns their first states."""
        firsts = []
        for row in range(len(self.agents)):
            possible = {window[0].state: window for window in self.window_from(row).values()}
            size = self.replay.sizes[row][0]
            starts = ((windows.states[row, :, 0, 0] - 1_000_000 * (self.agents[row] + 1)) / 10).long().tolist()
            assert set(starts) <= set(possible)
            expected = {start: self._expected(row, possible[start]) for start in set(starts)}
            for name, part in zip(Windows._fields, windows, strict=True):
                wanted = torch.stack([getattr(expected[start], name) for start in starts])
                assert torch.equal(part[row], wanted), name
            assert (windows.states[row, :, 0, :size] != 0).all()
            firsts.append(starts)
        return firsts

    def _expected(self, row: int, steps: list[Step]) -> Windows:
        """One window, padded, as it ought to be; no axes for agents and windows."""
        length = self.replay.window_length
        states = np.zeros((length + 1, self.replay.observation_size), np.float32)
        action = np.zeros((length, self.replay.action_size), np.float32)
        reward, terminated, valid = (np.zeros(length, np.float32) for _ in range(3))
        states[: len(steps) + 1] = [self.observation(row, steps[0].state + i) for i in range(len(steps) + 1)]
        action[: len(steps)] = [self.action(row, step.state) for step in steps]
        reward[: len(steps)] = [self.reward(step.state) for step in steps]
        terminated[: len(steps)] = [step.terminated for step in steps]
        valid[: len(steps)] = 1
        return Windows(*map(torch.from_numpy, (states, action, reward, terminated, valid)))


def driven(
    capacity: int, window_length: int, num_steps: int, lengths: Sequence[int] = LENGTHS, agents: Sequence[int] = (0, 1, 2)
) -> History:
    history = History(Replay(SIZES, capacity, window_length), lengths, agents)
    for _ in range(num_steps):
        history.step()
    return history


# ------------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("capacity", "window_length", "num_steps", "lengths"),
    [
        (40, 5, 1500, LENGTHS),
        (7, 5, 500, (1, 2, 9, 30)),  # the smallest that holds a window
        (3, 1, 300, (1, 2, 9)),
        (40, 5, 500, (400,)),  # the episode overwrites its own start
        (300, 3, 1000, (1, 2)),  # more than a hundred episodes at a time
        (2000, 5, 200, (1, 2, 9)),  # never full
    ],
)
def test_windows_are_what_happened(capacity: int, window_length: int, num_steps: int, lengths: Sequence[int]) -> None:
    history, streams = driven(capacity, window_length, 0, lengths), AgentStreams(SEEDS, "windows")
    for number in range(1, num_steps + 1):
        history.step()
        assert len(history.replay) == min(len(history.stored(row)) for row in range(len(SIZES)))
        if len(history.replay) and (number < 10 or number % 10 == 0):
            history.check(history.replay.sample(16, streams))
    oldest = min(history.stored(row)[0].state for row in range(len(SIZES)))
    assert (oldest > 0) is (capacity < num_steps)  # wrapped around, unless it never was full


@pytest.mark.parametrize("capacity", [9, 40, 700])
def test_what_is_forgotten_is_never_drawn(capacity: int) -> None:
    """Also where the ring wraps round, and in a buffer that was restored since."""
    history, streams, rng = driven(capacity, 5, 0), AgentStreams(SEEDS, "windows"), np.random.default_rng(0)
    for number in range(1, 800):
        history.step()
        if number % 60 == 0:
            history.keep_newest(int(rng.integers(3)), int(rng.integers(1, 50)))
        if number % 300 == 0:
            restored = Replay(SIZES, capacity, 5)
            for agent in range(3):
                restored.load_agent_state(agent, history.replay.agent_state(agent))
            history.replay = restored
        if number % 7 == 0:
            assert len(history.replay) == min(len(history.stored(row)) for row in range(3))
            history.check(history.replay.sample(16, streams))


def test_windows_have_every_kind_of_end() -> None:
    """So the comparison with what happened is not an empty one."""
    history = driven(200, 5, 600)
    windows = history.replay.sample(2000, AgentStreams(SEEDS, "windows"))
    history.check(windows)
    assert set(windows.length.unique().tolist()) == {1, 2, 3, 4, 5}
    last = (windows.length - 1).unsqueeze(-1)
    assert set(windows.terminated.gather(-1, last).unique().tolist()) == {0.0, 1.0}
    assert torch.equal(windows.terminated.sum(-1), windows.terminated.gather(-1, last).squeeze(-1))  # on the last step alone
    assert (windows.states[:, :, 1:] * (1 - windows.valid.unsqueeze(-1)) == 0).all() and (windows.valid == 0).any()


def test_every_stored_step_is_drawn_equally_often() -> None:
    history, num_windows = driven(120, 6, 700), 30_000
    starts = history.check(history.replay.sample(num_windows, AgentStreams(SEEDS, "windows")))
    for row in range(len(SIZES)):
        by_step = {state: window[0].state for state, window in history.window_from(row).items()}
        running = history.steps[row][-1].state
        assert running in by_step and len(by_step) > 80
        firsts, shares = np.unique(list(by_step.values()), return_counts=True)
        expected = shares * num_windows / len(by_step)
        drawn, counts = np.unique(starts[row], return_counts=True)
        assert drawn.tolist() == firsts.tolist()
        statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(firsts) - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # chi-square: mean + 4 deviations


def test_a_window_starts_earlier_if_its_episode_ends_too_soon() -> None:
    history = driven(100, 4, 0, lengths=(6,))
    for _ in range(15):
        history.step()
    by_step = history.window_from(0)
    # Episodes of states 0-6, 7-13 and 14-..., if none is empty; of six steps the first three start where they are drawn.
    first = history.steps[0][0].state
    assert [by_step[first + i][0].state - first for i in range(6)] == [0, 1, 2, 2, 2, 2]
    starts = history.check(history.replay.sample(500, AgentStreams(SEEDS, "windows")))[0]
    assert {start - first for start in starts if start < first + 6} == {0, 1, 2}


def test_agents_of_other_sizes_are_padded_with_zeros() -> None:
    history = driven(50, 5, 200)
    windows = history.replay.sample(100, AgentStreams(SEEDS, "windows"))
    assert windows.states.shape == (3, 100, 6, 3) and windows.action.shape == (3, 100, 5, 4)
    for agent, (o, a) in enumerate(SIZES):
        assert (windows.states[agent, ..., o:] == 0).all() and (windows.action[agent, ..., a:] == 0).all()
        assert (windows.action[agent, ..., :a] != 0)[windows.valid[agent].bool()].all()


def test_an_agents_windows_do_not_depend_on_the_others() -> None:
    together = driven(30, 5, 400)
    for agent, (o, a) in enumerate(SIZES):
        alone = History(Replay([(o, a)], 30, 5), agents=[agent])
        for _ in range(400):
            alone.step()
        ours = Windows(*(x[agent : agent + 1] for x in together.replay.sample(64, AgentStreams(SEEDS, "windows"))))
        theirs = alone.replay.sample(64, AgentStreams(SEEDS[agent : agent + 1], "windows"))
        assert torch.equal(ours.states[..., :o], theirs.states) and torch.equal(ours.action[..., :a], theirs.action)
        for name in ("reward", "terminated", "valid"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_sampling_leaves_the_buffer_alone() -> None:
    history = driven(30, 5, 100)
    before = history.replay.agent_state(1)
    windows = history.replay.sample(16, AgentStreams(SEEDS, "windows"))
    for part in windows:
        part.fill_(-7)
    assert all(torch.equal(value, before[name]) for name, value in history.replay.agent_state(1).items())


# ---------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("other_steps", [37, 1300])
@pytest.mark.parametrize(("capacity", "lengths"), [(40, (1, 2, 9, 30)), (400, (1, 2)), (5000, (1, 2, 9))])
def test_an_agents_state_comes_back_bit_for_bit(capacity: int, lengths: Sequence[int], other_steps: int) -> None:
    history, other = driven(capacity, 5, 900, lengths), driven(capacity, 5, other_steps, lengths, (3, 4, 5))
    states = [history.replay.agent_state(agent) for agent in range(len(SIZES))]
    kept = other.replay.agent_state(0)
    assert any(kept[name].shape != states[0][name].shape or not torch.equal(kept[name], states[0][name]) for name in kept)

    for agent in (1, 2):
        other.replay.load_agent_state(agent, {name: value.clone() for name, value in states[agent].items()})
    assert all(torch.equal(kept[name], value) for name, value in other.replay.agent_state(0).items())  # not loaded yet
    other.replay.load_agent_state(0, states[0])
    for agent, state in enumerate(states):
        assert all(torch.equal(state[name], value) for name, value in other.replay.agent_state(agent).items())

    ours, theirs = AgentStreams(SEEDS, "windows"), AgentStreams(SEEDS, "windows")
    history.mirror = other.replay
    for number in range(300):
        if number % 20 == 0:
            windows = history.replay.sample(16, ours)
            history.check(windows)
            assert all(torch.equal(a, b) for a, b in zip(windows, other.replay.sample(16, theirs), strict=True))
        history.step()


def test_an_agents_state_is_a_copy() -> None:
    history = driven(30, 5, 100)
    state = history.replay.agent_state(0)
    before = {name: value.clone() for name, value in state.items()}
    for _ in range(50):
        history.step()
    assert all(torch.equal(before[name], value) for name, value in state.items())


@pytest.mark.parametrize(("sizes", "capacity"), [([(2, 1)], 41), ([(2, 1)], 39), ([(3, 1)], 40)])
def test_refuses_the_state_of_another_buffer(sizes: list[tuple[int, int]], capacity: int) -> None:
    state = driven(40, 5, 100).replay.agent_state(0)
    with pytest.raises(ValueError, match=f"saved with another environment, or a capacity other than {capacity}"):
        Replay(sizes, capacity, 5).load_agent_state(0, state)


def test_a_buffer_that_is_not_full_yet_fits_any_capacity_that_holds_it() -> None:
    history = driven(2000, 5, 100)
    for capacity in (history.states[0] + 1, 3000):
        larger = Replay(SIZES[:1], capacity, 5)
        larger.load_agent_state(0, history.replay.agent_state(0))
        windows = larger.sample(16, AgentStreams(SEEDS[:1], "windows"))
        expected = history.replay.sample(16, AgentStreams(SEEDS, "windows"))
        assert torch.equal(windows.states, expected.states[:1, ..., :2])


# ---------------------------------------------------------------------------------------------------------------------- bytes

ARE_BYTES = [True, False, True]


class ByteHistory(History):
    """The agents with two numbers observe bytes."""

    def observation(self, row: int, state: int) -> np.ndarray:
        padded = super().observation(row, state)
        return padded if self.agents[row] == 1 else padded % 256


def drive_both(num_steps: int, capacity: int = 40) -> tuple[ByteHistory, Replay]:
    """A history in a replay of bytes, and the replay of 32-bit numbers that got the same."""
    history = ByteHistory(Replay(SIZES, capacity, 5, are_bytes=ARE_BYTES))
    history.mirror = floats = Replay(SIZES, capacity, 5)
    for row in range(3):
        floats.begin_episode(row, history.observation(row, 0)[: SIZES[row][0]])
    for _ in range(num_steps):
        history.step()
    return history, floats


def same_windows(one: Replay, other: Replay) -> bool:
    both = (replay.sample(32, AgentStreams(SEEDS, "windows")) for replay in (one, other))
    return all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_bytes_give_the_same_windows_in_a_quarter_of_the_memory() -> None:
    history, floats = drive_both(300)
    assert same_windows(history.replay, floats)
    assert history.replay.num_bytes == memory_bytes(SIZES, 40, ARE_BYTES) == floats.num_bytes - 2 * 3 * 40 * 2


@pytest.mark.parametrize("number", [0.5, -1.0, 256.0])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_number_that_is_no_byte_is_kept_as_it_is(number: float, is_first: bool) -> None:
    """Its space was declared wrongly. Then all agents in such an environment store 32-bit numbers from then on."""
    history, floats = drive_both(30)
    for replay in (history.replay, floats):
        if is_first:
            replay.begin_episode(0, np.array([number, 1], np.float32))
        else:
            observation = np.ones((3, 3), np.float32)
            observation[2, 1] = number
            replay.append(np.ones((3, 4), np.float32), np.ones(3, np.float32), np.zeros(3, np.float32), observation)
    for _ in range(30):
        history.step()
    assert same_windows(history.replay, floats)
    assert history.replay.num_bytes == floats.num_bytes


def test_bytes_that_become_numbers_need_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    history, _ = drive_both(30)
    monkeypatch.setattr(memory, "available_bytes", lambda device: memory_bytes(SIZES, 40) - 1)
    with pytest.raises(ValueError, match=r"^replay.capacity needs"):
        history.replay.begin_episode(0, np.array([0.5, 1], np.float32))


@pytest.mark.parametrize("was_wrong", [False, True])
@pytest.mark.parametrize("is_wrong", [False, True])
def test_bytes_come_back_bit_for_bit(was_wrong: bool, is_wrong: bool) -> None:
    """From a replay that had found a number that is no byte, or into one; agents one by one, as from other processes."""
    history, _ = drive_both(100)
    other = Replay(SIZES, 40, 5, are_bytes=ARE_BYTES)
    for replay, has_number in ((history.replay, was_wrong), (other, is_wrong)):
        if has_number:
            replay.begin_episode(0, np.array([0.5, 1], np.float32))
    for agent in range(3):
        other.load_agent_state(agent, history.replay.agent_state(agent))
    assert same_windows(history.replay, other)
    assert other.num_bytes == memory_bytes(SIZES, 40, [False] * 3 if was_wrong or is_wrong else ARE_BYTES)


# ---------------------------------------------------------------------------------------------------------------------- sizes


def test_memory_is_counted_unpadded() -> None:
    assert memory_bytes([(17, 6), (3, 1)], 1000) == 4 * 1000 * (17 + 6 + 2) + 4 * 1000 * (3 + 1 + 2)
    replay = Replay([(17, 6), (3, 1)], 1000)
    assert sum(group.rows.numel() * group.rows.element_size() for group in replay._groups) == memory_bytes(replay.sizes, 1000)


def test_refuses_what_the_machine_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < available_bytes(torch.device("cpu")) < 1e15
    monkeypatch.setattr(memory, "available_bytes", lambda device: 32_000)
    assert Replay([(5, 1)], 1000).capacity == 1000  # 4 bytes x 1000 x 8: just fits
    with pytest.raises(
        ValueError, match=r"^replay.capacity needs 0.0 GB on cpu .* a smaller replay.capacity or population.size$"
    ):
        Replay([(5, 1)], 1001)
    with pytest.raises(ValueError, match=r"^replay.capacity needs 25.0 GB on cpu and there are 0.0 GB"):
        check_memory(25_000_000_000, torch.device("cpu"))


def test_a_run_of_known_length_keeps_all_its_steps() -> None:
    """Also where every episode has one step, which takes two slots then."""
    assert len(driven(slots_for(50, 5, capacity=1000), 5, 50, lengths=(1,)).replay) == 50


def test_refuses_a_capacity_that_holds_no_window() -> None:
    assert Replay([(2, 1)], 22, 20).capacity == 22
    with pytest.raises(ValueError, match=r"^replay.capacity must be at least 22 for windows of 20 steps, got 21$"):
        Replay([(2, 1)], 21, 20)
