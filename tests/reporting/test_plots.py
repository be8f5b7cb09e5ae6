"""The picture of a run: what is drawn, read off matplotlib's artists."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metagenrl_pl.reporting.plots import (
    RUN_COLOURS,
    agent_curves,
    learning_curves,
    meta_test_figure,
    stages_figure,
    training_figure,
)
from metagenrl_pl.results.methods import LEARNED, METHODS, Method
from metagenrl_pl.results.rows import MetaTestRow, append_rows

METRICS = """env_steps,loss,episode_return/A/agent_0,episode_return/A/agent_1,evaluation_return/B/agent_2,episode_return/B/agent_2
100,0.5,10,,-5,-50
200,0.4,,40,,-40
300,0.3,30,20,-3,-30
400,0.2,40"""  # the last line is half-written


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: object, **kwargs: object) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def _panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


def _points(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [tuple(np.asarray(data).tolist() for data in line.get_data()) for line in axes.get_lines()]  # type: ignore[misc]


def _is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 10_000


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert learning_curves(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("env_steps,critic_loss\n100,0.5\n")
    assert learning_curves(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_training_panels(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)

    path = learning_curves(tmp_path)

    assert path == tmp_path / "learning_curves.png"
    assert _is_png(path)
    panels = _panels(figures[0])
    assert list(panels) == ["A", "B"]
    # A: agents 0 and 1, then their mean from where both have begun; agent 0 is interpolated to 20 at 200
    agent_0, agent_1, (env_steps, mean) = _points(panels["A"])
    assert agent_0 == ([100, 300], [10, 30])
    assert agent_1 == ([200, 300], [40, 20])
    assert env_steps == [100, 200, 300]
    assert math.isnan(mean[0]) and mean[1:] == [30, 25]
    # B: exploration faint, then the agent and the mean of its evaluations
    assert _points(panels["B"]) == [([100, 200, 300], [-50, -40, -30]), ([100, 300], [-5, -3]), ([100, 300], [-5, -3])]
    faint, agent, mean_line = panels["B"].get_lines()
    assert faint.get_alpha() < agent.get_alpha()
    assert mean_line.get_linewidth() > agent.get_linewidth()


def _test_rows() -> list[MetaTestRow]:
    rows = [MetaTestRow("T", "random", seed, 0, -10.0 - 2 * seed) for seed in (0, 1)]
    for stage in (1000, 2000):
        rows += [MetaTestRow("T", "learned", s, x, stage + x + s, stage) for x in (0, 50) for s in (0, 2)]
    return [*rows, MetaTestRow("T", "critic", 0, 0, math.nan), MetaTestRow("T", "critic", 0, 50, 3.0)]


def test_meta_test_panel(tmp_path: Path, figures: list[Figure]) -> None:
    append_rows(tmp_path / "meta_test.csv", _test_rows())

    path = learning_curves(tmp_path)

    assert path is not None and _is_png(path)
    (axes,) = _panels(figures[0]).values()
    earlier, random, critic, learned = axes.get_lines()
    assert earlier.get_color() == learned.get_color() == LEARNED.colour
    assert earlier.get_alpha() <= 0.5 and learned.get_alpha() is None
    assert np.asarray(earlier.get_ydata()).tolist() == [1001, 1051]  # mean over seeds 0 and 2
    assert np.asarray(learned.get_ydata()).tolist() == [2001, 2051]
    assert np.asarray(learned.get_xdata()).tolist() == [0, 50]
    assert list(random.get_ydata()) == [-11, -11] and random.get_linestyle() == "--"
    assert np.asarray(critic.get_ydata())[1] == 3.0
    band = axes.collections[-1].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2051 + 12.7062, abs=1e-4)  # t(0.95, 1) times the standard error 1


def test_legend_names_each_thing_once(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    append_rows(tmp_path / "meta_test.csv", _test_rows())

    learning_curves(tmp_path)

    legends = [legend for subfigure in figures[0].subfigs for legend in subfigure.legends]
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [
        ["mean of the agents", "one agent", "one agent, exploring"],
        ["learned objective", "its earlier stages", "DDPG/TD3", "random actions"],
    ]
    assert list(_panels(figures[0])) == ["A", "B", "T"]


def test_many_environments_wrap_and_no_backend_is_chosen(tmp_path: Path, figures: list[Figure]) -> None:
    backend = matplotlib.rcParams._get("backend")  # reading it the public way would choose one
    append_rows(tmp_path / "meta_test.csv", [MetaTestRow(f"env_{i}", "new", 0, x, x, 10) for i in range(5) for x in (0, 1)])
    learning_curves(tmp_path)
    tops = {round(axes.get_position().y1, 3) for axes in _panels(figures[0]).values()}
    assert len(_panels(figures[0])) == 5 and len(tops) == 2
    assert matplotlib.rcParams._get("backend") is backend


def test_a_panel_of_several_runs_takes_the_mean_over_all_rows() -> None:
    rows = [MetaTestRow("T", "learned", seed, x, x + 10 * run) for run in (0, 1) for seed in (0, 1) for x in (50, 100)]
    figure = meta_test_figure("T (unseen)", rows)
    (axes,) = figure.axes
    assert axes.get_title() == "T (unseen)"
    assert _points(axes) == [([50, 100], [55, 105])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["learned objective"]


def test_stages_from_untrained_to_the_last() -> None:
    rows = [row for row in _test_rows() if row.method == "learned"] + [MetaTestRow("T", "untrained", 0, 50, -5.0, 0)]
    figure = stages_figure("T", rows)
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["untrained", "1,000", "2,000"]
    assert _points(axes) == [([50], [-5]), ([0, 50], [1001, 1051]), ([0, 50], [2001, 2051])]
    brightness = [sum(line.get_color()[:3]) for line in axes.get_lines()]
    assert brightness == sorted(brightness, reverse=True)


def test_training_of_several_runs(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS.replace("loss", "agreement/A/agent_0"))
    assert agent_curves(tmp_path / "gone.csv", ["agreement"]) == {}
    metrics = agent_curves(tmp_path / "metrics.csv", ["agreement", "episode_return"])
    assert {environment: set(kinds) for environment, kinds in metrics.items()} == {
        "A": {"agreement", "episode_return"},
        "B": {"episode_return"},
    }
    figure = training_figure("A", {"one": metrics["A"]["episode_return"], "two": metrics["A"]["agreement"]}, "return")
    (axes,) = figure.axes
    assert [line.get_color() for line in axes.get_lines()] == [RUN_COLOURS[0]] * 3 + [RUN_COLOURS[1]] * 2
    assert _points(axes)[3:] == [([100, 200, 300], [0.5, 0.4, 0.3])] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert axes.get_ylabel() == "return"


def test_wide_intervals_do_not_flatten_the_lines() -> None:
    rows = [MetaTestRow("T", "learned", seed, x, x + 10_000 * (2 * seed - 1)) for seed in (0, 1) for x in (0, 100)]
    (axes,) = meta_test_figure("T", rows).axes
    assert axes.get_ylim() == (-100, 200)  # lines from 0 to 100; the interval's half-width is 12.7 * 10,000
    (axes,) = meta_test_figure("T", [row for row in rows if row.seed == 0]).axes
    assert axes.get_ylim()[0] > -10_010 and axes.get_ylim()[1] < -9_890


def test_a_method_is_drawn_as_it_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "sac", Method("sac", "SAC (own)", "SAC", "#123456"))
    figure = meta_test_figure("T", [MetaTestRow("T", "sac", 0, x, x) for x in (50, 100)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SAC (own)"]
    assert [line.get_color() for line in figure.axes[0].get_lines()] == ["#123456"]
