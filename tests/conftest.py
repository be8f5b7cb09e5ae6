"""One thread for each process: pytest-xdist's workers, and what tests start, share the cores."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
