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
        self._num_broken = torch.zeros(0, len(placement.agents))  # cycles in which a metric was not finite, [metrics, P]

    def record(self, name: str, values: Tensor) -> None:
        """Store the newest values of a metric, [P]."""
        self.newest[name] = values

    def count_broken(self) -> None:
        """Count for each metric and agent the cycles in which it was not finite. Call it at the end of each update cycle."""
        newest = torch.stack([*self.newest.values()])
        self._num_broken = self._counts(newest) + ~newest.isfinite()

    def _counts(self, newest: Tensor) -> Tensor:
        """`_num_broken` with zeros for metrics that are new."""
        if num_new := len(newest) - len(self._num_broken):
            return torch.cat([self._num_broken.to(newest.device), newest.new_zeros(num_new, newest.shape[1])])
        return self._num_broken

    def gather(self, num_updates: int) -> dict[str, np.ndarray]:
        """The metrics of all agents of all processes, [P] each, on the CPU. Every process has to call it.

        Raises:
            FloatingPointError: if a metric is not finite. The message names the metric and the agent that diverged first; the
                shared objective makes the others diverge within a few cycles.
        """
        if not self.newest:
            return {}
        newest = torch.stack([*self.newest.values()]).float()
        values, counts = np.split(self._placement.gather(torch.cat([newest, self._counts(newest)]).T).cpu().numpy().T, 2)
        broken = np.where(np.isfinite(values), 0, 1 + counts)  # of metrics that break at the same time, the first is named
        if broken.any():
            metric, agent = np.unravel_index(broken.argmax(), broken.shape)
            name = list(self.newest)[metric]
            raise FloatingPointError(f"{name} of agent {agent} is {values[metric, agent]} after {num_updates} updates")
        return dict(zip(self.newest, values, strict=True))


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
