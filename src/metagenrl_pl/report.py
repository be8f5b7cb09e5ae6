"""One page that tells what runs have shown: `python -m metagenrl_pl.report RUN_FOLDER [RUN_FOLDER ...] [--out report.html]`.

The page stands alone: pictures are inside, nothing is loaded from elsewhere. It is the same for the same folders.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from metagenrl_pl.files import atomic_write
from metagenrl_pl.messages import one_line
from metagenrl_pl.plots import Curve, agent_curves, meta_test_figure, stages_figure, training_figure
from metagenrl_pl.regimes import Regime, regimes_of
from metagenrl_pl.report_objectives import objectives_section
from metagenrl_pl.report_parts import Gallery, bullet_list, interval_text, number, table
from metagenrl_pl.results import MetaTestRow, method_name, methods_in_order
from metagenrl_pl.run_folders import Run, find_runs
from metagenrl_pl.scores import (
    LearningCurve,
    Score,
    aggregate,
    improvement,
    learning_curves,
    normalised,
    raw_scores,
    regime_curves,
    scores_of,
)
from metagenrl_pl.stats import Interval, mean_interval

_TITLE = "MetaGenRL: what was learned"
_FEW_RUNS = 5


def write_report(paths: Sequence[Path], out: Path, figures: Path | None = None) -> None:
    """Write the page.

    Args:
        paths: run folders, or folders that hold some.
        out: the HTML file.
        figures: folder for the pictures as PNG files; None for none.

    Raises:
        ValueError: what `find_runs` and `scores_of` refuse.
    """
    page, gallery = render(paths)
    with atomic_write(out) as file:
        file.write(page.encode())
    if figures is not None:
        gallery.save(figures)


def render(paths: Sequence[Path]) -> tuple[str, Gallery]:
    """The page as HTML, and its pictures.

    Raises:
        ValueError: as `write_report`.
    """
    runs, notes = find_runs(paths)
    regimes = regimes_of(runs)
    gallery = Gallery()
    summary, sections, covered = [], [], set()
    for index, regime in enumerate(regimes):
        curves, more = regime_curves(regime)
        scores, still_more = scores_of(curves)
        notes += [note for note in [*more, *still_more] if note not in notes]
        covered |= {score.environment for score in scores}
        headline = _headline(regime, scores)
        summary.append(f"<p><strong>{escape(regime.title)}.</strong> {headline}</p>")
        anchor = f"regime-{index}"
        sections.append(
            f'<h2 id="{anchor}">{escape(regime.title)}</h2>\n{_regime_section(regime, curves, scores, gallery, anchor)}'
        )
    alone = [curve for curve in learning_curves([], runs)[0] if curve.environment not in covered]
    if alone:
        scores, more = raw_scores(alone)
        notes += more
        sections.append(
            '<h2 id="alone">Environments without a learned objective</h2>\n<p>Tested with other methods alone.</p>\n'
            + _raw_table(scores)
            + _curves_section(alone, gallery, "alone")
        )
    if not regimes:
        summary.append("<p>None of these runs has tested a learned objective.</p>")
    body = "\n".join([_notes(notes), _runs_section(runs), *sections, _METHOD])
    template = Template(files("metagenrl_pl").joinpath("report.html").read_text())
    return template.substitute(title=_TITLE, summary="\n".join(summary), body=body), gallery


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. A user's mistake is one line, `error: ...`, and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m metagenrl_pl.report", description="One HTML page that tells what meta-training and meta-tests have shown."
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold run folders")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="save its pictures here as PNG files as well")
    given = parser.parse_args(arguments)
    try:
        write_report(given.runs, given.out, given.figures)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"Report: {given.out}")


def _regime_section(
    regime: Regime, curves: Sequence[LearningCurve], scores: Sequence[Score], gallery: Gallery, anchor: str
) -> str:
    return "\n".join(
        [
            _settings(regime),
            _normalised_table(regime, scores),
            _improvement_table(regime, scores),
            _objectives_table(regime, scores),
            _raw_table(scores, regime.training_environments),
            _curves_section(curves, gallery, anchor, regime.training_environments),
            _progress_section(regime, gallery, anchor),
            _stages_section(regime, curves, gallery, anchor),
            objectives_section(regime, gallery, anchor),
        ]
    )


def _sets(regime: Regime, scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores in environments that the regime's objectives were meta-trained in, and in the others; none of what was not tested."""
    sets: dict[str, list[Score]] = {}
    for score in scores:
        sets.setdefault("training" if score.environment in regime.training_environments else "unseen", []).append(score)
    return dict(sorted(sets.items()))


def _headline(regime: Regime, scores: Sequence[Score]) -> str:
    """The result in words, whatever it is."""
    sentences = []
    sets = _sets(regime, scores)
    for name in ("training", "unseen"):
        part = sets.get(name)
        if part is None:
            sentences.append(f"No {name} environment was tested.")
            continue
        environments = sorted({score.environment for score in part})
        sentence = f"On {name} environments ({escape(', '.join(environments))}) "
        reached = aggregate(normalised(part), "learned", lambda score: score.normalised_final)
        if reached is None:
            sentence += "scores cannot be normalised; "
        else:
            sentence += f"the learned objective scores {interval_text(reached)}, where random actions are 0 and DDPG/TD3 is 1; "
        verdicts: dict[str, list[str]] = {}
        for method in _methods(part):
            wins = improvement(part, "learned", method, lambda score: score.final) if method != "learned" else None
            if wins is not None:
                verdicts.setdefault(_verdict(wins), []).append(escape(method_name(method)))
        sentence += "; ".join(f"{verdict}: {', '.join(others)}" for verdict, others in verdicts.items())
        sentences.append(sentence.rstrip("; ") + ".")
    return " ".join(sentences)


def _verdict(wins: Interval) -> str:
    if wins.low > 0.5:
        return "better than"
    return "worse than" if wins.high < 0.5 else "not told apart from"


def _normalised_table(regime: Regime, scores: Sequence[Score]) -> str:
    header, columns = ["method"], []
    for name, part in _sets(regime, scores).items():
        part = normalised(part)
        environments = len({score.environment for score in part})
        header += [f"{name}: final return", f"{name}: area", f"{name}: agents"]
        columns.append((part, environments))
    rows = []
    for method in _methods(scores):
        cells = [escape(method_name(method))]
        for part, environments in columns:
            for measure in (lambda score: score.normalised_final, lambda score: score.normalised_area):
                interval = aggregate(part, method, measure)
                cells.append(interval_text(interval) if interval else "-")
            own = [score for score in part if score.method == method]
            present = len({score.environment for score in own})
            missing = f" ({present} of {environments} environments)" if 0 < present < environments else ""
            cells.append(f"{len(own)}{missing}" if own else "-")
        rows.append(cells)
    caption = (
        "Interquartile mean over all fresh agents of all environments [95 % stratified bootstrap interval]; random actions are 0 and "
        "DDPG/TD3's mean is 1 in each environment. Final: the last evaluation; area: mean of the learning curve. The intervals take "
        "DDPG/TD3 and random actions as known, and the agents that one objective trained as independent, which they are not: they "
        "are too narrow where meta-training seeds are few."
    )
    return "<h3>Normalised scores</h3>\n" + table(header, rows, caption, own=method_name("learned"))


def _improvement_table(regime: Regime, scores: Sequence[Score]) -> str:
    sets = _sets(regime, scores)
    header = ["learned objective against"]
    for name in sets:
        header += [f"{name}: final return", f"{name}: verdict", f"{name}: area"]
    rows, fewest = [], _FEW_RUNS
    for method in _methods(scores):
        if method == "learned":
            continue
        cells = [escape(method_name(method))]
        for part in sets.values():
            final, area = (
                improvement(part, "learned", method, measure) for measure in (lambda score: score.final, lambda score: score.area)
            )
            cells += [interval_text(final), _verdict(final)] if final else ["-", "-"]
            cells.append(interval_text(area) if area else "-")
            for environment in {score.environment for score in part}:
                for one in ("learned", method):
                    number_of = sum(score.method == one and score.environment == environment for score in part)
                    fewest = min(fewest, number_of or fewest)
        rows.append([cell.replace(" than", "").replace(" from", "") for cell in cells])
    caption = (
        "Probability that a fresh agent trained by the learned objective ends above one of the other method, the mean over "
        "environments [95 % stratified bootstrap interval]; 0.5 is a draw. Told apart if the interval leaves 0.5 out."
    )
    if fewest < _FEW_RUNS:
        caption += (
            f" Some environments have {fewest} agents of a method: so few make bootstrap intervals too narrow, and one without "
            "width only says that no agent of the one beats one of the other."
        )
    return "<h3>Probability of improvement</h3>\n" + table(header, rows, caption)


def _objectives_table(regime: Regime, scores: Sequence[Score]) -> str:
    """Each learned objective by itself: how much meta-training seeds differ."""
    seeds = sorted({score.meta_training_seed for score in scores if score.meta_training_seed is not None})
    if len(seeds) < 2:
        return '<p class="dim">One meta-training seed: how much objectives differ is not known.</p>'
    sets = {name: normalised(part) for name, part in _sets(regime, scores).items()}
    rows = []
    for seed in seeds:
        cells = [f"meta-training seed {seed}"]
        for part in sets.values():
            own = [score for score in part if score.meta_training_seed == seed and score.method == "learned"]
            interval = aggregate(own, "learned", lambda score: score.normalised_final)
            cells.append(f"{number(interval.mean)} ({len(own)} agents)" if interval else "-")
        rows.append(cells)
    caption = "Interquartile mean of the normalised final return of the agents that each objective trained."
    return "<h3>Each learned objective</h3>\n" + table(["objective", *sets], rows, caption)


def _raw_table(scores: Sequence[Score], training: Sequence[str] = ()) -> str:
    environments = sorted({score.environment for score in scores}, key=lambda name: (name not in training, name))
    header = ["method", *(f"{name}{' (training)' if name in training else ''}" for name in environments)]
    rows = []
    for method in _methods(scores):
        cells = [escape(method_name(method))]
        for environment in environments:
            returns = [score.final for score in scores if (score.environment, score.method) == (environment, method)]
            largest = max((abs(score.final) for score in scores if score.environment == environment), default=0.0)
            cells.append(_return_text(returns, 0 if largest >= 1000 else 1 if largest >= 10 else 2))
        rows.append(cells)
    at = ", ".join(
        f"{escape(name)} {max(score.env_steps for score in scores if score.environment == name):,}" for name in environments
    )
    caption = f"Mean ± half-width of its 95 % Student-t interval (number of agents), after env steps: {at}."
    return "<h3>Returns</h3>\n" + table(header, rows, caption, own=method_name("learned"))


def _return_text(returns: Sequence[float], decimals: int) -> str:
    if not returns:
        return "-"
    try:
        interval = mean_interval(returns)
    except ValueError:  # not finite
        return f"diverged ({len(returns)})"
    half_width = f" ± {interval.high - interval.mean:,.{decimals}f}" if len(returns) > 1 else ""
    return f"{interval.mean:,.{decimals}f}{half_width} ({len(returns)})"


def _curves_section(curves: Sequence[LearningCurve], gallery: Gallery, anchor: str, training: Sequence[str] = ()) -> str:
    pictures = []
    for environment in sorted({curve.environment for curve in curves}, key=lambda name: (name not in training, name)):
        rows = [
            MetaTestRow(environment, curve.method, curve.seed, env_steps, value)
            for curve in curves
            if curve.environment == environment
            for env_steps, value in zip(curve.env_steps, curve.returns, strict=True)
        ]
        title = f"{environment} ({'training' if environment in training else 'unseen'})" if training else environment
        pictures.append(
            gallery.add(f"{anchor}_curves_{environment}", meta_test_figure(title, rows), f"Learning curves on {environment}")
        )
    caption = (
        "Fresh agents, noise-free policy; a line is the mean over agents, shaded its 95 % interval (which may leave the picture); random "
        "actions are dashed."
    )
    return f'<h3>Learning curves</h3>\n<p class="dim">{caption}</p>\n' + gallery.grid(pictures)


def _progress_section(regime: Regime, gallery: Gallery, anchor: str) -> str:
    metrics = {
        run.name: agent_curves(run.folder / "metrics.csv", ("episode_return", "evaluation_return", "agreement"))
        for run in regime.runs
        if run.meta_trains
    }
    pictures = []
    for kind, label in (("return", "return while exploring"), ("agreement", "agreement with the critic")):
        for environment in sorted({name for of_run in metrics.values() for name in of_run}):
            curves: dict[str, Sequence[Curve]] = {}
            for name, of_run in metrics.items():
                kinds = of_run.get(environment, {})
                own = (
                    kinds.get("episode_return") or kinds.get("evaluation_return") if kind == "return" else kinds.get("agreement")
                )
                if own:
                    curves[name] = own
            if curves:
                figure = training_figure(environment, curves, label)
                pictures.append(
                    gallery.add(f"{anchor}_{kind}_{environment}", figure, f"{label} of the population on {environment}")
                )
    if not pictures:
        return ""
    caption = (
        "The population during meta-training: thin lines are agents, thick ones the mean of a run. Agreement is the cosine between the "
        "objective's action gradient and the critic's: 1 where both push the policy the same way."
    )
    return f'<h3>Meta-training</h3>\n<p class="dim">{caption}</p>\n' + gallery.grid(pictures)


def _stages_section(regime: Regime, curves: Sequence[LearningCurve], gallery: Gallery, anchor: str) -> str:
    rows = [row for run in regime.runs for row in run.rows if row.method == "learned"]
    pictures = []
    for environment in sorted({row.environment for row in rows}):
        own = [row for row in rows if row.environment == environment]
        if len({row.meta_training_env_steps for row in own}) < 2:
            continue
        own += [
            MetaTestRow(environment, "untrained", curve.seed, env_steps, value, 0)
            for curve in curves
            if (curve.environment, curve.method) == (environment, "untrained")
            for env_steps, value in zip(curve.env_steps, curve.returns, strict=True)
        ]
        figure = stages_figure(environment, own)
        pictures.append(gallery.add(f"{anchor}_stages_{environment}", figure, f"Stages of the objective on {environment}"))
    if not pictures:
        return ""
    caption = (
        "Fresh agents trained by the objective as it was after so many env steps of meta-training per agent (the paper's figure 4); "
        "mean over agents, shaded its 95 % interval."
    )
    return f'<h3>Stages of meta-training</h3>\n<p class="dim">{caption}</p>\n' + gallery.grid(pictures)


def _settings(regime: Regime) -> str:
    settings: Mapping[str, object] = next((run.origin.settings for run in regime.runs if run.origin), {})
    items = [f"<code>{escape(f'{key}={value}')}</code>" for key, value in sorted(settings.items()) if not key.endswith("_")]
    return f"<details><summary>Settings</summary>{bullet_list(items)}</details>" if items else ""


def _runs_section(runs: Sequence[Run]) -> str:
    header = ["run", "meta-trained on", "agents", "env steps per agent", "seed", "commit", "methods", "tested on", "env steps"]
    rows = []
    for run in runs:
        origin = run.origin
        made = ["-"] * 5
        if origin is not None:
            environments = ", ".join(origin.training_environments)
            agents = str(origin.settings.get("population.size", "?"))
            made = [environments, agents, f"{run.stage:,}", str(origin.seed), origin.commit[:7] or "?"]
        methods = ", ".join(methods_in_order(run.rows))
        tested = [
            methods,
            ", ".join(sorted({row.environment for row in run.rows})),
            f"{max(row.env_steps for row in run.rows):,}",
        ]
        rows.append([escape(cell) for cell in (run.name, *made, *tested)])
    caption = "Commit: of the code that meta-trained the objective, as its card names it. Env steps: of each agent."
    return '<h2 id="runs">What was run</h2>\n' + table(header, rows, caption, is_text=True)


def _notes(notes: Iterable[str]) -> str:
    items = [escape(note) for note in notes]
    return f'<div class="notes"><strong>Mind</strong>{bullet_list(items)}</div>' if items else ""


def _methods(scores: Iterable[Score]) -> list[str]:
    return methods_in_order(MetaTestRow(score.environment, score.method, score.seed, 0, 0.0) for score in scores)


_METHOD = """<h2 id="method">How the numbers are made</h2>
<ul>
<li>An environment is <em>training</em> if the objective was meta-trained in it, else <em>unseen</em>. Agents are fresh in both.</li>
<li>All methods of an environment are judged at the same evaluations: those that each of them has.</li>
<li>Normalised: (return - random actions) / (mean of DDPG/TD3 - random actions). The area is the trapezoidal mean of the learning curve
from the first evaluation to the last, normalised by the areas of both.</li>
<li>Interquartile mean, probability of improvement and their percentile bootstrap, stratified by environment: Agarwal et al. 2021,
arXiv 2108.13264. Below four agents an interquartile mean is a mean.</li>
<li>Methods without meta-training are the same runs beside every objective and count once.</li>
</ul>"""


if __name__ == "__main__":
    main()
