"""Edits of backward and jvp: terms of gradients and tangents that are missing, doubled or stale."""

from __future__ import annotations

from lstmcore_conformance.mutants.construction import edit

_B, _J = "backward.switches", "jvp.switches"

edit(
    "lengths.empty_row_gradient",
    "so is the gradient of the state",
    "dh_step = np.where(step.active, dh, 0) + ",
    "dh_step = dh * step.active + ",
    "lengths.empty_rows",
)
edit(
    "lengths.dy_in_padding",
    "dy past the end is added to the gradient of the state",
    "dh_step = np.where(step.active, dh, 0) + np.where(step.active, incoming, 0)",
    "dh = dh + incoming\n        dh_step = np.where(step.active, dh, 0)",
    "lengths.backward",
)
edit(
    "backward.zoneout_h",
    "no gradient through the h that zoneout keeps",
    "dh_before = keep_h * dh\n",
    "dh_before = 0 * dh\n",
    _B,
)
edit(
    "backward.zoneout_h_new", "the new h gets all of the gradient", "dh_new = (1 - keep_h) * dh\n", "dh_new = dh\n", _B
)
edit(
    "backward.zoneout_c",
    "no gradient through the c that zoneout keeps",
    "dc_before = keep_c * dc\n",
    "dc_before = 0 * dc\n",
    _B,
)
edit(
    "backward.proj_clip",
    "the clip of the output is not in backward",
    "dh_new = dh_new * inside(step.h_unclipped, config.proj_clip)",
    "pass",
    _B,
)
edit(
    "backward.cell_clip",
    "the clip of the cell is not in backward",
    "dc_new = dc_new * inside(step.c_unclipped, config.cell_clip)",
    "pass",
    _B,
)
edit(
    "backward.gate_clip",
    "the clip of the gates is not in backward",
    "derivative(function, clip(z, config.gate_clip)) * inside(z, config.gate_clip)",
    "derivative(function, clip(z, config.gate_clip))",
    _B,
)
edit(
    "backward.clip_side",
    "on the bound of the gate clip the gradient is 0",
    "derivative(function, clip(z, config.gate_clip)) * inside(z, config.gate_clip)",
    "derivative(function, clip(z, config.gate_clip)) * (np.abs(z) < config.gate_clip)",
    "backward.kinks",
)
edit("backward.c_from_h", "no gradient from h to c", "dc = dc + dc_out\n", "dc = dc + 0 * dc_out\n", _B)
edit(
    "backward.peephole_o", "no gradient through the peephole of o to c", 'dc = dc + dz["o"] * peephole["o"]', "pass", _B
)
edit(
    "backward.peephole_o_stale",
    "the gradient of the peephole of o takes the old cell",
    'dpeephole["o"] += (dz["o"] * step.c).sum(axis=0)',
    'dpeephole["o"] += (dz["o"] * step.c_before).sum(axis=0)',
    _B,
)
edit(
    "backward.peephole_if",
    "no gradient through the peepholes of i and f to c",
    "dc_before = dc_before + dz[k] * peephole[k]",
    "pass",
    _B,
)
edit(
    "backward.f_stale",
    "the gradient of f takes the new cell",
    'dgate["f"] = dc_new * step.c_before',
    'dgate["f"] = dc_new * step.c',
    _B,
)
edit("backward.c_chain", "no gradient from c to the c before", 'dc_before = dc_before + dc_new * gate["f"]', "pass", _B)
edit("backward.coupling", "the gate that follows gives no gradient", 'dgate["i"] = dgate["i"] - dgate["f"]', "pass", _B)
edit(
    "backward.bias_doubled",
    "the gradient of the bias is there twice",
    'dp["bias"] += dz_all.sum(axis=0)',
    'dp["bias"] += 2 * dz_all.sum(axis=0)',
    _B,
)
edit("backward.h_chain", "no gradient from the gates to h", "dh_before = dh_before + dr", "pass", _B)
edit("backward.r_chain", "no gradient from the gates to the recurrent cell", "dc_before = dc_before + dr", "pass", _B)
edit(
    "backward.dropout",
    "the recurrent mask is not in backward",
    'dr = keep_r * (from_h @ p["weight_h"])',
    'dr = from_h @ p["weight_h"]',
    "masks.backward",
)
edit(
    "backward.norm_mean",
    "the gradient of the layer norm leaves out the mean",
    "result: Array = (d - d.mean(axis=1, keepdims=True) - along)",
    "result: Array = (d - along)",
    _B,
)
edit(
    "backward.final_c_ignored",
    "the gradient of the final c is ignored",
    "dh, dc = _state(config, batch, dstate, tape.dtype)",
    "dh, dc = _state(config, batch, dstate and State(dstate.h, 0 * dstate.c), tape.dtype)",
    "backward.uses",
)
edit(
    "backward.needs_dy",
    "without dy the gradient is 0",
    "dh, dc = _state(config, batch, dstate, tape.dtype)",
    "dh, dc = _state(config, batch, None if dy is None else dstate, tape.dtype)",
    "backward.uses",
)
edit(
    "backward.dx_scaled",
    "dx of the first step is left out",
    "dx[t], dh_before, dc_before = _backward_step(config, tape.parameters, step, dh_step, dc_step, dp)",
    "dx[t], dh_before, dc_before = _backward_step(config, tape.parameters, step, dh_step, dc_step, dp)\n"
    "        dx[0] = 0",
    _B,
)
edit("jvp.bias", "the tangent of the bias is ignored", 'tz_all = tz_all + tp.get("bias", 0)', "pass", _J)
edit(
    "jvp.c_chain",
    "no tangent from c to the next c",
    'tc_new = tgate["f"] * step.c_before + gate["f"] * tc_before +',
    'tc_new = tgate["f"] * step.c_before +',
    _J,
)
edit(
    "jvp.weight_h",
    "the tangent of R is ignored",
    'tr @ p["weight_h"].T + _change(step.recurrent, tp.get("weight_h"))',
    'tr @ p["weight_h"].T',
    _J,
)
edit(
    "jvp.times_zero",
    "a parameter without a tangent has one of zeros, which an infinite x makes NaN",
    "    if tangent is None:\n        return 0\n",
    "    if tangent is None:\n        return 0 * operand.sum(axis=-1, keepdims=True)\n",
    "jvp.still",
)
edit(
    "lengths.held_times_zero",
    "in padding the held state is multiplied by zero",
    "(np.where(active, array, 0) for array in (x, *before))\n",
    "(np.where(active, x, 0), *before)\n",
    "lengths.infinite",
)
edit(
    "jvp.adjoint",
    "jvp and backward differ: the clip of the cell is not in jvp",
    "tc_new = tc_new * inside(step.c_unclipped, config.cell_clip)",
    "pass",
    "jvp.adjoint",
)
edit(
    "jvp.lengths",
    "the tangent of the state runs on past the end",
    "th, tc = np.where(step.active, th_new, th), np.where(step.active, tc_new, tc)",
    "th, tc = th_new, tc_new",
    "lengths.jvp",
)
edit("jvp.masks", "the recurrent mask is not in jvp", "tr = keep_r * (tc_before", "tr = (tc_before", "masks.jvp")
edit(
    "backward.not_linear",
    "gradients are clipped to +-1 on their way",
    "dc = dc + dc_out\n",
    "dc = np.clip(dc + dc_out, -1, 1)\n",
    "backward.linear",
)
edit(
    "combined.peephole_clip",
    "no gradient through the peephole of o where gates are clipped",
    'dc = dc + dz["o"] * peephole["o"]',
    'dc = dc + dz["o"] * peephole["o"] * (config.gate_clip is None)',
    "backward.combinations",
)
edit(
    "combined.norm_proj",
    "no tangent of the projection with layer norm",
    'th_new = tq @ p["weight_proj"].T + _change(q, tp.get("weight_proj"))',
    'th_new = tq @ p["weight_proj"].T + _change(q, tp.get("weight_proj")) * (not config.layer_norm)',
    "jvp.combinations",
)
edit(
    "first_step.dx",
    "a last step alone gives no gradient of the c before",
    "dc = np.where(step.active, dc_before, dc)\n",
    "dc = np.where(step.active, dc_before * (steps > 2), dc)\n",
    "state.pieces_backward",
)
edit(
    "sizes.gradient_of_one_row",
    "with one row the gradient of R is left out",
    'dp["weight_h"] += from_h.T @ step.recurrent',
    'dp["weight_h"] += from_h.T @ step.recurrent * (len(from_h) > 1)',
    "backward.sizes",
)
edit(
    "sizes.tangent_of_one_unit",
    "with one hidden unit the tangent of R is left out",
    'tr @ p["weight_h"].T + _change(step.recurrent, tp.get("weight_h"))',
    'tr @ p["weight_h"].T + _change(step.recurrent, tp.get("weight_h")) * (config.hidden_size > 1)',
    "jvp.sizes",
)
