"""The picture of a run: what is drawn, read off matplotlib's artists."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metagenrl_pl.reporting.plots import draw_learning_curves
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
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}


def _points(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [tuple(np.asarray(data).tolist() for data in line.get_data()) for line in axes.get_lines()]  # type: ignore[misc]


def _is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 10_000


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_learning_curves(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("env_steps,critic_loss\n100,0.5\n")
    assert draw_learning_curves(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_training_panels(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)

    path = draw_learning_curves(tmp_path)

    assert path == tmp_path / "learning_curves.png"
    assert _is_png(path)
    panels = _panels(figures[0])
    assert list(panels) == ["A", "B"]
    # A: agents 0 and 1, then their mean from where both have begun; agent 0 is interpolated to 20 at 200
    agent_0, agent_1, (env_steps, mean) = _points(panels["A"])
    assert agent_0 == ([100, 300], [10, 30])
    assert agent_1 == ([200, 300], [40, 20])
    assert (env_steps, mean) == ([200, 300], [30, 25])
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

    path = draw_learning_curves(tmp_path)

    assert path is not None and _is_png(path)
    (axes,) = _panels(figures[0]).values()
    earlier, random, critic, *seeds, learned = axes.get_lines()
    assert earlier.get_color() == learned.get_color() == LEARNED.colour
    assert earlier.get_alpha() <= 0.5 and learned.get_alpha() is None
    assert np.asarray(earlier.get_ydata()).tolist() == [1001, 1051]  # mean over seeds 0 and 2
    assert [np.asarray(seed.get_ydata()).tolist() for seed in seeds] == [[2000, 2050], [2002, 2052]]  # thin, and no bands
    assert all(seed.get_linewidth() < learned.get_linewidth() for seed in seeds) and not axes.collections
    assert np.asarray(learned.get_ydata()).tolist() == [2001, 2051]
    assert np.asarray(learned.get_xdata()).tolist() == [0, 50]
    assert list(random.get_ydata()) == [-11, -11] and random.get_linestyle() == "--"
    assert np.asarray(critic.get_ydata())[1] == 3.0


def test_legend_names_each_thing_once(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    append_rows(tmp_path / "meta_test.csv", _test_rows())

    draw_learning_curves(tmp_path)

    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("training: mean (thin: agents)", "exploring"),
        *("learned objective", "its earlier stages", "DDPG/TD3", "random actions"),
    ]
    assert list(_panels(figures[0])) == ["A", "B", "T"]


def test_many_environments_wrap_and_no_backend_is_chosen(tmp_path: Path, figures: list[Figure]) -> None:
    backend = matplotlib.rcParams._get("backend")  # reading it the public way would choose one
    append_rows(tmp_path / "meta_test.csv", [MetaTestRow(f"env_{i}", "new", 0, x, x, 10) for i in range(5) for x in (0, 1)])
    draw_learning_curves(tmp_path)
    tops = {round(axes.get_position().y1, 3) for axes in _panels(figures[0]).values()}
    assert len(_panels(figures[0])) == 5 and len(tops) == 2  # three and two, not four and one
    assert matplotlib.rcParams._get("backend") is backend


def test_a_method_is_drawn_as_it_is_described(tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "sac", Method("sac", "SAC (own)", "SAC", "#123456"))
    append_rows(tmp_path / "meta_test.csv", [MetaTestRow("T", "sac", 0, x, x) for x in (50, 100)])
    draw_learning_curves(tmp_path)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["SAC (own)"]
    assert [line.get_color() for line in figures[0].axes[0].get_lines()] == ["#123456"]
