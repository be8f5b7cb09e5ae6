"""A stacked population of actor-critic agents: policies, twin critics and their targets as one set of tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metagenrl_pl.agents.networks import Networks
from metagenrl_pl.agents.stacked_networks import FlatLayout, Parameters, StackedMLP
from metagenrl_pl.agents.windows import widest
from metagenrl_pl.common.streams import derive_seed, to_device


@dataclass(frozen=True)
class PopulationSettings:
    """How many agents share the objective.

    Args:
        size: number of agents, assigned to the training environments round robin.
        lifetime_env_steps: env steps after which an agent is replaced by a fresh one; None for never. See `Lifetimes`.

    Raises:
        ValueError: if a number is not positive.
    """

    size: int
    lifetime_env_steps: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if self.lifetime_env_steps is not None and self.lifetime_env_steps < 1:
            raise ValueError(f"lifetime_env_steps must be at least 1, or null, got {self.lifetime_env_steps}")


@dataclass(frozen=True)
class AgentSettings:
    """Hyper-parameters of every agent (paper, table 2).

    Args:
        hidden_units: width of policy and critics.
        num_hidden_layers: depth of policy and critics.
        layer_norm: whether a layer norm follows each hidden activation.
        layer_norm_eps: added to the variance in the layer norms.
        discount: gamma.
        critic_learning_rate, policy_learning_rate: of Adam.
        policy_max_gradient_norm: each agent's policy gradient is clipped to this norm.
        saturation_penalty: weight c of c max(0, |z| - 2)^2 in the policy's loss, where tanh(z) is the action. Without it a policy
            whose actions have reached their bounds may stay there, since tanh lets no gradient through. Not in the paper: 0.
        policy_delay: critic updates per policy (and objective) update.
        target_rate: weight of the network in the moving average of its target, which follows after each policy update.
        target_noise, target_noise_clip: target policy smoothing: standard deviation and bound, for actions in [-1, 1].
        exploration_noise: standard deviation, for actions in [-1, 1].
        random_env_steps: uniformly random actions that each agent takes first, in env steps.
        warmup_env_steps: env steps before updates begin.
        window_length: T, in env steps.
        num_windows: B, windows per update.

    Raises:
        ValueError: if a value is out of range.
    """

    hidden_units: int = 350
    num_hidden_layers: int = 2
    layer_norm: bool = True
    layer_norm_eps: float = 1e-5
    discount: float = 0.99
    critic_learning_rate: float = 1e-3
    policy_learning_rate: float = 1e-3
    policy_max_gradient_norm: float = 1.0
    saturation_penalty: float = 0.0
    policy_delay: int = 2
    target_rate: float = 0.005
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    exploration_noise: float = 0.1
    random_env_steps: int = 10_000
    warmup_env_steps: int = 1_000
    window_length: int = 20
    num_windows: int = 100

    def __post_init__(self) -> None:
        at_least_one = ("hidden_units", "num_hidden_layers", "policy_delay", "window_length", "num_windows", "warmup_env_steps")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("critic_learning_rate", "policy_learning_rate", "policy_max_gradient_norm", "layer_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("saturation_penalty", "target_noise", "target_noise_clip", "exploration_noise", "random_env_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        for name in ("discount", "target_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


class Population:
    """P agents whose parameters are slices of shared tensors: policies [P, ...], critics [P, 2, ...], and targets of both.

    Each of these four sets is a dictionary of views of one tensor (`flat`).

    Observations and actions are zero-padded to common sizes. Each agent is initialised from its own seed with its unpadded
    fan-in. Padded rows and columns start at zero and stay zero. So a padded agent computes the same as it would alone.

    Args:
        sizes: observation and action size of each agent's environment.
        seeds: one for each agent.
        settings: widths and depth of the networks.
        padded_to: common observation and action size; the largest of `sizes` by default.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        seeds: Sequence[int],
        settings: AgentSettings,
        padded_to: tuple[int, int] | None = None,
    ) -> None:
        self.observation_size, self.action_size = padded_to or widest(sizes)
        self.num_agents = len(sizes)
        self.action_sizes = [a for _, a in sizes]
        self._sizes, self._hidden_units = list(sizes), settings.hidden_units
        mask = torch.zeros(self.num_agents, self.action_size)
        for agent, action_size in enumerate(self.action_sizes):
            mask[agent, :action_size] = 1
        mlp = StackedMLP(settings.num_hidden_layers, layer_norm_eps=settings.layer_norm_eps if settings.layer_norm else None)
        self.networks = Networks(mlp, mask)
        agents = [self._fresh_agent(agent, seed) for agent, seed in enumerate(seeds)]
        policy, critics_of_all = _stack([policy for policy, _ in agents]), _stack([critics for _, critics in agents])
        self.policy_layout, self.critics_layout = FlatLayout(policy, 1), FlatLayout(critics_of_all, 2)
        self.flat = {  # policies [P, D], critics [P, 2, D']
            "policy": self.policy_layout.flatten(policy),
            "critics": self.critics_layout.flatten(critics_of_all),
            "target_policy": self.policy_layout.flatten(policy),
            "target_critics": self.critics_layout.flatten(critics_of_all),
        }
        # One row of `flat` per agent. Optimizers hold these rows, so each agent has its own optimizer state.
        self.rows = {kind: list(self.flat[kind].unbind()) for kind in ("policy", "critics")}
        self._set_views()

    def _fresh_agent(self, agent: int, seed: int) -> tuple[Parameters, Parameters]:
        """Initial policy [...] and twin critics [2, ...] of one agent, padded to the common sizes."""
        mlp, (o, a) = self.networks.mlp, self._sizes[agent]
        generator = torch.Generator().manual_seed(derive_seed(seed, "initial weights"))
        policy = mlp.init(o, self._hidden_units, a, generator)
        twins = [mlp.init(o + a, self._hidden_units, 1, generator) for _ in range(2)]
        inputs = [*range(o), *range(self.observation_size, self.observation_size + a)]
        num_inputs = self.observation_size + self.action_size
        padded = [self._pad(twin, inputs, num_inputs, "critic") for twin in twins]
        critics = {name: torch.stack([twin[name] for twin in padded]) for name in padded[0]}
        return self._pad(policy, list(range(o)), self.observation_size, "policy"), critics

    def renew(self, agent: int, seed: int) -> None:
        """Replace an agent by a fresh one, in place. The result is the same as if the population had been made with this seed."""
        policy, critics = self._fresh_agent(agent, seed)
        for kind, parameters in self.parameter_sets.items():
            for name, value in (policy if kind in ("policy", "target_policy") else critics).items():
                parameters[name][agent].copy_(value)

    def move_targets(self, rate: float) -> None:
        """Move the targets towards policies and critics, by this share of the distance."""
        for kind in ("policy", "critics"):
            self.flat[f"target_{kind}"].lerp_(self.flat[kind], rate)

    def _set_views(self) -> None:
        self.policy, self.target_policy = map(self.policy_layout.views, (self.flat["policy"], self.flat["target_policy"]))
        self.critics, self.target_critics = map(self.critics_layout.views, (self.flat["critics"], self.flat["target_critics"]))

    def _pad(self, parameters: Parameters, inputs: list[int], num_inputs: int, kind: str) -> Parameters:
        """Pad one network: move its inputs to the positions `inputs` out of `num_inputs`, and pad the outputs of a policy."""
        weight = parameters["hidden.0.weight"]
        spread = weight.new_zeros(num_inputs, weight.shape[1])
        spread[inputs] = weight
        padded = {**parameters, "hidden.0.weight": spread}
        if kind == "policy":
            missing = self.action_size - parameters["out.bias"].shape[0]
            for name in ("out.weight", "out.bias"):
                padded[name] = torch.nn.functional.pad(parameters[name], (0, missing))
        return padded

    @property
    def parameter_sets(self) -> dict[str, Parameters]:
        """Policies, critics and their targets by name; policies [P, ...], critics [P, 2, ...]."""
        return {
            "policy": self.policy,
            "critics": self.critics,
            "target_policy": self.target_policy,
            "target_critics": self.target_critics,
        }

    def act(self, observation: Tensor) -> Tensor:
        """Noise-free actions in [-1, 1]: [P, ..., O] -> [P, ..., A]."""
        with torch.no_grad():  # acting, not learning
            return self.networks.action(self.policy, to_device(observation, self.device))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.networks.action_mask.device

    def to(self, device: torch.device) -> None:
        """Move to a device. `flat` and `rows` stay the same tensor objects, so optimizers that hold them stay valid."""
        for flat in self.flat.values():
            flat.data = flat.data.to(device)
        for kind, rows in self.rows.items():
            for row, data in zip(rows, self.flat[kind].unbind(), strict=True):
                row.data = data
        self._set_views()
        self.networks = Networks(self.networks.mlp, self.networks.action_mask.to(device))

    def state_dict(self) -> dict[str, Any]:
        """Copies of the four parameter sets; agents along the first axis."""
        return {
            kind: {name: p.detach().clone() for name, p in parameters.items()} for kind, parameters in self.parameter_sets.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`.

        Raises:
            ValueError: if it was saved with other agents. Nothing is changed then.
        """
        saved = {(kind, name): state[kind][name] for kind, parameters in self.parameter_sets.items() for name in parameters}
        for (kind, name), value in saved.items():  # first, since `copy_` would broadcast and cast
            p = self.parameter_sets[kind][name]
            if value.shape != p.shape or value.dtype != p.dtype:
                raise ValueError(f"{kind}.{name} is {value.dtype} {tuple(value.shape)}, not {p.dtype} {tuple(p.shape)}")
        for (kind, name), value in saved.items():
            self.parameter_sets[kind][name].data.copy_(value)


def _stack(agents: Sequence[Parameters]) -> Parameters:
    return {name: torch.stack([agent[name] for agent in agents]) for name in agents[0]}
