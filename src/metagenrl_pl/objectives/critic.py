"""The deterministic policy gradient (DDPG, TD3) as an objective."""

from torch import Tensor

from metagenrl_pl.nn import Parameters
from metagenrl_pl.objectives.contract import DirectedObjective, ObjectiveInputs


class CriticObjective(DirectedObjective):
    """L = -Q1(s, pi(s)), so that dL/da = -dQ1/da (Silver et al. 2014, eq. 9; with the clipped twin critics of TD3)."""

    needs_value, needs_critic_gradient = False, True

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """-dQ1/da, [P, B, T, A], 0 where padded."""
        assert inputs.critic_gradient is not None  # promised by needs_critic_gradient
        return -inputs.critic_gradient * inputs.valid[..., None]
