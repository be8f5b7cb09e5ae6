"""Meta-train, meta-test or run a baseline: `python train.py [group=choice] [key=value] ...`; see `python train.py --help`."""

import sys
from pathlib import Path

from metagenrl_pl.launch.cli import run

if __name__ == "__main__":
    run("train", sys.argv[1:], Path(__file__).parent)
