"""The batch type, and the axis names that shape comments use throughout the package.

P agents, B windows, T time steps, O observation entries, A action dimensions, U hidden units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """Windows of up to T consecutive transitions. Each lies inside one episode of one agent. Padding is zero.

    A window of `length` transitions visits `length + 1` states. All of them are in `states`, so no observation is held twice.
    `terminated` (never `truncated`) stops the bootstrap. It can be 1 on the last valid step only.
    """

    states: Tensor  # [P, B, T + 1, O]
    action: Tensor  # [P, B, T, A], from the replay, in [-1, 1]
    reward: Tensor  # [P, B, T]
    terminated: Tensor  # [P, B, T], 0 or 1
    valid: Tensor  # [P, B, T], 0 or 1; ones first

    @property
    def observation(self) -> Tensor:
        """States in which the actions were taken, [P, B, T, O]."""
        return self.states[:, :, :-1]

    @property
    def next_observation(self) -> Tensor:
        """States that the actions led to, [P, B, T, O]. Correct on valid steps; unused elsewhere."""
        return self.states[:, :, 1:]

    @property
    def length(self) -> Tensor:
        """Number of valid steps of each window, [P, B], int64."""
        return self.valid.sum(-1).long()

    @property
    def num_valid(self) -> Tensor:
        """Number of valid steps of each agent, [P]."""
        return self.valid.sum((1, 2))

    def part(self, start: int, stop: int) -> "Windows":
        """Windows `start` to `stop` (exclusive) of every agent, [P, stop - start, ...]."""
        return Windows(*(x[:, start:stop] for x in self))


def widest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The common size to pad spaces to: the largest observation size and the largest action size."""
    return max(o for o, _ in sizes), max(a for _, a in sizes)


def valid_states(valid: Tensor) -> Tensor:
    """Mark the `length + 1` states of each window with 1: [P, B, T] -> [P, B, T + 1]."""
    return torch.cat([torch.ones_like(valid[..., :1]), valid], -1)
