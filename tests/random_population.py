"""Small random populations and windows that several test files compute on; an agent's numbers follow from its own seed."""

from collections.abc import Sequence
from typing import Any

import torch

from metagenrl_pl.agents.population import AgentSettings, Population
from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.agents.windows import Windows

SIZES = [(3, 2), (5, 1), (4, 3)]  # so every agent but none in all is padded: 5 observations, 3 actions
SEEDS = [11, 12, 13]


def small_settings(**changes: Any) -> AgentSettings:
    return AgentSettings(**{"hidden_units": 6, "window_length": 4, "num_windows": 3, **changes})


def small_population(
    sizes: Sequence[tuple[int, int]] = SIZES,
    seeds: Sequence[int] = SEEDS,
    settings: AgentSettings | None = None,
    padded_to: tuple[int, int] | None = None,
) -> Population:
    return Population(sizes, seeds, settings or small_settings(), padded_to)


def random_windows(
    num_windows: int,
    num_steps: int = 4,
    sizes: Sequence[tuple[int, int]] = SIZES,
    seeds: Sequence[int] = SEEDS,
    padded_to: tuple[int, int] | None = None,
) -> Windows:
    """Windows of 1 to `num_steps` steps, some of which end in a terminal, drawn per agent from its seed and zero-padded."""
    num_observations, num_actions = padded_to or (max(o for o, _ in sizes), max(a for _, a in sizes))
    agents = []
    for (o, a), seed in zip(sizes, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        length = torch.randint(1, num_steps + 1, (num_windows, 1), generator=generator)
        step = torch.arange(num_steps + 1)
        valid = (step[:-1] < length).to(torch.get_default_dtype())
        is_state = (step <= length).to(torch.get_default_dtype())
        states = torch.zeros(num_windows, num_steps + 1, num_observations)
        states[..., :o] = torch.randn(num_windows, num_steps + 1, o, generator=generator) * is_state[..., None]
        action = torch.zeros(num_windows, num_steps, num_actions)
        action[..., :a] = torch.rand(num_windows, num_steps, a, generator=generator) * 2 - 1
        ends = torch.rand(num_windows, 1, generator=generator) < 0.5
        terminated = ((step[:-1] == length - 1) & ends).to(valid.dtype)
        reward = torch.randn(num_windows, num_steps, generator=generator)
        agents.append(Windows(states, action * valid[..., None], reward * valid, terminated, valid))
    return Windows(*(torch.stack(parts) for parts in zip(*agents, strict=True)))


def random_like(parameters: Parameters, seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
