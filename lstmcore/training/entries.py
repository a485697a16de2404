"""The entries of a loss, flat: those of all sequences, and of all steps if there is one at every step."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from lstmcore.arrays import device_of, dtype_kind, dtype_name, is_on_host, namespace_of

Array = Any

#: The class number of an entry that does not count, as in PyTorch.
IGNORED: Final = -100


def check_fit(outputs: Array, targets: Array, width: int) -> None:
    """Raise ValueError unless each entry of `outputs` has a target of `width` values."""
    if targets.shape != (*outputs.shape[:-1], width):
        raise ValueError(f"targets: expected shape {(*outputs.shape[:-1], width)}; got {targets.shape}")


def flatten_entries(outputs: Array, targets: Array, mask: Array | None, width: int) -> tuple[Any, Array, Array, Array]:
    """Return the namespace, and of all entries the outputs (n, K), the targets and the weights (n,), float64.

    Targets are (n, `width`), or (n, 1) for class numbers. A masked entry has the weight 0.
    """
    if mask is not None and not (hasattr(mask, "shape") and hasattr(mask, "dtype")):
        raise TypeError(f"mask: expected an array of bool or of weights; got {type(mask).__name__}")
    xp, shape = namespace_of(outputs=outputs, targets=targets, mask=mask), outputs.shape[:-1]
    count = math.prod(shape)
    z, wanted = xp.reshape(outputs, (count, outputs.shape[-1])), xp.reshape(targets, (count, width))
    if mask is None:
        return xp, z, wanted, xp.ones(count, dtype=xp.float64, device=device_of(z))
    if mask.shape != shape or dtype_kind(mask.dtype) not in "bf":
        got = f"{dtype_name(mask.dtype)} of {mask.shape}"
        raise ValueError(f"mask: expected bool, or weights, of shape {shape}; got {got}")
    return xp, z, wanted, xp.astype(xp.reshape(mask, (count,)), xp.float64)


def select_counted(xp: Any, z: Array, labels: Array, weights: Array) -> tuple[Any, Array, Array, Array]:
    """Return the numbers of the entries that count, and their outputs, class numbers and weights.

    On a device they are all entries, whose number nothing waits for, and None for their numbers: those that do not
    count have outputs, class and weight 0, and those of a class that is not there have outputs of NaN.
    """
    counted = weights > 0
    if dtype_kind(labels.dtype) == "i":
        counted &= labels != IGNORED
    if not is_on_host(z):  # a number without sign that is too large for int64 is below 0 then
        labels = xp.astype(labels, xp.int64, copy=False)
    wrong = counted & ((labels < 0) | (labels >= z.shape[1]))
    if is_on_host(z):
        if wrong.any():
            raise ValueError(f"targets: expected class numbers 0 to {z.shape[1] - 1}; got {labels[wrong][0]}")
        rows = np.flatnonzero(counted)
        return rows, z[rows], labels[rows], weights[rows]
    z = xp.where(wrong[:, None], math.nan, xp.where(counted[:, None], z, 0.0))
    return None, z, xp.where(counted & ~wrong, labels, 0), xp.where(counted, weights, 0.0)
