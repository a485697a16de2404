"""Edits of the equations: terms that are missing, doubled, stale or of another place, and lost precision."""

from __future__ import annotations

from lstmcore_conformance.mutants.construction import edit

_F, _B, _J = "forward.switches", "backward.switches", "jvp.switches"

edit("bias.dropped", "no bias is added", 'z = z + p["bias"]', "z = z", _F)
edit("recurrent.dropped", "R r is left out", "z = from_x + from_h\n", "z = from_x + 0 * from_h\n", _F)
edit(
    "recurrent.transposed",
    "R of every gate is transposed where it is square",
    'step.recurrent @ p["weight_h"].T\n',
    'step.recurrent @ (np.concatenate([b.T for b in np.split(p["weight_h"], len(config.gates))]) '
    'if config.recurrent_size == config.hidden_size else p["weight_h"]).T\n',
    _F,
)
edit(
    "gates.i_f_swapped",
    "the rows of i and f change places",
    "return dict(zip(config.gates, np.swapaxes",
    "return dict(zip("
    '[{"i": "f", "f": "i"}.get(k, k) if config.coupling == "none" else k for k in config.gates], np.swapaxes',
    _F,
)
edit(
    "gates.g_o_swapped",
    "the rows of g and o change places",
    "return dict(zip(config.gates, np.swapaxes",
    'return dict(zip([{"g": "o", "o": "g"}.get(k, k) for k in config.gates], np.swapaxes',
    _F,
)
edit(
    "gates.forget_bias",
    "1 is added to the forget gate at run time",
    "z = clip(z, config.gate_clip)\n    return value",
    'z = clip(z, config.gate_clip)\n    z = z + 1 if k == "f" else z\n    return value',
    _F,
)
edit(
    "peephole.dropped",
    "the peepholes of i and f are left out",
    "step.z[k] = step.z[k] + peephole[k] * c_before",
    "pass",
    _F,
)
edit(
    "peephole.f_dropped",
    "the peephole of f is left out",
    "step.z[k] = step.z[k] + peephole[k] * c_before",
    'step.z[k] = step.z[k] + (peephole[k] * c_before if k == "i" else 0)',
    _F,
)
edit(
    "peephole.o_old_cell",
    "the peephole of o reads the old cell",
    'step.z["o"] = step.z["o"] + peephole["o"] * step.c\n',
    'step.z["o"] = step.z["o"] + peephole["o"] * c_before\n',
    _F,
)
edit(
    "peephole.rows_reversed",
    "the rows of the peepholes are o, f, i",
    'return dict(zip(config.peephole_gates, p["peephole"], strict=True)) if',
    'return dict(zip(config.peephole_gates[::-1], p["peephole"], strict=True)) if',
    _F,
)
edit("coupling.not_one_minus", "f = i", 'gate["f"] = 1 - gate["i"]', 'gate["f"] = gate["i"]', _F)
edit(
    "gate_clip.after_activation",
    "the gate clip limits the activation, not what it reads",
    "        z = clip(z, config.gate_clip)\n"
    '    return value(config.cell_activation if k == "g" else config.gate_activation, z)',
    '        return clip(value(config.cell_activation if k == "g" else config.gate_activation, z), config.gate_clip)\n'
    '    return value(config.cell_activation if k == "g" else config.gate_activation, z)',
    _F,
)
edit(
    "gate_clip.not_o",
    "the gate clip leaves out o",
    "    if config.gate_clip is not None:\n        z = clip(z, config.gate_clip)\n",
    '    if config.gate_clip is not None and k != "o":\n        z = clip(z, config.gate_clip)\n',
    _F,
)
edit(
    "cell_clip.dropped",
    "the cell is not clipped",
    "c_new = step.c_unclipped if config.cell_clip is None else clip(step.c_unclipped, config.cell_clip)",
    "c_new = step.c_unclipped",
    _F,
)
edit(
    "cell_clip.after_zoneout",
    "the cell is clipped after the zoneout",
    "    step.c = keep_c * c_before + (1 - keep_c) * c_new\n",
    "    step.c = keep_c * c_before + (1 - keep_c) * c_new\n"
    "    step.c = step.c if config.cell_clip is None else clip(step.c, config.cell_clip)\n",
    _F,
)
edit(
    "proj_clip.dropped",
    "the projected output is not clipped",
    "h_new = step.h_unclipped if config.proj_clip is None else clip(step.h_unclipped, config.proj_clip)",
    "h_new = step.h_unclipped",
    _F,
)
edit(
    "activation.hidden_is_tanh",
    "the cell's way out is always tanh",
    'step.q = gate["o"] * value(config.hidden_activation, step.c_out)',
    'step.q = gate["o"] * np.tanh(step.c_out)',
    _F,
)
edit(
    "activation.g_is_gate",
    "g has the activation of the gates",
    '    return value(config.cell_activation if k == "g" else config.gate_activation, z)',
    "    return value(config.gate_activation, z)",
    _F,
)
edit(
    "layer_norm.sample_variance",
    "the variance divides by n - 1",
    "deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True)",
    "deviation = np.sqrt((centred * centred).sum(axis=1, keepdims=True) / max(a.shape[1] - 1, 1)",
    _F,
)
edit("layer_norm.eps_fixed", "eps is always 1e-5", "+ config.layer_norm_eps)", "+ 1e-5)", _F)
edit(
    "layer_norm.gains_swapped",
    "the gains of x and h change places",
    'from_x = p["norm_gain_x"] * step.norms["x"].value\n        from_h = p["norm_gain_h"]',
    'from_x = p["norm_gain_h"] * step.norms["x"].value\n        from_h = p["norm_gain_x"]',
    _F,
)
edit(
    "layer_norm.c_carried",
    "the normalised cell is what the next step reads",
    "return keep_h * step.h_before + (1 - keep_h) * h_new, step.c\n",
    "return keep_h * step.h_before + (1 - keep_h) * h_new, step.c_out\n",
    _F,
)
edit(
    "zoneout.inverted",
    "1 takes the new value of c",
    "step.c = keep_c * c_before + (1 - keep_c) * c_new",
    "step.c = (1 - keep_c) * c_before + keep_c * c_new",
    "masks.kept",
)
edit(
    "zoneout.rate_ignored",
    "without masks there is no zoneout of h",
    "np.full((batch, config.output_size), config.zoneout_hidden, dtype)",
    "np.zeros((batch, config.output_size), dtype)",
    _F,
)
edit(
    "zoneout.partial",
    "a zoneout of c without a mask is none at all where other masks are given",
    "np.full((batch, config.hidden_size), config.zoneout_cell, dtype)\n",
    "np.full((batch, config.hidden_size), 0 if masks else config.zoneout_cell, dtype)\n",
    "masks.partial",
)
edit(
    "recurrence.cell_is_hidden",
    "recurrence='cell' reads something else: c after the sign is lost",
    'keep_r * (c_before if config.recurrence == "cell" else h_before)',
    'keep_r * (np.abs(c_before) if config.recurrence == "cell" else h_before)',
    _F,
)
edit(
    "dropout.each_row_same",
    "the recurrent mask of the first row serves all",
    "np.asarray(np.ones((batch, config.recurrent_size)) if recurrent is None else recurrent, dtype)",
    "np.asarray("
    "np.ones((batch, config.recurrent_size)) if recurrent is None else recurrent[:1].repeat(batch, 0), dtype)",
    "masks.forward",
)
edit(
    "precision.h_coarse",
    "h is rounded to 8 bits where float16 has 11",
    "h_new = _stored(h_new, policy)",
    'h_new = _stored(_stored(h_new, get_precision("bfloat16")), policy)',
    "backward.combinations",
    "float16",
)
edit(
    "lengths.off_by_one",
    "the last step of every row is left out",
    "yield t, (t < ends)",
    "yield t, (t < ends - 1)",
    "lengths.forward",
)
edit(
    "lengths.one_more",
    "rows run one step past their end",
    "yield t, (t < ends)",
    "yield t, (t <= ends)",
    "lengths.forward",
)
edit(
    "lengths.state_not_held",
    "the state runs on past the end",
    "h, c = np.where(active, h_new, h), np.where(active, c_new, c)\n        y[t]",
    "h, c = h_new, c_new\n        y[t]",
    "lengths.exact",
)
edit(
    "lengths.output_held", "y past the end is the last h", "y[t] = np.where(active, h, 0)", "y[t] = h", "lengths.exact"
)
edit(
    "lengths.reverse_from_T",
    "a reversed row starts at T",
    "yield t, (t < ends)",
    "yield t, ((t >= steps - ends) if config.reverse else (t < ends))",
    "lengths.forward",
)
edit(
    "lengths.padding_read",
    "padding is multiplied by 0, so NaN comes through",
    "x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))",
    "(h_before, c_before), x = (np.where(active, array, 0) for array in before), x * active",
    "lengths.padding",
)
edit(
    "lengths.empty_row_read",
    "the state past the end of a row is multiplied by 0, so a NaN of a row of length 0 comes through",
    "x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))",
    "x, (h_before, c_before) = np.where(active, x, 0), (array * active for array in before)",
    "lengths.empty_rows",
)
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
    "reverse.y_reversed",
    "y of a reversed direction is in the order of the run",
    "y[t] = np.where(active, h, 0)",
    "y[steps - 1 - t if config.reverse else t] = np.where(active, h, 0)",
    _F,
)

# Terms of the gradient
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
edit("jvp.bias", "the tangent of the bias is ignored", 'tz_all = tz_all + tp["bias"]', "pass", _J)
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
    'tr @ p["weight_h"].T + step.recurrent @ tp["weight_h"].T',
    'tr @ p["weight_h"].T',
    _J,
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
    "combined.clip_coupled",
    "the clip of the cell is left out where gates are coupled",
    "c_new = step.c_unclipped if config.cell_clip is None else",
    'c_new = step.c_unclipped if config.cell_clip is None or config.coupling != "none" else',
    "forward.combinations",
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
    'th_new = tq @ p["weight_proj"].T + q @ tp["weight_proj"].T',
    'th_new = tq @ p["weight_proj"].T + q @ tp["weight_proj"].T * (not config.layer_norm)',
    "jvp.combinations",
)
edit(
    "first_step.zoneout",
    "zoneout spares the first step of a call",
    "h_new, c_new = _forward_step(config, p, step)",
    "step.masks = (step.masks[0], *(m * bool(tape) for m in step.masks[1:]))\n"
    "        h_new, c_new = _forward_step(config, p, step)",
    "state.resume",
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
    'tr @ p["weight_h"].T + step.recurrent @ tp["weight_h"].T',
    'tr @ p["weight_h"].T + step.recurrent @ tp["weight_h"].T * (config.hidden_size > 1)',
    "jvp.sizes",
)

# Precision
edit(
    "precision.tf32",
    "products of TF32 in float32",
    'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T',
    'from_x, from_h = _tf32(step.x) @ _tf32(p["weight_x"]).T, _tf32(step.recurrent) @ _tf32(p["weight_h"]).T',
    _F,
)
edit(
    "precision.tf32_recurrent",
    "the recurrent product alone in TF32",
    'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T',
    'from_x, from_h = step.x @ p["weight_x"].T, _tf32(step.recurrent) @ _tf32(p["weight_h"]).T',
    _F,
)
edit(
    "precision.tf32_gradient",
    "the gradient of x in TF32",
    'dx = from_x @ p["weight_x"]',
    'dx = _tf32(from_x) @ _tf32(p["weight_x"])',
    _B,
)
edit(
    "precision.bfloat16_in_tf32",
    "products of bfloat16 in TF32",
    "return _shortened(array, 13, policy",
    "return _shortened(array, 16, policy",
    _F,
    "tf32",
)
edit(
    "precision.bfloat16_recurrent_in_tf32",
    "the recurrent product alone in bfloat16 where TF32 is said",
    "x, recurrent = _operand(x, policy), _operand(recurrent, policy)",
    "x, recurrent = _operand(x, policy), _shortened(recurrent, 16)",
    "masks.partial",
    "tf32",
)
edit(
    "precision.forget_bias_1e-3",
    "the forget bias is off by 1e-3",
    "z = clip(z, config.gate_clip)\n    return value",
    'z = clip(z, config.gate_clip)\n    z = z + 1e-3 * (k == "f")\n    return value',
    _F,
)
edit(
    "precision.cell_in_half",
    "the cell is kept in float16",
    "h, c = np.where(active, h_new, h), np.where(active, c_new, c)\n        y[t]",
    "h, c = np.where(active, h_new, h), np.where(active, c_new, c).astype(np.float16).astype(dtype)\n        y[t]",
    _F,
)
edit(
    "precision.float32_in_float64",
    "float64 is computed in float32",
    "dtype = np.dtype(np.complex128 if any(np.iscomplexobj(a) for a in arrays) else policy.compute)",
    'dtype = np.dtype("float32")',
    _F,
    "float64",
)
