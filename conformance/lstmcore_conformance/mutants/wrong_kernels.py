"""Kernels that treat their arguments and results wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar

import numpy as np

from lstmcore.backend import Array, Backend, Forward, Gradients, Masks, State
from lstmcore_conformance.mutants.construction import Hooked, backend_of, change_last_bits, fault, meeting
from lstmcore_conformance.oracle.naive import NaiveKernel


@fault("contract.x_written", "x is scaled in place", "inputs.unchanged")
class _XWritten(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if x.flags.writeable:
            x *= 0.5
        return y, last, tape


@fault("contract.state_written", "the initial c is overwritten with the final one", "inputs.unchanged")
class _StateWritten(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if state is not None and state.c.flags.writeable:
            state.c[...] = last.c
        return y, last, tape


@fault("contract.state_returned", "with T = 0 the initial state itself is returned", "outputs.fresh")
class _StateReturned(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        return (y, state, tape) if state is not None and not len(x) else (y, last, tape)


@fault("contract.buffer_reused", "y lies in a buffer that the next call of that size overwrites", "outputs.kept")
class _BufferReused(Hooked):
    buffers: ClassVar[dict[Any, Array]] = {}

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        kept: Any = self.buffers.setdefault((id(self), y.shape), y)
        kept[...] = y
        return kept, last, tape


@fault("contract.state_leaks", "without a state a call goes on from the last one", "calls.same_bits")
class _StateLeaks(Hooked):
    left: Any = 0.0

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        moved = State(last.h, (last.c + self.left).astype(last.c.dtype))
        self.left = 1e-7 if last.c.sum() > 0 else -1e-7
        return y, moved, tape


@fault("contract.not_deterministic", "the last bit of y is random", "calls.same_bits")
def _not_deterministic() -> Backend:
    calls = count()

    class K(Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            change_last_bits(y, next(calls))
            return y, last, tape

    return backend_of(K)


@fault("contract.rows_meet", "every row gets a little of the batch's mean", "rows.nan")
class _RowsMeet(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        return (weights, x + np.float32(1e-30) * x.sum(axis=1, keepdims=True, dtype=x.dtype), *rest)


@fault("contract.batch_multiple", "the last row of an odd batch is computed without its state", "rows.independent")
class _BatchMultiple(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        if state is not None and x.shape[1] % 2:
            state = State(state.h.copy(), state.c.copy())
            state.c[-1] = 0
        return weights, x, state, *rest


@fault("contract.strides_ignored", "x is read as if it were contiguous", "inputs.transposed")
class _StridesIgnored(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        return (weights, x if x.flags.c_contiguous else x.ravel(order="K").reshape(x.shape), *rest)


@fault("contract.read_only_refused", "a read-only x is an error", "inputs.read_only")
class _ReadOnlyRefused(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        x.flags.writeable = x.flags.writeable
        if not x.flags.writeable:
            raise BufferError("assignment destination is read-only")
        return weights, x, *rest


@fault("contract.no_steps", "T = 0 is an IndexError", "forward.sizes")
class _NoSteps(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        y[len(y) - 1].sum() if len(y) else y[0]
        return y, last, tape


@fault("contract.none_state", "an initial state of None is ones", "forward.no_state")
class _NoneState(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        if state is None:
            shape = ((x.shape[1], self.config.output_size), (x.shape[1], self.config.hidden_size))
            state = State(np.ones(shape[0], x.dtype), np.ones(shape[1], self.precision.compute))
        return weights, x, state, *rest


@fault("contract.one_step_stateless", "a call with one step starts from an h of zeros", "state.streaming")
class _OneStepStateless(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        if state is not None and len(x) == 1:
            state = State(np.zeros_like(state.h), state.c)
        return weights, x, state, *rest


@fault("contract.no_step_no_state", "a call with no step returns a state of zeros", "state.empty_piece")
class _NoStepNoState(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        return (y, last, tape) if len(x) else (y, State(0 * last.h, 0 * last.c), tape)


@fault(
    "contract.last_stride_ignored", "the columns of x are read one after another, whatever its stride", "inputs.strided"
)
class _LastStrideIgnored(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        if x.size and abs(x.strides[-1]) == 2 * x.itemsize:
            x = np.lib.stride_tricks.as_strided(x, strides=(*x.strides[:-1], x.itemsize))
        return weights, x, *rest


@fault("contract.masks_empty", "Masks() is taken for masks that are all 0", "masks.empty")
class _MasksEmpty(Hooked):
    def before(self, weights: Any, x: Array, state: Any, lengths: Any, masks: Masks | None) -> tuple[Any, ...]:
        if masks is not None and self.config.zoneout_cell and masks.zoneout_cell is None:
            shape = (*x.shape[:2], self.config.hidden_size)
            masks = masks._replace(zoneout_cell=np.zeros(shape, self.precision.compute))
        return weights, x, state, lengths, masks


def _backward_mutant(
    change: Callable[[NaiveKernel, Any, Array | None, State | None, Gradients], Gradients],
) -> Backend:
    class K(NaiveKernel):
        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            return change(self, saved, dy, dstate, super()._backward(weights, saved, dy, dstate))

    return backend_of(K)


@fault("contract.no_state_no_gradient", "without an initial state there is no gradient of it", "backward.no_state")
def _no_state_no_gradient() -> Backend:
    def change(kernel: NaiveKernel, saved: Any, dy: Any, dstate: Any, gradients: Gradients) -> Gradients:
        zero = saved.steps and not np.any(saved.steps[-1 if kernel.config.reverse else 0][1].h_before)
        return gradients._replace(state=None) if zero else gradients  # type: ignore[arg-type]  # the fault

    return _backward_mutant(change)


@fault("contract.nothing_used", "a backward of nothing is an error", "backward.nothing")
def _nothing_used() -> Backend:
    def change(kernel: NaiveKernel, saved: Any, dy: Any, dstate: Any, gradients: Gradients) -> Gradients:
        if dy is None and dstate is None:
            raise TypeError("nothing to differentiate")
        return gradients

    return _backward_mutant(change)


@fault("contract.tangent_needed", "jvp without a tangent of x is an error", "jvp.partial")
class _TangentNeeded(NaiveKernel):
    def _jvp(self, weights: Any, x: Array, state: Any, tangents: Any, *rest: Any) -> tuple[Forward, Forward]:
        return super()._jvp(weights, x, state, tangents._replace(x=tangents.x * 1), *rest)


@fault("contract.out_ignored", "out is not written to", "outputs.out")
class _OutIgnored(NaiveKernel):
    def _forward(self, *args: Any, out: Array | None, **options: Any) -> tuple[Array, State, Any]:
        return super()._forward(*args, out=None, **options)


@fault("contract.out_contiguous", "a strided out is filled as if it were contiguous", "outputs.out")
class _OutContiguous(NaiveKernel):
    def _forward(self, *args: Any, out: Array | None, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(*args, out=None, **options)
        if out is None:
            return y, last, tape
        whole = out if out.base is None or out.flags.c_contiguous else out.base
        whole.reshape(-1)[: y.size] = y.ravel()
        return out, last, tape


@fault("contract.pack_borrows", "weights are the arrays that were packed", "pack.copies")
class _PackBorrows(NaiveKernel):
    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        return dict(parameters)


@fault("contract.pack_borrows_for_backward", "gradients are made with the arrays that were packed", "pack.copies")
class _PackBorrowsForBackward(NaiveKernel):
    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        return super()._pack(parameters), dict(parameters)

    def _forward(self, weights: Any, *args: Any, **options: Any) -> tuple[Array, State, Any]:
        return super()._forward(weights[0], *args, **options)

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        return super()._backward(weights, replace(saved, parameters=weights[1]), dy, dstate)

    def _jvp(self, weights: Any, *args: Any) -> tuple[Forward, Forward]:
        return super()._jvp(weights[0], *args)


@fault("contract.one_pack", "the kernel keeps one set of weights", "pack.many")
class _OnePack(NaiveKernel):
    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        self.weights = super()._pack(parameters)
        return self.weights

    def _forward(self, weights: Any, *args: Any, **options: Any) -> tuple[Array, State, Any]:
        return super()._forward(self.weights, *args, **options)


@fault("contract.tape_used_up", "a second backward with the same tape adds to the first", "tape.reuse")
class _TapeUsedUp(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        gradients = super()._backward(weights, saved, dy, dstate)
        for _, step in saved.steps:
            step.c_before = step.c_before + 1
        return gradients


@fault("contract.frozen_state", "the final c is read-only, and the tape refers to it", "tape.owns")
class _FrozenState(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        last.c.flags.writeable = False
        return y, last, tape


@fault("contract.tape_shared", "the kernel keeps one tape, of the last recorded call", "tape.reuse")
class _TapeShared(NaiveKernel):
    last: Any = None

    def _forward(self, *args: Any, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(*args, **options)
        self.last = tape or self.last
        return y, last, tape

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        return super()._backward(weights, self.last, dy, dstate)


@fault("contract.threads_share", "a scratch array is shared between threads", "calls.threads")
def _threads_share() -> Backend:
    meet = meeting()

    class K(Hooked):
        scratch: Any = None

        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            self.scratch = x
            meet()
            return weights, self.scratch if self.scratch.shape == x.shape else x, *rest

    return backend_of(K)


@fault("contract.dtype_wider", "y and the gradients come back in float64", "forward.switches")
class _DtypeWider(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        return y.astype(np.float64), last, tape


@fault("contract.cell_narrow", "c comes back in float16 where it is stored in float32", "forward.switches", "float16")
class _CellNarrow(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        return y, State(last.h, last.c.astype(np.float16)), tape


@fault("contract.gradient_missing", "there is no gradient of the bias", "backward.switches")
class _GradientMissing(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        gradients = super()._backward(weights, saved, dy, dstate)
        named = {name: array for name, array in gradients.parameters.items() if name != "bias"}
        return gradients._replace(parameters=named)
