"""The forward-mode derivative: the chain rule carried along the recorded steps. Names with t_ are tangents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lstmcore.activations import inside
from lstmcore.backend import Forward, State, Tangents
from lstmcore_numpy.backward import gate_slopes, hidden_slope
from lstmcore_numpy.parts import Array, Saved, normalise_linear

if TYPE_CHECKING:
    from lstmcore_numpy.kernel import NumpyKernel


def jvp(kernel: NumpyKernel, saved: Saved, tangents: Tangents) -> Forward:
    """The derivative of y and of the final state along `tangents`, at the recorded call."""
    config, dtype, layout, w = kernel.config, kernel.dtype, kernel.layout, saved.weights
    steps, _, batch = saved.operands.shape
    x, r = saved.operands[:, layout.x], saved.operands[:, layout.r]
    weight_x, weight_h = w.backward[layout.x].T, w.backward[layout.r].T
    # Contiguous: NumPy 1.26 multiplies arrays whose elements share memory in another order.
    tp = {name: np.ascontiguousarray(array, dtype) for name, array in (tangents.parameters or {}).items()}
    packed = {
        name: layout.packed(tp[name].reshape(layout.size, -1), config.gates)
        for name in ("weight_x", "weight_h", "bias", "norm_gain_x", "norm_gain_h")
        if name in tp
    }
    t_peephole = (
        {gate: row[:, None] for gate, row in zip(config.peephole_gates, tp["peephole"], strict=True)}
        if "peephole" in tp
        else {}
    )

    from_x = np.zeros_like(saved.gates)
    if tangents.x is not None:
        from_x += weight_x @ saved.schedule.columns(tangents.x, dtype)
    if "weight_x" in packed:
        from_x += packed["weight_x"] @ x
    if saved.norm_x is not None:
        from_x = normalise_linear(saved.norm_x, from_x) * w.raw_gain_x
        if "norm_gain_x" in packed:
            from_x += saved.norm_x.value * packed["norm_gain_x"]
    if "bias" in packed:
        from_x += packed["bias"]
    from_weight_h = packed["weight_h"] @ r if "weight_h" in packed else None

    th, tc = (np.zeros((width, batch), dtype) for width in (config.output_size, config.hidden_size))
    if tangents.state is not None:
        th[...], tc[...] = tangents.state[0].T, tangents.state[1].T
    ths = np.empty((steps, config.output_size, batch), dtype)

    for t in range(steps):
        c_before, c, gates, u = saved.c[t], saved.c[t + 1], saved.gates[t], saved.u[t]
        g, o = gates[layout.places["g"]], gates[layout.places["o"]]
        i, f = kernel.input_and_forget(gates)
        slopes = gate_slopes(kernel, saved, t, np.empty_like(gates))

        tr = tc if config.recurrence == "cell" else th
        if saved.masks.recurrent is not None:
            tr = tr * saved.masks.recurrent
        from_h = weight_h @ tr
        if from_weight_h is not None:
            from_h += from_weight_h[t]
        if saved.norm_h is not None:
            from_h = normalise_linear(saved.norm_h.at(t), from_h) * w.raw_gain_h
            if "norm_gain_h" in packed:
                from_h += saved.norm_h.value[t] * packed["norm_gain_h"]
        tz = from_h + from_x[t]

        def gate(k: str, tz: Array, slopes: Array, t_cell: Array, cell: Array) -> Array:
            """The tangent of gate k, which sees `cell` through its peephole."""
            own = tz[layout.places[k]]
            if k in w.raw_peephole:
                own = own + t_cell * w.raw_peephole[k]
                if k in t_peephole:
                    own += cell * t_peephole[k]
            result: Array = own * slopes[layout.places[k]]
            return result

        tg = gate("g", tz, slopes, tc, c_before)
        if config.coupling == "forget_from_input":
            ti = gate("i", tz, slopes, tc, c_before)
            tf = -ti
        else:
            tf = gate("f", tz, slopes, tc, c_before)
            ti = -tf if config.coupling == "input_from_forget" else gate("i", tz, slopes, tc, c_before)

        tc_new = tf * c_before + f * tc + ti * g + i * tg
        if config.cell_clip is not None and saved.c_unclipped is not None:
            tc_new *= inside(saved.c_unclipped[t], config.cell_clip)
        if config.zoneout_cell:
            keep = saved.masks.zoneout_cell
            keep_c = config.zoneout_cell if keep is None else keep[t]
            tc_new = keep_c * tc + (1 - keep_c) * tc_new
        to = gate("o", tz, slopes, tc_new, c)

        tn = tc_new
        if saved.norm_c is not None:
            tn = normalise_linear(saved.norm_c.at(t), tc_new) * w.gain_c
            if "norm_gain_c" in tp:
                tn += saved.norm_c.value[t] * tp["norm_gain_c"][:, None]
            if "norm_bias_c" in tp:
                tn += tp["norm_bias_c"][:, None]
        th_new = to * u + o * hidden_slope(kernel, saved, t, np.empty_like(u)) * tn
        if w.proj is not None:
            th_new = w.proj @ th_new
            if "weight_proj" in tp:
                th_new += tp["weight_proj"] @ (o * u)
        if config.proj_clip is not None and saved.h_unclipped is not None:
            th_new *= inside(saved.h_unclipped[t], config.proj_clip)
        if config.zoneout_hidden:
            keep = saved.masks.zoneout_hidden
            keep_h = config.zoneout_hidden if keep is None else keep[t]
            th_new = keep_h * th + (1 - keep_h) * th_new
        past = saved.schedule.past[t]
        th, tc = (th_new, tc_new) if past is None else (np.where(past, th, th_new), np.where(past, tc, tc_new))
        ths[t] = th
    ty = np.empty((steps, batch, config.output_size), kernel.storage)
    saved.schedule.write(ths, ty)
    return Forward(ty, State(th.T.astype(kernel.storage, order="C"), tc.T.copy()))
