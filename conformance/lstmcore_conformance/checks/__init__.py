"""The checks, one module for each group; importing this package registers all of them."""

from __future__ import annotations

from lstmcore_conformance.checks import (
    capabilities,
    contract,
    derivatives,
    endurance,
    errors,
    infinite_values,
    large_calls,
    lengths,
    mask_arguments,
    random_models,
    sequence_pieces,
    stacked_layers,
    stored_weights,
    values,
)

__all__ = [
    "capabilities",
    "contract",
    "derivatives",
    "endurance",
    "errors",
    "infinite_values",
    "large_calls",
    "lengths",
    "mask_arguments",
    "random_models",
    "sequence_pieces",
    "stacked_layers",
    "stored_weights",
    "values",
]
