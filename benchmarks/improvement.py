"""Final returns of an objective's fresh agents beside those of other methods, and the probability that one of them has the higher return.

    python benchmarks/improvement.py results/paper_inputs/seed_* --others results/paper_inputs/baselines [--envs Hopper-v5 ...] \\
        [--env-steps N]

Prints two tables, with every environment that the objective was tested in, or those of `--envs`. None is left out because DDPG/TD3 does
badly there, as in the report's scores, which are normalised by it. Runs that meta-trained objectives of several seeds count as one method.
What they tested beside their objectives counts as well. With `--env-steps`, evaluations after N env steps of the fresh agents do not count,
so longer tests can be compared with shorter ones. All runs should have an evaluation at N; notes name those that are left out.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from metagenrl_pl.common.files import path_argument
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.results.methods import LEARNED, find_method
from metagenrl_pl.results.run_folders import Run, depends_on_meta_training, find_runs
from metagenrl_pl.results.scores import Score, improvement, learning_curves, raw_scores
from metagenrl_pl.results.variants import with_the_same_agents
from side_by_side import positive


def scores_in(
    folders: Sequence[Path], others: Sequence[Path], environments: Sequence[str] | None = None, env_steps: float = math.inf
) -> tuple[list[Score], list[str]]:
    """The raw scores of all agents, in the environments in which the learned objectives were tested, and what was left out.

    Args:
        folders: of the objectives.
        others: of other methods.
        environments: those of them that count; all by default.
        env_steps: of fresh agents, after which evaluations do not count.

    Raises:
        ValueError: if there is no such folder, or no learned objective was tested in an environment.
    """
    runs, untested = find_runs(folders)
    found, others_untested = find_runs(others) if others else ([], [])
    runs, found = ([_until(env_steps, run) for run in some] for some in (runs, found))
    # An objective of `others` is not part of the method.
    comparable, incomparable = with_the_same_agents(runs, found)
    references = [run._replace(rows=[row for row in run.rows if not depends_on_meta_training(row)]) for run in comparable]
    curves, contradictions = learning_curves(runs)
    others_curves, others_contradictions = learning_curves(references)
    known = {curve.agent for curve in curves}
    curves += [curve for curve in others_curves if curve.agent not in known]
    notes = [*untested, *others_untested, *incomparable, *contradictions, *others_contradictions]
    tested = {curve.environment for curve in curves if curve.method == LEARNED.name}
    if not tested:
        raise ValueError(f"{', '.join(map(str, folders))}: no learned objective was tested there")
    chosen = tested if environments is None else set(environments)
    if unknown := chosen - tested:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no learned objective was tested there; valid: {', '.join(sorted(tested))}"
        )
    scores, more = raw_scores([curve for curve in curves if curve.environment in chosen])
    return scores, [*notes, *more]


def _until(env_steps: float, run: Run) -> Run:
    return run._replace(rows=[row for row in run.rows if row.env_steps <= env_steps])


def tables(scores: Sequence[Score]) -> str:
    """Both tables, in Markdown."""
    returns: dict[str, dict[str, dict[int | None, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for score in scores:
        returns[score.method][score.environment][score.meta_training_seed].append(score.final)
    environments = sorted({score.environment for score in scores})
    header = "| " + " | ".join(["", *environments]) + " |\n|" + "---|" * (1 + len(environments))
    lines = ["Final returns: each agent of the objectives, and means over agents (their number).", "", header]
    for seed in sorted({seed for of_seeds in returns[LEARNED.name].values() for seed in of_seeds if seed is not None}):
        cells = [", ".join(f"{value:,.0f}" for value in returns[LEARNED.name][name][seed]) for name in environments]
        lines.append(f"| learned, seed {seed} | {' | '.join(cells)} |")
    for method, of_environments in returns.items():
        cells = []
        for name in environments:
            values = [value for of_seed in of_environments[name].values() for value in of_seed]
            cells.append(f"{sum(values) / len(values):,.0f} ({len(values)})" if values else "-")
        lines.append(f"| {find_method(method).label} | {' | '.join(cells)} |")
    lines += ["", "Probability that an agent of the objectives has the higher final return, with its 95 % interval.", ""]
    lines.append(header.replace("|  |", "|  | all |", 1) + "---|")
    learned = [score for score in scores if score.method == LEARNED.name]
    for method in returns:
        if method == LEARNED.name:
            continue
        others = [score for score in scores if score.method == method]
        every, *each = (
            improvement([s for s in learned if s.environment in chosen], others, lambda score: score.final)
            for chosen in (environments, *([name] for name in environments))
        )
        if every is not None:
            cells = ["-" if value is None else f"{value.mean:.2f}" for value in each]
            interval = f"{every.mean:.2f} [{every.low:.2f}, {every.high:.2f}]"
            lines.append(f"| {find_method(method).label} | {interval} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", type=path_argument, help="of runs that meta-trained or tested one kind of objective"
    )
    parser.add_argument("--others", nargs="+", type=path_argument, default=[], help="of runs of other methods")
    parser.add_argument("--env-steps", type=positive, default=math.inf, metavar="N", help="after which evaluations do not count")
    parser.add_argument("--envs", nargs="+", metavar="ID", help="by default all in which the objective was tested")
    options = parser.parse_args()
    try:
        scores, notes = scores_in(options.folders, options.others, options.envs, options.env_steps)
        print(tables(scores))
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
