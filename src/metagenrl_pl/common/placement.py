"""Which process holds which agents, and how values of all agents are gathered.

    agents     0 1 2 | 3 4 | 5 6         contiguous blocks, as even as possible, in global order
    process      0   |  1  |  2

Every process gathers values in the same global order. So results do not depend on the number of processes.
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
    """The agents of one process among all agents.

    Args:
        num_agents: agents in all processes (P).
        rank: number of this process.
        world_size: number of processes. If there are several, they need PyTorch's default process group, and every process has to
            call the `gather` methods.
    """

    num_agents: int
    rank: int = 0
    world_size: int = 1

    def block(self, rank: int) -> range:
        """The agents of a process. The first processes hold one more if the agents cannot be divided evenly."""
        size, rest = divmod(self.num_agents, self.world_size)
        start = rank * size + min(rank, rest)
        return range(start, start + size + (rank < rest))

    @property
    def agents(self) -> range:
        """The agents of this process, by their global numbers."""
        return self.block(self.rank)

    def local(self, values: Sequence[T]) -> list[T]:
        """The values of this process's agents, from one value for each of all agents."""
        return list(values[self.agents.start : self.agents.stop])

    def local_rows(self, values: Tensor) -> Tensor:
        """The rows of this process's agents: [P, ...] -> [len(agents), ...]."""
        return values[self.agents.start : self.agents.stop]

    def gather(self, values: Tensor) -> Tensor:
        """Rows of all agents from the rows of each process: [len(agents), ...] -> [P, ...]. Exact, but not differentiable."""
        if self.world_size == 1:
            return values
        # 1. `all_gather` needs tensors of equal shape, but blocks may differ by a row. Pad to the largest block, the first one.
        num_rows = len(self.block(0))
        padded = values.new_zeros(num_rows, *values.shape[1:])
        padded[: len(values)] = values
        # 2. NCCL can only send from GPU memory, but `values` may lie on the CPU.
        if dist.get_backend() == "nccl":
            padded = padded.cuda()
        # 3. Every process receives all blocks in the order of ranks, which is the global order of agents.
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        # 4. Remove each block's padding, and return to the device of `values`.
        return torch.cat([part[: len(self.block(rank))] for rank, part in enumerate(parts)]).to(values.device)

    def gather_list(self, values: list[T]) -> list[T]:
        """Objects of all agents in global order, from one object for each agent of this process."""
        if self.world_size == 1:
            return values
        return [value for part in self.gather_objects(values) for value in part]

    def gather_objects(self, value: T) -> list[T]:
        """One object from each process, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return parts
