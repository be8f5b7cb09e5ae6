"""TD3 of Stable-Baselines3 with a learned objective: its options work as its users know them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_environments  # noqa: F401  (registers them)
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from metagenrl_pl.integrations import sb3
from metagenrl_pl.integrations.actor import actor_loss, find_objective
from metagenrl_pl.integrations.sb3 import LearnedTD3, WindowReplayBuffer
from metagenrl_pl.objectives import CriticObjective, LearnedMixture, Objective

Make = Callable[..., LearnedTD3]
SMALL: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [8, 8]},
    "device": "cpu",
    "buffer_size": 400,
    "learning_starts": 20,
    "seed": 0,
}


def counting(num_envs: int = 1, **kwargs: Any) -> Any:
    return make_vec_env("Counting-v0", num_envs, env_kwargs={"ends_after": 7, **kwargs})


def pendulum() -> Any:
    return make_vec_env("Pendulum-v1", 1, env_kwargs={"max_episode_steps": 9})


def make(env: Any = None, objective: Objective | str = "light", **options: Any) -> LearnedTD3:
    return LearnedTD3("MlpPolicy", pendulum() if env is None else env, objective, **{**SMALL, "batch_size": 16, **options})


def parameters(model: TD3, name: str) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(getattr(model, name).parameters()).detach().clone()


def test_settings_are_those_of_the_card_unless_given() -> None:
    model = make()
    assert (model.num_windows, model.window_length, model.max_grad_norm) == (16, 10, 1.0)
    assert (model.gamma, model.policy_delay, model.tau) == (0.99, 2, 0.005)  # those of TD3
    model = make(num_windows=4, window_length=3, max_grad_norm=0.5)
    assert (model.num_windows, model.window_length, model.max_grad_norm) == (4, 3, 0.5)


def test_critics_learn_as_in_td3_and_the_actor_from_the_objective() -> None:
    """Both learn on the same random actions. Until the first actor update, they are the same bits."""
    mine, theirs = (
        kind("MlpPolicy", pendulum(), **{**SMALL, "batch_size": 16}).learn(21)  # one after the other, as both seed all generators
        for kind in (LearnedTD3, TD3)
    )
    assert mine._n_updates == theirs._n_updates == 1
    assert torch.equal(parameters(mine, "critic"), parameters(theirs, "critic"))
    before = {name: parameters(mine, name) for name in ("actor", "critic", "actor_target", "critic_target")}
    mine.train(1, 16)
    after = {name: parameters(mine, name) for name in before}
    assert all(not torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(after["actor_target"], before["actor_target"].lerp(after["actor"], 0.005))
    torch.testing.assert_close(after["critic_target"], before["critic_target"].lerp(after["critic"], 0.005))
    assert mine.policy_delay == 2 and isinstance(mine._device_objective, torch.nn.Module)


def test_its_loss_with_the_critic_as_objective_has_the_gradient_of_td3() -> None:
    model = make(objective=CriticObjective())
    model.learn(40)
    windows = model.replay_buffer.sample_windows(8, 5)
    states = windows.transitions()[0]
    plain = -model.critic.q1_forward(states, model.actor(states)).mean()
    expected = torch.autograd.grad(plain, list(model.actor.parameters()))
    found = torch.autograd.grad(
        actor_loss(model._device_objective, model.actor, model._critics(), windows), list(model.actor.parameters())
    )
    torch.testing.assert_close(found, expected)


def test_an_objective_of_both_critics_gets_both() -> None:
    model = make(objective=CriticObjective("both"))
    model.learn(40)
    states, action = torch.zeros(3, 3), torch.ones(3, 1)
    values = [critic(states, action) for critic in model._critics()]
    torch.testing.assert_close(values, list(model.critic(states, action)))
    assert len(make()._critics()) == 1


def test_windows_follow_episodes_of_several_environments_through_time_limits_and_resets() -> None:
    env = make_vec_env("Counting-v0", 3, env_kwargs={"ends_after": 7}, wrapper_class=time_limit)
    model = make(env, train_freq=1, gradient_steps=1)
    model.learn(100)
    model.learn(31)  # resets the environments in the middle of their episodes, without an end in the replay
    windows = model.replay_buffer.sample_windows(500, 4)
    states, is_state = windows.states, torch.cat([torch.ones(500, 1), windows.valid], 1) > 0
    assert all(len(states[b, is_state[b], 0].unique()) == 1 for b in range(500))  # the episode
    steps = (states[:, 1:, 1] - states[:, :-1, 1])[windows.valid > 0]
    assert (steps == 1).all() and not windows.terminated.any() and windows.states[..., 1].max() == 5
    assert windows.valid[:, 0].all() and (windows.valid.sum(1) < 4).any()


def time_limit(env: Any) -> Any:
    from gymnasium.wrappers import TimeLimit

    return TimeLimit(env, 5)


def test_observations_and_rewards_are_normalised() -> None:
    env = VecNormalize(counting(2), gamma=0.9)
    model = make(env)
    model.learn(60)
    np.random.seed(3)
    raw = model.replay_buffer.sample_windows(20, 4)
    np.random.seed(3)
    windows = model.replay_buffer.sample_windows(20, 4, env=model.get_vec_normalize_env())
    is_state = torch.cat([torch.ones(20, 1), raw.valid], 1)[..., None].numpy()
    np.testing.assert_allclose(windows.states.numpy(), env.normalize_obs(raw.states.numpy()) * is_state, rtol=1e-6)
    np.testing.assert_allclose(windows.reward.numpy(), env.normalize_reward(raw.reward.numpy()) * raw.valid.numpy(), rtol=1e-6)
    assert torch.equal(windows.action, raw.action) and not torch.equal(windows.states, raw.states)


def test_the_actors_gradient_is_clipped() -> None:
    model = make(max_grad_norm=1e-4).learn(24)
    assert torch.cat([p.grad.flatten() for p in model.actor.parameters() if p.grad is not None]).norm() <= 1.001e-4


def test_the_actors_windows_are_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    loss = sb3.actor_loss
    monkeypatch.setattr(sb3, "actor_loss", lambda *arguments: (seen.append(arguments[3].states), loss(*arguments))[1])  # type: ignore[func-returns-value]
    env = VecNormalize(counting(2))
    make(env).learn(60)
    assert seen and seen[-1].abs().max() <= env.clip_obs  # an episode's number is up to a million


def test_a_saved_model_goes_on_as_if_it_had_not_been_saved(tmp_path: Path) -> None:
    model = make(objective="mixture", num_windows=5, action_noise=NormalActionNoise(np.zeros(1), np.full(1, 0.1)))
    model.learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    other = LearnedTD3.load(tmp_path / "model", pendulum(), device="cpu")
    other.load_replay_buffer(tmp_path / "replay")
    assert (
        type(other.objective) is type(model.objective)
        and other.num_windows == 5
        and repr(other.objective) == repr(model.objective)
    )
    observation = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(other.predict(observation)[0], model.predict(observation)[0])
    other.set_logger(model.logger)
    for one in (model, other):
        np.random.seed(0), torch.manual_seed(0)
        one.train(4, 16)
    assert torch.equal(parameters(model, "actor"), parameters(other, "actor"))


def test_callbacks_and_episodic_updates_work(tmp_path: Path) -> None:
    callbacks = CallbackList([CheckpointCallback(30, str(tmp_path)), StopTrainingOnMaxEpisodes(8)])
    model = make(counting(), train_freq=(1, "episode"), gradient_steps=-1)
    model.learn(1000, callback=callbacks)
    assert model.num_timesteps == 56 and len(list(tmp_path.glob("*.zip"))) == 1 and model._n_updates == 35


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "Light"}, "there is no pretrained objective 'Light'; did you mean 'light'?"),
        ({"num_windows": 0}, "num_windows=0: valid is a positive whole number"),
        ({"num_windows": 2.5}, "num_windows=2.5: valid is a positive whole number"),
        ({"window_length": "4"}, "window_length='4': valid is a positive whole number"),
        (
            {"objective": 1e-3},
            "objective=0.001: valid is the name of a pretrained one, a .safetensors file, a run folder, or an objective",
        ),
        ({"objective": CriticObjective}, "objective=<class"),
        ({"replay_buffer_class": ReplayBuffer}, "replay_buffer_class=ReplayBuffer: valid is WindowReplayBuffer"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0: valid is a positive number"),
        ({"n_steps": 3}, "n_steps=3: valid is 1"),
        ({"replay_buffer_class": TD3.__mro__[1]}, "replay_buffer_class=OffPolicyAlgorithm: valid is WindowReplayBuffer"),
        (
            {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
            "optimize_memory_usage=True: ",
        ),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_observations_that_are_no_box_are_refused() -> None:
    from gymnasium import spaces

    with pytest.raises(
        ValueError, match=r"observations are Dict; valid is a Box, as gymnasium.wrappers.FlattenObservation gives"
    ):
        WindowReplayBuffer(10, spaces.Dict({"x": spaces.Box(-1, 1)}), spaces.Box(-1, 1), "cpu")


def test_observations_that_are_wider_than_their_space_follow_each_other() -> None:
    """A vector environment in other processes hands float64 through, which the buffer stores as float32."""
    from gymnasium import spaces

    buffer = WindowReplayBuffer(50, spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1), "cpu", n_envs=2)
    path = np.random.default_rng(0).normal(size=(20, 2, 1))  # float64
    for before, after in zip(path[:-1], path[1:], strict=True):
        buffer.add(before, after, np.zeros((2, 1)), np.zeros(2), np.zeros(2), [{}, {}])
    assert not buffer.ends.any()
    buffer.add(path[3], path[4], np.zeros((2, 1)), np.zeros(2), np.zeros(2), [{}, {}])  # a reset between
    assert buffer.ends.sum() == 2 and buffer.ends[18].all()


def test_padding_does_not_reach_batch_normalisation() -> None:
    from stable_baselines3.common.torch_layers import FlattenExtractor

    class Normalising(FlattenExtractor):
        def __init__(self, space: Any) -> None:
            super().__init__(space)
            self.norm = torch.nn.BatchNorm1d(self.features_dim)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.norm(super().forward(observations))

    model = make(counting(), policy_kwargs={"net_arch": [8], "features_extractor_class": Normalising}, window_length=60)
    model.learn(20)
    for episode in range(20):
        step = [np.full((1, *model.observation_space.shape), 100.0 + episode)] * 2  # type: ignore[misc]
        model.replay_buffer.add(*step, np.zeros((1, 1)), np.zeros(1), np.ones(1), [{}])
    model.replay_buffer.observations[: model.replay_buffer.pos] = model.replay_buffer.next_observations[
        : model.replay_buffer.pos
    ] = 100
    model.actor.set_training_mode(True)
    norm: Any = model.actor.features_extractor.norm  # type: ignore[union-attr]
    norm.reset_running_stats()
    norm.momentum = None  # the mean over all batches
    model._update_actor()
    torch.testing.assert_close(norm.running_mean, torch.full_like(norm.running_mean, 100.0))


def test_the_objective_can_be_replaced() -> None:
    actors = []
    for replacement in (None, "mixture"):
        model = make(objective=CriticObjective()).learn(21)
        model.objective = find_objective(replacement) if replacement else model.objective
        model.learn(2, reset_num_timesteps=False)
        assert type(model._device_objective) is type(model.objective)
        actors.append(parameters(model, "actor"))
    assert not torch.equal(*actors)


def test_a_model_of_td3_goes_on_with_an_objective(tmp_path: Path) -> None:
    TD3("MlpPolicy", pendulum(), **SMALL).learn(25).save(tmp_path / "td3")
    model = LearnedTD3.load(tmp_path / "td3", pendulum(), objective="mixture", num_windows=4)
    model.learn(25)
    assert repr(model.objective) == repr(find_objective("mixture")) and model.num_windows == 4
    assert isinstance(model.replay_buffer, WindowReplayBuffer) and model._n_updates == 10
    for wrong, message in (({"objective": "Light"}, "there is no"), ({"num_windows": 0}, "num_windows=0: valid is")):
        with pytest.raises(ValueError, match=message):
            LearnedTD3.load(tmp_path / "td3", pendulum(), **wrong)


def test_a_replay_buffer_of_td3_is_refused(tmp_path: Path) -> None:
    theirs = TD3("MlpPolicy", pendulum(), **SMALL).learn(5)
    theirs.save_replay_buffer(tmp_path / "buffer")
    model = make(replay_buffer_class=None)
    mine = model.replay_buffer
    with pytest.raises(ValueError, match="the saved replay buffer is a ReplayBuffer; valid is a WindowReplayBuffer"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is mine


def test_the_logged_loss_of_critics_is_the_mean_over_updates() -> None:
    """As TD3 logs it."""
    losses = []
    for kind in (LearnedTD3, TD3):
        model = kind("MlpPolicy", pendulum(), **{**SMALL, "batch_size": 16, "policy_delay": 100}).learn(21)
        np.random.seed(0)
        torch.manual_seed(0)
        model.train(5, 16)
        losses.append(model.logger.name_to_value["train/critic_loss"])
    assert losses[0] == pytest.approx(losses[1])


class Unreadable(CriticObjective):
    """An objective whose file cannot be read elsewhere."""

    def __reduce__(self) -> Any:
        return _gone, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unreadable":
        return Unreadable()


def _gone() -> None:
    raise AttributeError("no such class any more")


def test_a_model_whose_objective_cannot_be_read_does_not_go_on_with_another(tmp_path: Path) -> None:
    make(objective=Unreadable()).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"the objective in the file cannot be read here \(.*no such class any more\); valid is"):
        LearnedTD3.load(tmp_path / "model", pendulum(), device="cpu")
    model = LearnedTD3.load(tmp_path / "model", pendulum(), device="cpu", custom_objects={"objective": "mixture"})
    assert isinstance(model.objective, LearnedMixture)
