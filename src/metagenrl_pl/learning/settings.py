"""Settings of meta-learning, and all that it takes, in one bundle."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from metagenrl_pl.learning.inner_step import InnerStep
from metagenrl_pl.learning.judges import Judge

GradientRule = Literal["clip", "normalize"]


@dataclass(frozen=True)
class MetaSettings:
    """How the objective is stepped.

    Args:
        learning_rate: of Adam on the objective.
        gradient: whether each agent's gradient of the objective is clipped at norm 1 (the paper) or normalised to norm 1.
        annealing_env_steps: over how many env steps policies go over from the critic to the objective; 0 for at once.

    Raises:
        ValueError: if a value is out of range.
    """

    learning_rate: float = 1e-3
    gradient: GradientRule = "clip"
    annealing_env_steps: int = 10_000

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.gradient not in get_args(GradientRule):
            raise ValueError(f"gradient must be {' or '.join(get_args(GradientRule))}, got {self.gradient!r}")
        if self.annealing_env_steps < 0:
            raise ValueError(f"annealing_env_steps must not be negative, got {self.annealing_env_steps}")


class MetaLearning(NamedTuple):
    """What meta-learning consists of: an inner step, a judge of the policy after it, and how the objective is stepped."""

    inner: InnerStep
    judge: Judge
    settings: MetaSettings
