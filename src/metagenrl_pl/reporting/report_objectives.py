"""The part of a report that shows what learned objectives do, beside REINFORCE (GAE) and an untrained objective."""

import math
from collections.abc import Mapping

from metagenrl_pl.common.messages import one_line
from metagenrl_pl.common.streams import derive_seed
from metagenrl_pl.objectives import CriticObjective, LearnedMixture, Objective, ParametricObjective, Reinforce
from metagenrl_pl.objectives.parametric import UnknownObjectiveError
from metagenrl_pl.reporting.figures import (
    PROBES,
    action_gradient_map,
    credit_by_delay_figure,
    credit_figure,
    credit_matrix,
    critic_share_by_step,
    critic_share_figure,
    gradient_figure,
    similarity,
)
from metagenrl_pl.reporting.plots import RUN_COLOURS
from metagenrl_pl.reporting.report_parts import Gallery, Part, Pictures, Table, Words, format_number
from metagenrl_pl.results.methods import CRITIC, REINFORCE, UNTRAINED
from metagenrl_pl.results.variants import Variant

_MOST = 4  # learned objectives that are drawn
_PAPERS_WINDOW_LENGTH = 20
_CREDIT = (
    "How dL/da at step t changes (median over windows) when one standard deviation is added to the reward at step k, the policy being "
    "0.5 above the replayed action: red pulls it back to what was done. An objective that looks ahead is coloured above the diagonal. "
    "Below it REINFORCE is zero; a learned objective need not be, since the LSTM carries an action into the losses of earlier steps."
)
_SHARE = (
    "A mixture weighs DDPG/TD3's gradient and REINFORCE's, step by step: DDPG/TD3's weight over the sum of both, mean over windows. "
    "Above 1/2 it trusts the critic more than the returns."
)
_COSINES = (
    "1: the same up to its scale; 0: unrelated; -1: the opposite. By dQ/da the cosine is with DDPG/TD3's picture. The last "
    "column compares each objective's credit over time with itself, asked about other windows: far below 1, its picture is mostly noise."
)


def objectives_parts(variant: Variant, gallery: Gallery, anchor: str) -> list[Part]:
    """Pictures of the objectives in the run folders of a variant; nothing if there is none.

    Raises:
        ValueError: an objective that cannot be read.
    """
    paths = {
        f"seed {run.origin.seed}": run.folder / "objective.safetensors"
        for run in variant.runs
        if run.origin is not None and (run.folder / "objective.safetensors").exists()
    }
    if not paths:
        return []
    try:
        learned = {name: ParametricObjective.load(path) for name, path in list(paths.items())[:_MOST]}
    except UnknownObjectiveError as error:
        return [Words(f"Objectives are not drawn: {one_line(error)}")]
    settings = next(run.origin.settings for run in variant.runs if run.origin is not None)
    first = next(iter(learned.values()))
    objectives: dict[str, Objective] = {
        REINFORCE.short_label: Reinforce(discount=float(settings.get("agent.discount", 0.99))),
        UNTRAINED.short_label: type(first)(**first.architecture, seed=derive_seed(0, "untrained objective")),  # as in meta-tests
        **learned,
    }
    num_steps = next((run.window_length for run in variant.runs if run.window_length), _PAPERS_WINDOW_LENGTH)
    left_out = f" The first {_MOST} of {len(paths)} are drawn." if len(paths) > _MOST else ""
    parts: list[Part] = [
        Words(
            f"Every objective is asked about the same windows of {num_steps} steps with one action dimension, made by hand: standardised "
            "noise as rewards and values, in which one thing at a time is varied; dQ/da is 0 but where it is varied. Policies step against "
            "dL/da: where it is positive (red) the action is pushed down, where it is negative (blue) up. So REINFORCE pulls the policy "
            f"to replayed actions of high reward and away from those of low. Every picture has its own scale.{left_out}",
            title="What the objective has learned",
            is_dim=False,
        )
    ]
    cosines: dict[str, list[str]] = {name: [] for name in objectives}
    probes = {probe: meaning for probe, meaning in PROBES.items() if probe != "critic_gradient" or first.needs_critic_gradient}
    for probe, meaning in probes.items():
        # REINFORCE does not look at the critic's gradient; DDPG/TD3 looks at nothing else.
        looking = {name: objective for name, objective in objectives.items() if objective.needs_critic_gradient}
        asked = {CRITIC.short_label: CriticObjective(), **looking} if probe == "critic_gradient" else objectives
        reference = next(iter(asked))
        maps = {name: action_gradient_map(objective, probe, num_steps) for name, objective in asked.items()}
        pictures = []
        for name, of_objective in maps.items():
            if name in cosines:
                cosines[name].append(_cosine_text(similarity(of_objective.gradient, maps[reference].gradient)))
            figure = gradient_figure(of_objective, probe, _title(name, learned))
            pictures.append(
                gallery.add(f"{anchor}_gradient_{probe}_{name}", figure, f"dL/da of {name} by {meaning} and distance")
            )
        parts.append(Pictures(pictures, f"dL/da by the {meaning}, mean over windows", is_small=True))
    colours = {method.short_label: method.colour for method in (REINFORCE, UNTRAINED)}
    colours |= dict(zip(learned, RUN_COLOURS, strict=False))
    mixtures = {name: one for name, one in objectives.items() if isinstance(one, LearnedMixture)}
    if mixtures:
        shares = {name: critic_share_by_step(mixture, num_steps) for name, mixture in mixtures.items()}
        picture = gallery.add(f"{anchor}_critic_share", critic_share_figure(shares, colours), "DDPG/TD3's share of the weights")
        parts.append(Pictures([picture], "Trust in the critic", _SHARE, is_small=True))
    matrices = {name: credit_matrix(objective, num_steps) for name, objective in objectives.items()}
    pictures = []
    for name, matrix in matrices.items():
        again = credit_matrix(objectives[name], num_steps, seed=1)
        cosines[name] += [_cosine_text(similarity(matrix, other)) for other in (matrices[REINFORCE.short_label], again)]
        figure = credit_figure(matrix, _title(name, learned))
        pictures.append(gallery.add(f"{anchor}_credit_{name}", figure, f"Credit over time of {name}"))
    pictures.append(gallery.add(f"{anchor}_credit_by_delay", credit_by_delay_figure(matrices, colours), "Credit by delay"))
    header = ["cosine with REINFORCE's picture", *probes.values(), "credit over time", "credit with other noise"]
    rows = [[_title(name, learned), *cells] for name, cells in cosines.items() if name != REINFORCE.short_label]
    parts.append(Pictures(pictures, "Credit over time", _CREDIT, is_small=True))
    parts.append(Table(header, rows, caption=_COSINES))
    return parts


def _title(name: str, learned: Mapping[str, Objective]) -> str:
    return f"learned, {name}" if name in learned else name


def _cosine_text(cosine: float) -> str:
    return "-" if math.isnan(cosine) else format_number(cosine)
