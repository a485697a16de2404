"""The LSTM in vector code that is made for this processor and this configuration."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore.backend import (
    Backend,
    Capabilities,
    Forward,
    Gradients,
    Kernel,
    Masks,
    Receipt,
    StackMasks,
    State,
    Tangents,
)
from lstmcore.config import FEATURES, LSTMConfig, StackConfig, integer
from lstmcore.precision import Precision, numpy_dtype
from lstmcore.stack import ComposedStack, StackTape
from lstmcore_numba import cell as steps
from lstmcore_numba import time_loop as passes
from lstmcore_numba.codegen.step_compiler import address
from lstmcore_numba.gemm import bf16
from lstmcore_numba.gemm.amx import PARTS
from lstmcore_numba.gemm.vector import PANEL
from lstmcore_numba.layer_norm import cell_gradients, gain_gradients, linear_steps
from lstmcore_numba.packing import Array, Layout, OwnMasks, Weights, aligned, in_order, own_masks, pack, padded
from lstmcore_numba.runtime import buffer_pool as memory
from lstmcore_numba.runtime.thread_pool import ALONE, ROWS, WORTH, Threads, thread_count
from lstmcore_numba.runtime.worker_loop import KEPT_BYTES
from lstmcore_numba.workspace import (
    Room,
    Sharing,
    forward_on_amx,
    in_parts,
    make_room,
    on_amx,
    run_beside,
    sharing,
    wave_ahead,
)

#: Bytes of a room at most that a thread keeps for its next call, and rooms that it keeps.
_KEPT_BYTES: Final = 1 << 22
_KEPT_ROOMS: Final = 8
#: Integers from a number that one thread writes to the next one, which another writes: no cache line has both.
_APART: Final = 16
#: Multiply-adds in the time of which a number is normalised, about.
_NORM_COST: Final = 32
_NO_BFLOAT16: Final = "NumPy has it from the package ml_dtypes alone: 'pip install ml_dtypes'"


@dataclass(frozen=True, slots=True)
class Saved:
    """The tape: for all steps by time index, in whole vectors."""

    weights: Weights
    lengths: Array
    masks: OwnMasks
    x: Array
    room: Room
    norms: passes.Norms | None


class _Kept:
    """What a thread keeps for its next call of the same sizes: room, and a pass that can run again.

    Attributes
    ----------
    weights
        Those of the pass that can run again; None where there is none.
    code, memory, places
        Its machine code, its arguments, and the addresses at which these tell of y and x.
    args
        What the arguments tell of, so that it stays.
    """

    __slots__ = ("args", "code", "memory", "places", "room", "weights")

    def __init__(self, room: Room) -> None:
        self.room = room
        self.weights: Weights | None = None
        self.code, self.memory, self.places = 0, 0, (0, 0)
        self.args: tuple[Any, ...] = ()

    def keep(self, weights: Weights, code: int, memory: Array, args: tuple[Any, ...]) -> None:
        """Let a pass run again: with machine code `code` and arguments in `memory`, which tell of `args`."""
        places = memory[KEPT_BYTES // 8 :]
        self.code, self.memory = code, memory.ctypes.data
        self.places = int(places[passes.Y_PLACE]), int(places[passes.X_PLACE])
        self.weights, self.args = weights, (memory, *args)


class _Begun(NamedTuple):
    """A forward call before its pass; `held` is what `args` tells of by addresses."""

    args: tuple[Any, ...]
    held: tuple[Any, ...]
    room: Room
    y: Array
    last_h: Array
    last_c: Array
    empty: Array | None
    saved: Saved | None


class _InWave(NamedTuple):
    """A layer of a wavefront.

    Attributes
    ----------
    lowest
        Whether it is the lowest of the stack: what others read is an own array, and has no values yet.
    place
        Its number in the wavefront.
    ahead
        By how many steps layers are behind the ones below.
    tells
        What it and its neighbours tell each other.
    """

    lowest: bool
    place: int
    ahead: int
    tells: passes.Wave


class _BegunBackward(NamedTuple):
    """A backward call before its pass."""

    args: tuple[Any, ...]
    sharing: Sharing
    dz: Array
    dz_h: Array
    dc_out: Array
    dprojected: Array
    dh: Array
    dc: Array


class NumbaKernel(Kernel):
    """One layer in one direction. Every call has its own buffers, so calls may run side by side."""

    def __init__(self, backend: NumbaBackend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.limit = backend.threads
        self.dtype, self.storage = np.dtype(precision.compute), numpy_dtype(precision.storage)
        self.same_dtype = self.dtype == self.storage
        self.layout = Layout(config, self.dtype)
        self.of_cell = config.recurrence == "cell"
        self.pairs = precision.storage == "bfloat16" and not self.of_cell and bf16.usable()
        self.raw = steps.needs_raw(config)
        self.of_steps = steps.seen_by_steps(config, self.layout.lanes)
        self.codes: dict[Any, int] = {}
        self.no_masks = own_masks(self.layout, None, None)
        self.kept = threading.local()

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        path = f"vectors of {8 * self.layout.lanes * self.dtype.itemsize} bits"
        if batch is not None and forward_on_amx(self.layout, batch):
            path += ", products on AMX"
        elif self.pairs:
            path += ", products of bfloat16 pairs"
        return Receipt(self.backend.name, "cpu", self.precision.name, path, "made for this processor and this LSTM")

    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        return pack(self.layout, parameters)

    def _code(self, emit: Any, masks: OwnMasks, *, record: bool) -> int:
        """The address of a step function."""
        key = (emit, len(masks.cell) > 0, len(masks.hidden) > 0, record)
        if key not in self.codes:
            variant = steps.Variant(
                self.of_steps,
                self.precision.compute,
                self.precision.storage,
                self.layout.lanes,
                masked_c=key[1],
                masked_h=key[2],
                record=record,
            )
            self.codes[key] = address(emit, variant)
        return self.codes[key]

    def _threads(self, most: int, cost: float) -> Threads:
        return Threads(most, cost, self.limit)

    # forward ----------------------------------------------------------------------------------------------------------

    def _forward(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Saved | None]:
        begun = self._begin(weights, x, state, lengths, masks, record=record, out=out)
        with self._threads(begun.room.sharing.most, begun.room.sharing.cost) as team:
            passes.forward(team, *begun.args)
        return self._end(begun, state, out)

    def _begin(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
        wave: _InWave | None = None,
    ) -> _Begun:
        """The arrays of a call, and the arguments of its pass."""
        config, dtype = self.config, self.dtype
        count, batch, _ = x.shape
        empty = None if lengths is None else lengths == 0
        own = self.no_masks if masks is None else own_masks(self.layout, masks, empty)
        kept = self._room(count, batch, masked=len(own.recurrent) > 0, record=record, wave=wave)
        room = kept.room
        ends = room.full if lengths is None else np.array(lengths, np.int64)
        own_x, input_weight, short = x, weights.input, None
        if wave is None or wave.lowest:
            active = x if lengths is None else _active(x, ends)
            if record or room.short is None:
                own_x = self._own(active)
            if record and own_x is x:
                own_x = in_order(x)
        read_x = own_x
        if room.short is not None:
            read_x, input_weight = bf16.paired(active), weights.paired("input")
            short = passes.Short(weights.paired("recurrent"), room.short)
        first_h, first_c = room.zero_h, room.zero_c
        if state is not None:
            first_h, first_c = state
            if empty is not None:
                # A row without steps only hands its state on: with 0 in its place a NaN there reaches no product.
                first_h, first_c = (_zeroed(empty, part) for part in (first_h, first_c))
            first_h, first_c = self._own(first_h), self._own(first_c)
        y_dtype = dtype if short is None else self.storage
        direct = out is not None and y_dtype == self.storage and out.flags.carray
        y = out if direct and out is not None else memory.empty((count, batch, config.output_size), y_dtype)
        own_y = y if short is None else y.view(np.uint16)
        last_h, last_c = np.empty(room.zero_h.shape, dtype), np.empty(room.zero_c.shape, dtype)
        norms = self._norms(room, weights)
        args = (
            config.reverse,
            room.h,
            room.c,
            own_y,
            room.sharing.by_units,
            self._code(steps.forward, own, record=record),
            self._code(steps.forward_output, own, record=record) if config.proj_size else 0,
            self._code(steps.forward_cell, own, record=record) if config.layer_norm else 0,
            config.hidden_size,
            norms,
            self.of_cell,
            ends,
            read_x,
            input_weight,
            weights.recurrent,
            weights.bias,
            weights.peephole,
            weights.projection,
            own.recurrent,
            own.hidden,
            own.cell,
            room.gates,
            room.raw,
            room.operand,
            room.q,
            room.projected,
            room.ahead,
            self._cut(room, weights),
            short,
            room.counter,
            None if wave is None else wave.tells,
        )
        memory_of_args = np.empty(KEPT_BYTES // 8 + len(args), np.int64)
        code = passes.keep_forward(memory_of_args, memory_of_args[KEPT_BYTES // 8 :], *args)
        plain = masks is None and lengths is None and wave is None
        if plain and not record and room.size <= _KEPT_BYTES:
            kept.keep(weights, code, memory_of_args, args)
        call = (
            code,
            memory_of_args.ctypes.data,
            room.counter,
            first_h,
            first_c,
            last_h,
            last_c,
            config.reverse,
            room.h,
            room.c,
            own_y,
        )
        saved = Saved(weights, ends, own, own_x, room, norms) if record else None
        return _Begun(call, (args, memory_of_args), room, y, last_h, last_c, empty, saved)

    def _end(self, begun: _Begun, state: State | None, out: Array | None) -> tuple[Array, State, Saved | None]:
        """What `_forward` returns, after the pass."""
        y, last_h, empty = begun.y, begun.last_h, begun.empty
        last = State(last_h if self.same_dtype else last_h.astype(self.storage), begun.last_c)
        if state is not None and empty is not None:
            last.h[empty], last.c[empty] = state.h[empty], state.c[empty]
        if out is None:
            out = y.astype(self.storage, copy=False)
        elif y is not out:
            out[...] = y
        return out, last, begun.saved

    def _own(self, array: Array) -> Array:
        """`array`, or a copy: in the dtype of arithmetic, in order and one that may be written to.

        Compiled code is made for such arrays, though it does not write to these.
        """
        if array.dtype == self.dtype and array.flags.carray:
            return array
        return np.array(array, self.dtype, order="C")

    def _room(self, count: int, batch: int, *, masked: bool, record: bool, wave: _InWave | None) -> _Kept:
        """Room for a call: that of an earlier one of this thread and these sizes, where nothing is recorded."""
        place, ahead = (None, None) if wave is None else (wave.place, wave.ahead)

        def make() -> _Kept:
            return _Kept(
                make_room(
                    self.layout,
                    count,
                    batch,
                    masked=masked,
                    record=record,
                    raw=self.raw,
                    most_ahead=ahead,
                    short=self.pairs and not masked and not forward_on_amx(self.layout, batch),
                )
            )

        if record:
            return make()
        rooms = self._rooms()
        key = (count, batch, masked, place)
        kept = rooms.get(key)
        if kept is None:
            kept = make()
            if kept.room.size <= _KEPT_BYTES:
                while len(rooms) >= _KEPT_ROOMS:
                    del rooms[next(iter(rooms))]
                rooms[key] = kept
        return kept

    def _rooms(self) -> dict[tuple[int, int, bool, int | None], _Kept]:
        """By steps, rows, whether a mask scales what the recurrent weights multiply, and place in a wavefront."""
        rooms: dict[tuple[int, int, bool, int | None], _Kept] | None = getattr(self.kept, "rooms", None)
        if rooms is None:
            rooms = self.kept.rooms = {}
        return rooms

    def again(self, weights: Weights, x: Array, state: State | None, out: Array | None) -> Forward | None:
        """As `NumbaStack.forward` of this kernel alone; None unless this thread has made such a call before.

        A short call spends most of its time before and after its pass. Here all of it that stays is kept.
        """
        kept = self._rooms().get((x.shape[0], x.shape[1], False, None))
        if kept is None or kept.weights is not weights or not x.flags.carray:
            return None
        room, dtype = kept.room, self.dtype
        if room.short is None and not self.same_dtype:
            return None
        y_shape, h_shape, c_shape = room.shapes
        first_h, first_c = room.no_state if state is None else state
        if out is None:
            out = np.empty(y_shape, self.storage)
        if not (out.flags.carray and first_h.flags.carray and first_c.flags.carray):
            return None
        own_y = out
        if room.short is not None:
            own_y, x, first_h = out.view(np.uint16), bf16.paired(x), first_h.astype(dtype)
        last_h, last_c = np.empty(h_shape, dtype), np.empty(c_shape, dtype)
        args = (
            kept.code,
            kept.memory,
            *kept.places,
            room.counter,
            first_h,
            first_c,
            last_h,
            last_c,
            self.config.reverse,
            room.h,
            room.c,
            own_y,
            x,
        )
        if room.sharing.most <= 1 or room.sharing.cost < 2 * WORTH:  # as `Threads` would find, in no time
            passes.forward_again(ALONE, *args)
        else:
            with self._threads(room.sharing.most, room.sharing.cost) as team:
                passes.forward_again(team, *args)
        return Forward(out, State(last_h if self.same_dtype else last_h.astype(self.storage), last_c), None)

    def _cut(self, room: Room, w: Weights) -> passes.Cut | None:
        """The operands in parts, where products run on AMX."""
        if room.cut is None:
            return None
        gates, vectors = self.layout.gates, self.layout.blocks * self.layout.gates
        of_x = w.cut("input", vectors, gates, self.config.input_size)
        of_h = w.cut("recurrent", vectors, gates, self.config.recurrent_size)
        return None if of_x is None or of_h is None else passes.Cut(of_x, of_h, *room.cut)

    def _norms(self, room: Room, w: Weights) -> passes.Norms | None:
        """What layer norm needs and leaves."""
        if room.norms is None:
            return None
        return passes.Norms(*room.norms, w.gain_x, w.gain_h, w.gain_c, w.shift_c, self.config.layer_norm_eps)

    # backward ---------------------------------------------------------------------------------------------------------

    def _backward(self, weights: Weights, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        begun = self._begin_backward(saved, dy, dstate)
        with self._threads(begun.sharing.most, begun.sharing.cost) as team:
            passes.backward(team, *begun.args)
        return self._end_backward(saved, begun)

    def _begin_backward(self, saved: Saved, dy: Array | None, dstate: State | None) -> _BegunBackward:
        """The arrays of a backward pass, and its arguments."""
        config, layout, dtype = self.config, self.layout, self.dtype
        count, batch, _ = saved.x.shape
        w, masks = saved.weights, saved.masks
        dh, dc = np.zeros((batch, layout.output), dtype), np.zeros((batch, layout.hidden), dtype)
        if dstate is not None:
            dh[:, : config.output_size], dc[:, : config.hidden_size] = dstate
        given = np.zeros((count, batch, 0), dtype) if dy is None else self._own(dy)
        dz = aligned((count, layout.blocks, batch, layout.gates, layout.lanes), dtype)
        projects = config.proj_size > 0
        dprojected = np.empty((count if projects else 1, batch, layout.output), dtype)
        dq = np.empty((batch, layout.hidden), dtype)
        doperand = np.empty((batch, layout.hidden if self.of_cell else layout.output), dtype)
        norms, room = saved.norms, saved.room
        normed = norms is not None
        dz_h = aligned(dz.shape, dtype) if normed else dz
        dc_out = np.zeros((count if normed else 1, batch, layout.hidden), dtype)
        dnorm_c = np.zeros((layout.blocks, batch if normed else 1, 1, layout.lanes), dtype)
        step_cell = self._code(steps.backward_cell, masks, record=True) if normed else 0
        step = self._code(steps.backward, masks, record=True)
        step_output = self._code(steps.backward_output, masks, record=True) if projects else 0

        shared = sharing(
            layout, count, batch, config.recurrent_size, masked=len(masks.recurrent) > 0, units_at_once=PANEL
        )
        args = (
            shared.by_units,
            step,
            step_output,
            step_cell,
            config.hidden_size,
            norms,
            config.reverse,
            self.of_cell,
            saved.lengths,
            w.back_recurrent,
            w.peephole,
            w.back_projection,
            masks.recurrent,
            masks.hidden,
            masks.cell,
            room.gates,
            room.raw,
            room.projected,
            room.c,
            given,
            dz,
            dz_h,
            dc_out,
            dnorm_c,
            dprojected,
            dq,
            doperand,
            dh,
            dc,
            self._cut_back(w, batch, shared.most),
            np.zeros(1, np.int64),
        )
        return _BegunBackward(args, shared, dz, dz_h, dc_out, dprojected, dh, dc)

    def _cut_back(self, w: Weights, batch: int, most: int) -> passes.CutBack | None:
        """The operands of the product with the recurrent weights in parts, where it runs on AMX."""
        layout = self.layout
        width = layout.hidden if self.of_cell else layout.output
        if not on_amx(layout, batch, layout.wide, width):
            return None
        weights = w.cut("back_recurrent", width // layout.lanes, PANEL, layout.wide)
        if weights is None:
            return None
        most = max(1, most)
        flags, any_wild = np.zeros((2, most, batch), np.uint8), np.zeros((2, most), np.int64)
        return passes.CutBack(weights, in_parts((2, PARTS), batch, layout.wide), flags, any_wild)

    def _end_backward(self, saved: Saved, begun: _BegunBackward) -> Gradients:
        """What `_backward` returns, after the pass."""
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as IEEE 754 says
            return self._gradients(saved, begun)

    def _gradients(self, saved: Saved, begun: _BegunBackward) -> Gradients:
        config, layout, dtype = self.config, self.layout, self.dtype
        count, batch, width = saved.x.shape
        w, norms = saved.weights, saved.norms
        dz, dz_h, dc_out, dprojected, dh, dc = begun[2:]
        rows = count * batch
        x, dz_x = saved.x.reshape(rows, width), dz
        if norms is not None:
            dz_x = aligned(dz.shape, dtype)
            with self._threads(count, self.layout.work(rows, _NORM_COST)) as team:
                linear_steps(team, norms.x, norms.deviation_x, norms.gain_x, dz, dz_x, layout.real)
        found: dict[str, Array] = {}
        hidden = config.hidden_size
        found["weight_x"], found["bias"] = self._weight_gradient(dz_x, x, hidden, width)
        found["weight_h"], _ = self._weight_gradient(dz_h, self._operand(saved), hidden, config.recurrent_size)
        if norms is not None:
            gains = [np.empty((layout.blocks, layout.gates, layout.lanes), dtype) for _ in range(3)]
            with self._threads(layout.blocks, self.layout.work(rows, _NORM_COST)) as team:
                gain_gradients(team, dz, norms.x, norms.h, *gains)
            names = ("norm_gain_x", "norm_gain_h", "bias")
            found |= {name: layout.of_gates(gain) for name, gain in zip(names, gains, strict=True)}
            of_gain, of_shift = np.empty((2, layout.blocks, layout.lanes), dtype)
            with self._threads(layout.blocks, rows * layout.hidden) as team:
                cell_gradients(team, dc_out, norms.c, of_gain, of_shift)
            found["norm_gain_c"], found["norm_bias_c"] = of_gain.ravel()[:hidden], of_shift.ravel()[:hidden]
        if config.proj_size:
            whole = (count, batch, layout.output // layout.lanes, 1, layout.lanes)
            units = np.ascontiguousarray(dprojected.reshape(whole).swapaxes(1, 2))
            of_q = saved.room.q.reshape(rows, layout.hidden)
            found["weight_proj"], _ = self._weight_gradient(units, of_q, config.proj_size, hidden)
        if config.peephole:
            found["peephole"] = self._peephole(saved, dz)
        wide_dx = aligned((rows, layout.whole(width)), dtype)
        most = rows // ROWS if count == 1 else count // -(-ROWS // max(1, batch))  # whole steps
        with self._threads(most, self.layout.work(rows, width)) as team:
            passes.input_gradient(team, dz_x, w.back_input, self._cut_input(w, rows), wide_dx)
        dx = wide_dx[:, :width].reshape(count, batch, width)
        state = State(dh[:, : config.output_size].astype(self.storage), dc[:, : config.hidden_size].copy())
        named = {name: found[name].astype(self.storage) for name in config.parameter_shapes}
        return Gradients(dx.astype(self.storage, copy=False), state, named)

    def _cut_input(self, w: Weights, rows: int) -> Array | None:
        """The weights of the input in parts, where their product with gradients of `rows` rows runs on AMX."""
        layout = self.layout
        width = layout.whole(self.config.input_size)
        if not on_amx(layout, rows, layout.wide, width):
            return None
        return w.cut("back_input", width // layout.lanes, PANEL, layout.wide)

    def _weight_gradient(self, dz: Array, a: Array, size: int, columns: int) -> tuple[Array, Array]:
        """``dz^T a`` for dz (T, B, N, G, lanes) of `size` units and the first columns of a; sums of dz's rows."""
        _, blocks, _, gates, lanes = dz.shape
        of_weight, of_bias = np.empty((gates * size, columns), self.dtype), np.empty(gates * size, self.dtype)
        sums, found = aligned((blocks, gates, lanes), self.dtype), aligned((blocks, columns, gates, lanes), self.dtype)
        with self._threads(blocks, float(dz.size) * columns) as team:
            cut = True if on_amx(self.layout, min(len(a), columns), len(a), gates * size) else None
            passes.weight_gradient(team, dz, a, size, sums, found, of_weight, of_bias, cut)
        return of_weight, of_bias

    def _operand(self, saved: Saved) -> Array:
        """What R multiplied at every step, (T N, R) or wider."""
        masked = len(saved.masks.recurrent) > 0
        found = saved.room.operand if masked else self._before(saved.room.c if self.of_cell else saved.room.h)
        return found.reshape(found.shape[0] * found.shape[1], found.shape[2])

    def _before(self, states: Array) -> Array:
        """The states that the steps started from."""
        return states[1:] if self.config.reverse else states[:-1]

    def _after(self, states: Array) -> Array:
        """The states that the steps ended in."""
        return states[:-1] if self.config.reverse else states[1:]

    def _peephole(self, saved: Saved, dz: Array) -> Array:
        """The gradient of the peepholes: rows are summed within a step first, which loses less than one long sum."""
        config = self.config
        count, blocks, batch, _, lanes = dz.shape
        shape = (count, batch, blocks, lanes)
        rows = []
        for k in config.peephole_gates:
            read = (self._after if k == "o" else self._before)(saved.room.c).reshape(shape)
            rows.append(np.einsum("tbnl,tnbl->tbl", dz[:, :, :, config.gates.index(k)], read).sum(axis=0).ravel())
        return np.stack(rows)[:, : config.hidden_size]

    # along tangents ---------------------------------------------------------------------------------------------------

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        y, last, saved = self._forward(weights, x, state, lengths, masks, record=True, out=None)
        if saved is None:
            raise RuntimeError("a recorded call returned no tape")
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as IEEE 754 says
            return Forward(y, last), self._along(saved, tangents, None if lengths is None else saved.lengths)

    def _along(self, saved: Saved, tangents: Tangents, ends: Array | None) -> Forward:
        config, layout, dtype = self.config, self.layout, self.dtype
        count, batch, width = saved.x.shape
        rows, w, masks = count * batch, saved.weights, saved.masks
        given = {name: np.asarray(array, dtype) for name, array in (tangents.parameters or {}).items()}
        norms, room = saved.norms, saved.room
        normed = norms is not None
        tz = np.zeros((rows, layout.wide), dtype)
        tz_h = np.zeros_like(tz) if normed else tz
        if tangents.x is not None:
            tz += (
                self._own(tangents.x if ends is None else _active(tangents.x, ends)).reshape(rows, width)
                @ w.wide_input.T
            )
        if "weight_x" in given:
            tz += saved.x.reshape(rows, width) @ layout.wide_rows(given["weight_x"]).T
        if "weight_h" in given:
            operand = self._operand(saved)[:, : config.recurrent_size]
            tz_h += operand @ layout.wide_rows(given["weight_h"]).T
        wide = (count, batch, layout.blocks, layout.gates, layout.lanes)
        tz5 = np.ascontiguousarray(tz.reshape(wide).swapaxes(1, 2))
        tz_h5 = np.ascontiguousarray(tz_h.reshape(wide).swapaxes(1, 2)) if normed else tz5
        if norms is not None:
            ones = np.ones_like(norms.gain_x)
            linear_steps(ALONE, norms.x, norms.deviation_x, ones, tz5, tz5, layout.real)
            tz5 *= norms.gain_x[:, None]
            for name, norm in (("norm_gain_x", norms.x), ("norm_gain_h", norms.h)):
                if name in given:
                    tz5 += norm * layout.wide_parameter(given[name])[:, None]
        if "bias" in given:
            tz5 += layout.wide_parameter(given["bias"])[:, None]
        tgain_c, tshift_c = (layout.unit_parameter(given.get(name)) for name in ("norm_gain_c", "norm_bias_c"))
        tnorm_c = np.zeros((layout.blocks, batch if normed else 1, 1, layout.lanes), dtype)
        tpeephole = np.zeros((len(config.peephole_gates) or 1, layout.hidden), dtype)
        if "peephole" in given:
            tpeephole[:, : config.hidden_size] = given["peephole"]
        projects = config.proj_size > 0
        tprojected = np.zeros((count if projects else 1, batch, layout.output), dtype)
        if "weight_proj" in given:
            projection = padded(padded(given["weight_proj"].T, 0, layout.hidden), 1, layout.output)
            tprojected[...] = (saved.room.q.reshape(rows, layout.hidden) @ projection).reshape(tprojected.shape)
        th, tc = np.zeros((2, batch, layout.output), dtype), np.zeros((2, batch, layout.hidden), dtype)
        empty = saved.lengths == 0 if ends is not None else np.zeros(batch, bool)
        if tangents.state is not None:
            th[0, :, : config.output_size] = _zeroed(empty, tangents.state.h)
            tc[0, :, : config.hidden_size] = _zeroed(empty, tangents.state.c)
        tq = np.zeros((batch, layout.hidden), dtype)
        toperand = np.empty((batch, config.recurrent_size), dtype)
        ty = np.empty((count, batch, config.output_size), dtype)
        step = self._code(steps.tangent, masks, record=True)
        step_cell = self._code(steps.tangent_cell, masks, record=True) if normed else 0
        step_output = self._code(steps.tangent_output, masks, record=True) if projects else 0

        with self._threads(batch // ROWS, self.layout.work(rows, config.recurrent_size)) as team:
            passes.tangent(
                team,
                step,
                step_output,
                step_cell,
                config.hidden_size,
                norms,
                config.reverse,
                self.of_cell,
                saved.lengths,
                w.recurrent,
                w.peephole,
                tpeephole,
                w.projection,
                masks.recurrent,
                masks.hidden,
                masks.cell,
                room.gates,
                room.raw,
                room.projected,
                room.c,
                tz5,
                tz_h5,
                tnorm_c,
                tgain_c,
                tshift_c,
                tprojected,
                tq,
                toperand,
                th,
                tc,
                ty,
            )
        th_last, tc_last = th[count % 2], tc[count % 2]
        last = State(th_last[:, : config.output_size].astype(self.storage), tc_last[:, : config.hidden_size].copy())
        if tangents.state is not None:
            last.h[empty], last.c[empty] = tangents.state.h[empty], tangents.state.c[empty]
        return Forward(ty.astype(self.storage, copy=False), last)


def _active(x: Array, ends: Array) -> Array:
    """`x` with 0 in the padding."""
    return np.where(np.arange(len(x))[:, None, None] < ends[:, None], x, x.dtype.type(0))


def _zeroed(rows: Array, state: Array) -> Array:
    """`state` with 0 in those rows. NumPy before 2 knows no dtype that a 0 of Python and a bfloat16 have in common."""
    return np.where(rows[:, None], state.dtype.type(0), state)


def _filled(layers: list[Any]) -> tuple[Any, ...]:
    """As many as the next power of two, with the last one again: code is compiled for a number of them."""
    return (*layers, *layers[-1:] * ((1 << (len(layers) - 1).bit_length()) - len(layers)))


class NumbaStack(ComposedStack):
    """Both directions of a layer side by side, and layers of one direction in a wavefront, where that is faster."""

    kernels: tuple[NumbaKernel, ...]

    def __init__(self, backend: NumbaBackend, stack: StackConfig, precision: Precision) -> None:
        super().__init__(backend, stack, precision)
        self.limit = backend.threads
        self.may_wave = stack.num_layers > 1 and stack.num_directions == 1 and self.kernels[0].same_dtype

    def _ahead(self, steps: int, batch: int, *, masked: bool = False) -> int:
        """Steps by which a layer of a wavefront is behind the one below; 0 where there is none."""
        if not self.may_wave:
            return 0
        different = dict.fromkeys(self.kernels)
        ahead = min(wave_ahead(kernel.layout, steps, batch, masked=masked) for kernel in different)
        return ahead if ahead and (self.limit or thread_count()) > 1 else 0

    def forward(
        self,
        weights: Any,
        x: Array,
        state: State | None,
        *,
        lengths: Any = None,
        masks: StackMasks | None = None,
        record: bool = False,
        out: Array | None = None,
    ) -> Forward:
        if len(self.kernels) == 1 and lengths is None and masks is None and not record:
            found = self.kernels[0].again(weights[0], x, state, out)
            if found is not None:
                return found
        masked = masks is not None and any(one.recurrent is not None for one in masks.layers)
        ahead = self._ahead(*x.shape[:2], masked=masked)
        if ahead:
            return self._forward_wave(ahead, weights, x, state, lengths, masks, record=record, out=out)
        return super().forward(weights, x, state, lengths=lengths, masks=masks, record=record, out=out)

    def _forward_wave(
        self,
        ahead: int,
        weights: Any,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: StackMasks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> Forward:
        """`forward` of as many layers at once as there are threads, each behind the one below by `ahead` steps."""
        count, threads = len(self.kernels), self.limit or thread_count()
        dropout = masks.dropout if masks is not None else ()
        nothing = np.zeros((0, 1, 1), self.kernels[0].dtype)
        source, ends = x, []
        for start in range(0, count, threads):
            together = range(start, min(count, start + threads))
            done = np.zeros((len(together), -(-threads // len(together)), _APART), np.int64)
            below = done[0, :0]
            layers = []
            for layer, own_done in zip(together, done, strict=True):
                kernel = self.kernels[layer]
                mask = masked = nothing
                if layer < count - 1 and dropout:
                    mask = kernel._own(dropout[layer])
                    masked = memory.empty(mask.shape, kernel.dtype)
                own = None if masks is None else masks.layers[layer]
                entry = None if state is None else State(state.h[layer], state.c[layer])
                to = out if layer == count - 1 else None
                wave = _InWave(layer == 0, layer - start, ahead, passes.Wave(below, own_done, mask, masked))
                begun = kernel._begin(weights[layer], source, entry, lengths, own, record=record, out=to, wave=wave)
                layers.append((kernel, begun, entry, to))
                below, source = own_done, masked if len(mask) else begun.y
            codes = np.array([begun.args[:2] for _, begun, _, _ in layers])
            with self._threads([begun.room.sharing for _, begun, _, _ in layers]) as team:
                passes.forward_wave(team, codes, _filled([begun.args[2:] for _, begun, _, _ in layers]))
            ends += [kernel._end(begun, entry, to) for kernel, begun, entry, to in layers]
        last = State(np.stack([one.h for _, one, _ in ends]), np.stack([one.c for _, one, _ in ends]))
        tape = StackTape(tuple(saved for _, _, saved in ends), dropout) if record else None
        return Forward(ends[-1][0], last, tape)

    def receipts(self, steps: int | None = None, batch: int | None = None) -> tuple[Receipt, ...]:
        found = super().receipts(steps, batch)
        if steps is None or batch is None or not self._ahead(steps, batch):
            return found
        return tuple(replace(one, path=f"{one.path}, layers in a wavefront") for one in found)

    def _forward_layer(
        self, first: int, calls: Sequence[tuple[Any, ...]], *, record: bool
    ) -> Sequence[tuple[Array, State, Any]]:
        own, (_, x, *_) = self.kernels[first : first + len(calls)], calls[0]
        if len(own) == 1 or not run_beside(own[0].layout, len(x), x.shape[1]):
            return super()._forward_layer(first, calls, record=record)
        both = [kernel._begin(*args, record=record, out=out) for kernel, (*args, out) in zip(own, calls, strict=True)]
        with self._threads([begun.room.sharing for begun in both]) as team:
            passes.forward_both(team, *(begun.args for begun in both))
        return [
            kernel._end(begun, state, out)
            for kernel, begun, (_, _, state, _, _, out) in zip(own, both, calls, strict=True)
        ]

    def _backward_layer(self, first: int, calls: Sequence[tuple[Any, ...]]) -> Sequence[Gradients]:
        own, (_, tape, *_) = self.kernels[first : first + len(calls)], calls[0]
        if len(own) == 1 or not run_beside(own[0].layout, len(tape.x), tape.x.shape[1]):
            return super()._backward_layer(first, calls)
        both = [
            kernel._begin_backward(saved, dy, dstate) for kernel, (_, saved, dy, dstate) in zip(own, calls, strict=True)
        ]
        with self._threads([begun.sharing for begun in both]) as team:
            passes.backward_both(team, *(begun.args for begun in both))
        return [
            kernel._end_backward(saved, begun) for kernel, begun, (_, saved, _, _) in zip(own, both, calls, strict=True)
        ]

    def _threads(self, together: Sequence[Sharing]) -> Threads:
        """One for each direction or layer, or more where these share it on."""
        most = sum(max(1, shared.most) if shared.cost else 1 for shared in together)
        return Threads(max(len(together), most), sum(shared.work for shared in together), self.limit)


class NumbaBackend(Backend):
    """Every switch, gradients and jvp, in vector code.

    Parameters
    ----------
    threads
        Threads that a call may use at most; None for ``LSTMCORE_NUM_THREADS``, else the processors that the process may
        use. The results are the same for any number.

    Raises
    ------
    TypeError, ValueError
        `threads` is no whole number, or below 1.
    """

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = None if threads is None else integer("threads", threads, 1)

    def capabilities(self) -> Capabilities:
        has_bfloat16 = find_spec("ml_dtypes") is not None
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32", "float16"} | ({"bfloat16"} if has_bfloat16 else set())),
            features=FEATURES,
            reasons={"tf32": "processors have no TF32"} | ({} if has_bfloat16 else {"bfloat16": _NO_BFLOAT16}),
        )

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("numba", "llvmlite")}

    def _compile(self, config: LSTMConfig, precision: Precision) -> NumbaKernel:
        return NumbaKernel(self, config, precision)

    def _compile_stack(self, stack: StackConfig, precision: Precision) -> NumbaStack:
        return NumbaStack(self, stack, precision)
