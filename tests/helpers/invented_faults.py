"""Faults that were invented by readers of the suite, who asked what a kernel could get wrong unseen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lstmcore.backend import Array, Backend, Gradients, State
from lstmcore_conformance.mutants.construction import Hooked, backend_of, edited
from lstmcore_conformance.oracle.naive import NaiveKernel

#: Name -> the check that sees it, words of the cases that do, the precision, and what makes the backend.
INVENTED: Final[dict[str, tuple[str, str, str, Callable[[], Backend]]]] = {}


def _invented(name: str, check: str, words: str = "", precision: str = "float32") -> Callable[[Any], Any]:
    def register(made: Any) -> Any:
        INVENTED[name] = check, words, precision, (lambda: backend_of(made) if isinstance(made, type) else made())
        return made

    return register


def _edit(name: str, check: str, old: str, new: str, precision: str = "float32") -> None:
    @_invented(name, check, precision=precision)
    def make() -> Backend:
        return backend_of(type("K", (NaiveKernel,), {"equations": edited((old, new))}))


# Sizes together with something else -----------------------------------------------------------------------------------


@_invented("zeros of a missing state are made for 32 rows", "large.batches", "N=65")
class _ShortZeros(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        if state is None and x.shape[1] > 32:
            h, c = (
                np.zeros((x.shape[1], size), x.dtype) for size in (self.config.output_size, self.config.hidden_size)
            )
            c[32:] = 0.25
            state = State(h, c)
        return weights, x, state, *rest


@_invented("rows of `out` beyond 32 are written one row too far", "large.batches", "N=65")
class _RowsOfOut(NaiveKernel):
    def _forward(self, *arguments: Any, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(*arguments, **options)
        if options["out"] is not None and y.shape[1] > 32:
            y[:, 33:] = np.array(y[:, 32:-1])
        return y, last, tape


@_invented("an x of negative strides is packed for 32 rows alone", "inputs.layouts", "tiles")
class _PackedRows(Hooked):
    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        if min(x.strides) < 0 and x.shape[1] > 32:
            x = np.ascontiguousarray(x)
            x[:, 32:] = x[:, 32:][:, ::-1]
        return weights, x, *rest


@_invented("the tape copies x up to 1,024 rows, and borrows more", "tape.owns", "tiles")
class _Borrowed(NaiveKernel):
    def _forward(self, weights: Any, x: Array, *rest: Any, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(weights, x, *rest, **options)
        return y, last, (tape, x)

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        tape, x = saved
        gradients = super()._backward(weights, tape, dy, dstate)
        lost = x.shape[0] * x.shape[1] > 1024 and np.isnan(x).all()
        return gradients._replace(x=0 * gradients.x) if lost else gradients


@_invented("lengths are kept in 8 bits", "large.random_masks", "T=260")
class _Bytes(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any) -> tuple[Any, ...]:
        return weights, x, state, lengths if lengths is None else lengths % 256, masks


@_invented("of every eight steps the last is skipped where no step is left over", "large.batches", "multiples")
class _Unrolled(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if len(y) and len(y) % 8 == 0:
            y[7::8] = 0
        return y, last, tape


@_invented("a projection of one output reads the first unit alone", "forward.sizes")
class _OneOutput(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if self.config.proj_size == 1:
            y *= 0.5
        return y, last, tape


@_invented("a batch of two rows is computed as one row of twice the width", "forward.sizes or drawn.rows")
class _TwoRows(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        if y.shape[1] == 2:
            y[:, 1] = y[:, 0]
        return y, last, tape


@_invented("the recurrent mask is applied twice in backward from the 33rd row on", "large.random_masks", "N=37")
class _MaskTwice(NaiveKernel):
    def _forward(self, weights: Any, x: Any, state: Any, lengths: Any, masks: Any, **options: Any) -> Any:
        y, last, tape = super()._forward(weights, x, state, lengths, masks, **options)
        return y, last, (tape, None if masks is None else masks.recurrent)

    def _backward(self, weights: Any, saved: Any, dy: Any, dstate: Any) -> Gradients:
        tape, mask = saved
        gradients = super()._backward(weights, tape, dy, dstate)
        if mask is not None and len(mask) > 32 and mask.shape == gradients.state.h.shape:
            gradients.state.h[32:] *= mask[32:]
        return gradients


# Values ---------------------------------------------------------------------------------------------------------------


@_invented("hard_sigmoid is made of fmin and fmax, which drop a NaN", "values.nan", "hard_sigmoid")
def _fmin() -> Backend:
    text = '    return value(config.cell_activation if k == "g" else config.gate_activation, z)\n'
    new = (
        '    function = config.cell_activation if k == "g" else config.gate_activation\n'
        "    if function.name == 'hard_sigmoid':\n"
        "        return np.fmin(np.fmax(function.alpha * z + function.beta, 0), 1)\n"
        "    return value(function, z)\n"
    )
    return backend_of(type("K", (NaiveKernel,), {"equations": edited((text, new))}))


@_invented("numbers of functions are float32 in a model of float64", "forward.switches", "scaled_tanh", "float64")
class _Float32Numbers(NaiveKernel):
    def __init__(self, backend: Any, config: Any, precision: Any) -> None:
        changes = {}
        for place in ("gate_activation", "cell_activation", "hidden_activation"):
            function = getattr(config, place)
            numbers = {k: float(np.float32(v)) for k in ("alpha", "beta") if (v := getattr(function, k)) is not None}
            changes[place] = replace(function, **numbers)
        super().__init__(backend, replace(config, **changes), precision)


# Between calls --------------------------------------------------------------------------------------------------------


@_invented("every 256th call adds 1 to y", "calls.many")
class _Every256th(Hooked):
    calls = 0

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        self.calls += 1
        if self.calls % 256 == 0:
            y = y + y.dtype.type(1)
        return y, last, tape


@_invented("a pack is finished by the first call, and others meet it half made", "calls.cold_threads")
def _lazy() -> Backend:
    lock, used = threading.Lock(), threading.Event()

    class K(Hooked):
        def _pack(self, parameters: Any) -> Any:
            return {"made": None, **super()._pack(parameters)}

        def before(self, weights: Any, *rest: Any) -> tuple[Any, ...]:
            whole = {name: array for name, array in weights.items() if name != "made"}
            with lock:
                first = weights["made"] is None
                weights["made"] = {name: 0 * array for name, array in whole.items()} if first else weights["made"]
            if not first:
                used.set()
                return weights["made"], *rest
            if threading.current_thread() is not threading.main_thread():
                used.wait(timeout=60)  # until another thread has met it half made
            weights["made"] = whole
            return whole, *rest

    return backend_of(K)


@_invented("recorded calls draw from NumPy's random state", "calls.surroundings", "plain")
class _Draws(Hooked):
    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        np.random.random()
        return y, last, tape


@_invented("the tape reads the caller's masks in backward", "tape.owns", "zoneout_hidden")
class _BorrowedMasks(NaiveKernel):
    def _forward(self, weights: Any, x: Any, state: Any, lengths: Any, masks: Any, **options: Any) -> Any:
        y, last, tape = super()._forward(weights, x, state, lengths, masks, **options)
        return y, last, (tape, None if masks is None else masks.zoneout_hidden)

    def _backward(self, weights: Any, saved: Any, dy: Any, dstate: Any) -> Gradients:
        tape, mask = saved
        gradients = super()._backward(weights, tape, dy, dstate)
        lost = mask is not None and np.isnan(mask).any()
        return gradients._replace(x=0 * gradients.x) if lost else gradients


# Tangents -------------------------------------------------------------------------------------------------------------


@_invented("the tangent of the bias alone is taken for none", "jvp.some")
class _BiasAlone(NaiveKernel):
    def _jvp(self, weights: Any, x: Any, state: Any, tangents: Any, *rest: Any) -> Any:
        if tangents.x is None and tangents.state is None and set(tangents.parameters or {}) == {"bias"}:
            tangents = tangents._replace(parameters={})
        return super()._jvp(weights, x, state, tangents, *rest)


_edit(
    "the tangent of a projection on its lower bound is lost",
    "jvp.kinks",
    "th_new = th_new * inside(step.h_unclipped, config.proj_clip)",
    "th_new = th_new * ((step.h_unclipped <= config.proj_clip) & (step.h_unclipped > -config.proj_clip))",
)
