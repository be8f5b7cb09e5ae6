"""The collector steps the agents' environments, fills the replay, and saves the state that an exact resume needs."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagenrl_pl.agents.lifetimes import Lifetimes
from metagenrl_pl.agents.windows import Windows
from metagenrl_pl.common.messages import read_count
from metagenrl_pl.common.streams import AgentStreams, derive_seed, to_device
from metagenrl_pl.environments.group import EnvironmentGroup, Steps
from metagenrl_pl.experience.replay import Replay


def episode_seed(seed: int, episode: int) -> int:
    """The seed of the environment's reset for an agent's episode with this number."""
    return derive_seed(seed, "episode", episode) % 2**31  # some environments accept 32-bit seeds only


class Collector:
    """One environment per agent, all stepped together.

    An env step has two halves, so that updates run while environments step: `begin_step` computes actions and sends them to the
    environments, `end_step` stores the results. Windows that are drawn in between do not contain the current step.

    Every episode begins with `reset(seed)`, where the seed depends only on the agent's seed and the episode's number. So seed and
    actions determine an episode. A resume needs this, because environments cannot save their state exactly: it repeats the open
    episode.

    Args:
        environments: one for each agent.
        seeds: one for each agent.
        replay: stores every step.
        act: observations [P, O] -> noise-free actions [P, A] in [-1, 1].
        exploration_noise: standard deviation, for actions in [-1, 1].
        random_env_steps: uniformly random actions that each agent takes first, in env steps.
        update_device: device of the windows; the replay's device by default.
        lifetimes: when agents are replaced by fresh ones; never by default.
        renew: called when the networks of an agent's new life replace the old ones, with the agent and the seed of its fresh
            weights.
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
        self._new_returns: list[list[float]] = [[] for _ in range(num_agents)]  # of episodes since the last `take_returns`
        self._observation = np.zeros((num_agents, replay.observation_size), np.float32)
        self._action = torch.zeros(num_agents, replay.action_size)  # of the current step
        self._action_copied: torch.cuda.Event | None = None  # pending while a GPU copies `_action` to the CPU
        self._num_episodes = [0] * num_agents  # the number of the next episode
        self._episode_return = [0.0] * num_agents
        self._episode_actions = [bytearray() for _ in range(num_agents)]  # as float32, [t, A]: an episode may go on for ever
        self._is_open = False

    def take_returns(self) -> list[list[float]]:
        """Each agent's returns of the episodes that ended since the last call."""
        returns, self._new_returns = self._new_returns, [[] for _ in self._new_returns]
        return returns

    def newest_returns(self) -> list[float]:
        """Each agent's mean return of the last (up to 10) episodes of its life; that of the open episode if none has ended."""
        return [
            float(np.mean(returns)) if returns else open_return
            for returns, open_return in zip(self.recent_returns, self._episode_return, strict=True)
        ]

    def step(self) -> None:
        """One env step of every agent."""
        self.begin_step()
        self.end_step()

    def begin_step(self) -> None:
        """Choose an action for every agent and start the environments' step, unless a GPU still computes the actions."""
        if not self._is_open:
            self._is_open = True
            for agent in range(len(self.environments)):
                self._begin_episode(agent)
        self._start_lives()
        action = self._choose_actions()
        self._action = action.to("cpu", non_blocking=True)
        if action.is_cuda:
            # Waiting here would delay the update, which can start on the GPU meanwhile. `end_step` waits.
            self._action_copied = torch.cuda.Event()
            self._action_copied.record(torch.cuda.current_stream(action.device))
        else:
            self.environments.begin_step(self._action.numpy())

    def _start_lives(self) -> None:
        """Begin the lives that are due at this step, and replace the networks of agents whose warm-up ends (see `Lifetimes`)."""
        lives = self._lifetimes.life(self.env_steps)
        for agent in self._lifetimes.starting(self.env_steps):
            assert self._lifetimes.length is not None  # or no life would start
            # Episodes of a life have numbers of its own, above those of the lives before, which have one a step at most. So agents with
            # the same seed meet the same episodes in every life, however many they had before (evolution compares such agents).
            self._num_episodes[agent] = int(lives[agent]) * (self._lifetimes.length + 1)
            self._begin_episode(agent)  # the old agent's open episode counts as truncated
            self.recent_returns[agent].clear()
        for agent in self._lifetimes.ending_warmup(self.env_steps):
            self._renew(agent, derive_seed(self._seeds[agent], "life", int(lives[agent])))
            self.replay.keep_newest(agent, self._lifetimes.warmup)

    def end_step(self) -> None:
        """Wait for the environments, store their step in the replay, and begin new episodes where one has ended."""
        if self._action_copied is not None:
            self._action_copied.synchronize()
            self._action_copied = None
            self.environments.begin_step(self._action.numpy())
        steps, action = self.environments.end_step(), self._action.numpy()
        self._step_lost_again(steps, action)
        self.env_steps += 1
        self._observation[:, : steps.observation.shape[1]] = steps.observation  # other processes may have wider observations
        self.replay.append(action, steps.reward, steps.terminated, steps.observation)
        for agent, (_, action_size) in enumerate(self.environments.sizes):
            self._episode_return[agent] += float(steps.reward[agent])
            self._episode_actions[agent] += action[agent, :action_size].tobytes()
        for agent in np.flatnonzero(steps.ended).tolist():
            self._new_returns[agent].append(self._episode_return[agent])
            self.recent_returns[agent].append(self._episode_return[agent])
            self._begin_episode(agent)

    def _step_lost_again(self, steps: Steps, action: np.ndarray) -> None:
        """Begin a new episode where the open one is lost, and take the step there, so that every agent has taken one.

        The lost episode counts as truncated. Its last action, chosen for another state, is an exploring one in the new episode.
        """
        while (lost := self.environments.lost.copy()).any():
            for agent in np.flatnonzero(lost).tolist():
                self._begin_episode(agent)
            self.environments.begin_step(action, lost)
            again = self.environments.end_step()
            for array, new in zip(steps, again, strict=True):
                array[lost] = new[lost]

    @property
    def num_collected(self) -> int:
        """Env steps of each agent since its replay was empty: of the whole run, or since a resume without a replay."""
        return int(self.replay.count.min())

    def draw(self, num_windows: int) -> Windows:
        """Draw windows of every agent for an update, on the update device."""
        return self.sample(num_windows, self._draws)

    def sample(self, num_windows: int, streams: AgentStreams) -> Windows:
        """Draw windows with the caller's random streams, so that training's streams do not advance."""
        windows = self.replay.sample(num_windows, streams)
        return Windows(*(to_device(x, self._update_device) for x in windows))

    def _choose_actions(self) -> Tensor:
        """Noisy policy actions, or uniform ones at the start of a life, [P, A], on the policies' device. Padding is not used."""
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
            mask = to_device(torch.from_numpy(is_random)[:, None], action.device)
            action = torch.where(mask, to_device(random_action, action.device), action)
        return action

    def _begin_episode(self, agent: int) -> None:
        first = self.environments.reset(agent, episode_seed(self._seeds[agent], self._num_episodes[agent]))
        self._num_episodes[agent] += 1
        self._episode_return[agent] = 0.0
        self._episode_actions[agent] = bytearray()
        self._observation[agent, : len(first)] = first
        self.replay.begin_episode(agent, first)

    def close(self) -> None:
        self.environments.close()

    def state_dict(self) -> dict[str, Any]:
        """Env steps and, for each agent, its seed, random streams, returns and open episode. Call it between two steps only."""
        return {
            "env_steps": self.env_steps,
            "is_open": self._is_open,
            "agents": [
                {
                    "seed": self._seeds[agent],
                    "num_episodes": self._num_episodes[agent],
                    "episode_return": self._episode_return[agent],
                    "episode_actions": torch.from_numpy(self._actions_of_episode(agent)),
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
        """Restore the result of `state_dict`. The replay must have been restored before.

        Returns:
            Agents whose environment did not reproduce its open episode. That episode counts as truncated, and a new one has
                begun.
        """
        # 1. Counters, observations and random streams.
        self.env_steps, self._is_open, agents = read_count(state, "env_steps"), bool(state["is_open"]), state["agents"]
        self._seeds = [agent["seed"] for agent in agents]
        self._num_episodes = [read_count(agent, "num_episodes") for agent in agents]
        self._episode_return = [agent["episode_return"] for agent in agents]
        self._episode_actions = [bytearray(agent["episode_actions"].numpy().tobytes()) for agent in agents]
        self._observation[:] = 0
        for row, agent in zip(self._observation, agents, strict=True):
            row[: len(agent["observation"])] = agent["observation"].numpy()
        self._streams.load_state_dict([agent["exploration"] for agent in agents])
        self._draws.load_state_dict([agent["draws"] for agent in agents])
        self._new_returns = [list(agent["new_returns"]) for agent in agents]
        for recent, agent in zip(self.recent_returns, agents, strict=True):
            recent.clear()
            recent.extend(agent["recent_returns"])
        # 2. Without open episodes (or without their replay), the next step begins new ones.
        if not self._is_open:
            return []
        # 3. Bring each environment back into its open episode, by the same reset and the same actions. The replay already has
        #    these steps, so nothing is stored.
        lost = [agent for agent in range(len(self.environments)) if not self._repeat_open_episode(agent)]
        # 4. A new version of an environment may behave differently. Then give up the episode.
        for agent in lost:
            self._begin_episode(agent)
        return lost

    def _repeat_open_episode(self, agent: int) -> bool:
        """Repeat an agent's open episode. Returns whether it led to the same observation and return, and did not end."""
        observation_size, _ = self.environments.sizes[agent]
        seed = episode_seed(self._seeds[agent], self._num_episodes[agent] - 1)
        episode = self.environments.repeat(agent, seed, self._actions_of_episode(agent))
        is_same = np.array_equal(episode.observation, self._observation[agent, :observation_size])
        return is_same and not episode.ended and episode.episode_return == self._episode_return[agent]

    def _actions_of_episode(self, agent: int) -> np.ndarray:
        """A copy of an agent's actions in its open episode, [t, A]."""
        actions = np.frombuffer(self._episode_actions[agent], np.float32).reshape(-1, self.environments.sizes[agent][1])
        return actions.copy()  # while another array uses the bytes, they cannot grow
