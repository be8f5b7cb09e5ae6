"""How much memory a replay takes, and whether there is enough."""

import os
from collections.abc import Sequence

import torch

from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import layouts_of


def check_capacity(capacity: int, window_length: int) -> None:
    """Raise a ValueError if `capacity` slots are too few for a window of `window_length` steps."""
    needed = window_length + 2  # one slot more for the episode's last observation, and one for the next episode's first
    if capacity < needed:
        raise ValueError(f"replay.capacity must be at least {needed} for windows of {window_length} steps, got {capacity}")


def slots_for(env_steps: int | None, window_length: int, capacity: int) -> int:
    """Slots of a replay: `capacity`, or what so many env steps need at most, two each if all episodes had one step.

    Args:
        env_steps: that will be stored; None if that is not known.
        window_length: T.
        capacity: as configured.
    """
    return capacity if env_steps is None else min(capacity, 2 * env_steps + window_length + 2)


def memory_bytes(sizes: Sequence[tuple[int, int]], capacity: int, are_bytes: Sequence[bool] | None = None) -> int:
    """Memory of the buffers of agents with these observation and action sizes, in bytes. `are_bytes` as in `Replay`."""
    widths = [1 if is_bytes else 4 for is_bytes in are_bytes or [False] * len(sizes)]
    return sum(capacity * (width * o + 4 * (a + 2)) for (o, a), width in zip(sizes, widths, strict=True))


def replay_bytes(specs: Sequence[EnvironmentSpec], env_steps: int, window_length: int, capacity: int) -> int:
    """Memory of the buffers of agents in these environments that live for `env_steps`, in bytes. Other arguments as in `slots_for`.

    Raises:
        ValueError: if an environment is not usable.
    """
    sizes, are_bytes = layouts_of(specs)
    return memory_bytes(sizes, slots_for(env_steps, window_length, capacity), are_bytes)


def available_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or physical memory (limited by the container) of a CPU, in bytes.

    On a CPU, what programs have taken is not subtracted: this process would be among them, with memory that it can use again.
    """
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
    """Report too little memory before the run begins, instead of in the middle.

    Raises:
        ValueError: if `needed` bytes are more than the device has.
    """
    available = available_bytes(device)
    if needed > available:
        raise ValueError(
            f"replay.capacity needs {needed / 1e9:.1f} GB on {device} and there are {available / 1e9:.1f} GB; "
            "choose a smaller replay.capacity or population.size"
        )
