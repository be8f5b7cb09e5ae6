"""Steps the agents' environments, fills the replay, and keeps in one place all that an exact resume needs."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.batch import Windows
from metagenrl_pl.envs import Environment
from metagenrl_pl.replay import Replay
from metagenrl_pl.streams import AgentStreams, derive_seed


class FinishedEpisode(NamedTuple):
    """An episode that ended during collection."""

    agent: int
    episode_return: float
    length: int  # env steps
    env_steps: int  # of the agent, at the episode's end


class Collector:
    """One environment per agent, stepped in turn.

    Every episode begins with `reset(seed)` and a seed that follows from the agent's seed and the episode's number. So an episode
    is known from its seed and its actions, which is how a resume re-enters one (environments cannot save their state exactly).

    Args:
        environments: each agent's.
        seeds: one for each agent.
        replay: filled with every step.
        act: observations [P, O] -> noise-free actions [P, A] in [-1, 1].
        exploration_noise: standard deviation, for actions in [-1, 1].
        random_env_steps: steps with uniformly random actions at the start.
        update_device: where windows are wanted; the replay's own by default.
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        seeds: Sequence[int],
        replay: Replay,
        act: Callable[[Tensor], Tensor],
        exploration_noise: float,
        random_env_steps: int,
        update_device: torch.device | None = None,
    ) -> None:
        self._update_device = update_device or replay.device
        self.environments, self.replay = list(environments), replay
        self._seeds, self._act = list(seeds), act
        self._noise, self._random_env_steps = exploration_noise, random_env_steps
        self._streams, self._draws = AgentStreams(seeds, "exploration"), AgentStreams(seeds, "replay")
        num_agents = len(self.environments)
        self.env_steps = 0  # of each agent
        self.finished: list[FinishedEpisode] = []  # since somebody last took them
        self.recent_returns: list[deque[float]] = [deque(maxlen=10) for _ in range(num_agents)]  # of each agent's last episodes
        self._observation = np.zeros((num_agents, replay.observation_size), np.float32)
        self._num_episodes = [0] * num_agents
        self._episode_return = [0.0] * num_agents
        self._episode_actions: list[list[np.ndarray]] = [[] for _ in range(num_agents)]
        self._is_open = False

    def take_finished(self) -> list[FinishedEpisode]:
        """The episodes that ended since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def step(self) -> None:
        """Every agent takes one env step."""
        if not self._is_open:
            self._is_open = True
            for agent in range(len(self.environments)):
                self._begin_episode(agent)
        action = self._explore()
        num_agents = len(self.environments)
        reward, terminated = np.zeros(num_agents, np.float32), np.zeros(num_agents, np.float32)
        ended = []
        self.env_steps += 1
        for agent, environment in enumerate(self.environments):
            a = action[agent, : environment.action_size]
            observation, r, is_terminated, is_truncated = environment.step(a)
            self._observation[agent, : environment.observation_size] = observation
            reward[agent], terminated[agent] = r, is_terminated
            self._episode_return[agent] += r
            self._episode_actions[agent].append(a)
            if is_terminated or is_truncated:
                ended.append(agent)
        self.replay.append(action, reward, terminated, self._observation)
        for agent in ended:
            length = len(self._episode_actions[agent])
            self.finished.append(FinishedEpisode(agent, self._episode_return[agent], length, self.env_steps))
            self.recent_returns[agent].append(self._episode_return[agent])
            self._begin_episode(agent)

    @property
    def num_collected(self) -> int:
        """Env steps of each agent since its replay was empty: those of the run, or since a resume without a replay."""
        return int(self.replay.count.min())

    def draw(self, num_windows: int) -> Windows:
        """New windows of every agent, from all that was collected so far, the newest step included, where updates are computed."""
        return self.sample(num_windows, self._draws)

    def sample(self, num_windows: int, streams: AgentStreams) -> Windows:
        """Windows drawn from random streams of somebody else, who does not want to touch the training's."""
        windows = self.replay.sample(num_windows, streams)
        return Windows(*(x.to(self._update_device) for x in windows))

    def _explore(self) -> np.ndarray:
        """Noisy policy actions, or uniform ones at the start, [P, A]; nobody reads padded ones."""
        sizes = [environment.action_size for environment in self.environments]
        if self.env_steps < self._random_env_steps:
            return (2 * self._streams.uniform(self.replay.action_size, sizes=sizes) - 1).float().numpy()
        noise = self._noise * self._streams.normal(self.replay.action_size, sizes=sizes)
        action = self._act(torch.from_numpy(self._observation)).cpu() + noise
        return action.clamp(-1, 1).numpy()

    def _begin_episode(self, agent: int) -> None:
        first = self._reset(agent, self._num_episodes[agent])
        self._num_episodes[agent] += 1
        self._episode_return[agent] = 0.0
        self._episode_actions[agent] = []
        self._observation[agent, : len(first)] = first
        self.replay.begin_episode(agent, first)

    def _reset(self, agent: int, episode: int) -> np.ndarray:
        # Gymnasium's seeds are 32 bit in some environments.
        return self.environments[agent].reset(derive_seed(self._seeds[agent], "episode", episode) % 2**31)

    def close(self) -> None:
        """Close the environments."""
        for environment in self.environments:
            environment.close()

    def state_dict(self) -> dict[str, Any]:
        """Seeds, counters, random streams and each agent's open episode, in plain containers and tensors."""
        return {
            "seeds": list(self._seeds),
            "env_steps": self.env_steps,
            "is_open": self._is_open,
            "num_episodes": list(self._num_episodes),
            "episode_return": list(self._episode_return),
            "episode_actions": [torch.from_numpy(np.array(actions, np.float32)) for actions in self._episode_actions],
            "observation": torch.from_numpy(self._observation.copy()),
            "streams": self._streams.state_dict(),
            "draws": self._draws.state_dict(),
            "recent_returns": [list(returns) for returns in self.recent_returns],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Restore what `state_dict` gave; the replay must have been restored before.

        Open episodes are re-entered: reset with the same seed, then the same actions.

        Returns:
            Agents whose environment did not reproduce its episode. That episode counts as truncated and a new one has begun.
        """
        self._seeds, self.env_steps, self._is_open = list(state["seeds"]), state["env_steps"], state["is_open"]
        self._num_episodes, self._episode_return = list(state["num_episodes"]), list(state["episode_return"])
        self._episode_actions = [list(actions.numpy()) for actions in state["episode_actions"]]
        self._observation = state["observation"].numpy().copy()
        self._streams.load_state_dict(state["streams"])
        self._draws.load_state_dict(state["draws"])
        self.finished = []
        for recent, returns in zip(self.recent_returns, state["recent_returns"], strict=True):
            recent.clear()
            recent.extend(returns)
        if not self._is_open:
            return []
        lost = [agent for agent in range(len(self.environments)) if not self._reenter(agent)]
        for agent in lost:
            self._begin_episode(agent)
        return lost

    def _reenter(self, agent: int) -> bool:
        """Repeat an agent's open episode; whether it led to the same observation and return."""
        environment = self.environments[agent]
        observation, episode_return = self._reset(agent, self._num_episodes[agent] - 1), 0.0
        for action in self._episode_actions[agent]:
            observation, reward, is_terminated, is_truncated = environment.step(action)
            episode_return += reward
            if is_terminated or is_truncated:
                return False
        is_same = np.array_equal(observation, self._observation[agent, : environment.observation_size])
        return is_same and episode_return == self._episode_return[agent]
