"""The page: what is on it, that it stands alone, what it refuses."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf

from metagenrl_pl.objectives import LearnedMixture, LearnedObjective
from metagenrl_pl.reporting.report import main, render
from metagenrl_pl.reporting.report_parts import format_interval, format_number, to_file_name
from metagenrl_pl.results.methods import METHODS, Method
from metagenrl_pl.results.rows import MetaTestRow, append_rows
from metagenrl_pl.results.statistics import Interval

METRICS = """env_steps,agreement/Seen-v0/agent_0,agreement/Seen-v0/agent_1,episode_return/Seen-v0/agent_0,episode_return/Seen-v0/agent_1
100,,,1,2
200,0.1,-0.2,3,5
300,0.3,0.4,8,9
"""
VOID = {"meta", "img", "br", "link"}


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
        if self.open[-1:] != ["style"]:
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


def _run(folder: Path, seed: int, learned: float, with_objective: bool = False) -> Path:
    append_rows(folder / "meta_test.csv", _rows("Seen-v0", 2 * learned) + _rows("Unseen-v0", learned))
    (folder / "metrics.csv").write_text(METRICS)
    config = {"seed": seed, "env": {"train": ["Seen-v0"]}, "population": {"size": 2}, "meta": {}, "agent": {"window_length": 4}}
    OmegaConf.save(config, folder / "config.yaml")
    if with_objective:
        card = {"training_environments": ["Seen-v0"], "num_agents": 2, "seed": seed, "window_length": 4, "commit": "c0ffee1234"}
        LearnedObjective(hidden_units=4, context_units=2).save(folder / "objective.safetensors", card)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """The page of two runs and a baseline, and its pictures."""
    folder = tmp_path_factory.mktemp("runs")
    _run(folder / "run_0", 0, 20.0, with_objective=True)
    _run(folder / "run_1", 1, 40.0)
    append_rows(folder / "<base>" / "meta_test.csv", [MetaTestRow("Lone<v0>", "critic", 0, 70, 5.0)])
    page, gallery = render([folder])
    return page, gallery.pictures


def test_the_page_is_well_formed_and_names_everything(made: tuple[str, dict[str, bytes]]) -> None:
    page = Page(made[0])
    methods = [METHODS[method].label for method in ("learned", "untrained", "reinforce", "critic", "random")]
    for name in (*methods, "Seen-v0", "Unseen-v0", "Lone<v0>", "<base>", "run_0", "run_1", "c0ffee1"):
        assert name in page.text, name
    assert "$" not in page.text


def test_the_page_stands_alone(made: tuple[str, dict[str, bytes]]) -> None:
    page = Page(made[0])
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, name)
    assert not re.search(r"https?://|url\(|@import", made[0])
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {"#variant-0"} and "variant-0" in targets
    assert ("meta", "viewport") in {(tag, attributes.get("name")) for tag, attributes in page.tags}
    assert "prefers-color-scheme: dark" in made[0]


def test_pictures_are_inside_and_not_empty(made: tuple[str, dict[str, bytes]]) -> None:
    html, pictures = made
    sources = [attributes["src"] or "" for tag, attributes in Page(html).tags if tag == "img"]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == list(pictures.values())
    for name, png in pictures.items():
        pixels = imread(io.BytesIO(png))[..., :3]
        assert pixels.shape[1] > 300 and pixels.std() > 0.05, name
    assert {name for name in pictures if "gradient" not in name} == {
        *(f"variant-0_{kind}_{environment}" for kind in ("curves", "stages") for environment in ("Seen-v0", "Unseen-v0")),
        "variant-0_return_Seen-v0",
        "variant-0_agreement_Seen-v0",
        *(f"variant-0_credit_{name}" for name in ("REINFORCE_GAE", "untrained", "seed_0", "by_delay")),
        "alone_curves_Lone_v0",
    }
    assert len([name for name in pictures if "gradient" in name]) == 3 * 3  # what is varied, times objectives


def test_the_numbers_on_the_page(made: tuple[str, dict[str, bytes]]) -> None:
    page = Page(made[0])
    # final returns: 40, 40, 80, 80 where it was meta-trained, 20, 20, 40, 40 elsewhere; DDPG/TD3 has 100 everywhere.
    # Interquartile means are those of the middle two; the area is proportional to the final return here
    learned = page.row("learned objective", "method")
    assert [cell.split()[0] for cell in learned] == ["learned", "0.60", "0.60", "4", "0.30", "0.30", "4"]
    assert learned[4] == "0.30 [0.20, 0.40]"
    assert page.row("untrained objective", "method")[1] == "-0.10 [-0.10, -0.10]"
    assert page.row("DDPG/TD3", "method")[1] == "1.00 [1.00, 1.00]"
    # against REINFORCE's 50 half of the pairs are won in training and none elsewhere
    wins = page.row("off-policy REINFORCE (GAE)", "learned objective against")
    assert (wins[1].split()[0], wins[2]) == ("0.50", "indistinguishable")
    assert (wins[4].split()[0], wins[5]) == ("0.00", "worse")
    assert page.row("meta-training seed 1", "objective") == ["meta-training seed 1", "0.80 (2 agents)", "0.40 (2 agents)"]
    # returns: 4 agents, mean 30, half-width t(0.95, 3) = 3.182 times sqrt(400 / 3) / 2
    returns = next(row for row in page.rows if row[0] == "learned objective" and "±" in row[1])
    assert returns[2] == "30.0 ± 18.4 (4)"
    assert "worse than: off-policy REINFORCE (GAE), DDPG/TD3" in page.text


def test_runs_are_listed_with_where_they_come_from(made: tuple[str, dict[str, bytes]]) -> None:
    page = Page(made[0])
    assert page.row("run_0", "run")[1:6] == ["Seen-v0", "2", "1,000", "0", "c0ffee1"]
    assert page.row("<base>", "run")[1:] == ["-", "-", "-", "-", "-", "critic", "Lone<v0>", "70"]


def test_the_command_writes_page_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_rows(tmp_path / "run" / "meta_test.csv", [MetaTestRow("A", "critic", seed, 10, 5.0) for seed in (0, 1)])
    out, figures = tmp_path / "deep" / "page.html", tmp_path / "figures"
    main([str(tmp_path / "run"), "--out", str(out), "--figures", str(figures)])
    assert "None of these runs has tested a learned objective." in Page(out.read_text()).text
    assert str(tmp_path) not in out.read_text()
    assert [path.name for path in figures.iterdir()] == ["alone_curves_A.png"]
    assert (figures / "alone_curves_A.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"Report: {out}\n"


def test_without_learned_objectives_the_longest_test_of_an_agent_counts(tmp_path: Path) -> None:
    for name, env_steps in (("a_short", 10), ("b_long", 20), ("c_short", 10)):
        rows = [MetaTestRow("A", "critic", 0, n, float(n)) for n in range(10, env_steps + 1, 10)]
        append_rows(tmp_path / name / "meta_test.csv", rows)
    page = Page(render([tmp_path])[0])
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


def test_what_cannot_be_normalised_is_told(tmp_path: Path) -> None:
    rows = [row._replace(episode_return=-1.0) if row.method == "critic" else row for row in _rows("A", 1.0, stages=(10,))]
    append_rows(tmp_path / "meta_test.csv", rows)
    (tmp_path / "objective.json").write_text(json.dumps({"training_environments": ["B"], "seed": 0}))
    page = Page(render([tmp_path])[0])
    assert "A is left out of normalised scores: DDPG/TD3 (final -1, area -1) is not above random actions (0)" in page.text
    assert "scores cannot be normalised" in page.text
    assert page.row("learned objective", "method")[1:] == ["-", "-", "-"]
    assert "No training environment was tested." in page.text


def test_a_run_without_references_is_shown_by_its_returns(tmp_path: Path) -> None:
    append_rows(tmp_path / "meta_test.csv", [row for row in _rows("A", 1.0) if row.method == "learned"])
    (tmp_path / "objective.json").write_text(json.dumps({"training_environments": ["A"], "seed": 0}))
    page = Page(render([tmp_path])[0])
    assert "no run has random or critic there. Name a run folder that has it as well." in page.text
    assert ["learned objective", "1.00 ± 0.00 (2)"] in page.rows


@pytest.mark.parametrize("use_critic_gradient", [False, True])
def test_the_critic_is_probed_where_it_is_looked_at(use_critic_gradient: bool, tmp_path: Path) -> None:
    _run(tmp_path / "run", 0, 40.0)
    objective = LearnedObjective(hidden_units=4, context_units=2, use_critic_gradient=use_critic_gradient)
    objective.save(tmp_path / "run" / "objective.safetensors", {"window_length": 4})
    main([str(tmp_path / "run"), "--out", str(tmp_path / "report.html"), "--figures", str(tmp_path / "figures")])
    pictures = [path.name for path in (tmp_path / "figures").iterdir() if "critic_gradient" in path.name]
    assert len(pictures) == (3 if use_critic_gradient else 0)  # DDPG/TD3, untrained, learned; REINFORCE does not look


def test_a_mixture_shows_how_it_weighs(tmp_path: Path) -> None:
    _run(tmp_path / "run", 0, 40.0)
    LearnedMixture(hidden_units=4, context_units=2).save(tmp_path / "run" / "objective.safetensors", {"window_length": 4})
    page, gallery = render([tmp_path / "run"])
    gallery.save(tmp_path / "figures")
    assert [path.name for path in (tmp_path / "figures").glob("*critic_share*")] == ["variant-0_critic_share.png"]
    assert "DDPG/TD3's weight over the sum of both" in Page(page).text


def test_numbers_as_text() -> None:
    nan = float("nan")
    assert format_number(-0.001) == "0.00"
    assert format_number(12345.678, 1) == "12,345.7"
    assert format_number(nan) == "diverged"
    assert format_interval(Interval(1.0, 0.5, 1.25)) == "1.00 [0.50, 1.25]"
    assert format_interval(Interval(1.0, nan, nan)) == "1.00"
    assert to_file_name("a/b (c)[d=1]-v5") == "a_b_c_d_1_-v5"


def test_a_method_is_reported_as_it_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "sac", Method("sac", "SAC (own)", "SAC", "#123456"))
    append_rows(tmp_path / "run" / "meta_test.csv", [MetaTestRow("A", "sac", 0, 10, 5.0)])
    assert ["SAC (own)", "5.00 (1)"] in Page(render([tmp_path])[0]).rows
