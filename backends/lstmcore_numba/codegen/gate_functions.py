"""Activations and their derivatives on vectors.

All use one polynomial for ``expm1(r)`` on ``|r| <= ln(2) / 2``. With ``x = n ln(2) + r``, ``expm1(x) = 2^n expm1(r) +
(2^n - 1)`` keeps the relative error of small results small, which `tanh` near 0 needs.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

from lstmcore_numba.codegen.emitter import ROUND, Vector

#: ln(2) as a sum of two numbers. The last bits of the first are 0, so that its multiples are exact.
_LN2: Final = {4: (0.693359375, -2.12194440e-4), 8: (0.693147180369123816490, 1.90821492927058770002e-10)}
#: Arguments beyond which expm1 is -1, or tanh is 1, to the last bit.
#: Then the largest argument of exp whose result has a normal reciprocal.
_SATURATED: Final = {4: 20.0, 8: 40.0}
_LARGEST: Final = {4: 87.0, 8: 708.0}


def _series(terms: int) -> list[float]:
    """Return coefficients of ``(expm1(r) - r) / r^2`` on ``|r| <= ln(2) / 2``.

    The Taylor series is truncated to `terms` in the Chebyshev basis. The error is below a tenth of an epsilon of expm1.
    """
    bound = math.log(2) / 2
    taylor = np.array([bound**k / math.factorial(k + 2) for k in range(22)])
    short = np.asarray(chebyshev.cheb2poly(chebyshev.poly2cheb(taylor)[:terms]), np.float64)
    return [float(value / bound**k) for k, value in enumerate(short)]


_SERIES: Final = {4: _series(5), 8: _series(10)}


def expm1(x: Vector) -> Vector:
    """Return ``exp(x) - 1``, with `x` clipped so that the result is finite."""
    size = x.emitter.size
    return _expm1(x.clip(-_SATURATED[size], _LARGEST[size]))


def _expm1(x: Vector, times: float = 1) -> Vector:
    """Return ``exp(times x) - 1``; `times` is a power of two, or minus one."""
    n, r = _split(x, times)
    scale = n.power_of_two()
    return scale.fma((r * r).fma(_polynomial(r, times), r * times), scale - 1)


def _exp(x: Vector, times: float) -> Vector:
    """Return ``exp(times x)``, if the result is a normal number; `times` as in `_expm1`."""
    n, r = _split(x, times)
    inner = _polynomial(r, times).fma(r, times)
    return inner.fma(r, 1).scaled(n)


def _split(x: Vector, times: float) -> tuple[Vector, Vector]:
    """Return ``n + ROUND`` and ``r`` with ``times x = n ln(2) + times r``."""
    size = x.emitter.size
    high, low = (part / times for part in _LN2[size])
    shifted = x.fma(times / math.log(2), ROUND[size])
    n = shifted - ROUND[size]
    return shifted, (-n).fma(low, (-n).fma(high, x))


def _polynomial(r: Vector, times: float) -> Vector:
    """Return ``(expm1(times r) - times r) / r^2`` for ``|times r| <= ln(2) / 2``."""
    terms = (value * times ** (2 + k) for k, value in enumerate(_SERIES[r.emitter.size]))
    *others, total = (r.emitter.constant(value) for value in terms)
    for value in reversed(others):
        total = total.fma(r, value)
    return total


def tanh(x: Vector) -> Vector:
    """Return ``e / (e + 2)`` with ``e = expm1(2 |x|)`` and the sign of `x`; a NaN stays NaN.

    Near 1 the result is ``1 - 2 / (e + 2)``, since half an epsilon is a large part of ``1 - tanh(x)^2`` there.
    """
    limit = _SATURATED[x.emitter.size] / 2
    size = x.abs()
    e = _expm1(x.emitter.constant(limit).where(size.compare(">", limit), size), 2)
    large = e.compare(">", 2)
    ratio = x.emitter.constant(2).where(large, e).over(e + 2)
    return (1 - ratio).where(large, ratio).with_sign_of(x)


def sigmoid(x: Vector) -> Vector:
    """Return ``1 / (1 + exp(-x))``. Close to 0 it keeps its relative precision, unlike a formula with tanh."""
    limit = _LARGEST[x.emitter.size]
    opened = (_exp(x.clip(-limit, limit), -1) + 1).inverse()
    return opened.where(x.reaches(-limit), 0)


def log1p(x: Vector) -> Vector:
    """Return ``log(1 + x)`` for 0 <= x <= 1, by Halley's method for ``expm1(y) = x``."""
    y = x / (x * 0.5 + 1)
    for _ in range(2):
        e = expm1(y)
        y = y - 2 * (e - x) / (e + x + 2)
    return y


def _above(x: Vector, threshold: Vector | float) -> Vector:
    return x.emitter.constant(0).where(x.compare("<=", threshold), x)  # in this order NaN stays NaN


class GateFunction(NamedTuple):
    """An activation by name, and its parameters; 0 for a parameter that it does not have."""

    name: str
    alpha: Vector | float
    beta: Vector | float


def value(function: GateFunction, x: Vector) -> Vector:
    """Return the activation at `x`; see section 3 of SPEC.md.

    Raises
    ------
    NotImplementedError
        The activation has no code.
    """
    _, alpha, beta = function
    match function.name:
        case "sigmoid":
            return sigmoid(x)
        case "tanh":
            return tanh(x)
        case "relu":
            return _above(x, 0)
        case "identity":
            return x
        case "affine":
            return x * alpha + beta
        case "leaky_relu":
            return (x * alpha).where(x.compare("<", 0), x)
        case "thresholded_relu":
            return _above(x, alpha)
        case "scaled_tanh":
            return tanh(x * beta) * alpha
        case "hard_sigmoid":
            return (x * alpha + beta).clip(0, 1)
        case "elu":
            return (expm1(x) * alpha).where(x.compare("<", 0), x)
        case "softsign":
            largest = 3e38 if x.emitter.size == 4 else 1e308
            finite = x.clip(-largest, largest)
            return finite / (finite.abs() + 1)
        case "softplus":
            return _above(x, 0) + log1p(expm1(-x.abs()) + 1)
    raise NotImplementedError(f"activation {function.name!r}: the Numba backend has no code for it")


def derivative(function: GateFunction, x: Vector, y: Vector) -> Vector:
    """Return the derivative at `x`, where the activation is `y`. SPEC.md says which side counts at a kink.

    Raises
    ------
    NotImplementedError
        The activation has no code.
    """
    _, alpha, beta = function
    one, zero = x.emitter.constant(1), x.emitter.constant(0)
    match function.name:
        case "sigmoid":
            return y * (1 - y)
        case "tanh":
            return 1 - y * y
        case "relu":
            return one.where(x.compare(">", 0), zero)
        case "identity":
            return one
        case "affine":
            return x.emitter.lift(alpha)
        case "leaky_relu":
            return one.where(x.compare(">=", 0), alpha)
        case "thresholded_relu":
            return one.where(x.compare(">", alpha), zero)
        case "scaled_tanh":
            t = tanh(x * beta)
            return (1 - t * t) * (x.emitter.lift(alpha) * beta)
        case "hard_sigmoid":
            line = x * alpha + beta
            inner = x.emitter.lift(alpha).where(line.compare("<", 1), zero)
            return inner.where(line.compare(">", 0), zero)
        case "elu":
            return one.where(x.compare(">=", 0), y + alpha)
        case "softsign":
            slope = 1 / (x.abs() + 1)
            return slope * slope
        case "softplus":
            return sigmoid(x)
    raise NotImplementedError(f"activation {function.name!r}: the Numba backend has no code for it")
