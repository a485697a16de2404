"""Arrays of a backend, which may lie on a device: writing to them, what shares memory, and how they lie in memory.

Arrays of NumPy tell all of it. Arrays of a device may not be written to, or may have no strides: then `NotChecked`
says so, and no check passes for want of a way to look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from lstmcore_conformance.cases.case import Array, Data
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, NotChecked

#: What makes an array of a device from one on the host, as `Backend.to_device` does.
ToDevice: TypeAlias = Callable[[Array], Any]
#: What makes an array of a device that lies in memory in some way: from `ToDevice` and the array on the host.
Lay: TypeAlias = Callable[[ToDevice, Array], Any]


def write(array: Any, values: Any) -> None:
    """Write `values` to all of a device array.

    Raises
    ------
    NotChecked
        The array cannot be written to.
    """
    try:
        array[...] = values
    except (TypeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise NotChecked(f"arrays of type {type(array).__name__} cannot be written to: {why}") from error


@contextmanager
def overwritten(arrays: Mapping[str, Any]) -> Iterator[None]:
    """Fill every array with NaN; the block then judges the backend.

    Parameters
    ----------
    arrays
        Name -> array of the device.

    Raises
    ------
    Failure
        An array of NumPy cannot be written to, though the caller may do so with all arrays but read-only inputs.
    NotChecked
        The block passes, and an array of a device could not be written to.
    """
    reasons: dict[str, list[str]] = {}
    for name, array in arrays.items():
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise Failure(f"{name}: expected an array that can be written to; got a read-only one")
        try:
            write(array, np.nan)
        except NotChecked as reason:
            reasons.setdefault(str(reason), []).append(name)
    yield
    if reasons:
        left = len(arrays) - sum(map(len, reasons.values()))
        if not left:
            raise NotChecked("; ".join(reasons))
        kept = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in reasons.items())
        raise NotChecked(f"{kept}; with the other {left} overwritten all is right")


def sharing(
    tested: BackendUnderTest, arrays: Mapping[str, Any], others: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the names of two arrays that share memory; an array does not share it with that of its own name.

    Arrays of NumPy are asked. An array of a device is filled with NaN, and the others must not change.

    Parameters
    ----------
    tested
        The backend.
    arrays, others
        Name -> array of the device. One array has the same name in both.

    Raises
    ------
    NotChecked
        An array of a device cannot be written to.
    """
    for name, array in arrays.items():
        on_host = isinstance(array, np.ndarray)
        apart = {
            key: other
            for key, other in others.items()
            if key != name and isinstance(other, np.ndarray) == on_host and 0 not in (*array.shape, *other.shape)
        }
        if on_host:
            yield from ((name, key) for key, other in apart.items() if np.shares_memory(array, other))
        elif apart:
            before = {key: np.array(tested.host(other)) for key, other in apart.items()}
            write(array, np.nan)
            for key, other in apart.items():
                if not np.array_equal(tested.host(other), before[key], equal_nan=True):
                    yield name, key


def strides(array: Any) -> object:
    """Return the strides of the axes of more than one entry, None if the array does not tell them."""
    known = getattr(array, "strides", None)
    if not isinstance(known, tuple) or 0 in array.shape:
        return None if known is None else ()
    return tuple(stride for stride, size in zip(known, array.shape, strict=True) if size > 1)


def writable(array: Any) -> object:
    """Return whether an array of NumPy can be written to; None for others."""
    return bool(array.flags.writeable) if isinstance(array, np.ndarray) else None


def offset(array: Any) -> object:
    """Return the distance of an array of NumPy from a boundary of 64 bytes, 0 if it is empty; None for others."""
    if 0 in array.shape:
        return 0
    return array.ctypes.data % 64 if isinstance(array, np.ndarray) else None


def laid(tested: BackendUnderTest, data: Data, lay: Lay, kept: Callable[[Any], object] = strides) -> Data:
    """Return the data on the device, where every array lies in memory as `lay` says.

    Parameters
    ----------
    tested, data
        The backend, and the data on the host.
    lay
        Makes the arrays.
    kept
        What must be the same for the array of the device and for the one that `lay` makes on the host.

    Raises
    ------
    NotChecked
        The arrays of the device do not lie in this way.
    """

    def each(array: Array) -> Any:
        made, want = lay(tested.backend.to_device, array), lay(np.asarray, array)
        if kept(made) != kept(want):
            raise NotChecked(
                f"to_device and views of arrays of type {type(made).__name__} do not keep what this case is about: "
                f"{kept.__name__} {kept(want)}; got {kept(made)}"
            )
        return made

    return data.map(each)
