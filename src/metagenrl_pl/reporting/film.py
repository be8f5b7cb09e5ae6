"""Films of trained agents: `python -m metagenrl_pl.reporting.film CHECKPOINT|RUN_FOLDER [--agents N ...] [--out DIR]`.

An agent of a checkpoint (the newest one of a run) plays one episode with its noise-free policy. Its environment draws the frames.
"""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from ctypes.util import find_library
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from metagenrl_pl.agents.population import AgentSettings, Population, PopulationSettings
from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.common.messages import one_line
from metagenrl_pl.config.former import update_config
from metagenrl_pl.config.schema import build
from metagenrl_pl.config.trust import check_foreign
from metagenrl_pl.environments.environment import Environment, EnvironmentSets, EnvironmentSpec
from metagenrl_pl.environments.failures import EnvironmentFailure
from metagenrl_pl.environments.group import sizes_of
from metagenrl_pl.environments.probing import MAX_EPISODE_STEPS
from metagenrl_pl.training.checkpoint_io import PROJECT_KEY, AtomicCheckpointIO, CheckpointError, newest_checkpoint

FORMATS = ("gif", "mp4")
_FOLLOWING = "track"  # the camera of MuJoCo's walking bodies
_FRAMES_PER_SECOND = 25  # at most: what a GIF can hold and an eye needs


def load_agents(checkpoint: Path, trusted: Collection[str] = ()) -> tuple[list[EnvironmentSpec], Population]:
    """The agents of a checkpoint, on the CPU, and the environment of each.

    Args:
        checkpoint: a file, or the folder of a run, which stands for its newest one.
        trusted: packages that its configuration may name, see `check_foreign`.

    Raises:
        CheckpointError: if the file is no checkpoint of this project, or the folder holds none.
        ConfigError: if its environments are not there, or of a package that is not trusted.
    """
    try:
        stored = AtomicCheckpointIO().load_checkpoint(_file_of(checkpoint))[PROJECT_KEY]
    except CheckpointError as error:
        raise CheckpointError(str(error).removeprefix("ckpt_path=")) from error  # a key of train.py's, not of a film
    plain = update_config(stored["config"])
    check_foreign(plain, {"env": EnvironmentSets, "agent": AgentSettings, "population": PopulationSettings}, trusted)
    config = OmegaConf.create(plain)
    specs = build(config.env).assign_round_robin(config.population.size)
    population = Population(sizes_of(specs), [0] * len(specs), build(config.agent))
    population.load_state_dict(stored["learner"]["population"])
    return specs, population


def record_episode(
    spec: EnvironmentSpec,
    act: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    height: int = 240,
    seconds: float = math.inf,
) -> tuple[np.ndarray, float, float]:
    """One episode, played to its end. Without a time limit it ends after `MAX_EPISODE_STEPS` env steps.

    Args:
        spec: of an environment that can be drawn.
        act: an observation [O] -> an action in [-1, 1], [A].
        seed: of the episode.
        height: of the film, in pixels; the width follows.
        seconds: after which the film ends, if the episode goes on.

    Returns:
        Frames [N, H, W, 3] (uint8), frames per second, and the episode's return.

    Raises:
        ValueError: if the environment cannot be made or drawn.
        EnvironmentFailure: if it fails in the episode.
    """
    environment = _make_drawable(spec)
    try:
        per_second = environment.frames_per_second
        every, most = math.ceil(per_second / _FRAMES_PER_SECOND), seconds * per_second
        limit = environment.time_limit or MAX_EPISODE_STEPS
        observation, frames, episode_return, ended, num_steps = environment.reset(seed), [], 0.0, False, 0
        while True:
            if num_steps <= most and (num_steps % every == 0 or ended):
                frames.append(_resize(environment.render(), height))
            if ended:
                return np.stack(frames), per_second / every, episode_return
            observation, reward, terminated, truncated = environment.step(act(observation))
            episode_return, num_steps = episode_return + reward, num_steps + 1
            ended = terminated or truncated or num_steps >= limit
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
            file.write(iio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=per_second))
        except ImportError as error:
            raise ValueError("mp4 needs imageio-ffmpeg: pip install 'metagenrl-pl[video]'; valid without it: gif") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. A user's mistake is one line, `error: ...`, and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m metagenrl_pl.reporting.film", description="Films of the agents of a checkpoint, an episode each."
    )
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file, or the folder of a run")
    parser.add_argument("--agents", nargs="+", type=int, metavar="N", help="by default the first one in each environment")
    parser.add_argument("--out", type=Path, default=Path("films"), metavar="DIR", help="where films go (default: films)")
    parser.add_argument("--format", choices=FORMATS, default="gif", help="mp4 needs the extra 'video' (default: gif)")
    parser.add_argument("--height", type=int, default=240, metavar="PIXELS", help="of a film (default: 240)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a film, at most (default: the whole episode)")
    parser.add_argument(
        "--trust", nargs="+", default=[], metavar="PACKAGE", help="with environments that the checkpoint may name"
    )
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
        specs, population = load_agents(options.checkpoint, options.trust)
        for agent in options.agents or _first_ones(specs):
            if not 0 <= agent < len(specs):
                raise ValueError(f"--agents {agent}: valid are 0 to {len(specs) - 1}")
        options.out.mkdir(parents=True, exist_ok=True)
        for agent in options.agents or _first_ones(specs):
            spec = specs[agent]
            policy = _policy(population, agent)
            frames, per_second, episode_return = record_episode(spec, policy, options.seed, options.height, options.seconds)
            path = options.out / f"{spec.name.replace('/', '_')}_agent_{agent}.{options.format}"
            save_film(path, frames, per_second)
            print(f"{path}: {spec.name}, agent {agent}, return {episode_return:.1f}", flush=True)
    except (ValueError, OSError, EnvironmentFailure) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


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


def _resize(frame: np.ndarray, height: int) -> np.ndarray:
    width = round(frame.shape[1] * height / frame.shape[0] / 2) * 2  # even, as video codecs want it
    return np.asarray(Image.fromarray(frame).resize((max(width, 2), height), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
