"""One thread for each process: pytest-xdist's workers, and what tests start, share the cores."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from metagenrl_pl.common.signals import STOP_SIGNALS

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Tests that run `train.py` in this process leave its handlers, as a process that ends may."""
    former = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def float64() -> Iterator[None]:
    """Tensors have 64 bits, so that derivatives can be compared with finite differences."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
