"""Learned objectives in other people's training loops.

`WindowBuffer` and `actor_loss` are for any PyTorch loop. `sb3`, `torchrl` and `hub` are for these libraries. Each needs its own, so it is
imported by itself.
"""

from metagenrl_pl.integrations.actor import actor_loss, find_objective, meta_trained_with
from metagenrl_pl.integrations.windows import WindowBatch, WindowBuffer

__all__ = ["WindowBatch", "WindowBuffer", "actor_loss", "find_objective", "meta_trained_with"]
