"""The error that the answers in the golden vectors may have themselves."""

from __future__ import annotations

from typing import Final

from lstmcore.precision import get_precision
from lstmcore_conformance.oracle.budgets import SAFETY

#: The share of a float64 budget that the answers, which are evaluated in float64, may use. A budget is SAFETY times
#: the error of the naive evaluation. That of float64 is scaled from float32, whose roundings differ: twice as much.
SHARE: Final = 2 / SAFETY


def allowed(precision: str, budget: float) -> float:
    """Return the error that float64 answers may have in an array with this budget in this precision."""
    epsilon = get_precision(get_precision(precision).compute).epsilon
    return SHARE * budget * get_precision("float64").epsilon / epsilon
