"""The newest losses and gradient norms of all agents, and whether they are sound."""

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.common.placement import Placement
from metagenrl_pl.objectives import Objective


class AgentMetrics:
    """The newest value of each metric for the agents of this process, [P], kept on their device.

    Args:
        placement: which of all agents these are.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self.newest: dict[str, Tensor] = {}
        self._num_broken: Tensor | int = 0  # update cycles in which an agent's critic loss was not finite, [P]

    def record(self, name: str, values: Tensor) -> None:
        """Keep a metric, [P]."""
        self.newest[name] = values

    def count_broken(self) -> None:
        """Count the agents whose critic loss is not finite; once in an update cycle."""
        self._num_broken = self._num_broken + ~torch.isfinite(self.newest["critic_loss"])

    def gather(self, num_updates: int) -> dict[str, np.ndarray]:
        """The metrics of all agents, also those of other processes, on the host, [P] each; every process has to call it.

        Raises:
            FloatingPointError: if one of them is not finite; names the agent and the quantity. The agent is the one that broke first:
                by way of the objective it breaks the others within a few cycles.
        """
        if not self.newest:
            return {}
        device = next(iter(self.newest.values())).device
        columns = torch.stack([*self.newest.values(), torch.as_tensor(self._num_broken, device=device)], 1)
        rows = self._placement.gather(columns.float()).cpu().numpy()
        metrics = dict(zip(self.newest, rows.T, strict=False))
        for name, values in metrics.items():
            is_broken = ~np.isfinite(values)
            if is_broken.any():
                agent = int((is_broken * (1 + rows[:, -1])).argmax())
                raise FloatingPointError(f"{name} of agent {agent} is {values[agent]} after {num_updates} updates")
        return metrics


def check_agreement(objective: Objective, placement: Placement, num_updates: int) -> None:
    """Compare the objective over processes, bit for bit; every process has to call it.

    Raises:
        RuntimeError: if they disagree. They compute it from the same numbers, so this is a fault of the program or the machine.
    """
    if placement.world_size == 1:
        return
    bits = [p.detach().view(torch.int32).sum(dtype=torch.int64) for p in objective.parameters()]
    checksum = int(sum(bits, torch.zeros((), dtype=torch.int64)))
    if len(set(placement.gather_objects(checksum))) > 1:
        raise RuntimeError(f"processes disagree about the objective after {num_updates} updates")
