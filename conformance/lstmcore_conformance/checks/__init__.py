"""The checks, a module for each group of them; importing this package registers them all."""

from __future__ import annotations

from lstmcore_conformance.checks import (
    contract,
    derivatives,
    drawn,
    endurance,
    errors,
    honesty,
    lengths,
    masks,
    sequences,
    stacks,
    values,
)

__all__ = [
    "contract",
    "derivatives",
    "drawn",
    "endurance",
    "errors",
    "honesty",
    "lengths",
    "masks",
    "sequences",
    "stacks",
    "values",
]
