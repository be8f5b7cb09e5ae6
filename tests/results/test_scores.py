"""Scores over several runs: hand-made `meta_test.csv` files with known numbers."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metagenrl_pl.config.schema import load_config
from metagenrl_pl.results.origin import meta_training_settings
from metagenrl_pl.results.rows import MetaTestRow, append_rows
from metagenrl_pl.results.run_folders import Run, find_runs, read_run
from metagenrl_pl.results.scores import (
    LearningCurve,
    Score,
    aggregate,
    improvement,
    learning_curves,
    raw_scores,
    scores_of,
    select_normalised,
    variant_curves,
)
from metagenrl_pl.results.variants import variants_of


def _curve(environment: str, method: str, seed: int, returns: Mapping[int, float], stage: int | None = None) -> list[MetaTestRow]:
    return [MetaTestRow(environment, method, seed, env_steps, value, stage) for env_steps, value in returns.items()]


BASELINES = [
    *_curve("A", "random", 0, {0: -10.0}),
    *_curve("A", "random", 1, {0: 10.0}),  # mean 0
    *_curve("A", "critic", 0, {100: 20.0, 200: 60.0, 400: 100.0}),
    *_curve("A", "critic", 1, {100: 40.0, 200: 80.0, 400: 300.0}),  # means 30, 70, 200
    *_curve("A", "untrained", 0, {100: 0.0, 200: 0.0, 400: -50.0}, stage=0),
]


def _learned(first: float, environment: str = "A", stage: int = 1000) -> list[MetaTestRow]:
    return _curve(environment, "learned", 0, {100: first, 200: 50.0, 400: 100.0}, stage)


def _folder(path: Path, rows: Iterable[MetaTestRow], seed: int = 0, train: Iterable[Any] = ("A", "T"), **groups: Any) -> Path:
    """A run folder with the least that tells where its objective comes from."""
    append_rows(path / "meta_test.csv", rows)
    groups = {"population": {"size": 4}, "meta": {"gradient": "clip"}, "objective": {"seed": seed}, **groups}
    OmegaConf.save({"seed": seed, "env": {"train": list(train)}, **groups}, path / "config.yaml")
    return path


def _final(score: Score) -> float:
    return score.normalised_final


def _of(scores: list[Score], method: str) -> list[Score]:
    return [score for score in scores if score.method == method]


def _scores(runs: list[Run]) -> dict[tuple[str, str, int | None, int], Score]:
    return {score.agent: score for score in scores_of(learning_curves(runs)[0])[0]}


def test_final_return_and_area_by_hand(tmp_path: Path) -> None:
    run = read_run(_folder(tmp_path, BASELINES + _learned(10.0), seed=7))
    score = _scores([run])["A", "learned", 7, 0]
    # area: widths 100 and 200, heights (10 + 50) / 2 and (50 + 100) / 2, so (3,000 + 15,000) / 300 = 60
    # DDPG/TD3's: heights of its mean (30 + 70) / 2 and (70 + 200) / 2, so (5,000 + 27,000) / 300 = 320 / 3
    assert score == ("A", "learned", 7, 0, 400, 100.0, pytest.approx(60.0), 0.5, pytest.approx(60 * 3 / 320))


def test_normalised_scores_of_the_references(tmp_path: Path) -> None:
    scores = _scores([read_run(_folder(tmp_path, BASELINES + _learned(10.0)))])
    assert [scores["A", "critic", None, seed].normalised_final for seed in (0, 1)] == [0.5, 1.5]
    assert [scores["A", "random", None, seed].normalised_final for seed in (0, 1)] == [-0.05, 0.05]
    areas = [scores["A", "critic", None, seed].normalised_area for seed in (0, 1)]
    assert areas[0] < 1 < areas[1] and sum(areas) == pytest.approx(2.0)


def test_a_single_evaluation_is_its_own_area(tmp_path: Path) -> None:
    rows = [*_curve("A", "random", 0, {0: 0.0}), *_curve("A", "critic", 0, {50: 10.0}), *_curve("A", "learned", 0, {50: 4.0}, 9)]
    score = _scores([read_run(_folder(tmp_path, rows))])["A", "learned", 0, 0]
    assert (score.final, score.area, score.normalised_final, score.normalised_area) == (4.0, 4.0, 0.4, 0.4)


def test_all_are_judged_at_the_same_env_steps(tmp_path: Path) -> None:
    longer = [row._replace(seed=2, env_steps=2 * row.env_steps) for row in BASELINES if row.method == "critic"]  # 200, 400, 800
    scores, notes = scores_of(learning_curves([read_run(_folder(tmp_path, BASELINES + _learned(10.0) + longer[:3]))])[0])
    assert {score.env_steps for score in scores} == {400}
    assert [score.final for score in scores if score.method == "critic"] == [100.0, 300.0, 60.0]  # 60 at 400, 100 at 800
    assert next(score.area for score in scores if score.method == "learned") == 75.0  # from 200 on
    assert notes == ["A: judged at 400 env steps, where all curves are; some go on to 800."]


def test_baselines_of_a_test_of_another_length_do_not_cut_the_curves(tmp_path: Path) -> None:
    """They serve where a reference is missing, and are told of where nothing else has their method."""
    own = read_run(_folder(tmp_path / "own", BASELINES + _learned(10.0)))
    short = _curve("A", "critic", 2, {100: 9.0, 200: 9.0}) + _curve("A", "ppo", 0, {100: 9.0, 200: 9.0})
    long = _curve("A", "critic", 3, {50: 0.0, 100: 1.0, 200: 2.0, 400: 3.0, 800: 4.0})
    others = [
        read_run(_folder(tmp_path / name, rows, meta=None))
        for name, rows in (("short", short), ("long", long), ("own_again", BASELINES[:-3]))
    ]
    curves, notes = learning_curves([own], others)
    assert sorted(curve.seed for curve in curves if curve.method == "critic") == [0, 1, 3]
    assert notes == [
        "ppo of short is left out where it ends before the learned objective or was evaluated elsewhere: A (ends at 200)."
    ]
    assert {score.env_steps for score in scores_of(curves)[0]} == {400}

    alone = read_run(_folder(tmp_path / "alone", BASELINES[:2] + _learned(10.0)))
    curves, _ = learning_curves([alone], others[:1])
    assert {score.env_steps for score in scores_of(curves)[0]} == {200}  # nothing else to normalise by


def test_baselines_count_once_and_learned_objectives_by_their_seed(tmp_path: Path) -> None:
    runs = [
        read_run(_folder(tmp_path / "one", BASELINES + _learned(10.0), seed=1)),
        read_run(_folder(tmp_path / "two", BASELINES[2:] + _learned(20.0), seed=2)),  # the same, random actions left out
        read_run(_folder(tmp_path / "three", _learned(30.0), seed=3)),
    ]
    curves, notes = learning_curves(runs)
    assert notes == []
    assert sorted(curve[1:4] for curve in curves if curve.method != "learned") == [
        ("critic", None, 0),
        ("critic", None, 1),
        ("random", None, 0),
        ("random", None, 1),
        ("untrained", None, 0),
    ]
    learned = {curve.meta_training_seed: curve.returns[0] for curve in curves if curve.method == "learned"}
    assert learned == {1: 10.0, 2: 20.0, 3: 30.0}


def test_only_the_newest_objective_of_a_run_is_scored(tmp_path: Path) -> None:
    rows = BASELINES + _learned(77.0, stage=1000) + _learned(10.0, stage=500)  # not in the order of time
    (curve,) = [c for c in learning_curves([read_run(_folder(tmp_path, rows))])[0] if c.method == "learned"]
    assert curve.returns == (77.0, 50.0, 100.0)


def test_results_that_differ_are_told_and_the_first_count(tmp_path: Path) -> None:
    changed = [row._replace(episode_return=1.0) if row.method == "critic" else row for row in BASELINES]
    one = read_run(_folder(tmp_path / "one", BASELINES + _learned(10.0), seed=1))
    curves, notes = learning_curves([one, read_run(_folder(tmp_path / "two", changed + _learned(10.0), seed=1))])
    assert notes == ["critic on A differs between one and two (2 runs); the former counts."]
    assert [curve.returns[-1] for curve in curves if curve.method == "critic"] == [100.0, 300.0]

    curves, notes = learning_curves([one, read_run(_folder(tmp_path / "three", _learned(11.0), seed=1))])
    assert notes == ["learned on A differs between one and three (1 runs); the former counts."]
    assert [curve.returns[0] for curve in curves if curve.method == "learned"] == [10.0]


@pytest.mark.parametrize("missing", ["random", "critic"])
def test_without_a_reference_there_are_returns_alone(tmp_path: Path, missing: str) -> None:
    rows = [row for row in BASELINES if row.method != missing]
    scores, notes = scores_of(learning_curves([read_run(_folder(tmp_path, rows + _learned(10.0)))])[0])
    (note,) = notes
    assert note.startswith("A is left out of normalised scores") and f"no run has {missing} there" in note
    assert {score.final for score in scores if score.method == "learned"} == {100.0} and select_normalised(scores) == []


def _judged(curves: Iterable[LearningCurve]) -> tuple[set[tuple[str, str, int]], list[str]]:
    """(environment, method, env steps) of what has a score, and the notes."""
    scores, notes = raw_scores(list(curves))
    return {(score.environment, score.method, score.env_steps) for score in scores}, notes


def test_a_short_run_is_left_out_where_it_has_no_evaluation_of_the_others(tmp_path: Path) -> None:
    """Elsewhere it counts."""
    whole = [row for row in BASELINES if row.method != "untrained"]
    append_rows(tmp_path / "whole" / "meta_test.csv", whole)
    short = [
        *_curve("A", "reinforce", 0, {20: 1.0}),
        *_curve("A", "random", 2, {0: 1.0}),
        *_curve("B", "reinforce", 0, {20: 1.0}),
    ]
    append_rows(tmp_path / "short" / "meta_test.csv", short)
    judged, notes = _judged(learning_curves([], find_runs([tmp_path])[0])[0])
    assert judged == {("A", "critic", 400), ("A", "random", 400), ("B", "reinforce", 20)}
    assert notes == [
        "reinforce of short is left out on A: it ends at 20 and has no evaluation at 400 env steps, where others do.",
    ]


def test_where_evaluations_differ_learned_objectives_count_then_the_most_then_the_longest(tmp_path: Path) -> None:
    learned, few, many = ({150: 1.0}, {60: 1.0, 300: 2.0}, {20: 1.0, 40: 2.0})
    runs = {
        "few": [row for seed in (0, 1) for row in _curve("A", "critic", seed, few)],
        "many": [row for seed in (0, 1, 2) for row in _curve("A", "reinforce", seed, many)],
        "also_two": [row for seed in (0, 1) for row in _curve("A", "ppo", seed, many)],
        "learned": _curve("A", "learned", 0, learned, 1000),
    }
    read = {name: read_run(_folder(tmp_path / name, rows)) for name, rows in runs.items()}

    def kept(*names: str) -> set[str]:
        return {method for _, method, _ in _judged(learning_curves([read[name] for name in names])[0])[0]}

    assert kept("few", "also_two") == {"critic"}  # the longest
    assert kept("few", "many") == {"reinforce"} and kept("few", "many", "also_two") == {"reinforce", "ppo"}  # the most
    assert kept(*runs) == {"learned"}
    _, notes = scores_of(learning_curves(list(read.values()))[0])
    assert [note.split(" is left out ")[0] for note in notes] == ["critic of few", "reinforce of many", "ppo of also_two", "A"]


def test_ddpg_below_random_actions_is_left_out_and_told(tmp_path: Path) -> None:
    worse = [row._replace(environment="T") for row in BASELINES if row.method != "critic"]
    worse += _curve("T", "critic", 0, {100: -1.0, 200: -1.0, 400: -1.0}) + _learned(10.0, "T")
    scores, notes = scores_of(learning_curves([read_run(_folder(tmp_path, BASELINES + _learned(10.0) + worse))])[0])
    assert len(notes) == 1 and notes[0].startswith("T is left out of normalised scores")
    assert {score.environment for score in scores} == {"A", "T"}
    assert {score.environment for score in select_normalised(scores)} == {"A"}


def test_agents_of_ddpg_that_diverged_are_left_out_of_what_counts_as_1_and_told(tmp_path: Path) -> None:
    rows = [*BASELINES, *_curve("A", "critic", 2, {100: 0.0, 200: math.nan, 400: math.nan}), *_learned(10.0)]
    scores, notes = scores_of(learning_curves([read_run(_folder(tmp_path, rows))])[0])
    assert notes == ["A: 1 of the agents of DDPG/TD3 diverged; its mean is that of the others."]
    (learned,) = _of(scores, "learned")
    assert learned.normalised_final == 0.5  # 100 of 200
    assert sum(math.isnan(score.normalised_final) for score in _of(scores, "critic")) == 1


def test_agents_of_one_policy_of_rl2_are_not_independent(tmp_path: Path) -> None:
    """They count by meta-training seed, that of their folder. Nothing else about them is a learned objective's."""
    own = read_run(_folder(tmp_path / "own", BASELINES + _learned(10.0)))
    for seed in (0, 1):
        rows = [row for agent in (0, 1) for row in _curve("A", "rl2", 2 * seed + agent, {100: 1.0, 200: 2.0, 400: 100.0 * seed})]
        append_rows(tmp_path / "rl2" / f"seed_{seed}" / "meta_test.csv", rows)
    curves, notes = learning_curves([own], find_runs([tmp_path / "rl2"])[0])
    assert not notes and {(curve.meta_training_seed, curve.seed) for curve in curves if curve.method == "rl2"} == {
        (0, 0),
        (0, 1),
        (1, 2),
        (1, 3),
    }
    interval = aggregate(raw_scores(curves)[0], "rl2", lambda score: score.final)
    assert interval == (50.0, 0.0, 100.0)  # one seed drawn twice; it would be narrower over four agents
    (variant,) = variants_of(find_runs([tmp_path])[0])
    assert [run.name for run in variant.runs] == ["own"]


def test_baselines_of_agents_with_other_settings_are_not_compared(tmp_path: Path) -> None:
    own = _folder(tmp_path / "own", _learned(10.0), agent={"num_windows": 32})
    _folder(tmp_path / "same", BASELINES, agent={"num_windows": 32})
    _folder(tmp_path / "others", [row._replace(seed=row.seed + 2) for row in BASELINES], agent={"num_windows": 16})
    curves, notes = learning_curves([read_run(own)], find_runs([tmp_path])[0])
    assert notes == ["others is not compared: its agents differ in agent.num_windows."]
    assert {curve.run for curve in curves} == {"own", "same"}
    runs = [read_run(tmp_path / name, "one name") for name in ("same", "others")]
    assert {curve.folder.name for curve in learning_curves([read_run(own)], runs)[0]} == {"own", "same"}


def _made_up(values: Mapping[tuple[str, str], Iterable[float]]) -> list[Score]:
    return [
        Score(environment, method, None, seed, 100, value, value, value, value)
        for (environment, method), of_method in values.items()
        for seed, value in enumerate(of_method)
    ]


def test_aggregate_and_improvement_by_hand() -> None:
    scores = _made_up(
        {
            ("A", "learned"): [0.0, 1.0],
            ("B", "learned"): [2.0, 9.0],
            ("A", "critic"): [0.5, 0.5],
            ("B", "critic"): [3.0],
            ("C", "critic"): [8.0],
        }
    )
    interval = aggregate(scores, "learned", _final)
    assert interval is not None and interval.mean == 1.5  # 0 and 9 are cut off
    assert interval.low < 1.5 < interval.high
    wins = improvement(_of(scores, "learned"), _of(scores, "critic"), _final)
    assert wins is not None and wins.mean == 0.5  # half of the pairs in A, half in B; C has one of them only
    assert aggregate(scores, "reinforce", _final) is None
    assert improvement(_of(scores, "learned"), _of(scores, "reinforce"), _final) is None


def test_an_agent_that_diverged_makes_no_mean_and_loses() -> None:
    scores = _made_up({("A", "learned"): [math.nan, 5.0], ("A", "critic"): [1.0, 2.0]})
    interval = aggregate(scores, "learned", _final)
    assert interval is not None and math.isnan(interval.mean)
    for method, other, expected in (("learned", "critic", 0.5), ("critic", "learned", 0.5), ("learned", "learned", 0.5)):
        wins = improvement(_of(scores, method), _of(scores, other), _final)
        assert wins is not None and wins.mean == expected
    assert select_normalised(scores) == scores
    huge = _made_up({("A", "learned"): [math.nan], ("A", "critic"): [-1e20]})
    wins = improvement(_of(huge, "critic"), _of(huge, "learned"), _final)
    assert wins is not None and wins.mean == 1


def test_runs_that_differ_in_their_seed_alone_are_one_regime(tmp_path: Path) -> None:
    for seed in (0, 1):
        _folder(tmp_path / f"clip_{seed}", BASELINES + _learned(seed), seed=seed)
        _folder(tmp_path / f"norm_{seed}", BASELINES + _learned(seed), seed=seed, meta={"gradient": "normalize"})
    _folder(tmp_path / "longer", BASELINES + _learned(5.0, stage=2000))
    _folder(tmp_path / "other", BASELINES + _learned(5.0), train=["B", {"id": "A", "max_episode_steps": 5}])
    append_rows(tmp_path / "baseline" / "meta_test.csv", BASELINES)

    variants = variants_of(find_runs([tmp_path])[0])

    assert {variant.title: [run.name for run in variant.runs] for variant in variants} == {
        "Meta-trained on A, T": ["clip_0", "clip_1"],
        "Meta-trained on A, T (meta.gradient=normalize)": ["norm_0", "norm_1"],  # not as most
        "Meta-trained on A, T (for 2,000 env steps per agent)": ["longer"],
        "Meta-trained on A[max_episode_steps=5], B": ["other"],
    }
    assert all("baseline" in [run.name for run in variant.others] for variant in variants)


def test_a_run_that_is_older_than_a_key_has_its_default(tmp_path: Path) -> None:
    target = {"_target_": "metagenrl_pl.learning.learner.MetaSettings"}
    _folder(tmp_path / "old", BASELINES + _learned(1.0), meta=target, objective={"_target_": "gone.Objective"})
    _folder(
        tmp_path / "new",
        BASELINES + _learned(2.0),
        meta={**target, "critic": "first"},
        seed=1,
        objective={"_target_": "gone.Objective"},
    )
    _folder(
        tmp_path / "second",
        BASELINES + _learned(3.0),
        meta={**target, "critic": "second"},
        objective={"_target_": "gone.Objective"},
    )
    agent = {"_target_": "metagenrl_pl.agents.population.AgentSettings"}
    own = {"_target_": "metagenrl_pl.objectives.LearnedObjective", "seed": 3}
    for name, settings in (
        ("agent", agent),
        ("same_agent", {**agent, "hidden_units": 350}),
        ("other_agent", {**agent, "hidden_units": 3}),
    ):
        _folder(tmp_path / name, BASELINES + _learned(1.0), train=["B"], agent=settings, seed=len(name), objective=own)
    variants = {tuple(sorted(run.name for run in variant.runs)): variant for variant in variants_of(find_runs([tmp_path])[0])}
    assert all("objective.seed" not in run.origin.settings for variant in variants.values() for run in variant.runs if run.origin)
    assert variants.keys() == {("new", "old"), ("second",), ("agent", "same_agent"), ("other_agent",)}
    assert variants["agent", "same_agent"].incomparable == {"other_agent": ["agent.hidden_units"]}


def test_tests_of_another_length_in_the_same_environment_are_another_regime(tmp_path: Path) -> None:
    _folder(tmp_path / "short", BASELINES + _learned(1.0))
    _folder(tmp_path / "long", [row._replace(env_steps=10 * row.env_steps) for row in _learned(2.0)])
    _folder(
        tmp_path / "elsewhere", [row._replace(environment="B", env_steps=10 * row.env_steps) for row in _learned(3.0)], seed=1
    )
    runs = find_runs([tmp_path])[0]
    short, long = (next(run for run in runs if run.name == name) for name in ("short", "long"))
    lengths = {run.name: max(row.env_steps for row in run.rows) for run in (short, long)}
    variants = {tuple(sorted(run.name for run in variant.runs)): variant.title for variant in variants_of(runs)}
    assert len(variants) == 2 and all(("short" in names) != ("long" in names) for names in variants)
    for name, length in lengths.items():
        assert any(name in names and f"tested for {length:,}" in title for names, title in variants.items()), variants


def test_a_test_of_an_objective_from_a_file_joins_the_run_that_made_it(tmp_path: Path) -> None:
    card = {"architecture": {}, "training_environments": ["T", "A"], "num_agents": 4, "seed": 3, "commit": "c0ffee"}
    made = _folder(tmp_path / "made", BASELINES + _learned(1.0), seed=3, agent={"window_length": 6})
    (made / "objective.json").write_text(json.dumps(card))
    _folder(
        tmp_path / "tested",
        [row._replace(environment="B") for row in BASELINES + _learned(1.0)],
        seed=8,
        train=["B"],
        meta=None,
        objective={"path": str(made / "objective.safetensors")},
    )
    (variant,) = variants_of(find_runs([tmp_path])[0])
    assert variant.training_environments == ("A", "T")
    assert {run.name: run.origin and (run.origin.seed, run.origin.commit) for run in variant.runs} == {
        "made": (3, "c0ffee"),
        "tested": (3, "c0ffee"),
    }
    assert {
        (curve.environment, curve.meta_training_seed) for curve in variant_curves(variant)[0] if curve.method == "learned"
    } == {
        ("A", 3),
        ("B", 3),
    }
    # What lies in the run's own folder was tested, whatever the file has become since.
    (tmp_path / "tested" / "objective.json").write_text(json.dumps({**card, "seed": 9}))
    runs, _ = find_runs([tmp_path])
    assert {run.name: run.origin and run.origin.seed for run in runs} == {"made": 3, "tested": 9}


def test_environments_of_earlier_meta_training_are_not_unseen(tmp_path: Path) -> None:
    """Neither in the run that goes on, nor in a test of its objective, nor where only the card of the file it began with is there."""
    first = {"training_environments": ["P"], "seed": 1, "env_steps": 9}
    (tmp_path / "first.json").write_text(json.dumps({**first, "earlier": [{"training_environments": ["O"]}]}))
    earlier = [{"training_environments": ["O"]}, {**first, "architecture": {}}]
    card = {"training_environments": ["H"], "seed": 2, "earlier": earlier}
    given = {"path": str(tmp_path / "first.safetensors"), "frozen": False}
    _folder(tmp_path / "copied", _learned(10.0), train=["H"], objective=given)
    for name, meta in (("continued", {"gradient": "clip"}), ("tested", None)):
        made = _folder(tmp_path / name, _learned(10.0), train=["H"], objective=given, meta=meta)
        (made / "objective.json").write_text(json.dumps(card))
    environments = {run.name: run.origin and run.origin.training_environments for run in find_runs([tmp_path])[0]}
    assert environments == dict.fromkeys(("copied", "continued", "tested"), ("H", "O", "P"))


def test_baselines_of_other_runs_fill_in_where_the_objective_was_tested(tmp_path: Path) -> None:
    _folder(tmp_path / "learned", _learned(10.0))
    append_rows(tmp_path / "baseline" / "meta_test.csv", BASELINES + [BASELINES[2]._replace(environment="B")])
    (variant,) = variants_of(find_runs([tmp_path])[0])
    curves, _ = variant_curves(variant)
    assert {(curve.environment, curve.method) for curve in curves} == {
        ("A", method) for method in ("learned", "critic", "random", "untrained")
    }


def test_a_test_belongs_to_the_meta_training_that_its_card_tells(tmp_path: Path) -> None:
    """Not to another one that differs in what architecture and size do not show."""
    for gradient in ("normalize", "clip"):
        _folder(tmp_path / gradient, BASELINES + _learned(10.0), meta={"gradient": gradient})
    card = {
        "training_environments": ["A", "T"],
        "seed": 1,
        "settings": meta_training_settings(dict(load_config(tmp_path / "clip" / "config.yaml"))),  # type: ignore[arg-type]
    }
    made = _folder(tmp_path / "test", _learned(20.0), train=["A"], meta=None)
    (made / "objective.json").write_text(json.dumps(card))
    members = [sorted(run.name for run in variant.runs) for variant in variants_of(find_runs([tmp_path])[0])]
    assert sorted(members) == [["clip", "test"], ["normalize"]]


def test_an_older_card_does_not_join_objectives_with_options_that_came_later(tmp_path: Path) -> None:
    """It tells the architecture that there was; what has been added since has its default."""
    target = "metagenrl_pl.objectives.LearnedObjective"
    for name, use_advantage in (("with", True), ("without", False)):
        objective = {"_target_": target, "use_time": False, "use_advantage": use_advantage}
        _folder(tmp_path / name, BASELINES + _learned(10.0), objective=objective)
    card = {"architecture": {"use_time": False}, "training_environments": ["A", "T"], "seed": 1}
    tested = _folder(tmp_path / "test", _learned(20.0), train=["A"], meta=None)
    (tested / "objective.json").write_text(json.dumps(card))
    members = [sorted(run.name for run in variant.runs) for variant in variants_of(find_runs([tmp_path])[0])]
    assert sorted(members) == [["test", "without"], ["with"]]


def test_other_agents_and_other_untrained_objectives_are_not_compared(tmp_path: Path) -> None:
    small, large = {"hidden_units": 64}, {"hidden_units": 350}
    learned = _learned(10.0) + [row for row in BASELINES if row.method == "random"]
    _folder(tmp_path / "learned", learned, agent=small, objective={"use_time": True})
    critic = [row for row in BASELINES if row.method == "critic"]
    _folder(tmp_path / "large", [row._replace(episode_return=1e6) for row in critic], agent=large)
    _folder(tmp_path / "small", critic, agent=small)
    untrained = [row for row in BASELINES if row.method == "untrained"]
    _folder(tmp_path / "blind", untrained + _learned(9.0), agent=small, objective={"use_time": False}, seed=1)
    variants = {min(run.name for run in variant.runs): variant for variant in variants_of(find_runs([tmp_path])[0])}
    curves, notes = variant_curves(variants["learned"])
    assert {(curve.method, curve.folder.name) for curve in curves} == {
        ("learned", "learned"),
        ("random", "learned"),
        ("critic", "small"),
    }
    assert notes == ["large is not compared: its agents differ in agent.hidden_units."]


def test_tests_of_one_objective_with_other_agents_are_variants_of_their_own(tmp_path: Path) -> None:
    """Also where their agents have the same numbers, and beside a test whose agents are unknown."""
    card = {"architecture": {}, "training_environments": ["T"], "seed": 1}
    for name, agent in (("small", {"hidden_units": 64}), ("large", {"hidden_units": 256}), ("unknown", {})):
        made = _folder(tmp_path / name, BASELINES + _learned(10.0), meta=None, agent=agent)
        (made / "objective.json").write_text(json.dumps(card))
    variants = variants_of(find_runs([tmp_path])[0])
    assert {variant.title: [run.name for run in variant.runs] for variant in variants} == {
        "Meta-trained on T (tested with agent.hidden_units=256)": ["large", "unknown"],
        "Meta-trained on T (tested with agent.hidden_units=64)": ["small"],
    }
    assert [dict(variant.incomparable) for variant in variants] == [
        {"small": ["agent.hidden_units"]},
        {"large": ["agent.hidden_units"]},
    ]


def test_curves_of_runs_with_other_agents_are_not_put_together(tmp_path: Path) -> None:
    for seed, units in enumerate((64, 256, 64)):
        rows = [row._replace(seed=row.seed + 2 * seed) for row in BASELINES]
        _folder(tmp_path / f"run_{seed}", rows, meta=None, agent={"hidden_units": units})
    curves, notes = learning_curves(find_runs([tmp_path])[0])
    assert {curve.run for curve in curves} == {"run_0", "run_2"}
    assert notes == ["run_1 is not compared: its agents differ in agent.hidden_units."]


def test_names_are_short_and_each_run_counts_once(tmp_path: Path) -> None:
    for name in ("sweep/0", "sweep/1"):
        _folder(tmp_path / name, BASELINES)
    OmegaConf.save({"seed": 0}, _made(tmp_path / "crashed") / "config.yaml")
    runs, notes = find_runs([tmp_path / "sweep" / "0", tmp_path])
    assert [run.name for run in runs] == ["sweep/0", "sweep/1"]
    assert notes == ["crashed is left out: it has a config.yaml and no meta_test.csv."]


def test_a_named_run_that_was_not_tested_is_left_out_beside_others(tmp_path: Path) -> None:
    _folder(tmp_path / "tested", BASELINES)
    OmegaConf.save({"seed": 0}, _made(tmp_path / "begun") / "config.yaml")
    with pytest.warns(match=r"^begun is left out: it has a config.yaml and no meta_test.csv"):
        runs, notes = find_runs([tmp_path / "begun", tmp_path / "tested"])
    assert [run.name for run in runs] == ["tested"] and len(notes) == 1
    with pytest.raises(ValueError, match="^.*/empty: no meta_test.csv in this folder or below"):
        find_runs([tmp_path / "tested", _made(tmp_path / "empty")])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_run_that_is_not_readable_is_left_out_beside_others(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        append_rows(tmp_path / name / "meta_test.csv", [MetaTestRow("A", "random", 0, 0, 1.0)])
    (tmp_path / "bad" / "objective.json").write_text("{")
    with pytest.warns(match=r"^bad is left out: .*/bad/objective.json is not readable: "):
        runs, notes = find_runs([tmp_path])
    assert [run.name for run in runs] == ["good"] and len(notes) == 1


HEADER = "environment,method,seed,env_steps,return,meta_training_env_steps\n"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, ": no such folder"),
        ({}, ": no meta_test.csv in this folder or below"),
        ({"meta_test.csv": HEADER}, "/meta_test.csv: no result in it"),
        ({"meta_test.csv": "environment,method,seed\nA,critic,0\n"}, "/meta_test.csv has the columns environment,method,seed"),
        ({"meta_test.csv": f"{HEADER}A,random,0,0,1.0,\n", "objective.json": "{"}, "/objective.json is not readable"),
        ({"meta_test.csv": f"{HEADER}A,learned,0,100,1.0,9\n"}, ": no file says how its learned objective was meta-trained"),
        (
            {"meta_test.csv": f"{HEADER}A,learned,0,100,1.0,9\n", "config.yaml": "seed: 3\n"},
            "/config.yaml is no config of a run",
        ),
        (
            {"meta_test.csv": f"{HEADER}A,learned,0,100,1.0,9\n", "config.yaml": "seed: 3\nenv: {train: [{name: B}]}\n"},
            "/config.yaml is no config of a run, .*needs an id",
        ),
    ],
)
def test_errors_name_the_folder(files: Mapping[str, str] | None, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" if files is None else _made(tmp_path / "run")
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"^{folder}{told}"):
        find_runs([folder])
    if folder.is_dir():
        with pytest.raises(ValueError, match=f"^{folder}{told.removesuffix(' in this folder or below')}"):
            read_run(folder)


@pytest.mark.parametrize("is_learned", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("objective.json", {"training_environments": None}, "training_environments is null; valid is a list of names"),
        ("objective.json", {"training_environments": 3}, "training_environments is 3; valid is a list of names"),
        ("objective.json", {"training_environments": [1]}, "training_environments is [1]; valid is a list of names"),
        ("objective.json", {"seed": [1]}, "seed is [1]; valid is a whole number"),
        ("objective.json", {"seed": {"a": 1}}, "seed is a mapping; valid is a whole number"),
        ("objective.json", {"window_length": "ten"}, "window_length is 'ten'; valid is a whole number or null"),
        ("objective.json", {"settings": 3}, "settings is 3; valid is a mapping"),
        ("objective.json", {"architecture": [3]}, "architecture is [3]; valid is a mapping"),
        ("objective.json", {"earlier": [3]}, "earlier is [3]; valid is a list of mappings"),
        ("objective.json", {"earlier": [{"training_environments": 3}]}, "earlier[0].training_environments is 3; valid is a list"),
        *(
            ("config.yaml", {group: 3}, f"{group} is 3; valid is a mapping or null")
            for group in ("objective", "agent", "population", "inner", "judge", "meta", "env")
        ),
        ("config.yaml", {"agent": [3], "meta": {"advantage_share": 0.5}}, "agent is [3]; valid is a mapping or null"),
        ("config.yaml", {"env": {"train": 3}}, "env.train is 3; valid is a list"),
        ("config.yaml", {"seed": [1]}, "seed is [1]; valid is a whole number"),
        ("config.yaml", {"agent": {"window_length": "ten"}}, "agent.window_length is 'ten'; valid is a whole number or null"),
        ("config.yaml", {"objective": {"path": 3}}, "objective.path is 3; valid is a text or null"),
    ],
)
def test_a_file_of_another_structure_leaves_out_its_run_alone(
    name: str, content: dict[str, Any], told: str, is_learned: bool, tmp_path: Path
) -> None:
    _folder(tmp_path / "good", BASELINES + _learned(10.0))
    bad = _folder(tmp_path / "bad", BASELINES + (_learned(9.0) if is_learned else []), meta=None)
    (bad / "objective.json").write_text(json.dumps({"training_environments": ["A"], "seed": 1}))
    stored: Any = OmegaConf.to_container(load_config(bad / name))  # JSON is YAML
    (bad / name).write_text(json.dumps({**stored, **content}))
    with pytest.warns(match=re.escape(f"bad is left out: {bad / name} is not readable: {told}")):
        runs, _ = find_runs([tmp_path])
    assert [run.name for run in runs] == ["good"]


def test_titles_name_classes_by_their_last_word(tmp_path: Path) -> None:
    for name, judge in (("a", "CriticJudge"), ("b", "ReturnsJudge")):
        _folder(tmp_path / name, _learned(1.0), judge={"_target_": f"metagenrl_pl.learning.judges.{judge}"})
    titles = [variant.title for variant in variants_of(find_runs([tmp_path])[0])]
    assert titles[0].startswith("Meta-trained on A, T (judge=CriticJudge") and "judge=ReturnsJudge" in titles[1]
