"""Several processes, each with agents of its own, that share the objective alone."""

from datetime import timedelta
from typing import Any

from pytorch_lightning.strategies import DDPStrategy


class PopulationStrategy(DDPStrategy):
    """Lightning's DDP without its wrapper: launching, devices and process group, and nothing else.

    Agents differ from process to process, and `DistributedDataParallel` would make them equal. The objective is the same in all
    because every process steps it with the same gradient, gathered from all agents (`Placement.gather`).
    """

    def __init__(self, **kwargs: Any) -> None:
        # A process may wait for hours for one that still meta-tests its agents; launchers end all processes when one dies.
        super().__init__(timeout=timedelta(days=7), **kwargs)

    def configure_ddp(self) -> None:
        """Leave the module as it is."""
