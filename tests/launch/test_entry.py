"""The program of train.py: what it answers before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path

HEAVY = ("torch", "pytorch_lightning", "gymnasium", "matplotlib", "scipy", "tensorboard")
assert not set(HEAVY) & set(sys.modules)
sys.modules.update(dict.fromkeys(HEAVY))  # None: importing one of them fails
from metagenrl_pl.launch.entry import run_command_line

for arguments in (["--help"], ["--cfg", "job", "--resolve"], ["sed=3"], ["seed=1"]):
    print(">", *arguments, flush=True)
    sys.argv[1:] = arguments
    try:
        run_command_line(Path(sys.argv[0]))
    except (SystemExit, ImportError) as error:
        print(type(error).__name__, error, flush=True)
"""


def test_help_configuration_typos_and_the_first_line_come_before_heavy_imports() -> None:
    command = [sys.executable, "-c", SCRIPT.replace("sys.argv[0]", repr(str(ROOT / "conf")))]
    done = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, timeout=60)
    print_help, cfg, typo, run = done.stdout.split("> ")[1:]
    assert "objective: critic, frozen, learned" in print_help
    assert "env_steps: 16000" in cfg and "run_dir: runs/" in cfg
    assert typo.splitlines()[-1] == "SystemExit 2" and "error: unknown key 'sed'; did you mean 'seed'?" in done.stderr
    assert run.splitlines()[1].startswith("metagenrl-pl ")
    assert run.splitlines()[2].endswith("halted; None in sys.modules")
