"""The three updates as pure functions on tensors: windows and parameters in, gradients out. Each cites the paper's equation."""

from metagenrl_pl.updates.critic import critic_gradients
from metagenrl_pl.updates.meta import MetaTask, combine_meta_gradients, meta_gradients, policy_and_meta_gradients
from metagenrl_pl.updates.policy import policy_gradients

__all__ = [
    "MetaTask",
    "combine_meta_gradients",
    "critic_gradients",
    "meta_gradients",
    "policy_and_meta_gradients",
    "policy_gradients",
]
