"""The page: what is on it, that it stands alone, what it refuses."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from metagenrl_pl.objectives import LearnedMixture, LearnedObjective
from metagenrl_pl.reporting.numbers import format_interval, format_number, format_returns, join_names
from metagenrl_pl.reporting.page import render
from metagenrl_pl.reporting.report import main
from metagenrl_pl.results.methods import METHODS, Method
from metagenrl_pl.results.rows import MetaTestRow, append_rows
from metagenrl_pl.results.statistics import Interval

METRICS = """env_steps,agreement/Seen-v0/agent_0,agreement/Seen-v0/agent_1,episode_return/Seen-v0/agent_0,episode_return/Seen-v0/agent_1
100,,,1,2
200,0.1,-0.2,3,5
300,0.3,0.4,8,9
"""
VOID = {"meta", "img", "br", "link", "wbr"}


class Page(HTMLParser):
    """Reads a page strictly: every tag that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, first: str, after: str) -> list[str]:
        """The row that begins with `first`, below the header that begins with `after`."""
        start = next(index for index, row in enumerate(self.rows) if row[0] == after)
        return next(row for row in self.rows[start:] if row[0] == first)


def _rows(environment: str, learned: float, stages: tuple[int, ...] = (500, 1000)) -> list[MetaTestRow]:
    """Random 0, DDPG/TD3 100 and 100, REINFORCE 50, untrained -10; the learned objective as told, less at its earlier stages."""
    finals = {"untrained": -10.0, "reinforce": 50.0, "critic": 100.0}
    rows = [MetaTestRow(environment, "random", seed, 0, 0.0) for seed in (0, 1)]
    for seed in (0, 1):
        for env_steps in (50, 100):
            share = env_steps / 100
            rows += [
                MetaTestRow(environment, method, seed, env_steps, share * final, 0 if method == "untrained" else None)
                for method, final in finals.items()
            ]
            rows += [
                MetaTestRow(environment, "learned", seed, env_steps, share * learned * stage / stages[-1], stage)
                for stage in stages
            ]
    return rows


def _run(folder: Path, seed: int, learned: float, objective: LearnedObjective | LearnedMixture | None = None) -> Path:
    append_rows(folder / "meta_test.csv", _rows("Seen-v0", 2 * learned) + _rows("Unseen-v0", learned))
    (folder / "metrics.csv").write_text(METRICS)
    config = {"seed": seed, "env": {"train": ["Seen-v0"]}, "population": {"size": 2}, "meta": {}, "agent": {"window_length": 4}}
    OmegaConf.save(config, folder / "config.yaml")
    if objective is not None:
        card = {"training_environments": ["Seen-v0"], "num_agents": 2, "seed": seed, "window_length": 4, "commit": "c0ffee1234"}
        objective.save(folder / "objective.safetensors", card)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two runs and a baseline."""
    folder = tmp_path_factory.mktemp("runs")
    _run(folder / "run_0", 0, 20.0, LearnedObjective(hidden_units=4, context_units=2))
    _run(folder / "run_1", 1, 40.0)
    append_rows(folder / "<base>" / "meta_test.csv", [MetaTestRow("Lone<v0>", "critic", 0, 70, 5.0)])
    return render([folder])


def test_the_page_is_well_formed_and_names_everything(made: str) -> None:
    page = Page(made)
    methods = [METHODS[method].label for method in ("learned", "untrained", "reinforce", "critic", "random")]
    for name in (*methods, "Seen-v0", "Unseen-v0", "Lone<v0>", "<base>", "run_0", "run_1", "c0ffee1"):
        assert name in page.text, name


def test_agents_of_other_settings_are_not_pooled_without_a_learned_objective(tmp_path: Path) -> None:
    """In one environment; in another one, other agents are all there is."""
    for name, environment, units, value in (("a", "One", 64, 1.0), ("b", "One", 256, 3.0), ("c", "Two", 256, 5.0)):
        rows = [MetaTestRow(environment, "critic", seed, 10, value) for seed in (0, 1)]
        append_rows(tmp_path / name / "meta_test.csv", rows)
        OmegaConf.save({"seed": 0, "meta": None, "agent": {"hidden_units": units}}, tmp_path / name / "config.yaml")
    page = Page(render([tmp_path]))
    assert page.row("DDPG/TD3", "method") == ["DDPG/TD3", "1.00 ± 0.00 (2)", "5.00 ± 0.00 (2)"]
    assert "b is not compared: its agents differ in agent.hidden_units." in page.text


def test_a_score_over_some_of_the_environments_says_over_how_many(tmp_path: Path) -> None:
    """In the table as in the plot, and only where the method was not tested in all."""
    _run(tmp_path / "run", 0, 20.0)
    rows = [row for row in _rows("Other-v0", 30.0) if row.method in ("learned", "random", "critic")]
    append_rows(tmp_path / "run" / "meta_test.csv", rows)
    page = Page(render([tmp_path]))
    row = page.row("off-policy REINFORCE (GAE)", "method")
    assert row[1].endswith("] (1 of 2 environments)") and row[2].endswith("] (1 of 2 environments)")
    assert row[3].endswith("]")  # the only training environment
    assert not [cell for cell in page.row("learned objective", "method") if "environments" in cell]


def test_the_page_stands_alone_and_is_small(made: str) -> None:
    page = Page(made)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img")
        assert not {"src", "href", "srcset", "data"} & attributes.keys(), tag
    assert not re.search(r"https?://|url\(|@import", made)
    assert ("meta", "viewport") in {(tag, attributes.get("name")) for tag, attributes in page.tags}
    assert "prefers-color-scheme: dark" in made
    assert len(made) < 120_000


def test_the_first_screen_is_a_plot_and_a_table_and_the_rest_is_closed(made: str) -> None:
    shown = re.sub(r"<details.*?</details>", "", made, flags=re.DOTALL)
    page = Page(shown)
    tags = [(tag, attributes.get("class")) for tag, attributes in page.tags]
    assert [tag for tag, _ in tags].count("table") == 2  # the other one is that of environments without learned objectives
    assert "svg" not in {tag for tag, _ in tags} and "open" not in {key for _, attributes in page.tags for key in attributes}
    forests = [attributes for tag, attributes in page.tags if tag == "div" and attributes.get("class") == "forest"]
    assert [forest["data-forest"] for forest in forests] == [
        f"{kind}, {measure}" for kind in ("unseen", "training") for measure in ("final return", "area under the curve")
    ]
    assert ["hidden" in forest for forest in forests] == [False, True, True, True]
    first = shown[shown.index('class="forest"') : shown.index("unseen, area", shown.index('class="forest"'))]
    names = re.findall(r'class="name">([^<]+)<', first)
    assert names == ["DDPG/TD3", "off-policy REINFORCE (GAE)", "learned objective", "random actions", "untrained objective"]


def test_charts_are_drawn_once_and_hold_their_values(made: str) -> None:
    panels = [attributes for tag, attributes in Page(made).tags if tag == "svg" and attributes.get("class") == "panel"]
    assert [panel["aria-label"] for panel in panels if "fresh agent" in str(panel["aria-label"])] == [
        f"{name}: return against env steps of the fresh agent"
        for name in ("Seen-v0 (training)", "Unseen-v0", "Seen-v0", "Unseen-v0", "Lone<v0>")
    ]  # learning curves, stages, the baseline
    lines = {(a["data-name"], a["data-values"]) for _, a in Page(made).tags if "data-name" in a}
    # two seeds with the means 10 and 20, then twice that: mean 15, half-width t(0.95, 1) = 12.706 times the standard error 5
    assert ("learned objective", "[[50,15,-48.53,78.53],[100,30,-97.06,157.1]]") in lines
    assert ("after 500 env steps", "[[50,7.5],[100,15]]") in lines  # half of that
    assert ("random actions", "[[0,0],[100,0]]") in lines
    assert ("learned objective", "[[100,4.5],[200,4],[300,8.5]]") not in lines  # agents begin at 100 with 1 and 2
    assert ("learned objective", "[[100,1.5],[200,4],[300,8.5]]") in lines  # meta-training
    maps = [attributes["aria-label"] for tag, attributes in Page(made).tags if attributes.get("class") == "heat"]
    assert len(maps) == 3 * 4 + 1  # REINFORCE, untrained, learned: three probes and credit; DDPG/TD3: dQ/da


def test_the_numbers_on_the_page(made: str) -> None:
    page = Page(made)
    # final returns: 40, 40, 80, 80 where it was meta-trained, 20, 20, 40, 40 elsewhere; DDPG/TD3 has 100 everywhere.
    # Interquartile means are those of the middle two; the area is proportional to the final return here
    learned = page.row("learned objective", "method")
    assert [cell.split()[0] for cell in learned] == ["learned", "0.30", "0.30", "0.60", "0.60", "0.00", "8"]
    # two seeds of two equal agents each: the ends are one seed drawn twice
    assert learned[1] == "0.30 [0.20, 0.40]" and learned[-1] == "8 (2)"
    assert page.row("untrained objective", "method")[1] == "-0.10 [-0.10, -0.10]"
    assert page.row("DDPG/TD3", "method")[1] == "1.00 [1.00, 1.00]"
    # against REINFORCE's 50 half of the pairs are won in training and none elsewhere
    wins = [row[1] for row in page.rows if row[0] == "off-policy REINFORCE (GAE)" and "tell" in row[1]]
    assert wins == ["0.00 [0.00, 0.00] too few agents to tell", "0.50 [0.00, 1.00] too few agents to tell"]
    assert page.row("learned objective, seed 1", "objective")[1:] == ["0.40 (2 agents)", "0.80 (2 agents)"]
    returns = next(row for row in page.rows if row[0] == "learned objective" and "±" in row[1])
    assert returns[1:] == ["60.0 ± 254.1 (4) *", "30.0 ± 127.1 (4)"]  # over the means of two seeds


def test_runs_are_listed_with_where_they_come_from(made: str) -> None:
    page = Page(made)
    assert page.row("run_0", "run")[1:6] == ["Seen-v0", "2", "1,000", "0", "c0ffee1"]
    assert page.row("<base>", "run")[1:] == ["–", "–", "–", "–", "–", "critic", "Lone<v0>", "70"]


def test_variants_stand_side_by_side_under_their_short_names(tmp_path: Path) -> None:
    for seed in (0, 1):
        _run(tmp_path / "light" / f"seed_{seed}", seed, 20.0)
        folder = _run(tmp_path / "other_kind" / f"seed_{seed}", seed, 120.0)
        config = OmegaConf.load(folder / "config.yaml")
        config.meta = {"gradient": "clip"}
        OmegaConf.save(config, folder / "config.yaml")
    page = Page(render([tmp_path]))
    assert [row[0] for row in page.rows if row[0] in ("light", "other_kind")][:2] == ["other_kind", "light"]  # best first
    assert (
        "Unseen environments (Unseen-v0), final return against DDPG/TD3: better: none; too few agents to tell: light, other_kind."
        in page.text
    )
    curves = [a for _, a in page.tags if a.get("aria-label", "") == "Unseen-v0: return against env steps of the fresh agent"]
    assert len(curves) == 1 + 2  # of all methods in one; stages of each


def test_a_verdict_names_that_one_seed_alone_was_tested_there(tmp_path: Path) -> None:
    """Three seeds were tested where they were meta-trained, seed 0 alone elsewhere."""
    for seed, environments in ((0, ("Seen-v0", "Unseen-v0")), (1, ("Seen-v0",)), (2, ("Seen-v0",))):
        folder = _run(tmp_path / f"seed_{seed}", seed, 20.0)
        (folder / "meta_test.csv").unlink()
        finals = {"random": 0.0, "critic": 100.0, "learned": 150.0}
        append_rows(
            folder / "meta_test.csv",
            [
                MetaTestRow(environment, method, agent, env_steps, final + agent, 1000 if method == "learned" else None)
                for environment in environments
                for method, final in finals.items()
                for agent in range(6)
                for env_steps in (50, 100)
            ],
        )
    text = Page(render([tmp_path])).text
    assert "better (one meta-training seed): DDPG/TD3" in text and "better: DDPG/TD3" in text


def test_the_command_writes_the_page_and_shows_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_rows(tmp_path / "run" / "meta_test.csv", [MetaTestRow("A", "critic", seed, 10, 5.0) for seed in (0, 1)])
    out, steps = tmp_path / "deep" / "page.html", []
    main([str(tmp_path / "run"), "--out", str(out)])
    assert "None of these runs has tested a learned objective." in Page(out.read_text()).text
    assert str(tmp_path) not in out.read_text()
    assert capsys.readouterr().out == f"Report: {out} (0.0 MB)\n"
    _run(tmp_path / "run_0", 0, 20.0, LearnedObjective(hidden_units=4, context_units=2))
    render([tmp_path], lambda done, total, what: steps.append((done / total, what)))
    assert [share for share, _ in steps] == sorted(share for share, _ in steps) and len(steps) > 8
    assert any("Objective: learned objective" in what for _, what in steps)


def test_without_learned_objectives_the_longest_test_of_an_agent_counts(tmp_path: Path) -> None:
    for name, env_steps in (("a_short", 10), ("b_long", 20), ("c_short", 10)):
        rows = [MetaTestRow("A", "critic", 0, n, float(n)) for n in range(10, env_steps + 1, 10)]
        append_rows(tmp_path / name / "meta_test.csv", rows)
    page = Page(render([tmp_path]))
    assert "20.0 (1)" in page.row("DDPG/TD3", "method"), page.rows


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in (("empty", "no meta_test.csv"), ("gone", "no such folder")):
        with pytest.raises(SystemExit) as exit:
            main([str(tmp_path / folder), "--out", str(tmp_path / "page.html")])
        error = capsys.readouterr().err
        assert exit.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1
        assert words in error and str(tmp_path / folder) in error
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "file").touch()
    for out in ("", str(tmp_path), str(tmp_path / "file" / "page.html")):
        with pytest.raises(SystemExit):
            main([str(tmp_path), "--out", out])
        assert capsys.readouterr().err.startswith(f"error: --out {out or '.'}: cannot be written; valid is a file in a folder")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "file")])
    assert "/file: is there already, and no page; valid is a new file, or" in capsys.readouterr().err
    assert (tmp_path / "file").read_bytes() == b""


def test_what_cannot_be_normalised_is_told(tmp_path: Path) -> None:
    rows = [row._replace(episode_return=-1.0) if row.method == "critic" else row for row in _rows("A", 1.0, stages=(10,))]
    append_rows(tmp_path / "meta_test.csv", rows)
    (tmp_path / "objective.json").write_text(json.dumps({"training_environments": ["B"], "seed": 0}))
    page = Page(render([tmp_path]))
    assert "A is left out of normalised scores: DDPG/TD3 (final -1, area -1) is not above random actions (0)" in page.text
    assert page.row("learned objective", "method")[1:] == ["2 (1)"]
    assert "No scores in unseen environments: the notes say why." in page.text
    assert "No scores in training environments: no objective was tested in one." in page.text
    assert 'class="forest"' not in render([tmp_path])


def test_a_run_without_references_is_shown_by_its_returns(tmp_path: Path) -> None:
    append_rows(tmp_path / "meta_test.csv", [row for row in _rows("A", 1.0) if row.method == "learned"])
    (tmp_path / "objective.json").write_text(json.dumps({"training_environments": ["A"], "seed": 0}))
    page = Page(render([tmp_path]))
    assert "no run has random or critic there. Name a run folder that has it as well." in page.text
    assert "No scores in training environments: they need random actions and DDPG/TD3, not tested there." in page.text
    assert ["learned objective", "1.00 ± 0.00 (2) *"] in page.rows


def test_an_objective_whose_agents_all_diverged_is_reported(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run_0", 0, 20.0)
    append_rows(folder / "meta_test.csv", [row._replace(episode_return=math.nan) for row in _rows("Wild-v0", 5.0)])
    page = Page(render([tmp_path]))
    assert "diverged" in page.text and "Wild-v0" in page.text


def test_the_headline_leaves_out_what_the_score_leaves_out(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run_0", 0, 20.0)
    append_rows(folder / "meta_test.csv", [row for row in _rows("Bare-v0", 5.0) if row.method == "learned"])
    page = Page(render([tmp_path]))
    (sentence,) = re.findall(r"Unseen environments \([^)]*\): the learned objective scores [^.]*\.[^.]*\.", page.text)
    assert "(Unseen-v0)" in sentence and "Bare-v0 is left out of normalised scores" in page.text


@pytest.mark.parametrize("use_critic_gradient", [False, True])
def test_the_critic_is_probed_where_it_is_looked_at(use_critic_gradient: bool, tmp_path: Path) -> None:
    objective = LearnedObjective(hidden_units=4, context_units=2, use_critic_gradient=use_critic_gradient)
    _run(tmp_path / "run", 0, 40.0, objective)
    labels = [attributes.get("aria-label") or "" for _, attributes in Page(render([tmp_path])).tags]
    drawn = [label for label in labels if "by dQ/da" in label]
    assert len(drawn) == (3 if use_critic_gradient else 1)  # DDPG/TD3, untrained, learned; REINFORCE does not look


def test_an_objective_that_cannot_be_read_is_noted_and_the_rest_is_drawn(tmp_path: Path) -> None:
    _run(tmp_path / "good" / "seed_0", 0, 40.0, LearnedObjective(hidden_units=4, context_units=2))
    folder = _run(tmp_path / "damaged" / "seed_0", 0, 20.0)
    config = OmegaConf.load(folder / "config.yaml")
    config.meta = {"gradient": "clip"}  # another variant
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "objective.safetensors").write_bytes(b"nothing")
    page = Page(render([tmp_path]))
    assert re.search(r"damaged is not drawn: \S", page.text) and str(tmp_path) not in page.text
    labels = [attributes.get("aria-label") or "" for _, attributes in page.tags]
    assert any(label.startswith("Credit over time of good") for label in labels)


def test_a_mixture_shows_how_it_weighs(tmp_path: Path) -> None:
    _run(tmp_path / "run", 0, 40.0, LearnedMixture(hidden_units=4, context_units=2))
    names = {attributes.get("data-name") for _, attributes in Page(render([tmp_path])).tags}
    assert {"learned objective, A > 0", "learned objective, A ≤ 0"} <= names


def test_numbers_as_text() -> None:
    nan = float("nan")
    assert format_number(-0.001) == "0.00"
    assert format_number(12345.678, 1) == "12,345.7"
    assert format_number(nan) == "diverged"
    assert format_interval(Interval(1.0, 0.5, 1.25)) == "1.00 [0.50, 1.25]"
    assert format_interval(Interval(1.0, nan, nan)) == "1.00"
    assert format_interval(None) == format_returns({}, 1) == "–"
    assert format_returns({0: [1.0, nan]}, 1) == "diverged (2)"
    assert (
        format_returns({None: [1.0, 3.0]}, 1) == "2.0 ± 12.7 (2)" and format_returns({0: [1.0], 1: [3.0]}, 1) == "2.0 ± 12.7 (2)"
    )
    assert format_returns({0: [1.0, 1.0], 1: [3.0, 3.0]}, 1) == "2.0 ± 12.7 (4)" and format_returns({0: [5.0]}, 1) == "5.0 (1)"
    assert join_names(["a", "b"]) == "a, b" and join_names(["a, with c", "b"]) == "a, with c; b"


def test_a_method_is_reported_as_it_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "sac", Method("sac", "SAC (own)", "SAC", "#123456"))
    append_rows(tmp_path / "run" / "meta_test.csv", [MetaTestRow("A", "sac", 0, 10, 5.0)])
    assert ["SAC (own)", "5.00 (1)"] in Page(render([tmp_path])).rows
