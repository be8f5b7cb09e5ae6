"""The command `metagenrl`, and `python train.py`, which is its `metagenrl train`. What a command needs is imported only for it."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import metagenrl_pl
from metagenrl_pl.common.exit_codes import INTERRUPTED, MISTAKE
from metagenrl_pl.common.messages import format_warning

COMMANDS = {
    "train": "meta-train an objective and test it; metagenrl train --help lists all settings",
    "test": "train fresh agents with a finished objective; metagenrl test light env.train=[Hopper-v5]",
    "report": "write one HTML page about runs; metagenrl report runs/... --out report.html",
    "film": "film the agents of a run; metagenrl film runs/...",
    "check": "try environments: ends, seeds, numbers, speed; metagenrl check env.train=[Hopper-v5]",
    "list": "list the pretrained objectives with their scores",
}

EXTRAS = {
    "train": ("gymnasium", "hydra", "matplotlib", "mujoco", "omegaconf", "pytorch_lightning", "rich", "scipy", "tensorboard"),
    "report": ("imageio", "jinja2", "PIL"),
}
"""The modules of the extras that commands import, without those that other modules of the extra bring along."""


def main() -> None:
    """Run the command that `sys.argv` names.

    Raises:
        SystemExit: with code 2 after a user's mistake, and with those of the commands.
    """
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        print("metagenrl COMMAND ...\n\n" + "\n".join(f"  {name:<8}{text}" for name, text in COMMANDS.items()))
    elif command == "--version":
        print(metagenrl_pl.__version__)
    elif command in COMMANDS:
        run(command, arguments)
    else:
        _end(f"there is no command '{command}'; valid: {', '.join(COMMANDS)}")


def run(command: str, arguments: Sequence[str], folder: Path | None = None) -> None:
    """Run one command. If a package of an extra is missing, one line says how to install it.

    Args:
        command: one of `COMMANDS`.
        arguments: those after the command.
        folder: of `conf` and `callbacks`; by default those of the package, or of the clone.
    """
    warnings.formatwarning = format_warning
    try:
        _run(command, arguments, folder)
    except KeyboardInterrupt:
        print("Stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        extra = next((extra for extra, modules in EXTRAS.items() if (error.name or "").partition(".")[0] in modules), None)
        if extra is None:
            raise
        package = f"'metagenrl-pl[{extra}]'" if is_installed() else f"-e '.[{extra}]'"
        _end(f"{error.name} is not installed; pip install {package}")


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(MISTAKE)


def _run(command: str, arguments: Sequence[str], folder: Path | None) -> None:
    if command in ("train", "test"):
        from metagenrl_pl.launch import entry

        if folder is None:  # the processes that Lightning launches run sys.argv, without the name of the command
            sys.argv[0] = entry.__file__
        sys.argv[1:] = with_objective(arguments) if command == "test" else arguments
        entry.start(folder or default_folder())
    elif command == "report":
        from metagenrl_pl.reporting import report

        report.main(arguments)
    elif command == "film":
        from metagenrl_pl.launch import entry
        from metagenrl_pl.reporting import film

        entry.make_importable(default_folder())
        film.main(arguments)
    elif command == "check":
        from metagenrl_pl.launch import check_command, entry

        entry.make_importable(default_folder())
        if names := _without_key(arguments):
            _end(f"check takes overrides, got {', '.join(names)}; valid is env.train=[{','.join(names)}]")
        sys.argv[1:] = arguments
        check_command.run_command_line(default_folder() / "conf")
    elif list(arguments) in (["--help"], ["-h"]):
        print(f"metagenrl list: {COMMANDS['list']}")
    else:
        if arguments:
            _end(f"list takes no argument, got {' '.join(arguments)}")
        from metagenrl_pl.objectives import list_pretrained

        print(*list_pretrained(), sep="\n")


def with_objective(arguments: Sequence[str]) -> list[str]:
    """The overrides of `metagenrl test`. An argument that is no override is the objective: a name, a file or a run folder."""
    from metagenrl_pl.common.commands import hydra_override  # needs Hydra

    objectives = _without_key(arguments)
    overrides = [argument for argument in arguments if argument not in objectives]
    if len(objectives) > 1:
        _end(f"test takes one objective, got {', '.join(objectives)}")
    names_one = ("-", "objective", "experiment=", "ckpt_path=")
    if not objectives and not any(argument.startswith(names_one) for argument in arguments):
        _end("test needs an objective; valid is a name as in metagenrl list, a .safetensors file or the folder of a run")
    for objective in objectives:
        path = Path(objective) / "objective.safetensors" if Path(objective).is_dir() else Path(objective)
        is_file = path.suffix == ".safetensors"
        named = ["objective=pretrained", hydra_override("objective.name", objective)]
        chosen = [hydra_override("objective.path", str(path))] if is_file else named
        overrides = [*chosen, *overrides]
    has_experiment = any(override.startswith("experiment=") for override in overrides)
    return overrides if has_experiment else ["experiment=meta_test", *overrides]


def _without_key(arguments: Sequence[str]) -> list[str]:
    """Arguments that are no overrides, nor flags or their values, as `job` in `--cfg job`."""
    from hydra._internal.utils import get_args_parser

    positional = get_args_parser().parse_known_intermixed_args(arguments)[0].overrides  # it tells of unknown flags later
    return [argument for argument in positional if "=" not in argument and not argument.startswith(("+", "~"))]


def is_installed() -> bool:
    """Whether `conf` and `callbacks` are part of the package, as in a wheel, and not those of a clone."""
    return (Path(metagenrl_pl.__file__).parent / "conf").is_dir()


def default_folder() -> Path:
    """The folder of `conf` and `callbacks`: the package, or the root of the clone."""
    package = Path(metagenrl_pl.__file__).parent
    return package if is_installed() else package.parents[1]
