"""MetaGenRL: reinforcement learning with a meta-learned objective (Kirsch et al., ICLR 2020), on PyTorch Lightning."""

__version__ = "0.2.0.dev0"
