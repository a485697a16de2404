"""Kernels whose faults plain value checks miss: they need many calls, wide batches or unusual memory."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np

from lstmcore.backend import Array, Backend, Masks, State
from lstmcore_conformance.mutants.construction import Hooked, backend_of, change_last_bits, fault
from lstmcore_conformance.oracle.naive import NaiveKernel


def _halved(state: State) -> State:
    """Return the state with its cell rounded to float16."""
    return State(state.h, state.c.astype(np.float16).astype(state.c.dtype))


@fault("hidden.resumed_in_half", "a state that the kernel returned is kept in float16", "state.resume")
class _ResumedInHalf(Hooked):
    last: Any = None

    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        known = state is not None and self.last is not None and np.array_equal(state.c, self.last)
        return weights, x, _halved(state) if known and state is not None else state, *rest

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        self.last = last.c.copy()
        return y, last, tape


@fault(
    "hidden.wide_resumed_in_half",
    "a state that the kernel returned is kept in float16 where it has more than six rows",
    "drawn.pieces",
)
class _WideResumedInHalf(_ResumedInHalf):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        return super().before(weights, x, *rest) if x.shape[1] > 6 else (weights, x, *rest)


@fault("hidden.drifts", "after 500 calls the state that comes in loses its last bits", "state.long")
class _Drifts(Hooked):
    calls = 0

    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        self.calls += 1
        return weights, x, state if state is None or self.calls < 500 else _halved(state), *rest


@fault("hidden.leaks", "every call keeps its y", "calls.memory")
class _Leaks(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        self.kept = [*getattr(self, "kept", []), y.copy()]
        return y, last, tape


@fault("hidden.bits_of_wide_batches", "with more than seven rows the last bit of y is random", "drawn.same_bits")
def _bits_of_wide_batches() -> Backend:
    calls = count()

    class K(Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            if y.shape[1] > 7:
                change_last_bits(y, next(calls))
            return y, last, tape

    return backend_of(K)


@fault("hidden.scratch_in_x", "with more than eight steps x is used as scratch", "drawn.unchanged")
class _ScratchInX(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if len(x) > 8 and x.flags.writeable:
            x[...] = 0
        return y, last, tape


@fault("hidden.unaligned_refused", "an x that is not aligned is an error", "inputs.unaligned")
class _UnalignedRefused(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        if not x.flags.aligned:
            raise ValueError("x: expected aligned memory")
        return weights, x, *rest


@fault("hidden.broadcast_refused", "an x whose elements share memory is read past its end", "inputs.broadcast")
class _BroadcastRefused(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        shared = x.size and 0 in [stride for stride, size in zip(x.strides, x.shape, strict=True) if size > 1]
        return (weights, x * 1.5 if shared else x, *rest)


@fault("hidden.error_handling", "a call switches NumPy's warnings off for good", "calls.surroundings")
class _ErrorHandling(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        np.seterr(over="ignore" if np.geterr()["over"] != "ignore" else "warn")
        return (weights, x, *rest)


@fault(
    "hidden.own_masks", "a recorded call without an initial state turns the recurrent mask around", "masks.generator"
)
class _OwnMasks(NaiveKernel):
    def _forward(
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None, **options: Any
    ) -> tuple[Array, State, Any]:
        if options["record"] and state is None and masks is not None and masks.recurrent is not None:
            masks = masks._replace(recurrent=masks.recurrent[::-1])
        return super()._forward(weights, x, state, lengths, masks, **options)
