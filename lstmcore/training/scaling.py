"""Standardisation: every feature to mean 0 and standard deviation 1 on the training set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Standardizer:
    """``(values - mean) / scale`` for each entry of the last axis; `mean` and `scale` are (width,) float64."""

    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, arrays: Iterable[Array]) -> Standardizer:
        """Mean and standard deviation over all rows of all `arrays` (..., width); the scale of a constant is 1."""
        rows = [np.asarray(array, np.float64).reshape(-1, array.shape[-1]) for array in arrays]
        values = np.concatenate(rows)
        mean, scale = values.mean(axis=0), values.std(axis=0)
        tiny = 1e-12 * np.maximum(np.abs(mean), 1e-300)
        return cls(mean, np.where(scale > tiny, scale, 1.0))

    def apply(self, values: Array, dtype: str) -> Array:
        """The standardised values, in `dtype`."""
        return ((values - self.mean) / self.scale).astype(dtype)

    def undo(self, values: Array) -> npt.NDArray[np.float64]:
        """The inverse of `apply`, in float64."""
        return np.asarray(values * self.scale + self.mean, np.float64)
