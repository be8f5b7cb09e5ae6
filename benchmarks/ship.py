"""Put a meta-trained objective into the package, with a card that names its origin and its scores.

    python benchmarks/ship.py results/protocol/protocol --name light

The runs below the folder differ in their seed alone. The objective that did best on its own training environments is taken. So nothing is
chosen by the scores on other environments.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.results.run_folders import Run, find_runs
from metagenrl_pl.results.scores import Score, aggregate, learning_curves, scores_of, select_normalised
from metagenrl_pl.results.variants import variants_of

PRETRAINED = Path(__file__).parents[1] / "src" / "metagenrl_pl" / "pretrained"


def best_on_training_environments(runs: Sequence[Run], others: Sequence[Run] = ()) -> tuple[Run, list[Score]]:
    """The run with the highest interquartile mean of final scores there, and all scores of its objective.

    Args:
        runs: to choose from.
        others: have what these lack to be normalised by.

    Raises:
        ValueError: if the runs are of several kinds of meta-training, or lack what scores are normalised by.
    """
    variants = variants_of(runs)
    if len(variants) != 1:
        titles = "; ".join(variant.title for variant in variants) or "no learned objective"
        raise ValueError(f"valid are runs that differ in their seed alone, these are: {titles}")
    best: tuple[float, Run, list[Score]] | None = None
    for run in variants[0].runs:
        assert run.origin is not None  # or it were in no variant
        curves, _ = learning_curves([run], [*runs, *others])
        every, notes = scores_of(curves)
        scores = [score for score in every if score.method == "learned"]
        trained_on = [score for score in select_normalised(scores) if score.environment in run.origin.training_environments]
        value = aggregate(trained_on, "learned", lambda score: score.normalised_final)
        if value is not None and math.isfinite(value.mean) and (best is None or value.mean > best[0]):  # NaN: an agent diverged
            best = value.mean, run, scores
    if best is None:
        reasons = "".join(f"; {note}" for note in notes)
        raise ValueError(
            f"no run was tested on an environment that it was meta-trained on, without an agent that diverged{reasons}"
        )
    return best[1:]


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
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument(
        "--baselines", nargs="+", type=Path, default=[], metavar="DIR", help="folders of runs that have the baselines"
    )
    parser.add_argument("--name", required=True, help="what it is called in the package")
    parser.add_argument("--made-by", default="python benchmarks/protocol.py", help="the command that made the runs")
    parser.add_argument("--to", type=Path, default=PRETRAINED, help="folder of the package's objectives")
    options = parser.parse_args()
    try:
        run, scores = best_on_training_environments(find_runs([options.runs])[0], find_runs(options.baselines)[0])
        objective = LearnedObjective.load(run.folder / "objective.safetensors")
    except ValueError as error:
        parser.error(str(error))
    card = {"scores": scores_by_environment(scores), "made_by": options.made_by, "licence": "Apache-2.0"}
    if run.origin is not None and run.origin.is_whole:
        card["settings"] = dict(run.origin.settings)
    options.to.mkdir(parents=True, exist_ok=True)
    objective.save(options.to / f"{options.name}.safetensors", card)
    print(f"{options.to / options.name}.safetensors: {run.name}, {card['scores']}")


if __name__ == "__main__":
    main()
