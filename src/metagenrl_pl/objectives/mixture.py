"""A learned mixture of hand-made objectives: an LSTM says, step by step, how much to trust the critic and how much the returns."""

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

    g_DDPG = -dQ/da and g_REINFORCE = dL/da of off-policy REINFORCE with generalised advantages, each over its root mean square over the
    agent's valid steps. The weights are the softplus of two outputs of the network that `LearnedObjective` reads windows with, and
    depend on all that it reads. The family of objectives is smaller than the LSTM's, and whatever it has learned, it descends DDPG's or
    REINFORCE's loss, so less can go wrong in environments that it never saw. Nothing inside is differentiated twice. Not in the paper.

    Args:
        discount, gae_lambda: of REINFORCE, see `Reinforce`.
        critic_gradient_of: whose dQ/da DDPG's part is, see `LearnedObjective`.
        hidden_units, context_units, use_time, use_lstm, layer_norm_eps, seed: of the network, see `LearnedObjective`.

    Raises:
        ValueError: if a width is odd or not positive, a number is outside [0, 1], or there are no such critics.
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
        """w of DDPG and of REINFORCE for every step, [P, B, T, 2], positive; anything where padded."""
        return functional.softplus(self.read(parameters, inputs))

    def action_gradient(self, parameters: Parameters, inputs: ObjectiveInputs) -> Tensor:
        """The weighted sum of both, [P, B, T, A], 0 where padded."""
        slopes = [
            scaled_to_one(part.action_gradient({}, inputs), inputs.action_weight, inputs.valid)
            for part in (self.critic, self.reinforce)
        ]  # [P, B, T, A] each
        return (torch.stack(slopes, -1) * self.weights(parameters, inputs).unsqueeze(-2)).sum(-1)
