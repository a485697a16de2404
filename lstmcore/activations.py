"""The activation functions and their derivatives, as SPEC.md gives them.

They are written for clarity and hold for complex arguments near the real axis too (comparisons look at the real
part), so that a complex step through them gives derivatives to full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import Activation

Array: TypeAlias = npt.NDArray[Any]


class Function(NamedTuple):
    """``value(z, alpha, beta)`` and its ``derivative(z, y, alpha, beta)`` at ``y = value(z)``."""

    value: Callable[[Array, float, float], Array]
    derivative: Callable[[Array, Array, float, float], Array]


def _sigmoid(z: Array) -> Array:
    decay = np.exp(np.where(z.real >= 0, -z, z))  # never overflows
    result: Array = np.where(z.real >= 0, 1, decay) / (1 + decay)
    return result


def _softplus(z: Array) -> Array:
    # log(1 + e^z) = max(z, 0) + log(1 + e^-|z|)
    return np.where(z.real >= 0, z, 0) + np.log1p(np.exp(np.where(z.real >= 0, -z, z)))


def _above(z: Array, threshold: float) -> Array:
    return np.where(z.real <= threshold, 0, z)  # this way round NaN stays NaN


def _leaky_relu(z: Array, alpha: float) -> Array:
    return np.where(z.real >= 0, z, alpha * np.where(z.real >= 0, 0, z))


def _elu(z: Array, alpha: float) -> Array:
    return np.where(z.real >= 0, z, alpha * np.expm1(np.where(z.real >= 0, 0, z)))


def _magnitude(z: Array) -> Array:
    return np.where(z.real >= 0, z, -z)


def _softsign(z: Array) -> Array:
    finite = np.isfinite(z.real) | np.isnan(z.real)
    bounded = np.where(finite, z, 0)
    result: Array = np.where(finite, bounded / (1 + _magnitude(bounded)), np.sign(z.real))
    return result


def _hard_sigmoid(z: Array, alpha: float, beta: float) -> Array:
    line = alpha * z + beta
    return np.where(line.real >= 1, 1, np.where(line.real <= 0, 0, line))


def clip(z: Array, bound: float) -> Array:
    """Return `z` limited to +-bound; NaN stays NaN."""
    limited: Array = np.where(z.real > bound, bound, np.where(z.real < -bound, -bound, z))
    return limited.astype(z.dtype, copy=False)


def inside(z: Array, bound: float) -> Array:
    """Return the derivative of `clip`: 1 where ``|z| <= bound``, else 0."""
    within: Array = np.abs(z.real) <= bound
    return within.astype(z.dtype)


FUNCTIONS: Final[Mapping[str, Function]] = {
    "sigmoid": Function(lambda z, a, b: _sigmoid(z), lambda z, y, a, b: y * (1 - y)),
    "tanh": Function(lambda z, a, b: np.tanh(z), lambda z, y, a, b: 1 - y * y),
    "relu": Function(lambda z, a, b: _above(z, 0.0), lambda z, y, a, b: np.where(z.real > 0, 1, 0)),
    "identity": Function(lambda z, a, b: z, lambda z, y, a, b: np.ones_like(z)),
    "affine": Function(lambda z, a, b: a * z + b, lambda z, y, a, b: np.full_like(z, a)),
    "leaky_relu": Function(lambda z, a, b: _leaky_relu(z, a), lambda z, y, a, b: np.where(z.real >= 0, 1, a)),
    "thresholded_relu": Function(lambda z, a, b: _above(z, a), lambda z, y, a, b: np.where(z.real > a, 1, 0)),
    "scaled_tanh": Function(lambda z, a, b: a * np.tanh(b * z), lambda z, y, a, b: a * b * (1 - np.tanh(b * z) ** 2)),
    "hard_sigmoid": Function(
        lambda z, a, b: _hard_sigmoid(z, a, b),
        lambda z, y, a, b: np.where(((a * z + b).real > 0) & ((a * z + b).real < 1), a, 0),
    ),
    "elu": Function(lambda z, a, b: _elu(z, a), lambda z, y, a, b: np.where(z.real >= 0, 1, y + a)),
    "softsign": Function(lambda z, a, b: _softsign(z), lambda z, y, a, b: (1 / (1 + _magnitude(z))) ** 2),
    "softplus": Function(lambda z, a, b: _softplus(z), lambda z, y, a, b: _sigmoid(z)),
}


def value(function: Activation, z: Array) -> Array:
    """Return ``function(z)`` in the dtype of `z`."""
    result = FUNCTIONS[function.name].value(z, function.alpha or 0.0, function.beta or 0.0)
    return np.asarray(result, z.dtype)


def derivative(function: Activation, z: Array) -> Array:
    """Return ``function'(z)`` in the dtype of `z`; at a kink it is that of the side that SPEC.md names."""
    alpha, beta = function.alpha or 0.0, function.beta or 0.0
    pair = FUNCTIONS[function.name]
    return np.asarray(pair.derivative(z, pair.value(z, alpha, beta), alpha, beta), z.dtype)
