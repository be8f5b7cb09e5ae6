"""What this machine has, how its memory is used, and the global generators of its processes."""

import ctypes
import os
import random
import sys
from pathlib import Path

import numpy as np

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of the container: microseconds of processor time, of so many


def num_cores() -> int:
    """Cores that this process may use: by its affinity, and by its container's share of the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or "max": no limit
        return cores


def seed_global_generators(seed: int) -> None:
    """Seed Python's and numpy's global generators of this process. Nothing here draws from them, but environments of users do."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


def draw_seed() -> int:
    """A seed for the global generators of another process, which depends on this one's."""
    return random.getrandbits(31)


def keep_freed_memory() -> None:
    """Make glibc keep memory that tensors free, where it would give each large one back to the kernel and fault it in again.

    With small networks on a CPU page faults take a seventh of an update's time otherwise (`benchmarks/throughput.py` measures it), and
    more with larger ones. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        mallopt(m_mmap_max, 0)  # large tensors on the heap too; glibc's threshold for mapping them ends at 32 MiB
        mallopt(m_trim_threshold, -1)  # never give the heap's top back
        mallopt(m_top_pad, 64 * 2**20)
