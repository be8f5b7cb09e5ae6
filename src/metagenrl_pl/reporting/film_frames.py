"""Frames of films: one episode, several side by side, with label, step and return written above each."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metagenrl_pl.environments.environment import Environment
from metagenrl_pl.environments.probing import MAX_EPISODE_STEPS

_FRAMES_PER_SECOND = 25  # at most: what a GIF can hold and an eye needs
_STRIP, _TEXT, _DIM = (24, 28, 34), (240, 243, 246), (160, 170, 182)  # colours


class Episode(NamedTuple):
    """One episode as a film.

    Args:
        frames: [H, W, 3] each, uint8; the first one before the first step.
        steps: env steps before each frame.
        returns: sum of rewards before each frame.
        per_second: of the frames.
        episode_return: of the whole episode, also of what is not shown.
    """

    frames: list[np.ndarray]
    steps: list[int]
    returns: list[float]
    per_second: float
    episode_return: float


def play(environment: Environment, act: Callable[[np.ndarray], np.ndarray], seed: int, height: int, seconds: float) -> Episode:
    """One episode, played to its end. Without a time limit it ends after `MAX_EPISODE_STEPS` env steps.

    Args:
        environment: that can be drawn.
        act: an observation [O] -> an action in [-1, 1], [A].
        seed: of the episode.
        height: of the frames, in pixels; the width follows.
        seconds: after which the film ends, if the episode goes on.
    """
    per_second = environment.frames_per_second
    every, most = math.ceil(per_second / _FRAMES_PER_SECOND), seconds * per_second
    episode = Episode([], [], [], per_second / every, 0.0)
    limit = environment.time_limit or MAX_EPISODE_STEPS
    observation, episode_return, ended, num_steps = environment.reset(seed), 0.0, False, 0
    while True:
        if num_steps <= most and (num_steps % every == 0 or ended):
            episode.frames.append(_resize(environment.render(), height))
            episode.steps.append(num_steps)
            episode.returns.append(episode_return)
        if ended:
            return episode._replace(episode_return=episode_return)
        observation, reward, terminated, truncated = environment.step(act(observation))
        episode_return, num_steps = episode_return + reward, num_steps + 1
        ended = terminated or truncated or num_steps >= limit


def side_by_side(episodes: Mapping[str, Episode]) -> np.ndarray:
    """Episodes beside each other, each under its label, step and return, [N, H, W, 3]; one that ends early stands still.

    Args:
        episodes: by label.
    """
    length = max(len(episode.frames) for episode in episodes.values())
    return np.stack(
        [
            np.concatenate([_captioned(label, episode, index) for label, episode in episodes.items()], axis=1)
            for index in range(length)
        ]
    )


def _captioned(label: str, episode: Episode, index: int) -> np.ndarray:
    """A frame under a strip of two lines: the label, then step and return."""
    index = min(index, len(episode.frames) - 1)
    frame = episode.frames[index]
    size = max(9, min(frame.shape[0] // 14, frame.shape[1] // 17))
    strip = Image.new("RGB", (frame.shape[1], round(2.9 * size / 2) * 2), _STRIP)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size)
    draw.text((size // 2, size // 4), label, _TEXT, font)
    draw.text(
        (size // 2, size // 4 + 1.25 * size), f"step {episode.steps[index]}   return {episode.returns[index]:,.1f}", _DIM, font
    )
    return np.concatenate([np.asarray(strip), frame])


def _resize(frame: np.ndarray, height: int) -> np.ndarray:
    width = round(frame.shape[1] * height / frame.shape[0] / 2) * 2  # even, as video codecs want it
    return np.asarray(Image.fromarray(frame).resize((max(width, 2), height), Image.Resampling.LANCZOS))
