"""W&B and MLflow in a run folder: a resume continues their run. Each test needs its extra, which a late step of .ci/run installs."""

from pathlib import Path

import pytest

from metagenrl_pl.training.tracking import RunMLFlowLogger, RunWandbLogger

SETTINGS = {"seed": 0, "env_steps": 100, "env.train": "['Pendulum-v1']"}


def test_mlflow_continues_its_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    first = RunMLFlowLogger(str(tmp_path / "run"), experiment_name="metagenrl")
    first.log_hyperparams(SETTINGS)
    first.log_metrics({"loss": 1.0}, step=50)
    resumed = RunMLFlowLogger(str(tmp_path / "run"), experiment_name="metagenrl")
    resumed.log_hyperparams({**SETTINGS, "env_steps": 200, "ckpt_path": "x.ckpt"})  # a resume may be longer
    resumed.log_metrics({"loss": 0.5}, step=150)
    assert resumed.run_id == first.run_id
    run = resumed.experiment.get_run(resumed.run_id)
    assert run.data.params["seed"] == "0" and run.data.params["ckpt_path"] == "x.ckpt"
    history = resumed.experiment.get_metric_history(resumed.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(50, 1.0), (150, 0.5)]
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_wandb_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "run").mkdir()
    ids = []
    for _ in range(2):
        logger = RunWandbLogger(str(tmp_path / "run"), project="metagenrl")
        logger.log_hyperparams(SETTINGS)
        logger.log_metrics({"loss": 1.0}, step=50)
        ids.append(logger.experiment.id)
        assert logger.experiment.config["seed"] == 0
        wandb.finish()
    assert ids[0] == ids[1]
    RunWandbLogger(str(tmp_path / "another"), project="metagenrl")
    assert not (tmp_path / "another").exists()  # making a logger writes nothing
