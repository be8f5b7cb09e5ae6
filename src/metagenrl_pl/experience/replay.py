"""Replay: one ring buffer per agent. Windows are drawn for all agents at once; each lies inside a single episode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.agents.windows import Windows, widest
from metagenrl_pl.common.streams import AgentStreams, to_device
from metagenrl_pl.experience.memory import check_capacity, check_memory, memory_bytes

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class ReplaySettings:
    """Size and device of the replay.

    Args:
        capacity: slots of each agent's ring buffer. An episode takes one slot per env step and one more.
        device: `auto` for the device of the updates, or the name of a device.

    Raises:
        ValueError: if the capacity is not positive or the device does not exist.
    """

    capacity: int = 1_000_000
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {self.capacity}")
        if self.device != "auto":
            try:
                kind = torch.empty(0, device=self.device).device.type
                if kind not in ("cpu", "cuda"):
                    raise RuntimeError(f"{kind} stores nothing, or no 64-bit numbers")
            except (RuntimeError, AssertionError) as error:  # an AssertionError if torch was built without CUDA
                raise ValueError(f"device={self.device} does not exist; valid is auto, cpu or a GPU (cuda)") from error


@dataclass
class _Group:
    """G agents whose environments have the same sizes. They share one tensor without padding."""

    agents: list[int]
    index: Tensor  # `agents` on the device, [G]
    row: Tensor  # 0 to G - 1, on the device
    observation_size: int
    action_size: int
    rows: Tensor  # [G, capacity, O + A + 2]: observation, then action, reward and terminated of the step taken from it
    pixels: Tensor | None = None  # [G, capacity, O], uint8: the observations, which `rows` then lacks

    @property
    def num_before_steps(self) -> int:
        """Numbers of a row before those of the step."""
        return self.observation_size if self.pixels is None else 0

    def store_as_floats(self) -> None:
        """Keep observations in `rows`, where any number fits."""
        if self.pixels is not None:
            rows = self.rows.new_zeros(*self.rows.shape[:-1], self.observation_size + self.action_size + 2)
            rows[..., : self.observation_size], rows[..., self.observation_size :] = self.pixels, self.rows
            self.rows, self.pixels = rows, None

    def write_observation(self, row: Tensor | int, slot: Tensor | int, observation: Tensor) -> None:
        """Store observations, [O] or [G, O], in slots of rows."""
        if self.pixels is None:
            self.rows[row, slot, : self.observation_size] = observation
        else:
            self.pixels[row, slot] = observation.to(torch.uint8)


class Replay:
    """Ring buffers of P agents.

    A slot holds an observation and the step taken from it. The last observation of an episode takes a slot of its own. So no
    observation is stored twice. An agent's steps are numbered from 0; the number is the step's *ordinal*. Step n in the agent's
    k-th episode lies in slot n + k (modulo the capacity), because each earlier episode took one slot more than it had steps.

    Args:
        sizes: observation and action size of each agent's environment.
        capacity: slots per agent.
        window_length: T.
        device: of the buffers and the windows.
        padded_to: observation and action size of windows; the largest of `sizes` by default.
        are_bytes: whether each agent's observations are kept as bytes, in a quarter of the memory; none by default. If one of them
            turns out not to be a byte, they are kept as 32-bit numbers from then on.

    Raises:
        ValueError: if the capacity is too small for one window, or the memory is too small for the buffers.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        capacity: int,
        window_length: int = 20,
        device: torch.device | str = "cpu",
        padded_to: tuple[int, int] | None = None,
        are_bytes: Sequence[bool] | None = None,
    ) -> None:
        check_capacity(capacity, window_length)
        are_bytes = list(are_bytes or [False] * len(sizes))
        self.sizes, self.capacity, self.window_length, self.device = list(sizes), capacity, window_length, torch.device(device)
        check_memory(memory_bytes(sizes, capacity, are_bytes), self.device)
        self.observation_size, self.action_size = padded_to or widest(sizes)
        self._groups = []
        kinds = list(zip(self.sizes, are_bytes, strict=True))
        for kind in dict.fromkeys(kinds):
            (observation_size, action_size), is_bytes = kind
            agents = [i for i, other in enumerate(kinds) if other == kind]
            num_floats = action_size + 2 + (0 if is_bytes else observation_size)
            rows = torch.zeros(len(agents), capacity, num_floats, device=self.device)
            shape = len(agents), capacity, observation_size
            pixels = torch.zeros(shape, dtype=torch.uint8, device=self.device) if is_bytes else None
            index = torch.tensor(agents, device=self.device)
            row = torch.arange(len(agents), device=self.device)
            self._groups.append(_Group(agents, index, row, observation_size, action_size, rows, pixels))
        self._group_and_row = {agent: (group, g) for group in self._groups for g, agent in enumerate(group.agents)}

        num_agents = len(self.sizes)
        self.head = np.full(num_agents, -1, np.int64)  # slot of the current observation, before taking the modulus
        self.count = np.zeros(num_agents, np.int64)  # steps ever stored: the next ordinal
        self.oldest = np.zeros(num_agents, np.int64)  # first ordinal that is still stored
        # Episode of that step, counted from the first ever, or an earlier one (see `_forget_overwritten`).
        self._oldest_episode = np.zeros(num_agents, np.int64)
        self._num_dropped = np.zeros(num_agents, np.int64)  # episodes that were removed from the left of `_starts`
        self._num_starts = np.zeros(num_agents, np.int64)
        self._set_starts(np.full((num_agents, 64), _NEVER))

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers, in bytes."""
        buffers = [buffer for group in self._groups for buffer in (group.rows, group.pixels) if buffer is not None]
        return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

    def __len__(self) -> int:
        """The smallest number of stored steps of any agent."""
        return int((self.count - self.oldest).min())

    def begin_episode(self, agent: int, observation: np.ndarray) -> None:
        """Begin an episode with its first observation, [O]. This ends the agent's previous episode."""
        if self._num_starts[agent] + 1 == self._starts.shape[1]:  # the last column stays at _NEVER
            self._make_room(agent)
        self._starts[agent, self._num_starts[agent]] = self.count[agent]
        self._device_starts[agent, self._num_starts[agent]] = int(self.count[agent])
        self._num_starts[agent] += 1
        self.head[agent] += 1
        self._forget_overwritten(agent)
        group, row = self._group_and_row[agent]
        self._check_bytes(group, observation)
        first = to_device(torch.from_numpy(observation), self.device)
        group.write_observation(row, int(self.head[agent] % self.capacity), first)

    def append(self, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray, next_observation: np.ndarray) -> None:
        """Store one step of every agent.

        Args:
            action: in [-1, 1], padded, [P, at least A].
            reward, terminated: [P].
            next_observation: padded, [P, at least O].
        """
        slots = self.head % self.capacity
        self.head += 1
        next_slots = self.head % self.capacity
        self.count += 1
        for group in self._groups:
            agents, o, a = group.agents, group.observation_size, group.action_size
            self._check_bytes(group, next_observation[agents, :o])
            parts = (next_observation[agents, :o], action[agents, :a], reward[agents, None], terminated[agents, None])
            values = to_device(torch.from_numpy(np.concatenate(parts, 1, dtype=np.float32)), self.device)
            slot, next_slot = self._device_tensor(np.stack([slots[agents], next_slots[agents]]))
            group.rows[group.row, slot, group.num_before_steps :] = values[:, o:]
            group.write_observation(group.row, next_slot, values[:, :o])
        for agent in range(len(self.sizes)):
            self._forget_overwritten(agent)

    def keep_newest(self, agent: int, num_steps: int) -> None:
        """Keep an agent's newest steps only.

        Windows are no longer drawn from older ones, although their slots still hold them.
        """
        self.oldest[agent] = max(self.oldest[agent], self.count[agent] - num_steps)

    def sample(self, num_windows: int, streams: AgentStreams) -> Windows:
        """Draw windows for every agent, [P, B, T, ...].

        A window begins at a step that is drawn uniformly from the stored ones. If fewer than T steps of its episode are left
        there, the window begins earlier. So a window is shorter than T only if its episode is. The current episode is included.
        """
        assert len(self), "an agent has no stored step"
        oldest, count = self._device_tensor(self.oldest)[:, None], self._device_tensor(self.count)[:, None]
        # 1. Draw a stored step for each window, as an ordinal, [P, B].
        ordinal = oldest + (to_device(streams.uniform(num_windows), self.device) * (count - oldest)).long()
        # 2. Find its episode. Steps `begin` to `end` (exclusive) of the episode are stored.
        episode = torch.searchsorted(self._device_starts, ordinal, right=True) - 1
        begin = torch.maximum(self._device_starts.gather(1, episode), oldest)
        end = torch.minimum(self._device_starts.gather(1, episode + 1), count)
        # 3. A window must not continue into the next episode. If it would, shift it back to end with its episode: cutting it
        #    would leave a part as padding. If it would then start before `begin`, it starts there and is shorter than T.
        start = torch.maximum(torch.minimum(ordinal, end - self.window_length), begin)
        length = torch.clamp(end - start, max=self.window_length)
        # 4. Ordinals to slots: step n of episode k lies in slot n + k. A window has `length + 1` states; padding repeats the last
        #    slot.
        offset = torch.arange(self.window_length + 1, device=self.device)
        slot = start + episode + self._device_tensor(self._num_dropped)[:, None]
        slots = (slot[..., None] + torch.minimum(offset, length[..., None])) % self.capacity  # [P, B, T + 1]
        is_state = (offset <= length[..., None]).float().unsqueeze(-1)
        valid = (offset[:-1] < length[..., None]).float()
        return self._gather(slots, is_state, valid)

    def _gather(self, slots: Tensor, is_state: Tensor, valid: Tensor) -> Windows:
        num_agents, num_windows, num_states = slots.shape
        states = torch.zeros(num_agents, num_windows, num_states, self.observation_size, device=self.device)
        action = torch.zeros(num_agents, num_windows, num_states - 1, self.action_size, device=self.device)
        reward, terminated = torch.zeros_like(valid), torch.zeros_like(valid)
        for group in self._groups:
            agents, o, a = group.index, group.observation_size, group.action_size
            index = slots[agents] + self.capacity * group.row[:, None, None]
            rows = _take(group.rows, index)
            observations = rows[..., :o] if group.pixels is None else _take(group.pixels, index)
            steps = rows[:, :, :-1, group.num_before_steps :] * valid[agents].unsqueeze(-1)
            states[agents, :, :, :o] = observations * is_state[agents]
            action[agents, :, :, :a] = steps[..., :a]
            reward[agents], terminated[agents] = steps[..., a], steps[..., a + 1]
        return Windows(states, action, reward, terminated, valid)

    @property
    def _counters(self) -> tuple[np.ndarray, ...]:
        return self.head, self.count, self.oldest, self._oldest_episode, self._num_dropped

    def _check_bytes(self, group: _Group, observation: np.ndarray) -> None:
        """Turn a buffer of bytes into one of 32-bit numbers if these observations do not fit into it."""
        if group.pixels is not None and not np.array_equal(observation, observation.clip(0, 255).round()):
            check_memory(self.num_bytes + 3 * group.pixels.numel(), self.device)
            group.store_as_floats()

    def _device_tensor(self, values: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(values.copy()), self.device)

    def _set_starts(self, starts: np.ndarray) -> None:
        """Set the first ordinal of each episode, then _NEVER, [P, E]: on the CPU for bookkeeping, on the device for sampling."""
        self._starts = starts
        self._device_starts = torch.from_numpy(starts).to(self.device)

    def _forget_overwritten(self, agent: int) -> None:
        """Advance `oldest` past steps whose slots have been overwritten.

        The slot of a step is its ordinal plus the number of its episode. `keep_newest` advances `oldest` alone, so `_oldest_episode`
        may lag behind, and the sum is a lower bound of the slot. Then the loop advances the episode first, and a step is dropped only
        when that has caught up.
        """
        while self.oldest[agent] + self._oldest_episode[agent] <= self.head[agent] - self.capacity:
            if self.oldest[agent] < self._starts[agent, self._oldest_episode[agent] - self._num_dropped[agent] + 1]:
                self.oldest[agent] += 1
            else:  # the step belongs to the next episode, so its slot is one further
                self._oldest_episode[agent] += 1

    def _make_room(self, agent: int) -> None:
        """Make room in `_starts`: remove an agent's overwritten episodes, or double the columns if there are few of those."""
        starts, num_old = self._starts, int(self._oldest_episode[agent] - self._num_dropped[agent])
        if num_old > starts.shape[1] // 2:
            starts = starts.copy()
            starts[agent] = np.append(starts[agent, num_old:], np.full(num_old, _NEVER))
            self._num_dropped[agent] += num_old
            self._num_starts[agent] -= num_old
        else:
            starts = np.concatenate([starts, np.full_like(starts, _NEVER)], 1)
        self._set_starts(starts)

    def agent_state(self, agent: int) -> dict[str, Tensor]:
        """The replay of one agent as tensors: the used slots and the bookkeeping."""
        group, row = self._group_and_row[agent]
        used = min(int(self.head[agent]) + 1, self.capacity)
        pixels = {} if group.pixels is None else {"pixels": group.pixels[row, :used].cpu().clone()}
        return pixels | {
            "rows": group.rows[row, :used].cpu().clone(),
            "starts": torch.from_numpy(self._starts[agent, : self._num_starts[agent]].copy()),
            "counters": torch.tensor([counter[agent] for counter in self._counters], dtype=torch.int64),
        }

    def load_agent_state(self, agent: int, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `agent_state`.

        Raises:
            ValueError: if it was saved with another capacity or environment.
        """
        group, row = self._group_and_row[agent]
        rows, starts, pixels = state["rows"], state["starts"], state.get("pixels")
        head = int(state["counters"][0])
        if pixels is None:
            group.store_as_floats()  # what was declared as bytes had other numbers
        elif group.pixels is None:
            rows = torch.cat([pixels.float(), rows], -1)  # those of another agent in the same environment had
        if rows.shape[1] != group.rows.shape[2] or len(rows) != min(head + 1, self.capacity):
            raise ValueError(f"saved with another environment, or a capacity other than {self.capacity}")
        group.rows[row, : len(rows)] = rows.to(self.device)
        if group.pixels is not None and pixels is not None:
            group.pixels[row, : len(rows)] = pixels.to(self.device)
        for counter, value in zip(self._counters, state["counters"].tolist(), strict=True):
            counter[agent] = value
        width = self._starts.shape[1]
        while len(starts) >= width:
            width *= 2
        padded = np.full((len(self.sizes), width), _NEVER)
        padded[:, : self._starts.shape[1]] = self._starts
        padded[agent] = _NEVER
        padded[agent, : len(starts)] = starts.numpy()
        self._set_starts(padded)
        self._num_starts[agent] = len(starts)


def _take(buffer: Tensor, index: Tensor) -> Tensor:
    """Rows of a buffer [G, capacity, N] by their place in G * capacity, [...] -> [..., N]."""
    return buffer.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, -1)
