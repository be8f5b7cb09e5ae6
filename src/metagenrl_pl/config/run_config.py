"""The root of the configuration."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class RunConfig:
    """Keys that the root of the configuration may hold. Nodes (`Any`) are checked against the classes that they name."""

    env: Any
    agent: Any
    objective: Any
    inner: Any
    judge: Any
    population: Any
    replay: Any
    trainer: Any
    env_steps: int
    updates_per_batch: int
    seed: int
    run_dir: str
    meta: Any = None
    compile: bool | None = None
    compile_cache: str = "~/.cache/metagenrl_pl/compiled"
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    num_threads: int | None = None
    env_workers: int | None = None
    env_timeout_seconds: float | None = 600.0
    ckpt_path: str | None = None
    trusted_packages: list[str] = field(default_factory=list)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
