"""Parameters as parts of flat arrays, so that an optimizer's rule is applied to all of them together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, Final, NamedTuple

from lstmcore.arrays import dtype_name, is_on_host, namespace_of
from lstmcore.kernels import LayerBackend
from lstmcore.updates import Updates
from lstmcore.validation import check_real

Array = Any
Arrays = dict[str, Array]
#: Numbers that a rule is applied to at a time on the host, so that what is between its operations stays in the cache.
_BLOCK: Final = 1 << 14


class FlatGroup(NamedTuple):
    """Parameters of one dtype whose gradients have one dtype, and their moments, each one flat array for all."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    moments: Arrays

    def flatten(self, xp: Any, arrays: Mapping[str, Array]) -> Array:
        """Return a new flat array of those of all names."""
        return xp.concat([xp.reshape(arrays[name], (-1,)) for name in self.names])

    def split(self, xp: Any, flat: Array) -> Arrays:
        """Return the parts of a flat array, by name: views."""
        parts, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + math.prod(shape)
            parts[name] = xp.reshape(flat[start:stop], shape)
            start = stop
        return parts


def group_arrays(arrays: Mapping[str, Array], kinds: Sequence[Any]) -> list[FlatGroup]:
    """Return a group without moments for each of the different `kinds`, one for each array."""
    names: dict[Any, list[str]] = {}
    for name, kind in zip(arrays, kinds, strict=True):
        names.setdefault(kind, []).append(name)
    return [FlatGroup(tuple(own), tuple(arrays[name].shape for name in own), {}) for own in names.values()]


def blocks_of(flat: Array) -> Iterator[slice]:
    """Yield parts that a rule is applied to in one go: all of an array on a device, which has a cost for each call."""
    size = _BLOCK if is_on_host(flat) else max(flat.shape[0], 1)
    for start in range(0, flat.shape[0], size):
        yield slice(start, min(start + size, flat.shape[0]))


def flat_copy(array: Array) -> Array:
    """Return a flat copy."""
    xp = namespace_of(array)
    return xp.reshape(xp.asarray(array, copy=True), (-1,))


def check_floats(what: str, arrays: object) -> Arrays:
    """Return the arrays by the names they have in messages; TypeError unless all have floating-point numbers."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{what}: expected a mapping of names to arrays; got {type(arrays).__name__}")
    named = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"{what}: expected names; got {name!r}")
        named[place := f"{what}[{name!r}]"] = value
        check_real(place, value, kinds="f")
    return named


def check_moments(
    used: Sequence[str], state: Mapping[str, Arrays], parameters: Mapping[str, Array], advice: str = ""
) -> None:
    """Raise ValueError unless each of the used moments has an array like each of the parameters; `advice` ends it."""
    for moment in used:
        moments = state[moment]
        for name in (*parameters, *moments):
            want, got = (
                f"{dtype_name(arrays[name].dtype)} of {arrays[name].shape}" if name in arrays else "none"
                for arrays in (parameters, moments)
            )
            if want != got:
                raise ValueError(
                    f"optimizer state: expected the moment {moment!r} of {name!r} to be {want}, as the parameter; "
                    f"got {got}{advice}"
                )


def flatten_on_device(xp: Any, gradients: Mapping[str, Array]) -> list[tuple[FlatGroup, Array]]:
    """Return one flat array for each dtype, since a call costs more than a copy on a device; none on the host."""
    if all(map(is_on_host, gradients.values())):
        return []
    groups = group_arrays(gradients, [dtype_name(value.dtype) for value in gradients.values()])
    return [(group, group.flatten(xp, gradients)) for group in groups]


def move_by(xp: Any, value: Array, start: Array, change: Array) -> None:
    """Set `value` to ``start - change``, rounded to its dtype once if they have another."""
    if start is value and change.dtype == value.dtype:
        value -= change
    else:
        value[...] = xp.astype(start - change, value.dtype, copy=False)


def check_bound(bound: object) -> float:
    """Return the bound of a norm as a float; TypeError or ValueError unless it is a number above 0."""
    if isinstance(bound, bool) or not isinstance(bound, Real):
        raise TypeError(f"clip_norm: expected a number > 0; got {bound!r}")
    if not (number := float(bound)) > 0:
        raise ValueError(f"clip_norm: expected a number > 0; got {bound!r}")
    return number


def find_updates(backend: LayerBackend | None, formula: str | None, arrays: Collection[Array]) -> Updates | str:
    """Return the updates of a backend for arrays of one library, or why operations of that library compute.

    Parameters
    ----------
    backend
        The backend; None for none.
    formula
        As for `Updates.refusal`.
    arrays
        All arrays but the moments.
    """
    if not arrays or any(map(is_on_host, arrays)):
        return "arrays of the host"
    if backend is None:
        return "no backend was named"
    updates, first = backend.updates(), next(iter(arrays))
    if updates is None:
        return f"backend {backend.name!r} declares no updates"
    located = backend.locate(first)
    if located is None or located[1] is not first:
        return f"arrays of another library than those of backend {backend.name!r}"
    dtypes = sorted({dtype_name(array.dtype) for array in arrays})
    if len(dtypes) > 1:
        return f"arrays of several dtypes, {', '.join(dtypes)}"
    return updates.refusal(formula, dtypes[0]) or updates
