"""Windows drawn from a ring buffer of several environments."""

import numpy as np
import pytest
import torch

from metagenrl_pl.integrations import WindowBuffer
from metagenrl_pl.integrations.windows import draw_windows


def filled(num_steps: int, capacity: int, lengths: tuple[int, ...] = (4, 7)) -> WindowBuffer:
    """One environment for each length of an episode. Observes [environment, episode, step]; the reward is the step.

    Even episodes terminate, odd ones are truncated.
    """
    buffer = WindowBuffer(capacity, (3,), (1,), num_envs=len(lengths), seed=0)
    environment, length = np.arange(len(lengths)), np.array(lengths)
    for total in range(num_steps):
        episode, step = total // length, total % length
        ends, is_even = step == length - 1, episode % 2 == 0
        state, next_state = (np.stack([environment, episode, s], 1) for s in (step, step + 1))
        buffer.add(state, -step[:, None], step, next_state, ends & is_even, ends & ~is_even)
    return buffer


@pytest.mark.parametrize(("num_steps", "capacity"), [(3, 50), (40, 50), (50, 50), (131, 50)])
def test_a_window_is_consecutive_steps_of_one_episode(num_steps: int, capacity: int) -> None:
    windows = filled(num_steps, capacity).sample(3000, 5)
    states, valid = windows.states, windows.valid
    assert states.shape == (3000, 6, 3) and windows.action.shape == (3000, 5, 1)
    length = valid.sum(1).long()
    assert torch.equal(valid, (torch.arange(5) < length[:, None]).float()) and length.min() >= 1
    is_state = torch.arange(6) <= length[:, None]
    first = states[:, :1]
    expected = torch.cat([first[..., :2].expand(-1, 6, -1), first[..., 2:] + torch.arange(6.0)[None, :, None]], -1)
    assert torch.equal(states, expected * is_state[..., None])
    step = states[:, :-1, 2] * valid
    assert torch.equal(windows.reward, step) and torch.equal(windows.action[..., 0], -step)
    episode_length = torch.where(states[:, :-1, 0] == 0, 4, 7)
    ends = (step == episode_length - 1) & (valid > 0)
    assert torch.equal(windows.terminated, (ends & (states[:, :-1, 1] % 2 == 0)).float())
    if num_steps > 100:  # the oldest steps are gone, all others are drawn
        for environment, steps in ((0, 4), (1, 7)):
            mine = states[:, :-1][(states[:, :-1, 0] == environment) & (valid > 0)]
            totals = (mine[:, 1] * steps + mine[:, 2]).unique()
            assert totals.tolist() == list(range(num_steps - capacity, num_steps))
        assert (length[first[:, 0, 0] == 1] == 5).float().mean() > 0.8  # short only at the oldest or the newest episode
        assert length[first[:, 0, 0] == 0].max() == 4


def test_where_too_few_steps_are_left_a_window_begins_earlier() -> None:
    ends = np.zeros((8, 1), bool)
    ends[5] = True
    drawn = draw_windows(ends, 0, 8, 400, 3, np.random.default_rng(0))
    starts, counts = np.unique(drawn.slot[:, 0], return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3, 6]  # of 3, 4 and 5 all begin at 3; of 6 and 7 at 6
    assert counts[3] > 2 * counts[:3].max() and set(drawn.valid.sum(1)[drawn.slot[:, 0] == 6]) == {2}


def test_transitions_are_the_valid_steps_one_by_one() -> None:
    windows = filled(60, 50).sample(20, 6)
    state, action, reward, next_state, terminated = windows.transitions()
    assert len(state) == windows.valid.sum() and reward.shape == terminated.shape == (len(state), 1)
    assert (
        torch.equal(next_state[:, 2], state[:, 2] + 1) and torch.equal(reward[:, 0], state[:, 2]) and torch.equal(action, -reward)
    )
    assert 0 < terminated.sum() < len(state)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match="the buffer is empty; add a step"):
        WindowBuffer(5, (3,), (1,)).sample(2)
    with pytest.raises(ValueError, match="num_windows=2, window_length=0: valid are positive"):
        filled(5, 5).sample(2, 0)
    with pytest.raises(ValueError, match="capacity=0, num_envs=1: valid are positive"):
        WindowBuffer(0, (3,), (1,))
    with pytest.raises(ValueError, match=r"action_shape=\(\): valid is the shape of a vector"):
        WindowBuffer(5, (3,), ())


def test_no_window_spans_a_reset_in_the_middle_of_an_episode() -> None:
    """Of one environment of two, at the step that overwrites the oldest one."""
    buffer, zeros, no = WindowBuffer(4, (1,), (1,), num_envs=2, seed=0), np.zeros((2, 1)), np.zeros(2, bool)
    state = np.array([[0.0], [100.0]])
    for step in range(6):
        if step == 4:
            state = np.array([[50.0], state[1]])
            with pytest.warns(UserWarning, match="an episode that was reset counts as truncated"):
                buffer.add(state, zeros, no, state + 1, no, no)
        else:
            buffer.add(state, zeros, no, state + 1, no, no)
        state = state + 1
    windows = buffer.sample(100, 4)
    found = {
        tuple(states[: int(valid.sum()) + 1].flatten().tolist())
        for states, valid in zip(windows.states, windows.valid, strict=True)
    }
    assert found == {(2, 3, 4), (50, 51, 52), (102, 103, 104, 105, 106)}
    assert not windows.terminated.any()


@pytest.mark.parametrize(
    ("argument", "value", "named"),
    [
        ("observation", [[0, 0, np.nan], [0, 0, 0]], "observation holds nan; valid are finite numbers"),
        ("reward", [0, -np.inf], "reward holds -inf; valid are finite numbers"),
        ("action", [[0, 0]], r"action has the shape \(1, 2\); valid is \(2, 1\)"),  # as many numbers, for other environments
        ("truncated", False, r"truncated has the shape \(\); valid is \(2,\)"),
    ],
)
def test_a_step_that_cannot_be_learned_from_is_refused_and_not_stored(argument: str, value: object, named: str) -> None:
    buffer, zeros, no = WindowBuffer(5, (3,), (1,), num_envs=2), np.zeros((2, 3)), np.zeros(2, bool)
    step = {"observation": zeros, "action": zeros[:, :1], "reward": zeros[:, 0], "next_observation": zeros}
    step |= {"terminated": no, "truncated": no}
    with pytest.raises(ValueError, match=named):
        buffer.add(**step | {argument: np.array(value)})  # type: ignore[arg-type]
    assert len(buffer) == 0
    buffer.add(**step)  # type: ignore[arg-type]
    assert len(buffer) == 1
