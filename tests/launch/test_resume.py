"""Resuming: a run that is stopped and goes on ends in the same bits as one that was never stopped."""

import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import TOYS, differences, everything, tiny_objective, tiny_run
from toy_environments import Signalling

from callbacks.checkpointing import RunCheckpoint
from callbacks.meta_testing import MetaTest
from callbacks.policy_evaluation import PolicyEvaluation
from callbacks.schedule import agents_of, env_steps_of
from callbacks.training_log import EpisodeReturns
from metagenrl_pl.common.files import read_csv
from metagenrl_pl.environments.environment import EnvironmentSpec
from metagenrl_pl.objectives import CriticObjective
from metagenrl_pl.results.rows import MetaTestRow, append_rows, drop_rows, read_rows
from metagenrl_pl.training.checkpoint_io import CheckpointError, newest_checkpoint

MID_EPISODE = [EnvironmentSpec("Pendulum-v1"), EnvironmentSpec("InvertedPendulum-v5")]
TIMED = [EnvironmentSpec("Counting-v0", {}, 8)]
ENDING_AT_40 = [EnvironmentSpec("Counting-v0", {"ends_after": 10}), EnvironmentSpec("Counting-v0", {"num_actions": 2}, 8)]


class Watch(pl.Callback):
    """Keeps everything as it is when training starts and after each cycle of a run with `updates_per_batch=1`."""

    def __init__(self) -> None:
        self.at_start: dict[str, Any] = {}
        self.num_updates: dict[int, int] = {}  # by env steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.at_start = everything(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.num_updates[env_steps_of(trainer)] = pl_module.learner.num_updates


class Kill(pl.Callback):
    """Ends a run in the middle, as a crash would."""

    def __init__(self, env_steps: int) -> None:
        self._env_steps = env_steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if env_steps_of(trainer) >= self._env_steps:
            raise InterruptedError


def checkpoint_of(run_dir: Path, env_steps: int) -> Path:
    return run_dir / "checkpoints" / f"env_steps_{env_steps:09d}.ckpt"


def saving_run(run_dir: Path, env_steps: int = 40, every: int | None = None, **arguments: Any) -> pl.Trainer:
    checkpoint = RunCheckpoint(str(run_dir), every, **{k: arguments.pop(k) for k in ("keep", "with_replay") if k in arguments})
    return tiny_run(env_steps=env_steps, callbacks=[checkpoint, *arguments.pop("callbacks", [])], run_dir=run_dir, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a run that ended at 40 env steps, and everything as it was there."""
    run_dir = tmp_path_factory.mktemp("finished")
    trainer = saving_run(run_dir)
    return checkpoint_of(run_dir, 40), everything(trainer)


@pytest.fixture
def copy(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """The same checkpoint, to be damaged."""
    shutil.copytree(finished[0].parent, tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / finished[0].name


# ------------------------------------------------------------------------------------------------------- what is restored


def test_everything_is_restored(finished: tuple[Path, dict[str, Any]]) -> None:
    """Into a run of other seeds, so that nothing is right before it is restored."""
    checkpoint, saved = finished
    fresh, restored = Watch(), Watch()
    tiny_run(env_steps=1, seed=1, callbacks=[fresh])
    tiny_run(env_steps=41, seed=1, callbacks=[restored], ckpt_path=checkpoint)
    assert differences(saved, restored.at_start) == []

    kinds = ["/learner/population/" + kind for kind in ("policy", "critics", "target_policy", "target_critics")]
    kinds += ["/learner/num_updates", "/learner/streams", "/objective", "/optimizers/0", "/optimizers/1", "/optimizers/2"]
    kinds += ["/collector/env_steps"]
    for agent in range(len(TOYS)):
        of_agent = ("exploration", "draws", "num_episodes", "seed", "observation", "recent_returns", "new_returns")
        kinds += [f"/collector/agents/{agent}/{kind}" for kind in of_agent]
    kinds += ["/collector/agents/2/episode_actions", "/collector/agents/2/episode_return"]
    kinds += ["/replay/0/rows", "/replay/0/starts", "/replay/0/counters", "/replay/2/rows", "/global_step"]
    before = differences(saved, fresh.at_start)
    for kind in kinds:
        of_this_kind = [path for path in saved if path.startswith(kind)]
        assert of_this_kind and set(of_this_kind) <= set(before), f"{kind} was right before it was restored"


def test_targets_and_networks_are_not_mixed_up(finished: tuple[Path, dict[str, Any]]) -> None:
    _, saved = finished
    for kind in ("policy", "critics"):
        for path in saved:
            if path.startswith(f"/learner/population/{kind}/"):
                assert not torch.equal(saved[path], saved[path.replace(f"/{kind}/", f"/target_{kind}/")]), path


# ------------------------------------------------------------------------------------- stopped and gone on, or never stopped


@pytest.mark.parametrize(("specs", "middle", "end"), [(ENDING_AT_40, 40, 73), (TOYS, 37, 60), (MID_EPISODE, 47, 75)])
def test_a_finished_run_made_longer_is_the_longer_run(
    specs: list[EnvironmentSpec], middle: int, end: int, tmp_path: Path
) -> None:
    straight = everything(tiny_run(specs, end))
    saving_run(tmp_path, middle, specs=specs)
    resumed = tiny_run(specs, end, ckpt_path=checkpoint_of(tmp_path, middle))
    assert differences(straight, everything(resumed)) == []
    assert env_steps_of(resumed) == end


def test_where_the_runs_above_are_stopped(tmp_path: Path) -> None:
    """All at an episode's end; one in the middle; all in the middle, InvertedPendulum not in its first episode."""
    ends = agents_of(tiny_run(ENDING_AT_40, 40)).state_dict()
    assert [len(agent["episode_actions"]) for agent in ends["agents"]] == [0, 0]
    middle = agents_of(tiny_run(TOYS, 37)).state_dict()
    assert [len(agent["episode_actions"]) for agent in middle["agents"]] == [7, 2, 2]
    real = agents_of(tiny_run(MID_EPISODE, 47)).state_dict()
    pendulum, inverted = real["agents"]
    assert len(pendulum["episode_actions"]) == 47
    assert len(inverted["episode_actions"]) > 0 and inverted["num_episodes"] > 1


def test_a_killed_run_goes_on_from_its_newest_checkpoint_twice(tmp_path: Path) -> None:
    """With checkpoints that are not at a multiple of the interval, since batches of 7 cycles jump over them."""
    straight = everything(tiny_run(env_steps=90, updates_per_batch=7))
    with pytest.raises(InterruptedError):
        saving_run(tmp_path, 90, every=20, updates_per_batch=7, callbacks=[Kill(33)])
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")] == ["env_steps_000000021.ckpt"]
    with pytest.raises(InterruptedError):
        saving_run(
            tmp_path, 90, every=20, updates_per_batch=7, callbacks=[Kill(67)], ckpt_path=checkpoint_of(tmp_path, 21), keep=None
        )
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt"))[-1] == "env_steps_000000063.ckpt"
    resumed = saving_run(tmp_path, 90, every=20, updates_per_batch=7, ckpt_path=checkpoint_of(tmp_path, 63))
    assert differences(straight, everything(resumed)) == []


def test_a_run_as_long_as_its_checkpoint_does_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    trainer = tiny_run(env_steps=40, ckpt_path=finished[0])
    assert differences(finished[1], everything(trainer)) == []


# --------------------------------------------------------------------------------------------------------- without a replay


def test_without_a_replay_it_fills_up_first(tmp_path: Path) -> None:
    saved = everything(saving_run(tmp_path, 37, with_replay=False))
    assert not list((tmp_path / "checkpoints").glob("*.replay"))
    watch = Watch()
    with pytest.warns(match="No replay beside env_steps_000000037.ckpt: a new one is filled before updates continue."):
        trainer = tiny_run(env_steps=60, updates_per_batch=1, callbacks=[watch], ckpt_path=checkpoint_of(tmp_path, 37))
    learned = [path for path in saved if path.startswith(("/learner", "/objective", "/optimizers"))]
    assert len(learned) > 100 and not set(learned) & set(differences(saved, watch.at_start))
    before = saved["/learner/num_updates"]
    assert before == 37 - 10  # once there are ten steps to learn from
    assert watch.num_updates == {n: before + max(0, n - 37 - 10) for n in range(38, 61)}
    assert agents_of(trainer).replay.count.tolist() == [23] * 3


# -------------------------------------------------------------------------------------------------------------- what is kept


def test_old_checkpoints_go_and_the_replay_stays_with_the_newest(tmp_path: Path) -> None:
    saving_run(tmp_path, 50, every=10, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["env_steps_000000040.ckpt", "env_steps_000000050.ckpt", "env_steps_000000050.replay"]
    replay = sorted(path.name for path in (tmp_path / "checkpoints" / "env_steps_000000050.replay").iterdir())
    assert replay == [f"agent_00{agent}.safetensors" for agent in range(3)]


@pytest.mark.parametrize(("keep", "kept"), [(None, [10, 20, 30]), (1, [30]), (3, [10, 20, 30])])
def test_as_many_checkpoints_stay_as_asked_for(keep: int | None, kept: list[int], tmp_path: Path) -> None:
    saving_run(tmp_path, 30, every=10, keep=keep)
    assert sorted((tmp_path / "checkpoints").glob("*.ckpt")) == [checkpoint_of(tmp_path, env_steps) for env_steps in kept]


def test_without_an_interval_there_is_one_at_the_end(tmp_path: Path) -> None:
    saving_run(tmp_path, 33)
    assert list((tmp_path / "checkpoints").glob("*.ckpt")) == [checkpoint_of(tmp_path, 33)]


# ------------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("environments", [[], ["Pendulum-v1"], ["Reacher-v5"]])  # Pendulum's spaces have the right sizes
def test_other_agents_are_refused(environments: list[str], finished: tuple[Path, dict[str, Any]]) -> None:
    specs = [*TOYS[:2], *map(EnvironmentSpec, environments)]
    with pytest.raises(CheckpointError) as caught:
        tiny_run(specs, 50, ckpt_path=finished[0])
    toys, names = (", ".join(spec.name for spec in these) for these in (TOYS, specs))
    told = f"saved with population.size=3 on {toys}, this run has population.size={len(specs)} on {names}"
    assert str(caught.value) == f"ckpt_path={finished[0]}: {told}"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    """In the middle of the largest tensor; between the entries of the archive lies padding that nobody reads."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[content.index(largest.filename.encode()) + len(largest.filename) + 64 + largest.file_size // 2] ^= 1
    path.write_bytes(bytes(content))


def flip_an_attribute(path: Path) -> None:
    """Of an entry of the archive, which no checksum of the archive covers."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 38] ^= 1
    path.write_bytes(bytes(content))


def save_something_else(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "the file is truncated, corrupt or not a checkpoint"),
        (flip_an_attribute, "the file is truncated, corrupt or not a checkpoint"),
        (flip_a_bit, "the file is truncated, corrupt or not a checkpoint"),
        (save_something_else, "the file was saved by torch but not by a run of this project"),
        (Path.unlink, "there is no such file"),
    ],
)
def test_a_damaged_checkpoint_is_refused(damage: Callable[[Path], None], message: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=f"^ckpt_path={copy}: {message}"):
        tiny_run(env_steps=50, ckpt_path=copy)


def other_capacity(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    save_file({**state, "rows": state["rows"][:-1].clone()}, path)


def flip_a_reward(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, Path.unlink, other_capacity, flip_a_reward, be_a_folder])
def test_a_damaged_replay_is_refused_with_a_way_out(damage: Callable[[Path], None], copy: Path) -> None:
    folder = copy.with_suffix(".replay")
    damage(folder / "agent_001.safetensors")
    with pytest.raises(CheckpointError, match="the replay beside it is damaged") as caught:
        tiny_run(env_steps=50, ckpt_path=copy)
    for named in (f"ckpt_path={copy}", "agent_001.safetensors", f"remove the folder {folder} to resume with an empty replay"):
        assert named in str(caught.value)
    shutil.rmtree(folder)
    with pytest.warns(match="No replay beside"):
        assert env_steps_of(tiny_run(env_steps=50, ckpt_path=copy)) == 50


def test_two_replay_files_that_were_swapped_are_noticed(copy: Path) -> None:
    one, other = (copy.with_suffix(".replay") / f"agent_{agent:03d}.safetensors" for agent in (0, 2))
    contents = one.read_bytes(), other.read_bytes()
    for path, content in zip((other, one), contents, strict=True):
        path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"the replay beside it is damaged \(agent_000.safetensors: its checksum is wrong\)"
    ):
        tiny_run(env_steps=50, ckpt_path=copy)


def test_a_replay_that_is_a_file_is_no_replay(copy: Path) -> None:
    shutil.rmtree(copy.with_suffix(".replay"))
    copy.with_suffix(".replay").touch()
    with pytest.warns(match="No replay beside"):
        assert env_steps_of(tiny_run(env_steps=50, ckpt_path=copy)) == 50


def test_a_second_save_at_the_same_step_keeps_the_first_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = everything(saving_run(tmp_path / "straight", 60))
    run_dir = tmp_path / "stopped"
    saving_run(run_dir, 40)
    newest = checkpoint_of(run_dir, 40)
    before = newest.read_bytes()

    class SavesAgain(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunCheckpoint):
                    callback.save(trainer)

    for killed_in in ("torch.save", "metagenrl_pl.training.datamodule.save"):  # the checkpoint and its replay
        with monkeypatch.context() as patch:
            patch.setattr(killed_in, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                saving_run(run_dir, 60, callbacks=[SavesAgain()], ckpt_path=newest)
        assert newest.read_bytes() == before
    trainer = saving_run(run_dir, 60, callbacks=[SavesAgain()], ckpt_path=newest)
    assert differences(everything(trainer), straight) == []
    assert [path.name for path in (run_dir / "checkpoints").glob("*.replay")] == ["env_steps_000000060.replay"]


def test_an_environment_that_no_seed_reproduces_loses_its_episode_and_says_so(
    tmp_path: Path,
) -> None:
    specs = [TOYS[0], EnvironmentSpec("Counting-v0", {"global_randomness": "observation"})]
    saving_run(tmp_path, 37, specs=specs)
    watch = Watch()
    with pytest.warns(match=r"count as truncated and new ones begin: agents 1 \(Counting-v0\[global_randomness=observation\]\)."):
        tiny_run(specs, 45, callbacks=[watch], ckpt_path=checkpoint_of(tmp_path, 37))
    assert [watch.at_start[f"/collector/agents/{agent}/num_episodes"] for agent in (0, 1)] == [4, 2]
    assert watch.at_start["/replay/1/counters"].tolist()[:2] == [
        38,
        37,
    ]  # nothing is lost of what was collected: 37 steps, 39 slots


# ------------------------------------------------------------------------------------------------------- what is written again


def test_metrics_after_the_checkpoint_are_written_again_and_the_others_stay(tmp_path: Path) -> None:
    """The checkpoint at 40 lies between two lines: the episodes since 30 count for that at 50."""

    def run(folder: str, env_steps: int = 60, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> bytes:
        run_dir = tmp_path / folder
        saving_run(run_dir, env_steps, every=20, callbacks=[EpisodeReturns(15), *callbacks], ckpt_path=ckpt_path)
        return (run_dir / "metrics.csv").read_bytes()

    straight = run("straight")
    with pytest.raises(InterruptedError):
        run("stopped", 60, Kill(50))
    stopped = (tmp_path / "stopped" / "metrics.csv").read_bytes()
    assert stopped != straight and b"\n50," in stopped
    shutil.copytree(tmp_path / "stopped", tmp_path / "unsaved")
    resumed = run("stopped", ckpt_path=checkpoint_of(tmp_path / "stopped", 40))
    assert resumed == straight
    # Also without a callback that saves.
    unsaved = tmp_path / "unsaved"
    tiny_run(callbacks=[EpisodeReturns(15)], env_steps=60, run_dir=unsaved, ckpt_path=checkpoint_of(unsaved, 40))
    assert (unsaved / "metrics.csv").read_bytes() == straight
    assert [row["env_steps"] for row in read_csv(tmp_path / "stopped" / "metrics.csv")[1]] == ["20", "30", "50", "60"]


def test_meta_tests_after_the_checkpoint_are_made_again(tmp_path: Path) -> None:
    def run(folder: str, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> None:
        environments = [{"id": "Counting-v0", "max_episode_steps": 5}]
        meta_test = MetaTest(str(tmp_path / folder), environments, [0], 12, 6, 1, every_env_steps=20)
        saving_run(tmp_path / folder, 60, every=30, callbacks=[meta_test, *callbacks], ckpt_path=ckpt_path)

    run("straight")
    with pytest.raises(InterruptedError):
        run("stopped", Kill(50))
    assert {row.meta_training_env_steps for row in read_rows(tmp_path / "stopped" / "meta_test.csv")} == {20, 40}
    run("stopped", ckpt_path=checkpoint_of(tmp_path / "stopped", 30))
    stopped, straight = ((tmp_path / folder / "meta_test.csv").read_bytes() for folder in ("stopped", "straight"))
    assert stopped == straight


@pytest.mark.slow
def test_a_meta_test_is_given_up_when_told_to_stop_and_made_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, ckpt_path: Path | None = None) -> pl.Trainer:
        meta_test = MetaTest(
            str(tmp_path / folder), [{"id": "Signalling-v0", "max_episode_steps": 5}], [0], 400, 200, 1, every_env_steps=20
        )
        return saving_run(tmp_path / folder, 60, callbacks=[meta_test], ckpt_path=ckpt_path)

    straight = everything(run("straight"))
    num_taken = Signalling.num_taken
    monkeypatch.setattr(
        Signalling, "signals_at", num_taken + 410 + 50
    )  # in the second test; the first one takes 2 x 5 to evaluate
    stopped = run("stopped")
    assert env_steps_of(stopped) == 40 and Signalling.num_taken < num_taken + 410 + 400
    assert {row.meta_training_env_steps for row in read_rows(tmp_path / "stopped" / "meta_test.csv")} == {20}
    monkeypatch.setattr(Signalling, "signals_at", Signalling.num_taken + 50)  # in the same test, when the run goes on
    stopped = run("stopped", checkpoint_of(tmp_path / "stopped", 40))
    assert env_steps_of(stopped) == 40 and stopped.should_stop
    assert {row.meta_training_env_steps for row in read_rows(tmp_path / "stopped" / "meta_test.csv")} == {20}
    assert differences(everything(run("stopped", checkpoint_of(tmp_path / "stopped", 40))), straight) == []
    results = [(tmp_path / folder / "meta_test.csv").read_bytes() for folder in ("stopped", "straight")]
    assert results[0] == results[1]


def test_a_signal_in_the_last_batch_leaves_the_final_meta_test_to_a_resume(tmp_path: Path) -> None:
    class SignalsInTheLastBatch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            if env_steps_of(trainer) == 50:
                signal.raise_signal(signal.SIGTERM)

    def run(*callbacks: pl.Callback, ckpt_path: Path | None = None) -> pl.Trainer:
        meta_test = MetaTest(str(tmp_path), [{"id": "Counting-v0", "max_episode_steps": 5}], [0], 12, 6, 1)
        return saving_run(tmp_path, 60, callbacks=[meta_test, *callbacks], ckpt_path=ckpt_path)

    assert run(SignalsInTheLastBatch()).should_stop
    assert not (tmp_path / "meta_test.csv").exists()
    run(ckpt_path=checkpoint_of(tmp_path, 60))
    assert {row.meta_training_env_steps for row in read_rows(tmp_path / "meta_test.csv")} == {0, 60, None}


def test_a_signal_in_the_final_meta_test_of_a_resume_ends_it(tmp_path: Path) -> None:
    saving_run(tmp_path, 60)

    class SignalsAtTheEnd(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, *_: object) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):  # Lightning's answer to KeyboardInterrupt
        saving_run(tmp_path, 60, callbacks=[SignalsAtTheEnd()], ckpt_path=checkpoint_of(tmp_path, 60))


def test_a_frozen_objective_keeps_its_tests_on_a_resume(tmp_path: Path) -> None:
    """Its stage is the card's, which lies beyond this run's env steps."""
    objective = tiny_objective().requires_grad_(False)
    objective.card = {"env_steps": 500}

    def run(ckpt_path: Path | None = None) -> bytes:
        meta_test = MetaTest(str(tmp_path), [{"id": "Counting-v0", "max_episode_steps": 5}], [0], 12, 6, 1, untrained=False)
        saving_run(tmp_path, 40, callbacks=[meta_test], objective=objective, ckpt_path=ckpt_path)
        return (tmp_path / "meta_test.csv").read_bytes()

    first, written = run(), (tmp_path / "meta_test.csv").stat().st_mtime_ns
    assert b",500" in first
    assert run(checkpoint_of(tmp_path, 40)) == first and (tmp_path / "meta_test.csv").stat().st_mtime_ns == written


def test_a_baseline_keeps_its_results_up_to_the_checkpoint(tmp_path: Path) -> None:
    """Its rows tell its own env steps, not those of any meta-training."""

    def run(folder: str, *callbacks: pl.Callback, ckpt_path: Path | None = None) -> bytes:
        run_dir = tmp_path / folder
        evaluation = PolicyEvaluation(str(run_dir), 10, 1, method="learned")
        objective = CriticObjective()
        saving_run(
            run_dir, 60, every=30, callbacks=[evaluation, *callbacks], ckpt_path=ckpt_path, objective=objective, specs=TIMED
        )
        return (run_dir / "meta_test.csv").read_bytes()

    straight = run("straight")
    with pytest.raises(InterruptedError):
        run("stopped", Kill(50))
    others = [
        MetaTestRow("Counting-v0", "learned", 0, 50, 1.5, 500),  # another objective
        MetaTestRow("Counting-v0", "learned", 77, 50, 1.5, None),  # another agent
        MetaTestRow("Counting-v0", "critic", 0, 50, 1.5, None),  # another method
    ]
    path = tmp_path / "stopped" / "meta_test.csv"
    append_rows(path, others)
    run("stopped", ckpt_path=checkpoint_of(tmp_path / "stopped", 30))
    assert [row for row in read_rows(path) if row in others] == others
    drop_rows(path, others.__contains__)
    assert path.read_bytes() == straight


@pytest.mark.parametrize("every", [None, 40])
def test_a_result_that_was_written_and_not_logged_is_logged_on_a_resume(
    every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, ckpt_path: Path | None = None) -> list[bytes]:
        environments = [{"id": "Counting-v0", "max_episode_steps": 5}]
        meta_test = MetaTest(str(tmp_path / folder), environments, [0, 1], 12, 6, 1, every_env_steps=every)
        saving_run(tmp_path / folder, 60, every=20, callbacks=[meta_test], ckpt_path=ckpt_path)
        return [(tmp_path / folder / name).read_bytes() for name in ("metrics.csv", "meta_test.csv")]

    straight = run("straight")
    with monkeypatch.context() as patch:
        patch.setattr("callbacks.meta_testing.append_rows", lambda *arguments: (append_rows(*arguments), 1 / 0))
        for _ in range(2):  # killed after each of the first two tests
            with pytest.raises(ZeroDivisionError):
                newest = newest_checkpoint(tmp_path / "stopped")
                run("stopped", newest)
    assert run("stopped", newest_checkpoint(tmp_path / "stopped")) == straight
