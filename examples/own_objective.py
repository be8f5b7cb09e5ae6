"""A custom objective with two parameters to meta-learn: the weights of the critic's loss and of REINFORCE.

    python train.py --config-dir examples/conf objective=blend

This command meta-trains it like the package's LSTM, and writes `objective.safetensors`. The configuration is in
`examples/conf/objective/blend.yaml`. To train fresh agents with the result:

    python train.py experiment=meta_test objective=frozen objective._target_=examples.own_objective.Blend.load objective.path=...
"""

import torch
from torch import Tensor, nn

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.objectives import CriticObjective, ObjectiveInputs, ParametricObjective, Reinforce


class Blend(ParametricObjective):
    """w_0 L_critic + w_1 L_REINFORCE, with weights that stay positive.

    Args:
        discount: of REINFORCE's advantage.
        seed: of the initial weights, which are close to 1.
    """

    needs_value, needs_critic_gradient = True, True  # inputs that `loss` uses

    def __init__(self, discount: float = 0.99, seed: int = 0) -> None:
        super().__init__(discount=discount)  # arguments that files store together with the parameters
        self.log_weights = nn.Parameter(0.1 * torch.randn(2, generator=torch.Generator().manual_seed(seed)))
        self._critic, self._reinforce = CriticObjective(), Reinforce(discount)

    def loss(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """Loss of every step, [P, B, T]."""
        # The parameters are stacked, here [P, 2]: each agent has its own copy. So one differentiation gives a gradient for each.
        critic, reinforce = parameters["log_weights"].exp()[..., None, None].unbind(1)  # [P, 1, 1] each
        return critic * self._critic.loss({}, inputs) + reinforce * self._reinforce.loss({}, inputs)
