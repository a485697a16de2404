"""The forward-mode derivative: the chain rule carried along the recorded steps. Names with t_ are tangents."""

from __future__ import annotations

import numpy as np

from lstmcore.activations import inside
from lstmcore.backend import Forward, State, Tangents
from lstmcore_numpy.cell_plan import CellPlan
from lstmcore_numpy.layer_norm import normalise_linear
from lstmcore_numpy.packing import Array, peephole_columns
from lstmcore_numpy.slopes import gate_slopes, hidden_slope
from lstmcore_numpy.tape import Saved


def jvp(plan: CellPlan, saved: Saved, tangents: Tangents) -> Forward:
    """Return the derivative of y and of the final state along `tangents`, at the recorded call."""
    config, schedule = plan.config, saved.schedule
    steps, _, batch = saved.operands.shape
    jvp_pass = _JvpPass(plan, saved, tangents)
    th, tc = (np.zeros((width, batch), plan.dtype) for width in (config.output_size, config.hidden_size))
    if tangents.state is not None:
        th[...], tc[...] = tangents.state[0].T, tangents.state[1].T
    ths = np.empty((steps, config.output_size, batch), plan.dtype)
    for t in range(steps):
        th_new, tc_new = jvp_pass.step(t, th, tc)
        past = schedule.past[t]
        th, tc = (th_new, tc_new) if past is None else (np.where(past, th, th_new), np.where(past, tc, tc_new))
        ths[t] = th
    ty = np.empty((steps, batch, config.output_size), plan.storage)
    schedule.write(ths, ty)
    return Forward(ty, State(th.T.astype(plan.storage, order="C"), tc.T.copy()))


class _JvpPass:
    """The tangents of the parameters and of ``W x``, and the steps of one derivative.

    Attributes
    ----------
    parameters
        Tangents of parameters by name, in the compute dtype.
    packed
        Those that have gates, packed as in `Layout`.
    from_x
        (T, G H, N), tangents of ``W x + b``, after its layer norm.
    from_weight_h
        (T, G H, N), the part of ``R r`` that comes from the tangent of R, or None.
    """

    def __init__(self, plan: CellPlan, saved: Saved, tangents: Tangents) -> None:
        self.plan, self.saved = plan, saved
        layout, given = plan.layout, tangents.parameters or {}
        # Contiguous: NumPy 1.26 multiplies arrays whose elements share memory in another order.
        self.parameters = {name: np.ascontiguousarray(array, plan.dtype) for name, array in given.items()}
        self.packed = layout.pack_parameters(self.parameters, plan.config.gates)
        self.peephole = peephole_columns(plan.config, self.parameters)
        self.weight_h = saved.weights.backward[layout.r].T
        self.from_x = self._input_tangents(tangents.x)
        r, packed = saved.operands[:, layout.r], self.packed
        self.from_weight_h = packed["weight_h"] @ r if "weight_h" in packed else None

    def _input_tangents(self, tx: Array | None) -> Array:
        """Return `from_x`; `tx` (T, N, I) is the tangent of x, or None."""
        saved, layout, packed = self.saved, self.plan.layout, self.packed
        from_x = np.zeros_like(saved.gates)
        if tx is not None:
            from_x += saved.weights.backward[layout.x].T @ saved.schedule.columns(tx, self.plan.dtype)
        if "weight_x" in packed:
            from_x += packed["weight_x"] @ saved.operands[:, layout.x]
        if saved.norm_x is not None:
            from_x = normalise_linear(saved.norm_x, from_x) * saved.weights.raw_gain_x
            if "norm_gain_x" in packed:
                from_x += saved.norm_x.value * packed["norm_gain_x"]
        if "bias" in packed:
            from_x += packed["bias"]
        return from_x

    def step(self, t: int, th: Array, tc: Array) -> tuple[Array, Array]:
        """Return the tangents of h and c after step `t` from those before it, in fresh arrays."""
        plan, config, saved = self.plan, self.plan.config, self.saved
        c_before, gates, places = saved.c[t], saved.gates[t], plan.layout.places
        g = gates[places["g"]]
        i, f = plan.input_and_forget(gates)
        slopes = gate_slopes(plan, saved, t, np.empty_like(gates))
        tz = self._recurrent_tangent(t, tc if config.recurrence == "cell" else th) + self.from_x[t]

        def gate(k: str, t_cell: Array, cell: Array) -> Array:
            """Return the tangent of gate `k`, whose peephole reads `cell`."""
            result: Array = self._with_peephole(k, tz[places[k]], t_cell, cell) * slopes[places[k]]
            return result

        tg = gate("g", tc, c_before)
        if config.coupling == "forget_from_input":
            ti = gate("i", tc, c_before)
            tf = -ti
        else:
            tf = gate("f", tc, c_before)
            ti = -tf if config.coupling == "input_from_forget" else gate("i", tc, c_before)

        tc_new = tf * c_before + f * tc + ti * g + i * tg
        if config.cell_clip is not None and saved.c_unclipped is not None:
            tc_new *= inside(saved.c_unclipped[t], config.cell_clip)
        if config.zoneout_cell:
            keep = plan.keep_cell(saved.masks, t)
            tc_new = keep * tc + (1 - keep) * tc_new
        th_new = self._output_tangent(t, gate("o", tc_new, saved.c[t + 1]), tc_new)
        if config.zoneout_hidden:
            keep = plan.keep_hidden(saved.masks, t)
            th_new = keep * th + (1 - keep) * th_new
        return th_new, tc_new

    def _recurrent_tangent(self, t: int, tr: Array) -> Array:
        """Return the tangent of ``R (m r)`` (G H, N) after its layer norm; `tr` (R, N) is that of r."""
        saved = self.saved
        if saved.masks.recurrent is not None:
            tr = tr * saved.masks.recurrent
        from_h: Array = self.weight_h @ tr
        if self.from_weight_h is not None:
            from_h += self.from_weight_h[t]
        if saved.norm_h is not None:
            from_h = normalise_linear(saved.norm_h.at(t), from_h) * saved.weights.raw_gain_h
            if "norm_gain_h" in self.packed:
                from_h += saved.norm_h.value[t] * self.packed["norm_gain_h"]
        return from_h

    def _with_peephole(self, gate: str, tz: Array, t_cell: Array, cell: Array) -> Array:
        """Return `tz` of a gate plus the tangent of its peephole.

        Parameters
        ----------
        gate
            Its letter.
        tz
            (H, N), tangent of its pre-activations; not changed.
        t_cell, cell
            (H, N), the cell that the peephole reads and its tangent.
        """
        if gate in self.saved.weights.raw_peephole:
            tz = tz + t_cell * self.saved.weights.raw_peephole[gate]
            if gate in self.peephole:
                tz += cell * self.peephole[gate]
        return tz

    def _output_tangent(self, t: int, to: Array, tc: Array) -> Array:
        """Return the tangent of h (P, N) before zoneout from those of gate o and of the cell."""
        plan, saved, parameters = self.plan, self.saved, self.parameters
        u, o, proj_clip = saved.u[t], saved.gates[t][plan.layout.places["o"]], plan.config.proj_clip
        tn = tc
        if saved.norm_c is not None:
            tn = normalise_linear(saved.norm_c.at(t), tc) * saved.weights.gain_c
            if "norm_gain_c" in parameters:
                tn += saved.norm_c.value[t] * parameters["norm_gain_c"][:, None]
            if "norm_bias_c" in parameters:
                tn += parameters["norm_bias_c"][:, None]
        th: Array = to * u + o * hidden_slope(plan, saved, t, np.empty_like(u)) * tn
        if saved.weights.proj is not None:
            th = saved.weights.proj @ th
            if "weight_proj" in parameters:
                th += parameters["weight_proj"] @ (o * u)
        if proj_clip is not None and saved.h_unclipped is not None:
            th *= inside(saved.h_unclipped[t], proj_clip)
        return th
