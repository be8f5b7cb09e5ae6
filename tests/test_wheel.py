"""The package as pip installs it, outside of the checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ("callbacks.display=null", "agent.hidden_units=8", "agent.num_windows=3", "agent.warmup_env_steps=20", "compile=false")


@pytest.mark.slow
def test_an_installed_wheel_trains_tests_reports_and_lists(tmp_path: Path) -> None:
    python, wheel = install(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {"metagenrl_pl/conf/config.yaml", "metagenrl_pl/callbacks/display.py", "metagenrl_pl/py.typed"} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"metagenrl_pl"}  # no top-level `callbacks` or `conf`

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    metagenrl = str(python.parent / "metagenrl")
    short = "experiment=debug", "env_steps=60", "callbacks.meta_test=null", "run_dir=runs/trained"
    printed = run(metagenrl, "train", *short, "trainer.accelerator=cpu", "trainer.devices=2", *TINY)
    assert printed.count("loading PyTorch") == 1 and "Traceback" not in printed  # the second process was launched, too
    run(
        metagenrl,
        "test",
        "runs/trained",
        "env.train=Pendulum-v1",
        "population.size=1",
        "env_steps=40",
        "run_dir=runs/tested",
        *TINY,
    )
    run(metagenrl, "report", "runs", "--out", "report.html")
    assert (tmp_path / "runs/tested/meta_test.csv").is_file() and "Pendulum-v1" in (tmp_path / "report.html").read_text()
    assert run(metagenrl, "list").startswith("falling: ")
    assert "error: unknown key 'sed'; did you mean 'seed'?" in run(metagenrl, "train", "sed=1", code=2)
    assert "No module named 'callbacks'" in run(str(python), "-c", "import callbacks", code=1)
    core = "import sys; sys.modules.update(dict.fromkeys(['hydra', 'omegaconf', 'pytorch_lightning', 'gymnasium', 'scipy', 'rich']));"
    run(str(python), "-c", core + "import metagenrl_pl.integrations; print(metagenrl_pl.integrations.find_objective('light'))")
    assert "pip install 'metagenrl-pl[train]'" in run(
        str(python), "-c", core + "from metagenrl_pl.launch.cli import run; run('train', [])", code=2
    )


def install(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and install it into an environment of its own, which sees the other packages of this one."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder / "wheel"), str(ROOT)], check=True, timeout=300)
    (wheel,) = (folder / "wheel").glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    # A path file adds the other packages, but not what their own path files add, such as an editable install of this package.
    Path(paths["purelib"], "others.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=300)
    return python, wheel
