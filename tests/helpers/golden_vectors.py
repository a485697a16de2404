"""How far the answers in the golden vectors may be off themselves."""

from __future__ import annotations

from typing import Final

from lstmcore.precision import get_precision
from lstmcore_conformance.oracle.budgets import SAFETY

#: The share of a float64 budget that the answers, which are evaluated in float64, may use. A budget is SAFETY times
#: what the naive evaluation loses; that of float64 is scaled from float32, whose roundings are others: twice as
#: much.
SHARE: Final = 2 / SAFETY


def allowed(precision: str, budget: float) -> float:
    """What the arithmetic of the answers, float64, may lose of an array with that budget in that precision."""
    epsilon = get_precision(get_precision(precision).compute).epsilon
    return SHARE * budget * get_precision("float64").epsilon / epsilon
