"""Steps the agents' environments, fills the replay, and keeps in one place all that an exact resume needs."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.common.streams import AgentStreams, derive_seed, to_device
from metagenrl_pl.environments.group import EnvironmentGroup
from metagenrl_pl.experience.replay import Replay


def episode_seed(seed: int, episode: int) -> int:
    """What an agent with this seed resets its environment with for an episode, counted from 0."""
    return derive_seed(seed, "episode", episode) % 2**31  # Gymnasium's are 32 bit in some environments


class Collector:
    """One environment per agent, all stepped together.

    An env step has two halves, so that updates can be computed while environments step: `begin_step` asks the policies for actions,
    `end_step` stores what came of them. What is drawn in between does not hold the step under way.

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
        lifetimes: when agents are replaced by fresh ones; never by default.
        renew: called with an agent and the seed of its fresh weights, when a new life's networks take over.
    """

    def __init__(
        self,
        environments: EnvironmentGroup,
        seeds: Sequence[int],
        replay: Replay,
        act: Callable[[Tensor], Tensor],
        exploration_noise: float,
        random_env_steps: int,
        update_device: torch.device | None = None,
        lifetimes: Lifetimes | None = None,
        renew: Callable[[int, int], None] = lambda agent, seed: None,
    ) -> None:
        self._lifetimes, self._renew = lifetimes or Lifetimes.single(len(environments)), renew
        self._update_device = update_device or replay.device
        self.environments, self.replay = environments, replay
        self._seeds, self._act = list(seeds), act
        self._noise, self._random_env_steps = exploration_noise, random_env_steps
        self._streams, self._draws = AgentStreams(seeds, "exploration"), AgentStreams(seeds, "replay")
        num_agents = len(environments)
        self.env_steps = 0  # of each agent
        self.recent_returns: list[deque[float]] = [deque(maxlen=10) for _ in range(num_agents)]  # of each agent's last episodes
        self._new_returns: list[list[float]] = [[] for _ in range(num_agents)]  # of episodes that ended since somebody asked
        self._observation = np.zeros((num_agents, replay.observation_size), np.float32)
        self._action = torch.zeros(num_agents, replay.action_size)  # of the step under way
        self._is_computed: torch.cuda.Event | None = None  # once it has happened, a GPU has put them there
        self._num_episodes = [0] * num_agents
        self._episode_return = [0.0] * num_agents
        self._episode_actions: list[list[np.ndarray]] = [[] for _ in range(num_agents)]
        self._is_open = False

    def take_returns(self) -> list[list[float]]:
        """Of each agent the returns of the episodes that ended since the last call."""
        taken, self._new_returns = self._new_returns, [[] for _ in self._new_returns]
        return taken

    def step(self) -> None:
        """Every agent takes one env step."""
        self.begin_step()
        self.end_step()

    def begin_step(self) -> None:
        """Every agent chooses an action; environments begin to step as soon as it is known here."""
        if not self._is_open:
            self._is_open = True
            for agent in range(len(self.environments)):
                self._begin_episode(agent)
        self._start_lives()
        action = self._explore()
        self._action = action.to("cpu", non_blocking=True)
        if action.is_cuda:
            self._is_computed = torch.cuda.Event()
            self._is_computed.record()
        else:
            self.environments.begin_step(self._action.numpy())

    def _start_lives(self) -> None:
        """Begin the lives that are due, and let those take over whose warm-up is over."""
        for agent in self._lifetimes.starting(self.env_steps):
            self._begin_episode(agent)  # the predecessor's open one counts as truncated
            self.recent_returns[agent].clear()
        for agent in self._lifetimes.ending_warmup(self.env_steps):
            life = int(self._lifetimes.life(self.env_steps)[agent])
            self._renew(agent, derive_seed(self._seeds[agent], "life", life))
            self.replay.keep_newest(agent, self._lifetimes.warmup)

    def end_step(self) -> None:
        """Wait for the environments and store the step."""
        if self._is_computed is not None:
            self._is_computed.synchronize()
            self._is_computed = None
            self.environments.begin_step(self._action.numpy())
        steps, action = self.environments.end_step(), self._action.numpy()
        self.env_steps += 1
        self._observation[:, : steps.observation.shape[1]] = steps.observation  # wider agents may live in other processes
        self.replay.append(action, steps.reward, steps.terminated, steps.observation)
        for agent, (_, action_size) in enumerate(self.environments.sizes):
            self._episode_return[agent] += float(steps.reward[agent])
            self._episode_actions[agent].append(action[agent, :action_size])
        for agent in np.flatnonzero(steps.ended).tolist():
            self._new_returns[agent].append(self._episode_return[agent])
            self.recent_returns[agent].append(self._episode_return[agent])
            self._begin_episode(agent)

    @property
    def num_collected(self) -> int:
        """Env steps of each agent since its replay was empty: those of the run, or since a resume without a replay."""
        return int(self.replay.count.min())

    def draw(self, num_windows: int) -> Windows:
        """New windows of every agent, from all that is stored, where updates are computed."""
        return self.sample(num_windows, self._draws)

    def sample(self, num_windows: int, streams: AgentStreams) -> Windows:
        """Windows drawn from random streams of somebody else, who does not want to touch the training's."""
        windows = self.replay.sample(num_windows, streams)
        return Windows(*(x.to(self._update_device) for x in windows))

    def _explore(self) -> Tensor:
        """Noisy policy actions, or uniform ones at the start, [P, A], wherever the policies are; nobody reads padded ones."""
        sizes = [action_size for _, action_size in self.environments.sizes]
        is_random = self._lifetimes.age(self.env_steps) < self._random_env_steps
        uniform = self._streams.uniform(self.replay.action_size, sizes=sizes, agents=np.flatnonzero(is_random).tolist())
        random_action = (2 * uniform - 1).float()
        if is_random.all():
            return random_action
        noise = self._noise * self._streams.normal(
            self.replay.action_size, sizes=sizes, agents=np.flatnonzero(~is_random).tolist()
        )
        action = self._act(torch.from_numpy(self._observation))
        action = (action + to_device(noise, action.device)).clamp(-1, 1)
        if is_random.any():
            chosen = to_device(torch.from_numpy(is_random)[:, None], action.device)
            action = torch.where(chosen, to_device(random_action, action.device), action)
        return action

    def _begin_episode(self, agent: int) -> None:
        first = self.environments.reset(agent, episode_seed(self._seeds[agent], self._num_episodes[agent]))
        self._num_episodes[agent] += 1
        self._episode_return[agent] = 0.0
        self._episode_actions[agent] = []
        self._observation[agent, : len(first)] = first
        self.replay.begin_episode(agent, first)

    def close(self) -> None:
        """Close the environments."""
        self.environments.close()

    def state_dict(self) -> dict[str, Any]:
        """The counter of env steps and, in lists with an entry for each agent, its seed, streams, returns and open episode.

        Between two steps only.
        """
        return {
            "env_steps": self.env_steps,
            "is_open": self._is_open,
            "agents": [
                {
                    "seed": self._seeds[agent],
                    "num_episodes": self._num_episodes[agent],
                    "episode_return": self._episode_return[agent],
                    "episode_actions": torch.from_numpy(np.array(self._episode_actions[agent], np.float32)),
                    "observation": torch.from_numpy(self._observation[agent, : self.environments.sizes[agent][0]].copy()),
                    "exploration": exploration,
                    "draws": draws,
                    "recent_returns": list(self.recent_returns[agent]),
                    "new_returns": list(self._new_returns[agent]),
                }
                for agent, (exploration, draws) in enumerate(
                    zip(self._streams.state_dict(), self._draws.state_dict(), strict=True)
                )
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Restore what `state_dict` gave; the replay must have been restored before.

        Open episodes are re-entered: reset with the same seed, then the same actions.

        Returns:
            Agents whose environment did not reproduce its episode. That episode counts as truncated and a new one has begun.
        """
        self.env_steps, self._is_open, agents = state["env_steps"], state["is_open"], state["agents"]
        self._seeds = [agent["seed"] for agent in agents]
        self._num_episodes = [agent["num_episodes"] for agent in agents]
        self._episode_return = [agent["episode_return"] for agent in agents]
        self._episode_actions = [list(agent["episode_actions"].numpy()) for agent in agents]
        self._observation[:] = 0
        for row, agent in zip(self._observation, agents, strict=True):
            row[: len(agent["observation"])] = agent["observation"].numpy()
        self._streams.load_state_dict([agent["exploration"] for agent in agents])
        self._draws.load_state_dict([agent["draws"] for agent in agents])
        self._new_returns = [list(agent["new_returns"]) for agent in agents]
        for recent, agent in zip(self.recent_returns, agents, strict=True):
            recent.clear()
            recent.extend(agent["recent_returns"])
        if not self._is_open:
            return []
        lost = [agent for agent in range(len(self.environments)) if not self._reenter(agent)]
        for agent in lost:
            self._begin_episode(agent)
        return lost

    def _reenter(self, agent: int) -> bool:
        """Repeat an agent's open episode; whether it led to the same observation and return."""
        observation_size, action_size = self.environments.sizes[agent]
        actions = np.array(self._episode_actions[agent], np.float32).reshape(-1, action_size)
        seed = episode_seed(self._seeds[agent], self._num_episodes[agent] - 1)
        repeated = self.environments.repeat(agent, seed, actions)
        is_same = np.array_equal(repeated.observation, self._observation[agent, :observation_size])
        return is_same and not repeated.ended and repeated.episode_return == self._episode_return[agent]
