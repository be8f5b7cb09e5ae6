"""Replay: one ring buffer per agent, from which windows inside single episodes are drawn for all agents at once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.agents.windows import Windows, widest
from metagenrl_pl.common.streams import AgentStreams, to_device

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class ReplaySettings:
    """Where experience is kept.

    Args:
        capacity: slots of each agent's ring buffer: its env steps plus one for each episode.
        device: `auto` for the device of the updates, or a device's name.

    Raises:
        ValueError: if the capacity is not positive or there is no such device.
    """

    capacity: int = 1_000_000
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {self.capacity}")
        if self.device != "auto":
            try:
                torch.empty(0, device=self.device)
            except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
                raise ValueError(f"device={self.device} is not there; valid is auto, cpu or a GPU (cuda)") from error


@dataclass
class _Group:
    """Agents whose environments have spaces of the same size share one tensor, unpadded."""

    agents: list[int]
    index: Tensor  # the same on the device, [G]
    row: Tensor  # 0 to G - 1, on the device
    observation_size: int
    action_size: int
    rows: Tensor  # [G, capacity, O + A + 2]: observation, then action, reward and terminated of the step taken from it


class Replay:
    """Ring buffers of P agents.

    A slot holds an observation and the step taken from it; an episode's last observation takes a slot of its own, so that none is
    stored twice. Steps carry running numbers, *ordinals*; the one with ordinal n in an agent's k-th episode lies in slot n + k
    (modulo the capacity), because each earlier episode took one slot more than it had steps.

    Args:
        sizes: observation and action size of each agent's environment.
        capacity: slots per agent.
        window_length: T.
        device: where the buffers lie and windows are made.
        padded_to: observation and action size of windows; the widest of `sizes` by default.

    Raises:
        ValueError: if the capacity cannot hold one window, or the machine cannot hold the buffers.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        capacity: int,
        window_length: int = 20,
        device: torch.device | str = "cpu",
        padded_to: tuple[int, int] | None = None,
    ) -> None:
        check_capacity(capacity, window_length)
        self.sizes, self.capacity, self.window_length, self.device = list(sizes), capacity, window_length, torch.device(device)
        check_memory(memory_bytes(sizes, capacity), self.device)
        self.observation_size, self.action_size = padded_to or widest(sizes)
        self._groups = []
        for observation_size, action_size in dict.fromkeys(self.sizes):
            agents = [i for i, size in enumerate(self.sizes) if size == (observation_size, action_size)]
            rows = torch.zeros(len(agents), capacity, observation_size + action_size + 2, device=self.device)
            index = torch.tensor(agents, device=self.device)
            row = torch.arange(len(agents), device=self.device)
            self._groups.append(_Group(agents, index, row, observation_size, action_size, rows))
        self._home = {agent: (group, g) for group in self._groups for g, agent in enumerate(group.agents)}

        num_agents = len(self.sizes)
        self.head = np.full(num_agents, -1, np.int64)  # slot of the current observation, counted without wrapping
        self.count = np.zeros(num_agents, np.int64)  # steps ever stored: the next ordinal
        self.oldest = np.zeros(num_agents, np.int64)  # first ordinal that is still stored
        self._oldest_episode = np.zeros(num_agents, np.int64)  # its episode, counted from the first ever; lags till it matters
        self._forgotten = np.zeros(num_agents, np.int64)  # episodes dropped from the left of `_starts`
        self._num_starts = np.zeros(num_agents, np.int64)
        self._set_starts(np.full((num_agents, 64), _NEVER))

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return memory_bytes(self.sizes, self.capacity)

    def __len__(self) -> int:
        """Stored steps of the agent that has fewest."""
        return int((self.count - self.oldest).min())

    def begin_episode(self, agent: int, observation: np.ndarray) -> None:
        """Open an episode with its first observation, [O]; the one before it, if any, ends here."""
        if self._num_starts[agent] + 1 == self._starts.shape[1]:  # the last column stays at never
            self._make_room(agent)
        self._starts[agent, self._num_starts[agent]] = self.count[agent]
        self._device_starts[agent, self._num_starts[agent]] = int(self.count[agent])
        self._num_starts[agent] += 1
        self.head[agent] += 1
        self._forget_overwritten(agent)
        group, row = self._home[agent]
        first = to_device(torch.from_numpy(observation), self.device)
        group.rows[row, self.head[agent] % self.capacity, : group.observation_size] = first

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
            parts = (next_observation[agents, :o], action[agents, :a], reward[agents, None], terminated[agents, None])
            stored = to_device(torch.from_numpy(np.concatenate(parts, 1, dtype=np.float32)), self.device)
            slot, next_slot = self._device_tensor(np.stack([slots[agents], next_slots[agents]]))
            group.rows[group.row, slot, o:] = stored[:, o:]
            group.rows[group.row, next_slot, :o] = stored[:, :o]
        for agent in range(len(self.sizes)):
            self._forget_overwritten(agent)

    def keep_newest(self, agent: int, num_steps: int) -> None:
        """Forget an agent's older steps; windows are no longer drawn from them, though their slots still hold them."""
        self.oldest[agent] = max(self.oldest[agent], self.count[agent] - num_steps)

    def sample(self, num_windows: int, streams: AgentStreams) -> Windows:
        """Draw windows for every agent.

        A stored step is drawn uniformly; its window starts there, or earlier if fewer than T steps are left in its episode, but
        never before the episode's (stored) start. So a window is shorter than T only where its episode is. The running episode
        takes part.
        """
        assert len(self), "an agent has no stored step"
        oldest, count = self._device_tensor(self.oldest)[:, None], self._device_tensor(self.count)[:, None]
        drawn = oldest + (to_device(streams.uniform(num_windows), self.device) * (count - oldest)).long()  # ordinals, [P, B]
        episode = torch.searchsorted(self._device_starts, drawn, right=True) - 1
        begin = torch.maximum(self._device_starts.gather(1, episode), oldest)
        end = torch.minimum(self._device_starts.gather(1, episode + 1), count)
        start = torch.maximum(torch.minimum(drawn, end - self.window_length), begin)
        length = torch.clamp(end - start, max=self.window_length)

        offset = torch.arange(self.window_length + 1, device=self.device)
        slot = start + episode + self._device_tensor(self._forgotten)[:, None]
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
            rows = group.rows.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, -1)
            steps = rows[:, :, :-1, o:] * valid[agents].unsqueeze(-1)
            states[agents, :, :, :o] = rows[..., :o] * is_state[agents]
            action[agents, :, :, :a] = steps[..., :a]
            reward[agents], terminated[agents] = steps[..., a], steps[..., a + 1]
        return Windows(states, action, reward, terminated, valid)

    @property
    def _counters(self) -> tuple[np.ndarray, ...]:
        return self.head, self.count, self.oldest, self._oldest_episode, self._forgotten

    def _device_tensor(self, values: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(values.copy()), self.device)

    def _set_starts(self, starts: np.ndarray) -> None:
        """First ordinal of each episode, then never, [P, E]: on the host for the bookkeeping, on the device for sampling."""
        self._starts = starts
        self._device_starts = torch.from_numpy(starts).to(self.device)

    def _forget_overwritten(self, agent: int) -> None:
        """Move `oldest` past steps whose slots hold newer observations now."""
        while self.oldest[agent] + self._oldest_episode[agent] <= self.head[agent] - self.capacity:
            if self.oldest[agent] < self._starts[agent, self._oldest_episode[agent] - self._forgotten[agent] + 1]:
                self.oldest[agent] += 1
            else:  # it belongs to the next episode, so it lies a slot further on
                self._oldest_episode[agent] += 1

    def _make_room(self, agent: int) -> None:
        """Drop forgotten episodes from an agent's starts, or widen all of them."""
        starts, gone = self._starts, int(self._oldest_episode[agent] - self._forgotten[agent])
        if gone > starts.shape[1] // 2:
            starts = starts.copy()
            starts[agent] = np.append(starts[agent, gone:], np.full(gone, _NEVER))
            self._forgotten[agent] += gone
            self._num_starts[agent] -= gone
        else:
            starts = np.concatenate([starts, np.full_like(starts, _NEVER)], 1)
        self._set_starts(starts)

    def agent_state(self, agent: int) -> dict[str, Tensor]:
        """All that is stored of one agent: the used slots and the bookkeeping, as tensors for a file of its own."""
        group, row = self._home[agent]
        used = min(int(self.head[agent]) + 1, self.capacity)
        return {
            "rows": group.rows[row, :used].cpu().clone(),
            "starts": torch.from_numpy(self._starts[agent, : self._num_starts[agent]].copy()),
            "counters": torch.tensor([counter[agent] for counter in self._counters], dtype=torch.int64),
        }

    def load_agent_state(self, agent: int, state: Mapping[str, Tensor]) -> None:
        """Restore what `agent_state` gave.

        Raises:
            ValueError: if it was taken with another capacity or environment.
        """
        group, row = self._home[agent]
        rows, starts = state["rows"], state["starts"]
        head = int(state["counters"][0])
        if rows.shape[1] != group.rows.shape[2] or len(rows) != min(head + 1, self.capacity):
            raise ValueError(f"stored for another environment or capacity than {self.capacity}")
        group.rows[row, : len(rows)] = rows.to(self.device)
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


def check_capacity(capacity: int, window_length: int) -> None:
    """Raise ValueError unless that many slots hold a window of that many steps."""
    needed = window_length + 2  # one more for the episode's last observation, one for the next episode's first
    if capacity < needed:
        raise ValueError(f"replay.capacity must be at least {needed} for windows of {window_length} steps, got {capacity}")


def memory_bytes(sizes: Sequence[tuple[int, int]], capacity: int) -> int:
    """What the buffers of agents with these observation and action sizes need, in bytes."""
    return sum(4 * capacity * (o + a + 2) for o, a in sizes)


def available_bytes(device: torch.device) -> int:
    """What the machine can hold, in bytes: free memory of a GPU, or physical memory (or the container's share of it)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            total = min(total, int(file.read()))
    except (OSError, ValueError):  # no container, or no limit
        pass
    return total


def check_memory(needed: int, device: torch.device) -> None:
    """Refuse what would end in the middle of a run.

    Raises:
        ValueError: if `needed` bytes are more than the device has.
    """
    available = available_bytes(device)
    if needed > available:
        raise ValueError(
            f"replay.capacity needs {needed / 1e9:.1f} GB on {device} and there are {available / 1e9:.1f} GB; "
            "choose a smaller replay.capacity or population.size"
        )
