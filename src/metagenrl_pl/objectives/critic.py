"""The deterministic policy gradient (DDPG, TD3) as an objective."""

from torch import Tensor

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.objectives.contract import CriticChoice, DirectedObjective, ObjectiveInputs, check_critics


class CriticObjective(DirectedObjective):
    """L = -Q(s, pi(s)), so dL/da = -dQ/da (Silver et al. 2014, eq. 9; with the clipped twin critics of TD3).

    Args:
        critic_gradient_of: `first` is the first critic, as in DDPG and TD3. `both` is the mean of the twins.

    Raises:
        ValueError: if `critic_gradient_of` is not valid.
    """

    needs_value, needs_critic_gradient = False, True

    def __init__(self, critic_gradient_of: CriticChoice = "first") -> None:
        super().__init__()
        self.critic_gradient_of = check_critics(critic_gradient_of)

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """The action gradient -dQ/da, [P, B, T, A], 0 where padded."""
        assert inputs.critic_gradient is not None  # guaranteed by needs_critic_gradient
        return -inputs.critic_gradient * inputs.valid[..., None]
