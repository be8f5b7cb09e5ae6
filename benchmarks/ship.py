"""Put a meta-trained objective into the package, with a card that names its origin and its scores.

    python benchmarks/ship.py results/protocol/light results/protocol/more_agents/light results/light_training results/light_validation \\
        results/validation/protocol --baselines results/protocol/baselines results/validation/baselines --name light

The runs in and below the folders meta-trained objectives that differ in their seed alone, or tested them. The objective that did best on
the validation environments is taken, so nothing is chosen by the scores on unseen ones. One that fails in an environment that it was
meta-trained on is not taken.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metagenrl_pl.common.files import path_argument
from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.results.run_folders import Run, find_runs
from metagenrl_pl.results.scores import Score, aggregate, learning_curves, scores_of, select_normalised
from metagenrl_pl.results.variants import variants_of

PRETRAINED = Path(__file__).parents[1] / "src" / "metagenrl_pl" / "pretrained"


VALIDATION = ("InvertedDoublePendulum-v5", "Walker2d-v5")
"""The protocol's validation environments (docs/protocol.md)."""

FAILED_BELOW = 0.5
"""The normalised score (random actions 0, DDPG/TD3 1) below which an agent in a training environment counts as failed."""


def best_on_validation(
    runs: Sequence[Run], others: Sequence[Run] = (), validation: Sequence[str] = VALIDATION
) -> tuple[Run, list[Score]]:
    """The run whose objective has the highest interquartile mean of final scores there, and all scores of that objective.

    Args:
        runs: meta-trained objectives of several seeds, or tested them.
        others: have what these lack to be normalised by.
        validation: environments.

    Raises:
        ValueError: if the runs are of several kinds of meta-training, lack what scores are normalised by, or no objective was tested
            in all validation environments, and in all of its training environments without a failure.
    """
    variants = variants_of(runs)
    if len(variants) != 1:
        titles = "; ".join(variant.title for variant in variants) or "no learned objective"
        raise ValueError(f"valid are runs that differ in their seed alone, these are: {titles}")
    best: tuple[float, Run, list[Score]] | None = None
    reasons: list[str] = []
    of_seeds: dict[int, list[Run]] = {}
    for run in variants[0].runs:
        assert run.origin is not None  # or it were in no variant
        of_seeds.setdefault(run.origin.seed, []).append(run)
    for seed, tests in of_seeds.items():
        every, notes = scores_of(learning_curves(tests, [*runs, *others])[0])
        scores = [score for score in every if score.method == "learned"]
        reasons += notes
        if problem := _problem_in_training(scores, variants[0].training_environments):
            reasons.append(f"seed {seed}: {problem}")
            continue
        there = [score for score in select_normalised(scores) if score.environment in validation]
        if missing := set(validation) - {score.environment for score in there}:  # or seeds would be compared in different ones
            reasons.append(f"seed {seed}: no result in {', '.join(sorted(missing))}")
            continue
        value = aggregate(there, "learned", lambda score: score.normalised_final)
        if value is None or not math.isfinite(value.mean):
            reasons.append(f"seed {seed}: an agent diverged in {' or '.join(validation)}")
        elif best is None or value.mean > best[0]:
            best = value.mean, next((run for run in tests if run.meta_trains), tests[0]), scores
    if best is None:
        raise ValueError("; ".join(dict.fromkeys(["no objective can be taken", *reasons])))
    return best[1:]


def _problem_in_training(scores: Sequence[Score], environments: Sequence[str]) -> str | None:
    """Why an objective is not taken for its scores in its training environments; None if there is no reason."""
    for environment in environments:
        finals = [score.normalised_final for score in scores if score.environment == environment]
        if not finals:
            return f"not tested in {environment}"
        if not min(finals) >= FAILED_BELOW:  # NaN as well
            return f"an agent in {environment}, where it was meta-trained, scored {min(finals):.2f}"
    return None


def scores_by_environment(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Mean final return and mean normalised score (random actions 0, DDPG/TD3 1; null where there is none) of each environment."""
    summary: dict[str, dict[str, Any]] = {}
    for environment in sorted({score.environment for score in scores}):
        own = [score for score in scores if score.environment == environment]
        summary[environment] = {
            "env_steps": own[0].env_steps,
            "agents": len(own),
            "return": round(sum(score.final for score in own) / len(own), 1),
            "normalised": round(mean, 2)
            if math.isfinite(mean := sum(score.normalised_final for score in own) / len(own))
            else None,
        }
    return summary


def main() -> None:
    """Choose an objective, copy it and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=path_argument, help="folders of the runs")
    parser.add_argument(
        "--baselines", nargs="+", type=path_argument, default=[], metavar="DIR", help="folders of runs that have the baselines"
    )
    parser.add_argument("--validation", nargs="+", default=VALIDATION, metavar="ENVIRONMENT", help="those that choose")
    parser.add_argument("--name", required=True, help="what it is called in the package")
    parser.add_argument("--made-by", default="python benchmarks/protocol.py", help="the command that made the runs")
    parser.add_argument("--to", type=path_argument, default=PRETRAINED, help="folder of the package's objectives")
    options = parser.parse_args()
    try:
        run, scores = best_on_validation(find_runs(options.runs)[0], find_runs(options.baselines)[0], options.validation)
        objective = LearnedObjective.load(run.folder / "objective.safetensors")
        card = {"scores": scores_by_environment(scores), "made_by": options.made_by, "licence": "Apache-2.0"}
        card["chosen_by"] = list(options.validation)
        if run.origin is not None and run.origin.is_whole:
            card["settings"] = dict(run.origin.settings)
        options.to.mkdir(parents=True, exist_ok=True)
        objective.save(options.to / f"{options.name}.safetensors", card)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{options.to / options.name}.safetensors: {run.name}, {card['scores']}")


if __name__ == "__main__":
    main()
