"""Table 1 and the figures: which runs they need, and what is written from runs that ended."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import paper
from metagenrl_pl.results.rows import MetaTestRow, append_rows
from side_by_side import Runner

TESTED = [
    *("agent.hidden_units=4", "agent.num_windows=2", "agent.window_length=3", "agent.random_env_steps=5", "compile=false"),
    *("agent.warmup_env_steps=5", "callbacks.meta_test.env_steps=10", "callbacks.meta_test.evaluate_every_env_steps=5"),
    *("callbacks.meta_test.num_episodes=1", "callbacks.meta_test.seeds=[0]", "logger=csv"),
]
TINY = [
    *("env_steps=20", "updates_per_batch=5", "population.size=4", "objective.hidden_units=4", *TESTED),
    "env.train=[Pendulum-v1,InvertedPendulum-v5]",
]


def test_every_run_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "compose_yaml", lambda overrides: " ".join(overrides))
    for what in paper.WRITERS:
        for scale in paper.SCALES.values():
            runs = paper.plan(what, scale, tmp_path, None, [])
            assert len({run.folder for run in runs}) == len(runs) and len({run.settings for run in runs}) == len(runs)
    table = paper.plan("table1", paper.SCALES["light"], tmp_path, None, [])
    assert len(table) == 1 + 4 * 3 + 3  # hand-made; two regimes by gradients and by evolution, three seeds; three more regimes


@pytest.mark.parametrize("scale", paper.SCALES)
def test_what_runs_are_made_of(scale: str, tmp_path: Path) -> None:
    hand_made = paper.hand_made(paper.SCALES[scale], tmp_path, [])
    changes = paper.evolution_of(paper.SCALES[scale])
    evolution = paper.meta_training(paper.SCALES[scale], "paper/lunar_cheetah", tmp_path, 2, changes)
    configs: list[Any] = [OmegaConf.create(run.settings) for run in (hand_made, evolution)]
    assert [config.agent.hidden_units for config in configs] == [64 if scale == "light" else 350] * 2
    assert configs[0].meta is None and set(configs[0].callbacks.meta_test.baselines) == {"reinforce", "critic"}
    assert "baselines" not in configs[1].callbacks.meta_test and configs[1].seed == 2
    assert configs[1].population.lifetime_env_steps % configs[1].agent.warmup_env_steps == 0
    assert configs[1].env_steps == paper.SCALES[scale].env_steps and configs[1].population.size == paper.SCALES[scale].population


def write(out: Path, folder: str, rows: list[tuple[str, str, int, int, float, int | None]]) -> None:
    (out / folder).mkdir(parents=True)
    append_rows(out / folder / "meta_test.csv", [MetaTestRow(*row) for row in rows])


def test_table_1(tmp_path: Path) -> None:
    for seed, value in ((0, 100.0), (1, 300.0)):
        rows = [("Hopper-v5", "learned", agent, n, value + agent + n, 50) for agent in (0, 1) for n in (10, 20)]
        write(tmp_path, f"learned_cheetah_hopper/seed_{seed}", rows)
        write(tmp_path, f"evolution_lunar_cheetah/seed_{seed}", [("HalfCheetah-v5", "learned", 0, 10, -value, 50)])
    write(tmp_path, "ppo", [("HalfCheetah-v5", "ppo", 0, 10, 7.0, None)])
    write(
        tmp_path, "hand_made/seed_0", [("HalfCheetah-v5", "critic", 0, 10, 8.0, None), ("Hopper-v5", "random", 0, 0, 9.0, None)]
    )
    lines = paper.write_table_1(tmp_path).read_text().splitlines()
    assert len(lines) == 2 + len(paper.TABLE_1)
    cells = {tuple(line.split(" | ")[:2]): line.strip("| ").split(" | ")[2:] for line in lines[2:]}
    learned = cells["| cheetah_hopper", "MetaGenRL"]
    assert learned[0] == "-" and learned[1] == "2,185"
    assert learned[2].startswith("220") and learned[2].endswith(", 4 agents")  # 120, 121, 320, 321
    assert cells["| lunar_cheetah", "EPG (ours: evolution)"][0].endswith(", 2 agents")
    assert cells["| none", "PPO"][:2] == ["7, 1 agent", "1,455"] and cells["| none", "DDPG / TD3"][0] == "8, 1 agent"


def test_figures_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    for folder, environment in (("learned_cheetah_hopper", "Hopper-v5"), ("figure5_full", "HalfCheetah-v5")):
        rows = [(environment, "learned", agent, n, float(n + agent), 50) for agent in (0, 1) for n in (10, 20)]
        write(tmp_path, f"{folder}/seed_0", rows)
    staged = [("Hopper-v5", "learned", 0, n, float(n), stage) for stage in (10, 20) for n in (10, 20)]
    write(tmp_path, "figure4/seed_0", staged)
    drawn = {}

    def remember(path: Path, panels: Any) -> Path:
        drawn[path.name] = {title: {label: len(curves) for label, curves in lines.items()} for title, lines in panels.items()}
        return write_curves(path, panels)

    write_curves = paper.write_curves
    paper.write_curves = remember
    try:
        for write_figure in (paper.write_figure_3, paper.write_figure_4, paper.write_figure_5):
            assert write_figure(tmp_path).read_bytes().startswith(b"\x89PNG")
    finally:
        paper.write_curves = write_curves
    assert drawn["figure3.png"]["Hopper, seen in meta-training"]["MetaGenRL"] == 2
    assert drawn["figure4.png"] == {"Hopper, unseen": {"after 10 env steps": 1, "after 20 env steps": 1}}
    assert drawn["figure5.png"]["Cheetah, seen in meta-training"]["the paper's"] == 2


@pytest.mark.slow
def test_runs_of_the_table(tmp_path: Path) -> None:
    """The hand-made methods, a meta-training and an evolution, tiny ones, through train.py."""
    scale = paper.SCALES["light"]
    evolution = [*paper.evolution_of(scale), *TINY, "population.lifetime_env_steps=10"]
    runs = [
        paper.hand_made(scale, tmp_path, TESTED),
        paper.meta_training(scale, "paper/lunar_cheetah", tmp_path / "learned_cheetah_hopper", 0, [*TINY, paper.TESTS]),
        paper.meta_training(scale, "paper/lunar_cheetah", tmp_path / "evolution_cheetah_hopper", 0, [*evolution, paper.TESTS]),
    ]
    runner = Runner()
    assert [runner.run(run) for run in runs] == [0, 0, 0], [run.log.read_text() for run in runs]
    table = paper.write_table_1(tmp_path).read_text()
    assert table.count(", 1 agent |") == 3 * 4  # three environments: learned, evolution, DDPG/TD3, REINFORCE
