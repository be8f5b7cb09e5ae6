"""Objectives that a meta-test compares with: which ones are possible, and under which names."""

from metagenrl_pl.common.messages import one_line
from metagenrl_pl.objectives import Objective
from metagenrl_pl.objectives.trial import check_loss
from metagenrl_pl.results.methods import METHODS, check_method

_BUILT_IN = [name for name, method in METHODS.items() if method.is_built_in]
"""Methods that a meta-test tests by itself. No baseline may have their names."""


def check_baseline(method: str, baseline: Objective | None) -> None:
    """Reject a baseline that has the name of another method or a loss that cannot train policies.

    Raises:
        ValueError: names its key below `callbacks.meta_test`, and what is valid.
    """
    if method in _BUILT_IN:
        raise ValueError(
            f"baselines.{method}: a baseline cannot be called {', '.join(_BUILT_IN[:-1])} or {_BUILT_IN[-1]}, since a meta-test "
            "already tests these; valid is a name of your own"
        )
    if baseline is None:
        return
    if not isinstance(baseline, Objective):
        raise ValueError(f"baselines.{method} must be an objective, or null for none, got {baseline!r}")
    setting = f"baselines.{method}={type(baseline).__module__}.{type(baseline).__qualname__}"
    try:
        check_method(method, baseline)
        check_loss(baseline)
    except ValueError as error:
        raise ValueError(f"{setting}: {one_line(error)}") from error
