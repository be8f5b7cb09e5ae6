"""Hydra made strict: what is refused, in which words, and what is coerced. Every message is one that a user reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import pytest
from omegaconf import DictConfig, OmegaConf

from metagenrl_pl.config.schema import ConfigError, build, load_config, resolved_yaml, validate

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


class Env:
    def __init__(self, train: list[str], test: Sequence[str] = (), sizes: tuple[int, float] = (1, 2.0), **options: int) -> None:
        self.train, self.test, self.sizes, self.options = train, test, sizes, options


class Population:
    def __init__(
        self,
        size: int,
        rate: float = 1e-3,
        mode: Literal["fast", "slow"] = "fast",
        path: Path | None = None,
        policy: Optional["Policy"] = None,
        unchecked: "Missing" = None,
        limit: int = None,  # type: ignore[assignment]
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1,\ngot {size}")
        self.size, self.path, self.policy = size, path, policy


class Policy:
    def __init__(self, hidden: "list[int]", activation: Callable[[float], float] = abs, bias: bool = True) -> None:
        self.hidden = hidden


class Callback:
    def __init__(self, every: int = 1) -> None:
        if every > 100:
            raise KeyError("a bug")


class MisconfigurationException(Exception):
    """By name, like Lightning's."""


class Refuses:
    def __init__(self, missing: str) -> None:
        errors = {"file": FileNotFoundError, "package": ModuleNotFoundError, "lightning": MisconfigurationException}
        raise errors[missing]("not there")


class Learner:
    def __init__(self, population: Population, steps: int) -> None:
        self.population = population
        if steps < 1:
            raise ValueError("steps must be at least 1")


@dataclass(frozen=True)
class Limits:
    env_steps: int
    hours: float | None = None


@dataclass
class RunConfig:
    seed: int
    env: Any
    population: DictConfig
    run_dir: str | None = None
    limits: Limits | None = None
    callbacks: dict[str, Callback] = field(default_factory=dict)


def node(kind: type, **values: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{kind.__name__}", **values}


def check(**changes: Any) -> DictConfig:
    """A valid config with `changes` to its dotted keys (`__` for a dot), validated."""
    config = OmegaConf.create(
        {
            "seed": 1,
            "env": node(Env, train=["Pendulum-v1"]),
            "population": node(Population, size=3, policy=node(Policy, hidden=[8])),
            "callbacks": {"save": node(Callback), "plot": None},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True, merge=True)
    return validate(config, RunConfig)


def test_a_valid_config_is_copied_not_changed() -> None:
    given = OmegaConf.create({"seed": "${limits.env_steps}", "env": {"a": 1}, "population": {}, "limits": {"env_steps": 1e6}})
    config = validate(given, RunConfig)
    assert config.seed == config.limits.env_steps == 1_000_000 and type(config.limits.env_steps) is int
    assert type(given.limits.env_steps) is float and OmegaConf.is_interpolation(given, "seed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sed": 3}, "unknown key 'sed'; did you mean 'seed'?"),
        ({"zzz": 3}, "unknown key 'zzz'; valid: callbacks, env, limits, population, run_dir, seed"),
        ({"population__polcy": 3}, "unknown key 'population.polcy'; did you mean 'population.policy'?"),
        ({"population__policy__hiden": 3}, "unknown key 'population.policy.hiden'; did you mean 'population.policy.hidden'?"),
        ({"population___partail_": True}, "unknown key 'population._partail_'; did you mean 'population._partial_'?"),
        ({"limits": {"env_step": 3}}, "unknown key 'limits.env_step'; did you mean 'limits.env_steps'?"),
        ({"limits": {}}, "missing key 'limits.env_steps', which Limits requires"),
        ({"population__size": "???"}, "missing key 'population.size', which Population requires"),
        ({"seed": "???"}, "missing key 'seed', which RunConfig requires"),
        ({"seed": "abc"}, "seed: expected int, got 'abc'"),
        ({"seed": True}, "seed: expected int, got true"),
        ({"seed": 1.5}, "seed: expected int, got 1.5"),
        ({"seed": None}, "seed: expected int, got null"),
        ({"run_dir": 7}, "run_dir: expected str or null, got 7"),
        ({"limits": {"env_steps": 1, "hours": "x"}}, "limits.hours: expected float or null, got 'x'"),
        ({"population__rate": "fast"}, "population.rate: expected float, got 'fast'"),
        ({"population__path": 3}, "population.path: expected Path or null, got 3"),
        ({"population__mode": "fsat"}, "population.mode=fsat is not a choice; did you mean 'fast'? valid: fast, slow"),
        ({"population__policy__hidden": [8, "x"]}, "population.policy.hidden[1]: expected int, got 'x'"),
        ({"population__policy__bias": 1}, "population.policy.bias: expected bool, got 1"),
        ({"env__train": None}, "env.train: expected list[str], got null"),
        ({"env__train": 3}, "env.train: expected str, got 3"),
        ({"env__sizes": [1, 2, 3]}, "env.sizes: expected tuple[int, float], got [1, 2, 3]"),
        ({"env__option": "x"}, "env.option: expected int, got 'x'"),
        ({"env___target_": "test_config.Nothing"}, "env._target_: there is no class or function test_config.Nothing"),
        ({"callbacks__save__evry": 3}, "unknown key 'callbacks.save.evry'; did you mean 'callbacks.save.every'?"),
        ({"callbacks__new": 3}, "unknown key 'callbacks.new'; valid: plot, save (a new entry needs a _target_)"),
        (
            {"callbacks__sav": {"every": 3}},
            "unknown key 'callbacks.sav'; did you mean 'callbacks.save'? (a new entry needs a _target_)",
        ),
        (
            {"callbacks__new": {"_target_": "no.such.Thing"}},
            "callbacks.new._target_: there is no class or function no.such.Thing",
        ),
        ({"run_dir": "${nowhere}"}, "run_dir: Interpolation key 'nowhere' not found"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(**changes)
    assert str(caught.value) == message


def test_accepted_and_coerced() -> None:
    config = check(
        env__train="Pendulum-v1",
        env__sizes=[1, 2],
        env__option=3,  # **options
        population__rate=1,
        population__path="a/b",
        population__policy__hidden=16,
        population__unchecked=[1, "x"],
        population__limit=None,
        callbacks__save=None,
        callbacks__new=node(Callback, every=2.0),
    )
    assert config.env.train == ["Pendulum-v1"] and config.env.option == 3
    assert config.env.sizes == [1, 2.0] and type(config.env.sizes[1]) is float
    assert type(config.population.rate) is float and config.population.path == "a/b"
    assert config.population.policy.hidden == [16]
    assert config.callbacks.save is None and type(config.callbacks.new.every) is int


Number = float | int
Bits = Literal[16, 32]


def takes_unions(
    devices: list[int] | str | int = "auto",
    fraction: Number | None = None,
    precision: Bits | Literal["bf16", "64"] | None = None,
    check: bool | Literal["warn"] | None = None,
    policies: list[Policy] | Policy | None = None,
    names: "dict[str, list[str]] | None" = None,
) -> None: ...


def unions(**values: Any) -> Any:
    config = OmegaConf.create({"seed": 1, "population": {}, "env": {"_target_": f"{__name__}.takes_unions", **values}})
    return OmegaConf.to_container(validate(config, RunConfig).env)[next(iter(values))]  # type: ignore[call-overload, index]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"devices": 2}, 2),
        ({"devices": "2"}, "2"),
        ({"devices": [0, 1]}, [0, 1]),
        ({"fraction": 1}, 1),  # a number of batches; 1.0 would be all of them
        ({"fraction": 1.0}, 1.0),
        ({"precision": 16}, 16),
        ({"check": True}, True),
        ({"check": "warn"}, "warn"),
        ({"names": {"a": "x"}}, {"a": ["x"]}),
    ],
)
def test_a_union_keeps_what_fits_as_it_is(values: dict[str, Any], expected: Any) -> None:
    found = unions(**values)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": [0, "x"]}, "env.devices[1]: expected int, got 'x'"),
        ({"devices": 1.5}, "env.devices: expected list[int] or str or int, got 1.5"),
        ({"precision": "bf61"}, "env.precision=bf61 is not a choice; did you mean 'bf16'? valid: 16, 32, bf16, 64, null"),
        ({"check": "wran"}, "env.check=wran is not a choice; did you mean 'warn'? valid: warn, bool, null"),
        ({"policies": [{"_target_": f"{__name__}.Policy"}]}, "missing key 'env.policies[0].hidden', which Policy requires"),
        ({"names": {"a": 3}}, "env.names.a: expected str, got 3"),
    ],
)
def test_unions_refuse_the_rest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        unions(**values)
    assert str(caught.value) == message


def test_lightning_trainer_is_checked_by_its_own_signature() -> None:
    pytest.importorskip("pytorch_lightning")

    def trainer(**values: Any) -> DictConfig:
        env = {"_target_": "pytorch_lightning.Trainer", "devices": 2, "strategy": "auto", "logger": False, **values}
        return validate(OmegaConf.create({"seed": 1, "population": {}, "env": env}), RunConfig).env

    assert trainer(limit_train_batches=1.0, precision="16-mixed", max_time="00:01:00:00").devices == 2
    with pytest.raises(ConfigError, match=r"unknown key 'env.max_step'; did you mean 'env.max_steps'\?"):
        trainer(max_step=3)
    with pytest.raises(ConfigError, match="env.max_steps: expected int, got 'x'"):
        trainer(max_steps="x")
    with pytest.raises(ConfigError, match="env.precision=bf17 is not a choice; did you mean 'bf16'"):
        trainer(precision="bf17")


@pytest.mark.parametrize("is_patched", [False, True])
def test_a_module_without_a_constructor_takes_no_key(is_patched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torch").nn.Module
    if is_patched:  # as torch.compile does
        monkeypatch.setattr(module, "__init__", lambda self, *args, **kwargs: None)
    with pytest.raises(ConfigError, match="^unknown key 'env.size'$"):  # torch's own would take **kwargs, and raise later
        validate(OmegaConf.create({"seed": 1, "population": {}, "env": {"_target_": "torch.nn.Tanh", "size": 3}}), RunConfig)


def test_build_gives_plain_python_and_passes_late_arguments_as_they_are() -> None:
    config = check(env=node(Env, train="a"), callbacks__learner={**node(Learner, steps=1), "_partial_": True})
    assert type(build(config.env).train) is list
    population = build(config.population)
    assert isinstance(population.policy, Policy)
    assert build(config.callbacks.learner, population=population).population is population


def test_build_names_the_node_whose_constructor_refused() -> None:
    config = check(population__size=0, callbacks__learner={**node(Learner, steps=0), "_partial_": True})
    with pytest.raises(ConfigError, match="^population: size must be at least 1, got 0$"):
        build(config.population)
    with pytest.raises(ConfigError, match="^callbacks.learner: steps must be at least 1$"):
        build(config.callbacks.learner, population=None)
    config = check(callbacks__learner=node(Learner, steps=1, population=node(Population, size=0)))
    with pytest.raises(ConfigError, match="^callbacks.learner.population: size must be at least 1, got 0$"):
        build(config.callbacks.learner)


@pytest.mark.parametrize("missing", ["file", "package", "lightning"])
def test_build_takes_what_is_not_there_for_a_mistake(missing: str) -> None:
    with pytest.raises(ConfigError, match="^callbacks.new: not there$"):
        build(check(callbacks__new=node(Refuses, missing=missing)).callbacks.new)


def test_a_target_in_a_broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="^env._target_: cannot import broken_module.Env: .*No module named 'no_such_package'$"):
        check(env___target_="broken_module.Env")


def test_build_leaves_a_bug_alone() -> None:
    config = check(callbacks__save__every=101)
    with pytest.raises(Exception, match="a bug") as caught:
        build(config.callbacks.save)
    assert not isinstance(caught.value, ConfigError)


def test_written_config_reads_back(tmp_path: Path) -> None:
    config = check(run_dir="runs/${seed}", population__path="x", env__train="a")
    path = tmp_path / "config.yaml"
    path.write_text(resolved_yaml(config))
    assert "runs/1" in path.read_text() and "${" not in path.read_text()
    assert load_config(path) == config == validate(load_config(path), RunConfig)


@pytest.mark.parametrize("text", [None, "a: [1\nb: }", "- 1\n- 2"])
def test_a_config_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"cannot read the config .*config\.yaml: [^\n]+$"):
        load_config(path)
