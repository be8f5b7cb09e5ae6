"""What of a judge or an inner step is refused before a run relies on it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.learning.inner_step import SGD, Adam, InnerStep, NormalisedSGD
from metagenrl_pl.learning.judges import CriticJudge, Judge, ReturnsJudge
from metagenrl_pl.learning.meta_trial import check_inner_step, check_judge


class OwnJudge(Judge):
    """Whose loss is what it was given to compute it from actions."""

    def __init__(self, loss: Callable[[Tensor], Any], of_all_steps: bool = False) -> None:
        self._loss, self._of_all_steps = loss, of_all_steps

    def loss(self, networks: Any, action: Tensor, policy: Any, critics: Any, windows: Any) -> Tensor:
        loss: Tensor = self._loss(action if self._of_all_steps else action * windows.valid[..., None])
        return loss


class OfAll(Judge):
    """Whose loss has a mean that includes other agents, or padding."""

    def __init__(self, mean: Callable[[Tensor, Any], Tensor]) -> None:
        self._mean = mean

    def loss(self, networks: Any, action: Tensor, policy: Any, critics: Any, windows: Any) -> Tensor:
        loss: Tensor = (action * windows.valid[..., None]).sum((1, 2, 3)) * self._mean(action.detach(), windows)
        return loss


class Reversed(CriticJudge):
    """Whose written-out gradient points the other way."""

    def loss(self, *arguments: Any) -> Tensor:
        return super().loss_and_gradient(*arguments)[0]

    def loss_and_gradient(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, gradient = super().loss_and_gradient(*arguments)
        return loss, -gradient


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (
            OwnJudge(lambda action: action.sum((2, 3))),
            r"its loss has the shape \(2, 3\) for 2 agents, 3 windows, .*; valid is \(2,\)$",
        ),
        (OwnJudge(lambda action: action.shape), "its loss has the type Size for 2 agents"),
        (OwnJudge(lambda action: action.sum((1, 2, 3)) / 0), "its loss is not finite"),
        (
            OwnJudge(lambda action: action[9]),
            r"its loss raises IndexError: .* \(test_meta_trial.py, line \d+\); valid is a loss of each",
        ),
        (OwnJudge(lambda action: torch.ones(2)), "its loss does not depend on the actions, so the objective would learn nothing"),
        (OwnJudge(lambda action: action.sum((1, 2, 3)), of_all_steps=True), "its loss depends on the actions of padded steps"),
        (OfAll(lambda action, windows: windows.reward.mean()), "the loss of an agent depends on other agents"),
        (
            OfAll(lambda action, windows: (action * windows.valid[..., None]).mean((0, 1, 2, 3))),
            "the loss of an agent depends on other agents",
        ),
        (OfAll(lambda action, windows: action.mean((1, 2, 3))), "its loss depends on the actions of padded steps"),
        (Reversed(), "its gradient differs from what autograd gives by 2 of its length; valid is to leave it to autograd"),
    ],
)
def test_a_judge_that_cannot_serve_is_refused(judge: Judge, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_judge(judge)


class OwnStep(InnerStep):
    """Whose policy after the step is what it was given to compute it."""

    def __init__(self, step: Callable[[Parameters, Parameters], Any]) -> None:
        super().__init__()
        self._step = step

    def __call__(self, policy: Parameters, gradient: Parameters, num_valid: Tensor, moments: Any) -> Parameters:
        stepped: Parameters = self._step(policy, gradient)
        return stepped


class Doubled(SGD):
    """Whose written-out derivative is twice as large as it should be."""

    def step_and_pull_back(self, *arguments: Any) -> Any:
        stepped, pull_back = super().step_and_pull_back(*arguments)
        return stepped, lambda dstepped: {name: 2 * d for name, d in pull_back(dstepped).items()}


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            OwnStep(lambda policy, gradient: {"weight": policy["out.weight"]}),
            "its step returns weight; valid is a mapping with the keys",
        ),
        (OwnStep(lambda policy, gradient: None), "its step returns NoneType; valid is a mapping"),
        (
            OwnStep(lambda policy, gradient: {name: p[0] - gradient[name][0] for name, p in policy.items()}),
            r"its step's hidden.0.weight has the shape \(6, 7\) for 2 agents, .* valid is \(2, 6, 7\)",
        ),
        (OwnStep(lambda policy, gradient: policy["bias"]), "its step raises KeyError: 'bias'"),
        (
            OwnStep(lambda policy, gradient: {name: p * 1.0 for name, p in policy.items()}),
            "its step does not depend on the gradient, so the objective would learn nothing",
        ),
        (
            OwnStep(
                lambda policy, gradient: {
                    name: p - gradient[name].sign() * gradient[name].abs().sqrt() for name, p in policy.items()
                }
            ),
            r"its pull-back at a gradient of 0's hidden.0.weight is not finite",
        ),
        (Doubled(), "its pull-back differs from what autograd gives by 1 of its length"),
    ],
)
def test_an_inner_step_that_cannot_serve_is_refused(inner: InnerStep, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_inner_step(inner)


def test_those_of_the_package_serve() -> None:
    for judge in (CriticJudge(), ReturnsJudge(0.3), ReturnsJudge(1.0)):
        check_judge(judge)
    for inner in (SGD(), NormalisedSGD(num_steps=2), Adam()):
        check_inner_step(inner)
