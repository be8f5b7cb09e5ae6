"""`metrics.csv`: appended to, its header extended, cut back on a resume."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader

from metagenrl_pl.common.files import ForeignFileError
from metagenrl_pl.training.csv_logger import RunCSVLogger


def test_writes_at_once_and_in_a_stable_order(tmp_path: Path) -> None:
    logger = RunCSVLogger(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    logger.log_metrics({"b": torch.tensor(2.0), "a": 1}, step=10)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "env_steps,a,b\n10,1,2.0\n"
    logger.log_metrics({"a": 3.5}, step=20)
    assert logger.path.read_text() == "env_steps,a,b\n10,1,2.0\n20,3.5,\n"


def test_new_metrics_extend_the_header(tmp_path: Path) -> None:
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"b": 1}, step=1)
    logger.log_metrics({"a": 2, "z": 3}, step=2)
    logger.log_metrics({"b": 4}, step=3)
    assert logger.path.read_text() == "env_steps,a,b,z\n1,,1,\n2,2,,3\n3,,4,\n"
    assert list(tmp_path.iterdir()) == [logger.path]


def test_a_second_logger_appends(tmp_path: Path) -> None:
    RunCSVLogger(tmp_path).log_metrics({"b": 1}, step=1)
    second = RunCSVLogger(tmp_path)
    second.log_metrics({"b": 2}, step=2)
    RunCSVLogger(tmp_path).log_metrics({"a": 3}, step=3)
    assert second.path.read_text() == "env_steps,a,b\n1,,1\n2,,2\n3,3,\n"


@pytest.mark.parametrize("metric", ["b", "new"])
def test_a_half_written_line_is_cut_off(tmp_path: Path, metric: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("env_steps,b\n1,1\n2,1234567")
    RunCSVLogger(tmp_path).log_metrics({metric: 5}, step=2)
    assert path.read_text() == ("env_steps,b\n1,1\n2,5\n" if metric == "b" else "env_steps,b,new\n1,1,\n2,,5\n")


def test_keep_until_drops_what_a_resume_makes_again(tmp_path: Path) -> None:
    RunCSVLogger(tmp_path).keep_until(5)
    assert list(tmp_path.iterdir()) == []
    first = RunCSVLogger(tmp_path)
    for step in (5, 10, 100):
        first.log_metrics({"a": step}, step=step)

    resumed = RunCSVLogger(tmp_path)
    resumed.keep_until(10)
    assert resumed.path.read_text() == "env_steps,a\n5,5\n10,10\n"
    resumed.log_metrics({"a": 101}, step=100)
    assert resumed.path.read_text() == "env_steps,a\n5,5\n10,10\n100,101\n"


def test_refuses_a_missing_step_and_a_file_of_another_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step=None"):
        RunCSVLogger(tmp_path).log_metrics({"a": 1})
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(ValueError, match="begins with the column 'epoch'"):
        RunCSVLogger(tmp_path).log_metrics({"a": 1}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n0,1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch,loss\n0,1\n", "begins with the column 'epoch'; valid is 'env_steps'$"),
        (b"env_steps,a\nnan,1\n", "row 2: env_steps is 'nan'; valid is a whole number from 0$"),
        (b"env_steps,a\n-5,1\n", "row 2: env_steps is '-5'; valid is a whole number from 0$"),
        (b"env_steps,a\n5,1\n6,abc\n", "row 3: a is 'abc'; valid is a number$"),
        (b"env_steps,a\n5\n", "row 2: 1 cells; valid is 2, as in its header$"),
        (b"env_steps,a\n5,1,2\n", "row 2: 3 cells; valid is 2, as in its header$"),
        (b"env_steps,a,a\n5,1,2\n", "two columns are called 'a'$"),
        (b"env_steps,\xff\n5,1\n", "not a table of comma-separated text"),
        (b'env_steps,"a\n5,1\n', "not a table of comma-separated text"),
    ],
)
def test_a_resume_refuses_a_foreign_file_and_leaves_it_alone(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(ForeignFileError, match=f"^{tmp_path}/metrics.csv.* {message}"):
        RunCSVLogger(tmp_path).keep_until(10)
    assert (tmp_path / "metrics.csv").read_bytes() == content


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"a": 1}, step=1)
    before = logger.path.read_text()
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger.log_metrics({"a": 2}, step=2)
    logger.keep_until(0)
    assert logger.path.read_text() == before


class _Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"seed": 1})
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        assert self.logger is not None
        self.logger.log_metrics({"loss": 0.5}, step=100 * (batch_idx + 1))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_is_content_with_it(tmp_path: Path) -> None:
    logger = RunCSVLogger(tmp_path)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    assert trainer.log_dir == str(tmp_path)
    trainer.fit(_Module(), DataLoader(torch.ones(2, 1)))
    assert logger.path.read_text() == "env_steps,loss\n100,0.5\n200,0.5\n"
    assert list(tmp_path.iterdir()) == [logger.path]
