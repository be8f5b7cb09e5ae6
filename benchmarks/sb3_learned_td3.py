"""`LearnedTD3` against TD3 of Stable-Baselines3, as its users call them: returns at equal env steps, and updates per second.

    pip install -e ".[train,sb3]"
    python benchmarks/sb3_learned_td3.py [--objectives light mixture] [--envs ID ...] [--seeds 0 1 2 3 4] [--env-steps 40000] [--jobs 2]
                                         [--out results/sb3_learned_td3]

Both get the same arguments, and everything else is a default. Writes `returns.csv` (a line for each evaluation of an agent; agents that are
in it are not trained again), `learning_curves.png` (means over seeds with 95 % intervals) and `speed.csv` (updates per second of each
method in turns, on one thread). Prints final returns, and the probability that an agent of an objective is above one of TD3.
"""

import argparse
import importlib.util
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from metagenrl_pl.common.files import append_csv, path_argument, read_csv, write_csv
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.integrations import find_objective
from metagenrl_pl.reporting.numbers import format_interval
from metagenrl_pl.results.provenance import add_provenance
from metagenrl_pl.results.statistics import mean_interval, probability_of_improvement

ENVIRONMENTS = ["Hopper-v5", "HalfCheetah-v5", "Pusher-v5", "Swimmer-v5"]
"""None of them was used to meta-train the package's objectives."""

TD3 = "td3"
NUM_TURNS = 9


class Return(NamedTuple):
    """A line of `returns.csv`: the mean return of noise-free episodes after some env steps of training."""

    environment: str
    method: str
    seed: int
    env_steps: int
    mean_return: float


def make_model(method: str, env: str, seed: int) -> Any:
    """TD3, or LearnedTD3 with the objective that `method` names. Networks have the width that objectives were meta-trained with."""
    from stable_baselines3 import TD3 as PlainTD3
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise

    from metagenrl_pl.integrations.sb3 import LearnedTD3

    vec_env = make_vec_env(env, seed=seed)
    num_actions = vec_env.action_space.shape[0]  # type: ignore[index]
    common: dict[str, Any] = {
        "policy_kwargs": {"net_arch": [64, 64]},
        "action_noise": NormalActionNoise(np.zeros(num_actions), np.full(num_actions, 0.1)),
        "learning_starts": 1000,
        "seed": seed,
        "device": "cpu",
    }
    return PlainTD3("MlpPolicy", vec_env, **common) if method == TD3 else LearnedTD3("MlpPolicy", vec_env, method, **common)


def train_agent(agent: tuple[str, str, int], env_steps: int, interval: int, num_episodes: int) -> list[Return]:
    """The evaluations of one agent, given its environment, method and seed."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    torch.set_num_threads(1)
    environment, method, seed = agent
    model, test_env, rows = make_model(method, environment, seed), make_vec_env(environment, seed=10_000 + seed), []

    class Evaluation(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % interval == 0 or self.num_timesteps == env_steps:
                mean = evaluate_policy(self.model, test_env, num_episodes, warn=False)[0]
                rows.append(Return(environment, method, seed, self.num_timesteps, float(np.mean(mean))))
            return True

    model.learn(env_steps, Evaluation())
    return rows


def read_returns(file: Path) -> list[Return]:
    """The lines of `returns.csv`; none if there is no file."""
    if not file.exists():
        return []
    cells = ([row[name] for name in Return._fields] for row in read_csv(file)[1])
    return [Return(environment, method, int(seed), int(steps), float(mean)) for environment, method, seed, steps, mean in cells]


def train_agents(options: argparse.Namespace) -> list[Return]:
    """Train the agents that `returns.csv` lacks, in processes side by side. Returns the lines of all that are wanted.

    Raises:
        ValueError: if the file holds an agent that was tested at other env steps.
    """
    file = options.out / "returns.csv"
    interval = max(1, options.env_steps // 10)
    done: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for row in read_returns(file):
        done[row[:3]].append(row.env_steps)
    for agent, steps in done.items():
        if steps != sorted({*range(interval, options.env_steps + 1, interval), options.env_steps}):
            raise ValueError(f"{file} holds {', '.join(map(str, agent))}, tested at other env steps; valid is another --out")
    methods = [TD3, *options.objectives]
    wanted = [(environment, method, seed) for seed in options.seeds for environment in options.envs for method in methods]
    train = partial(train_agent, env_steps=options.env_steps, interval=interval, num_episodes=options.episodes)
    left = [agent for agent in wanted if agent not in done]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for rows in pool.map(train, left) if options.jobs > 1 else map(train, left):
            append_csv(file, Return._fields, (row._asdict() for row in rows))
            print(f"{rows[-1].environment}, {rows[-1].method}, seed {rows[-1].seed}: {rows[-1].mean_return:,.1f}", flush=True)
    return [row for row in read_returns(file) if row[:3] in wanted]


def draw(rows: Sequence[Return], file: Path) -> None:
    """Learning curves, a panel for each environment: means over seeds, with 95 % intervals."""
    cells: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row.environment, row.method][row.env_steps].append(row.mean_return)
    environments = list(dict.fromkeys(row.environment for row in rows))
    figure = Figure((3.2 * len(environments), 3), layout="constrained")
    for panel, environment in zip(np.ravel(figure.subplots(1, len(environments))), environments, strict=True):
        for (where, method), returns in cells.items():
            if where == environment:
                steps = sorted(returns)
                intervals = [mean_interval(returns[step]) for step in steps]
                panel.plot(steps, [interval.mean for interval in intervals], label=method)
                panel.fill_between(steps, [i.low for i in intervals], [i.high for i in intervals], alpha=0.2, linewidth=0)
        panel.set(title=environment, xlabel="env steps")
    panel.legend()
    figure.savefig(file, dpi=120)


def table(rows: Sequence[Return]) -> str:
    """Final returns with 95 % intervals over seeds, and how probably each objective's agent is above one of TD3, in Markdown."""
    last = max(row.env_steps for row in rows)
    finals: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.env_steps == last:
            finals[row.method][row.environment].append(row.mean_return)
    environments = list(dict.fromkeys(row.environment for row in rows))
    lines = [f"| after {last:,} env steps | {' | '.join(environments)} | above TD3 |", "|---|" + "---|" * (1 + len(environments))]
    for method, returns in finals.items():
        shared = [name for name in environments if returns[name] and finals[TD3][name]]
        mine, theirs = ([{0: finals[one][name]} for name in shared] for one in (method, TD3))
        above = "-" if method == TD3 or not shared else format_interval(probability_of_improvement(mine, theirs), 2)
        cells = [format_interval(mean_interval(returns[name]), 0) if returns[name] else "-" for name in environments]
        lines.append(f"| {method} | {' | '.join(cells)} | {above} |")
    return "\n".join(lines)


def measure_speed(options: argparse.Namespace) -> None:
    """Updates per second of each method on a full batch, medians over turns. Actor updates are included, sampling too."""
    from stable_baselines3.common.logger import Logger

    torch.set_num_threads(1)
    trains: dict[str, Callable[[int], None]] = {}
    for method in (TD3, *options.objectives):
        model = make_model(method, options.envs[0], 0)
        model.learn(1000)  # random actions fill the replay
        model.set_logger(Logger(None, []))
        trains[method] = partial(model.train, batch_size=model.batch_size)
    seconds = defaultdict(list)
    for _ in range(NUM_TURNS):
        for method, train in trains.items():
            train(2)  # wakes caches
            start = time.perf_counter()
            train(options.updates)
            seconds[method].append((time.perf_counter() - start) / options.updates)
    typical = {method: median(times) for method, times in seconds.items()}
    rows = []
    for method, times in typical.items():
        rows.append({"method": method, "updates_per_second": f"{1 / times:.1f}", "ratio": f"{typical[TD3] / times:.2f}"})
    write_csv(options.out / "speed.csv", list(rows[0]), rows)
    for row in rows:
        print(f"{row['method']}: {row['updates_per_second']} updates per second, {row['ratio']} of TD3's", flush=True)


def main() -> None:
    """Train, draw and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=["light"], metavar="NAME", help="pretrained objectives or files")
    parser.add_argument("--envs", nargs="+", default=ENVIRONMENTS, metavar="ID")
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(5)], metavar="N", help="agents in each environment")
    parser.add_argument("--env-steps", type=int, default=40_000)
    parser.add_argument("--episodes", type=int, default=10, help="of an evaluation")
    parser.add_argument("--updates", type=int, default=200, help="of a turn in the measurement of speed")
    parser.add_argument("--jobs", type=int, default=1, help="agents side by side, each on a core of its own")
    parser.add_argument("--out", type=path_argument, default=Path("runs/sb3_learned_td3"))
    options = parser.parse_args()
    if importlib.util.find_spec("stable_baselines3") is None:
        sys.exit('error: stable-baselines3 is not installed; pip install -e ".[train,sb3]"')
    try:
        for objective in options.objectives:
            find_objective(objective)  # refuse a wrong one now
        options.out.mkdir(parents=True, exist_ok=True)
        add_provenance(options.out, stable_baselines3=version("stable-baselines3"))
        rows = train_agents(options)
        draw(rows, options.out / "learning_curves.png")
        print(table(rows))
        measure_speed(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
