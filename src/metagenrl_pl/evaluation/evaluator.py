"""Noise-free returns of policies, averaged over episodes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.environments.group import SerialGroup
from metagenrl_pl.environments.probing import episode_limit
from metagenrl_pl.learning.cycle import MakeGroup

Act = Callable[[Tensor], Tensor]


class Evaluator:
    """Measures noise-free returns. Every evaluation uses the same initial states.

    An episode of an environment without a time limit ends after `MAX_EPISODE_STEPS` env steps. An episode that is lost (see
    `WorkerGroup`) is begun again with another seed.

    Args:
        specs: environment of each agent.
        seeds: one for each agent.
        num_episodes: per agent; all episodes run in parallel.
        make_group: makes the environments; in this process by default.
        observation_size: that the agents' observations are padded to; the largest of these environments by default.

    Raises:
        ValueError: if `num_episodes` is below 1.
    """

    def __init__(
        self,
        specs: Sequence[EnvironmentSpec],
        seeds: Sequence[int],
        num_episodes: int,
        make_group: MakeGroup = SerialGroup,
        observation_size: int | None = None,
    ) -> None:
        if num_episodes < 1:
            raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")
        specs = [spec.for_evaluation for spec in specs]
        self._shape = len(specs), num_episodes
        self._seeds = [derive_seed(seed, "evaluation", episode) % 2**31 for seed in seeds for episode in range(num_episodes)]
        self.environments = make_group([spec for spec in specs for _ in range(num_episodes)])
        self._observation_size = observation_size or self.environments.observation_size
        limits = {spec.name: episode_limit(spec) for spec in {spec.name: spec for spec in specs}.values()}
        self._limits = np.array([limits[spec.name] for spec in specs for _ in range(num_episodes)])
        self._action_sizes = np.array([action_size for _, action_size in self.environments.sizes])

    def __call__(self, act: Act) -> np.ndarray:
        """Mean return of each agent, [P]. NaN if the agent has diverged: one of its actions is not finite.

        Args:
            act: observations [P, num_episodes, O] -> actions [P, num_episodes, A] in [-1, 1].
        """
        environments, size = self.environments, self.environments.observation_size
        observation = np.zeros((len(environments), self._observation_size), np.float32)
        returns, is_open = np.zeros(len(environments)), np.ones(len(environments), bool)
        num_steps, num_lost = np.zeros(len(environments), int), 0

        def begin(index: int, seed: int) -> None:
            first = environments.reset(index, seed)
            observation[index, : len(first)] = first
            returns[index], num_steps[index] = 0, 0

        for index, seed in enumerate(self._seeds):
            begin(index, seed)
        while is_open.any():
            action = act(torch.from_numpy(observation).view(*self._shape, -1)).cpu().flatten(0, 1).numpy()
            has_diverged = is_open & ~self._are_finite(action)
            returns[has_diverged] = np.nan  # an environment may give any reward for a NaN action
            is_open = is_open & ~has_diverged
            environments.begin_step(action, is_open)
            steps = environments.end_step()
            lost = is_open & environments.lost
            stepped = is_open & ~lost
            observation[stepped, :size] = steps.observation[stepped]
            returns[stepped] += steps.reward[stepped]
            num_steps[stepped] += 1
            is_open = lost | (stepped & ~steps.ended & (num_steps < self._limits))
            for index in np.flatnonzero(lost).tolist():  # begin the episode again, elsewhere
                num_lost += 1
                begin(index, derive_seed(self._seeds[index], "after a hang", num_lost) % 2**31)
        return returns.reshape(self._shape).mean(1)

    def close(self) -> None:
        """Close the environments of all episodes."""
        self.environments.close()

    def _are_finite(self, action: np.ndarray) -> np.ndarray:
        """Whether all unpadded dimensions of each action are finite, [N, A] -> [N]."""
        is_real = np.arange(action.shape[1]) < self._action_sizes[:, None]
        return np.isfinite(action).all(1, where=is_real)
