"""What a report says in numbers and words about meta-tests: scores, probabilities of improvement, returns."""

from collections.abc import Iterable, Sequence

from metagenrl_pl.reporting.report_parts import Table, Words, format_interval, format_number
from metagenrl_pl.results.methods import LEARNED, Method, find_methods, reference_methods
from metagenrl_pl.results.run_folders import Run
from metagenrl_pl.results.scores import Score, aggregate, improvement, select_normalised
from metagenrl_pl.results.statistics import Interval, mean_interval
from metagenrl_pl.results.variants import Variant

_FEW_RUNS = 5
_LOWEST, _HIGHEST = (method.label for method in reference_methods())
_SCALE = f"{_LOWEST} are 0 and {_HIGHEST} is 1"


def headline(variant: Variant, scores: Sequence[Score]) -> str:
    """The result in words, whatever it is."""
    sentences = []
    sets = _sets(variant, scores)
    for name in ("training", "unseen"):
        part = sets.get(name)
        if part is None:
            sentences.append(f"No {name} environment was tested.")
            continue
        environments = sorted({score.environment for score in part})
        sentence = f"On {name} environments ({', '.join(environments)}) "
        reached = aggregate(select_normalised(part), LEARNED.name, lambda score: score.normalised_final)
        if reached is None:
            sentence += "scores cannot be normalised; "
        else:
            sentence += f"the learned objective scores {format_interval(reached)}, where {_SCALE}; "
        verdicts: dict[str, list[str]] = {}
        for method in _methods(part):
            wins = improvement(part, LEARNED.name, method.name, lambda score: score.final) if method != LEARNED else None
            if wins is not None:
                verdicts.setdefault(_verdict(wins), []).append(method.label)
        sentence += "; ".join(f"{verdict}: {', '.join(others)}" for verdict, others in verdicts.items())
        sentences.append(sentence.rstrip("; ") + ".")
    return " ".join(sentences)


def _verdict(wins: Interval) -> str:
    if wins.low > 0.5:
        return "better than"
    return "worse than" if wins.high < 0.5 else "indistinguishable from"


def normalised_table(variant: Variant, scores: Sequence[Score]) -> Table:
    """Normalised scores of every method, as interquartile means."""
    header, columns = ["method"], []
    for name, part in _sets(variant, scores).items():
        part = select_normalised(part)
        environments = len({score.environment for score in part})
        header += [f"{name}: final return", f"{name}: area", f"{name}: agents"]
        columns.append((part, environments))
    rows = []
    for method in _methods(scores):
        cells = [method.label]
        for part, environments in columns:
            for measure in (lambda score: score.normalised_final, lambda score: score.normalised_area):
                interval = aggregate(part, method.name, measure)
                cells.append(format_interval(interval) if interval else "-")
            own = [score for score in part if score.method == method.name]
            present = len({score.environment for score in own})
            missing = f" ({present} of {environments} environments)" if 0 < present < environments else ""
            cells.append(f"{len(own)}{missing}" if own else "-")
        rows.append(cells)
    caption = (
        f"Interquartile mean over all fresh agents of all environments [95 % stratified bootstrap interval]; {_LOWEST} are 0 and "
        f"{_HIGHEST}'s mean is 1 in each environment. Final: the last evaluation; area: mean of the learning curve. The intervals take "
        f"{_HIGHEST} and {_LOWEST} as known, and the agents that one objective trained as independent, which they are not: they "
        "are too narrow where meta-training seeds are few."
    )
    return Table(header, rows, "Normalised scores", caption, own=LEARNED.label)


def improvement_table(variant: Variant, scores: Sequence[Score]) -> Table:
    """How probable it is that the learned objective is better than each other method."""
    sets = _sets(variant, scores)
    header = ["learned objective against"]
    for name in sets:
        header += [f"{name}: final return", f"{name}: verdict", f"{name}: area"]
    rows, fewest = [], _FEW_RUNS
    for method in _methods(scores):
        if method == LEARNED:
            continue
        cells = [method.label]
        for part in sets.values():
            final, area = (
                improvement(part, LEARNED.name, method.name, measure)
                for measure in (lambda score: score.final, lambda score: score.area)
            )
            cells += [format_interval(final), _verdict(final)] if final else ["-", "-"]
            cells.append(format_interval(area) if area else "-")
            for environment in {score.environment for score in part}:
                for one in (LEARNED.name, method.name):
                    number_of = sum(score.method == one and score.environment == environment for score in part)
                    fewest = min(fewest, number_of or fewest)
        rows.append([cell.replace(" than", "").replace(" from", "") for cell in cells])
    caption = (
        "Probability that a fresh agent trained by the learned objective ends above one of the other method, the mean over "
        "environments [95 % stratified bootstrap interval]; 0.5 is a draw. The two are statistically "
        "indistinguishable where the interval holds 0.5."
    )
    if fewest < _FEW_RUNS:
        caption += (
            f" Some environments have {fewest} agents of a method: so few make bootstrap intervals too narrow, and one without "
            "width only says that no agent of the one beats one of the other."
        )
    return Table(header, rows, "Probability of improvement", caption)


def objectives_table(variant: Variant, scores: Sequence[Score]) -> Table | Words:
    """Each learned objective by itself: how much meta-training seeds differ."""
    seeds = sorted({score.meta_training_seed for score in scores if score.meta_training_seed is not None})
    if len(seeds) < 2:
        return Words("One meta-training seed: how much objectives differ is not known.")
    sets = {name: select_normalised(part) for name, part in _sets(variant, scores).items()}
    rows = []
    for seed in seeds:
        cells = [f"meta-training seed {seed}"]
        for part in sets.values():
            own = [score for score in part if score.meta_training_seed == seed and score.method == LEARNED.name]
            interval = aggregate(own, LEARNED.name, lambda score: score.normalised_final)
            cells.append(f"{format_number(interval.mean)} ({len(own)} agents)" if interval else "-")
        rows.append(cells)
    caption = "Interquartile mean of the normalised final return of the agents that each objective trained."
    return Table(["objective", *sets], rows, "Each learned objective", caption)


def returns_table(scores: Sequence[Score], training: Sequence[str] = ()) -> Table:
    """Returns of every method in every environment, as they are."""
    environments = sorted({score.environment for score in scores}, key=lambda name: (name not in training, name))
    header = ["method", *(f"{name}{' (training)' if name in training else ''}" for name in environments)]
    rows = []
    for method in _methods(scores):
        cells = [method.label]
        for environment in environments:
            returns = [score.final for score in scores if (score.environment, score.method) == (environment, method.name)]
            largest = max((abs(score.final) for score in scores if score.environment == environment), default=0.0)
            cells.append(_return_text(returns, 0 if largest >= 1000 else 1 if largest >= 10 else 2))
        rows.append(cells)
    at = ", ".join(f"{name} {max(score.env_steps for score in scores if score.environment == name):,}" for name in environments)
    caption = f"Mean ± half-width of its 95 % Student-t interval (number of agents), after env steps: {at}."
    return Table(header, rows, "Returns", caption, own=LEARNED.label)


def _return_text(returns: Sequence[float], decimals: int) -> str:
    if not returns:
        return "-"
    try:
        interval = mean_interval(returns)
    except ValueError:  # not finite
        return f"diverged ({len(returns)})"
    half_width = f" ± {interval.high - interval.mean:,.{decimals}f}" if len(returns) > 1 else ""
    return f"{interval.mean:,.{decimals}f}{half_width} ({len(returns)})"


def runs_table(runs: Sequence[Run]) -> Table:
    """Where the numbers come from."""
    header = ["run", "meta-trained on", "agents", "env steps per agent", "seed", "commit", "methods", "tested on", "env steps"]
    rows = []
    for run in runs:
        origin = run.origin
        made = ["-"] * 5
        if origin is not None:
            environments = ", ".join(origin.training_environments)
            agents = str(origin.settings.get("population.size", "?"))
            made = [environments, agents, f"{run.stage:,}", str(origin.seed), origin.commit[:7] or "?"]
        methods = ", ".join(method.name for method in find_methods(row.method for row in run.rows))
        tested = [
            methods,
            ", ".join(sorted({row.environment for row in run.rows})),
            f"{max(row.env_steps for row in run.rows):,}",
        ]
        rows.append([run.name, *made, *tested])
    caption = "Commit: of the code that meta-trained the objective, as its card names it. Env steps: of each agent."
    return Table(header, rows, caption=caption, is_text=True)


def _sets(variant: Variant, scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores in environments that the variant's objectives were meta-trained in, and in the others; none of what was not tested."""
    sets: dict[str, list[Score]] = {}
    for score in scores:
        sets.setdefault("training" if score.environment in variant.training_environments else "unseen", []).append(score)
    return dict(sorted(sets.items()))


def _methods(scores: Iterable[Score]) -> list[Method]:
    return find_methods(score.method for score in scores)
