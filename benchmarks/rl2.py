"""RL2 (Duan et al. 2016; Wang et al. 2016) under the protocol's conditions, by sb3-contrib's PPO with an LSTM.

    pip install -e ".[train,baselines]"
    python benchmarks/rl2.py [--seeds 0 1 2] [--env-steps 1000000] [--out DIR] [OVERRIDE ...]

A recurrent policy is meta-trained on the protocol's training environments. Its inputs are observations, padded with zeros to the widest
of them, and the previous action, the reward and whether an episode has just begun. Its state is kept over the episodes of a trial, so
it can adapt within a trial. PPO sees rewards normalised, in each environment on its own, and rates actions with their padding, whose
noise does nothing. In a meta-test nothing is trained any more: the policy acts in a new trial as long as fresh agents of the protocol
learn, and it samples its actions, as in training. It cannot act in an environment with more observations or
actions than all those it knows: such a one is left out, in a line that says so.

Writes a `meta_test.csv` for each seed, which the report reads. Each line has the mean return of the episodes that ended since the line
before; if none did, the return of the open one so far. The report counts agents of one seed as independent, `paper.py` does not.

Overrides are those of `train.py experiment=protocol`. Meta-training takes `--env-steps` in each training environment, far more than the
protocol's objectives.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
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
from metagenrl_pl.common.files import path_argument
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.evaluation.fresh_agents import fresh_seed
from metagenrl_pl.results.methods import RL2
from metagenrl_pl.results.provenance import add_provenance
from metagenrl_pl.results.rows import MetaTestRow, append_rows, read_rows
from sb3_baselines import Episodes
from side_by_side import Distinct, check_note, compose_run, meta_test_in, note_of, positive, refuse_overrides


class Trial(gym.Env):
    """Episodes of one environment as a single episode, the trial, whose policy observes the previous action, reward and end.

    Observes [observation, padding, previous action, padding, previous reward, 1 at the first step of an episode]. At the start of a
    trial the previous action and reward are 0.

    Args:
        spec: of the environment.
        seed: of its episodes.
        sizes: observation and action size to pad to.
        num_steps: length of a trial; None for no end.
    """

    def __init__(self, spec: EnvironmentSpec, seed: int, sizes: tuple[int, int], num_steps: int | None) -> None:
        self._episodes, self._sizes, self._num_steps, self._step = Episodes(spec, seed), sizes, num_steps, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, (sum(sizes) + 2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (sizes[1],), np.float32)
        self.episode_return = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a trial, whatever the seed."""
        self._step = 0
        return self._observe(self._begin_episode(), np.zeros(0, np.float32), 0.0, True), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action, [A]; an episode that ends is followed by the next. `info` then has its return."""
        action = np.asarray(action, np.float32)[: self._episodes.action_size]
        observation, reward, terminated, truncated, _ = self._episodes.step(action)
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
        return self._episodes.reset()[0]

    def _observe(self, observation: np.ndarray, action: np.ndarray, reward: float, is_first: bool) -> np.ndarray:
        padded = np.zeros(sum(self._sizes) + 2, np.float32)
        padded[: len(observation)] = observation
        padded[self._sizes[0] : self._sizes[0] + len(action)] = action
        padded[-2:] = reward, is_first
        return padded

    def close(self) -> None:
        """Free the environment."""
        self._episodes.close()


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
    discount, units = settings.agent.discount, settings.agent.hidden_units

    def make(spec: EnvironmentSpec, own_seed: int) -> gym.Env:
        # Scales of rewards differ by orders of magnitude, so each environment has a normalisation of its own.
        return gym.wrappers.NormalizeReward(Trial(spec, own_seed, sizes, trial_env_steps), discount)

    trials: list[Callable[[], gym.Env]] = [partial(make, *pair) for pair in zip(specs, seeds, strict=True)]
    environment = VecNormalize(DummyVecEnv(trials), norm_reward=False)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        environment,
        gamma=discount,
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


def run_seed(settings: Any, seed: int, env_steps: int, trial_env_steps: int, out: Path) -> None:
    """Meta-train with a seed and test, with the agents that a protocol run with this seed has, unless `out` has its results.

    Args:
        settings: the protocol's configuration.
        seed: of meta-training.
        env_steps: of meta-training in each environment.
        trial_env_steps: length of a trial in meta-training.
        out: holds a folder for each seed.

    Raises:
        ValueError: if no test environment is as narrow as those of meta-training, or `out` has results of other settings.
    """
    folder, test = out / f"seed_{seed}", meta_test_in(settings)
    note = OmegaConf.create({"settings": settings, "env_steps": env_steps, "trial_env_steps": trial_env_steps})
    if read_rows(folder / "meta_test.csv"):
        check_note(folder, note)
        print(f"{folder} has ended already")
        return
    folder.mkdir(parents=True, exist_ok=True)  # now, not after meta-training, if it cannot be made
    OmegaConf.save(note, note_of(folder))
    sizes = widest(sizes_of([EnvironmentSpec.parse(entry) for entry in settings.env.train]))
    specs = [EnvironmentSpec.parse(entry) for entry in test.environments]
    widths = zip(specs, sizes_of(specs), strict=True)
    narrow = [spec for spec, own in widths if own[0] <= sizes[0] and own[1] <= sizes[1]]
    for spec in specs:
        if spec not in narrow:
            print(f"{spec.name} is left out: it has more observations or actions than all training environments", flush=True)
    if not narrow:
        raise ValueError(f"env.test: no environment has at most {sizes[0]} observations and {sizes[1]} actions, as in env.train")
    trained = meta_train(settings, seed, env_steps, trial_env_steps, sizes)
    rows: list[MetaTestRow] = []
    for spec in narrow:
        for number in range(seed * len(test.seeds), (seed + 1) * len(test.seeds)):
            rows += meta_test(trained, spec, number, test, sizes)
            print(f"{spec.name}, seed {number}: {rows[-1].episode_return:,.1f}", flush=True)
    trained[1].close()
    add_provenance(folder, sb3_contrib=version("sb3-contrib"))
    append_rows(folder / "meta_test.csv", rows)  # all at once: a seed with rows is one that has ended


def main() -> None:
    """Meta-train and meta-test with the seeds that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, action=Distinct, default=[0, 1, 2], metavar="N", help="of meta-training")
    parser.add_argument("--env-steps", type=positive, default=1_000_000, help="of meta-training in each environment")
    parser.add_argument("--trial-env-steps", type=positive, default=2_000, help="length of a trial in meta-training")
    parser.add_argument("--out", type=path_argument, default=Path("runs/protocol/sb3/rl2"))
    parser.add_argument("overrides", nargs="*", help="such as env.train=[Pendulum-v1]")
    options = parser.parse_args()
    if importlib.util.find_spec("sb3_contrib") is None:
        sys.exit('error: sb3-contrib is not installed; pip install -e ".[train,baselines]"')
    torch.set_num_threads(1)
    try:
        refuse_overrides(options.overrides)
        settings = compose_run(["experiment=protocol", *options.overrides])
        for seed in options.seeds:
            run_seed(settings, seed, options.env_steps, options.trial_env_steps, options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


if __name__ == "__main__":
    main()
