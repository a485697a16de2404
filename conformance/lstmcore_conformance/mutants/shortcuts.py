"""Kernels with a shortcut that is right for usual arguments.

It is wrong for special values, for arguments that are one array, or for later contents of the same array.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Final

import numpy as np

from lstmcore.backend import Array, Backend, Gradients, State
from lstmcore.config import Activation, LSTMConfig
from lstmcore.stored_weights import SAME, is_matrix
from lstmcore_conformance.mutants.construction import Hooked, backend_of, edit, edits, fault, meeting, preceded
from lstmcore_conformance.oracle.naive import NaiveKernel

# Values ---------------------------------------------------------------------------------------------------------------

_MASKS: Final = "        given = _masks_at(config, masks, t, batch, dtype)\n"
edits(
    "shortcut.zero_rows",
    "a row of x that is zero counts as padding",
    (preceded(_MASKS, "        active = active & np.asarray(x[t]).any(axis=1, keepdims=True)\n"),),
    "values.sparse",
)
edits(
    "shortcut.one_hot",
    "a row of x with one number chooses a column of W, whatever the number is",
    (
        preceded(
            "    x, recurrent = _operand(x, policy), _operand(recurrent, policy)\n",
            "    if config.input_size > 1:\n"
            "        x = np.where((x != 0).sum(axis=1, keepdims=True) == 1, (x != 0).astype(x.dtype), x)\n",
        ),
    ),
    "values.sparse",
)


@fault("shortcut.no_state", "a state whose h or c is zero counts as none", "values.sparse")
class _NoState(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        return weights, x, state if state is None or (state.h.any() and state.c.any()) else None, *rest


@fault("shortcut.largest_state", "an infinite state is taken for the largest number", "values.infinite_state")
class _LargestState(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        known = None if state is None else State(*(np.nan_to_num(array, nan=np.nan) for array in state))
        return weights, x, known, *rest


edit(
    "shortcut.nan_of_zoneout",
    "a new cell that is NaN is 0",
    "    step.c = keep_c * c_before + (1 - keep_c) * c_new\n",
    "    step.c = keep_c * c_before + (1 - keep_c) * c_new\n"
    "    step.c = np.where(np.isnan(step.c) & (keep_c == 1), 0, step.c)\n",
    "masks.unselected",
)


@fault("shortcut.odd_mask", "zoneout masks with other values than 0 and 1 count as none", "masks.odd")
class _OddMask(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any) -> tuple[Any, ...]:
        zoneout = () if masks is None else [mask for mask in masks[1:] if mask is not None]
        return weights, x, state, lengths, masks if all(np.isin(mask, (0, 1)).all() for mask in zoneout) else None


# Lengths and out ------------------------------------------------------------------------------------------------------


@fault("shortcut.equal_lengths", "lengths that are all equal count as none", "lengths.forward")
class _EqualLengths(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any) -> tuple[Any, ...]:
        return weights, x, state, None if lengths is not None and np.ptp(lengths) == 0 else lengths, masks


@fault("shortcut.single_step", "a call of one step ignores lengths", "lengths.forward")
class _SingleStep(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any) -> tuple[Any, ...]:
        return weights, x, state, None if len(x) == 1 else lengths, masks


@fault("shortcut.end_of_out", "in `out` the steps after the end of every row are not written", "outputs.layouts")
class _EndOfOut(NaiveKernel):
    def _forward(
        self, weights: Any, x: Array, state: Any, lengths: Any, masks: Any, **options: Any
    ) -> tuple[Array, State, Any]:
        out = options["out"]
        rest = None if lengths is None or out is None else out[lengths.max() :]
        before = None if rest is None else np.array(rest)
        done = super()._forward(weights, x, state, lengths, masks, **options)
        if rest is not None:
            rest[...] = before
        return done


# Arrays that are one, or have strides of 0 ----------------------------------------------------------------------------


def _updated_in_place(pair: State | None) -> State | None:
    """Return what a kernel reads that updates h in place, and then c, which is the same array."""
    return State(pair.h, pair.c + pair.c) if pair is not None and pair.h is pair.c else pair


@fault("shared.state", "h and c that are one array are updated one after the other", "inputs.shared")
class _SharedState(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        return weights, x, _updated_in_place(state), *rest


@fault("shared.state_gradient", "gradients of h and c that are one array are updated in turn", "inputs.shared")
class _SharedGradient(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        return super()._backward(weights, saved, dy, _updated_in_place(dstate))


@fault("shared.y", "backward works in the y of its call, which may be dy", "inputs.shared")
class _SharedY(NaiveKernel):
    def _forward(self, *arguments: Any, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(*arguments, **options)
        return y, last, (tape, y)

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        tape, y = saved
        return super()._backward(weights, tape, None if dy is y else dy, dstate)


@fault("strides.gradient_of_sum", "a dy that is one number is read as an array of zeros", "inputs.broadcast")
class _GradientOfSum(NaiveKernel):
    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        one = dy is not None and dy.size > 1 and not any(dy.strides)
        return super()._backward(weights, saved, None if one else dy, dstate)


@fault("strides.state_of_all_rows", "a state that all rows share is that of the first row alone", "inputs.broadcast")
class _StateOfAllRows(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        if state is not None and state.h.strides[0] == 0 != state.h.strides[1]:
            state = State(*(np.array(array) for array in state))
            state.h[1:] = 0
        return weights, x, state, *rest


# Between calls --------------------------------------------------------------------------------------------------------


@fault("kept.converted_x", "an x that was seen is not read again, though its contents have changed", "inputs.refilled")
class _ConvertedX(Hooked):
    seen: tuple[Any, Any] = (lambda: None, None)

    def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
        if self.seen[0]() is not x:
            self.seen = weakref.ref(x), x.copy()
        return weights, self.seen[1], *rest


@fault("kept.returned_state", "a state that was returned is not read again", "inputs.refilled")
class _ReturnedState(Hooked):
    kept: tuple[Any, Any] = (None, None)

    def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
        last, copies = self.kept
        return weights, x, copies if state is not None and last is not None and state.c is last.c else state, *rest

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        self.kept = last, State(*(np.array(array) for array in last))
        return y, last, tape


@fault("kept.first_rows", "packed weights are known by the first row of each matrix", "pack.many")
def _first_rows() -> Backend:
    seen: dict[Any, Any] = {}

    class K(NaiveKernel):
        def _pack(self, parameters: Mapping[str, Array]) -> Any:
            rows = tuple((name, array[0].tobytes()) for name, array in parameters.items() if is_matrix(name))
            return seen.setdefault((self.config, self.precision, rows), super()._pack(parameters))

    return backend_of(K)


def _in_three_digits(value: object) -> object:
    if isinstance(value, Activation):
        return value.name, _in_three_digits(value.alpha), _in_three_digits(value.beta)
    return f"{value:.3g}" if isinstance(value, float) else value


@fault("kept.three_digits", "kernels are kept by numbers of three digits", "models.numbers")
def _three_digits() -> Backend:
    seen: dict[Any, LSTMConfig] = {}

    class K(NaiveKernel):
        def __init__(self, backend: Any, config: LSTMConfig, precision: Any) -> None:
            key = (
                precision.name,
                *(_in_three_digits(getattr(config, each.name)) for each in fields(config) if each.init),
            )
            super().__init__(backend, seen.setdefault(key, config), precision)

    return backend_of(K)


@fault("places.first", "a function has the numbers of its first place in every place", "models.places")
class _FirstPlace(NaiveKernel):
    def __init__(self, backend: Any, config: LSTMConfig, precision: Any) -> None:
        first: dict[str, Activation] = {}
        places = ("gate_activation", "cell_activation", "hidden_activation")
        known: dict[str, Any] = {}
        for name in places:
            known[name] = first.setdefault(getattr(config, name).name, getattr(config, name))
        super().__init__(backend, replace(config, **known), precision)


class _Numbered(NaiveKernel):
    """A kernel whose tapes have a number, the thread that recorded them, and `out`."""

    recorded = 0

    def _forward(self, *arguments: Any, **options: Any) -> tuple[Array, State, Any]:
        y, last, tape = super()._forward(*arguments, **options)
        self.recorded += 1
        return y, last, (tape, self.recorded, threading.get_ident(), options["out"])

    def _lost(self, number: int, thread: int, out: Array | None) -> bool:
        """Return whether backward finds nothing."""
        raise NotImplementedError

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        gradients = super()._backward(weights, saved[0], dy, dstate)
        return gradients._replace(x=0 * gradients.x) if self._lost(*saved[1:]) else gradients


@fault("tape.pool", "there is room for 128 tapes: a later one takes the place of the first", "tape.many")
class _Pool(_Numbered):
    def _lost(self, number: int, thread: int, out: Array | None) -> bool:
        return self.recorded - number >= 128


@fault("tape.thread", "a tape belongs to the thread that recorded it", "tape.many")
class _Thread(_Numbered):
    def _lost(self, number: int, thread: int, out: Array | None) -> bool:
        return thread != threading.get_ident()


@fault("tape.aliases_out", "the tape reads h from `out`", "tape.owns")
class _AliasesOut(_Numbered):
    def _lost(self, number: int, thread: int, out: Array | None) -> bool:
        return out is not None and bool(np.isnan(out).all())


@fault("kept.shared_by_models", "all models work in one memory, and each has its own lock", "calls.models")
def _shared_by_models() -> Backend:
    meet = meeting()

    class K(Hooked):
        shared: ClassVar[dict[Any, Any]] = {}

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.lock = threading.Lock()

        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            with self.lock:
                self.shared[x.shape] = x
                meet()
                return weights, self.shared[x.shape], *rest

    return backend_of(K)


@fault("tape.one_thread", "backward works in memory that the tape holds", "tape.threads")
def _one_thread() -> Backend:
    meet = meeting()

    class K(NaiveKernel):
        def _forward(self, *arguments: Any, **options: Any) -> tuple[Array, State, Any]:
            y, last, tape = super()._forward(*arguments, **options)
            return y, last, (tape, {})

        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            tape, room = saved
            room["dy"] = dy
            meet()
            return super()._backward(weights, tape, room["dy"], dstate)

    return backend_of(K)


@fault("tape.met_others", "a tape keeps the last weights that it was used with", "tape.other_weights")
class _MetOthers(_Numbered):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.known: dict[int, Any] = {}

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        known = self.known.setdefault(saved[1], weights)
        gradients = super()._backward(weights, saved, dy, dstate)
        if known is not weights:
            self.known[saved[1]] = None
        return gradients if known is weights else gradients._replace(x=0 * gradients.x)

    def _lost(self, number: int, thread: int, out: Array | None) -> bool:
        return False


# Initial parameters and NaN -------------------------------------------------------------------------------------------


@fault("initial.gains_of_one", "layer norm whose gains are all one is left out", "stack.initial")
class _GainsOfOne(NaiveKernel):
    def _forward(self, weights: Any, *arguments: Any, **options: Any) -> tuple[Array, State, Any]:
        own, gains = self.config, [array for name, array in weights.items() if name.startswith("norm_gain")]
        if not gains or any((array != 1).any() for array in gains):
            return super()._forward(weights, *arguments, **options)
        try:
            self.config = replace(own, layer_norm=False)
            known = {name: weights[name] for name in self.config.parameter_shapes}
            return super()._forward(known, *arguments, **options)
        finally:
            self.config = own


@fault("initial.bias_of_one", "a bias that is one number in the forget gate is that number everywhere", "stack.initial")
class _BiasOfOne(Hooked):
    def before(self, weights: Any, *arguments: Any) -> tuple[Any, ...]:
        hidden = self.config.hidden_size
        if "f" in self.config.gates and "bias" in weights and hidden > 1:
            forget = weights["bias"].reshape(-1, hidden)[self.config.gates.index("f")]
            if np.ptp(forget) == 0:
                weights = {**weights, "bias": np.full_like(weights["bias"], forget[0])}
        return weights, *arguments


@fault("nan.no_gradients", "where one row has a NaN the gradients of all rows are 0", "backward.nan")
class _NoGradients(NaiveKernel):
    def _backward(self, *arguments: Any) -> Gradients:
        gradients = super()._backward(*arguments)
        return gradients._replace(x=0 * gradients.x) if np.isnan(gradients.state.h).any() else gradients


@fault("nan.index", "the derivative of a function is looked up, and NaN has no place in the table", "backward.nan")
class _Index(NaiveKernel):
    def _backward(self, *arguments: Any) -> Gradients:
        gradients = super()._backward(*arguments)
        if np.isnan(gradients.state.h).any():
            raise IndexError("index -9223372036854775808 is out of bounds")
        return gradients


# Stored weights -------------------------------------------------------------------------------------------------------


@fault("weights.without_lengths", "with stored weights lengths are ignored", "weights.int8", shown_by="not int8a16")
class _WithoutLengths(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any) -> tuple[Any, ...]:
        return weights, x, state, None if self.precision.weights != SAME else lengths, masks


@fault("weights.without_masks", "with stored weights masks are ignored", "weights.float16")
class _WithoutMasks(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Any) -> tuple[Any, ...]:
        return weights, x, state, lengths, None if self.precision.weights != SAME else masks
