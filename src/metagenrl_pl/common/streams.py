"""Random streams, one for each agent. So a run does not depend on how agents are spread over processes."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words. Different parts give independent streams."""
    # Hash the text: numpy's SeedSequence gives the same stream for (1,) and (1, 0).
    text = repr([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. A copy from the CPU to a GPU does not block."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not x.is_cuda else x.to(device)


class AgentStreams:
    """One random generator per agent for one purpose. Draws are stacked, [P, ...].

    Numbers are drawn on the CPU, so they are the same on every device.

    Args:
        seeds: one for each agent.
        purpose: streams with the same seeds but different purposes are independent.
    """

    def __init__(self, seeds: Sequence[int], purpose: str) -> None:
        self._generators = [torch.Generator().manual_seed(derive_seed(seed, purpose)) for seed in seeds]

    def normal(self, *shape: int, sizes: Sequence[int] | None = None, agents: Iterable[int] | None = None) -> Tensor:
        """Standard normal numbers, [P, *shape].

        Args:
            shape: of one agent's draw.
            sizes: how many entries of the last axis each agent draws; the others are 0. So an agent with padded actions draws the
                same numbers as it would alone. All entries by default.
            agents: which agents draw; the rows of the others are 0. All agents by default.
        """
        return self._draw(torch.Tensor.normal_, torch.zeros(len(self._generators), *shape), sizes, agents)

    def uniform(self, *shape: int, sizes: Sequence[int] | None = None, agents: Iterable[int] | None = None) -> Tensor:
        """Uniform numbers in [0, 1), float64, [P, *shape]. `sizes` and `agents` as in `normal`."""
        out = torch.zeros(len(self._generators), *shape, dtype=torch.float64)
        return self._draw(torch.Tensor.uniform_, out, sizes, agents)

    def _draw(
        self, fill: Callable[..., Tensor], out: Tensor, sizes: Sequence[int] | None, agents: Iterable[int] | None
    ) -> Tensor:
        for agent in range(len(self._generators)) if agents is None else agents:
            generator = self._generators[agent]
            if sizes is None or sizes[agent] == out.shape[-1]:
                fill(out[agent], generator=generator)
            else:
                narrow = torch.empty(*out.shape[1:-1], sizes[agent], dtype=out.dtype)
                out[agent, ..., : sizes[agent]] = fill(narrow, generator=generator)
        return out

    def state_dict(self) -> list[Tensor]:
        """The state of each agent's generator."""
        return [generator.get_state() for generator in self._generators]

    def load_state_dict(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state.cpu())
