"""Trains an ordinary PyTorch policy with a learned objective, which is the only part of this project that it uses.

    python examples/plain_torch.py [--objective path/to/objective.safetensors]

The rest is plain TD3 with twin critics, target networks and a replay. There are two differences. The first is the policy's loss:

    loss = objective(policy(states), actions, rewards, values, terminated, valid, slopes)[valid > 0].mean()

Here `values` are the critic's values of the policy's actions, and `slopes` their gradients with respect to these actions.
(Objectives without `use_critic_gradient`, such as the paper's, ignore `slopes`.) The second difference is the replay: it draws
windows of up to T consecutive steps of one episode instead of single steps. The objective reads them backwards in time.
"""

import argparse
import copy
import sys

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from metagenrl_pl.objectives import ParametricObjective

NUM_WINDOWS, DISCOUNT, LEARNING_RATE, TARGET_RATE, POLICY_DELAY = 32, 0.99, 1e-3, 0.005, 2


def mlp(num_in: int, num_out: int, *last: nn.Module, units: int = 64) -> nn.Sequential:
    hidden = [nn.Linear(num_in, units), nn.ReLU(), nn.LayerNorm(units), nn.Linear(units, units), nn.ReLU(), nn.LayerNorm(units)]
    return nn.Sequential(*hidden, nn.Linear(units, num_out), *last)


class Replay:
    """All episodes. A window is a part of one episode."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, list], int]] = []  # for each step its episode and its index in that episode

    def begin_episode(self, state: np.ndarray) -> np.ndarray:
        self.episode: dict[str, list] = {"states": [state], "actions": [], "rewards": [], "terminated": []}
        return state

    def append(self, action: np.ndarray, reward: float, terminated: bool, next_state: np.ndarray) -> None:
        self.steps.append((self.episode, len(self.episode["actions"])))
        for values, value in zip(self.episode.values(), (next_state, action, reward, terminated), strict=True):
            values.append(value)

    def draw(self, num_steps: int) -> tuple[Tensor, ...]:
        """Draw B windows, padded with 0: states [B, T + 1, O], actions [B, T, A], rewards, terminated and valid [B, T]."""
        state, action = self.episode["states"][0], self.steps[0][0]["actions"][0]
        states, actions = np.zeros((NUM_WINDOWS, num_steps + 1, *state.shape)), np.zeros((NUM_WINDOWS, num_steps, *action.shape))
        rewards, terminated, valid = np.zeros((3, NUM_WINDOWS, num_steps))
        for b, (episode, t) in enumerate(self.steps[i] for i in torch.randint(len(self.steps), (NUM_WINDOWS,))):
            start = max(0, min(t, len(episode["actions"]) - num_steps))  # so a window is short only if its episode is
            for x, values in zip((states, actions, rewards, terminated), episode.values(), strict=True):
                piece = values[start : start + x.shape[1]]
                x[b, : len(piece)] = piece
            valid[b, : len(piece)] = 1
        return tuple(torch.as_tensor(x, dtype=torch.float32) for x in (states, actions, rewards, terminated, valid))


def make(env_id: str) -> gym.Env:
    return gym.wrappers.RescaleAction(gym.make(env_id), np.float32(-1), np.float32(1))  # takes actions in [-1, 1] for any bounds


def act(policy: nn.Module, state: np.ndarray, noise: float = 0.0) -> np.ndarray:
    with torch.no_grad():  # acting, not learning
        action = policy(torch.as_tensor(state, dtype=torch.float32))
        return (action + noise * torch.randn_like(action)).clamp(-1, 1).numpy()


def evaluate(policy: nn.Module, env_id: str, env_steps: int, num_episodes: int = 5) -> None:
    """Print the mean return of noise-free episodes. Every call uses the same initial states."""
    env, total = make(env_id), 0.0
    for episode in range(num_episodes):
        state, ended = env.reset(seed=episode)[0], False
        while not ended:
            state, reward, terminated, truncated, _ = env.step(act(policy, state))
            total, ended = total + float(reward), terminated or truncated
    print(f"{env_id}  env steps {env_steps:>8,}  mean return {total / num_episodes:.1f}", flush=True)


def train(env_id: str, objective: ParametricObjective, env_steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    env, replay, num_steps = make(env_id), Replay(), objective.card.get("window_length", 20)  # as in meta-training
    num_states, num_actions = gym.spaces.flatdim(env.observation_space), gym.spaces.flatdim(env.action_space)
    networks = nn.ModuleList([mlp(num_states, num_actions, nn.Tanh()), *(mlp(num_states + num_actions, 1) for _ in range(2))])
    targets = copy.deepcopy(networks)
    (policy, *critics), (target_policy, *target_critics) = networks, targets
    policy_optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE)
    critic_optimizer = torch.optim.Adam([*critics[0].parameters(), *critics[1].parameters()], LEARNING_RATE)

    def q(critic: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
        return critic(torch.cat([states, actions], -1)).squeeze(-1)

    def update_critics() -> None:
        states, actions, rewards, terminated, valid = replay.draw(num_steps)
        with torch.no_grad():  # targets are constants
            next_actions = target_policy(states[:, 1:]) + (0.2 * torch.randn_like(actions)).clamp(-0.5, 0.5)
            next_value = torch.minimum(*(q(critic, states[:, 1:], next_actions.clamp(-1, 1)) for critic in target_critics))
            target = rewards + DISCOUNT * (1 - terminated) * next_value
        loss = torch.stack([(q(critic, states[:, :-1], actions) - target)[valid > 0] ** 2 for critic in critics]).sum(0).mean()
        critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()

    def update_policy() -> None:
        states, actions, rewards, terminated, valid = replay.draw(num_steps)
        policy_actions = policy(states)  # in all T + 1 states, since the last state needs a value, too
        values = q(critics[0], states, policy_actions)  # the objective detaches them, so no gradient flows into the critic
        used_critics = critics if objective.critic_gradient_of == "both" else critics[:1]
        mean = torch.stack([q(critic, states, policy_actions) for critic in used_critics]).mean(0)
        (slopes,) = torch.autograd.grad(mean.sum(), policy_actions, retain_graph=True)
        loss = objective(policy_actions[:, :-1], actions, rewards, values, terminated, valid, slopes[:, :-1])[valid > 0].mean()
        policy_optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        policy_optimizer.step()
        with torch.no_grad():  # a moving average, not learned
            for slow, fast in zip(targets.parameters(), networks.parameters(), strict=True):
                slow.lerp_(fast, TARGET_RATE)

    state, num_random = replay.begin_episode(env.reset(seed=seed)[0]), env_steps // 10
    evaluate(policy, env_id, 0)
    for step in range(1, env_steps + 1):
        action = (2 * torch.rand(num_actions) - 1).numpy() if step <= num_random else act(policy, state, noise=0.1)
        state, reward, terminated, truncated, _ = env.step(action)
        replay.append(
            action, float(reward), terminated, state
        )  # not `truncated`: after a time limit, later states still have value
        if terminated or truncated:
            state = replay.begin_episode(env.reset()[0])
        if step > num_random:
            update_critics()
            if step % POLICY_DELAY == 0:
                update_policy()
        if step % max(1, env_steps // 5) == 0 or step == env_steps:
            evaluate(policy, env_id, step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Pendulum-v1", help="a Gymnasium environment with continuous actions")
    parser.add_argument(
        "--objective", help="an objective.safetensors that meta-training wrote; by default the package's objective `light`"
    )
    parser.add_argument("--env-steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # faster for tensors this small
    try:
        path = arguments.objective
        learned = ParametricObjective.pretrained() if path is None else ParametricObjective.load(path)
    except ValueError as error:
        sys.exit(str(error))
    train(arguments.env, learned, arguments.env_steps, arguments.seed)
