"""TD3 in one file whose actor descends a learned objective.

    pip install /path/to/clone "gymnasium[mujoco]"
    python examples/td3_learned_objective.py [--env-id Hopper-v5] [--objective light | objective.safetensors] [--total-timesteps 40000]

Lines that differ from TD3 end in `# learned`: a buffer that draws windows, and the actor's loss. The defaults are those that the
pretrained objectives were meta-trained with.
"""

import argparse
import copy
import random
import sys
import time

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from metagenrl_pl.integrations import WindowBuffer, actor_loss, find_objective, meta_trained_with  # learned


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env-id", default="Pendulum-v1", help="a Gymnasium environment with bounded continuous actions")
    parser.add_argument("--objective", default="light", help="name of a pretrained objective, or a .safetensors file")  # learned
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=10_000)
    parser.add_argument("--learning-starts", type=int, default=1000)
    parser.add_argument("--buffer-size", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--tau", type=float, default=0.005)
    parser.add_argument("--policy-frequency", type=int, default=2)
    parser.add_argument("--policy-noise", type=float, default=0.2)
    parser.add_argument("--noise-clip", type=float, default=0.5)
    parser.add_argument("--exploration-noise", type=float, default=0.1)
    return parser.parse_args()


def vector(space: gym.Space) -> gym.spaces.Box:
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"a space is {space}; valid is a Box of one dimension")
    return space


def mlp(num_in: int, num_out: int, units: int = 64) -> nn.Sequential:
    hidden = [nn.Linear(num_in, units), nn.ReLU(), nn.LayerNorm(units), nn.Linear(units, units), nn.ReLU(), nn.LayerNorm(units)]
    return nn.Sequential(*hidden, nn.Linear(units, num_out))


class Actor(nn.Module):
    scale: Tensor
    bias: Tensor

    def __init__(self, num_observations: int, low: np.ndarray, high: np.ndarray) -> None:
        super().__init__()
        self.net = mlp(num_observations, len(low))
        self.register_buffer("scale", torch.tensor((high - low) / 2, dtype=torch.float32))
        self.register_buffer("bias", torch.tensor((high + low) / 2, dtype=torch.float32))

    def forward(self, observation: Tensor) -> Tensor:
        return torch.tanh(self.net(observation)) * self.scale + self.bias


class QNetwork(nn.Module):
    def __init__(self, num_observations: int, num_actions: int) -> None:
        super().__init__()
        self.net = mlp(num_observations + num_actions, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([observation, action], -1))


def main(args: argparse.Namespace) -> None:
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # faster for tensors this small
    objective = find_objective(args.objective)  # learned
    num_windows, window_length, max_grad_norm = meta_trained_with(objective)  # learned

    envs = gym.make_vec(args.env_id, args.num_envs, vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP})
    space, num_observations = vector(envs.single_action_space), vector(envs.single_observation_space).shape[0]
    if not space.is_bounded():
        raise ValueError(f"the actions are {space}; valid are bounded ones")
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    actor = Actor(num_observations, low, high)
    critics = nn.ModuleList([QNetwork(num_observations, len(low)) for _ in range(2)])
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_optimizer = torch.optim.Adam(actor.parameters(), args.learning_rate)
    critic_optimizer = torch.optim.Adam(critics.parameters(), args.learning_rate)
    buffer = WindowBuffer(
        args.buffer_size // args.num_envs, (num_observations,), space.shape, args.num_envs, seed=args.seed
    )  # learned

    observation, _ = envs.reset(seed=args.seed)
    envs.action_space.seed(args.seed)
    returns: list[float] = []
    episode_return, start = np.zeros(args.num_envs), time.perf_counter()
    for step in range(args.num_envs, args.total_timesteps + 1, args.num_envs):
        if step <= args.learning_starts:
            action = envs.action_space.sample()
        else:
            with torch.no_grad():  # acting, not learning
                action = actor(torch.as_tensor(observation, dtype=torch.float32)).numpy()
            action = np.clip(action + np.random.normal(0, args.exploration_noise * (high - low) / 2, action.shape), low, high)
        following, reward, terminated, truncated, infos = envs.step(action)
        ended, last = terminated | truncated, following.copy()
        for i in np.flatnonzero(ended):  # `following` belongs to the next episode
            last[i] = infos["final_obs"][i]
        buffer.add(observation, action, reward, last, terminated, truncated)
        observation, episode_return = following, episode_return + reward
        returns, episode_return = returns + episode_return[ended].tolist(), np.where(ended, 0, episode_return)

        if step > args.learning_starts:
            states, actions, rewards, next_states, terminals = buffer.sample(args.batch_size).transitions()  # learned
            with torch.no_grad():  # targets are constants
                noise = (torch.randn_like(actions) * args.policy_noise).clamp(-args.noise_clip, args.noise_clip) * actor.scale
                next_actions = torch.clamp(target_actor(next_states) + noise, torch.as_tensor(low), torch.as_tensor(high))
                next_values = torch.minimum(*(critic(next_states, next_actions) for critic in target_critics))
                target = rewards + args.gamma * (1 - terminals) * next_values
            critic_loss = torch.stack([functional.mse_loss(critic(states, actions), target) for critic in critics]).sum()
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()
            if step // args.num_envs % args.policy_frequency == 0:
                windows = buffer.sample(num_windows, window_length)  # learned
                loss = actor_loss(objective, actor, list(critics), windows, low, high)  # learned
                actor_optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), max_grad_norm)  # learned
                actor_optimizer.step()
                with torch.no_grad():  # moving averages, not learned
                    for slow, fast in ((target_actor, actor), (target_critics, critics)):
                        for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                            old.lerp_(new, args.tau)
        if step % max(1, args.total_timesteps // 10 // args.num_envs * args.num_envs) == 0 and returns:
            rate = step / (time.perf_counter() - start)
            print(
                f"steps {step:>9,}  mean return of the newest episodes {np.mean(returns[-10:]):9.1f}  steps per second {rate:,.0f}"
            )
    envs.close()


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, gym.error.Error) as error:
        sys.exit(f"error: {error}")
