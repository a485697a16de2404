"""The checks, one module for each group; importing this package registers all of them."""

from __future__ import annotations

from lstmcore_conformance.checks import (
    between_calls,
    capabilities,
    contract,
    derivatives,
    endurance,
    errors,
    infinite_values,
    large_calls,
    lengths,
    mask_arguments,
    memory_layouts,
    nan_and_kinks,
    random_models,
    sequence_pieces,
    side_effects,
    sixteen_bits,
    stacked_layers,
    stored_weights,
    values,
    wide_values,
)

__all__ = [
    "between_calls",
    "capabilities",
    "contract",
    "derivatives",
    "endurance",
    "errors",
    "infinite_values",
    "large_calls",
    "lengths",
    "mask_arguments",
    "memory_layouts",
    "nan_and_kinks",
    "random_models",
    "sequence_pieces",
    "side_effects",
    "sixteen_bits",
    "stacked_layers",
    "stored_weights",
    "values",
    "wide_values",
]
