"""Layer normalisation of columns and its derivative."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lstmcore.config import LSTMConfig
from lstmcore_numpy.packing import Array


class Norm(NamedTuple):
    """A layer normalisation before its gain: the values (..., K, N) and the deviation (..., 1, N) they were divided by.

    A tape has a leading axis for the steps.
    """

    value: Array
    deviation: Array

    def at(self, t: int) -> Norm:
        """Return views of step `t`."""
        return Norm(self.value[t], self.deviation[t])

    def record(self, t: int, norm: Norm) -> None:
        """Copy the normalisation of step `t` into these arrays."""
        self.value[t], self.deviation[t] = norm


def normalise(config: LSTMConfig, a: Array) -> Norm:
    """Return every column of `a` (..., K, N) with mean 0 and variance 1, in fresh arrays."""
    centred = a - a.mean(axis=-2, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-2, keepdims=True) + config.layer_norm_eps)
    centred /= deviation
    return Norm(centred, deviation)


def normalise_linear(norm: Norm, d: Array) -> Array:
    """Return the derivative of `normalise`, a symmetric matrix, applied to `d`; a fresh array."""
    result: Array = d - d.mean(axis=-2, keepdims=True)
    result -= norm.value * (norm.value * d).mean(axis=-2, keepdims=True)
    result /= norm.deviation
    return result
