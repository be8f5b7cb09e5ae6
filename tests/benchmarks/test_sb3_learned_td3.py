"""The benchmark of LearnedTD3 against TD3, on a budget of a few steps."""

import sys
from pathlib import Path

import pytest

import sb3_learned_td3
from metagenrl_pl.common.files import append_csv, read_csv


def test_the_table_has_final_returns_and_who_is_above_td3() -> None:
    rows = [
        sb3_learned_td3.Return(environment, method, seed, env_steps, value + seed + (0 if env_steps == 20 else 1000))
        for environment, values in (("A", {"td3": 10, "light": 20}), ("B", {"td3": 50}))
        for method, value in values.items()
        for seed in (0, 1, 2)
        for env_steps in (10, 20)
    ]
    lines = sb3_learned_td3.table(rows).splitlines()
    assert lines[0] == "| after 20 env steps | A | B | above TD3 |"
    assert [line.split(" | ")[1][:3] for line in lines[2:]] == ["11 ", "21 "]  # 10, 11, 12 and 20, 21, 22
    assert lines[2].endswith(" | - |") and lines[3].endswith(" | - | 1.00 [1.00, 1.00] |")


@pytest.mark.parametrize("env_steps", [[2, 4], [*range(2, 21, 2), 20], [*range(4, 41, 4)]])
def test_agents_that_were_tested_at_other_env_steps_are_refused(
    env_steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few, one twice, and those of a longer run."""
    rows = [sb3_learned_td3.Return("Pendulum-v1", "light", 3, n, -1000.0) for n in env_steps]
    append_csv(tmp_path / "returns.csv", rows[0]._fields, (row._asdict() for row in rows))
    before = (tmp_path / "returns.csv").read_bytes()
    options = ["--envs", "Pendulum-v1", "--env-steps", "20", "--seeds", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sb3_learned_td3.py", *options])
    monkeypatch.setattr(sb3_learned_td3, "train_agent", lambda *_, **__: pytest.fail("trains"))
    with pytest.raises(SystemExit) as caught:
        sb3_learned_td3.main()
    file = tmp_path / "returns.csv"
    assert caught.value.code == f"error: {file} holds Pendulum-v1, light, 3, tested at other env steps; valid is another --out"
    assert file.read_bytes() == before


@pytest.mark.slow
def test_agents_are_trained_once_drawn_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        common = ["--envs", "Pendulum-v1", "--env-steps", "20", "--episodes", "1", "--updates", "2", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["sb3_learned_td3.py", *common, *arguments])
        sb3_learned_td3.main()
        return capsys.readouterr().out

    assert "Pendulum-v1, light, seed 3: -" in run("--seeds", "3") and (tmp_path / "learning_curves.png").is_file()
    rows = sb3_learned_td3.read_returns(tmp_path / "returns.csv")
    assert len(rows) == 2 * 10 and {row.method for row in rows} == {"td3", "light"}
    assert [row.env_steps for row in rows[:10]] == [*range(2, 21, 2)] and all(row.mean_return < 0 for row in rows)
    speeds = read_csv(tmp_path / "speed.csv")[1]
    assert [row["method"] for row in speeds] == ["td3", "light"] and speeds[0]["ratio"] == "1.00"
    assert "seed 3" not in run("--seeds", "3")  # nothing is left to train
    with pytest.raises(SystemExit, match="^error: there is no pretrained objective 'lihgt'; did you mean 'light'"):
        run("--objectives", "lihgt")
