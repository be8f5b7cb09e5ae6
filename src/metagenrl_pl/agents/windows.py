"""The batch type, and the one legend of axis names used in shape comments throughout the package.

P agents, B windows, T time steps, O observation entries, A action dimensions, U hidden units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """Windows of up to T consecutive transitions, each inside one episode of one agent; zero where padded.

    A window of `length` transitions visits `length + 1` states; the state after the last transition is stored like any other, so no
    observation is held twice. `terminated` (never `truncated`) cuts the bootstrap; it can be 1 on the last valid step only.
    """

    states: Tensor  # [P, B, T + 1, O]
    action: Tensor  # [P, B, T, A], as replayed, in [-1, 1]
    reward: Tensor  # [P, B, T]
    terminated: Tensor  # [P, B, T], 0 or 1
    valid: Tensor  # [P, B, T], 0 or 1; ones first

    @property
    def observation(self) -> Tensor:
        """States in which the actions were taken, [P, B, T, O]."""
        return self.states[:, :, :-1]

    @property
    def next_observation(self) -> Tensor:
        """States that the actions led to, [P, B, T, O]; right on valid steps, zero or unused elsewhere."""
        return self.states[:, :, 1:]

    @property
    def length(self) -> Tensor:
        """Valid steps of each window, [P, B], int64."""
        return self.valid.sum(-1).long()

    @property
    def num_valid(self) -> Tensor:
        """Valid steps of each agent, [P]."""
        return self.valid.sum((1, 2))

    def part(self, start: int, stop: int) -> "Windows":
        """The windows `start` to `stop` of every agent."""
        return Windows(*(x[:, start:stop] for x in self))


def widest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The common size that spaces are padded to: the largest observation size and the largest action size."""
    return max(o for o, _ in sizes), max(a for _, a in sizes)


def valid_states(valid: Tensor) -> Tensor:
    """Marks the `length + 1` states of each window, [P, B, T] -> [P, B, T + 1]."""
    return torch.cat([torch.ones_like(valid[..., :1]), valid], -1)
