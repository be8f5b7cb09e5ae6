"""`metagenrl check`: try the environments of a configuration."""

import time
from contextlib import closing
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from metagenrl_pl.common.exit_codes import MISTAKE
from metagenrl_pl.config.run_config import RunConfig
from metagenrl_pl.config.schema import build
from metagenrl_pl.environments.environment import Environment, EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.probing import probe
from metagenrl_pl.launch.command_line import hydra_entry

_SECONDS = 0.3
"""How long the speed of an environment is measured."""


def run_command_line(conf: Path) -> None:
    """Check the environments that `sys.argv` describes, such as `env.train=[Hopper-v5]`.

    Args:
        conf: the folder of the configuration.

    Raises:
        SystemExit: with code 2 if an environment cannot be used.
    """
    hydra_entry(check, conf, "config", RunConfig)


def check(config: DictConfig) -> int:
    """Print a line about each environment, its warnings, and what is wrong with it. Returns the exit code."""
    sets = build(config.env, EnvironmentSets)
    specs = {spec.name: spec for spec in map(EnvironmentSpec.parse, (*sets.train, *sets.test))}
    table, messages, code = Table(), [], 0
    for column in ("environment", "observations", "actions", "time limit", "steps / s"):
        table.add_column(column, no_wrap=True, overflow="fold")
    for spec in specs.values():
        try:
            messages += [f"warning: {message}" for message in probe(spec, is_evaluated=True)]
            table.add_row(*_describe(spec))
        except (ValueError, EnvironmentFailure) as error:
            messages.append(f"error: {error}")
            code = MISTAKE
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if table.rows:
        console.print(table)
    for message in messages or ["All can be used."]:
        console.print(message)
    return code


def _describe(spec: EnvironmentSpec) -> tuple[str, ...]:
    """Name, sizes, time limit and speed. Random actions, for a fraction of a second.

    Raises:
        EnvironmentFailure: if the environment fails.
    """
    random, num_steps, ended = np.random.default_rng(0), 0, True
    with closing(Environment(spec)) as environment:
        begin = time.perf_counter()
        while (seconds := time.perf_counter() - begin) < _SECONDS:
            if ended:
                environment.reset(num_steps)
            *_, terminated, truncated = environment.step(random.uniform(-1, 1, environment.action_size))
            num_steps, ended = num_steps + 1, terminated or truncated
        limit = "none" if environment.time_limit is None else f"{environment.time_limit:,}"
        sizes = str(environment.observation_size), str(environment.action_size)
    return spec.name, *sizes, limit, f"{num_steps / seconds:,.0f}"
