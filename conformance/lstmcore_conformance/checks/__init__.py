"""The checks, one module for each group; importing this package registers all of them."""

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
