"""Agents of Stable-Baselines3 under the protocol's conditions: the same environments, env steps, episodes and evaluations.

    pip install -e ".[train,sb3]"
    python benchmarks/sb3_baselines.py [--methods ppo td3 on_policy_reinforce] [--seeds 0 1 ...] [--jobs 2] [--out DIR] [OVERRIDE ...]

Writes a `meta_test.csv` for each method, which the report reads beside those of other runs. Networks have the width and depth of the
protocol's agents. The rest are the library's defaults: for PPO with observations and rewards normalised, for TD3 with the protocol's
exploration. On-policy REINFORCE is A2C with one Adam step on every 512 steps, advantages by GAE(0.97) and normalised. Overrides are
those of `train.py experiment=protocol`. What is in the file is not run again.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from omegaconf import OmegaConf

from metagenrl_pl.common.files import path_argument
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.evaluation.evaluator import Evaluator
from metagenrl_pl.evaluation.fresh_agents import fresh_seed
from metagenrl_pl.experience.collector import episode_seed
from metagenrl_pl.results.methods import METHODS
from metagenrl_pl.results.provenance import add_provenance
from metagenrl_pl.results.rows import MetaTestRow, append_rows, read_rows
from side_by_side import Distinct, check_note, compose_run, meta_test_in, note_of

ON_POLICY: dict[str, Any] = {"learning_rate": 3e-3, "n_steps": 512, "gae_lambda": 0.97}
SB3_METHODS = [name for name, method in METHODS.items() if method.package == "stable_baselines3"]


class Episodes(gym.Env):
    """An environment with actions in [-1, 1] and the episodes that the fresh agent of this seed meets in a meta-test."""

    def __init__(self, spec: EnvironmentSpec, seed: int) -> None:
        self._environment, self._seed, self._num_episodes = Environment(spec), seed, 0
        self.action_size = self._environment.action_size
        self.observation_space = spaces.Box(-np.inf, np.inf, (self._environment.observation_size,), np.float32)
        self.action_space = spaces.Box(-1, 1, (self.action_size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next episode, whatever the seed."""
        self._num_episodes += 1
        return self._environment.reset(episode_seed(self._seed, self._num_episodes - 1)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action, [A]."""
        return *self._environment.step(action), {}

    def close(self) -> None:
        """Free the environment."""
        self._environment.close()


def train_agent(agent: tuple[str, EnvironmentSpec, int], settings: Any) -> list[MetaTestRow]:
    """A row for each evaluation of one agent while it is trained.

    Args:
        agent: method, environment and number.
        settings: the protocol's configuration.
    """
    from stable_baselines3 import A2C, PPO, TD3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    torch.set_num_threads(1)
    method, spec, number = agent
    seed, test = fresh_seed(spec, number), settings.callbacks.meta_test
    environment: Any = DummyVecEnv([lambda: Episodes(spec, seed)])
    common: dict[str, Any] = {
        "policy_kwargs": {"net_arch": [settings.agent.hidden_units] * settings.agent.num_hidden_layers},
        "gamma": settings.agent.discount,
        "seed": seed % 2**32,
        "device": "cpu",
    }
    normalise: Callable[[np.ndarray], np.ndarray] = np.asarray
    if method in ("ppo", "on_policy_reinforce"):
        environment = VecNormalize(environment, gamma=settings.agent.discount)
        normalise = environment.normalize_obs
    if method == "ppo":
        model: Any = PPO("MlpPolicy", environment, **common)
    elif method == "on_policy_reinforce":
        model = A2C("MlpPolicy", environment, use_rms_prop=False, normalize_advantage=True, **ON_POLICY, **common)
    else:
        num_actions = environment.action_space.shape[0]
        noise = NormalActionNoise(np.zeros(num_actions), np.full(num_actions, settings.agent.exploration_noise))
        model = TD3("MlpPolicy", environment, action_noise=noise, learning_starts=settings.agent.random_env_steps, **common)

    rows: list[MetaTestRow] = []
    evaluator = Evaluator([spec], [seed], test.num_episodes)

    def act(observation: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model.predict(normalise(observation[0].numpy()), deterministic=True)[0])[None]

    class Evaluation(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % test.evaluate_every_env_steps == 0 or self.num_timesteps == test.env_steps:
                rows.append(MetaTestRow(spec.name, method, number, self.num_timesteps, float(evaluator(act)[0])))
            return bool(self.num_timesteps < test.env_steps)

    model.learn(test.env_steps, Evaluation())
    evaluator.close()
    environment.close()
    return rows


def train_agents(method: str, seeds: Sequence[int], settings: Any, file: Path, num_jobs: int) -> None:
    """Train the agents that the file lacks, in processes side by side.

    Raises:
        ValueError: if an environment cannot serve, or the file holds agents of other settings or that were not tested to the end.
    """
    test = meta_test_in(settings)
    note = OmegaConf.create({key: settings[key] for key in ("agent", "callbacks")})
    del note.callbacks.meta_test.environments  # a later command may add some
    interval, env_steps = test.evaluate_every_env_steps, test.env_steps
    wanted = sorted({*range(interval, env_steps + 1, interval), env_steps})
    done: dict[tuple[str, int], list[MetaTestRow]] = {}
    for row in read_rows(file):
        done.setdefault((row.environment, row.seed), []).append(row)
    for (name, seed), rows in done.items():
        if [row.env_steps for row in rows] != wanted:
            raise ValueError(
                f"{file} holds an agent of {name}, seed {seed}, that was tested at other env steps; valid is another --out"
            )
    specs = [EnvironmentSpec.parse(entry) for entry in test.environments]
    for spec in specs:
        Environment(spec).close()  # refuse a wrong one now
    left = [(method, spec, seed) for seed in seeds for spec in specs if (spec.name, seed) not in done]
    if done:
        check_note(file.parent, note)
    file.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(note, note_of(file.parent))
    if not left:
        print(f"{file} has all agents already")
    else:
        add_provenance(file.parent, stable_baselines3=version("stable-baselines3"))
    with ProcessPoolExecutor(num_jobs, get_context("spawn")) as pool:
        for rows in pool.map(partial(train_agent, settings=settings), left):
            append_rows(file, rows)
            print(f"{rows[-1].environment}, {method}, seed {rows[-1].seed}: {rows[-1].episode_return:,.1f}", flush=True)


def main() -> None:
    """Train the agents that the files lack, method by method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=SB3_METHODS, default=["ppo"])
    parser.add_argument(
        "--seeds", nargs="+", type=int, action=Distinct, default=[*range(9)], metavar="N", help="agents in each environment"
    )
    parser.add_argument("--jobs", type=int, default=1, help="agents side by side, each on a core of its own")
    parser.add_argument("--out", type=path_argument, default=Path("runs/protocol/sb3"), help="holds a folder for each method")
    parser.add_argument("overrides", nargs="*", help="such as callbacks.meta_test.env_steps=8000")
    options = parser.parse_args()
    if importlib.util.find_spec("stable_baselines3") is None:
        sys.exit('error: stable-baselines3 is not installed; pip install -e ".[train,sb3]"')
    try:
        settings = compose_run(["experiment=protocol", *options.overrides])
        for method in options.methods:
            train_agents(method, options.seeds, settings, options.out / method / "meta_test.csv", options.jobs)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
