"""Which agents live in which process, and how what belongs to agents comes together again.

    agents     0 1 2 | 3 4 | 5 6         contiguous blocks, as even as possible, in global order
    process      0   |  1  |  2

Whatever is gathered is in global order on every process, so that nothing computed from it depends on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """The agents of one process among those of all.

    Args:
        num_agents: in all processes (P).
        rank: of this process.
        world_size: processes. More than one need PyTorch's default process group, and to call `gather` and the like together.
    """

    num_agents: int
    rank: int = 0
    world_size: int = 1

    def block(self, rank: int) -> range:
        """The agents of a process; the first ones have one more where the division leaves a rest."""
        size, rest = divmod(self.num_agents, self.world_size)
        start = rank * size + min(rank, rest)
        return range(start, start + size + (rank < rest))

    @property
    def agents(self) -> range:
        """The agents of this process, by their global numbers."""
        return self.block(self.rank)

    def local(self, values: Sequence[T]) -> list[T]:
        """Of one value for each agent those of this process."""
        return list(values[self.agents.start : self.agents.stop])

    def local_rows(self, values: Tensor) -> Tensor:
        """Of [P, ...] the rows of this process."""
        return values[self.agents.start : self.agents.stop]

    def gather(self, values: Tensor) -> Tensor:
        """Rows of this process's agents, [len(agents), ...] -> rows of all agents, [P, ...], bit for bit; not differentiable.

        The tensor may lie on the CPU under a backend that speaks for GPUs alone.
        """
        if self.world_size == 1:
            return values
        most = len(self.block(0))
        padded = values.new_zeros(most, *values.shape[1:])
        padded[: len(values)] = values
        if dist.get_backend() == "nccl":
            padded = padded.cuda()
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: len(self.block(rank))] for rank, part in enumerate(parts)]).to(values.device)

    def gather_list(self, values: list[T]) -> list[T]:
        """The same for one object for each agent of this process."""
        if self.world_size == 1:
            return values
        return [value for part in self.gather_objects(values) for value in part]

    def gather_objects(self, value: T) -> list[T]:
        """One object from each process, by rank."""
        if self.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return parts
