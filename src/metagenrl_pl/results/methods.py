"""Names of methods in results, by which no other objective's results may go."""

from metagenrl_pl.objectives import CriticObjective, Objective, ParametricObjective, Reinforce

_KINDS: dict[str, type] = {
    "learned": ParametricObjective,
    "critic": CriticObjective,
    "critic_both": CriticObjective,
    "reinforce": Reinforce,
}


def check_method(method: str | None, objective: Objective) -> None:
    """Refuse a name that belongs to an objective of another kind.

    Raises:
        ValueError: says whose name it is.
    """
    kind: type = _KINDS.get(method or "", Objective)
    if not isinstance(objective, kind):
        raise ValueError(
            f"{method} is the name of {kind.__name__}, not of {type(objective).__name__}; valid is a name of your own"
        )
    followed = {"critic": "first", "critic_both": "both"}.get(method or "")
    if followed is not None and objective.critic_gradient_of != followed:
        raise ValueError(
            f"{method} is the name of DDPG/TD3 with critic_gradient_of={followed}, not {objective.critic_gradient_of}; valid is "
            f"{'critic_both' if followed == 'first' else 'critic'}, or a name of your own"
        )
