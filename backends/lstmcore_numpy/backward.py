"""The backward pass as docs/backward.md derives it, on columns.

The gradients of the parameters are sums over steps and rows. Each is one matrix product for a whole block of steps.
"""

from __future__ import annotations

import numpy as np

from lstmcore.activations import inside
from lstmcore.backend import Gradients, State
from lstmcore_numpy import tuning
from lstmcore_numpy.cell_plan import CellPlan
from lstmcore_numpy.layer_norm import normalise_linear
from lstmcore_numpy.packing import Array
from lstmcore_numpy.slopes import gate_slopes, hidden_slope
from lstmcore_numpy.tape import Saved


def backward(plan: CellPlan, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
    """Return the gradients of ``sum(dy * y) + sum(dstate * final state)``.

    Parameters
    ----------
    plan, saved
        The plan of the layer and the tape.
    dy
        (T, N, P), time-major, in the storage dtype; zeros if None.
    dstate
        The gradient of the final state; zeros if None.
    """
    config, dtype, storage = plan.config, plan.dtype, plan.storage
    steps, _, batch = saved.operands.shape
    schedule, widths = saved.schedule, (config.output_size, config.hidden_size)
    dh, dc = (np.zeros((width, batch), dtype) for width in widths)
    if dstate is not None:
        dh[...], dc[...] = dstate.h.T, dstate.c.T
    dys = None if dy is None else schedule.columns(dy, dtype)
    dx = np.empty((steps, batch, config.input_size), storage)
    parameters: dict[str, Array] = {}
    size = max(1, min(steps, tuning.BACKWARD_BLOCK // max(1, batch)))
    block = _Block(plan, saved, size)
    for end in range(steps, 0, -size) if steps else (0,):
        first = max(0, end - size)
        for t in reversed(range(first, end)):
            if dys is not None:
                dh += dys[t]
            past = schedule.past[t]
            if past is None:
                dh, dc = block.step(t, t - first, dh, dc)
            else:
                dh_before, dc_before = block.step(t, t - first, np.where(past, 0, dh), np.where(past, 0, dc))
                block.clear(t - first, past)
                dh, dc = np.where(past, dh, dh_before), np.where(past, dc, dc_before)
        schedule.ordered(dx)[first:end] = block.input_gradient(end - first)
        for name, part in block.parameter_gradients(slice(first, end)).items():
            parameters[name] = parameters[name] + part if name in parameters else part
    return Gradients(
        dx,
        State(dh.T.astype(storage, order="C"), dc.T.copy()),
        {name: parameters[name].astype(storage, copy=False) for name in config.parameter_shapes},
    )


class _Block:
    """The buffers of one backward pass, for the S steps of a block.

    What the matrix products of a block read is (., S, N), so that its steps are one matrix.

    Attributes
    ----------
    all_dz
        (G H, S, N), gradients of the pre-activations.
    all_from_x, all_from_h
        The same shape, gradients of ``W x`` and ``R r``; without layer norm they are `all_dz`.
    all_dh
        (P, S, N), gradients of the projected h before its clip; None without a projection.
    all_dn
        (H, S, N), gradients of the normalised cell after its gain; None without layer norm.
    """

    def __init__(self, plan: CellPlan, saved: Saved, size: int) -> None:
        self.plan, self.saved = plan, saved
        config, dtype, batch = plan.config, plan.dtype, saved.operands.shape[2]
        self.dz = np.empty((plan.layout.size, batch), dtype)
        self.slopes = np.empty_like(self.dz)
        self.scratch = np.empty((config.hidden_size, batch), dtype)
        self.all_dz = np.empty((plan.layout.size, size, batch), dtype)
        self.all_from_x = np.empty_like(self.all_dz) if config.layer_norm else self.all_dz
        self.all_from_h = np.empty_like(self.all_dz) if config.layer_norm else self.all_dz
        self.all_dh = np.empty((config.output_size, size, batch), dtype) if config.proj_size else None
        self.all_dn = np.empty((config.hidden_size, size, batch), dtype) if config.layer_norm else None

    def step(self, t: int, at: int, dh: Array, dc: Array) -> tuple[Array, Array]:  # long: SPEC.md's step, reversed
        """Return the gradients of h and c before a step from those after it, in fresh arrays.

        Parameters
        ----------
        t, at
            The step, and its index in the block.
        dh, dc
            (P, N) and (H, N), gradients of the state after the step. They are not changed.
        """
        plan, saved, dz, scratch = self.plan, self.saved, self.dz, self.scratch
        config, layout, masks, w = plan.config, plan.layout, saved.masks, saved.weights
        c_before, gates, u = saved.c[t], saved.gates[t], saved.u[t]
        g, o = gates[layout.places["g"]], gates[layout.places["o"]]
        i, f = plan.input_and_forget(gates)
        slopes = gate_slopes(plan, saved, t, self.slopes)

        # h = keep h_before + (1 - keep) clip(W_proj q)
        dh_before = None
        dq = dh
        if config.zoneout_hidden:
            keep = plan.keep_hidden(masks, t)
            dh_before, dq = keep * dh, (1 - keep) * dh
        if saved.h_unclipped is not None and config.proj_clip is not None:
            dq = dq * inside(saved.h_unclipped[t], config.proj_clip)
        if w.proj is not None and self.all_dh is not None:
            self.all_dh[:, at] = dq
            dq = w.proj.T @ dq

        # q = o u(LN(c)), o = s(z_o + p_o c)
        dn = dq * o
        dn *= hidden_slope(plan, saved, t, scratch)
        if w.gain_c is not None and saved.norm_c is not None and self.all_dn is not None:
            self.all_dn[:, at] = dn
            dn = normalise_linear(saved.norm_c.at(t), dn * w.gain_c)
        dc = np.add(dn, dc, dn)
        dz_o = dz[layout.places["o"]]
        np.multiply(dq, u, dz_o)
        dz_o *= slopes[layout.places["o"]]
        if config.peephole:
            dc += np.multiply(dz_o, w.raw_peephole["o"], scratch)

        # c = keep c_before + (1 - keep) clip(f c_before + i g)
        dc_kept = None
        if config.zoneout_cell:
            keep = plan.keep_cell(masks, t)
            dc_kept, dc = keep * dc, (1 - keep) * dc
        if saved.c_unclipped is not None and config.cell_clip is not None:
            dc *= inside(saved.c_unclipped[t], config.cell_clip)
        np.multiply(dc, i, dz[layout.places["g"]])
        if config.coupling == "none":
            np.multiply(dc, g, dz[layout.places["i"]])
            np.multiply(dc, c_before, dz[layout.places["f"]])
        elif config.coupling == "forget_from_input":
            np.multiply(dc, g - c_before, dz[layout.places["i"]])
        else:
            np.multiply(dc, c_before - g, dz[layout.places["f"]])
        dz[layout.early] *= slopes[layout.early]
        dc_before = np.multiply(dc, f, dc)
        if dc_kept is not None:
            dc_before += dc_kept
        for gate in "if":
            if gate in w.raw_peephole:
                dc_before += np.multiply(dz[layout.places[gate]], w.raw_peephole[gate], scratch)

        # z = LN(W x) + LN(R (m r)) + b
        self.all_dz[:, at] = from_h = dz
        if saved.norm_x is not None and saved.norm_h is not None:
            from_h = normalise_linear(saved.norm_h.at(t), dz * w.raw_gain_h)
            self.all_from_h[:, at] = from_h
            self.all_from_x[:, at] = normalise_linear(saved.norm_x.at(t), dz * w.raw_gain_x)
        dr = np.matmul(w.backward[layout.r], from_h)
        if masks.recurrent is not None:
            dr *= masks.recurrent
        if config.recurrence == "cell":
            dc_before += dr
            return (np.zeros_like(dh) if dh_before is None else dh_before), dc_before
        return (dr if dh_before is None else dh_before + dr), dc_before

    def clear(self, at: int, past: Array) -> None:
        """Write zeros for the columns `past` their end of step `at`: a held state that is not finite makes them NaN."""
        for gradients in (self.all_dz, self.all_from_x, self.all_from_h, self.all_dh, self.all_dn):
            if gradients is not None:
                np.copyto(gradients[:, at], 0, where=past)

    def input_gradient(self, count: int) -> Array:
        """Return the gradient of x for the first `count` steps of the block, (count, N, I)."""
        from_x = _matrix(self.all_from_x[:, :count])
        weight_x = self.saved.weights.backward[self.plan.layout.x]
        dx: Array = np.matmul(from_x.T, weight_x.T)
        return dx.reshape(count, self.dz.shape[1], len(weight_x))

    def parameter_gradients(self, steps: slice) -> dict[str, Array]:
        """Return what `steps`, those of the block, add to the gradients of the parameters, in the compute dtype."""
        saved, config, layout = self.saved, self.plan.config, self.plan.layout
        count, active = steps.stop - steps.start, saved.schedule.active

        def from_block(array: Array) -> Array:
            return _matrix(array[:, :count])

        def from_tape(array: Array) -> Array:
            part = array[steps].transpose(1, 0, 2)
            if active is not None:  # what the tape holds in padding may be infinite, and times 0 it is NaN
                part = np.where(active[steps].transpose(1, 0, 2), part, part.dtype.type(0))
            return _matrix(part)

        dz = from_block(self.all_dz)
        packed: dict[str, Array] = {}
        if saved.norm_x is not None and saved.norm_h is not None:
            packed["weight_x"] = from_block(self.all_from_x) @ from_tape(saved.operands[:, layout.x]).T
            packed["weight_h"] = from_block(self.all_from_h) @ from_tape(saved.operands[:, layout.r]).T
            packed["norm_gain_x"] = (dz * from_tape(saved.norm_x.value)).sum(axis=1)
            packed["norm_gain_h"] = (dz * from_tape(saved.norm_h.value)).sum(axis=1)
        else:
            both = dz @ from_tape(saved.operands[:, : layout.r.stop]).T
            packed["weight_x"], packed["weight_h"] = both[:, layout.x], both[:, layout.r]
        if config.bias:
            packed["bias"] = dz.sum(axis=1)
        result = {name: layout.unpack_rows(rows, config.gates) for name, rows in packed.items()}
        if self.all_dh is not None:
            q = from_tape(saved.gates[:, layout.places["o"]]) * from_tape(saved.u)
            result["weight_proj"] = from_block(self.all_dh) @ q.T
        if config.peephole:
            before, after = from_tape(saved.c[:-1]), from_tape(saved.c[1:])
            cells = {"i": before, "f": before, "o": after}
            result["peephole"] = np.stack(
                [(dz[layout.places[gate]] * cells[gate]).sum(axis=1) for gate in config.peephole_gates]
            )
        if self.all_dn is not None and saved.norm_c is not None:
            dn = from_block(self.all_dn)
            result["norm_gain_c"] = (dn * from_tape(saved.norm_c.value)).sum(axis=1)
            result["norm_bias_c"] = dn.sum(axis=1)
        return result


def _matrix(array: Array) -> Array:
    """Return `array` (K, S, N) as (K, S N)."""
    return array.reshape(array.shape[0], array.shape[1] * array.shape[2])
