"""What TensorBoard shows of a run as a whole, read from its files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.run_summary import RunSummary
from metagenrl_pl.results.rows import MetaTestRow, append_rows


def _trainer(logger: Any, **config: Any) -> Any:
    return SimpleNamespace(loggers=[logger], is_global_zero=True, lightning_module=SimpleNamespace(run_config=config))


def meta_test_of(*environments: Any) -> dict[str, Any]:
    return {"callbacks": {"meta_test": {"environments": list(environments), "seeds": [0, 1, 2]}}}


def test_tensorboard_has_settings_meta_test_curves_and_the_picture(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="tensorboard", default_hp_metric=False)
    trainer = _trainer(logger, seed=3, agent={"hidden_units": 64}, **meta_test_of("A"))
    summary = RunSummary(str(tmp_path))
    summary.on_train_start(trainer, trainer.lightning_module)
    rows = [MetaTestRow("A", "critic", seed, n, 10.0 * n + seed) for n in (10, 20) for seed in (0, 2)]
    append_rows(tmp_path / "meta_test.csv", rows)
    iio.imwrite(tmp_path / "learning_curves.png", np.full((4, 6, 3), 7, np.uint8))
    summary.teardown(trainer, trainer.lightning_module, "fit")
    logger.finalize("success")

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("meta_test_curves/A/critic")] == [(10, 101.0), (20, 201.0)]
    assert events.Tags()["images"] == ["learning_curves"] and events.Tags()["scalars"] == ["meta_test_curves/A/critic"]
    stored = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"agent.hidden_units" in stored and b"seed" in stored
    assert b"meta_test/A/learned" in events.SummaryMetadata("_hparams_/experiment").plugin_data.content


def test_an_environment_with_settings_has_the_name_of_its_metric(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="tensorboard", default_hp_metric=False)
    entry = {"id": "Pendulum-v1", "max_episode_steps": 5}
    trainer = _trainer(logger, **meta_test_of("Hopper-v5", entry))
    RunSummary(str(tmp_path)).on_train_start(trainer, trainer.lightning_module)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"meta_test/Hopper-v5/learned" in shown and b"meta_test/Pendulum-v1[max_episode_steps=5]/learned" in shown


@pytest.mark.parametrize("test", [None, {"environments": [], "seeds": [0]}, {"environments": ["A"], "seeds": None}])
def test_a_run_that_tests_no_learned_objective_has_no_metric_of_one(test: Any, tmp_path: Path) -> None:
    """It would be an empty column. Runs of fresh agents test other methods with the seeds of their own agents."""
    logger = TensorBoardLogger(str(tmp_path), name="", version="tensorboard", default_hp_metric=False)
    trainer = _trainer(logger, env={"train": ["A"], "test": ["A"]}, callbacks={"meta_test": test})
    RunSummary(str(tmp_path)).on_train_start(trainer, trainer.lightning_module)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"env.train" in shown and b"meta_test/" not in shown


def test_other_loggers_get_the_settings_alone(tmp_path: Path) -> None:
    given: list[Any] = []
    trainer = _trainer(SimpleNamespace(log_hyperparams=given.append), seed=3, agent={"x": {"y": 1}})
    RunSummary(str(tmp_path)).on_train_start(trainer, trainer.lightning_module)
    assert given == [{"seed": 3, "agent.x.y": 1}]


@pytest.mark.parametrize(("rows", "names"), [([], []), ([MetaTestRow("A", "random", 0, 0, 1.0)], ["meta_test_curves/A/random"])])
def test_a_run_without_a_picture_has_its_curves_alone(rows: list[MetaTestRow], names: list[str], tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="tensorboard")
    append_rows(tmp_path / "meta_test.csv", rows)
    logger.experiment.flush()  # makes the file
    RunSummary(str(tmp_path)).teardown(_trainer(logger), None, "fit")  # type: ignore[arg-type]
    logger.finalize("success")
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert tags["scalars"] == names and tags["images"] == []
