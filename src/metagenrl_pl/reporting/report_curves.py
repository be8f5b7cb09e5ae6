"""The curves of a report: of fresh agents, of meta-training, of the objective's stages."""

from collections.abc import Sequence

from metagenrl_pl.reporting.plots import Curve, agent_curves, meta_test_figure, stages_figure, training_figure
from metagenrl_pl.reporting.report_parts import Gallery, Pictures
from metagenrl_pl.results.methods import LEARNED, UNTRAINED
from metagenrl_pl.results.rows import MetaTestRow
from metagenrl_pl.results.scores import LearningCurve
from metagenrl_pl.results.variants import Variant


def learning_curve_pictures(
    curves: Sequence[LearningCurve], gallery: Gallery, anchor: str, training: Sequence[str] = ()
) -> Pictures:
    """Learning curves of all methods, environment by environment."""
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
    return Pictures(pictures, "Learning curves", caption)


def meta_training_pictures(variant: Variant, gallery: Gallery, anchor: str) -> list[Pictures]:
    """The population while the objective was learned; nothing if no run has kept it."""
    metrics = {
        run.name: agent_curves(run.folder / "metrics.csv", ("episode_return", "evaluation_return", "agreement"))
        for run in variant.runs
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
    caption = (
        "The population during meta-training: thin lines are agents, thick ones the mean of a run. Agreement is the cosine between the "
        "objective's action gradient and the critic's: 1 where both push the policy the same way."
    )
    return [Pictures(pictures, "Meta-training", caption)] if pictures else []


def stages_pictures(variant: Variant, curves: Sequence[LearningCurve], gallery: Gallery, anchor: str) -> list[Pictures]:
    """Learning curves with the objective as it was at stages of meta-training; nothing if there is one stage alone."""
    rows = [row for run in variant.runs for row in run.rows if row.method == LEARNED.name]
    pictures = []
    for environment in sorted({row.environment for row in rows}):
        own = [row for row in rows if row.environment == environment]
        if len({row.meta_training_env_steps for row in own}) < 2:
            continue
        own += [
            MetaTestRow(environment, UNTRAINED.name, curve.seed, env_steps, value, 0)
            for curve in curves
            if (curve.environment, curve.method) == (environment, UNTRAINED.name)
            for env_steps, value in zip(curve.env_steps, curve.returns, strict=True)
        ]
        figure = stages_figure(environment, own)
        pictures.append(gallery.add(f"{anchor}_stages_{environment}", figure, f"Stages of the objective on {environment}"))
    caption = (
        "Fresh agents trained by the objective as it was after so many env steps of meta-training per agent (the paper's figure 4); "
        "mean over agents, shaded its 95 % interval."
    )
    return [Pictures(pictures, "Stages of meta-training", caption)] if pictures else []
