"""Films of trained agents: `metagenrl film RUN_FOLDER|CHECKPOINT [--agents N ...] [--out DIR]`.

Of a run with a meta-test: one of its fresh agents in each environment, trained by the learned objective, beside the one trained by
DDPG/TD3. Of a checkpoint, or with `--agents`: agents of the population. An agent plays one episode with its noise-free policy.
"""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from ctypes.util import find_library
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from omegaconf import OmegaConf

from metagenrl_pl.agents.population import AgentSettings, Population, PopulationSettings
from metagenrl_pl.common.exit_codes import MISTAKE
from metagenrl_pl.common.files import atomic_write, check_can_write, path_argument
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.config.schema import build
from metagenrl_pl.config.trust import check_foreign
from metagenrl_pl.environments.environment import Environment, EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.evaluation.policies import FreshAgents, load_policies
from metagenrl_pl.reporting.film_frames import Episode, play, side_by_side
from metagenrl_pl.results.methods import CRITIC, LEARNED, find_methods
from metagenrl_pl.results.origin import read_config
from metagenrl_pl.training.checkpoint_io import PROJECT_KEY, AtomicCheckpointIO, CheckpointError, newest_checkpoint

FORMATS = ("gif", "mp4")
_FOLLOWING = "track"  # the camera of MuJoCo's walking bodies


def load_agents(checkpoint: Path, trusted: Collection[str] = ()) -> tuple[list[EnvironmentSpec], Population]:
    """The agents of a checkpoint, on the CPU, and the environment of each.

    Args:
        checkpoint: a file, or the folder of a run, which stands for its newest one.
        trusted: packages that its configuration may name, see `check_foreign`.

    Raises:
        CheckpointError: if the file is no checkpoint of this project or lacks its agents, or the folder holds none.
        ConfigError: if its environments are not there, or of a package that is not trusted.
    """
    try:
        stored = AtomicCheckpointIO().load_checkpoint(_file_of(checkpoint))[PROJECT_KEY]
    except CheckpointError as error:
        raise CheckpointError(str(error).removeprefix("ckpt_path=")) from error  # a key of train.py's, not of a film
    plain = stored.get("config")
    check_foreign(plain, {"env": EnvironmentSets, "agent": AgentSettings, "population": PopulationSettings}, trusted)
    config = OmegaConf.create(plain)
    try:
        specs = build(config.env, EnvironmentSets).assign_round_robin(config.population.size)
        population = Population(sizes_of(specs), [0] * len(specs), build(config.agent, AgentSettings))
        population.load_state_dict(stored["learner"]["population"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint}: does not hold the agents of its configuration ({one_line(error)})") from error
    return specs, population


def load_fresh_agents(run_dir: Path, trusted: Collection[str] = ()) -> dict[str, FreshAgents]:
    """The agents of a run's meta-test by method; none if it has kept none.

    Raises:
        ValueError: if a file of the run is damaged, or names a package that is not trusted (see `check_foreign`).
    """
    files = sorted((run_dir / "fresh_agents").glob("*.safetensors"))
    if not files:
        return {}
    stored = read_config(run_dir / "config.yaml")
    if not stored.get("agent"):
        raise ValueError(f"{run_dir / 'config.yaml'} has no agent; valid is the config of a run, which has its settings there")
    check_foreign(stored, {"agent": AgentSettings}, trusted)
    settings = build(OmegaConf.create(stored).agent, AgentSettings)
    return dict(load_policies(file, settings, trusted) for file in files)


def record_episode(
    spec: EnvironmentSpec,
    act: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    height: int = 240,
    seconds: float = math.inf,
) -> Episode:
    """One episode, played to its end; arguments as of `play`.

    Raises:
        ValueError: if the environment cannot be made or drawn.
        EnvironmentFailure: if it fails in the episode.
    """
    environment = _make_drawable(spec.for_evaluation)
    try:
        return play(environment, act, seed, height, seconds)
    finally:
        environment.close()


def save_film(path: Path, frames: np.ndarray, per_second: float) -> None:
    """Write a film; its kind is that of the file's name.

    Args:
        path: `.gif`, or `.mp4`, which needs the extra `video`.
        frames: [N, H, W, 3], uint8.
        per_second: of the frames.

    Raises:
        ValueError: if the kind needs a package that is not there.
    """
    with atomic_write(path) as file:
        if path.suffix == ".gif":
            iio.imwrite(file, frames, extension=".gif", duration=1000 / per_second, loop=0)
            return
        try:
            even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # as the codec needs it
            file.write(iio.imwrite("<bytes>", even, extension=".mp4", plugin="FFMPEG", fps=per_second, macro_block_size=2))
        except ImportError as error:
            raise ValueError("mp4 needs imageio-ffmpeg: pip install 'metagenrl-pl[video]'; valid without it: gif") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. A user's mistake is one line, `error: ...`, and exit code 2."""
    parser = argparse.ArgumentParser(prog="metagenrl film", description="Films of the agents of a checkpoint, an episode each.")
    parser.add_argument("checkpoint", type=path_argument, help="a .ckpt file, or the folder of a run")
    parser.add_argument("--agents", nargs="+", type=int, metavar="N", help="of the population; by default those of the meta-test")
    parser.add_argument("--out", type=path_argument, default=Path("films"), metavar="DIR", help="where films go (default: films)")
    parser.add_argument("--format", choices=FORMATS, default="gif", help="mp4 needs the extra 'video' (default: gif)")
    parser.add_argument("--height", type=int, default=240, metavar="PIXELS", help="of a film (default: 240)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a film, at most (default: the whole episode)")
    trust = "packages beside this project's whose environments the checkpoint may name"
    parser.add_argument("--trust", nargs="+", default=[], metavar="PACKAGE", help=trust)
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (default: 0)")
    options = parser.parse_args(arguments)
    if sys.platform.startswith("linux") and "DISPLAY" not in os.environ:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if find_library("EGL"):
            os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        for name, value in (("height", options.height), ("seconds", options.seconds)):
            if not value > 0:
                raise ValueError(f"--{name} {value}: valid is a positive number")
        if options.seed < 0:
            raise ValueError(f"--seed {options.seed}: valid is 0 or more")
        check_can_write(options.out, "--out", is_folder=True)
        is_run = options.checkpoint.is_dir() and options.agents is None
        tested = load_fresh_agents(options.checkpoint, options.trust) if is_run else {}
        if tested:
            _film_meta_test(tested, options)
        else:
            _film_checkpoint(options)
    except (ValueError, OSError, EnvironmentFailure) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(MISTAKE)


def _film_meta_test(tested: Mapping[str, FreshAgents], options: argparse.Namespace) -> None:
    """A film for each environment: the same fresh agent, trained by the learned objective and by DDPG/TD3, side by side."""
    methods = [method for method in find_methods(tested) if method in (LEARNED, CRITIC)] or find_methods(tested)[:2]
    environments = {spec.name: spec for method in methods for spec in tested[method.name].specs}
    for name, spec in environments.items():
        episodes = {}
        for method in methods:
            agents = tested[method.name]
            own = [index for index, other in enumerate(agents.specs) if other.name == name]
            if own:
                act = _policy(agents.population, min(own, key=agents.numbers.__getitem__))
                episodes[method.label] = record_episode(spec, act, options.seed, options.height, options.seconds)
        returns = ", ".join(f"{label} {episode.episode_return:.1f}" for label, episode in episodes.items())
        _save(options, f"{name}_meta_test", episodes, f"{name}, fresh agents, return {returns}")


def _film_checkpoint(options: argparse.Namespace) -> None:
    """A film for each chosen agent of a checkpoint."""
    specs, population = load_agents(options.checkpoint, options.trust)
    for agent in options.agents or _first_ones(specs):
        if not 0 <= agent < len(specs):
            raise ValueError(f"--agents {agent}: valid are 0 to {len(specs) - 1}")
    for agent in options.agents or _first_ones(specs):
        name = specs[agent].name
        episode = record_episode(specs[agent], _policy(population, agent), options.seed, options.height, options.seconds)
        message = f"{name}, agent {agent}, return {episode.episode_return:.1f}"
        _save(options, f"{name}_agent_{agent}", {f"agent {agent}": episode}, message)


def _save(options: argparse.Namespace, name: str, episodes: Mapping[str, Episode], message: str) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name.replace('/', '_')}.{options.format}"
    per_second = next(iter(episodes.values())).per_second
    save_film(path, side_by_side(episodes), per_second)
    print(f"{path}: {message}", flush=True)


def _file_of(checkpoint: Path) -> Path:
    """The checkpoint that a path stands for, as in `train.py ckpt_path=...`."""
    if not checkpoint.is_dir():
        return checkpoint
    newest = newest_checkpoint(checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint)
    if newest is None:
        raise CheckpointError(f"{checkpoint}: no run has saved a checkpoint here; valid is a .ckpt file, or the folder of a run")
    return newest


def _make_drawable(spec: EnvironmentSpec) -> Environment:
    """The environment, ready to be drawn: by the camera that follows the body, if it has one and the spec names no other."""
    kwargs = {**spec.kwargs, "render_mode": "rgb_array"}
    environment = Environment(dataclasses.replace(spec, kwargs=kwargs))
    if _FOLLOWING in environment.cameras and not {"camera_name", "camera_id"} & kwargs.keys():
        environment.close()
        environment = Environment(dataclasses.replace(spec, kwargs={**kwargs, "camera_name": _FOLLOWING}))
    return environment


def _first_ones(specs: Sequence[EnvironmentSpec]) -> list[int]:
    names = [spec.name for spec in specs]
    return [names.index(name) for name in dict.fromkeys(names)]


def _policy(population: Population, agent: int) -> Callable[[np.ndarray], np.ndarray]:
    """One agent's policy, as a function of its environment's observation."""

    def act(observation: np.ndarray) -> np.ndarray:
        padded = torch.zeros(population.num_agents, population.observation_size)
        padded[agent, : len(observation)] = torch.from_numpy(observation)
        return population.act(padded)[agent, : population.action_sizes[agent]].numpy()

    return act
