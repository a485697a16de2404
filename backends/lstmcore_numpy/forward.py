"""The forward pass: the equations of SPEC.md on columns, in place, in buffers that every step uses again."""

from __future__ import annotations

from itertools import accumulate, cycle, islice, repeat
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lstmcore.activations import clip, value
from lstmcore.backend import Masks, State
from lstmcore.config import TANH
from lstmcore_numpy.parts import Array, Norm, Saved, Schedule, Weights, apart, normalise

if TYPE_CHECKING:
    from lstmcore_numpy.kernel import NumpyKernel

#: Numbers in the buffers of the steps that run at once when nothing is recorded, so that they stay in the cache.
_BLOCK: Final = 1 << 19
_ALL: Final = slice(None)
#: Numbers that an array of `_rooms` begins at a multiple of.
_ALIGNED: Final = 16


def forward(
    kernel: NumpyKernel,
    weights: Weights,
    x: Array,
    state: State | None,
    lengths: Any,
    masks: Masks | None,
    *,
    record: bool,
    out: Array | None,
) -> tuple[Array, State, Saved | None]:
    """See `Kernel._forward`."""
    steps, batch, _ = x.shape
    y = np.empty((steps, batch, kernel.config.output_size), kernel.storage) if out is None else out
    schedule = Schedule.of(kernel.config, lengths, steps)
    call = _Call(kernel, weights, schedule, schedule.masks(masks, kernel.dtype), steps, batch, record)
    # A row without steps only hands its state on: 0 stands in for it, so that a NaN there reaches no product.
    empty = None if lengths is None else lengths == 0
    call.begin(state, empty)
    for first in range(0, steps, call.size):
        h = call.steps(x, first, min(call.size, steps - first))
        schedule.write(h, y, first)
    last = call.state()
    if state is not None and empty is not None:
        last.h[empty], last.c[empty] = state.h[empty], state.c[empty]
    return y, last, call.saved


class _Call:
    """The buffers of one call, and the steps on them.

    The operand of a step, ``[x; r; 1]``, is a part of one buffer: each step writes what the next one reads straight
    into its place. What the tape keeps for every step, inference keeps for one, or for two where it is a state.
    """

    def __init__(
        self, kernel: NumpyKernel, w: Weights, schedule: Schedule, masks: Masks, steps: int, batch: int, record: bool
    ) -> None:
        self.kernel, self.w, self.schedule, self.masks = kernel, w, schedule, masks
        self.config = config = kernel.config
        self.layout = layout = kernel.layout
        dtype, hidden = kernel.dtype, config.hidden_size
        self.batch = batch
        self.apart = apart(config, steps, batch)
        width = batch * (layout.depth + (layout.size if self.apart else 0))
        self.size = size = max(1, steps if record else min(steps, _BLOCK // max(1, width)))
        self.at = 0  # the place of the state in the buffers

        cell = (hidden, batch)
        shapes = (
            (size + 1, layout.depth, batch),
            (size + 1 if record else 2, *cell),
            (size if record or self.apart else 1, layout.size, batch),
            (size if record else 1, *cell),
        )
        rooms: list[Array] = _rooms(dtype, *shapes) if record else [np.empty(shape, dtype) for shape in shapes]
        self.operands, self.c, self.gates, self.u = rooms
        self.operands[:, layout.ones] = 1
        self.r = self.operands[:, layout.r]
        self.reads_h = config.recurrence == "hidden" and masks.recurrent is None
        self.h = self.r if self.reads_h else np.empty((size + 1, config.output_size, batch), dtype)
        self.room = np.empty(cell, dtype)
        self.follower = np.empty(cell, dtype)  # the gate that is 1 minus another one
        self.one = dtype.type(1)
        self.factor = w.forward[:, layout.r] if self.apart else w.forward
        self.product = np.empty((layout.size, batch), dtype) if self.apart else None
        self.saved = self._tape() if record else None

    def _tape(self) -> Saved:
        config, dtype = self.config, self.kernel.dtype
        steps = len(self.schedule.past)
        cell, gates = (steps, *self.room.shape), (steps, *self.gates.shape[1:])

        def room(shape: tuple[int, ...], wanted: bool) -> Array | None:
            return np.empty(shape, dtype) if wanted else None

        def norm(shape: tuple[int, ...]) -> Norm | None:
            return Norm(np.empty(shape, dtype), np.empty((steps, 1, self.batch), dtype)) if config.layer_norm else None

        return Saved(
            self.w,
            self.schedule,
            self.masks,
            self.operands[:steps],
            self.c[: steps + 1],
            self.gates[:steps],
            self.u[:steps],
            z=room(gates, not self.kernel.fold),
            c_unclipped=room(cell, config.cell_clip is not None),
            h_unclipped=room((steps, config.output_size, self.batch), config.proj_clip is not None),
            c_out=room(cell, config.hidden_activation != TANH),
            norm_x=norm(gates),
            norm_h=norm(gates),
            norm_c=norm(cell),
        )

    def begin(self, state: State | None, empty: Array | None) -> None:
        """Put the initial state in its place, 0 in the columns of `empty`."""
        self.h[0] = 0 if state is None else state.h.T
        self.c[0] = 0 if state is None else state.c.T
        if empty is not None:
            self.h[0][:, empty] = self.c[0][:, empty] = 0
            if self.masks.recurrent is not None:
                self.masks.recurrent[:, empty] = 0
        self._recur(self.h[0], self.c[0], self.r[0])

    def state(self) -> State:
        """A copy of the state after the last step."""
        h, c = self.h[self.at], self.c[self.at % len(self.c)]
        return State(h.T.astype(self.kernel.storage, order="C"), c.T.copy())

    def steps(self, x: Array, first: int, count: int) -> Array:
        """Run `count` steps from `first` on; returns a view of their h."""
        layout, gates = self.layout, self.gates
        if first:
            self.h[0], self.c[0], self.r[0] = self.h[self.at], self.c[self.at % len(self.c)], self.r[self.at]
        if self.saved is not None or not self.apart:
            self.schedule.read(x, self.operands[:count, layout.x], first)
        if self.apart:
            self._input_product(x, gates[:count], first)

        places = layout.places
        for step in zip(
            range(first, first + count),
            self.r if self.apart else self.operands,
            _each(gates),
            _each(gates, layout.sigmoids),
            *[_each(gates, places[gate]) if gate in places else repeat(self.follower) for gate in "gifo"],
            cycle(self.c),
            islice(cycle(self.c), 1, None),
            _each(self.u),
            self.h,
            self.h[1:],
            repeat(None) if self.reads_h else self.r[1:],
            strict=False,
        ):
            self._step(*step)
        self.at = count
        return self.h[1 : count + 1]

    def _input_product(self, x: Array, z: Array, first: int) -> None:
        """``W x + b`` of several steps into `z`, normalised where the configuration says so."""
        w, count = self.w, len(z)
        rows = self.schedule.rows(x, first, count, z.dtype)
        product = np.matmul(rows, w.forward[:, self.layout.x].T).reshape(count, self.batch, self.layout.size)
        columns = product.transpose(0, 2, 1)
        if w.gain_x is not None:
            norm = normalise(self.config, columns)
            columns = np.multiply(norm.value, w.gain_x, out=z)
            if self.saved is not None:
                self.saved.norm_x = norm  # a recorded call has one block
        np.add(columns, 0 if w.bias is None else w.bias, out=z)

    def _step(
        self,
        t: int,
        operand: Array,
        z: Array,
        sigmoids: Array,
        g: Array,
        i: Array,
        f: Array,
        o: Array,
        c_before: Array,
        c: Array,
        u: Array,
        h_before: Array,
        h: Array,
        r: Array | None,
    ) -> None:
        """One step: `z` becomes the gates, of which g, i, f and o are parts; c, u, h and the next r are written."""
        config, w, saved, masks, room = self.config, self.w, self.saved, self.masks, self.room

        # z = W x + R (m r) + b
        if self.product is None:
            np.matmul(self.factor, operand, z)
        else:
            product = np.matmul(self.factor, operand, self.product)
            if w.gain_h is not None:
                norm = normalise(config, product)
                if saved is not None and saved.norm_h is not None:
                    saved.norm_h.value[t], saved.norm_h.deviation[t] = norm
                np.multiply(norm.value, w.gain_h, product)
            np.add(z, product, z)

        if not config.peephole:
            self._activate(t, z, g, sigmoids, self.layout.gates)
        else:
            for gate, own in (("i", i), ("f", f)):
                if gate in w.peephole:
                    own += np.multiply(c_before, w.peephole[gate], room)
            self._activate(t, z[self.layout.early], g, sigmoids[: -len(o)], self.layout.gates[:-1])
        if config.coupling == "forget_from_input":
            np.subtract(1, i, f)
        elif config.coupling == "input_from_forget":
            np.subtract(1, f, i)

        # c = f c_before + i g
        np.multiply(f, c_before, c)
        np.add(c, np.multiply(i, g, room), c)
        if config.cell_clip is not None:
            if saved is not None and saved.c_unclipped is not None:
                saved.c_unclipped[t] = c
            np.clip(c, -config.cell_clip, config.cell_clip, out=c)
        if config.zoneout_cell:
            _blend(c, c_before, config.zoneout_cell if masks.zoneout_cell is None else masks.zoneout_cell[t])

        if config.peephole:
            o += np.multiply(c, w.peephole["o"], room)
            self._activate(t, o, None, o, "o")

        # q = o u(n)
        n = c
        if w.gain_c is not None:
            norm = normalise(config, c)
            if saved is not None and saved.norm_c is not None:
                saved.norm_c.value[t], saved.norm_c.deviation[t] = norm
            n = norm.value * w.gain_c
            if w.shift_c is not None:
                n += w.shift_c
        if config.hidden_activation == TANH:
            np.tanh(n, u)
        else:
            u[...] = value(config.hidden_activation, n)
            if saved is not None and saved.c_out is not None:
                saved.c_out[t] = n
        if w.proj is None:
            np.multiply(o, u, h)
        else:
            np.matmul(w.proj, np.multiply(o, u, room), h)
            if config.proj_clip is not None:
                if saved is not None and saved.h_unclipped is not None:
                    saved.h_unclipped[t] = h
                np.clip(h, -config.proj_clip, config.proj_clip, out=h)
        if config.zoneout_hidden:
            _blend(h, h_before, config.zoneout_hidden if masks.zoneout_hidden is None else masks.zoneout_hidden[t])
        if self.kernel.rounds:
            h[...] = h.astype(self.kernel.storage)

        past = self.schedule.past[t]
        if past is not None:
            np.copyto(h, h_before, where=past)
            np.copyto(c, c_before, where=past)
        if r is not None:
            self._recur(h, c, r)

    def _activate(self, t: int, z: Array, g: Array | None, sigmoids: Array, gates: str) -> None:
        """The gate functions on the pre-activations `z` of `gates`, in place; `g` and `sigmoids` are its parts."""
        if self.kernel.fold:
            if g is not None:
                np.tanh(g, g)
            np.exp(sigmoids, sigmoids)
            np.add(sigmoids, self.one, sigmoids)
            np.reciprocal(sigmoids, sigmoids)
            return
        layout, config = self.layout, self.config
        if self.saved is not None and self.saved.z is not None:
            first = layout.places[gates[0]].start
            self.saved.z[t, first : first + len(z)] = z
        for gate, own in zip(gates, np.split(z, len(gates)), strict=True):
            part = own if config.gate_clip is None else clip(own, config.gate_clip)
            own[...] = value(self.kernel.function(gate), part)

    def _recur(self, h: Array, c: Array, r: Array) -> None:
        """Write what the next step reads, where that is not h itself."""
        if self.reads_h:
            return
        source = c if self.config.recurrence == "cell" else h
        if self.masks.recurrent is None:
            r[...] = source
        else:
            np.multiply(source, self.masks.recurrent, r)


def _each(array: Array, place: slice = _ALL) -> Any:
    """`place` in the entries of `array` for one step after another, again and again where it has one entry alone."""
    return repeat(array[0, place]) if len(array) == 1 else array[:, place]


def _rooms(dtype: np.dtype[Any], *shapes: tuple[int, ...]) -> list[Array]:
    """Uninitialised arrays in one allocation: memory of one size comes back from the allocator call after call, that of
    many sizes goes to the system and costs a page fault for every page when it returns.
    """
    ends = list(accumulate(-(-prod(shape) // _ALIGNED) * _ALIGNED for shape in shapes))
    block = np.empty(ends[-1], dtype)
    starts = [0, *ends[:-1]]
    return [block[a : a + prod(shape)].reshape(shape) for a, shape in zip(starts, shapes, strict=True)]


def _blend(new: Array, old: Array, keep: Any) -> None:
    """Zoneout: ``new = keep old + (1 - keep) new`` in place."""
    new *= 1 - keep
    new += keep * old
