"""The norm of gradients, and clipping by it.

Arrays are those of one library on one device, see `lstmcore.arrays`, and so are the results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lstmcore.arrays import as_number, cast_number, namespace_of
from lstmcore.kernels import LayerBackend
from lstmcore.training.flat_arrays import (
    Arrays,
    check_bound,
    check_floats,
    find_updates,
    flatten_on_device,
    group_arrays,
)
from lstmcore.updates import Updates

Array = Any


def global_norm(gradients: Mapping[str, Array], *, backend: LayerBackend | None = None) -> Any:
    """Return the L2 norm of all gradients together, summed in float64: a float, or an array () of a device.

    Parameters
    ----------
    gradients
        Arrays by name.
    backend
        The backend whose `updates` compute on arrays of its device, if they can. Without it, and on the host,
        operations of the arrays' library do.

    Raises
    ------
    TypeError, ValueError
        A gradient that is no array of floating-point numbers, or arrays of two libraries or on two devices.

    Examples
    --------
    >>> global_norm({"a": np.array([3.0]), "b": np.array([4.0])})
    5.0
    """
    xp = namespace_of(**check_floats("gradients", gradients))
    return _norm(xp, gradients, find_updates(backend, None, gradients.values()))


def _norm(xp: Any, gradients: Mapping[str, Array], updates: Updates | str) -> Any:
    """Return what `global_norm` does, of arrays that were checked."""
    if not isinstance(updates, str):
        return updates.norm(list(gradients.values()))
    parts = [flat for _, flat in flatten_on_device(xp, gradients)] or gradients.values()
    return as_number(xp.sqrt(xp.asarray(sum(xp.sum(xp.square(xp.astype(part, xp.float64))) for part in parts))))


def clip_by_global_norm(
    gradients: Mapping[str, Array], bound: float, *, backend: LayerBackend | None = None
) -> tuple[Arrays, float]:
    """Scale all gradients by ``bound / norm`` if their global norm is above `bound`.

    Returns the gradients and the norm that they had, as `global_norm` does. On a device nothing waits for it: all
    gradients are multiplied, by 1 if they are not to be scaled.

    Parameters
    ----------
    gradients
        Arrays by name.
    bound
        The largest norm, > 0.
    backend
        As for `global_norm`.

    Raises
    ------
    TypeError
        Gradients that are no arrays of floating-point numbers, or a `bound` that is no number.
    ValueError
        `bound` is not > 0.

    Examples
    --------
    >>> clipped, norm = clip_by_global_norm({"a": np.array([3.0]), "b": np.array([4.0])}, 2.5)
    >>> norm, clipped["b"].tolist()
    (5.0, [2.0])
    """
    bound = check_bound(bound)  # of a NumPy scalar a quotient has its dtype, and may be 0
    xp = namespace_of(**check_floats("gradients", gradients))
    updates = find_updates(backend, None, gradients.values())
    if not isinstance(updates, str):
        flat, norm = updates.clip(list(gradients.values()), bound)
        (group,) = group_arrays(gradients, [None] * len(gradients))
        return group.split(xp, flat), norm
    norm = _norm(xp, gradients, updates)
    if isinstance(norm, float):
        if norm <= bound or not math.isfinite(norm):
            return dict(gradients), norm
        return {
            name: xp.astype(value * (bound / norm), value.dtype, copy=False) for name, value in gradients.items()
        }, norm
    factor, scaled = xp.where((norm > bound) & xp.isfinite(norm), bound / norm, 1.0), dict[str, Array]()
    for group, flat in flatten_on_device(xp, gradients):
        scaled |= group.split(xp, flat * cast_number(factor, flat))
    return {name: scaled[name] for name in gradients}, norm
