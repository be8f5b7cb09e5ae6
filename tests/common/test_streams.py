"""Random streams: one for each agent and purpose, whoever else is there."""

import numpy as np
import pytest
import torch

from metagenrl_pl.common.streams import AgentStreams, derive_seed


def test_different_parts_give_different_seeds() -> None:
    parts: list[tuple[int | str, ...]] = [
        (), (0,), (1,), (1, 0), (1, 0, 0), (0, 1), (10,), (2**32 + 5,), (5, 1), (5,), ("5",), ("a",), ("a", 1), (1, "a"), ("a1",),
        (-1,), ("a", "b"), ("a, b",), ("a', 'b",),
    ]  # fmt: skip
    seeds = [derive_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_in_every_run() -> None:
    assert derive_seed(3, "initial weights") == 5569346042132490126
    assert derive_seed(np.int64(3), "initial weights") == derive_seed(3, "initial weights")  # type: ignore[arg-type]


def test_seeds_spread_over_all_bits() -> None:
    seeds = np.array([derive_seed(0, "episode", episode) for episode in range(4000)])
    ones = [(seeds >> bit & 1).mean() for bit in range(63)]
    assert max(abs(share - 0.5) for share in ones) < 0.04  # five standard deviations of 4000 fair coins


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_an_agents_stream_is_its_own(draw: str) -> None:
    together, alone = AgentStreams([7, 8, 9], "noise"), AgentStreams([8], "noise")
    for _ in range(3):
        drawn = getattr(together, draw)(5, 3)
        assert drawn.shape == (3, 5, 3)
        assert torch.equal(drawn[1:2], getattr(alone, draw)(5, 3))
        assert len(drawn.unique()) == drawn.numel()  # no agent has another's numbers


def test_purposes_are_independent() -> None:
    assert not torch.equal(AgentStreams([7], "noise").normal(5), AgentStreams([7], "replay").normal(5))


def test_distributions() -> None:
    streams = AgentStreams([1, 2], "noise")
    uniform, normal = streams.uniform(20_000), streams.normal(20_000)
    assert uniform.dtype == torch.float64 and uniform.min() >= 0 and uniform.max() < 1
    assert (uniform.mean(1) - 0.5).abs().max() < 0.01  # five standard deviations: 5 sqrt(1 / 12 / 20000)
    assert normal.mean(1).abs().max() < 0.035 and (normal.std(1) - 1).abs().max() < 0.025


def test_a_stream_goes_on_where_it_was_saved() -> None:
    streams, other = AgentStreams([1, 2], "noise"), AgentStreams([3, 4], "noise")
    streams.normal(3)  # an odd number: normals are made in pairs
    state = streams.state_dict()
    expected = streams.normal(5), streams.uniform(5)
    assert not torch.equal(other.normal(5), expected[0])
    other.load_state_dict(state)
    assert torch.equal(other.normal(5), expected[0]) and torch.equal(other.uniform(5), expected[1])


def test_refuses_the_state_of_another_number_of_agents() -> None:
    with pytest.raises(ValueError, match="shorter"):
        AgentStreams([1, 2], "noise").load_state_dict(AgentStreams([1], "noise").state_dict())


def test_agents_that_are_not_named_draw_nothing() -> None:
    streams, alone = AgentStreams([1, 2], "a"), AgentStreams([2], "a")
    drawn = streams.uniform(3, agents=[1])
    assert (drawn[0] == 0).all() and torch.equal(drawn[1:], alone.uniform(3))
    assert torch.equal(streams.normal(3)[0], AgentStreams([1], "a").normal(3)[0])
