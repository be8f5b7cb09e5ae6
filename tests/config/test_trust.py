"""A configuration in a file of somebody else runs nothing and writes nowhere."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metagenrl_pl.config.schema import ConfigError
from metagenrl_pl.config.trust import check_foreign, confirmations
from metagenrl_pl.launch.entry import run_folder
from metagenrl_pl.launch.resume import KINDS

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["run_dir=runs/mine", "logger=mlflow"])
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.create(config))  # type: ignore[assignment]
    node: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        node = node[parent]
    node[name] = value
    return config


def test_a_configuration_of_this_project_passes(whole: dict[str, Any]) -> None:
    check_foreign(whole, KINDS, folder=Path("runs/mine"))
    assert confirmations(whole, Path("runs/mine")) == []


RECORDER = "gymnasium.wrappers.RecordVideo"
PLANTED = {"_target_": "os.system", "command": "true"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "callbacks.evil",
            {"_target_": "shutil.copy", "src": "a", "dst": "b"},
            "callbacks.evil._target_ is of the package shutil, wh",
        ),
        (
            "callbacks.evil",
            {"_target_": "torch.load", "f": "x", "weights_only": False},
            "callbacks.evil._target_=torch.load is not wh",
        ),
        (
            "callbacks.evil",
            {"_target_": "pytorch_lightning.seed_everything"},
            "_everything is not what its key needs; valid is pytorc",
        ),
        (
            "callbacks.evil",
            {"_target_": "metagenrl_pl.objectives.Reinforce"},
            "is not what its key needs; valid is pytorch_lightning.",
        ),
        (
            "callbacks.evil",
            {"_target_": "torch.os.system", "command": "true"},
            "callbacks.evil._target_=torch.os.system is not what i",
        ),
        ("callbacks.evil", {"_target_": 3}, "callbacks.evil._target_ is of the package 3, which is not trusted"),
        (
            "callbacks.meta_test.baselines.critic",
            PLANTED,
            "callbacks.meta_test.baselines.critic._target_ is of the package os, which",
        ),
        (
            "callbacks.meta_test.baselines.critic",
            {"_target_": "pytorch_lightning.Trainer"},
            "is not what its key needs; valid is metag",
        ),
        (
            "objective",
            {"_target_": "torch.hub.load", "repo_or_dir": "x"},
            "objective._target_=torch.hub.load is not what its key needs",
        ),
        (
            "objective",
            {"_target_": "torch.nn.Linear"},
            "objective._target_=torch.nn.Linear is not what its key needs; valid is metage",
        ),
        (
            "agent",
            PLANTED,
            "agent._target_ is of the package os, which is not trusted in a file; valid are metagenrl_pl, callbacks, ",
        ),
        ("env.train", [{"id": "Pendulum-v1", "kwargs": {"x": PLANTED}}], "env.train[0].kwargs.x._target_ is of the package os"),
        (
            "env.train",
            ["this_module.part:Own-v0"],
            "env.train[0] is of the package this_module, which is not trusted in a file; valid",
        ),
        ("env.test", [{"id": "this_module:Own-v0"}], "env.test[0].id is of the package this_module"),
        (
            "callbacks.meta_test.environments",
            ["this_module:Own-v0"],
            "callbacks.meta_test.environments[0] is of the package this_mod",
        ),
        (
            "env.train",
            [{"id": "Pendulum-v1", "wrappers": ["this_module.Wrapper"]}],
            "env.train[0].wrappers[0] is of the package this_module, which",
        ),
        (
            "callbacks.meta_test.environments",
            [{"id": "Pendulum-v1", "wrappers": [{"wrapper": "this_module.Wrapper", "kwargs": {}}]}],
            "callbacks.meta_test.environments[0].wrappers[0].wrapper is of the package this_module, which",
        ),
        (
            "env.train",
            [{"id": "Pendulum-v1", "wrappers": ["gymnasium.logger.warnings.warn"]}],
            "env.train[0].wrappers[0]=gymnasium.logger.warnings.warn is not what its key needs; valid is gymnasium.Wrapper",
        ),
        (
            "env.train",
            [{"id": "Pendulum-v1", "wrappers": ["torch.os.system"]}],
            "env.train[0].wrappers[0]=torch.os.system is not what its key needs; valid is gymnasium.Wrapper",
        ),
        (
            "env.test",
            [{"id": "Pendulum-v1", "wrappers": [{"wrapper": RECORDER, "kwargs": {"video_folder": "/home/else"}}]}],
            "env.test[0].wrappers[0].wrapper is of the package gymnasium, which is not trusted in a file",
        ),
        ("seed", "${oc.env:HOME}", "seed=${oc.env:HOME} is an interpolation"),
        (
            "callbacks.checkpoint.run_dir",
            "/home/else",
            "callbacks.checkpoint.run_dir=/home/else would write outside of the run folder",
        ),
        (
            "callbacks.checkpoint.run_dir",
            "runs/other",
            "would write outside of the run folder runs/mine, which a file may not; valid is a path in it, or callbacks.checkpoint.ru",
        ),
        ("callbacks.checkpoint.run_dir", "runs/mine/../other", "would write outside of the run folder"),
        ("logger.csv.run_dir", "~/else", "logger.csv.run_dir=~/else would write outside of the run folder"),
        ("logger.mlflow.run_dir", "https://example.org", "logger.mlflow.run_dir=https://example.org would write outside"),
        (
            "logger.mlflow.tracking_uri",
            "sqlite:////tmp/x.db",
            "logger.mlflow.tracking_uri=sqlite:////tmp/x.db would write outside",
        ),
        ("logger.mlflow.tracking_uri", "else", "logger.mlflow.tracking_uri=else would write outside"),
        ("logger.mlflow.tracking_uri", " file:/else", "logger.mlflow.tracking_uri= file:/else would write outside"),
        ("trainer.default_root_dir", "/", "trainer.default_root_dir=/ would write outside of the run folder"),
        ("logger.mlflow.tracking_uri", "file:/home/else", "logger.mlflow.tracking_uri=file:/home/else would write outside"),
        ("logger.mlflow.tracking_uri", "FILE:else", "logger.mlflow.tracking_uri=FILE:else would write outside"),
        (
            "logger.csv",
            {"_target_": "pytorch_lightning.loggers.CSVLogger", "_args_": ["runs", "victim", ""]},
            "logger.csv._args_ may not be in a file; valid are arguments by name",
        ),
    ],
)
def test_what_a_file_may_not_name(key: str, value: Any, message: str, whole: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_foreign(changed(whole, key, value), KINDS, folder=Path("runs/mine"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("env.train", ["odd_environments:Sliding-v0"]),
        ("callbacks.mine", {"_target_": "odd_environments.Sliding"}),
    ],
)
def test_the_user_may_trust_a_package(key: str, value: Any, whole: dict[str, Any]) -> None:
    config = changed(whole, key, value)
    assert confirmations(config, Path("runs/mine")) == ["trusted_packages=[odd_environments]"]
    with pytest.raises(
        ConfigError, match=r"trusted_packages=\[odd_environments\] \(metagenrl film: --trust odd_environments\) if you"
    ):
        check_foreign(config, KINDS)
    if key == "env.train":
        check_foreign(config, KINDS, ["odd_environments"])
    else:  # still of the kind that its key needs
        with pytest.raises(ConfigError, match="is not what its key needs"):
            check_foreign(config, KINDS, ["odd_environments"])


def test_an_address_in_a_sentence_is_no_place(whole: dict[str, Any]) -> None:
    check_foreign(changed(whole, "logger.mlflow.experiment_name", "see https://example.org"), KINDS, folder=Path("runs/mine"))


def test_a_resume_confirms_places_outside_of_the_run_folder(whole: dict[str, Any]) -> None:
    config = changed(whole, "logger.mlflow.tracking_uri", "http://tracking.lab:5000")
    config = changed(config, "callbacks.checkpoint.run_dir", "/tmp/my runs")
    assert confirmations(config, Path("runs/mine")) == [
        "callbacks.checkpoint.run_dir=/tmp/my runs",
        "logger.mlflow.tracking_uri=http://tracking.lab:5000",
    ]


def test_wrappers_that_a_file_may_name(whole: dict[str, Any]) -> None:
    plain = [
        "gymnasium.wrappers.NormalizeReward",
        {"wrapper": "gymnasium.wrappers.TimeLimit", "kwargs": {"max_episode_steps": 5}},
    ]
    config = changed(whole, "env.train", [{"id": "Pendulum-v1", "wrappers": plain}])
    assert confirmations(config, Path("runs/mine")) == []
    check_foreign(config, KINDS)
    recorded = {"wrapper": RECORDER, "kwargs": {"video_folder": "videos"}}
    config = changed(whole, "env.train", [{"id": "Pendulum-v1", "wrappers": [recorded]}])
    assert confirmations(config, Path("runs/mine")) == [
        "trusted_packages=[gymnasium]"
    ]  # it writes files, so a resume needs the user's word
    check_foreign(config, KINDS, ["gymnasium"])


@pytest.mark.parametrize("config", [None, [], 3, "text"])
def test_a_configuration_is_a_mapping(config: Any) -> None:
    with pytest.raises(ConfigError, match="its configuration is a "):
        check_foreign(config, KINDS)
