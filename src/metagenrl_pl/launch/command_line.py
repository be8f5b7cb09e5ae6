"""From the command line to jobs: a strict Hydra that reports every user's mistake in one line.

Hydra accepts unknown keys (`+sed=3`), does not suggest similar keys, and prints tracebacks. Here:

    command line -> Hydra composes -> `prepare` -> `validate` (keys, types, choices) -> `main(config)` -> `build(node)` -> objects
                    `hydra_entry` reports mistakes in all of these: `error: ...` on stderr, exit code 2
"""

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from metagenrl_pl.common.commands import override as quote_override
from metagenrl_pl.common.exit_codes import MISTAKE
from metagenrl_pl.common.messages import choice_message, key_message, one_line, printable
from metagenrl_pl.common.signals import stoppable_command
from metagenrl_pl.config.schema import ConfigError, explanation, import_target, parameters_of, validate
from metagenrl_pl.launch.output import surviving_closed_output

log = logging.getLogger(__name__)

Prepare = Callable[[DictConfig, list[str]], DictConfig]


def hydra_entry(
    main: Callable[[DictConfig], int | None],
    config_path: Path,
    config_name: str,
    schema: type,
    prepare: Prepare = lambda config, overridden: config,
) -> None:
    """Run `main` as a Hydra application. Overrides, `-m`, `--help`, `--cfg job` and the rest work as Hydra documents them.

    A user's mistake is printed as one line, `error: ...`, and ends the process with code 2. Mistakes are all errors before a job
    starts (an unknown key or choice, an override that cannot be parsed), a `ConfigError`, and an error that a constructor raises
    in `instantiate` or `build`. Every other exception of `main` is a bug: it keeps its traceback and has code 1. In a multirun
    the other jobs still run. `hydra.verbose=true` also logs the traceback of a mistake.

    Args:
        main: Called once per job with the validated config. Returns the exit code of the job; None means 0.
        config_path: The folder of the Hydra groups.
        config_name: The primary config in this folder.
        schema: Keys that the root of the config may hold, see `validate`.
        prepare: Gets the config that Hydra has composed, before it is resolved and validated, and the keys and groups that the
            command line sets. Returns the config to use.

    Raises:
        SystemExit: With code 2 after a user's mistake, otherwise with the first job's exit code that is not 0.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises exceptions instead of printing them, so that we can print them
    jobs = _Jobs(main, schema, prepare)

    @functools.wraps(main)  # Hydra names the job after the file of the wrapped function
    def job(config: DictConfig) -> JobOutcome:
        return jobs.run(config)

    outcomes: list[JobOutcome] = []
    try:
        sys.argv[1:] = flags_first(sys.argv[1:])
        with stoppable_command(), surviving_closed_output(), collecting_outcomes() as outcomes:
            hydra.main(config_path=str(Path(config_path).resolve()), config_name=config_name, version_base="1.3")(job)()
    except Exception as error:
        if error in jobs.bugs:
            raise
        jobs.mistakes.append(composition_error(error, Path(config_path), schema))  # before a job: command line or config files
        print(f"error: {printable(jobs.mistakes[-1])}", file=sys.stderr)
    jobs.add_foreign(outcomes)
    if len(jobs.done) > 1:
        _print_sweep(jobs.done)
    if jobs.mistakes:
        sys.exit(MISTAKE)
    if code := next((code for *_, code in jobs.done if code), 0):
        sys.exit(code)


class _Jobs:
    """Runs the jobs of a command line in this process and remembers how they ended. Arguments as of `hydra_entry`."""

    def __init__(self, main: Callable[[DictConfig], int | None], schema: type, prepare: Prepare) -> None:
        self._main, self._schema, self._prepare = main, schema, prepare
        self.mistakes: list[str] = []
        self.bugs: list[Exception] = []
        self.done: list[tuple[str, Path | None, int]] = []  # as of `SweepJob`

    def run(self, config: DictConfig) -> "JobOutcome":
        """One job."""
        name, run_dir = _name_in_sweep(), None
        if name:
            print(name, flush=True)
        try:
            config = validate(self._prepare(config, overridden_keys()), self._schema)
            run_dir = Path(config.run_dir) if config.get("run_dir") else None
            self.done.append((name, run_dir, self._main(config) or 0))
            return JobOutcome(os.getpid(), self.done[-1])
        except Exception as error:
            message = explanation(error)
            if message is None:
                self.bugs.append(error)
                raise
            self.mistakes.append(message := printable(message) + (f" ({name})" if name else ""))
            self.done.append((name, run_dir, MISTAKE))
            print(f"error: {message}", file=sys.stderr)
            log.debug("the mistake was found here", exc_info=True)
            return JobOutcome(os.getpid(), self.done[-1], message)

    def add_foreign(self, outcomes: Sequence["JobOutcome"]) -> None:
        """Add and print what a launcher ran in other processes, where lines and codes have stayed."""
        for outcome in outcomes:
            if outcome.process != os.getpid():
                self.done.append(outcome.job)
                if outcome.mistake:
                    self.mistakes.append(outcome.mistake)
                    print(f"error: {outcome.mistake}", file=sys.stderr)


def _print_sweep(jobs: Sequence[tuple[str, Path | None, int]]) -> None:
    from rich.console import Console

    from metagenrl_pl.reporting.sweep_table import SweepJob, sweep_table  # needs torch, which a mistake need not wait for

    Console().print(sweep_table([SweepJob(*job) for job in jobs]))


class JobOutcome(NamedTuple):
    """What a job returns through its launcher, which may run it in another process or on another machine."""

    process: int
    job: tuple[str, Path | None, int]  # as of `SweepJob`
    mistake: str = ""


@contextlib.contextmanager
def collecting_outcomes() -> Iterator[list[JobOutcome]]:
    """Collect what the jobs of a multirun return, which `hydra.main` drops."""
    outcomes: list[JobOutcome] = []
    multirun = Hydra.multirun

    def collecting(self: Hydra, *args: Any, **kwargs: Any) -> Any:
        batches = multirun(self, *args, **kwargs)
        values = [job.return_value for batch in batches or () for job in (batch if isinstance(batch, Sequence) else [batch])]
        outcomes.extend(value for value in values if isinstance(value, JobOutcome))
        return batches

    Hydra.multirun = collecting  # type: ignore[method-assign]
    try:
        yield outcomes
    finally:
        Hydra.multirun = multirun  # type: ignore[method-assign]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the overrides at the end. Hydra's parser refuses overrides on both sides of a flag."""
    overrides = get_args_parser().parse_known_intermixed_args(arguments)[0].overrides
    return [*(argument for argument in arguments if argument not in overrides), *overrides]


def allow_new_keys(arguments: Sequence[str]) -> list[str]:
    """Add `++` to the dotted keys of a resume's command line. The stored run may have keys that the default experiment lacks."""
    if not any(argument.startswith("ckpt_path=") for argument in arguments):
        return list(arguments)
    return [f"++{argument}" if re.match(r"[a-z_]+\.[\w.]+=", argument) else argument for argument in arguments]


def overridden_keys() -> list[str]:
    """The dotted keys and groups that the command line sets for this job, such as `["seed", "env.train"]`.

    Hydra's own keys are left out. Prefixes (`+`, `++`, `~`) and packages (`@...`) are removed.
    """
    task: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # `key=${other}` stays as it is
    overrides = OverridesParser.create().parse_overrides(task)
    return [override.key_or_group for override in overrides]


def _name_in_sweep() -> str:
    """The name of a multirun's job with the overrides that differ between jobs, such as `job 2: seed=1`.

    Empty outside a multirun.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return ""
    overrides = OverridesParser.create().parse_overrides(list(hydra_config.overrides.task))
    differences = ",".join(str(override.input_line) for override in overrides if _is_varied(override.get_key_element()))
    return f"job {hydra_config.job.num}" + (f": {differences}" if differences else "")


def _is_varied(key: str) -> bool:
    """Whether a key differs between jobs: the command line gives it several values, or the sweeper's configuration sets it."""
    arguments = [argument for argument in sys.argv[1:] if argument.partition("=")[0] == key]
    return not arguments or any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(arguments))


def composition_error(error: Exception, config_path: Path, schema: type) -> str:
    """The one-line message for an error that Hydra raised before the job started."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, choice = _group_and_choice(error.missing_cfg_file)
        return choice_message(group, choice, sorted({*error.options, *_choices(config_path, group)}))
    if "Config group override must be" in str(error):
        for group, _, choice in (argument.lstrip("+").partition("=") for argument in sys.argv[1:]):
            if choice in ("null", "") and (config_path / group).is_dir():
                return choice_message(group, choice, _choices(config_path, group))
    if isinstance(error, OverrideParseException):
        reason = one_line(error).removeprefix(f"Error parsing override '{error.override}' ")
        key, _, value = error.override.partition("=")
        quoted = f"; valid for a text with = in it is {quote_override(key, value)}" if "=" in value else ""
        return f"cannot read the override '{error.override}': {reason}{quoted}"
    cause = error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, DictConfig):
        full_key, key = str(cause.full_key), str(cause.key)
        parent = full_key.rpartition(".")[0]
        try:
            target: Any = schema if not parent else import_target(cause.parent_node.get("_target_"), parent)
            settable = parameters_of(target) or {}
        except ConfigError:
            settable = {}
        if key in settable:
            return f"the config does not set '{full_key}'; to set it, write +{full_key}=..."
        if _command_line_value(parent) == ["null"]:
            return f"{parent} is null, so '{full_key}' sets nothing; valid is one of the two"
        groups = [] if parent else [path.name for path in config_path.iterdir() if path.is_dir()]
        return key_message(parent, key, [*cause.parent_node, *settable, *groups])
    reason = one_line(error) + (f": {one_line(cause)}" if isinstance(cause, OmegaConfBaseException) else "")
    return reason if isinstance(error, HydraException) else f"cannot compose the config: {reason}"


def _command_line_value(key: str) -> list[str]:
    """A list with the value that the command line gives a key; empty if it gives none."""
    return [value for name, _, value in (argument.partition("=") for argument in sys.argv[1:]) if name.lstrip("+") == key][-1:]


def _group_and_choice(config: str) -> tuple[str, str]:
    """Split the config `experiment/paper/other` into group and choice as on the command line, otherwise at the last slash."""
    for argument in sys.argv[1:]:
        group, _, value = argument.lstrip("+").partition("=")
        if value and config.startswith(f"{group}/"):
            return group, config.removeprefix(f"{group}/")
    group, _, choice = config.rpartition("/")
    return group, choice


def _choices(config_path: Path, group: str) -> list[str]:
    """The choices of a group, also those in subfolders, such as `paper/lunar_cheetah`."""
    folder = config_path / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
