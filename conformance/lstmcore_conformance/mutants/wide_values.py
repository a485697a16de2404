"""Functions and norms that are right for numbers near 1, and wrong for small or large ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lstmcore import activations
from lstmcore.backend import Array, Backend
from lstmcore.config import Activation
from lstmcore_conformance.mutants.construction import backend_of, edit, edited, fault
from lstmcore_conformance.oracle.naive import NaiveKernel

Function = Callable[[Array, float], Array]


def _register(id: str, what: str, caught_by: str, function: str, **others: Function) -> None:
    """Register a mutant with another formula for the value or the derivative of a function of z and alpha."""

    def replaced(name: str) -> Callable[[Activation, Array], Array]:
        right = getattr(activations, name)

        def evaluate(activation: Activation, z: Array) -> Array:
            if activation.name != function or name not in others:
                return np.asarray(right(activation, z))
            with np.errstate(all="ignore"):
                return np.asarray(others[name](z, activation.alpha or 0.0), z.dtype)

        return evaluate

    @fault(id, what, caught_by)
    def make() -> Backend:
        module: Any = edited(("# The parts ----", f"# The parts: {id} ----"))
        module.__dict__.update(value=replaced("value"), derivative=replaced("derivative"))
        return backend_of(type("K", (NaiveKernel,), {"equations": module}))


_register(
    "wide.sigmoid_by_tanh",
    "the sigmoid is half of a tanh plus one half: a closed gate has no precision",
    "values.closed_gates",
    "sigmoid",
    value=lambda z, _: z.dtype.type(0.5) * np.tanh(z.dtype.type(0.5) * z) + z.dtype.type(0.5),
)
_register(
    "wide.tanh_by_sigmoid",
    "the tanh is two sigmoids minus one: a small state has no precision",
    "values.closed_gates",
    "tanh",
    value=lambda z, _: 2 / (1 + np.exp(-2 * z)) - 1,
)
_register(
    "wide.softplus_overflows",
    "softplus is log(1 + exp(z)) as it stands, which overflows beyond 89",
    "values.far",
    "softplus",
    value=lambda z, _: np.log1p(np.exp(z)),
)
_register(
    "wide.slope_of_softplus_overflows",
    "the derivative of softplus is exp(z) / (1 + exp(z)), which is infinity by infinity beyond 89",
    "values.far",
    "softplus",
    derivative=lambda z, _: np.exp(z) / (1 + np.exp(z)),
)
_register(
    "wide.elu_overflows",
    "elu multiplies both of its branches by 0 or 1, and one of them is infinite",
    "values.far",
    "elu",
    value=lambda z, alpha: z * (z >= 0) + alpha * np.expm1(z) * (z < 0),
)
edit(
    "wide.one_pass_variance",
    "the variance of layer norm is the mean of squares minus the square of the mean",
    "(centred * centred).mean(axis=1, keepdims=True) + config.layer_norm_eps",
    "np.maximum((a * a).mean(axis=1, keepdims=True) - a.mean(axis=1, keepdims=True) ** 2, 0)"
    " + a.dtype.type(config.layer_norm_eps)",
    "values.large_mean",
)
_register(
    "wide.softsign_of_infinity",
    "softsign of an infinite number is infinity by infinity",
    "values.infinity",
    "softsign",
    value=lambda z, _: z / (1 + np.abs(z)),
)
