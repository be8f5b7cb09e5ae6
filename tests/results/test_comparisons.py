"""All methods side by side: names, what counts, verdicts."""

import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metagenrl_pl.results.comparisons import Comparison, Verdict, comparisons_of, reference_entry, verdict_on
from metagenrl_pl.results.methods import METHODS
from metagenrl_pl.results.rows import MetaTestRow, append_rows
from metagenrl_pl.results.run_folders import find_runs
from metagenrl_pl.results.scores import Score
from metagenrl_pl.results.statistics import Interval
from metagenrl_pl.results.variants import variants_of


def _final(score: Score) -> float:
    return score.final


def _run(folder: Path, seed: int, learned: float, num_agents: int = 5, env_steps: int = 10, **config: Any) -> None:
    """Random 0, DDPG/TD3 10 + agent, untrained -1, the learned objective as given plus its agent's number; trained in Seen."""
    values = {"critic": 10.0, "untrained": -1.0, "learned": learned}
    stages = {"untrained": 0, "learned": 100}
    rows = [MetaTestRow(name, "random", agent, 0, 0.0) for name in ("Seen", "New") for agent in range(num_agents)]
    rows += [
        MetaTestRow(name, method, agent, env_steps, value + agent, stages.get(method))
        for name in ("Seen", "New")
        for method, value in values.items()
        for agent in range(num_agents)
    ]
    append_rows(folder / "meta_test.csv", rows)
    made = {"seed": seed, "env": {"train": ["Seen"]}, "population": {"size": 2}, "meta": {}, "agent": {"window_length": 4}}
    OmegaConf.save({**made, **config}, folder / "config.yaml")


def _compare(folder: Path) -> list[Comparison]:
    return comparisons_of(variants_of(find_runs([folder])[0]))


def test_every_method_is_one_entry(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        _run(tmp_path / "good" / f"seed_{seed}", seed, 100.0 + seed)
        _run(tmp_path / "more" / "bad" / f"seed_{seed}_agents_0", seed, 1.0, meta={"gradient": "clip"})
    (comparison,) = _compare(tmp_path)
    assert [entry.name for entry in comparison.entries] == ["good", "bad", "untrained objective", "DDPG/TD3", "random actions"]
    assert [len(entry.scores) for entry in comparison.entries] == [30, 30, 10, 10, 10]
    assert comparison.environments_of("unseen") == ["New"] and comparison.environments_of("training") == ["Seen"]
    good, bad, _, critic, _ = comparison.entries
    assert reference_entry(comparison) == critic
    score = comparison.score_of(good, "unseen", _final)
    assert score is not None and score.mean == pytest.approx(103.0)
    for entry, verdict in ((good, Verdict.BETTER), (bad, Verdict.WORSE), (critic, Verdict.LEVEL)):
        assert comparison.improvement_over(entry, critic, "unseen", _final)[1] == verdict


def test_a_verdict_needs_five_agents_on_each_side_in_every_environment(tmp_path: Path) -> None:
    _run(tmp_path / "run", 0, 100.0, num_agents=4)
    (comparison,) = _compare(tmp_path)
    learned, _, critic, _ = comparison.entries
    wins, verdict = comparison.improvement_over(learned, critic, "unseen", _final)
    assert wins == (1.0, 1.0, 1.0) and verdict == Verdict.TOO_FEW
    assert verdict_on(Interval(0.8, 0.5, 1.0), 9) == Verdict.LEVEL  # its interval includes a draw
    assert verdict_on(Interval(0.2, 0.0, 0.4), 5) == Verdict.WORSE
    assert verdict_on(Interval(1.0, math.nan, math.nan), 9) == Verdict.TOO_FEW


def test_two_seeds_of_meta_training_are_too_few_for_a_verdict_and_one_is_an_objective_of_its_own(tmp_path: Path) -> None:
    for seed, verdict in enumerate((Verdict.BETTER, Verdict.TOO_FEW_SEEDS, Verdict.BETTER)):
        _run(tmp_path / f"seed_{seed}", seed, 100.0)
        (comparison,) = _compare(tmp_path)
        learned, _, critic, _ = comparison.entries
        assert comparison.improvement_over(learned, critic, "unseen", _final)[1] == verdict


def test_variants_that_are_judged_elsewhere_or_have_other_agents_stand_apart(tmp_path: Path) -> None:
    _run(tmp_path / "short", 0, 1.0)
    _run(tmp_path / "long", 1, 1.0, env_steps=20)
    _run(tmp_path / "wide", 2, 1.0, agent={"window_length": 4, "hidden_units": 350})
    comparisons = _compare(tmp_path)
    assert len(comparisons) == 3 and all(len(comparison.learned) == 1 for comparison in comparisons)


def test_untrained_objectives_of_another_kind_are_an_entry_of_their_own(tmp_path: Path) -> None:
    _run(tmp_path / "one", 0, 1.0, objective={"hidden_units": 4})
    _run(tmp_path / "two", 0, 1.0, objective={"hidden_units": 8})
    rows = (tmp_path / "two" / "meta_test.csv").read_text().replace("untrained,0,10,-1.0", "untrained,0,10,-3.0")
    (tmp_path / "two" / "meta_test.csv").write_text(rows)
    (comparison,) = _compare(tmp_path)
    assert {"untrained objective", "untrained objective (two)"} <= {entry.name for entry in comparison.entries}


def test_an_untrained_agent_that_diverged_is_the_same_in_every_variant(tmp_path: Path) -> None:
    for name, objective in (("one", {"hidden_units": 4}), ("two", {"hidden_units": 8})):
        _run(tmp_path / name, 0, 1.0, objective=objective)
        rows = (tmp_path / name / "meta_test.csv").read_text().replace("untrained,0,10,-1.0", "untrained,0,10,nan")
        (tmp_path / name / "meta_test.csv").write_text(rows)
    (comparison,) = _compare(tmp_path)
    assert [entry.name for entry in comparison.entries if "untrained" in entry.name] == ["untrained objective"]


def test_folders_that_share_a_name_are_numbered(tmp_path: Path) -> None:
    for index, parent in enumerate(("a", "b")):
        _run(tmp_path / parent / "same" / "seed_0", 0, 1.0, meta={"gradient": f"kind_{index}"})
    (comparison,) = _compare(tmp_path)
    assert [entry.name for entry in comparison.learned] == ["same", "same (2)"]


def test_no_label_of_a_method_makes_a_list_ambiguous() -> None:
    assert not [method.name for method in METHODS.values() if "," in method.label + method.short_label]
