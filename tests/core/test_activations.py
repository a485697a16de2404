"""The activations: values from scalar formulas, derivatives by a complex step, kinks and infinities."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lstmcore.activations import FUNCTIONS as TABLE
from lstmcore.activations import clip, derivative, inside, value
from lstmcore.config import ACTIVATIONS, Activation
from lstmcore_conformance.cases.switches import FUNCTIONS

EPSILON = 2.0**-52
POINTS = (-30.0, -2.7, -1.5, -0.31, -1e-9, 1e-9, 0.17, 0.9, 1.4, 3.3, 30.0)

#: The table of SPEC.md for Python floats.
SCALAR: dict[str, Callable[[float, float, float], float]] = {
    "sigmoid": lambda z, a, b: 1 / (1 + math.exp(-z)),
    "tanh": lambda z, a, b: math.tanh(z),
    "relu": lambda z, a, b: max(z, 0.0),
    "identity": lambda z, a, b: z,
    "affine": lambda z, a, b: a * z + b,
    "leaky_relu": lambda z, a, b: z if z >= 0 else a * z,
    "thresholded_relu": lambda z, a, b: z if z > a else 0.0,
    "scaled_tanh": lambda z, a, b: a * math.tanh(b * z),
    "hard_sigmoid": lambda z, a, b: min(1.0, max(0.0, a * z + b)),
    "elu": lambda z, a, b: z if z >= 0 else a * math.expm1(z),
    "softsign": lambda z, a, b: z / (1 + abs(z)),
    "softplus": lambda z, a, b: math.log1p(math.exp(z)),
}


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(ACTIVATIONS) == set(SCALAR)


@pytest.mark.parametrize("text", FUNCTIONS)
def test_value(text: str) -> None:
    function = Activation.parse(text)
    expected = [SCALAR[function.name](z, function.alpha or 0.0, function.beta or 0.0) for z in POINTS]
    # 4 units: two roundings of an argument or a product on each side
    np.testing.assert_allclose(value(function, np.array(POINTS)), expected, rtol=4 * EPSILON, atol=0)


@pytest.mark.parametrize("text", FUNCTIONS)
def test_derivative_is_the_complex_step(text: str) -> None:
    function, z, step = Activation.parse(text), np.array(POINTS), 1e-30
    exact = value(function, z + 1j * step).imag / step
    # y (1 - y) and 1 - y^2 cancel to a unit of 1, so the error is absolute, of a few units
    np.testing.assert_allclose(derivative(function, z), exact, rtol=8 * EPSILON, atol=4 * EPSILON)


@pytest.mark.parametrize(
    ("text", "z", "expected"),
    [
        ("relu", 0.0, 0.0),
        ("thresholded_relu(alpha=0.5)", 0.5, 0.0),
        ("leaky_relu(alpha=0.3)", 0.0, 1.0),
        ("elu(alpha=0.3)", 0.0, 1.0),
        ("hard_sigmoid(alpha=0.25, beta=0.5)", 2.0, 0.0),
        ("hard_sigmoid(alpha=0.25, beta=0.5)", -2.0, 0.0),
        ("softsign", 0.0, 1.0),
        ("softplus", 0.0, 0.5),
        ("sigmoid", 0.0, 0.25),
        ("tanh", 0.0, 1.0),
    ],
)
def test_kinks(text: str, z: float, expected: float) -> None:
    function, at = Activation.parse(text), np.array([z])
    assert derivative(function, at)[0] == expected
    assert value(function, at + 1e-30j).imag[0] / 1e-30 == pytest.approx(expected, rel=EPSILON)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("sigmoid", 0.0, 1.0),
        ("tanh", -1.0, 1.0),
        ("relu", 0.0, math.inf),
        ("identity", -math.inf, math.inf),
        ("affine(alpha=0.7, beta=0.1)", -math.inf, math.inf),
        ("leaky_relu(alpha=0.3)", -math.inf, math.inf),
        ("thresholded_relu(alpha=0.2)", 0.0, math.inf),
        ("scaled_tanh(alpha=1.3, beta=0.6)", -1.3, 1.3),
        ("hard_sigmoid(alpha=0.3, beta=0.45)", 0.0, 1.0),
        ("elu(alpha=0.8)", -0.8, math.inf),
        ("softsign", -1.0, 1.0),
        ("softplus", 0.0, math.inf),
    ],
)
def test_infinities_and_nan(text: str, low: float, high: float) -> None:
    function = Activation.parse(text)
    ends = np.array([-math.inf, math.inf])
    assert value(function, ends).tolist() == [low, high]
    assert np.isfinite(derivative(function, ends)).all()
    assert np.isnan(value(function, np.array([math.nan]))).all()
    far = np.array([-1e300, -1e4, 1e4, 1e300])
    assert np.isfinite(value(function, far)).all()
    assert np.isfinite(derivative(function, far)).all()


@pytest.mark.parametrize("text", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_dtype_is_kept(text: str, dtype: str) -> None:
    z = np.array([[-1.5, 0.0, 0.7]], dtype)
    assert value(Activation.parse(text), z).dtype == dtype
    assert derivative(Activation.parse(text), z).dtype == dtype


def test_clip_is_inclusive() -> None:
    z = np.array([-2.0, -0.5, 0.0, 0.5, np.nextafter(0.5, 1), 2.0])
    assert clip(z, 0.5).tolist() == [-0.5, -0.5, 0.0, 0.5, 0.5, 0.5]
    assert inside(z, 0.5).tolist() == [0, 1, 1, 1, 0, 0]
    assert (clip(z + 1e-30j, 0.5).imag / 1e-30 == inside(z, 0.5)).all()
    assert np.isnan(clip(np.array([math.nan]), 0.5)).all()
    assert inside(np.array([math.nan]), 0.5).tolist() == [0]
    assert clip(z.astype("float32"), 0.1).dtype == inside(z.astype("float32"), 0.1).dtype == "float32"
