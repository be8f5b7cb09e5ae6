"""Compile updates with `torch.compile`: decide when, choose the cache folder, report progress.

PyTorch's compiler is imported where it is used. Eager runs do not need it, and importing it takes a second.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metagenrl_pl.agents.population import AgentSettings
from metagenrl_pl.common.signals import sparing_programs

COMPILE_FROM_SECONDS = 300.0
"""Compile if the eager run would take at least this long. Compiling takes one to two minutes, then saves about half of the time."""

_CACHE_DIR = "TORCHINDUCTOR_CACHE_DIR"

Notify = Callable[[str], None]


def ignore(message: str) -> None:
    """A `Notify` that does nothing; by name, so that it can be pickled."""


def estimated_seconds(agent: AgentSettings, num_agents: int, env_steps: int, is_meta_training: bool) -> float:
    """Estimated time of a run's eager updates on one CPU core, in seconds; see `estimated_seconds_per_cycle`."""
    num_cycles = max(env_steps - agent.warmup_env_steps, 0)
    return num_cycles * estimated_seconds_per_cycle(agent, num_agents, is_meta_training)


def estimated_seconds_per_cycle(agent: AgentSettings, num_agents: int, is_meta_training: bool) -> float:
    """Estimated time of one eager update cycle on one CPU core, in seconds.

    A model that was fitted to measurements (`benchmarks/throughput.py`): a fixed cost per cycle, and a cost per sample that grows
    with the networks. It is accurate to a factor of two with two hidden layers, one inner step and the default objective;
    others are not modelled. It must not depend on the machine, since it decides about compiling, and
    compiled updates round differently.
    """
    num_samples = num_agents * agent.num_windows * agent.window_length
    seconds = 0.018 + num_samples * (1e-5 + 1.1e-4 * (agent.hidden_units / 350) ** 2)
    return seconds * (1.0 if is_meta_training else 0.4)


def choose_compile(wanted: bool | None, eager_seconds: float) -> tuple[bool, str]:
    """Decide whether to compile. Returns the decision and a message with the reason.

    Args:
        wanted: as configured; None decides by `eager_seconds`.
        eager_seconds: estimated time of the eager updates.

    Raises:
        ValueError: if `wanted` is true, but there is no C++ compiler.
    """
    if wanted and not _has_cpp_compiler():
        raise ValueError("compile=true needs a C++ compiler (g++ or clang++), but none is installed; valid: false, null")
    if wanted is not None:
        return wanted, f"compile={str(wanted).lower()}"
    is_long = eager_seconds >= COMPILE_FROM_SECONDS
    why = f"about {_duration(eager_seconds)} of eager updates on one CPU core"
    if is_long and not _has_cpp_compiler():
        return False, f"compile=false ({why}; compiling would pay, but there is no C++ compiler)"
    return is_long, f"compile={str(is_long).lower()} ({why})"


def keep_compiled_in(folder: Path) -> None:
    """Set the cache folder of compiled code, so that later runs with the same sizes start in seconds. Call it before compiling.

    If the user has set the environment variable TORCHINDUCTOR_CACHE_DIR, it takes precedence over `folder`. (PyTorch's compiler sets
    the variable to a default when it is imported; the default does not count.)
    """
    if (before := os.environ.get(_CACHE_DIR)) is not None:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        if before != default_cache_dir():
            return
    os.environ[_CACHE_DIR] = str(folder.expanduser())


class Compiled:
    """A function compiled by `torch.compile`, which reports when it compiles and how long this takes.

    It is compiled for fixed shapes, and once for each combination of arguments that are None.

    Args:
        function: takes tensors and containers of tensors.
        name: of the function in messages.
        notify: called with each message.
        device: of the function's tensors. On a GPU the kernels are captured as CUDA graphs, since launching them one by one would
            take longer than running them.
    """

    def __init__(self, function: Callable[..., Any], name: str, notify: Notify, device: torch.device) -> None:
        # One function is compiled for many sizes (agents, objectives, meta-tests). Above the limit torch would run it eagerly.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self._function = torch.compile(function, dynamic=False, **_options(device))
        self._name, self._notify, self._signatures = name, notify, set[tuple[bool, ...]]()

    def __call__(self, *arguments: Any) -> Any:
        signature = tuple(argument is None for argument in arguments)
        if signature in self._signatures:
            return self._function(*arguments)
        self._signatures.add(signature)
        self._notify(f"Compiling the {self._name}: up to a minute at first, seconds once it is kept ...")
        start = time.perf_counter()
        with sparing_programs():  # Ctrl-C would also reach the C++ compiler, and end it
            out = self._function(*arguments)
        self._notify(f"Compiled the {self._name} in {time.perf_counter() - start:.0f} s")
        return out


def _options(device: torch.device) -> dict[str, Any]:
    """Arguments of `torch.compile` for updates on a device."""
    if device.type == "cuda":
        return {"mode": "reduce-overhead"}
    from metagenrl_pl.learning.onednn import OneDNNProducts, onednn_is_faster

    # Two C++ files for each update, its loops and their calls, instead of one for each loop: half of the C++ compiler's time. Headers
    # that are compiled ahead cost more than so few files save.
    options: dict[str, Any] = {
        "cpp_wrapper": True,
        "cpp_wrapper_build_separate": True,
        "cpp_cache_precompile_headers": False,
    }
    if onednn_is_faster():
        options["post_grad_custom_post_pass"] = OneDNNProducts()
    return {"options": options}


def _has_cpp_compiler() -> bool:
    """Whether there is a C++ compiler. On a GPU, Triton needs it, too."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception:  # torch's exception class differs between releases
        return False
    return True


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
