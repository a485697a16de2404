"""The checks, a module for each group of them; importing this package registers them all."""

from __future__ import annotations

from lstmcore_conformance.checks import (
    capabilities,
    contract,
    derivatives,
    endurance,
    errors,
    lengths,
    masks,
    random_models,
    sequences,
    stacks,
    values,
)

__all__ = [
    "contract",
    "derivatives",
    "random_models",
    "endurance",
    "errors",
    "capabilities",
    "lengths",
    "masks",
    "sequences",
    "stacks",
    "values",
]
