"""Metrics of agents, and what is found to be unsound."""

from typing import Any

import numpy as np
import pytest
import torch

from metagenrl_pl.common.placement import Placement
from metagenrl_pl.learning.metrics import AgentMetrics, check_agreement
from metagenrl_pl.objectives import LearnedObjective

INF = float("inf")


def recorded(*critic_losses: list[float], **others: list[float]) -> AgentMetrics:
    """With the critic losses of some update cycles, and other metrics of the last one."""
    metrics = AgentMetrics(Placement(3))
    for losses in critic_losses:
        metrics.record("critic_loss", torch.tensor(losses))
        metrics.count_broken()
    for name, values in others.items():
        metrics.record(name, torch.tensor(values))
    return metrics


def test_the_newest_values_are_given() -> None:
    metrics = recorded([1, 2, 3.0], [4, 5, 6.0], meta_loss=[-1, 0, 1.0]).gather(7)
    assert metrics.keys() == {"critic_loss", "meta_loss"}
    np.testing.assert_array_equal(metrics["critic_loss"], [4, 5, 6])
    np.testing.assert_array_equal(metrics["meta_loss"], [-1, 0, 1])


def test_before_the_first_update_there_is_none() -> None:
    assert recorded().gather(0) == {}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (recorded([1, INF, 1]), "critic_loss of agent 1 is inf after 7 updates"),
        (recorded([1, 1, 1.0], meta_loss=[0, 0, float("nan")]), "meta_loss of agent 2 is nan after 7 updates"),
        # All are broken now, agent 2 has been for longest.
        (recorded([1, 1, INF], [1, INF, INF], [INF, INF, INF]), "critic_loss of agent 2 is inf after 7 updates"),
        (recorded([1, 1, INF], [1, 1, 1], meta_loss=[1, INF, INF]), "meta_loss of agent 1 is inf after 7 updates"),
    ],
    ids=["critic", "other", "first", "finite_again"],
)
def test_the_agent_that_broke_first_is_named(metrics: AgentMetrics, message: str) -> None:
    with pytest.raises(FloatingPointError, match=f"^{message}$"):
        metrics.gather(7)


def test_the_metric_that_broke_first_is_named() -> None:
    """The objective breaks, with it the policies, and at last the critics, which are updated before all of them in a cycle."""
    broken = torch.tensor([1, INF, 1])
    for first in ("meta_gradient_norm", "policy_gradient_norm"):
        metrics = AgentMetrics(Placement(3))
        for all_broken in ((), (first,), ("critic_loss", "policy_gradient_norm", "meta_gradient_norm")):
            for name in ("critic_loss", "policy_gradient_norm", "meta_gradient_norm"):
                metrics.record(name, broken if name in all_broken else torch.ones(3))
            metrics.count_broken()
        with pytest.raises(FloatingPointError, match=f"^{first} of agent 1 is inf after 7 updates$"):
            metrics.gather(7)


class TwoProcesses(Placement):
    """The other one reports a checksum of its own, or the same."""

    other: int | None = None

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, value if TwoProcesses.other is None else TwoProcesses.other]


def test_processes_have_to_agree_about_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, processes = LearnedObjective(4, 2), TwoProcesses(3, 0, 2)
    check_agreement(objective, processes, 7)
    monkeypatch.setattr(TwoProcesses, "other", 12345)
    with pytest.raises(RuntimeError, match="^processes disagree about the objective after 7 updates$"):
        check_agreement(objective, processes, 7)


def test_one_bit_makes_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def note(_: Placement, value: int) -> list[int]:
        seen.append(value)
        return [value, value]

    monkeypatch.setattr(Placement, "gather_objects", note)
    objective = LearnedObjective(4, 2)
    check_agreement(objective, Placement(3, 0, 2), 7)
    check_agreement(objective, Placement(3, 0, 2), 7)
    with torch.no_grad():  # a test's own change
        weight = objective.get_parameter("head.out.weight")
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(INF))
    check_agreement(objective, Placement(3, 0, 2), 7)
    assert seen[0] == seen[1] != seen[2]
