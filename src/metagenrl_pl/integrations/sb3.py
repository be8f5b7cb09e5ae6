"""TD3 of Stable-Baselines3 whose actor descends a learned objective."""

import copy
import warnings
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces

from metagenrl_pl.common.messages import one_line
from metagenrl_pl.integrations.actor import actor_loss, find_objective, meta_trained_with
from metagenrl_pl.integrations.windows import WindowBatch, draw_windows, gather_windows, goes_on
from metagenrl_pl.objectives import Objective

try:
    from stable_baselines3 import TD3
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
    from stable_baselines3.common.utils import polyak_update
    from stable_baselines3.common.vec_env import VecNormalize
    from stable_baselines3.td3.policies import TD3Policy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"Stable-Baselines3 is missing ({error}); pip install 'metagenrl-pl[sb3]'") from error


class WindowReplayBuffer(ReplayBuffer):
    """The replay buffer of Stable-Baselines3, which can also draw windows. Its arguments are those of `ReplayBuffer`.

    Raises:
        ValueError: if observations are no Box, or `optimize_memory_usage` is set.
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        if not isinstance(observation_space, spaces.Box):
            raise ValueError(
                f"observations are {type(observation_space).__name__}; valid is a Box, as gymnasium.wrappers.FlattenObservation gives"
            )
        super().__init__(buffer_size, observation_space, *args, **kwargs)
        if self.optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True: windows need the last observations of episodes; valid is False")
        self.ends = np.zeros((self.buffer_size, self.n_envs), bool)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one step of every environment."""
        if self.size():  # a new call of `learn` resets environments in the middle of an episode
            self.ends[self.pos - 1] |= ~goes_on(self.next_observations[self.pos - 1], obs)
        self.ends[self.pos] = done
        super().add(obs, next_obs, action, reward, done, infos)

    def sample_windows(self, num_windows: int, window_length: int, env: VecNormalize | None = None) -> WindowBatch:
        """Draw windows (see `draw_windows`). Actions are in [-1, 1], as `ReplayBuffer` stores them.

        Args:
            num_windows, window_length: B and T.
            env: normalises observations and rewards.
        """
        index = draw_windows(self.ends, self.pos if self.full else 0, self.size(), num_windows, window_length)
        normalize: dict[str, Any] = (
            {} if env is None else {"normalize_observations": env.normalize_obs, "normalize_rewards": env.normalize_reward}
        )
        return gather_windows(
            index,
            self.observations,
            self.next_observations,
            self.actions,
            self.rewards,
            self.dones,
            self.device,
            truncated=self.timeouts,
            **normalize,
        )


class LearnedTD3(TD3):
    """TD3 whose actor descends a learned objective instead of -Q. Everything else is `stable_baselines3.TD3`.

    The critics learn from batches of single steps, the actor from windows. Both come from the same replay buffer.

    Args:
        policy: as in TD3, but without Dict observations.
        env: as in TD3.
        objective: the name of a pretrained one (`list_pretrained`), a `.safetensors` file, a run folder, or an objective.
        num_windows, window_length: windows of an actor update; by default those of the objective's meta-training.
        max_grad_norm: largest norm of the actor's gradient; by default that of the objective's meta-training.
        td3_kwargs: arguments of TD3.

    Raises:
        ValueError: if there is no such objective, a number is not positive, or an argument of TD3 does not work with windows.
    """

    replay_buffer: WindowReplayBuffer
    _copied: Objective | None = None

    def __init__(
        self,
        policy: str | type[TD3Policy],
        env: GymEnv | str | None,
        objective: Objective | Path | str = "light",
        num_windows: int | None = None,
        window_length: int | None = None,
        max_grad_norm: float | None = None,
        **td3_kwargs: Any,
    ) -> None:
        if td3_kwargs.get("replay_buffer_class") is ReplayBuffer:
            raise ValueError(
                "replay_buffer_class=ReplayBuffer: valid is WindowReplayBuffer or a subclass, since actors need windows"
            )
        self.objective = find_objective(objective)
        card = meta_trained_with(self.objective)
        self.num_windows = card.num_windows if num_windows is None else num_windows
        self.window_length = card.window_length if window_length is None else window_length
        self.max_grad_norm = card.max_grad_norm if max_grad_norm is None else max_grad_norm
        super().__init__(policy, env, **td3_kwargs)  # type: ignore[arg-type]

    def _setup_model(self) -> None:
        """Also called by `load`, with attributes of the saved model, which may be one of TD3, and of its own arguments."""
        if self.replay_buffer_class in (None, ReplayBuffer):
            self.replay_buffer_class = WindowReplayBuffer
        self._check()
        super()._setup_model()
        self._objective_here()

    def _check(self) -> None:
        buffer = self.replay_buffer_class
        if not issubclass(buffer, WindowReplayBuffer):  # type: ignore[arg-type]
            raise ValueError(
                f"replay_buffer_class={buffer.__name__}: valid is WindowReplayBuffer or a subclass, since actors need windows"  # type: ignore[union-attr]
            )
        if getattr(self, "n_steps", 1) != 1:
            raise ValueError(f"n_steps={self.n_steps}: valid is 1, since windows have single rewards")
        for name, kind in (("num_windows", Integral), ("window_length", Integral), ("max_grad_norm", Real)):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not value > 0:  # type: ignore[operator]
                raise ValueError(f"{name}={value!r}: valid is a positive {'whole ' * (kind is Integral)}number")

    def _objective_here(self) -> Objective:
        """The objective on this model's device. `self.objective` stays where it is, on the CPU unless it was given elsewhere."""
        if self._copied is not self.objective:  # it may be replaced at any time
            self.objective = self._copied = find_objective(self.objective)
            self._device_objective = copy.deepcopy(self.objective).to(self.device)
        return self._device_objective

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Update the critics as TD3 does, and after every `policy_delay` updates the actor and the targets."""
        actor_losses, critic_losses = [], []
        for _ in range(gradient_steps):
            self._update_critics(batch_size)
            critic_losses.append(self.logger.name_to_value["train/critic_loss"])
            if self._n_updates % self.policy_delay == 0:
                actor_losses.append(self._update_actor())
        for name, losses in (("actor", actor_losses), ("critic", critic_losses)):
            if losses:
                self.logger.record(f"train/{name}_loss", np.mean(losses))

    def _update_critics(self, batch_size: int) -> None:
        """One update of TD3, with a delay that keeps it from updating its actor."""
        delay, self.policy_delay = self.policy_delay, self._n_updates + 2
        try:
            super().train(1, batch_size)
        finally:
            self.policy_delay = delay

    def _update_actor(self) -> float:
        windows = self.replay_buffer.sample_windows(self.num_windows, self.window_length, env=self._vec_normalize_env)
        loss = actor_loss(self._objective_here(), self.actor, self._critics(), windows)
        self.actor.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.actor.parameters(), self.max_grad_norm)
        self.actor.optimizer.step()
        for fast, slow, rate in (
            (self.critic.parameters(), self.critic_target.parameters(), self.tau),
            (self.actor.parameters(), self.actor_target.parameters(), self.tau),
            (self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0),
            (self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0),
        ):
            polyak_update(fast, slow, rate)
        return loss.item()

    def _critics(self) -> list[Any]:
        """The critics as functions of observations and actions. Only the first one where the objective uses no other."""
        first = self.critic.q1_forward
        if self.objective.critic_gradient_of == "first":
            return [first]
        return [
            first,
            *(lambda states, action, i=i: self.critic(states, action)[i] for i in range(1, len(self.critic.q_networks))),
        ]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "LearnedTD3",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As in TD3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Self:
        """As in TD3.

        Raises:
            ValueError: if the file's objective cannot be read here, such as one that was given on a GPU that is not there.
        """
        with warnings.catch_warnings():  # Stable-Baselines3 would warn, and the model would go on with the default objective
            warnings.filterwarnings("error", "Could not deserialize object objective")
            try:
                return super().load(*args, **kwargs)
            except UserWarning as warning:
                raise ValueError(
                    f"the objective in the file cannot be read here ({one_line(warning)}); valid is "
                    "custom_objects={'objective': ...} with the name of a pretrained one, a file or an objective"
                ) from warning

    def load_replay_buffer(self, *args: Any, **kwargs: Any) -> None:
        """As in TD3.

        Raises:
            ValueError: if the saved buffer cannot draw windows, such as one of TD3. The model keeps the one that it has.
        """
        former = self.replay_buffer
        super().load_replay_buffer(*args, **kwargs)
        if not isinstance(self.replay_buffer, WindowReplayBuffer):
            kind, self.replay_buffer = type(self.replay_buffer).__name__, former
            raise ValueError(f"the saved replay buffer is a {kind}; valid is a WindowReplayBuffer, since actors need windows")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_device_objective", "_copied"]
