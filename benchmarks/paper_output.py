"""What `paper.py` writes from the runs that have ended: the table and the figures, ours beside the paper's."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metagenrl_pl.common.files import atomic_write
from metagenrl_pl.reporting.numbers import format_interval, format_number
from metagenrl_pl.results.methods import LEARNED
from metagenrl_pl.results.rows import MetaTestRow, newest_stage, read_rows
from metagenrl_pl.results.statistics import interquartile_mean

COLUMNS = {"HalfCheetah-v5": "Cheetah", "Hopper-v5": "Hopper", "LunarLanderContinuous-v3": "Lunar"}


_MIN_AGENTS = 6


class Row(NamedTuple):
    """A row of Table 1.

    Args:
        regime: what is meta-trained on, the name of an `experiment=paper/...`; empty without meta-training.
        method: its name in `meta_test.csv`.
        label: in the table.
        paper: the paper's mean returns, in the order of `COLUMNS`; None for a row that it lacks.
    """

    regime: str
    method: str
    label: str
    paper: tuple[int, int, int] | None


TABLE_1 = [
    Row("cheetah_hopper", "learned", "MetaGenRL", (2185, 2439, 18)),
    Row("cheetah_hopper", "untrained", "MetaGenRL with untrained weights", None),
    Row("cheetah_hopper", "evolution", "EPG (ours: evolution)", (-571, 20, -540)),
    Row("cheetah_hopper", "rl2", "RL2", (5180, 289, -479)),
    Row("lunar_cheetah", "learned", "MetaGenRL", (2552, 2363, 258)),
    Row("lunar_cheetah", "evolution", "EPG (ours: evolution)", (-701, 8, -707)),
    Row("lunar_cheetah", "rl2", "RL2", (2218, 5, 283)),
    Row("lunar_hopper_walker_ant", "learned", "MetaGenRL", (3106, 2869, 201)),
    Row("cheetah_lunar_walker_ant", "learned", "MetaGenRL", (3331, 2452, -71)),
    Row("cheetah_hopper_walker_ant", "learned", "MetaGenRL", (2541, 2345, -148)),
    Row("", "ppo", "PPO", (1455, 1894, 187)),
    Row("", "critic", "DDPG / TD3", (8315, 2718, 288)),
    Row("", "reinforce", "off-policy REINFORCE (GAE)", (-88, 1804, 168)),
    Row("", "on_policy_reinforce", "on-policy REINFORCE (GAE)", (38, 565, 120)),
    Row("", "random", "random actions", None),
]

FIGURE_3 = [row for row in TABLE_1 if row.regime in ("cheetah_hopper", "") and row.method != "random"]
"""The rows of Table 1 whose learning curves it has. Random actions learn nothing."""

FIGURE_5 = [
    ("paper/lunar_cheetah", "learned_lunar_cheetah", "the paper's"),
    ("figure5/no_lstm", "figure5_no_lstm", "without LSTM"),
    ("figure5/no_time", "figure5_no_time", "without time"),
    ("figure5/no_value", "figure5_no_value", "without values"),
    ("figure5/unbounded", "figure5_unbounded", "unbounded head"),
]
"""Experiment, folder and label of each parametrisation. The paper's has the runs of Table 1."""


def results_of(folder: Path, method: str, all_stages: bool = False) -> dict[str, dict[int, list[list[MetaTestRow]]]]:
    """The learning curves of a row of the table, as rows, by environment and seed of meta-training.

    They are those of the latest objective of each seed, or of its objectives at all stages of meta-training.
    """
    found: dict[str, dict[int, list[list[MetaTestRow]]]] = defaultdict(lambda: defaultdict(list))
    name = LEARNED.name if method == "evolution" else method
    for file in sorted(folder.rglob("meta_test.csv")):
        seed = int(file.parent.name.rpartition("_")[2]) if file.parent.name.startswith("seed_") else 0
        curves: dict[tuple[str, int], list[MetaTestRow]] = defaultdict(list)
        rows = [row for row in read_rows(file) if row.method == name]
        for row in rows if all_stages else newest_stage(rows):
            curves[row.environment, row.seed].append(row)
        for (environment, _), curve in curves.items():
            found[environment][seed].append(sorted(curve, key=lambda row: row.env_steps))
    return found


def folder_of(out: Path, row: Row) -> Path:
    """Where the runs of a row are."""
    if row.regime:
        return out / f"{'learned' if row.method == 'untrained' else row.method}_{row.regime}"
    return out / (row.method if row.method in ("ppo", "on_policy_reinforce") else "hand_made")


def write_table_1(out: Path, num_generations: int) -> Path:
    """Ours beside the paper's: interquartile mean of the final returns with its 95 % interval, and how many agents it stands for.

    An interval of fewer than `_MIN_AGENTS` would be far too narrow, so their returns are shown instead, seed by seed. Agents whose
    return is not finite are counted in the cell and left out of the mean.

    Args:
        out: folder of the runs.
        num_generations: of evolution, each of which ends with one update of the objective.
    """
    lines = [
        "| meta-trained on | method | " + " | ".join(f"{name}, ours | {name}, paper" for name in COLUMNS.values()) + " |",
        "|---|---|" + "---|---|" * len(COLUMNS),
    ]
    for row in TABLE_1:
        results, cells = results_of(folder_of(out, row), row.method), []
        for number, environment in enumerate(COLUMNS):
            of_seeds = results.get(environment, {})
            final = {seed: [curve[-1].episode_return for curve in curves] for seed, curves in of_seeds.items()}
            cells += [_cell(final), f"{row.paper[number]:,}" if row.paper else "-"]
        label = f"{row.label}, {num_generations} updates" if row.method == "evolution" else row.label
        lines.append(f"| {row.regime or 'none'} | {label} | {' | '.join(cells)} |")
    return _write(out / "table1.md", "\n".join(lines) + "\n")


def _cell(of_seeds: Mapping[int, Sequence[float]]) -> str:
    finite = {seed: [value for value in values if math.isfinite(value)] for seed, values in of_seeds.items()}
    finite = {seed: values for seed, values in finite.items() if values}
    num_agents, num_finite = (sum(map(len, values.values())) for values in (of_seeds, finite))
    if not num_agents:
        return "-"
    agents = f"{num_agents} agent{'s' * (num_agents > 1)}" + (f" of {len(finite)} seeds" if len(finite) > 1 else "")
    if not num_finite:
        return f"{agents}, all diverged"
    diverged = f", {num_agents - num_finite} diverged" if num_finite < num_agents else ""
    interval = interquartile_mean([finite])
    if num_finite >= _MIN_AGENTS or num_agents == 1:
        return f"{format_interval(interval, 0)}, {agents}{diverged}"
    returns = "; ".join(", ".join(format_number(value, 0) for value in values) for values in finite.values())
    return f"{format_number(interval.mean, 0)} ({returns}){diverged}"


def write_curves(path: Path, panels: Mapping[str, Mapping[str, Sequence[Sequence[MetaTestRow]]]]) -> Path:
    """Mean learning curves, with thin ones of single agents: a panel for each environment, a colour for each label, one legend below.

    The final returns are printed.
    """
    width = max(4.2 * len(panels), 6.0)  # inches, as all of these
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
    labels = {
        label: f"C{number}" for number, label in enumerate(dict.fromkeys(label for lines in panels.values() for label in lines))
    }
    legend: dict[str, Line2D] = {}
    for axes, (title, lines) in zip(axes_of, panels.items(), strict=True):
        for label, curves in lines.items():
            if not curves:
                continue
            print(f"{title}, {label}: {', '.join(f'{curve[-1].episode_return:,.0f}' for curve in curves)}")
            env_steps = max(([row.env_steps for row in curve] for curve in curves), key=len)
            whole = [curve for curve in curves if [row.env_steps for row in curve] == env_steps]
            returns = np.array([[row.episode_return for row in curve] for curve in whole])
            finite = np.isfinite(returns).all(1)
            axes.plot(env_steps, returns.T, color=labels[label], alpha=0.3, linewidth=0.6)
            mean = returns[finite].mean(0) if finite.any() else np.full(len(env_steps), np.nan)
            (line,) = axes.plot(env_steps, mean, color=labels[label], linewidth=2)
            legend.setdefault(f"{label} ({_agents(len(whole), int((~finite).sum()), len(curves) - len(whole))})", line)
        axes.set(title=title, xlabel="env steps of the fresh agent", ylabel="return")
        axes.spines[["top", "right"]].set_visible(False)
    if legend:
        figure.legend(
            legend.values(), legend.keys(), loc="outside lower center", ncols=int(width / 2.8), fontsize=8, frameon=False
        )
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path


def _agents(num: int, num_diverged: int, num_others: int) -> str:
    """How many agents a mean curve stands for, and which are not part of it."""
    diverged = f", {num_diverged} diverged" if num_diverged else ""
    return f"{num} agents{diverged}" + (f", {num_others} tested at other env steps" if num_others else "")


def write_figure_3(out: Path) -> Path:
    """Learning curves in a seen and an unseen environment: of the objective that was meta-trained on Cheetah and Hopper, and the others."""
    panels: dict[str, dict[str, list[list[MetaTestRow]]]] = {}
    for environment, title in (("Hopper-v5", "Hopper, seen in meta-training"), ("LunarLanderContinuous-v3", "Lunar, unseen")):
        panels[title] = {
            row.label: _all_agents(results_of(folder_of(out, row), row.method).get(environment, {})) for row in FIGURE_3
        }
    return write_curves(out / "figure3.png", panels)


def write_figure_4(out: Path) -> Path:
    """Fresh agents on Hopper, by the objective at five stages of meta-training."""
    stages: dict[str, list[list[MetaTestRow]]] = defaultdict(list)
    for curves in results_of(out / "figure4", "learned", all_stages=True).get("Hopper-v5", {}).values():
        for rows in curves:
            for stage in sorted({row.meta_training_env_steps or 0 for row in rows}):
                stages[f"after {stage:,} env steps"].append([row for row in rows if row.meta_training_env_steps == stage])
    return write_curves(out / "figure4.png", {"Hopper, unseen": stages})


def write_figure_5(out: Path) -> Path:
    """Fresh agents on Cheetah, by objectives that see or can express less."""
    lines = {label: _all_agents(results_of(out / folder, "learned").get("HalfCheetah-v5", {})) for _, folder, label in FIGURE_5}
    return write_curves(out / "figure5.png", {"Cheetah, seen in meta-training": lines})


def _all_agents(of_seeds: Mapping[int, Iterable[list[MetaTestRow]]]) -> list[list[MetaTestRow]]:
    return [curve for curves in of_seeds.values() for curve in curves]


def _write(path: Path, text: str) -> Path:
    with atomic_write(path) as file:
        file.write(text.encode())
    return path
