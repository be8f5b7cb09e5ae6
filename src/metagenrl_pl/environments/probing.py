"""A short look at an environment before a run: is it reproducible, does it keep to its spaces, do its episodes end?"""

from contextlib import closing

import numpy as np

from metagenrl_pl.environments.environment import Environment, EnvironmentSpec

MAX_EPISODE_STEPS = 10_000
"""Where an evaluation or a film ends an episode of an environment without a time limit."""

_NUM_STEPS = 10


def episode_limit(spec: EnvironmentSpec) -> int:
    """Env steps after which an evaluation ends an episode at the latest.

    Raises:
        ValueError: if the environment is not usable (see `Environment`).
    """
    with closing(Environment(spec)) as environment:
        return environment.time_limit or MAX_EPISODE_STEPS


def probe(spec: EnvironmentSpec, is_evaluated: bool) -> list[str]:
    """Begin an episode twice, with the same seed and the same actions, and return warnings.

    Args:
        spec: of the environment.
        is_evaluated: whether episodes have to end.

    Raises:
        ValueError: if the environment is not usable (see `Environment`).
        EnvironmentFailure: if it fails in the episode.
    """
    warnings: list[str] = []
    with closing(Environment(spec)) as environment:
        first, outside = _begin_episode(environment)
        second, _ = _begin_episode(environment)
        limit = environment.time_limit
    if is_evaluated and spec.evaluation_kwargs:
        with closing(Environment(spec.for_evaluation)) as evaluated:
            if (sizes := (evaluated.observation_size, evaluated.action_size)) != (
                environment.observation_size,
                environment.action_size,
            ):
                raise ValueError(
                    f"environment {spec.name}: evaluation_kwargs give {sizes[0]} observations and {sizes[1]} actions, not "
                    f"{environment.observation_size} and {environment.action_size} as in training"
                )
    if outside:
        warnings.append(f"environment {spec.name}: {outside}; agents learn from it as it is")
    if len(first) != len(second) or any(not np.array_equal(one, other) for one, other in zip(first, second, strict=True)):
        hint = "; a wrapper that keeps statistics begins anew in evaluations and after a resume" if spec.wrappers else ""
        warnings.append(
            f"environment {spec.name}: the same seed and actions gave other observations the second time, so a resume cannot repeat "
            f"its open episodes; valid is an environment that draws from self.np_random only{hint}"
        )
    if is_evaluated and limit is None:
        warnings.append(
            f"environment {spec.name}: declares no time limit, so evaluations end its episodes after {MAX_EPISODE_STEPS:,} env steps "
            f"if it does not end them earlier; {{id: {spec.id}, max_episode_steps: 1000}} in env.train or env.test gives it one"
        )
    return warnings


def _begin_episode(environment: Environment) -> tuple[list[np.ndarray], str | None]:
    """The first observations of an episode, and what lies outside of the space in them."""
    random = np.random.default_rng(0)
    observations, outside = [environment.reset(0)], environment.outside_of_space()
    for _ in range(_NUM_STEPS):
        observation, reward, terminated, truncated = environment.step(random.uniform(-1, 1, environment.action_size))
        observations += [observation, np.array([reward])]
        outside = outside or environment.outside_of_space()
        if terminated or truncated:
            break
    return observations, outside
