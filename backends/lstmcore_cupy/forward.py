"""The forward pass: W x is one product for many steps, and these one launch, or a product and a kernel for each."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from lstmcore.backend import Masks, State
from lstmcore_cupy import tuning
from lstmcore_cupy.device import Array, Device
from lstmcore_cupy.launch import Call, Programs
from lstmcore_cupy.packing import Weights
from lstmcore_cupy.persistent import Loop, Pass, Plan
from lstmcore_cupy.tape import Saved


class Inputs(NamedTuple):
    """The data arguments of `Kernel._forward`. Arrays are on the device of the weights or on the host."""

    x: Array
    state: State | None
    lengths: Any
    masks: Masks | None


def forward(
    weights: Weights, inputs: Inputs, plan: Plan | str, *, record: bool, out: Array | None
) -> Pass[tuple[Array, State, Saved | None]]:
    """Run all steps and return y, the final state and the tape, all on the device.

    Parameters
    ----------
    weights
        From `CupyKernel._pack`.
    inputs
        The data.
    plan
        That of the persistent kernel. If it is not a `Plan`, each step is a matrix product and a kernel.
    record
        Whether to return a tape; else None stands in its place.
    out
        (T, N, P): y if kernels can write to it. Otherwise y is a fresh array.
    """
    programs, (x, state, lengths, _) = weights.programs, inputs
    config, device = programs.config, programs.device
    steps, batch, _ = x.shape
    weights.wait()
    ends = None if lengths is None else device.array(lengths)
    masks = _masks(device, inputs.masks, copy=record)
    narrow = device.array(x)
    buffers = _buffers(programs, steps, batch, record=record)
    if isinstance(plan, Plan) and not record:  # one block may write the next r while another reads this one
        recurrent = config.recurrent_size
        buffers |= {"r": programs.empty(2, batch, recurrent), "r_stride": batch * recurrent, "r_turns": 1}
    h = programs.zeros(batch, config.output_size) if state is None else programs.widen(state.h)
    c = buffers["c"]
    if state is None:
        device.clear(c[0])
    else:
        device.assign(c[0], device.array(state.c))
    y = out if device.writable(out) else device.empty((steps, batch, config.output_size), programs.storage)
    wide = programs.widen(narrow, ends) if record else None
    saved = None if wide is None else Saved(weights, ends, masks, wide, buffers, isinstance(x, np.ndarray))
    if steps * batch:
        call = programs.call(T=steps, N=batch, ends=ends, h=h, y=y, **weights.fields(), **buffers)
        call.put(mask_r=masks.recurrent, mask_h=masks.zoneout_hidden, mask_c=masks.zoneout_cell)
        stored_r = config.recurrence == "hidden" and masks.recurrent is None
        run = _Steps(weights, call, buffers, record=record, stored_r=stored_r)
        call.step(0, "begin", batch, config.recurrent_size)
        for begin in range(0, steps, len(buffers["from_x"])):
            count = min(len(buffers["from_x"]), steps - begin)
            first = steps - begin - count if config.reverse else begin
            run.input_product(programs.operand(narrow[first : first + count]) if wide is None else wide, first)
            if isinstance(plan, Plan):
                call.put(s=begin, steps=count)
                yield Loop(plan, programs, call)
            else:
                run.loop(range(begin, begin + count), steps - 1, first)
    return y, State(programs.narrow(h), c[-1].copy() if record else c[-1]), saved


class _Steps:
    """The launches of a call without the persistent kernel, and those before its loop over time.

    Parameters
    ----------
    weights, call
        Those of the call.
    buffers
        From `_buffers`.
    record
        Whether the buffers hold every step.
    stored_r
        Whether the values of r were in the storage dtype.
    """

    def __init__(self, weights: Weights, call: Call, buffers: dict[str, Any], *, record: bool, stored_r: bool) -> None:
        self.weights, self.call, self.buffers = weights, call, buffers
        self.programs, self.parameters = weights.programs, weights.parameters
        self.config, self.record, self.stored_r = weights.programs.config, record, stored_r
        _, self.batch, self.columns = buffers["from_x"].shape
        self.from_h = self.programs.empty(self.batch, self.columns) if self.config.layer_norm else None
        call.put(from_h=self.from_h)

    def input_product(self, x: Array, first: int) -> None:
        """Write ``W x`` of the steps `x` (S, N, I), which are those from `first` on, into the buffer."""
        count = len(x)
        from_x = self.buffers["from_x"][:count]
        self.programs.matmul(x, self.parameters["weight_x"], from_x, transpose_b=True, stored=True)
        self.call.put(first=first)
        if self.config.layer_norm:
            self.call.launch("normalise_input", count * self.batch, self.columns, whole_rows=True)

    def loop(self, steps: range, last: int, first: int) -> None:
        """Run some steps, as a CUDA graph if asked for.

        Parameters
        ----------
        steps
            Their numbers.
        last
            The last time of the call.
        first
            The first time in the buffer of ``W x``.
        """

        def work() -> None:
            for s in steps:
                self.step(s, last - s if self.config.reverse else s, first)

        def key() -> Hashable:
            self.call.put(s=steps.start)  # not where the part before this one ended
            inputs = self.call.words.tobytes(), self.weights.places()
            return "forward", steps, last, first, self.record, self.stored_r, inputs

        self.programs.run_loop(work, key)

    def step(self, s: int, t: int, first: int) -> None:
        """Run step `s` at time `t`; `first` is the first time in the buffer of ``W x``."""
        at, buffers, programs, stored = t if self.record else 0, self.buffers, self.programs, self.stored_r
        r, weight_h = buffers["r"][at], self.parameters["weight_h"]
        if self.from_h is None:
            target = buffers["from_x"][t - first]
            programs.matmul(r, weight_h, target, transpose_b=True, accumulate=True, stored=stored)
        else:
            programs.matmul(r, weight_h, self.from_h, transpose_b=True, stored=stored)
        self.call.step(s, "forward_cell", self.batch, self.config.hidden_size, whole_rows=self.config.layer_norm)
        if self.config.proj_size:
            q, projected = buffers["q"][at], buffers["projected"][at]
            programs.matmul(q, self.parameters["weight_proj"], projected, transpose_b=True)
            self.call.step(s, "forward_output", self.batch, self.config.output_size)


def _masks(device: Device, masks: Masks | None, *, copy: bool) -> Masks:
    """Return the masks on the device; copies if `copy`."""
    here = Masks(*(None if mask is None else device.array(mask) for mask in masks or Masks()))
    return Masks(*(None if mask is None else mask.copy() for mask in here)) if copy else here


def _buffers(programs: Programs, steps: int, batch: int, *, record: bool) -> dict[str, Any]:
    """Return what steps write, as fields of ``struct Call``: for all steps if recorded, else for the newest one."""
    config = programs.config
    hidden, output, recurrent = config.hidden_size, config.output_size, config.recurrent_size
    columns = len(config.gates) * hidden
    size = steps if record else max(1, min(steps, tuning.FORWARD_BUFFER // max(1, batch * columns)))
    some, stride = (steps, batch) if record else (1, 0)
    buffers: dict[str, Any] = {
        "from_x": programs.empty(size, batch, columns),
        "r": programs.empty(some, batch, recurrent),
        "r_stride": stride * recurrent,
        "c": programs.empty(steps + 1 if record else 1, batch, hidden),
        "c_stride": stride * hidden,
    }
    if config.proj_size:
        buffers |= {"q": programs.empty(some, batch, hidden), "q_stride": stride * hidden}
        buffers |= {"projected": programs.empty(some, batch, output), "projected_stride": stride * output}
    if record:
        buffers["z"] = programs.empty(steps, batch, columns) if config.layer_norm else buffers["from_x"]
    if record and config.layer_norm:
        buffers["norm_h"] = programs.empty(steps, batch, columns)
        buffers |= {name: programs.empty(steps, batch) for name in ("deviation_x", "deviation_h")}
    return buffers
