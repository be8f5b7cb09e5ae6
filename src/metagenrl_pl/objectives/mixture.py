"""A learned mixture of hand-made objectives: for each step, an LSTM weighs the critic against the returns."""

import torch
from torch import Tensor
from torch.nn import functional

from metagenrl_pl.agents.stacked_networks import Parameters
from metagenrl_pl.objectives.contract import CriticChoice, DirectedObjective, ObjectiveInputs
from metagenrl_pl.objectives.critic import CriticObjective
from metagenrl_pl.objectives.learned import LearnedObjective, scaled_to_one
from metagenrl_pl.objectives.reinforce import Reinforce


class LearnedMixture(DirectedObjective, LearnedObjective):
    """g = w_1 g_DDPG + w_2 g_REINFORCE, with positive weights that are learned functions of the window.

    g_DDPG is -dQ/da. g_REINFORCE is dL/da of off-policy REINFORCE with generalised advantages. Each is divided by its root mean
    square over the agent's valid steps. The weights are the softplus of two outputs of `LearnedObjective`'s network. This family
    of objectives is smaller than the LSTM's: any member descends a combination of DDPG's and REINFORCE's losses. Nothing inside is
    differentiated twice. Not in the paper.

    Args:
        discount, gae_lambda: of REINFORCE, see `Reinforce`.
        critic_gradient_of: which dQ/da the DDPG part uses, see `LearnedObjective`.
        hidden_units, context_units, use_time, use_lstm, layer_norm_eps, seed: of the network, see `LearnedObjective`.

    Raises:
        ValueError: if `hidden_units` is odd, a width is not positive, a number is outside [0, 1], or `critic_gradient_of` is not
            valid.
    """

    num_outputs = 2

    def __init__(
        self,
        discount: float = 0.99,
        gae_lambda: float = 0.97,
        critic_gradient_of: CriticChoice = "first",
        hidden_units: int = 32,
        context_units: int = 8,
        use_time: bool = True,
        use_lstm: bool = True,
        layer_norm_eps: float = 1e-5,
        seed: int = 0,
    ) -> None:
        super().__init__(
            discount=discount,
            hidden_units=hidden_units,
            context_units=context_units,
            use_time=use_time,
            use_lstm=use_lstm,
            use_critic_gradient=True,
            critic_gradient_of=critic_gradient_of,
            layer_norm_eps=layer_norm_eps,
            seed=seed,
        )
        self.architecture = {
            "discount": discount,
            "gae_lambda": gae_lambda,
            "critic_gradient_of": critic_gradient_of,
            "hidden_units": hidden_units,
            "context_units": context_units,
            "use_time": use_time,
            "use_lstm": use_lstm,
            "layer_norm_eps": layer_norm_eps,
        }
        self.critic, self.reinforce = CriticObjective(), Reinforce(discount, gae_lambda)

    def weights(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """The weights of DDPG and REINFORCE for every step, [P, B, T, 2], positive; undefined where padded."""
        return functional.softplus(self.read(parameters, inputs))

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """The weighted sum of both action gradients, [P, B, T, A], 0 where padded."""
        slopes = [
            scaled_to_one(part.action_gradient({}, inputs), inputs.action_weight, inputs.valid)
            for part in (self.critic, self.reinforce)
        ]  # [P, B, T, A] each
        return (torch.stack(slopes, -1) * self.weights(parameters, inputs).unsqueeze(-2)).sum(-1)
