"""Settings of meta-learning, and a container for its parts."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from metagenrl_pl.learning.inner_step import InnerStep
from metagenrl_pl.learning.judges import Judge

GradientRule = Literal["clip", "normalize"]


@dataclass(frozen=True)
class MetaSettings:
    """How the objective is updated.

    Args:
        learning_rate: of Adam on the objective.
        gradient: whether each agent's meta-gradient is clipped to norm 1 (as in the paper) or normalised to norm 1.
        annealing_env_steps: env steps over which policies change from descending -Q to descending the objective; 0 for no
            annealing.

    Raises:
        ValueError: if a value is out of range.
    """

    learning_rate: float = 1e-3
    gradient: GradientRule = "clip"
    annealing_env_steps: int = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if self.gradient not in get_args(GradientRule):
            raise ValueError(f"gradient must be {' or '.join(get_args(GradientRule))}, got {self.gradient!r}")
        if self.annealing_env_steps < 0:
            raise ValueError(f"annealing_env_steps must not be negative, got {self.annealing_env_steps}")


class MetaLearning(NamedTuple):
    """The parts of meta-learning: the inner step, the judge of the new policy, and the settings of the objective's update."""

    inner: InnerStep
    judge: Judge
    settings: MetaSettings
