"""The forward-mode derivative: the chain rule carried along the recorded steps. Names with t_ are tangents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lstmcore.activations import inside
from lstmcore.backend import Forward, State, Tangents
from lstmcore_numpy.parts import Array, Norm, Saved, after, before, normalise_linear, order

if TYPE_CHECKING:
    from lstmcore_numpy.kernel import NumpyKernel


def jvp(kernel: NumpyKernel, saved: Saved, tangents: Tangents) -> Forward:
    """The derivative of y and of the final state along `tangents`, at the recorded call."""
    config, dtype, w, columns = kernel.config, kernel.dtype, saved.weights, kernel.columns
    steps, batch, _ = saved.x.shape
    tp = {name: np.asarray(array, dtype) for name, array in (tangents.parameters or {}).items()}
    packed = {
        name: kernel.layout.packed(tp[name], config.gates)
        for name in ("weight_x", "weight_h", "bias", "norm_gain_x", "norm_gain_h")
        if name in tp
    }
    t_peephole = dict(zip(config.peephole_gates, tp["peephole"], strict=True)) if "peephole" in tp else {}

    from_x = np.zeros_like(saved.gates)
    if tangents.x is not None:
        from_x += saved.rows.only(np.asarray(tangents.x, dtype)) @ w.weight_x.T
    if "weight_x" in packed:
        from_x += saved.x @ packed["weight_x"].T
    if saved.norm_x is not None:
        from_x = normalise_linear(saved.norm_x, from_x) * w.raw_gain_x
        if "norm_gain_x" in packed:
            from_x += saved.norm_x.value * packed["norm_gain_x"]
    if "bias" in packed:
        from_x += packed["bias"]
    recurrent = saved.recurrent
    if recurrent is None:
        recurrent = before(config, saved.c if config.recurrence == "cell" else saved.h)
    from_weight_h = recurrent @ packed["weight_h"].T if "weight_h" in packed else None
    weight_h = np.ascontiguousarray(w.weight_h.T)

    th = np.zeros((batch, config.output_size), dtype)
    tc = np.zeros((batch, config.hidden_size), dtype)
    if tangents.state is not None:
        th[...], tc[...] = tangents.state
    ty = np.zeros((steps, batch, config.output_size), dtype)

    for t in order(config, steps):
        c_before, c = before(config, saved.c)[t], after(config, saved.c)[t]
        gates = saved.gates[t]
        g, o = gates[:, columns["g"]], gates[:, columns["o"]]
        i, f = kernel._input_and_forget(gates)

        tr = tc if config.recurrence == "cell" else th
        if saved.masks.recurrent is not None:
            tr = tr * saved.masks.recurrent
        from_h = tr @ weight_h
        if from_weight_h is not None:
            from_h += from_weight_h[t]
        if saved.norm_h is not None:
            norm = Norm(saved.norm_h.value[t], saved.norm_h.deviation[t])
            from_h = normalise_linear(norm, from_h) * w.raw_gain_h
            if "norm_gain_h" in packed:
                from_h += norm.value * packed["norm_gain_h"]
        tz = from_h + from_x[t]

        def gate(k: str, tz: Array, t: int, t_cell: Array, cell: Array) -> Array:
            """The tangent of gate k, which sees `cell` through its peephole."""
            own = tz[:, columns[k]]
            if k in w.raw_peephole:
                own = own + t_cell * w.raw_peephole[k]
                if k in t_peephole:
                    own += cell * t_peephole[k]
            return own * kernel.gate_derivative(saved, t, k)

        tg = gate("g", tz, t, tc, c_before)
        if config.coupling == "forget_from_input":
            ti = gate("i", tz, t, tc, c_before)
            tf = -ti
        else:
            tf = gate("f", tz, t, tc, c_before)
            ti = -tf if config.coupling == "input_from_forget" else gate("i", tz, t, tc, c_before)

        tc_new = tf * c_before + f * tc + ti * g + i * tg
        if config.cell_clip is not None and saved.c_unclipped is not None:
            tc_new *= inside(saved.c_unclipped[t], config.cell_clip)
        if config.zoneout_cell:
            keep = kernel.keep(config.zoneout_cell, saved.masks.zoneout_cell, t)
            tc_new = keep * tc + (1 - keep) * tc_new
        to = gate("o", tz, t, tc_new, c)

        tn = tc_new
        if saved.norm_c is not None:
            norm = Norm(saved.norm_c.value[t], saved.norm_c.deviation[t])
            tn = normalise_linear(norm, tc_new) * w.gain_c
            if "norm_gain_c" in tp:
                tn += norm.value * tp["norm_gain_c"]
            if "norm_bias_c" in tp:
                tn += tp["norm_bias_c"]
        th_new = to * saved.u[t] + o * kernel.hidden_derivative(saved, t) * tn
        if w.forward_proj is not None:
            th_new = th_new @ w.forward_proj
            if "weight_proj" in tp:
                th_new += (o * saved.u[t]) @ tp["weight_proj"].T
        if config.proj_clip is not None and saved.h_unclipped is not None:
            th_new *= inside(saved.h_unclipped[t], config.proj_clip)
        if config.zoneout_hidden:
            keep = kernel.keep(config.zoneout_hidden, saved.masks.zoneout_hidden, t)
            th_new = keep * th + (1 - keep) * th_new
        if saved.rows.full[t] or saved.rows.active is None:
            th, tc = th_new, tc_new
            ty[t] = th
        else:
            active = saved.rows.active[t]
            th, tc = np.where(active, th_new, th), np.where(active, tc_new, tc)
            ty[t] = np.where(active, th, 0)
    storage = kernel.storage
    return Forward(ty.astype(storage, copy=False), State(th.astype(storage), tc))
