"""The parts of a run that take more than a line to make."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_runs import TOYS, tiny_settings

from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.experience import memory
from metagenrl_pl.experience.memory import memory_bytes
from metagenrl_pl.launch import assembly
from metagenrl_pl.launch.assembly import choose_resources
from metagenrl_pl.learning.cycle import Agents
from metagenrl_pl.learning.inner_step import NormalisedSGD
from metagenrl_pl.learning.judges import ReturnsJudge
from metagenrl_pl.objectives import CriticObjective

LONG = {"env_steps": 10_000, "agent": {"window_length": 4}}


def trainer_of(num_processes: int, rank: int = 0, world_size: int = 1) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"), num_processes=num_processes)
    return SimpleNamespace(strategy=strategy, global_rank=rank, world_size=world_size)


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"_target_": "metagenrl_pl.experience.replay.ReplaySettings", "capacity": 500}
    config = OmegaConf.create(
        {"replay": node, "env_workers": 0, "env_timeout_seconds": None, "compile": False, **LONG, "env_steps": 1000}
    )
    monkeypatch.setattr(memory, "available_bytes", lambda device: memory_bytes(sizes_of(TOYS), 500))
    resources = choose_resources(config, trainer_of(1), TOYS, print)  # just fits
    Agents(TOYS, [0] * len(TOYS), tiny_settings(), CriticObjective(), resources=resources).close()
    assert resources.replay_capacity == 500 and len(resources.make_group(TOYS)) == len(TOYS)
    with pytest.raises(ValueError, match=r"^replay.capacity needs 0.0 GB on cpu"):
        choose_resources(config, trainer_of(2), TOYS, print)
    resources = choose_resources(config, trainer_of(1, rank=1, world_size=2), TOYS, print)
    assert list(resources.placement(len(TOYS)).agents) == [2]


def test_a_replay_on_the_gpu_is_on_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of this test need not have one, so its settings cannot be built."""
    config = OmegaConf.create(
        {"replay": {"device": "cuda"}, "env_workers": 0, "env_timeout_seconds": None, "compile": False, **LONG}
    )
    monkeypatch.setattr(assembly, "build", lambda node, _: SimpleNamespace(device=node.device, capacity=500))
    trainer = trainer_of(2, rank=1, world_size=2)
    trainer.strategy.root_device = torch.device("cuda:1")
    assert choose_resources(config, trainer, TOYS, print).replay_device == torch.device("cuda:1")
    config.replay.device = "cuda:0"
    assert choose_resources(config, trainer, TOYS, print).replay_device == torch.device("cuda:0")


def test_a_replay_is_no_larger_than_the_run_needs() -> None:
    node = {"_target_": "metagenrl_pl.experience.replay.ReplaySettings", "capacity": 1_000_000}
    config = OmegaConf.create(
        {"replay": node, "env_workers": 0, "env_timeout_seconds": None, "compile": False, **LONG, "env_steps": 130}
    )
    resources = choose_resources(config, trainer_of(1), TOYS, print)
    agents = Agents(TOYS, [0] * len(TOYS), tiny_settings(), CriticObjective(), resources=resources, env_steps=130)
    agents.close()
    assert agents.replay.capacity == 2 * 130 + 4 + 2
    # A meta-test may be longer than the run: its agents have what they need, not what the run needed.
    assert agents.resources.replay_capacity == 1_000_000


def test_settings_of_a_run_reach_its_parts(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that change no file of a short run, so that a run without them would look the same."""
    of_process: dict[str, Any] = {}
    made: list[Any] = []

    def keep(trainer: Any, module: Any, datamodule: Any, config: Any) -> int:
        made.extend((module.agents, datamodule))
        return 0

    monkeypatch.setattr("metagenrl_pl.launch.run.fit", keep)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: of_process.update(threads=number))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: of_process.update(precision=precision))
    monkeypatch.setattr("metagenrl_pl.launch.run_folder.keep_compiled_in", lambda folder: of_process.update(cache=folder))
    code, _, errors = in_process(
        *("experiment=debug", "run_dir=here", "inner=normalised_sgd", "inner.num_steps=2", "judge=returns", "judge.share=0.25"),
        *("meta.learning_rate=5e-3", "population.lifetime_env_steps=150", "updates_per_batch=7", "env_workers=1"),
        *("env_timeout_seconds=70", "num_threads=2", "float32_matmul_precision=high", "compile_cache=kept"),
    )
    assert code == 0, errors
    assert of_process == {"threads": 2, "precision": "high", "cache": Path("kept")}
    agents, datamodule = made
    inner, judge, _ = agents.learner.meta
    assert type(inner) is NormalisedSGD and inner.num_steps == 2
    assert type(judge) is ReturnsJudge and judge.share == 0.25
    assert agents.learner.objective_optimizer.param_groups[0]["lr"] == 5e-3
    assert agents.collector._lifetimes.length == 150 and agents.collector.environments._timeout == 70
    assert datamodule.updates_per_batch == 7
