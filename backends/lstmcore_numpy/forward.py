"""The forward pass: the equations of SPEC.md on columns, in place, in buffers that every step uses again."""

from __future__ import annotations

from itertools import accumulate, cycle, islice, repeat
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np

from lstmcore.activations import clip, value
from lstmcore.backend import Masks, State
from lstmcore.config import TANH
from lstmcore_numpy import tuning
from lstmcore_numpy.cell_plan import CellPlan
from lstmcore_numpy.int16_activations import rounded, rounded_operand
from lstmcore_numpy.layer_norm import Norm, normalise
from lstmcore_numpy.packing import Array, Weights
from lstmcore_numpy.step_schedule import StepSchedule
from lstmcore_numpy.tape import Saved

_ALL: Final = slice(None)
#: The step, then views for it: operand, z, sigmoid gates, g, i, f, o, c before, c, u, h before, h, next r (None if h).
_StepViews: TypeAlias = tuple[
    int, Array, Array, Array, Array, Array, Array, Array, Array, Array, Array, Array, Array, Array | None
]


class ForwardPass:
    """The buffers of one call, and the steps on them.

    The operand of a step, ``[x; r; 1]``, is a slice of one buffer: each step writes what the next one reads straight
    into that slice. A recorded call has buffers for every step, which become its tape. Without a tape there is one, or
    two for a state.

    Parameters
    ----------
    plan, w
        The plan of the layer and its packed weights.
    schedule, masks
        The steps of the call; the masks as columns, which the pass may change.
    batch
        N.
    record
        Whether the pass keeps a tape in `saved`.
    """

    def __init__(
        self, plan: CellPlan, w: Weights, schedule: StepSchedule, masks: Masks, batch: int, *, record: bool
    ) -> None:
        self.plan, self.w, self.schedule, self.masks = plan, w, schedule, masks
        self.config = config = plan.config
        self.layout = layout = plan.layout
        dtype, steps, hidden = plan.dtype, len(schedule.past), config.hidden_size
        self.batch = batch
        self.split = split = plan.splits_input(steps, batch)
        # All steps of a recorded call run on one filling of the buffers, else the steps that fit into the cache.
        width = batch * (layout.depth + (layout.size if split else 0))
        self.size = size = max(1, steps if record else min(steps, tuning.FORWARD_BLOCK // max(1, width)))
        self.at = 0  # index of the state in the buffers

        cell = (hidden, batch)
        shapes = (
            (size + 1, layout.depth, batch),
            (size + 1 if record else 2, *cell),
            (size if record or split else 1, layout.size, batch),
            (size if record else 1, *cell),
        )
        buffers: list[Array] = (
            _one_allocation(dtype, *shapes) if record else [np.empty(shape, dtype) for shape in shapes]
        )
        self.operands, self.c, self.gates, self.u = buffers
        self.operands[:, layout.ones] = 1
        self.r = self.operands[:, layout.r]
        self.reads_h = config.recurrence == "hidden" and masks.recurrent is None
        self.h = self.r if self.reads_h else np.empty((size + 1, config.output_size, batch), dtype)
        self.scratch = np.empty(cell, dtype)
        self.coupled = np.empty(cell, dtype)  # the gate that is 1 minus another one
        self.one = dtype.type(1)
        self.factor = w.forward[:, layout.r] if split else w.forward
        self.product = np.empty((layout.size, batch), dtype) if split else None
        self.saved = self._tape() if record else None

    def _tape(self) -> Saved:
        """Return a tape that has the buffers of the steps, and uninitialised arrays for what the switches add."""
        config, dtype = self.config, self.plan.dtype
        steps = len(self.schedule.past)
        cell, gates = (steps, *self.scratch.shape), (steps, *self.gates.shape[1:])

        def buffer(shape: tuple[int, ...], used: bool) -> Array | None:
            return np.empty(shape, dtype) if used else None

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
            z=buffer(gates, not self.plan.folded),
            c_unclipped=buffer(cell, config.cell_clip is not None),
            h_unclipped=buffer((steps, config.output_size, self.batch), config.proj_clip is not None),
            c_out=buffer(cell, config.hidden_activation != TANH),
            norm_x=norm(gates),
            norm_h=norm(gates),
            norm_c=norm(cell),
        )

    def run(self, x: Array, state: State | None, out: Array | None) -> tuple[Array, State]:
        """Run all steps, once.

        Parameters
        ----------
        x
            (T, N, I), time-major.
        state
            The initial state, zeros if None.
        out
            (T, N, P) for y, or None for a fresh array.

        Returns
        -------
        tuple
            y and the final state, whose arrays are fresh.
        """
        steps, empty = len(x), self.schedule.empty
        y = np.empty((steps, self.batch, self.config.output_size), self.plan.storage) if out is None else out
        self._begin(state)
        for first in range(0, steps, self.size):
            h = self._run_block(x, first, min(self.size, steps - first))
            self.schedule.write(h, y, first)
        last = self._last_state()
        if state is not None and empty is not None:
            last.h[empty], last.c[empty] = state.h[empty], state.c[empty]
        return y, last

    def _begin(self, state: State | None) -> None:
        """Write the initial state into the buffers.

        A row without steps keeps its state: 0 stands in for it, so that a NaN there reaches no product.
        """
        empty = self.schedule.empty
        self.h[0] = 0 if state is None else state.h.T
        self.c[0] = 0 if state is None else state.c.T
        if empty is not None:
            self.h[0][:, empty] = self.c[0][:, empty] = 0
            if self.masks.recurrent is not None:
                self.masks.recurrent[:, empty] = 0
        self._recur(self.h[0], self.c[0], self.r[0])

    def _last_state(self) -> State:
        """Return a copy of the state after the last step."""
        h, c = self.h[self.at], self.c[self.at % len(self.c)]
        return State(h.T.astype(self.plan.storage, order="C"), c.T.copy())

    def _run_block(self, x: Array, first: int, count: int) -> Array:
        """Run `count` steps from `first` on and return a view of their h."""
        layout, gates = self.layout, self.gates
        if first:
            self.h[0], self.c[0], self.r[0] = self.h[self.at], self.c[self.at % len(self.c)], self.r[self.at]
        if self.saved is not None or not self.split:
            self.schedule.read(x, self.operands[:count, layout.x], first)
        if self.split:
            self._input_product(x, gates[:count], first)
        places = layout.places
        views = zip(
            range(first, first + count),
            self.r if self.split else self.operands,
            _each(gates),
            _each(gates, layout.sigmoids),
            *[_each(gates, places[gate]) if gate in places else repeat(self.coupled) for gate in "gifo"],
            cycle(self.c),
            islice(cycle(self.c), 1, None),
            _each(self.u),
            self.h,
            self.h[1:],
            repeat(None) if self.reads_h else self.r[1:],
            strict=False,
        )
        for step_views in views:
            self._step(step_views)
        self.at = count
        return self.h[1 : count + 1]

    def _input_product(self, x: Array, z: Array, first: int) -> None:
        """Write ``W x + b`` of the steps from `first` on into `z` (S, G H, N), normalised if the layer has a norm."""
        w, count = self.w, len(z)
        rows = self.schedule.rows(x, first, count, z.dtype)
        if self.plan.integers:
            rows = rounded(rows, 1)
        product = np.matmul(rows, w.forward[:, self.layout.x].T).reshape(count, self.batch, self.layout.size)
        columns = product.transpose(0, 2, 1)
        if w.gain_x is not None:
            norm = normalise(self.config, columns)
            columns = np.multiply(norm.value, w.gain_x, out=z)
            if self.saved is not None:
                self.saved.norm_x = norm  # a recorded call has one block
        np.add(columns, 0 if w.bias is None else w.bias, out=z)

    def _step(self, views: _StepViews) -> None:  # long: SPEC.md's step in order; calls would cost more than small parts
        """Run one step: z becomes the gates, and c, u, h and the next r are written."""
        config, w, saved, masks, scratch = self.config, self.w, self.saved, self.masks, self.scratch
        t, operand, z, sigmoids, g, i, f, o, c_before, c, u, h_before, h, r = views

        # z = W x + R (m r) + b
        if self.plan.integers:
            operand = rounded_operand(operand, self.layout, split=self.split)
        if self.product is None:
            np.matmul(self.factor, operand, z)
        else:
            product = np.matmul(self.factor, operand, self.product)
            if w.gain_h is not None:
                norm = normalise(config, product)
                if saved is not None and saved.norm_h is not None:
                    saved.norm_h.record(t, norm)
                np.multiply(norm.value, w.gain_h, product)
            np.add(z, product, z)

        if not config.peephole:
            self._activate(t, z, g, sigmoids, self.layout.gates)
        else:
            self._add_peephole("i", i, c_before)
            self._add_peephole("f", f, c_before)
            self._activate(t, z[self.layout.early], g, sigmoids[: -len(o)], self.layout.gates[:-1])
        if config.coupling == "forget_from_input":
            np.subtract(1, i, f)
        elif config.coupling == "input_from_forget":
            np.subtract(1, f, i)

        # c = f c_before + i g
        np.multiply(f, c_before, c)
        np.add(c, np.multiply(i, g, scratch), c)
        if config.cell_clip is not None:
            _clip(c, config.cell_clip, t, None if saved is None else saved.c_unclipped)
        if config.zoneout_cell:
            _blend(c, c_before, self.plan.keep_cell(masks, t))

        if config.peephole:
            self._add_peephole("o", o, c)
            self._activate(t, o, None, o, "o")

        # h = W_proj (o u(n)), where n is c or its layer norm
        n = c if w.gain_c is None else self._normalised_cell(t, c, w.gain_c)
        if config.hidden_activation == TANH:
            np.tanh(n, u)
        else:
            u[...] = value(config.hidden_activation, n)
            if saved is not None and saved.c_out is not None:
                saved.c_out[t] = n
        if w.proj is None:
            np.multiply(o, u, h)
        else:
            np.matmul(w.proj, np.multiply(o, u, scratch), h)
            if config.proj_clip is not None:
                _clip(h, config.proj_clip, t, None if saved is None else saved.h_unclipped)
        if config.zoneout_hidden:
            _blend(h, h_before, self.plan.keep_hidden(masks, t))
        if self.plan.rounds:
            h[...] = h.astype(self.plan.storage)

        past = self.schedule.past[t]
        if past is not None:
            np.copyto(h, h_before, where=past)
            np.copyto(c, c_before, where=past)
        if r is not None:
            self._recur(h, c, r)

    def _add_peephole(self, gate: str, z: Array, c: Array) -> None:
        """Add the peephole's part of a gate to its pre-activations `z` (H, N), unless the gate is coupled."""
        if gate in self.w.peephole:
            z += np.multiply(c, self.w.peephole[gate], self.scratch)

    def _normalised_cell(self, t: int, c: Array, gain: Array) -> Array:
        """Return the layer norm of the cell of step `t`, with its gain and shift; a fresh array."""
        norm = normalise(self.config, c)
        if self.saved is not None and self.saved.norm_c is not None:
            self.saved.norm_c.record(t, norm)
        n: Array = norm.value * gain
        if self.w.shift_c is not None:
            n += self.w.shift_c
        return n

    def _activate(self, t: int, z: Array, g: Array | None, sigmoids: Array, gates: str) -> None:
        """Apply the activations of some gates in place.

        Parameters
        ----------
        t
            The step.
        z
            Pre-activations of `gates`, which become the gates.
        g, sigmoids
            Views of `z`: gate g, None if it is not among them, and the other gates.
        gates
            Adjacent ones of the layout.
        """
        if self.plan.folded:
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
        for gate, rows in zip(gates, np.split(z, len(gates)), strict=True):
            clipped = rows if config.gate_clip is None else clip(rows, config.gate_clip)
            rows[...] = value(self.plan.activation(gate), clipped)

    def _recur(self, h: Array, c: Array, r: Array) -> None:
        """Write the recurrent input of the next step into `r`, unless `r` is h itself."""
        if self.reads_h:
            return
        source = c if self.config.recurrence == "cell" else h
        if self.masks.recurrent is None:
            r[...] = source
        else:
            np.multiply(source, self.masks.recurrent, r)


def _each(array: Array, place: slice = _ALL) -> Any:
    """Return an iterable of `place` in the entry of each step; an array with one entry repeats it without end."""
    return repeat(array[0, place]) if len(array) == 1 else array[:, place]


def _one_allocation(dtype: np.dtype[Any], *shapes: tuple[int, ...]) -> list[Array]:
    """Return uninitialised arrays of these shapes that share one allocation.

    The allocator hands out memory of one size again call after call. Memory of many sizes goes back to the system,
    and costs a page fault for every page when it returns.
    """
    ends = list(accumulate(-(-prod(shape) // tuning.ALIGNMENT) * tuning.ALIGNMENT for shape in shapes))
    block = np.empty(ends[-1], dtype)
    starts = [0, *ends[:-1]]
    return [block[a : a + prod(shape)].reshape(shape) for a, shape in zip(starts, shapes, strict=True)]


def _clip(array: Array, bound: float, t: int, record: Array | None) -> None:
    """Clip `array` to +-`bound` in place, after a copy of it went into step `t` of `record`."""
    if record is not None:
        record[t] = array
    np.clip(array, -bound, bound, out=array)


def _blend(new: Array, old: Array, keep: Any) -> None:
    """Apply zoneout: ``new = keep old + (1 - keep) new`` in place."""
    new *= 1 - keep
    new += keep * old
