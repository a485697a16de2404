"""Numbers and counts as a report writes them."""

from __future__ import annotations

import math


def counted(count: int, what: str) -> str:
    """Return for example "1 case" or "2 cases"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def written(value: float) -> float | str:
    """Return a number as JSON has it: a text such as "inf" in place of what is not finite."""
    return value if math.isfinite(value) else str(value)


def as_number(share: float | str) -> float:
    """Return a share as a report writes it; one that is no number is worse than all others."""
    value = float(share)
    return math.inf if math.isnan(value) else value
