"""Kernels whose faults need unusual memory, other calls before, threads that meet a cold kernel, NaN or 16 bits."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import numpy as np

from lstmcore.backend import Array, Backend, Forward, Gradients, State
from lstmcore_conformance.mutants.construction import Hooked, backend_of, edit, fault
from lstmcore_conformance.oracle.naive import NaiveKernel

# Memory ---------------------------------------------------------------------------------------------------------------


@fault("memory.negative_strides", "an x of negative strides is read as if they were positive", "inputs.layouts")
class _NegativeStrides(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        return (weights, np.ascontiguousarray(x[::-1]) if min(x.strides) < 0 else x, *rest)


@fault("memory.columns", "an x whose rows lie apart is read as if they did not", "inputs.layouts")
class _Columns(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        apart = (
            x.strides[-1] == x.itemsize and x.strides[-2] > x.shape[-1] * x.itemsize > 0 and x.strides[0] > x.strides[1]
        )
        return (weights, x * x.dtype.type(1.5) if apart else x, *rest)


@fault("memory.alignment", "an x that is not aligned to 16 bytes is read from the boundary before", "inputs.layouts")
class _Alignment(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        off = x.flags.c_contiguous and x.ctypes.data % 16 == x.itemsize
        return (weights, np.roll(x, 1) if off else x, *rest)


@fault("memory.around_out", "the number after an out that lies in a larger array is written to", "outputs.layouts")
class _AroundOut(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if isinstance(y.base, np.ndarray) and y.base.size > y.size and y.strides[-1] == y.itemsize:
            y.base.reshape(-1)[-1] = 0
        return y, last, tape


@fault("memory.batch_first_out", "an out in batch-first memory gets the rows in another order", "outputs.layouts")
class _BatchFirstOut(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if 0 < y.strides[0] < y.strides[1]:
            y[...] = y[:, ::-1].copy()
        return y, last, tape


@fault("memory.final_h_in_y", "the final h is a view of y", "outputs.apart")
class _FinalHInY(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        same = len(y) and np.array_equal(y[-1], last.h)
        return y, State(y[-1], last.c) if same else last, tape


def _aliased(what: str) -> Backend:
    """Return a backend whose tape has no copy of y or x; backward is wrong if that has changed."""

    class K(NaiveKernel):
        def _forward(self, weights: Any, x: Array, *rest: Any, **options: Any) -> tuple[Array, State, Any]:
            y, last, tape = super()._forward(weights, x, *rest, **options)
            array = y if what == "y" else x
            return y, last, (tape, array, np.array(array))

        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            tape, array, copy = saved
            gradients = super()._backward(weights, tape, dy, dstate)
            kept = np.array_equal(array, copy, equal_nan=True)
            return gradients if kept else gradients._replace(x=np.zeros_like(gradients.x))

    return backend_of(K)


@fault("tape.aliases_y", "the tape reads h from y", "tape.owns")
def _aliases_y() -> Backend:
    return _aliased("y")


@fault("tape.aliases_x", "the tape reads x from the caller's array", "tape.owns")
def _aliases_x() -> Backend:
    return _aliased("x")


# Between calls --------------------------------------------------------------------------------------------------------


@fault(
    "kept.first_numbers",
    "kernels are kept by their features: bounds and rates are those of the first",
    "models.numbers",
)
def _first_numbers() -> Backend:
    seen: dict[Any, Any] = {}

    class K(NaiveKernel):
        def __init__(self, backend: Any, config: Any, precision: Any) -> None:
            sizes = (config.input_size, config.hidden_size, config.proj_size, config.coupling, config.recurrence)
            super().__init__(backend, seen.setdefault((config.features, sizes, precision.name), config), precision)

    return backend_of(K)


@fault("kept.workspace", "after a call of more rows the zeros of a missing state are not zeros", "calls.smaller")
class _Workspace(Hooked):
    most = 0

    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        self.most = max(self.most, x.shape[1])
        if state is None and self.most > x.shape[1]:
            h, c = ((x.shape[1], width) for width in (self.config.output_size, self.config.hidden_size))
            state = State(np.full(h, 0.25, x.dtype), np.zeros(c, self.precision.compute))
        return weights, x, state, *rest


@fault("kept.last_recorded", "backward reads the workspace of the model that was recorded last", "tape.other_models")
def _last_recorded() -> Backend:
    last: list[Any] = [None]

    class K(NaiveKernel):
        def _forward(self, *arguments: Any, **options: Any) -> tuple[Array, State, Any]:
            if options["record"]:
                last[0] = self
            return super()._forward(*arguments, **options)

        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            gradients = super()._backward(weights, saved, dy, dstate)
            return gradients if last[0] is self else gradients._replace(x=np.zeros_like(gradients.x))

    return backend_of(K)


@fault("kept.every_1000th", "every 1,000th call of a kernel is computed by another path", "calls.many")
class _Every1000th(Hooked):
    calls = 0

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        self.calls += 1
        if self.calls % 1000 == 0:
            y[...] = np.nextafter(y, np.ones_like(y))
        return y, last, tape


@fault("kept.atomics", "sums over more than 1,024 rows run in another order every time", "calls.wide_bits")
def _atomics() -> Backend:
    calls = count()

    class K(NaiveKernel):
        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            gradients = super()._backward(weights, saved, dy, dstate)
            if gradients.x.shape[0] * gradients.x.shape[1] > 1024 and next(calls) % 2:
                bias = gradients.parameters["bias"]
                gradients.parameters["bias"] = np.nextafter(bias, np.ones_like(bias))
            return gradients

    return backend_of(K)


@fault("kept.half_made", "a call that meets the first one of a kernel finds its table half made", "calls.cold_threads")
class _HalfMade(Hooked):
    made = ""

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if not self.made:
            self.made = "half"
            time.sleep(0.1)
            self.made = "whole"
        elif self.made == "half":
            y[...] = 0
        return y, last, tape


# NaN, kinks and tangents of some arguments ----------------------------------------------------------------------------

edit(
    "nan.clip",
    "a gate clip by minimum and maximum takes NaN for its bound",
    "        z = clip(z, config.gate_clip)\n",
    "        z = np.fmin(np.fmax(z, -config.gate_clip), config.gate_clip)\n",
    "values.nan",
)
edit(
    "nan.relu",
    "relu of NaN is 0",
    '    return value(config.cell_activation if k == "g" else config.gate_activation, z)\n',
    '    function = config.cell_activation if k == "g" else config.gate_activation\n'
    "    return value(function, np.where(np.isnan(z), 0, z) if function.name == 'relu' else z)\n",
    "values.nan",
)
edit(
    "jvp.cell_on_bound",
    "the tangent of a cell that lies on its bound is lost",
    "tc_new = tc_new * inside(step.c_unclipped, config.cell_clip)",
    "tc_new = tc_new * (np.abs(step.c_unclipped) < config.cell_clip)",
    "jvp.kinks",
)
edit(
    "backward.cell_on_lower_bound",
    "the gradient of a cell that lies on its lower bound is lost",
    "dc_new = dc_new * inside(step.c_unclipped, config.cell_clip)",
    "dc_new = dc_new * inside(step.c_unclipped, config.cell_clip) * (step.c_unclipped != -config.cell_clip)",
    "backward.both_bounds",
)
edit(
    "backward.clip_of_nan",
    "the derivative of the clip of the cell is 1 at NaN",
    "dc_new = dc_new * inside(step.c_unclipped, config.cell_clip)",
    "dc_new = dc_new * ~(np.abs(step.c_unclipped) > config.cell_clip)",
    "backward.clipped_nan",
)


@fault("jvp.no_state", "without an initial state its tangent is ignored", "jvp.some")
class _NoState(NaiveKernel):
    def _jvp(self, weights: Any, x: Array, state: Any, tangents: Any, *rest: Any) -> tuple[Forward, Forward]:
        return super()._jvp(weights, x, state, tangents._replace(state=None) if state is None else tangents, *rest)


# 16 bits --------------------------------------------------------------------------------------------------------------

_HALF = "np.float16 if policy.storage == 'float16' else dtype"
edit(
    "half.cell",
    "the cell is rounded to float16 at every step",
    "h, c = np.where(active, h_new, h), np.where(active, c_new, c)",
    f"h, c = np.where(active, h_new, h), np.where(active, c_new.astype({_HALF}).astype(dtype), c)",
    "bits16.cell",
    "float16",
)
edit(
    "half.gates",
    "the gates are rounded to float16",
    "            gate[k] = _activate(config, k, step.z[k])\n",
    "            gate[k] = _activate(config, k, step.z[k]).astype(np.float16).astype(c_before.dtype)\n",
    "bits16.cell",
    "float16",
)
edit(
    "half.sums",
    "the gradient of the bias is summed in float16",
    'dp["bias"] += dz_all.sum(axis=0)',
    'dp["bias"][...] = (dp["bias"] + dz_all.sum(axis=0)).astype(np.float16)',
    "bits16.sums",
    "float16",
)
edit(
    "half.truncated",
    "h is cut off where it should be rounded",
    "    return h.astype(policy.storage).astype(h.dtype)\n",
    "    return _shortened(h, 13, False)\n",
    "bits16.rounding",
    "float16",
)
edit(
    "half.ties_away",
    "an h half way between two numbers is rounded away from zero",
    "    return h.astype(policy.storage).astype(h.dtype)\n",
    "    return np.nextafter(h, np.copysign(h.dtype.type(np.inf), h)).astype(policy.storage).astype(h.dtype)\n",
    "bits16.ties",
    "float16",
)
edit(
    "half.saturated",
    "an h beyond the largest number becomes that number",
    "    return h.astype(policy.storage).astype(h.dtype)\n",
    "    return np.clip(h, -65504, 65504).astype(policy.storage).astype(h.dtype)\n",
    "bits16.ties",
    "float16",
)
