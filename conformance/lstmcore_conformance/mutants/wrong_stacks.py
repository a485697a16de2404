"""Stacks with a fault between layers or directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lstmcore.backend import Array, Backend, Forward, Gradients, StackKernel, StackMasks, State
from lstmcore.config import StackConfig
from lstmcore.precision import Precision
from lstmcore.stack import ComposedStack
from lstmcore.stored_weights import StoredMatrix
from lstmcore_conformance.mutants.construction import fault
from lstmcore_conformance.oracle.naive import NaiveBackend


def _stack_backend(stack: type[ComposedStack]) -> Backend:
    class B(NaiveBackend):
        def _compile_stack(self, config: StackConfig, precision: Precision) -> StackKernel:
            return stack(self, config, precision)

    return B()


@fault("stack.directions_swapped", "the reversed output comes first", "stack.forward")
def _directions_swapped() -> Backend:
    class S(ComposedStack):
        def forward(self, *args: Any, **options: Any) -> Forward:
            done = super().forward(*args, **options)
            if self.stack.num_directions == 2:
                done.y[...] = np.roll(done.y, self.stack.output_size, axis=2)
            return done

    return _stack_backend(S)


@fault("stack.states_by_direction", "states are ordered by direction first", "stack.forward")
def _states_by_direction() -> Backend:
    class S(ComposedStack):
        def forward(self, *args: Any, **options: Any) -> Forward:
            done = super().forward(*args, **options)
            count = self.stack.num_directions
            order = np.arange(len(self.kernels)).reshape(-1, count).T.ravel()
            return done._replace(state=State(done.state.h[order], done.state.c[order]))

    return _stack_backend(S)


@fault("stack.weights_shared", "both directions use the weights of the first", "stack.forward")
def _weights_shared() -> Backend:
    class S(ComposedStack):
        def pack(self, parameters: Mapping[str, Array]) -> Any:
            packed = super().pack(parameters)
            count = self.stack.num_directions
            return tuple(packed[index - index % count] for index in range(len(packed)))

    return _stack_backend(S)


@fault("stack.dropout_ignored", "the dropout between layers is left out", "stack.forward")
def _dropout_ignored() -> Backend:
    class S(ComposedStack):
        def forward(self, *args: Any, masks: StackMasks | None = None, **options: Any) -> Forward:
            return super().forward(*args, masks=masks and masks._replace(dropout=()), **options)

    return _stack_backend(S)


@fault("stack.dropout_not_in_backward", "the dropout between layers is not in backward", "stack.backward")
def _dropout_not_in_backward() -> Backend:
    class S(ComposedStack):
        def backward(self, weights: Any, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
            return super().backward(weights, tape._replace(dropout=()), dy, dstate)

    return _stack_backend(S)


@fault("stack.dx_of_one_direction", "dx leaves out the reversed direction of the first layer", "stack.backward")
def _dx_of_one_direction() -> Backend:
    class S(ComposedStack):
        def backward(self, weights: Any, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
            gradients = super().backward(weights, tape, dy, dstate)
            return gradients if self.stack.num_directions == 1 else gradients._replace(x=gradients.x / 2)

    return _stack_backend(S)


@fault("stack.jvp_first_layer", "the tangents of upper layers are ignored", "stack.jvp")
def _jvp_first_layer() -> Backend:
    class S(ComposedStack):
        def jvp(self, weights: Any, x: Array, state: State | None, tangents: Any, **options: Any) -> Any:
            first = {name: array for name, array in (tangents.parameters or {}).items() if "_l0" in name}
            return super().jvp(weights, x, state, tangents._replace(parameters=first), **options)

    return _stack_backend(S)


@fault("stack.one_receipt", "there is one receipt for all", "stack.receipts")
def _one_receipt() -> Backend:
    class S(ComposedStack):
        def receipts(self, steps: int | None = None, batch: int | None = None) -> Any:
            return super().receipts(steps, batch)[:1]

    return _stack_backend(S)


@fault("stack.upper_stateless", "layers above the first start from zeros", "stack.streaming")
def _upper_stateless() -> Backend:
    class S(ComposedStack):
        def forward(self, weights: Any, x: Array, state: State | None, **options: Any) -> Forward:
            if state is not None:
                state = State(state.h.copy(), state.c.copy())
                state.h[self.stack.num_directions :] = 0
            return super().forward(weights, x, state, **options)

    return _stack_backend(S)


@fault("stack.settings", "a stack changes how NumPy treats errors", "calls.surroundings")
def _settings() -> Backend:
    class S(ComposedStack):
        def forward(self, *args: Any, **options: Any) -> Forward:
            np.seterr(under="warn" if np.geterr()["under"] == "ignore" else "ignore")
            return super().forward(*args, **options)

    return _stack_backend(S)


@fault("weights.stack_scale", "all int8 rows above the first layer have one scale", "weights.int8", shown_by="L=2")
def _stack_scale() -> Backend:
    class S(ComposedStack):
        def pack(self, parameters: Mapping[str, Any]) -> Any:
            changed = dict(parameters)
            for name, matrix in parameters.items():
                if isinstance(matrix, StoredMatrix) and matrix.scale is not None and "_l0" not in name:
                    changed[name] = replace(matrix, scale=np.full_like(matrix.scale, matrix.scale[0]))
            return super().pack(changed)

    return _stack_backend(S)


@fault(
    "half.next_layer", "layers above the first read y in 8 bits where float16 has 11", "bits16.next_layer", "float16"
)
def _next_layer() -> Backend:
    class S(ComposedStack):
        def _forward_layer(self, first: int, calls: Any, *, record: bool) -> Any:
            if first and self.precision.storage == "float16":
                calls = [(weights, _in_8_bits(x), *rest) for weights, x, *rest in calls]
            return super()._forward_layer(first, calls, record=record)

    return _stack_backend(S)


def _in_8_bits(x: Array) -> Array:
    """Return float16 numbers without their last three bits."""
    return np.asarray((x.view(np.uint16) & np.uint16(0xFFF8)).view(x.dtype))


def _register_size(name: str, what: str, wrong: Callable[[StackConfig, Array], Any]) -> None:
    """Register a stack whose output is half as large in a part that `wrong` gives from the model and y, or nowhere."""

    @fault(f"stack.{name}", f"in a stack {what}", "large.stacks")
    def make() -> Backend:
        class S(ComposedStack):
            def forward(self, *args: Any, **options: Any) -> Forward:
                done = super().forward(*args, **options)
                if self.stack.num_layers > 1 and (part := wrong(self.stack, done.y)) is not None:
                    done.y[part] *= 0.5
                return done

        return _stack_backend(S)


_register_size("unit_33", "units from the 33rd on are wrong", lambda stack, y: np.s_[..., 32:])
_register_size("row_65", "rows from the 65th on are wrong", lambda stack, y: np.s_[:, 64:])
_register_size("step_33", "steps from the 33rd on are wrong", lambda stack, y: np.s_[32:])
_register_size(
    "dropout_129",
    "the dropout of 129 units or more is wrong",
    lambda stack, y: ... if stack.dropout and stack.hidden_size > 128 else None,
)
