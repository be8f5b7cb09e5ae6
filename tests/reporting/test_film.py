"""Films of the agents of a checkpoint."""

import os
import re
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import toy_environments  # noqa: F401  (registers them)
from gymnasium.envs.classic_control import PendulumEnv

from metagenrl_pl.environments.environment import Environment, EnvironmentSpec
from metagenrl_pl.launch.entry import run_command_line
from metagenrl_pl.reporting import film
from metagenrl_pl.reporting.film_frames import Episode, side_by_side
from metagenrl_pl.training.checkpoint_io import AtomicCheckpointIO

PENDULUM = EnvironmentSpec("Pendulum-v1", max_episode_steps=40)


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` chooses for this process ends with the test."""
    for name in ("MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of agents of different sizes; the second of them turns left only."""
    run_dir = tmp_path_factory.mktemp("run")
    entry = "{id: Pendulum-v1, max_episode_steps: 40}"
    arguments = [f"env.train=[{entry},Reacher-v5]", "population.size=3", "env_steps=120", "callbacks.meta_test=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "experiment=debug", *arguments, f"run_dir={run_dir}"])
        run_command_line(Path(__file__).parents[2] / "conf")
    path = run_dir / "checkpoints" / "env_steps_000000120.ckpt"
    stored = torch.load(path, weights_only=True)
    stored["metagenrl"]["learner"]["population"]["policy"]["out.bias"][2] = -100
    AtomicCheckpointIO().save_checkpoint(stored, path)
    return path


def test_agents_come_back_as_they_were(checkpoint: Path) -> None:
    specs, population = film.load_agents(checkpoint)
    assert [spec.name for spec in specs] == [PENDULUM.name, "Reacher-v5", PENDULUM.name]
    stored = torch.load(checkpoint, weights_only=True)["metagenrl"]["learner"]["population"]["policy"]
    for name, p in population.policy.items():
        torch.testing.assert_close(p, stored[name], rtol=0, atol=0)
    observation = np.array([0.6, 0.8, 0.1], np.float32)
    alone = film._policy(population, 0)(observation)
    padded = torch.zeros(3, population.observation_size)
    padded[0, :3] = torch.from_numpy(observation)
    assert alone.shape == (1,) and alone == population.act(padded)[0, :1].numpy()
    assert film._policy(population, 2)(observation) == -1


def test_a_film_shows_an_episode_from_its_first_state_to_its_last() -> None:
    """40 steps at 30 a second, every second one of which fits into 25 frames: 0, 2, .., 40."""
    episode = film.record_episode(PENDULUM, lambda observation: np.ones(1), seed=3, height=60)
    frames, per_second, episode_return = np.stack(episode.frames), episode.per_second, episode.episode_return
    assert episode.steps == list(range(0, 41, 2)) and (episode.returns[0], episode.returns[-1]) == (0.0, episode_return)
    assert frames.shape == (21, 60, 60, 3) and frames.dtype == np.uint8 and per_second == 15
    assert len({frame.tobytes() for frame in frames}) > 10  # it moves

    environment = Environment(PENDULUM)
    environment.reset(3)
    rewards = [environment.step(np.ones(1))[1] for _ in range(40)]
    assert episode_return == pytest.approx(sum(rewards))

    short = film.record_episode(PENDULUM, lambda observation: np.ones(1), seed=3, height=60, seconds=0.5)
    assert len(short.frames) == 8 and short.episode_return == episode_return  # steps 0 to 15
    np.testing.assert_array_equal(short.frames, frames[:8])


def test_episodes_stand_side_by_side_under_what_they_are() -> None:
    """The shorter one stands still at its end. Labels, steps and returns are written above."""
    grey = [np.full((60, 80, 3), value, np.uint8) for value in (50, 100, 150)]
    long = Episode(grey, [0, 1, 2], [0.0, 1.0, 2.0], 10.0, 2.0)
    short = Episode(grey[:2], [0, 1], [0.0, 5.0], 10.0, 5.0)
    frames = side_by_side({"learned objective": long, "DDPG/TD3": short})
    strip = frames.shape[1] - 60
    assert frames.shape == (3, 60 + strip, 160, 3) and strip % 2 == 0
    np.testing.assert_array_equal(frames[:, strip:, :80, 0].max((1, 2)), [50, 100, 150])
    np.testing.assert_array_equal(frames[:, strip:, 80:, 0].max((1, 2)), [50, 100, 100])
    written = frames[:, :strip].astype(int)
    assert (written[1, :, :80] != written[2, :, :80]).any() and (written[1, :, 80:] == written[2, :, 80:]).all()
    assert (written[0, :, :80] != written[0, :, 80:]).any() and written.max() > 200


def test_the_command_films_one_agent_of_each_environment_or_those_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Environment, "render", lambda self: np.full((100, 80, 3), 7, np.uint8))  # Reacher needs OpenGL
    film.main([str(checkpoint), "--out", str(tmp_path / "some"), "--height", "50"])
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == [
        f"{PENDULUM.name}_agent_0.gif",
        "Reacher-v5_agent_1.gif",
    ]
    assert capsys.readouterr().out.count(", return -") == 2
    film.main([str(checkpoint), "--agents", "2", "--out", str(tmp_path / "one")])
    (path,) = (tmp_path / "one").iterdir()
    assert path.name == f"{PENDULUM.name}_agent_2.gif"
    assert iio.imread(path).shape[-3:] == (240 + 32, 192, 3) and f"{PENDULUM.name}, agent 2" in capsys.readouterr().out


def test_options_reach_the_film(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(film, "save_film", lambda path, frames, per_second: shapes.append(frames.shape))
    for seed in ("3", "4", "3"):
        film.main(
            [str(checkpoint), "--agents", "0", "--out", str(tmp_path), "--height", "60", "--seconds", "0.5", "--seed", seed]
        )
    assert shapes == [(8, 60 + 26, 60, 3)] * 3
    first, other, again = capsys.readouterr().out.splitlines()
    assert first == again != other  # the return of another episode


def test_a_walking_body_is_followed() -> None:
    followed, alone = (film._make_drawable(EnvironmentSpec(id)) for id in ("HalfCheetah-v5", "Reacher-v5"))
    fixed = film._make_drawable(EnvironmentSpec("HalfCheetah-v5", {"camera_id": -1}))
    assert [environment.spec.kwargs.get("camera_name") for environment in (followed, alone, fixed)] == ["track", None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agents", "3"], r"--agents 3: valid are 0 to 2"),
        (["--height", "0"], r"--height 0: valid is a positive number"),
        (["--seconds", "-1"], r"--seconds -1.0: valid is a positive number"),
        (["--out", __file__], rf"--out {__file__}: cannot be written; valid is a folder"),
        (["--seed", "-1"], r"--seed -1: valid is 0 or more"),
        (["--format", "mp4"], r"mp4 needs imageio-ffmpeg: pip install 'metagenrl-pl\[video\]'; valid without it: gif"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    checkpoint: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SystemExit) as exit:
        film.main([str(checkpoint), "--out", str(tmp_path / "films"), *arguments])
    assert exit.value.code == 2 and not list(tmp_path.glob("films/*"))
    assert re.match(f"error: {message}\n$", capsys.readouterr().err)


def test_an_mp4_has_the_even_sizes_that_its_codec_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the codec, which only an extra brings: what it is given."""
    shapes = []

    def encode(_: str, frames: np.ndarray, **options: object) -> bytes:
        shapes.append(frames.shape)
        return b"film"

    monkeypatch.setattr(film.iio, "imwrite", encode)
    film.save_film(tmp_path / "odd.mp4", np.zeros((2, 31, 45, 3), np.uint8), 30)
    assert shapes == [(2, 30, 44, 3)] and (tmp_path / "odd.mp4").read_bytes() == b"film"


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    older = checkpoint.with_name("env_steps_000000060.ckpt")
    older.write_bytes(b"not the newest")
    os.utime(older, ns=(0, 0))
    for folder in (checkpoint.parent.parent, checkpoint.parent):
        _, population = film.load_agents(folder)
        assert film._policy(population, 2)(np.zeros(3, np.float32)) == -1
    older.unlink()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"nothing")
    for path, message in (
        (tmp_path / "no.ckpt", "there is no such file"),
        (damaged, "the file is truncated, corrupt or not a checkpoint"),
        (tmp_path, "no run has saved a checkpoint here; valid is a .ckpt file, or the folder of a run"),
    ):
        with pytest.raises(SystemExit) as exit:
            film.main([str(path)])
        assert exit.value.code == 2 and capsys.readouterr().err.startswith(f"error: {path}: {message}")


def test_a_checkpoint_without_its_agents_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoints" / "env_steps_000000120.ckpt"
    path.parent.mkdir()
    for part, message in (
        ("learner", "does not hold the agents of its configuration ("),
        ("config", "its configuration is a NoneType"),
    ):
        stored = torch.load(checkpoint, weights_only=True)
        del stored["metagenrl"][part]
        AtomicCheckpointIO().save_checkpoint(stored, path)
        with pytest.raises(SystemExit) as exit:
            film.main([str(path)])
        told = capsys.readouterr().err
        assert exit.value.code == 2 and told.startswith("error: ") and message in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("seed: 0", " has no agent; valid is the config of a run"),
        ("agent: 3", " is not readable: agent is 3; valid is a mapping"),
    ],
)
def test_fresh_agents_without_their_settings_are_refused(
    config: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fresh_agents").mkdir()
    (tmp_path / "fresh_agents" / "learned.safetensors").touch()
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(SystemExit) as exit:
        film.main([str(tmp_path)])
    assert exit.value.code == 2 and capsys.readouterr().err.startswith(f"error: {tmp_path / 'config.yaml'}{message}")


def test_episodes_are_those_of_evaluations() -> None:
    spec = EnvironmentSpec("Pendulum-v1", max_episode_steps=5, evaluation_kwargs={"g": 0.0})
    still = film.record_episode(spec, lambda observation: np.zeros(1), seed=3)
    expected = film.record_episode(
        EnvironmentSpec("Pendulum-v1", {"g": 0.0}, max_episode_steps=5), lambda observation: np.zeros(1), seed=3
    )
    heavy = film.record_episode(EnvironmentSpec("Pendulum-v1", max_episode_steps=5), lambda observation: np.zeros(1), seed=3)
    assert still.episode_return == expected.episode_return != heavy.episode_return


def test_an_environment_that_fails_is_told_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PendulumEnv, action: np.ndarray) -> None:
        raise RuntimeError("the rod broke")

    monkeypatch.setattr(PendulumEnv, "step", fail)
    with pytest.raises(SystemExit) as exit:
        film.main([str(checkpoint), "--agents", "0", "--out", str(tmp_path)])
    told = r"error: environment Pendulum-v1\[.*\]: in step 1 of an episode RuntimeError: the rod broke \(.*\)\n"
    assert exit.value.code == 2 and re.fullmatch(told, capsys.readouterr().err)


def test_environments_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^environment Counting-v0.*"):
        film.record_episode(EnvironmentSpec("Counting-v0"), lambda observation: np.ones(1))
    with pytest.raises(
        ValueError, match=r"^environment Pendulum-v1: cannot be drawn; valid is one with the render mode rgb_array$"
    ):
        environment = Environment(EnvironmentSpec("Pendulum-v1"))  # made without it
        environment.reset(0)
        environment.render()


def test_fresh_agents_of_a_meta_test_are_filmed_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "{id: Pendulum-v1, max_episode_steps: 40}"
    small = ["callbacks.meta_test.env_steps=130", "callbacks.meta_test.evaluate_every_env_steps=130"]
    arguments = [f"env.train=[{entry}]", f"env.test=[{entry}]", "population.size=1", "env_steps=120", *small]
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=debug", *arguments, f"run_dir={tmp_path / 'run'}"])
    run_command_line(Path(__file__).parents[2] / "conf")
    kept = sorted(path.stem for path in (tmp_path / "run" / "fresh_agents").iterdir())
    assert kept == ["critic", "learned", "reinforce", "untrained"]
    capsys.readouterr()

    film.main([str(tmp_path / "run"), "--out", str(tmp_path / "films"), "--height", "60"])
    (path,) = (tmp_path / "films").iterdir()
    assert path.name == f"{PENDULUM.name}_meta_test.gif" and iio.imread(path).shape[-2] == 2 * 60
    told = re.search(r"fresh agents, return learned objective (-[\d.]+), DDPG/TD3 (-[\d.]+)", capsys.readouterr().out)
    assert told

    agents = film.load_fresh_agents(tmp_path / "run")["critic"]
    assert (agents.specs[0].name, agents.numbers[0]) == (PENDULUM.name, 0)
    episode = film.record_episode(PENDULUM, film._policy(agents.population, 0), height=60)
    assert f"{episode.episode_return:.1f}" == told[2]

    (tmp_path / "run" / "fresh_agents" / "critic.safetensors").write_bytes(b"nothing")
    with pytest.raises(SystemExit):
        film.main([str(tmp_path / "run"), "--out", str(tmp_path / "films")])
    assert re.match(r"error: .*critic.safetensors holds no policies of a meta-test\n$", capsys.readouterr().err)
