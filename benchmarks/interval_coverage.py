"""How sure the intervals are: how often two equal methods would be called better or worse.

    python benchmarks/interval_coverage.py [--repeats 400] [--out results/interval_coverage.csv]

Objectives are meta-trained with several seeds and tested with three fresh agents each in four environments. The other method has nine
independent agents in each. All returns are drawn from normal distributions, and both methods are equally good. So each verdict
"better" or "worse" is an error, and an interval of 95 % should allow 5 % of them.

`spread` is how much seeds of meta-training differ, as a multiple of how much the agents of one seed do. "Shared": a good seed is good in
all environments. "Own": each environment has good seeds of its own. The first line says how large the spread is in the results of this
repository, over variants and environments with three seeds or more.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metagenrl_pl.common.files import path_argument, write_csv
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.results.methods import LEARNED
from metagenrl_pl.results.run_folders import find_runs
from metagenrl_pl.results.scores import raw_scores, variant_curves
from metagenrl_pl.results.statistics import by_seed, mean_interval, mean_interval_over_seeds, probability_of_improvement
from metagenrl_pl.results.variants import variants_of

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = ("seeds", "spread", "of_seeds", "verdicts", "t_over_agents_misses", "t_over_seeds_misses")
NUM_ENVIRONMENTS, AGENTS_PER_SEED, NUM_OTHERS, NUM_RESAMPLES = 4, 3, 9, 500


def simulate(num_seeds: int, spread: float, is_shared: bool, repeats: int) -> tuple[float, float, float]:
    """Shares of errors: verdicts of the bootstrap, and Student-t intervals of a mean that miss it, over agents and over seeds."""
    rng = np.random.default_rng(0)
    errors = np.zeros(3)
    for repeat in range(repeats):
        of_seeds = rng.normal(0, spread, (1 if is_shared else NUM_ENVIRONMENTS, num_seeds)) * np.ones((NUM_ENVIRONMENTS, 1))
        returns = of_seeds[..., None] + rng.normal(0, 1, (NUM_ENVIRONMENTS, num_seeds, AGENTS_PER_SEED))
        others = rng.normal(0, np.hypot(1, spread), (NUM_ENVIRONMENTS, NUM_OTHERS))
        own = [{seed: agents.tolist() for seed, agents in enumerate(environment)} for environment in returns]
        wins = probability_of_improvement(own, [{None: agents.tolist()} for agents in others], NUM_RESAMPLES, repeat)
        means = mean_interval(returns[0].ravel()), mean_interval_over_seeds(own[0])
        errors += [wins.low > 0.5 or wins.high < 0.5, *(interval.low > 0 or interval.high < 0 for interval in means)]
    verdicts, over_agents, over_seeds = (errors / repeats).tolist()
    return verdicts, over_agents, over_seeds


def measured_spreads(folder: Path) -> list[float]:
    """Of the final returns in run folders: the standard deviation of seeds' means, over that of the agents of a seed."""
    spreads = []
    for variant in variants_of(find_runs([folder])[0]):
        scores = [score for score in raw_scores(variant_curves(variant)[0])[0] if score.method == LEARNED.name]
        for environment in {score.environment for score in scores}:
            of_seeds = by_seed((s.meta_training_seed, s.final) for s in scores if s.environment == environment)
            agents = [np.array(values) for values in of_seeds.values() if len(values) > 2]
            if len(agents) < 3 or not all(np.isfinite(values).all() and values.std() for values in agents):
                continue
            within = float(np.mean([values.var(ddof=1) for values in agents]))
            noise = within * float(np.mean([1 / len(values) for values in agents]))  # of the means, by agents alone
            between = float(np.var([values.mean() for values in agents], ddof=1)) - noise
            spreads.append(max(between, 0.0) ** 0.5 / within**0.5)
    return spreads


def rows(repeats: int) -> Iterator[tuple[int, float, str, float, float, float]]:
    """One for each number of seeds and spread, as `COLUMNS`; each is printed."""
    for num_seeds in (2, 3, 5, 9):
        for spread in (0.0, 0.5, 1.0):
            for is_shared in (True, False) if spread else (True,):
                row = num_seeds, spread, "shared" if is_shared else "own", *simulate(num_seeds, spread, is_shared, repeats)
                print(*row, flush=True)
                yield row


def main() -> None:
    """Simulate, print, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400, help="comparisons for each row")
    parser.add_argument("--out", type=path_argument, default=Path("results/interval_coverage.csv"))
    options = parser.parse_args()
    spreads = measured_spreads(RESULTS)
    quartiles = ", ".join(f"{value:.2f}" for value in np.quantile(spreads, (0.25, 0.5, 0.75, 0.9)))
    print(f"spread in {RESULTS.name}: quantiles 25, 50, 75, 90 % are {quartiles} ({len(spreads)} variants and environments)")
    print(*COLUMNS)
    try:
        write_csv(options.out, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in list(rows(options.repeats))))
    except OSError as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
