"""Random streams that belong to agents, so that a run does not depend on how the agents are spread over processes."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words; different parts give independent streams."""
    # Hashed as text: numpy's SeedSequence takes (1,) and (1, 0) for the same.
    text = repr([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for the device if it is a GPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class AgentStreams:
    """One random generator per agent for one purpose; draws are stacked, [P, ...].

    Args:
        seeds: one for each agent.
        purpose: streams of the same seeds and different purposes are independent.

    Drawn on the CPU, so that the numbers are the same whatever the device.
    """

    def __init__(self, seeds: Sequence[int], purpose: str) -> None:
        self._generators = [torch.Generator().manual_seed(derive_seed(seed, purpose)) for seed in seeds]

    def normal(self, *shape: int, sizes: Sequence[int] | None = None, agents: Iterable[int] | None = None) -> Tensor:
        """Standard normal, [P, *shape]; with `sizes`, each agent draws that many entries of the last axis and the others are 0.

        So an agent whose actions are padded draws the numbers that it would draw alone; and only `agents` draw, if they
        are named; the rows of the others are 0.
        """
        return self._drawn(torch.Tensor.normal_, torch.zeros(len(self._generators), *shape), sizes, agents)

    def uniform(self, *shape: int, sizes: Sequence[int] | None = None, agents: Iterable[int] | None = None) -> Tensor:
        """Uniform in [0, 1), float64, [P, *shape]; `sizes` and `agents` as in `normal`."""
        out = torch.zeros(len(self._generators), *shape, dtype=torch.float64)
        return self._drawn(torch.Tensor.uniform_, out, sizes, agents)

    def _drawn(
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
        """The state of every agent's generator."""
        return [generator.get_state() for generator in self._generators]

    def load_state_dict(self, states: Sequence[Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state.cpu())
