"""RL2 (Duan et al. 2016; Wang et al. 2016) under the protocol's conditions, by sb3-contrib's PPO with an LSTM.

    pip install -e ".[train,baselines]"
    python benchmarks/rl2.py [--seeds 0 1 2] [--env-steps 2000000] [--out DIR] [OVERRIDE ...]

A recurrent policy is meta-trained on the protocol's training environments. Its inputs are observations, padded with zeros to the widest
environment, and the previous action, the reward and whether an episode has just begun. Its state is kept over the episodes of a trial, so
it can adapt within a trial. In a meta-test nothing is trained any more: the policy acts in a new trial as long as fresh agents of the
protocol learn. Writes `meta_test.csv` for the report: each line has the mean return of the episodes that ended since the line before.

Overrides are those of `train.py experiment=protocol`; meta-training takes `--env-steps` in each training environment.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from omegaconf import OmegaConf

from metagenrl_pl.agents.windows import widest
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.evaluation.fresh_agents import fresh_seed
from metagenrl_pl.experience.collector import episode_seed
from metagenrl_pl.results.methods import RL2
from metagenrl_pl.results.provenance import add_provenance
from metagenrl_pl.results.rows import MetaTestRow, append_rows, read_rows
from side_by_side import compose_yaml


class Trial(gym.Env):
    """Episodes of one environment as a single episode, the trial, whose policy is told the previous action, reward and end.

    Observes [observation, padding, previous action, padding, previous reward, 1 at the first step of an episode]. At the start of a
    trial the previous action and reward are 0.

    Args:
        spec: of the environment.
        seed: of its episodes.
        sizes: observation and action size to pad to.
        num_steps: length of a trial; None for no end.
    """

    def __init__(self, spec: EnvironmentSpec, seed: int, sizes: tuple[int, int], num_steps: int | None) -> None:
        self._environment, self._seed, self._num_steps = Environment(spec), seed, num_steps
        self._sizes, self._num_episodes, self._step = sizes, 0, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, (sum(sizes) + 2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (sizes[1],), np.float32)
        self.episode_return = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a trial, whatever the seed."""
        self._step = 0
        return self._observe(self._begin_episode(), np.zeros(0, np.float32), 0.0, True), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action, [A]; an episode that ends is followed by the next. `info` then has its return."""
        action = np.asarray(action, np.float32)[: self._environment.action_size]
        observation, reward, terminated, truncated = self._environment.step(action)
        self._step += 1
        self.episode_return += float(reward)
        ended, info = bool(terminated or truncated), {}
        if ended:
            info["episode_return"] = self.episode_return
            observation = self._begin_episode()
        is_over = self._num_steps is not None and self._step >= self._num_steps
        return self._observe(observation, action, float(reward), ended), float(reward), False, is_over, info

    def _begin_episode(self) -> np.ndarray:
        self.episode_return = 0.0
        self._num_episodes += 1
        return self._environment.reset(episode_seed(self._seed, self._num_episodes - 1))

    def _observe(self, observation: np.ndarray, action: np.ndarray, reward: float, is_first: bool) -> np.ndarray:
        padded = np.zeros(sum(self._sizes) + 2, np.float32)
        padded[: len(observation)] = observation
        padded[self._sizes[0] : self._sizes[0] + len(action)] = action
        padded[-2:] = reward, is_first
        return padded

    def close(self) -> None:
        """Free the environment."""
        self._environment.close()


def meta_train(settings: Any, seed: int, env_steps: int, trial_env_steps: int, sizes: tuple[int, int]) -> Any:
    """The recurrent policy, trained in one copy of each training environment.

    Args:
        settings: the protocol's configuration.
        seed: of the policy and the episodes.
        env_steps: in each environment.
        trial_env_steps: length of a trial.
        sizes: to pad to.

    Returns:
        The model and the normalisation of its observations.
    """
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    specs = [EnvironmentSpec.parse(entry) for entry in settings.env.train]
    seeds = [derive_seed(seed, "rl2", spec.name) for spec in specs]
    trials: list[Callable[[], gym.Env]] = [
        partial(Trial, s, n, sizes, trial_env_steps) for s, n in zip(specs, seeds, strict=True)
    ]
    environment = VecNormalize(DummyVecEnv(trials), gamma=settings.agent.discount)
    units = settings.agent.hidden_units
    model = RecurrentPPO(
        "MlpLstmPolicy",
        environment,
        gamma=settings.agent.discount,
        n_steps=512,
        policy_kwargs={"net_arch": [units], "lstm_hidden_size": 2 * units},
        seed=seed,
        device="cpu",
    )
    model.learn(env_steps * len(specs))
    environment.training = False
    return model, environment


def meta_test(trained: Any, spec: EnvironmentSpec, number: int, test: Any, sizes: tuple[int, int]) -> list[MetaTestRow]:
    """A row for each interval of one long trial, with the mean return of the episodes that ended in it (or of the open one)."""
    model, normalised = trained
    trial = Trial(spec, fresh_seed(spec, number), sizes, None)
    observation, state, returns, rows = trial.reset()[0], None, [], []
    starts = np.ones(1, bool)
    for step in range(1, test.env_steps + 1):
        action, state = model.predict(normalised.normalize_obs(observation[None]), state, starts)
        starts = np.zeros(1, bool)
        observation, _, _, _, info = trial.step(action[0])
        returns += [info["episode_return"]] if "episode_return" in info else []
        if step % test.evaluate_every_env_steps == 0 or step == test.env_steps:
            rows.append(MetaTestRow(spec.name, RL2.name, number, step, float(np.mean(returns or [trial.episode_return]))))
            returns = []
    trial.close()
    return rows


def run_seed(settings: Any, seed: int, env_steps: int, trial_env_steps: int, file: Path) -> None:
    """Meta-train with a seed and test in all environments, each with the agents that a protocol run with this seed has."""
    test = settings.callbacks.meta_test
    entries = [*settings.env.train, *test.environments]
    sizes = widest(sizes_of([EnvironmentSpec.parse(entry) for entry in entries]))
    specs = [EnvironmentSpec.parse(entry) for entry in test.environments]
    trained = meta_train(settings, seed, env_steps, trial_env_steps, sizes)
    for spec in specs:
        for number in range(seed * len(test.seeds), (seed + 1) * len(test.seeds)):
            rows = meta_test(trained, spec, number, test, sizes)
            append_rows(file, rows)
            print(f"{spec.name}, seed {number}: {rows[-1].episode_return:,.1f}", flush=True)
    trained[1].close()


def main() -> None:
    """Meta-train and meta-test with the seeds that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of meta-training")
    parser.add_argument("--env-steps", type=int, default=1_000_000, help="of meta-training in each environment")
    parser.add_argument("--trial-env-steps", type=int, default=2_000, help="length of a trial in meta-training")
    parser.add_argument("--out", type=Path, default=Path("runs/protocol/sb3/rl2"))
    parser.add_argument("overrides", nargs="*", help="such as env.train=[Pendulum-v1]")
    options = parser.parse_args()
    if importlib.util.find_spec("sb3_contrib") is None:
        sys.exit('error: sb3-contrib is not installed; pip install -e ".[train,baselines]"')
    torch.set_num_threads(1)
    try:
        settings: Any = OmegaConf.create(compose_yaml(["experiment=protocol", *options.overrides]))
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / "meta_test.csv"
        add_provenance(options.out, sb3_contrib=version("sb3-contrib"))
        num_seeds = len(settings.callbacks.meta_test.seeds)
        left = without_tested(options.seeds, {row.seed // num_seeds for row in read_rows(file)})
        for seed in left:
            run_seed(settings, seed, options.env_steps, options.trial_env_steps, file)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


def without_tested(seeds: Sequence[int], tested: set[int]) -> list[int]:
    """The seeds that have no rows yet, in their order."""
    return [seed for seed in seeds if seed not in tested]


if __name__ == "__main__":
    main()
