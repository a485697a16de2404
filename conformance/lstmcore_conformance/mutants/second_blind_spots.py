"""Faults that the suite did not see until a second reader invented them from SPEC.md alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from lstmcore import activations
from lstmcore.backend import Array, Backend, Forward, Gradients, Masks, StackKernel, State, Tangents
from lstmcore.config import Activation, StackConfig
from lstmcore.precision import Precision
from lstmcore.stack import ComposedStack
from lstmcore_conformance.mutants.construction import backend_of, edited, fault
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel

# Tangents of some arguments -------------------------------------------------------------------------------------------


@fault("partial.masks_with_x", "a jvp without a tangent of x is that of inference", "jvp.partial")
class _MasksWithX(NaiveKernel):
    def _jvp(
        self, weights: Any, x: Array, state: Any, tangents: Tangents, lengths: Any, masks: Masks | None
    ) -> tuple[Forward, Forward]:
        return super()._jvp(weights, x, state, tangents, lengths, None if tangents.x is None else masks)


@fault("partial.lengths_of_parameters", "a jvp of parameters alone takes every row for one of all steps", "jvp.partial")
class _LengthsOfParameters(NaiveKernel):
    def _jvp(
        self, weights: Any, x: Array, state: Any, tangents: Tangents, lengths: Any, masks: Masks | None
    ) -> tuple[Forward, Forward]:
        alone = tangents.x is None and tangents.state is None
        return super()._jvp(weights, x, state, tangents, None if alone else lengths, masks)


def _with_stack(stack: type[ComposedStack]) -> Backend:
    class B(NaiveBackend):
        def _compile_stack(self, config: StackConfig, precision: Precision) -> StackKernel:
            return stack(self, config, precision)

    return B()


@fault("partial.last_layer", "a jvp of a stack without a tangent of x begins at the last layer", "jvp.partial")
def _last_layer() -> Backend:
    class S(ComposedStack):
        def jvp(self, weights: Any, x: Array, state: Any, tangents: Tangents, **options: Any) -> Any:
            if tangents.x is None:
                last = self.stack.suffixes[-self.stack.num_directions :]
                moved = {k: v for k, v in (tangents.parameters or {}).items() if k.endswith(last)}
                tangents = tangents._replace(parameters=moved)
            return super().jvp(weights, x, state, tangents, **options)

    return _with_stack(S)


# Tapes ----------------------------------------------------------------------------------------------------------------


@fault("tape.first_layer", "backward of a stack runs forward again, from the caller's x", "stack.owns")
def _first_layer() -> Backend:
    class S(ComposedStack):
        def forward(self, weights: Any, x: Array, state: Any, *, record: bool = False, **options: Any) -> Forward:
            done = super().forward(weights, x, state, record=record, **options)
            call = (x, None if state is None else State(*map(np.array, state)), options)
            return done._replace(tape=call) if record else done

        def backward(self, weights: Any, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
            x, state, options = tape
            again = super().forward(weights, x, state, record=True, **options)
            return super().backward(weights, again.tape, dy, dstate)

    return _with_stack(S)


# Masks ----------------------------------------------------------------------------------------------------------------


@fault("spot.mask_of_single_step", "in a single step of a stack dropout acts on the last layer too", "stack.forward")
def _mask_of_single_step() -> Backend:
    class S(ComposedStack):
        def forward(self, weights: Any, x: Array, state: Any, *, masks: Any = None, **options: Any) -> Forward:
            done = super().forward(weights, x, state, masks=masks, **options)
            if len(x) == 1 and masks is not None and masks.dropout:
                done.y[...] *= masks.dropout[-1]
            return done

    return _with_stack(S)


# Memory ---------------------------------------------------------------------------------------------------------------


@fault("memory.rows_without_steps", "where no row has a step, the initial state itself is returned", "outputs.fresh")
class _RowsWithoutSteps(NaiveKernel):
    def _forward(self, weights: Any, x: Array, state: Any, lengths: Any, masks: Any, **options: Any) -> Any:
        y, last, tape = super()._forward(weights, x, state, lengths, masks, **options)
        idle = state is not None and lengths is not None and lengths.size and not lengths.any()
        return y, state if idle else last, tape


@fault("memory.gradient_without_steps", "where no row has a step, dstate itself is returned", "outputs.fresh")
class _GradientWithoutSteps(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        gradients = super()._backward(weights, saved, dy, dstate)
        ran = not saved.steps or any(step.active.any() for _, step in saved.steps)
        return gradients if ran or dstate is None else gradients._replace(state=dstate)


# Numbers of functions -------------------------------------------------------------------------------------------------


def _leaky_relu(z: Array, alpha: float, beta: float) -> Array:
    return np.where(np.isnan(z), z, np.fmax(z, alpha * z))


def _hard_sigmoid(z: Array, alpha: float, beta: float) -> Array:
    """Return the function by the two z at which it bends, in the order in which they lie if it rises."""
    if not alpha:
        return np.full_like(z, beta)
    low, high = -beta / alpha, (1 - beta) / alpha
    return np.where(np.isnan(z), z, np.where(z >= high, 1, np.where(z <= low, 0, alpha * z + beta)))


def _scaled_tanh_slope(y: Array, alpha: float, beta: float) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(alpha * beta * (1 - (y / np.asarray(alpha, y.dtype)) ** 2))


#: Id -> what is wrong, the function, and its value at z or its derivative at ``y = value(z)``, from alpha and beta.
_FORMS: Final[dict[str, tuple[str, str, str, Callable[[Array, float, float], Array]]]] = {
    "leaky_relu": ("leaky_relu is the larger one of z and alpha z", "leaky_relu", "value", _leaky_relu),
    "leaky_relu_slope": (
        "the derivative of leaky_relu is chosen by the sign of its value",
        "leaky_relu",
        "slope",
        lambda y, alpha, beta: np.where(y >= 0, 1, alpha),
    ),
    "thresholded_relu_slope": (
        "the derivative of thresholded_relu is 1 at a value above 0",
        "thresholded_relu",
        "slope",
        lambda y, alpha, beta: np.where(y > 0, 1, 0),
    ),
    "elu_slope": (
        "the derivative of elu is chosen by the sign of its value",
        "elu",
        "slope",
        lambda y, alpha, beta: np.where(y >= 0, 1, y + alpha),
    ),
    "scaled_tanh_slope": (
        "the derivative of scaled_tanh from its value divides by alpha",
        "scaled_tanh",
        "slope",
        _scaled_tanh_slope,
    ),
    "hard_sigmoid": ("the ends of hard_sigmoid are those of one that rises", "hard_sigmoid", "value", _hard_sigmoid),
}


def _with_form(name: str, kind: str, form: Callable[[Array, float, float], Array]) -> Backend:
    def value(function: Activation, z: Array) -> Array:
        if (function.name, kind) != (name, "value"):
            return activations.value(function, z)
        return np.asarray(form(z, function.alpha or 0.0, function.beta or 0.0), z.dtype)

    def derivative(function: Activation, z: Array) -> Array:
        if (function.name, kind) != (name, "slope"):
            return activations.derivative(function, z)
        return np.asarray(form(value(function, z), function.alpha or 0.0, function.beta or 0.0), z.dtype)

    module = edited(("# The parts ----", f"# The parts: {kind} of {name} ----"))
    module.__dict__.update(value=value, derivative=derivative)
    return backend_of(type("FormKernel", (NaiveKernel,), {"equations": module}))


for _id, (_what, _name, _kind, _form) in _FORMS.items():
    fault(f"numbers.{_id}", _what, "values.odd_numbers")(partial(_with_form, _name, _kind, _form))
