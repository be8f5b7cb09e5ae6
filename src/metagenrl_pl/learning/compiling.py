"""When updates are compiled, where that is kept, and what is said about it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler

from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.learning.onednn import inductor_options

COMPILE_FROM_SECONDS = 3600.0
"""From which estimated length of an eager run on compiling is chosen: it takes minutes, and saves about half of the time after."""

Notify = Callable[[str], None]


def ignore(message: str) -> None:
    """A `Notify` that does nothing; by name, so that it can be pickled."""


def estimated_seconds(agent: AgentSettings, num_agents: int, env_steps: int, is_meta_training: bool) -> float:
    """About how long the eager updates of a run take on one CPU core.

    A model of measurements (`benchmarks/throughput.py`): a fixed cost of the operations' number, and one for each agent and sample
    that grows with the networks. Good to a factor of two, and the same wherever a run is made: what is chosen with it changes how
    results are rounded, so it must not depend on the machine.
    """
    num_samples = num_agents * agent.num_windows * agent.window_length
    seconds_per_cycle = 0.018 + num_samples * (1e-5 + 1.1e-4 * (agent.hidden_units / 350) ** 2)
    return max(env_steps - agent.warmup_env_steps, 0) * seconds_per_cycle * (1.0 if is_meta_training else 0.4)


def choose_compile(wanted: bool | None, eager_seconds: float) -> tuple[bool, str]:
    """Whether to compile, and a line that says so and why.

    Args:
        wanted: as configured; None to choose by the estimated length of the eager run.
        eager_seconds: that length.

    Raises:
        ValueError: if it is wanted and there is no C++ compiler for the CPU.
    """
    has_compiler = torch.cuda.is_available() or _has_cpp_compiler()
    if wanted and not has_compiler:
        raise ValueError("compile=true needs a C++ compiler (g++ or clang++), which is not there; valid: false, null")
    if wanted is not None:
        return wanted, f"compile={str(wanted).lower()}"
    is_long = eager_seconds >= COMPILE_FROM_SECONDS
    why = f"about {_duration(eager_seconds)} of eager updates on one CPU core"
    if is_long and not has_compiler:
        return False, f"compile=false ({why}; compiling would pay, but there is no C++ compiler)"
    return is_long, f"compile={str(is_long).lower()} ({why})"


def keep_compiled_in(folder: Path) -> None:
    """Where compiled code is kept, so that later runs of the same sizes start in seconds. Before anything is compiled.

    A folder that TORCHINDUCTOR_CACHE_DIR names takes precedence.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.expanduser()))


class Compiled:
    """A function through `torch.compile`, which tells when it compiles and how long that took.

    Compiles for fixed shapes, and anew where an argument is None that was not, or the other way round.

    Args:
        function: of tensors and containers of tensors.
        name: what it is called in messages.
        notify: told them.
        device: where it runs. On a GPU its kernels are captured as CUDA graphs: launching them one by one would take longer than they
            do.
    """

    def __init__(self, function: Callable[..., Any], name: str, notify: Notify, device: torch.device) -> None:
        # The same functions serve agents, objectives and meta-tests of other sizes; past the limit torch would go on without compiling.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        how: dict[str, Any] = {"mode": "reduce-overhead"} if device.type == "cuda" else {"options": inductor_options()}
        self._function = torch.compile(function, dynamic=False, **how)
        self._name, self._notify, self._seen = name, notify, set[tuple[bool, ...]]()

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        signature = tuple(argument is None for argument in arguments)
        if signature in self._seen:
            return self._function(*arguments)
        self._seen.add(signature)
        self._notify(f"Compiling the {self._name}: minutes at first, seconds once it is kept ...")
        start = time.perf_counter()
        out = self._function(*arguments)
        self._notify(f"Compiled the {self._name} in {time.perf_counter() - start:.0f} s")
        return out


def _has_cpp_compiler() -> bool:
    try:
        get_cpp_compiler()
    except Exception:  # torch's own exception for it has moved between releases
        return False
    return True


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
