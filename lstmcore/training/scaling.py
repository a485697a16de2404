"""Standardisation: every feature to mean 0 and standard deviation 1 on the training set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmcore import validation
from lstmcore.arrays import as_real, is_on_host, move_like, namespace_of, to_host

Array = Any


@dataclass(frozen=True, slots=True)
class Standardizer:
    """``(values - mean) / scale`` for each entry of the last axis; `mean` and `scale` are (width,) float64.

    A scale of 0 says that the entry is constant: `apply` takes the mean off, and `undo` gives the mean. `mean` and
    `scale` are on the host; values may be on a device, and stay there.

    Raises
    ------
    TypeError, ValueError
        Arrays of another dtype or shape, a number that is not finite, a scale below 0.

    Examples
    --------
    >>> scaling = Standardizer.fit([np.array([[1.0, 10.0], [3.0, 30.0]])])
    >>> scaling.mean.tolist(), scaling.scale.tolist()
    ([2.0, 20.0], [1.0, 10.0])
    >>> scaling.undo(scaling.apply(np.array([[2.0, 40.0]]), "float64")).tolist()
    [[2.0, 40.0]]
    """

    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("scale", self.scale)):
            validation.check_numpy(name, values, (None,), "float64", letters="(width,)")
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite numbers; got NaN or infinity")
        if self.mean.shape != self.scale.shape:
            raise ValueError(f"scale: expected shape {self.mean.shape} as mean; got {self.scale.shape}")
        if not (self.scale >= 0).all():
            raise ValueError(f"scale: expected numbers >= 0; got {self.scale.min()}")

    @classmethod
    def fit(cls, arrays: Iterable[Array]) -> Standardizer:
        """Return mean and standard deviation over all rows of all `arrays` (..., width); the scale of a constant is 0.

        Raises
        ------
        TypeError
            Something else than arrays of real numbers.
        ValueError
            No rows at all, an array without axes, or arrays of different widths.
        """
        given, width = list(arrays), None
        for index, array in enumerate(given):
            validation.check_real(f"arrays[{index}]", array, axes=1, width=width)
            width = array.shape[-1]
        if not sum(math.prod(array.shape[:-1]) for array in given):
            raise ValueError(
                "inputs to standardise: expected at least one step in all sequences together; got empty sequences only"
            )
        xp = namespace_of(**{f"arrays[{index}]": array for index, array in enumerate(given)})
        values = xp.concat([xp.reshape(xp.astype(array, xp.float64, copy=False), (-1, width)) for array in given])
        # Powers of two, which change no digit, bring the values near 1, so that no sum or square overflows.
        unit = _power_of_two(to_host(xp.max(xp.abs(values), axis=0)))
        values /= move_like(unit, values)
        first, least, most, mean, scale = (
            to_host(found)
            for found in (
                *(values[0, ...], xp.min(values, axis=0), xp.max(values, axis=0)),
                *(xp.mean(values, axis=0), xp.std(values, axis=0)),
            )
        )
        mean = np.where(least == most, first, mean) * unit  # a mean of equal numbers is rounded
        scale = scale * unit
        tiny = 1e-12 * np.maximum(np.abs(mean), 1e-300)
        return cls(mean, np.where(scale > tiny, scale, 0.0))

    def first(self, width: int) -> Standardizer:
        """Return the standardisation of the first `width` entries."""
        return Standardizer(self.mean[:width], self.scale[:width])

    def apply(self, values: Array, dtype: npt.DTypeLike) -> Array:
        """Return the standardised values (..., width) in `dtype`; others are a TypeError or a ValueError."""
        validation.check_real("values", values, axes=1, width=len(self.mean))
        mean = move_like(self.mean, values)
        divisor = move_like(np.where(self.scale > 0, self.scale, 1.0), values)
        return _cast((as_real(values, mean) - mean) / divisor, dtype)

    def undo(self, values: Array) -> Array:
        """Return the values that `apply` standardised, in float64; others are a TypeError or a ValueError."""
        validation.check_real("values", values, axes=1, width=len(self.mean))
        xp, scale = namespace_of(values=values), move_like(self.scale, values)
        wide = as_real(values, scale) * scale + move_like(self.mean, values)
        return xp.astype(wide, xp.float64, copy=False)


def _power_of_two(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the powers of two next to some sizes."""
    return np.asarray(np.ldexp(1.0, np.maximum(np.frexp(sizes)[1] - 1, -1000)))


def merge_standardizers(parts: Sequence[tuple[Standardizer, int]]) -> Standardizer:
    """Return the standardisation of all rows from those of parts, each with the number of its rows.

    Raises
    ------
    ValueError
        No rows at all.
    """
    counts = np.array([count for _, count in parts], np.float64)[:, None]
    if not counts.any():
        raise ValueError(
            "inputs to standardise: expected at least one step in all sequences together; got empty sequences only"
        )
    there = counts[:, 0] > 0
    means, scales = (np.array([getattr(part, name) for part, _ in parts])[there] for name in ("mean", "scale"))
    weights = counts[there] / counts.sum()
    # Powers of two, which change no digit, bring the numbers near 1, so that no square overflows.
    unit = _power_of_two(np.maximum(np.abs(means), scales).max(axis=0))
    means, scales = means / unit, scales / unit
    mean = (weights * means).sum(axis=0)
    spread = np.sqrt((weights * (scales**2 + (means - mean) ** 2)).sum(axis=0))
    constant = (scales == 0).all(axis=0) & (means.min(axis=0) == means.max(axis=0))
    mean = np.where(constant, means[0], mean) * unit
    tiny = 1e-12 * np.maximum(np.abs(mean), 1e-300)
    return Standardizer(mean, np.where(constant | (spread * unit <= tiny), 0.0, spread * unit))


def scale_targets(targets: Iterable[Array], dtype: npt.DTypeLike, scaling: Standardizer | None) -> list[Array]:
    """Return targets in `dtype`, standardised if there is a standardisation.

    Raises
    ------
    ValueError
        A number that is too large for that dtype.
    """
    targets = list(targets)
    with np.errstate(over="ignore"):
        scaled = [_cast(t, dtype) if scaling is None else scaling.apply(t, dtype) for t in targets]
    for index, target in enumerate(scaled):
        xp = namespace_of(target)
        if not xp.all(xp.isfinite(target)):
            raise ValueError(
                f"targets[{index}]: expected numbers that fit into {dtype}, standardised where the model does; got "
                f"up to {float(xp.max(xp.abs(targets[index]))):.3g}: bring them nearer to 1, or use "
                "standardize_targets=True"
            )
    return scaled


def _cast(array: Array, dtype: npt.DTypeLike) -> Array:
    if is_on_host(array):
        return array.astype(dtype)
    xp = namespace_of(array)
    return xp.astype(array, getattr(xp, np.dtype(dtype).name))
