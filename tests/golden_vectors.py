"""How far the answers in the golden vectors may be off themselves."""

from __future__ import annotations

from typing import Final

from lstmcore.precision import get_precision

#: The share of a float64 budget that an evaluation in float64 may use: what right ones use at most (0.46 in the
#: experiment of docs/conformance.md).
SHARE: Final = 0.5


def allowed(precision: str, budget: float) -> float:
    """What the arithmetic of the answers, float64, may lose of an array with that budget in that precision."""
    epsilon = get_precision(get_precision(precision).compute).epsilon
    return SHARE * budget * get_precision("float64").epsilon / epsilon
