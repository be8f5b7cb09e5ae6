"""Descriptions of methods, and whose names they are."""

from contextlib import suppress
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from metagenrl_pl.objectives import CriticObjective, LearnedObjective, Objective, Reinforce
from metagenrl_pl.results.methods import METHODS, Method, check_method, find_method, find_methods, reference_methods

CONF = Path(__file__).parents[2] / "conf"


def test_methods_are_found_in_display_order_and_others_get_colours_in_turn() -> None:
    methods = find_methods(["zeta", "random", "alpha", "learned", "random"])
    assert [method.name for method in methods] == ["learned", "random", "alpha", "zeta"]
    assert [method.label for method in methods] == ["learned objective", "random actions", "alpha", "zeta"]
    assert len({method.colour for method in methods}) == 4
    assert find_method("critic") is METHODS["critic"] and find_method("alpha").label == "alpha"


def test_a_method_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "sac", Method("sac", "SAC (own)", "SAC", "#123456", kind=Reinforce))
    assert [method.name for method in find_methods(["sac", "alpha"])] == ["sac", "alpha"]
    with pytest.raises(ValueError, match="sac is the name of Reinforce, not of CriticObjective"):
        check_method("sac", CriticObjective())


def test_colours_differ() -> None:
    assert len({method.colour for method in METHODS.values()}) == len(METHODS)
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize(
    ("name", "objective", "message"),
    [
        ("critic", Reinforce(), "critic is the name of CriticObjective, not of Reinforce; valid is a name of your own"),
        ("learned", Reinforce(), "learned is the name of ParametricObjective, not of Reinforce"),
        ("untrained", Reinforce(), "untrained is the name of ParametricObjective, not of Reinforce"),
        ("ppo", Reinforce(), r"ppo is the name of PPO \(Stable-Baselines3\), not of an objective; valid is a name of your own"),
        ("random", Reinforce(), "random is the name of random actions, not of an objective"),
        (
            "critic",
            CriticObjective("both"),
            "critic is the name of CriticObjective with critic_gradient_of=first, not both; valid is critic_both, or a name of your own",
        ),
        ("critic_both", CriticObjective(), "with critic_gradient_of=both, not first; valid is critic, or a name of your own"),
    ],
)
def test_names_of_others_are_refused(name: str, objective: Objective, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_method(name, objective)


OBJECTIVES: dict[str, Objective] = {
    "reinforce": Reinforce(),
    "critic": CriticObjective(),
    "critic_both": CriticObjective("both"),
    "untrained": LearnedObjective(hidden_units=4),
}


@pytest.mark.parametrize("name", [None, "own", *OBJECTIVES])
def test_a_name_fits_objectives_of_its_own_kind(name: str | None) -> None:
    fitting = set()
    for kind, objective in OBJECTIVES.items():
        with suppress(ValueError):
            check_method(name, objective)
            fitting.add(kind)
    assert fitting == ({name} if name in OBJECTIVES else {*OBJECTIVES})


def test_references_are_random_actions_and_ddpg() -> None:
    assert [method.name for method in reference_methods()] == ["random", "critic"]


@pytest.mark.parametrize("method", [method for method in METHODS.values() if method.experiment])
def test_the_preset_of_a_method_writes_its_name(method: Method) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"experiment={method.experiment}", "run_dir=x"])
    assert config.callbacks.evaluation.method == method.name


@pytest.mark.parametrize("method", [method for method in METHODS.values() if method.switch])
def test_a_switch_is_an_override_of_the_meta_test(method: Method) -> None:
    assert method.switch is not None
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["run_dir=x", method.switch])
        default = compose("config", ["run_dir=x"])
    assert config.callbacks.meta_test != default.callbacks.meta_test
