"""Table 1 and the figures: which runs they need, and what is written from runs that ended."""

import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

import paper
import paper_output
from metagenrl_pl.results.rows import MetaTestRow, append_rows
from side_by_side import Runner, check_folders, compose_run

TESTED = [
    *("agent.hidden_units=4", "agent.num_windows=2", "agent.window_length=3", "agent.random_env_steps=5", "compile=false"),
    *("agent.warmup_env_steps=5", "callbacks.meta_test.env_steps=10", "callbacks.meta_test.evaluate_every_env_steps=5"),
    *("callbacks.meta_test.num_episodes=1", "callbacks.meta_test.seeds=[0]", "logger=csv"),
]
TINY = [
    *("env_steps=20", "updates_per_batch=5", "population.size=4", "objective.hidden_units=4", *TESTED),
    "env.train=[Pendulum-v1,InvertedPendulum-v5]",
]


@pytest.fixture(autouse=True, scope="module")
def composed_once() -> Iterator[None]:
    """Plans of several tests have the same runs; composing one takes a fifth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        compose = functools.cache(lambda overrides: compose_run(list(overrides)))
        patch.setattr(paper, "compose_run", lambda overrides: compose(tuple(overrides)))
        yield


def test_every_run_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        paper, "compose_run", lambda overrides: OmegaConf.create({"env_steps": 5, "overrides": " ".join(overrides)})
    )
    for what in paper.WHAT:
        for scale in paper.SCALES.values():
            runs = paper.plan(what, scale, tmp_path, None, [])
            assert len({run.folder for run in runs}) == len(runs) and len({run.settings.overrides for run in runs}) == len(runs)
    table = paper.plan("table1", paper.SCALES["light"], tmp_path, None, [])
    assert len(table) == 1 + 4 * 3 + 3  # hand-made; two regimes by gradients and by evolution, three seeds; three more regimes


@pytest.mark.parametrize("scale", paper.SCALES)
def test_what_runs_are_made_of(scale: str, tmp_path: Path) -> None:
    hand_made = paper.hand_made(paper.SCALES[scale], tmp_path, [])
    changes = paper.evolution_of(paper.SCALES[scale])
    evolution = paper.meta_training(paper.SCALES[scale], "paper/lunar_cheetah", tmp_path, 2, changes)
    configs = [run.settings for run in (hand_made, evolution)]
    assert [config.agent.hidden_units for config in configs] == [64 if scale == "light" else 350] * 2
    assert configs[0].meta is None and set(configs[0].callbacks.meta_test.baselines) == {"reinforce", "critic"}
    assert "baselines" not in configs[1].callbacks.meta_test and configs[1].seed == 2
    assert configs[1].population.lifetime_env_steps % configs[1].agent.warmup_env_steps == 0
    # Pairs of agents in two environments, and several generations.
    assert configs[1].population.size % 4 == 0 and configs[1].env_steps // configs[1].population.lifetime_env_steps >= 8
    assert len(configs[0].callbacks.meta_test.seeds) == 6 and len(configs[1].callbacks.meta_test.seeds) == 3


def write(out: Path, folder: str, rows: list[tuple[str, str, int, int, float, int | None]]) -> None:
    (out / folder).mkdir(parents=True)
    append_rows(out / folder / "meta_test.csv", [MetaTestRow(*row) for row in rows])


def test_table_1(tmp_path: Path) -> None:
    for seed, value in ((0, 100.0), (1, 300.0)):
        rows = [("Hopper-v5", "learned", agent, n, value + agent + n, 50) for agent in (0, 1, 2) for n in (10, 20)]
        write(tmp_path, f"learned_cheetah_hopper/seed_{seed}", rows)
        write(tmp_path, f"evolution_lunar_cheetah/seed_{seed}", [("HalfCheetah-v5", "learned", 0, 10, -value, 50)])
    write(tmp_path, "ppo", [("HalfCheetah-v5", "ppo", 0, 10, 7.0, None)])
    write(
        tmp_path, "hand_made/seed_0", [("HalfCheetah-v5", "critic", 0, 10, 8.0, None), ("Hopper-v5", "random", 0, 0, 9.0, None)]
    )
    lines = paper_output.write_table_1(tmp_path, 8).read_text().splitlines()
    assert len(lines) == 2 + len(paper_output.TABLE_1)
    cells = {tuple(line.split(" | ")[:2]): line.strip("| ").split(" | ")[2:] for line in lines[2:]}
    learned = cells["| cheetah_hopper", "MetaGenRL"]
    assert learned[0] == "-" and learned[1] == "2,185"
    assert learned[2] == "221 [120, 322], 6 agents of 2 seeds"  # 120, 121, 122; 320, 321, 322
    assert cells["| lunar_cheetah", "EPG (ours: evolution), 8 updates"][0] == "-200 (-100; -300)"
    assert cells["| none", "PPO"][:2] == ["7, 1 agent", "1,455"] and cells["| none", "DDPG / TD3"][0] == "8, 1 agent"


def test_agents_that_diverged_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [("Hopper-v5", "learned", agent, 10, value, 50) for agent, value in enumerate((1.0, math.nan, 3.0))]
    rows.append(("HalfCheetah-v5", "learned", 0, 10, -math.inf, 50))
    write(tmp_path, "learned_cheetah_hopper/seed_0", rows)
    line = paper_output.write_table_1(tmp_path, 8).read_text().splitlines()[2]
    assert line.split(" | ")[2:6:2] == ["1 agent, all diverged", "2 (1, 3), 1 diverged"]


def test_figures_show_agents_that_diverged_and_the_latest_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returns = {0: (1.0, 2.0), 1: (3.0, math.nan), 2: (5.0, 6.0)}
    rows = [("Hopper-v5", "learned", agent, n, of[n // 20], 50) for agent, of in returns.items() for n in (10, 20)]
    rows += [("Hopper-v5", "learned", 0, n, 99.0, 25) for n in (10, 20)]  # of an earlier objective
    rows += [("Hopper-v5", "learned", 3, 10, 7.0, 50)]  # not tested to the end
    write(tmp_path, "learned_cheetah_hopper/seed_0", rows)
    drawn: dict[str, list[float]] = {}
    show = Figure.legend

    def remember(figure: Figure, handles: Any, labels: Any, **options: Any) -> Any:
        drawn.update({label: [*handle.get_ydata()] for handle, label in zip(handles, labels, strict=True)})
        return show(figure, handles, labels, **options)

    monkeypatch.setattr(Figure, "legend", remember)
    paper_output.write_figure_3(tmp_path)
    assert drawn == {"MetaGenRL (3 agents, 1 diverged, 1 tested at other env steps)": [3.0, 4.0]}


def test_equal_seeds_would_be_two_runs_in_one_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "figure4", "--seeds", "0", "0"])
    with pytest.raises(SystemExit):
        paper.main()
    assert "argument --seeds: valid are numbers that differ" in capsys.readouterr().err


def test_rl2_agents_of_a_seed_are_not_independent(tmp_path: Path) -> None:
    for method in ("learned", "rl2"):
        for seed in (0, 1):
            rows = [("Hopper-v5", method, 3 * seed + agent, 10, 100.0 * seed + agent, None) for agent in range(3)]
            write(tmp_path, f"{method}_cheetah_hopper/seed_{seed}", rows)
    lines = paper_output.write_table_1(tmp_path, 8).read_text().splitlines()
    learned, by_rl2 = (next(line for line in lines if f"| cheetah_hopper | {label} |" in line) for label in ("MetaGenRL", "RL2"))
    assert learned.split(" | ")[4] == by_rl2.split(" | ")[4] != "-"


def test_one_run_tests_untrained_weights(tmp_path: Path) -> None:
    for seeds in (None, [4, 5]):
        runs = paper.plan("table1", paper.SCALES["light"], tmp_path, seeds, [])
        tested = [run for run in runs if run.settings.callbacks.meta_test.untrained]
        first, *others = [run for run in tested if run.folder.parent.name != "hand_made"]
        assert {run.folder.parent.name for run in (first, *others)} == {"learned_cheetah_hopper"}
        assert first.without == [] and all(run.without == ["callbacks.meta_test.untrained=false"] for run in others)


@pytest.mark.parametrize("is_tested", [True, False])
def test_seeds_may_be_run_one_after_the_other(is_tested: bool, tmp_path: Path) -> None:
    """The first seed that is run tests untrained weights. The command with all seeds goes on from there."""
    (earlier,) = [
        run
        for run in paper.plan("table1", paper.SCALES["light"], tmp_path, [1], [])
        if "learned_cheetah_hopper/" in str(run.folder)
    ]
    earlier.folder.mkdir(parents=True)
    (earlier.folder / "ended").touch()
    OmegaConf.save(earlier.settings, earlier.note)
    (earlier.folder / "config.yaml").write_text(f"callbacks: {{meta_test: {{untrained: {str(is_tested).lower()}}}}}")
    runs = paper.plan("table1", paper.SCALES["light"], tmp_path, None, [])
    check_folders(runs)
    of_seeds = {run.folder.name: run.without for run in runs if run.folder.parent == earlier.folder.parent}
    no = ["callbacks.meta_test.untrained=false"]
    assert of_seeds == {"seed_0": no if is_tested else [], "seed_1": no, "seed_2": no}


def test_figure_3_trains_what_it_reads_and_as_the_table_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, made = set(), []

    def remember(folder: Path, method: str) -> dict[str, Any]:
        read.add(folder)
        return {}

    monkeypatch.setattr(paper_output, "results_of", remember)
    tested = {"callbacks": {"meta_test": {"seeds": [0]}}}
    monkeypatch.setattr(paper, "compose_run", lambda overrides: OmegaConf.create({**tested, "overrides": list(overrides)}))
    monkeypatch.setattr("sb3_baselines.train_agents", lambda *arguments: made.append((arguments[3].parent, arguments)))
    monkeypatch.setattr("rl2.run_seed", lambda *arguments: made.append((arguments[-1], arguments)))
    of_what = {}
    for what in ("figure3", "table1"):
        made.clear()
        paper.run_libraries(paper.ROWS[what], paper.SCALES["light"], tmp_path, None, [], 1)
        of_what[what] = [
            *made,
            *((run.folder.parent, run) for run in paper.plan(what, paper.SCALES["light"], tmp_path, None, [])),
        ]
    paper_output.write_figure_3(tmp_path)
    assert {folder for folder, _ in of_what["figure3"]} == read
    assert [one for one in of_what["table1"] if one[0] in read] == of_what["figure3"] != of_what["table1"]


@pytest.mark.parametrize("extra", [[], ["env_steps=1000"]])
def test_figure_4_has_five_stages(extra: list[str], tmp_path: Path) -> None:
    (run,) = paper.plan("figure4", paper.SCALES["light"], tmp_path, None, extra)
    config = run.settings
    assert config.env_steps == 5 * config.callbacks.meta_test.every_env_steps


def test_figure_5_has_a_run_of_the_table(tmp_path: Path) -> None:
    table = {run.folder: run.settings for run in paper.plan("table1", paper.SCALES["light"], tmp_path, None, [])}
    runs = paper.plan("figure5", paper.SCALES["light"], tmp_path, None, [])
    assert [run.folder for run in runs if table.get(run.folder) == run.settings] == [
        tmp_path / "learned_lunar_cheetah" / "seed_0"
    ]


def test_overrides_may_follow_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["paper.py", "figure5", "--scale", "light", "--out", str(tmp_path), "--jobs", "2", "env_steps=20", "num_threads=1"]
    made: list[Any] = []
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(paper, "run_all", lambda runs, out, jobs: made.extend(runs))
    paper.main()
    assert len(made) == 5 and all(run.settings.env_steps == 20 for run in made)
    assert capsys.readouterr().out == f"{tmp_path / 'figure5.png'}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["figure4", "seed=3"], "error: seed=3 is set by this command; valid is --seeds"),
        (["figure4", "run_dir=x"], "error: run_dir=x is set by this command; valid is --out"),
        (["figure4", "--only-write", "--out", "new"], "error: --out new: no run has ended there; valid is a folder with runs"),
        (["figure4", "--out", "file"], "error: [Errno 17] File exists: 'file'"),
        (["table1", "callbacks.meta_test=null", "--out", "new"], "error: callbacks.meta_test is null; valid is a meta-test"),
        (
            ["table1", "--only-write", "--out", ".", "population.lifetime_env_steps=null"],
            "error: population.lifetime_env_steps=null: ",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    write(tmp_path, "ppo", [("HalfCheetah-v5", "ppo", 0, 10, 7.0, None)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["paper.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        paper.main()
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_missing_libraries_are_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["paper.py", "table1", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="sb3-contrib is not installed"):
        paper.main()
    assert not (tmp_path / "out").exists()


def test_figures_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    for folder, environment in (("learned_cheetah_hopper", "Hopper-v5"), ("learned_lunar_cheetah", "HalfCheetah-v5")):
        rows = [(environment, "learned", agent, n, float(n + agent), 50) for agent in (0, 1) for n in (10, 20)]
        write(tmp_path, f"{folder}/seed_0", rows)
    staged = [("Hopper-v5", "learned", 0, n, float(n), stage) for stage in (10, 20) for n in (10, 20)]
    write(tmp_path, "figure4/seed_0", staged)
    drawn = {}

    def remember(path: Path, panels: Any) -> Path:
        drawn[path.name] = {title: {label: len(curves) for label, curves in lines.items()} for title, lines in panels.items()}
        return write_curves(path, panels)

    write_curves = paper_output.write_curves
    paper_output.write_curves = remember
    try:
        for write_figure in (paper_output.write_figure_3, paper_output.write_figure_4, paper_output.write_figure_5):
            assert write_figure(tmp_path).read_bytes().startswith(b"\x89PNG")
    finally:
        paper_output.write_curves = write_curves
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
    table = paper_output.write_table_1(tmp_path, 8).read_text()
    assert table.count(", 1 agent |") == 3 * 5  # three environments: learned, evolution, DDPG/TD3, REINFORCE, random actions
