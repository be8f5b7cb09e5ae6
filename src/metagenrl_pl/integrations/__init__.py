"""Learned objectives in other people's training loops.

`WindowBuffer` and `actor_loss` are for any PyTorch loop. `sb3` has TD3 of Stable-Baselines3 with a learned objective, and is imported
by itself, since it needs that package.
"""

from metagenrl_pl.integrations.actor import actor_loss, find_objective, meta_trained_with
from metagenrl_pl.integrations.windows import WindowBatch, WindowBuffer

__all__ = ["WindowBatch", "WindowBuffer", "actor_loss", "find_objective", "meta_trained_with"]
