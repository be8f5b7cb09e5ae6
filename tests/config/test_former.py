"""Files of version 0.1.0."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metagenrl_pl.config.former import (
    FORMER_TARGETS,
    update_card,
    update_config,
    update_options,
)
from metagenrl_pl.config.schema import ConfigError, import_target, load_config
from metagenrl_pl.objectives import LearnedObjective, ParametricObjective
from metagenrl_pl.objectives.pretrained import pretrained_path
from metagenrl_pl.results.origin import meta_training_settings, origin_in_config
from metagenrl_pl.results.run_folders import read_run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
KEPT_META_KEYS = {"meta.advantage"}  # a removed setting that did something
CRITIC = {"judge._target_": "metagenrl_pl.learning.judges.CriticJudge"}
RETURNS = {
    "judge._target_": "metagenrl_pl.learning.judges.ReturnsJudge",
    "judge.share": 0.5,
    "judge.discount": 0.99,
    "judge.gae_lambda": 0.97,
}


def stored(*place: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(load_config(RESULTS.joinpath(*place, "config.yaml")))
    return config


def settings_of(card: dict[str, Any], group: str) -> dict[str, Any]:
    return {key: value for key, value in card["settings"].items() if key.startswith(f"{group}.")}


# ------------------------------------------------------------------------------------------------------------------- reading


def test_classes_have_their_new_names_wherever_they_are() -> None:
    config = update_config(stored("protocol", "light", "seed_0"))
    assert config["env"]["_target_"] == "metagenrl_pl.environments.environment.EnvironmentSets"
    assert config["logger"]["csv"]["_target_"] == "metagenrl_pl.training.csv_logger.RunCSVLogger"
    assert config["meta"] == {
        "_target_": "metagenrl_pl.learning.settings.MetaSettings",
        "learning_rate": 0.001,
        "gradient": "normalize",
        "annealing_env_steps": 0,
    }
    assert config["env"]["train"] == ["Pendulum-v1", "InvertedPendulum-v5", "Reacher-v5"]


def test_new_names_are_those_of_classes() -> None:
    for target in set(FORMER_TARGETS.values()):
        try:
            import_target(target, "")
        except ConfigError:
            assert target.startswith(("metagenrl_pl.learning.settings", "metagenrl_pl.experience.replay")), target


def test_a_configuration_of_this_version_stays_as_it_is() -> None:
    once = update_config(stored("protocol", "mixture", "seed_0"))
    assert update_config(once) == once


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.rglob("config.yaml")), ids=str)
def test_every_stored_configuration_has_known_classes_or_removed_keys(folder: Path) -> None:
    config = update_config(OmegaConf.to_container(load_config(folder / "config.yaml")))  # type: ignore[arg-type]
    assert not {"advantage_share", "critic", "share_windows"} & (config["meta"] or {}).keys()
    assert "judge" in config or config["meta"] is None
    assert not FORMER_TARGETS.keys() & set(OmegaConf.to_yaml(OmegaConf.create(config)).split())


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.rglob("meta_test.csv")), ids=str)
def test_every_stored_run_is_read(folder: Path) -> None:
    origin = read_run(folder).origin
    if origin is None or "meta._target_" not in origin.settings:
        return
    known = {f"meta.{field.name}" for field in fields(import_target(origin.settings["meta._target_"], "meta"))}
    assert {key for key in origin.settings if key.startswith("meta.")} <= known | KEPT_META_KEYS | {"meta._target_"}


def test_a_run_of_version_0_1_0_equals_one_of_today_with_the_same_settings() -> None:
    before = read_run(RESULTS / "protocol" / "light" / "seed_0").origin
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config", ["experiment=protocol", "run_dir=x"]), resolve=True)
    now = origin_in_config(Path(), update_config(composed), {})
    assert before is not None and before.is_whole and now.is_whole
    assert before.differences(now) == []
    composed["meta"]["learning_rate"] = 0.5
    assert before.differences(origin_in_config(Path(), update_config(composed), {})) == ["meta.learning_rate"]


def test_a_judge_by_returns_is_a_judge() -> None:
    settings = meta_training_settings(update_config(stored("protocol", "mixture", "seed_0")))
    assert {key: value for key, value in settings.items() if key.startswith("judge.")} == RETURNS
    assert not {"meta.advantage_share", "meta.advantage", "objective.advantage"} & settings.keys()
    assert settings["objective.discount"] == 0.99  # a mixture's own


def test_a_removed_setting_that_did_something_stays() -> None:
    settings = meta_training_settings(update_config(stored("protocol", "advantage_input", "seed_0")))
    assert settings["objective.use_advantage"] is True and settings["objective.discount"] == 0.99
    assert settings["meta.advantage"] == "indicator" and settings["judge.share"] == 0.5


@pytest.mark.parametrize(
    ("node", "left"),
    [
        ({"advantage": "indicator", "advantage_share": 0.0}, {}),  # nothing judged by it
        ({"advantage": "indicator", "advantage_share": 0.5}, {"advantage": "indicator"}),
        ({"half_life_env_steps": None, "updates_per_cycle": 1, "average_decay": None, "share_windows": False}, {}),
        ({"half_life_env_steps": 5, "updates_per_cycle": 2}, {"half_life_env_steps": 5, "updates_per_cycle": 2}),
        ({"critic": "second", "learning_rate": 1.0}, {"critic": "second", "learning_rate": 1.0}),
    ],
)
def test_settings_of_meta_learning(node: dict[str, Any], left: dict[str, Any]) -> None:
    updated = update_config({"meta": {"_target_": "metagenrl_pl.learner.MetaSettings", **node}})
    del updated["meta"]["_target_"]
    assert updated["meta"] == left


def test_the_numbers_of_an_inner_adam() -> None:
    node = {"_target_": "metagenrl_pl.inner.Adam", "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    updated = update_config({"inner": node})["inner"]
    assert updated == {"_target_": "metagenrl_pl.learning.inner_step.Adam", "learning_rate": 1e-3, "beta2": 0.99}


def test_the_advantage_of_a_baseline_is_left_out_as_well() -> None:
    reinforce = {"_target_": "metagenrl_pl.objectives.Reinforce", "advantage": "signed", "discount": 0.9}
    config = {"callbacks": {"meta_test": {"baselines": {"reinforce": reinforce, "critic": None}}}, "meta": None}
    baselines = update_config(config)["callbacks"]["meta_test"]["baselines"]
    assert baselines == {"reinforce": {"_target_": "metagenrl_pl.objectives.Reinforce", "discount": 0.9}, "critic": None}


def test_cards() -> None:
    card = update_card(json.loads(pretrained_path("mixture").with_suffix(".json").read_text()))
    assert settings_of(card, "judge") == RETURNS
    assert card["settings"]["agent._target_"] == "metagenrl_pl.agents.population.AgentSettings"
    assert settings_of(update_card(json.loads(pretrained_path("light").with_suffix(".json").read_text())), "judge") == CRITIC
    assert update_card({"seed": 3}) == {"seed": 3}


# --------------------------------------------------------------------------------------------------------------- objective files


@pytest.mark.parametrize("name", ["light", "falling", "mixture"])
def test_objectives_of_version_0_1_0_load(name: str) -> None:
    objective = ParametricObjective.pretrained(name)
    assert objective.card["settings"]["meta._target_"] == "metagenrl_pl.learning.settings.MetaSettings"
    assert "judge._target_" in objective.card["settings"]


class Narrow(ParametricObjective):
    """An objective whose constructor does not know what version 0.1.0 had."""

    def __init__(self, width: int = 1, seed: int = 0) -> None:
        super().__init__(width=width)

    def loss(self, parameters, inputs):  # type: ignore[no-untyped-def]
        return inputs.reward


class LearnedMixture(Narrow):
    """Called as one that had an option that is gone."""


def test_options_that_did_nothing_are_left_out_of_objective_files(tmp_path: Path) -> None:
    objective = LearnedMixture(width=3)
    objective.architecture["advantage"] = "signed"
    objective.save(tmp_path / "a.safetensors")
    assert LearnedMixture.load(tmp_path / "a.safetensors").architecture == {"width": 3}
    objective.architecture["advantage"] = "indicator"
    objective.save(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors: LearnedMixture has no option advantage=indicator; valid: width, seed"):
        LearnedMixture.load(tmp_path / "b.safetensors")


def test_a_class_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    LearnedObjective(hidden_units=4).save(path, {"class": "metagenrl_pl.objectives.ensemble.ObjectiveEnsemble"})
    with pytest.raises(
        ValueError, match=r"ensemble\.ObjectiveEnsemble, which this version does not have; valid is the version that"
    ):
        ParametricObjective.load(path)


def test_options_that_a_class_has_given_a_meaning_stay() -> None:
    options = {"use_advantage": False, "gae_lambda": 0.9, "hidden_units": 4}
    assert update_options(["LearnedObjective"], options) == {"hidden_units": 4}
    assert update_options(["Own", "LearnedObjective"], options, ["gae_lambda"]) == {"gae_lambda": 0.9, "hidden_units": 4}
    assert update_options(["LearnedObjective"], {**options, "use_advantage": True}) == {**options, "use_advantage": True}
    assert update_options(["Blend"], options) == options
