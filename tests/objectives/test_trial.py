"""What of an objective is refused before a run relies on it."""

from collections.abc import Callable

import pytest
import torch
from test_contract import OBJECTIVES
from torch import Tensor, nn

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.objectives import LearnedObjective, Objective, ObjectiveInputs, ParametricObjective
from metagenrl_pl.objectives.contract import PullBack
from metagenrl_pl.objectives.trial import check_loss


class Odd(Objective):
    """Whose loss is what it was given to compute it."""

    def __init__(self, loss: Callable[[ObjectiveInputs], Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return self._loss(inputs)


def spread(inputs: ObjectiveInputs) -> Tensor:
    """The standard deviation of each agent's rewards, [P, 1, 1]."""
    count = inputs.valid.sum((1, 2), keepdim=True)
    deviation = (inputs.reward - inputs.reward.sum((1, 2), keepdim=True) / count) * inputs.valid
    return ((deviation**2).sum((1, 2), keepdim=True) / count).sqrt()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda inputs: inputs.policy_action,
            "its loss has the shape (2, 3, 4, 5) for 2 agents, 3 windows, 4 steps and 5 action dim",
        ),
        (lambda inputs: inputs.policy_action.detach().sum(-1), "its loss does not depend on inputs.policy_action"),
        (lambda inputs: inputs.policy_action.sum(-1) / 0, "the gradient of its loss in the policy's action is not finite"),
        (
            lambda inputs: inputs.policy_action.sum(-1) * inputs.valid / spread(inputs),
            "the gradient of its loss in the policy's action is not finite where all rewards are 1, as in many environments",
        ),
        (
            lambda inputs: inputs.policy_action.sum(-1),
            "its loss depends on the actions of padded steps; valid is a loss that is 0",
        ),
        (
            lambda inputs: inputs.policy_action.sum(-1) * inputs.valid * inputs.reward.mean(),
            "the loss of an agent depends on other agents; valid are sums and means over windows and steps only",
        ),
        (
            lambda inputs: inputs.policy_action.sum(-1) * inputs.valid * inputs.value[..., 1:].mean((1, 2), keepdim=True),
            "its loss at real steps depends on padded ones; valid are sums and means where inputs.valid is 1",
        ),
    ],
)
def test_a_loss_that_cannot_serve_is_refused(loss: Callable[[ObjectiveInputs], Tensor], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_loss(Odd(loss))
    assert str(caught.value).startswith(message)
    check_loss(Odd(lambda inputs: inputs.policy_action.sum(-1) * inputs.valid))
    for make in OBJECTIVES:
        check_loss(make())


class Scaled(ParametricObjective):
    """L = w a, with a faulty derivative that is right for the initial weight w = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return parameters["scale"].view(-1, 1, 1) * inputs.policy_action.sum(-1) * inputs.valid

    def action_gradient_and_pull_back(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, PullBack]:
        return inputs.valid.unsqueeze(-1).expand_as(inputs.policy_action), super().action_gradient_and_pull_back(
            parameters, inputs
        )[1]


class Descending(LearnedObjective):
    """Whose action gradient is not its loss's."""

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        return 3 * super().action_gradient(parameters, inputs)


@pytest.mark.parametrize(("make", "error"), [(Scaled, "0.0"), (Descending, "2")])
def test_an_action_gradient_that_is_not_the_losss_is_refused(make: Callable[[], Objective], error: str) -> None:
    with pytest.raises(ValueError, match=f"its action gradient differs from what autograd gives by {error}"):
        check_loss(make())


class OneMore(LearnedObjective):
    """With a parameter that the hand-written derivatives of its class do not know."""

    def __init__(self, is_learned: bool) -> None:
        super().__init__(hidden_units=4)
        self.gain = nn.Parameter(torch.ones(()), requires_grad=is_learned)

    def _values(self, value: Tensor, inputs: ObjectiveInputs) -> list[Tensor]:
        return [self.gain * one for one in super()._values(value, inputs)]


class Halved(LearnedObjective):
    """Whose pull-back is half as long as it should be."""

    def action_gradient_and_pull_back(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, PullBack]:
        gradient, pull_back = super().action_gradient_and_pull_back(parameters, inputs)
        return gradient, lambda direction: {name: x / 2 for name, x in pull_back(direction).items()}


class Lacking(Halved):
    """Whose pull-back leaves a parameter out."""

    def action_gradient_and_pull_back(self, parameters: Parameters, inputs: ObjectiveInputs) -> tuple[Tensor, PullBack]:
        gradient, pull_back = super().action_gradient_and_pull_back(parameters, inputs)
        return gradient, lambda direction: {name: x for name, x in pull_back(direction).items() if name != "lstm.bias"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Halved, "its pull-back differs from what autograd gives by 0.5 of its length"),
        (Lacking, "its pull-back gives no gradient of lstm.bias; valid is one for each parameter"),
    ],
)
def test_a_pull_back_that_is_not_the_losss_is_refused(make: Callable[[], Objective], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_loss(make())


class Rare(ParametricObjective):
    """With parameters that matter in some steps only: at terminals, above a threshold, and outside of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.bonus, self.threshold, self.clip = (nn.Parameter(torch.tensor(x)) for x in (0.1, 2.0, 3.0))

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        bonus, threshold, clip = (parameters[name].view(-1, 1, 1) for name in ("bonus", "threshold", "clip"))
        reward = torch.minimum(torch.maximum(inputs.reward, -clip), clip) + bonus * inputs.terminated
        return (reward + (inputs.reward > threshold)) * inputs.policy_action.sum(-1) * inputs.valid


def test_a_parameter_that_would_never_be_learned_is_refused() -> None:
    with pytest.raises(
        ValueError, match="its loss does not depend on the parameter gain, which would never be learned; valid is a"
    ):
        check_loss(OneMore(is_learned=True))
    check_loss(OneMore(is_learned=False))  # by autograd
    check_loss(Rare())
