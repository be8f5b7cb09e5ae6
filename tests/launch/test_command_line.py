"""The command line, made strict: which mistakes are answered in which words, and what of Hydra still works."""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forks import CONF
from hydra._internal.core_plugins import basic_launcher
from hydra.core import utils as core
from omegaconf import DictConfig

from metagenrl_pl.config.schema import build
from metagenrl_pl.launch import entry
from metagenrl_pl.launch.command_line import hydra_entry, overridden_keys


class Env:
    def __init__(self, train: list[str], test: Sequence[str] = (), **options: int) -> None: ...


class Population:
    def __init__(self, size: int, rate: float = 1e-3) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1,\ngot {size}")


CONFIG = """
defaults:
  - objective: learned
  - env: pendulum
  - experiment: null
  - _self_
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
seed: 1
hydra: {run: {dir: out}, sweep: {dir: sweep}}
"""


@dataclass
class CliConfig:
    seed: int
    env: Any
    objective: Any
    run_dir: str | None = None


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    files = {
        "config": CONFIG,
        "objective/learned": f"_target_: {__name__}.Population\nsize: 3",
        "objective/critic": f"_target_: {__name__}.Population\nsize: 0",
        "objective/reinforce": "size: 3",
        "env/pendulum": f"_target_: {__name__}.Env\ntrain: [Pendulum-v1]",
        "env/broken": "a: [1\nb: }",
        "experiment/large": "# @package _global_\nseed: 100",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "conf"


@pytest.fixture
def run(conf: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Runs the application with the given arguments and returns what each of its jobs returned."""
    monkeypatch.chdir(conf.parent)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def application(*arguments: str, work: Callable[[DictConfig], Any] = lambda config: config) -> list[Any]:
        results = []

        def main(config: DictConfig) -> None:
            build(config.objective)
            results.append(work(config))

        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        hydra_entry(main, conf, "config", CliConfig)
        return results

    return application


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sed=3"], "unknown key 'sed'; did you mean 'seed'?"),
        (["+sed=3"], "unknown key 'sed'; did you mean 'seed'?"),
        (["++env.trian=x"], "env.trian: expected int, got 'x'"),  # Env takes **options
        (["objective.szie=2"], "unknown key 'objective.szie'; did you mean 'objective.size'?"),
        (["++objective.szie=2"], "unknown key 'objective.szie'; did you mean 'objective.size'?"),
        (["envv.train=x"], "unknown key 'envv'; did you mean 'env'?"),
        (["seed.x=3"], "unknown key 'seed.x'"),
        (["zzz=3"], "unknown key 'zzz'; valid: env, experiment, hydra, objective, run_dir, seed"),
        (["objective.rate=2"], "the config does not set 'objective.rate'; to set it, write +objective.rate=..."),
        (["run_dir=x"], "the config does not set 'run_dir'; to set it, write +run_dir=..."),
        (["objective=lerned"], "objective=lerned is not a choice; did you mean 'learned'? valid: critic, learned, reinforce"),
        (["-m", "objective=zzz,learned"], "objective=zzz is not a choice; valid: critic, learned, reinforce"),
        (["objectve=learned"], "unknown key 'objectve'; did you mean 'objective'?"),
        (["experimnt=large"], "unknown key 'experimnt'; did you mean 'experiment'?"),
        (["seed"], "cannot read the override 'seed': missing EQUAL at '<EOF>'"),
        (["seed=[1"], "cannot read the override 'seed=[1': no viable alternative at input '[1'"),
        (
            ["run_dir=a=0-b=1.ckpt"],
            "cannot read the override 'run_dir=a=0-b=1.ckpt': mismatched input '=' expecting <EOF>; valid for a text with = in it is "
            """'run_dir='"'"'a=0-b=1.ckpt'"'"''""",
        ),
        (["env.train.x.y=3"], "cannot compose the config: Index 'x' (str) is not an int"),
        (["hydra.mode=x"], "Error merging override hydra.mode=x: Invalid value 'x', expected one of [RUN, MULTIRUN]"),
        (["--config-name", "no"], "Cannot find primary config 'no'. Check that it's in your config search path."),
        (["seed=x"], "seed: expected int, got 'x'"),
        (["objective=critic"], "objective: size must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("argument", ["seed=1,2", "env=broken", "objective=3", "~zzz", "hydra.run.dir=${zzz}"])
def test_other_mistakes_are_one_line_too(run: Callable[..., Any], capsys: pytest.CaptureFixture[str], argument: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(argument)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_a_job_gets_the_validated_config(run: Callable[..., Any]) -> None:
    (config,) = run("env.train=a", "experiment=large", "+env.test=b")
    assert config.env.train == ["a"] and config.env.test == ["b"]


def test_multirun_runs_the_other_jobs_after_a_mistake(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    seeds: list[int] = []
    run("-m", "seed=1,2,3", work=lambda config: seeds.append(config.seed))
    assert seeds == [1, 2, 3]
    with pytest.raises(SystemExit) as caught:
        run("-m", "seed=4,x,5", "+env.test=[a, b]", "~experiment", work=lambda config: seeds.append(config.seed))
    assert caught.value.code == 2 and seeds == [1, 2, 3, 4, 5]
    printed, errors = capsys.readouterr()
    assert errors == "error: seed: expected int, got 'x' (job 1: seed=x)\n"
    lines = printed[printed.rindex("job 0: seed=4\n") :].splitlines()
    assert lines[:3] == ["job 0: seed=4", "job 1: seed=x", "job 2: seed=5"]
    table = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines if line.startswith("│")]  # what became of each
    assert table == [["job 0: seed=4", "finished"], ["job 1: seed=x", "ended early (code 2)"], ["job 2: seed=5", "finished"]]


def test_flags_may_stand_anywhere(run: Callable[..., Any], conf: Path) -> None:
    jobs = run("objective.size=2", "-m", "seed=1,2")
    assert [(job.objective.size, job.seed) for job in jobs] == [(2, 1), (2, 2)]
    (job,) = run("objective.size=2", "--config-dir", str(conf), "seed=7")
    assert (job.objective.size, job.seed) == (2, 7)


def test_the_name_of_a_job_has_what_differs_from_that_of_others(
    conf: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run("-m", "experiment=large", "objective.size=range(1,3)", "+run_dir=a,b")
    (conf / "experiment" / "wide.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '1,2'}}}")
    run("-m", "experiment=wide")
    run("-m", "experiment=large")
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("job ")] == [
        *("job 0: objective.size=1,+run_dir=a", "job 1: objective.size=1,+run_dir=b"),
        *("job 2: objective.size=2,+run_dir=a", "job 3: objective.size=2,+run_dir=b"),
        *("job 0: seed=1", "job 1: seed=2", "job 0"),
    ]


def test_the_other_jobs_run_after_one_whose_code_is_not_0(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def main(config: DictConfig) -> int:
        seeds.append(config.seed)
        return {1: 0, 2: 3}.get(config.seed, 4)

    monkeypatch.chdir(conf.parent)
    for arguments, code in ((["seed=1"], None), (["seed=2"], 3), (["-m", "seed=1,2,5"], 3), (["-m", "seed=2,x"], 2)):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as caught:
            hydra_entry(main, conf, "config", CliConfig)
        assert caught is None or caught.value.code == code
    assert seeds == [1, 2, 1, 2, 5, 2]


def test_overridden_keys(run: Callable[..., Any]) -> None:
    def keys(config: DictConfig) -> list[str]:
        return overridden_keys()

    assert run(work=keys) == [[]]
    assert run("seed=2", "++env.test=[b]", "objective=learned", "hydra.verbose=false", work=keys) == [
        ["seed", "env.test", "objective"]
    ]
    assert run("-m", "seed=1,2", "+run_dir=x", work=keys) == [["seed", "run_dir"]] * 2


@pytest.mark.parametrize("bug", [ValueError("deep inside"), RuntimeError("deep inside"), OSError("deep inside")])
def test_a_bug_in_the_job_is_raised(run: Callable[..., Any], bug: Exception) -> None:
    def work(config: DictConfig) -> None:
        raise bug

    with pytest.raises(type(bug)) as caught:
        run(work=work)
    assert caught.value is bug


def test_help_and_cfg_still_work(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("--cfg", "job", "seed=7")
    assert "seed: 7" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0 and "objective: critic, learned, reinforce" in capsys.readouterr().out


SCRIPT = """
import sys
from pathlib import Path
from typing import Any
from hydra.utils import instantiate
from metagenrl_pl.launch.command_line import hydra_entry

class Population:
    def __init__(self, size: int) -> None:
        if size == 0:
            raise ValueError("size must be at least 1, got 0")
        if size == 1:
            raise RuntimeError("a bug")

class Schema:
    def __init__(self, population: Any) -> None: ...

def main(config):
    instantiate(config.population)
    assert not {"torch", "pytorch_lightning"} & set(sys.modules)
    print("done")

if __name__ == "__main__":
    hydra_entry(main, Path(__file__).parent / "conf", "config", Schema)
"""


def test_exit_codes_of_a_real_process(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("population: {_target_: __main__.Population, size: 2}")
    (tmp_path / "train.py").write_text(SCRIPT)
    source = Path(__file__).parents[2] / "src"

    def process(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "train.py", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        return subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)

    good = process()
    assert (good.returncode, good.stdout, good.stderr) == (0, "done\n", "")
    assert list(tmp_path.glob("outputs/*/*/train.log"))  # the job is named after the script
    mistake = process("population.size=0")
    assert (mistake.returncode, mistake.stderr) == (2, "error: population: size must be at least 1, got 0\n")
    bug = process("population.size=1")
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "a bug" in bug.stderr and "error: " not in bug.stderr


def test_what_a_launcher_runs_elsewhere_fails_here_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As submitit and Ray do: the job runs in another process, and only what it returns comes back."""
    in_this_process = core.run_job

    def in_another(**arguments: object) -> core.JobReturn:
        end, pipe = os.pipe()
        if os.fork() == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            os.write(pipe, pickle.dumps(in_this_process(**arguments).return_value))
            os._exit(0)
        os.wait()
        os.close(pipe)
        with os.fdopen(end, "rb") as file:
            return core.JobReturn(status=core.JobStatus.COMPLETED, _return_value=pickle.load(file))

    monkeypatch.setattr(basic_launcher, "run_job", in_another)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "env.train=[CartPole-v1]", "seed=1,2", f"hydra.sweep.dir={tmp_path}"])
    with pytest.raises(SystemExit) as caught:
        entry.run_command_line(CONF)
    errors = capfd.readouterr().err
    assert caught.value.code == 2 and errors.count("error: environment CartPole-v1: its actions are") == 2, errors
