"""Every file in conf/ composes, fits the signatures that it configures, and builds."""

import copy
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import metagenrl_pl.launch.entry  # noqa: F401  (registers ${run_folder:})
from metagenrl_pl.config.run_config import RunConfig
from metagenrl_pl.config.schema import ConfigError, build, import_target, validate
from metagenrl_pl.learning.compiling import choose_compile, estimated_seconds
from metagenrl_pl.learning.inner_step import SGD, Adam, NormalisedSGD
from metagenrl_pl.objectives import CriticObjective, LearnedObjective, Reinforce

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(str(path.relative_to(CONF).with_suffix("")) for path in CONF.rglob("*.yaml") if path.parent != CONF)
OPTIONAL = ("metagenrl_pl.training.tracking.RunWandbLogger", "metagenrl_pl.training.tracking.RunMLFlowLogger")
"""Classes that need a package which is not installed everywhere."""


@pytest.fixture(scope="module")
def objective_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objective") / "objective.safetensors"
    LearnedObjective(seed=7).save(path, {"env_steps": 5})
    return path


@cache
def compose_once(*overrides: str) -> DictConfig:
    """Composing takes a fifth of a second, and tests share command lines."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.fixture
def composed(objective_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The validated config of a command line; files where `objective` asks for some; results in a folder of their own."""
    monkeypatch.chdir(tmp_path)

    def compose_and_validate(*overrides: str) -> DictConfig:
        config = copy.deepcopy(compose_once(*overrides))
        if OmegaConf.is_missing(config.objective, "path"):
            config.objective.path = str(objective_file)
        if OmegaConf.is_missing(config.objective, "members"):
            config.objective.members = [str(objective_file), "light"]
        return validate(config, RunConfig)

    return compose_and_validate


def nodes(value: Any, key: str = "") -> list[tuple[str, DictConfig]]:
    """Every mapping with a `_target_` that is in none with one, and its place."""
    if isinstance(value, DictConfig):
        if "_target_" in value:
            return [(key, value)]
        return [found for name in value for found in nodes(value[name], f"{key}.{name!s}".strip("."))]
    return []


def overrides_for(choice: str) -> list[str]:
    group, _, name = choice.partition("/")
    return [f"{group}={name}"]


# --------------------------------------------------------------------------------------------------------------- every file


def test_the_files_are_found() -> None:
    """A path that moved would leave the tests below with nothing to do."""
    assert {"env/light", "objective/learned", "experiment/paper/lunar_cheetah", "logger/wandb", "trainer/default"} <= set(CHOICES)


@pytest.mark.parametrize("choice", CHOICES)
def test_it_composes_and_builds(choice: str, composed: Any) -> None:
    config = composed(*overrides_for(choice))
    found = nodes(config)
    assert {"env", "agent", "objective", "inner", "population", "replay", "trainer"} <= {key for key, _ in found}
    assert len(found) == str(OmegaConf.to_container(config)).count("_target_") - num_nested(config)
    for key, node in found:
        if node._target_ in OPTIONAL and not is_installed(node):
            assert isinstance(import_target(node._target_, key), type)
        else:
            assert build(node, **({"logger": False, "enable_checkpointing": False} if key == "trainer" else {})) is not None, key
    assert list(Path().iterdir()) == []  # building writes nothing


def num_nested(config: DictConfig) -> int:
    """Nodes inside of nodes, which their outer one builds."""
    return sum(str(OmegaConf.to_container(node)).count("_target_") - 1 for _, node in nodes(config))


def is_installed(node: DictConfig) -> bool:
    try:
        __import__("wandb" if "Wandb" in node._target_ else "mlflow")
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_extra_of_a_missing_package_is_named(name: str, composed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = f"logger.{name}: {name} is not installed; pip install 'metagenrl-pl[{name}]'"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build(composed(f"logger={name}").logger[name])


# ---------------------------------------------------------------------------------------------------- what users type


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ("env.train=Pendulum-v1", "env.train", ["Pendulum-v1"]),
        ("env.train=[Pendulum-v1,Reacher-v5]", "env.train", ["Pendulum-v1", "Reacher-v5"]),
        ("env.train=[{id:Hopper-v5,max_episode_steps:50}]", "env.train", [{"id": "Hopper-v5", "max_episode_steps": 50}]),
        ("env.test=[]", "callbacks.meta_test.environments", []),
        ("env=ant", "env.train", ["Ant-v5"]),
        ("population.size=4", "population.size", 4),
        ("objective=critic", "objective._target_", "metagenrl_pl.objectives.CriticObjective"),
        ("objective.use_lstm=false", "objective.use_lstm", False),
        ("inner=adam", "inner._target_", "metagenrl_pl.learning.inner_step.Adam"),
        ("inner.num_steps=3", "inner.num_steps", 3),
        ("meta=frozen", "meta", None),
        ("updates_per_batch=7", "updates_per_batch", 7),
        ("trainer.devices=1", "trainer.devices", 1),
        ("trainer.accelerator=cpu", "trainer.accelerator", "cpu"),
        ("seed=5", "objective.seed", 5),
        ("env_steps=1e6", "env_steps", 1_000_000),
        ("agent.layer_norm_eps=1e-3", "objective.layer_norm_eps", 1e-3),
        ("agent.discount=0.9 objective=reinforce", "objective.discount", 0.9),
        ("agent=paper", "agent.hidden_units", 350),
        ("replay.device=cpu", "replay.device", "cpu"),
        ("logger=csv", "logger.tensorboard", None),
        ("callbacks.meta_test=null", "callbacks.meta_test", None),
        ("callbacks.meta_test.seeds=3", "callbacks.meta_test.seeds", [3]),
        ("run_dir=here", "callbacks.checkpoint.run_dir", "here"),
        ("ckpt_path=there/checkpoints/a.ckpt", "callbacks.objective_export.run_dir", "there"),
        ("num_threads=2", "num_threads", 2),
        ("compile=true", "compile", True),
        ("~experiment", "env_steps", 16_000),
        ("~experiment", "callbacks.meta_test.env_steps", 1_000_000),
        ("~logger", "logger", {}),
        ("~meta ~experiment", "meta", None),
        ("~compile_cache", "compile_cache", "~/.cache/metagenrl_pl/compiled"),
        ("experiment=debug env_steps=90", "env_steps", 90),  # the command line comes last
        ("experiment=paper/lunar_cheetah population.size=2", "population.size", 2),
    ],
)
def test_what_is_typed_arrives(arguments: str, key: str, value: Any, composed: Any) -> None:
    config = composed(*arguments.split())
    assert key.partition(".")[0] in config
    found = OmegaConf.select(config, key)
    found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("choice", "built"),
    [
        ("objective=learned", LearnedObjective),
        ("objective=frozen", LearnedObjective),
        ("objective=critic", CriticObjective),
        ("objective=reinforce", Reinforce),
        ("inner=sgd", SGD),
        ("inner=adam", Adam),
        ("inner=normalised_sgd", NormalisedSGD),
    ],
)
def test_a_choice_builds_its_class(choice: str, built: type, composed: Any) -> None:
    group = choice.partition("=")[0]
    assert type(build(composed(choice)[group])) is built


def test_a_frozen_objective_is_the_file(objective_file: Path, composed: Any) -> None:
    objective = build(composed("experiment=meta_test", f"objective.path={objective_file}").objective)
    assert objective.card["env_steps"] == 5


def test_a_trainer_is_built_with_what_code_gives(composed: Any) -> None:
    trainer = build(composed().trainer, callbacks=[pl.Callback()], logger=False)
    assert isinstance(trainer, pl.Trainer) and trainer.max_epochs == 1


# -------------------------------------------------------------------------------------------------- what the choices promise


def test_the_protocol_may_be_evolved(composed: Any) -> None:
    assert composed("experiment=protocol").meta.annealing_env_steps == 0
    assert "annealing_env_steps" not in composed("experiment=protocol", "meta=evolution").meta


def test_experiments_of_the_paper_use_its_sizes(composed: Any) -> None:
    for choice in CHOICES:
        if choice.startswith(("experiment/paper/", "experiment/figure")):
            config = composed(*overrides_for(choice))
            agent, num_agents = config.agent, config.population.size
            assert (agent.hidden_units, agent.num_windows, agent.window_length) == (350, 100, 20), choice
            assert (config.meta.gradient, config.inner._target_) == ("clip", "metagenrl_pl.learning.inner_step.SGD"), choice
            is_large = len(config.env.train) == 4
            assert (num_agents, config.env_steps) == ((40, 700_000) if is_large else (20, 600_000)), choice
            assert num_agents % len(config.env.train) == 0, f"{choice}: {num_agents} agents do not fill {config.env.train}"


def test_parametrisations_of_figure_5_differ_in_one_thing(composed: Any) -> None:
    options = {"no_value": "use_value", "no_lstm": "use_lstm", "no_time": "use_time", "unbounded": "bounded_head"}
    full = composed("experiment=figure5/full", "run_dir=here")
    for name, option in options.items():
        config = composed(f"experiment=figure5/{name}", "run_dir=here")
        assert config.objective[option] is False and full.objective[option] is True
        config.objective[option] = True
        assert config == full


def test_meta_test_environments_are_unseen_where_it_says_so(composed: Any) -> None:
    for choice in ("env=light", "env=light_unseen"):
        config = composed(choice)
        assert config.env.test and not set(config.env.test) & set(config.env.train)


def test_a_given_objective_is_not_learned(composed: Any) -> None:
    for experiment in ("meta_test", "baseline/ddpg", "baseline/off_policy_reinforce"):
        config = composed(f"experiment={experiment}")
        assert config.meta is None and (config.callbacks.meta_test or {}).get("seeds") is None
        assert config.callbacks.evaluation.run_dir == config.run_dir


VARIANTS: Any = OmegaConf.to_container(OmegaConf.load(CONF.parent / "benchmarks" / "variants.yaml"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_differs_from_the_protocol_and_leaves_its_unseen_environments_unseen(name: str, composed: Any) -> None:
    plain, config = composed("experiment=protocol"), composed("experiment=protocol", *VARIANTS[name])
    assert (config == plain) == (name == "protocol")
    assert config.env.test == plain.env.test and set(config.env.train) >= set(plain.env.train)
    assert len(set(config.env.test) - set(config.env.train)) == 4
    for node in (config.meta, config.inner, config.objective, config.population):
        build(node)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is a GPU: the run may use the CPU, and Triton needs a compiler, too."""
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_compile(None, 1e6)[0] is False and choose_compile(False, 1e6)[0] is False
    with pytest.raises(ValueError, match="compile=true needs a C"):
        choose_compile(True, 1e6)


def test_the_default_run_is_compiled_and_a_short_one_is_not(composed: Any) -> None:
    chosen = {}
    for experiment in ("quickstart", "debug"):
        config = composed(f"experiment={experiment}")
        seconds = estimated_seconds(build(config.agent), config.population.size, config.env_steps, is_meta_training=True)
        chosen[experiment] = choose_compile(None, seconds)[0]
    assert chosen == {"quickstart": True, "debug": False}
