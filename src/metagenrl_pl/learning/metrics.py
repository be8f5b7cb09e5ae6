"""The newest losses and gradient norms of all agents, and checks that they are finite and that processes agree."""

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.common.placement import Placement
from metagenrl_pl.objectives import Objective


class AgentMetrics:
    """The newest value of each metric for the agents of this process, [P], on their device.

    Args:
        placement: which agents of all processes these are.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self.newest: dict[str, Tensor] = {}
        self._num_broken: Tensor | int = 0  # number of cycles in which an agent's critic loss was not finite, [P]

    def record(self, name: str, values: Tensor) -> None:
        """Store the newest values of a metric, [P]."""
        self.newest[name] = values

    def count_broken(self) -> None:
        """Count for each agent the cycles with a critic loss that is not finite. Call it once per update cycle."""
        self._num_broken = self._num_broken + ~torch.isfinite(self.newest["critic_loss"])

    def gather(self, num_updates: int) -> dict[str, np.ndarray]:
        """The metrics of all agents of all processes, [P] each, on the CPU. Every process has to call it.

        Raises:
            FloatingPointError: if a metric is not finite. The message names the metric and the first agent that diverged; the
                shared objective makes the others diverge within a few cycles.
        """
        if not self.newest:
            return {}
        num_broken = self._num_broken + torch.zeros_like(next(iter(self.newest.values())))
        columns = torch.stack([*self.newest.values(), num_broken], 1)
        rows = self._placement.gather(columns.float()).cpu().numpy()
        metrics = dict(zip(self.newest, rows.T, strict=False))
        for name, values in metrics.items():
            is_broken = ~np.isfinite(values)
            if is_broken.any():
                agent = int((is_broken * (1 + rows[:, -1])).argmax())
                raise FloatingPointError(f"{name} of agent {agent} is {values[agent]} after {num_updates} updates")
        return metrics


def check_agreement(objective: Objective, placement: Placement, num_updates: int) -> None:
    """Check that all processes have the same objective, bit for bit. Every process has to call it.

    Raises:
        RuntimeError: if they differ. All processes compute it from the same numbers, so this is a bug or a hardware fault.
    """
    if placement.world_size == 1:
        return
    bits = [p.detach().view(torch.int32).sum(dtype=torch.int64) for p in objective.parameters()]
    checksum = int(sum(bits, torch.zeros((), dtype=torch.int64)))
    if len(set(placement.gather_objects(checksum))) > 1:
        raise RuntimeError(f"processes disagree about the objective after {num_updates} updates")
