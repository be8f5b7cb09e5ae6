"""Meta-train, meta-test or run a baseline: `python train.py [group=choice] [key=value] ...`; see `python train.py --help`."""

from pathlib import Path

from metagenrl_pl.launch.entry import start

if __name__ == "__main__":
    start(Path(__file__).parent / "conf")
