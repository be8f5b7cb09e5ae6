"""Inner steps: the policy step that meta-learning differentiates (paper eq. 6).

Inner steps are pure and differentiable functions, `parameters, gradient -> parameters`. The gradient is of the loss *summed* over
valid steps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters, clip_per_agent, norm_per_agent, scale_per_agent

_SMALLEST_NORM = 1e-12  # a saturated policy has no gradient, and takes no step
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # those of the policies' own optimizer, which are torch's defaults


class AdamMoments(NamedTuple):
    """Adam's state for the policies: moments, [P, ...], and the number of steps taken, [P]."""

    first: Parameters
    second: Parameters
    num_steps: Tensor


class InnerStep(ABC):
    """One differentiable policy step.

    Args:
        num_steps: inner steps before the policy is judged (K). Each step uses its own windows.

    Raises:
        ValueError: if `num_steps` is below 1.
    """

    needs_moments: bool = False

    def __init__(self, num_steps: int = 1) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.num_steps = num_steps

    @abstractmethod
    def __call__(self, policy: Parameters, gradient: Parameters, num_valid: Tensor, moments: AdamMoments | None) -> Parameters:
        """The policy after one step.

        Args:
            policy: parameters [P, ...].
            gradient: of the summed loss, [P, ...].
            num_valid: number of steps in the sum, [P].
            moments: of the policies' optimizer, constants; None unless `needs_moments`.
        """

    def step_and_pull_back(
        self, policy: Parameters, gradient: Parameters, num_valid: Tensor, moments: AdamMoments | None
    ) -> tuple[Parameters, Callable[[Parameters], Parameters]]:
        """The policy after one step, and the function that maps a derivative with respect to it to one with respect to `gradient`.

        By autograd, unless a subclass writes it by hand.
        """
        stepped, pull_back = torch.func.vjp(  # type: ignore[misc]
            lambda gradient: self(policy, gradient, num_valid, moments), gradient
        )
        return stepped, lambda dstepped: pull_back({name: dstepped[name] for name in stepped})[0]


class SGD(InnerStep):
    """phi' = phi - step_size * gradient of the summed loss (as in the paper's code), unclipped.

    Args:
        step_size: for the sum over windows and time steps, not for the mean.
        num_steps: see InnerStep.

    Raises:
        ValueError: if `step_size` is not positive.
    """

    def __init__(self, step_size: float = 1e-3, num_steps: int = 1) -> None:
        super().__init__(num_steps)
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, got {step_size}")
        self.step_size = step_size

    def __call__(self, policy: Parameters, gradient: Parameters, num_valid: Tensor, moments: AdamMoments | None) -> Parameters:
        return {name: torch.sub(p, gradient[name], alpha=self.step_size) for name, p in policy.items()}

    def step_and_pull_back(
        self, policy: Parameters, gradient: Parameters, num_valid: Tensor, moments: AdamMoments | None
    ) -> tuple[Parameters, Callable[[Parameters], Parameters]]:
        stepped = self(policy, gradient, num_valid, moments)
        return stepped, lambda dstepped: {name: -self.step_size * d for name, d in dstepped.items()}


class NormalisedSGD(InnerStep):
    """phi' = phi - step_size * gradient / its norm, agent by agent. Not in the paper.

    The step's length does not depend on the size of the gradient, as with the policy's own optimizer, Adam. So the objective is judged
    by the direction of its gradient alone.

    Args:
        step_size: length of the step, over all parameters of a policy.
        num_steps: see InnerStep.

    Raises:
        ValueError: if `step_size` is not positive.
    """

    def __init__(self, step_size: float = 0.05, num_steps: int = 1) -> None:
        super().__init__(num_steps)
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite, got {step_size}")
        self.step_size = step_size

    def __call__(self, policy: Parameters, gradient: Parameters, num_valid: Tensor, moments: AdamMoments | None) -> Parameters:
        step = scale_per_agent(gradient, self.step_size / norm_per_agent(gradient, minimum=_SMALLEST_NORM))
        return {name: p - step[name] for name, p in policy.items()}


class Adam(InnerStep):
    """The step of the policy's own optimizer: gradient of the mean loss, clipped, then Adam with the agent's moments.

    The gradient is the objective's alone. The policy's own step also descends the saturation penalty and, while annealing, -Q.

    The stored moments are constants and do not change. The meta-gradient flows through the gradient's contribution to the new
    moments. With several inner steps, each starts from the same stored moments.

    Args:
        learning_rate: of Adam.
        max_gradient_norm: per agent; None for no clipping.
        num_steps: see InnerStep.

    Raises:
        ValueError: if a number is out of range.
    """

    needs_moments = True

    def __init__(self, learning_rate: float = 1e-3, max_gradient_norm: float | None = 1.0, num_steps: int = 1) -> None:
        super().__init__(num_steps)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
        if max_gradient_norm is not None and not max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm must be positive or null, got {max_gradient_norm}")
        self.learning_rate, self.max_gradient_norm = learning_rate, max_gradient_norm

    def __call__(self, policy: Parameters, gradient: Parameters, num_valid: Tensor, moments: AdamMoments | None) -> Parameters:
        assert moments is not None  # guaranteed by needs_moments
        gradient = scale_per_agent(gradient, 1 / num_valid)
        if self.max_gradient_norm is not None:
            gradient = clip_per_agent(gradient, self.max_gradient_norm)
        step = moments.num_steps.double() + 1  # double as in the fused optimizer: 1 - 0.999 in float32 is off by 1e-5
        correction1, root_correction2 = 1 - _BETA1**step, (1 - _BETA2**step) ** 0.5
        new_policy = {}
        for name, p in policy.items():
            by_agent = (-1, *[1] * (p.dim() - 1))
            first = _BETA1 * moments.first[name] + (1 - _BETA1) * gradient[name]
            second = _BETA2 * moments.second[name] + (1 - _BETA2) * gradient[name] ** 2
            # The root's derivative is infinite at 0. An entry without any gradient so far (a padded input) would give NaN.
            root = torch.where(second > 0, torch.where(second > 0, second, 1.0).sqrt(), 0.0)
            new_policy[name] = p - self.learning_rate * (first / correction1.to(p.dtype).view(by_agent)) / (
                root / root_correction2.to(p.dtype).view(by_agent) + _EPS
            )
        return new_policy
