"""Arrays of array-api-strict on a device that is not the host: they can do what the standard says, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import array_api_strict as strict
import numpy as np

from lstmcore.arrays import is_on_host, move_like, to_host

DEVICE = strict.Device("device1")
#: An array whose library and device others are moved to.
LIKE = strict.asarray([0.0], device=DEVICE)


def away(values: Any) -> Any:
    """Return arrays, alone or in lists, tuples and mappings, as ones of the device; all else as it is."""
    if isinstance(values, np.ndarray):
        return move_like(values, LIKE)
    if isinstance(values, Mapping):
        return {name: away(value) for name, value in values.items()}
    return type(values)(map(away, values)) if isinstance(values, list | tuple) else values


def leaves(values: Any) -> Iterator[Any]:
    """Yield arrays and numbers in lists, tuples and mappings of any depth."""
    if isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from leaves(value)
    elif values is not None:
        yield values


def assert_same(found: Any, wanted: Any, *, ulps: int = 0) -> None:
    """Check results on the device against those of NumPy: where they are, their dtypes, and their numbers."""
    pairs = list(zip(leaves(found), leaves(wanted), strict=True))
    assert pairs
    for own, other in pairs:
        assert not is_on_host(own) and own.device == DEVICE
        host, expected = to_host(own), np.asarray(other)
        assert (host.dtype, host.shape) == (expected.dtype, expected.shape)
        if ulps:
            np.testing.assert_array_max_ulp(host, expected, ulps)
        else:
            np.testing.assert_array_equal(host, expected)
