"""Edits of the forward equations: terms that are missing, doubled, stale or of another place."""

from __future__ import annotations

from lstmcore_conformance.mutants.construction import edit

_F = "forward.switches"

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
    "reverse.y_reversed",
    "y of a reversed direction is in the order of the run",
    "y[t] = np.where(active, h, 0)",
    "y[steps - 1 - t if config.reverse else t] = np.where(active, h, 0)",
    _F,
)
edit(
    "combined.clip_coupled",
    "the clip of the cell is left out where gates are coupled",
    "c_new = step.c_unclipped if config.cell_clip is None else",
    'c_new = step.c_unclipped if config.cell_clip is None or config.coupling != "none" else',
    "forward.combinations",
)
edit(
    "first_step.zoneout",
    "zoneout spares the first step of a call",
    "h_new, c_new = _forward_step(config, p, step)",
    "step.masks = (step.masks[0], *(m * bool(tape) for m in step.masks[1:]))\n"
    "        h_new, c_new = _forward_step(config, p, step)",
    "state.resume",
)
