"""Edits of the equations that plain value checks miss: they need many steps, rows or units, masks or lengths."""

from __future__ import annotations

from lstmcore_conformance.mutants.construction import edits, preceded

_ROWS = "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n"
_NEXT = "        h, c = np.where(active, h_new, h), np.where(active, c_new, c)\n        y[t]"
edits(
    "hidden.after_the_longest",
    "steps past the end of every row are not written: y repeats the last h",
    (("        y[t] = np.where(active, h, 0)", "        y[t] = np.where(active, h, 0) if active.any() else h"),),
    "lengths.forward",
)
edits(
    "hidden.early_last_row",
    "where the last row ends early its initial state has no gradient",
    (
        preceded(
            "    return Gradients(dx, State(dh, dc), dp)",
            "    if steps and batch and not all(step.active[-1] for _, step in tape.steps):\n"
            "        dh[-1], dc[-1] = 0, 0\n",
        ),
    ),
    "lengths.backward",
)
edits(
    "hidden.tangent_of_early_last_row",
    "where the last row ends early the tangent of its state is lost",
    (
        preceded(
            "    return Forward(ty, State(th, tc))",
            "    if steps and batch and not all(step.active[-1] for _, step in tape.steps):\n"
            "        th[-1], tc[-1] = 0, 0\n",
        ),
    ),
    "lengths.jvp",
)
edits(
    "hidden.rate_of_one",
    "a zoneout rate of 1 keeps the cell, whatever its mask says",
    (
        (
            "        if zoneout_cell is None\n",
            "        if zoneout_cell is None or config.zoneout_cell == 1\n",
        ),
    ),
    "masks.forward",
)
edits(
    "hidden.rate_of_one_backward",
    "in backward a zoneout rate of 1 keeps the cell, whatever its mask says",
    (
        preceded(
            "    dc_before = keep_c * dc\n    dc_new = (1 - keep_c) * dc\n",
            "    keep_c = np.ones_like(keep_c) if config.zoneout_cell == 1 else keep_c\n",
        ),
    ),
    "masks.backward",
)
edits(
    "hidden.rate_of_one_jvp",
    "in jvp a zoneout rate of 1 keeps the cell, whatever its mask says",
    (
        preceded(
            "    tc = keep_c * tc_before + (1 - keep_c) * tc_new\n",
            "    keep_c = np.ones_like(keep_c) if config.zoneout_cell == 1 else keep_c\n",
        ),
    ),
    "masks.jvp",
)
edits(
    "hidden.wide_coupling",
    "in models of more than 8 units the coupled forget gate follows the neighbour's input gate",
    (
        (
            'gate["f"] = 1 - gate["i"]',
            'gate["f"] = 1 - np.roll(gate["i"], config.hidden_size > 8, axis=1)',
        ),
    ),
    "drawn.forward",
)
edits(
    "hidden.wide_coupling_backward",
    "in models of more than 8 units the gradient of the coupled forget gate is lost",
    (('dgate["i"] = dgate["i"] - dgate["f"]', 'dgate["i"] = dgate["i"] - dgate["f"] * (config.hidden_size < 9)'),),
    "drawn.backward",
)
edits(
    "hidden.wide_coupling_jvp",
    "in models of more than 8 units the tangent of the coupled forget gate has the wrong sign",
    (('tgate["f"] = -tgate["i"]', 'tgate["f"] = -tgate["i"] if config.hidden_size < 9 else tgate["i"]'),),
    "drawn.jvp",
)
edits(
    "hidden.unit_24",
    "the 24th unit forgets nothing",
    (
        preceded(
            '    step.c_unclipped = gate["f"] * c_before',
            '    gate["f"] = np.where(np.arange(config.hidden_size) == 23, 1, gate["f"])\n',
        ),
    ),
    "drawn.units",
)
edits(
    "hidden.row_8",
    "the eighth row of a batch reads the x of the seventh",
    (preceded(_ROWS, "    x = np.where(np.arange(len(x))[:, None] == 7, np.roll(x, 1, axis=0), x)\n"),),
    "drawn.rows",
)
edits(
    "hidden.row_8_nan",
    "the eighth row and the first meet in a product by zero",
    (preceded(_ROWS, "    x = np.where(np.arange(len(x))[:, None] == 7, x + 0 * x[:1], x)\n"),),
    "drawn.nan",
)
edits(
    "hidden.padding_in_wide_batches",
    "in batches of more than six rows padding is multiplied by zero",
    (
        (
            _ROWS,
            "    x = x * active if len(x) > 6 else x\n"
            "    x, h_before, c_before = (np.where(active, array, 0) if array is not x or len(x) <= 6 else x "
            "for array in (x, *before))\n",
        ),
    ),
    "drawn.padding",
)
edits(
    "hidden.reversed_wide",
    "in batches of more than four a reversed row starts at T",
    (
        preceded(
            "    for t in reversed(range(steps)) if config.reverse else range(steps):\n",
            "    ends = np.full(batch, steps) if config.reverse and batch > 4 else ends\n",
        ),
    ),
    "drawn.reversed",
)
edits(
    "hidden.after_many_steps",
    "from step 64 on the cell is kept in float16",
    (
        (
            _NEXT,
            _NEXT.replace(
                "\n        y[t]",
                "\n        c = c.astype(np.float16).astype(dtype) if len(tape) > 63 else c\n        y[t]",
            ),
        ),
    ),
    "forward.long",
)
edits(
    "hidden.gradient_of_many_steps",
    "the gradient of W leaves out what is more than 64 steps from the end",
    (
        (
            "        dx[t], dh_before, dc_before = _backward_step(config, tape.parameters, step, dh_step, dc_step, dp)",
            "        dx[t], dh_before, dc_before = _backward_step(config, tape.parameters, step, dh_step, dc_step, "
            "dp if steps - t < 65 else {name: array.copy() for name, array in dp.items()})",
        ),
    ),
    "backward.long",
)
edits(
    "hidden.exp_overflows",
    "a sigmoid that is made of exp gives NaN where that overflows twice",
    (
        preceded(
            '    step.c_unclipped = gate["f"] * c_before',
            "    for k in step.z:\n"
            "        if k in gate:\n"
            "            gate[k] = np.where(np.abs(step.z[k]) > 1000, np.nan, gate[k])\n",
        ),
    ),
    "forward.extremes",
)
edits(
    "hidden.derivative_overflows",
    "the derivative of a gate is 0 / 0 where it saturates",
    (
        (
            "            dz[k] = dgate[k] * _activate_derivative(config, k, step.z[k])\n",
            "            dz[k] = dgate[k] * _activate_derivative(config, k, step.z[k])\n"
            "            dz[k] = np.where(np.abs(step.z[k]) > 1000, np.nan, dz[k])\n",
        ),
    ),
    "backward.extremes",
)
edits(
    "hidden.saturated_wide",
    "in models of more than seven units a saturated gate is NaN",
    (
        preceded(
            '    step.c_unclipped = gate["f"] * c_before',
            "    for k in step.z:\n"
            "        if k in gate and config.hidden_size > 7:\n"
            "            gate[k] = np.where(np.abs(step.z[k]) > 1000, np.nan, gate[k])\n",
        ),
    ),
    "drawn.saturation",
)


_SPLIT = "    step.z = _split(config, z)\n    peephole"
edits(
    "hidden.unit_128",
    "units from the 129th on have no bias",
    ((_SPLIT, _SPLIT.replace("\n", "\n    for k in step.z:\n        step.z[k][:, 128:] = 0\n", 1)),),
    "forward.sizes",
)
edits(
    "hidden.row_64",
    "in batches of more than 64 rows the gradient of the bias leaves out the rows from the 65th on",
    (('dp["bias"] += dz_all.sum(axis=0)', 'dp["bias"] += dz_all[:64].sum(axis=0)'),),
    "backward.sizes",
)
edits(
    "hidden.tangent_after_128",
    "from step 128 on the tangent is lost",
    (("        ty[t] = np.where(step.active, th, 0)", "        ty[t] = np.where(step.active, th, 0) * (t < 128)"),),
    "jvp.sizes",
)
edits(
    "hidden.tiny_is_zero",
    "an x below 1e-7 is taken for 0",
    (preceded(_ROWS, "    x = np.where(np.abs(x) < 1e-7, 0, x)\n"),),
    "forward.extremes",
)
edits(
    "hidden.one_step_clipped",
    "a call of one step and one row limits the cell to 3",
    (
        (
            "    return Forward(y, State(h, c), kept)",
            "    return Forward(y, State(h, np.clip(c, -3, 3) if steps == batch == 1 else c), kept)",
        ),
    ),
    "forward.extremes",
)
edits(
    "hidden.reversed_after_16",
    "with lengths a reversed row reads the step before where it has more than 16",
    (
        (
            "step = _begin(config, np.asarray(x[t], dtype)",
            "step = _begin(config, np.asarray(x[t - (config.reverse and lengths is not None and t > 16)], dtype)",
        ),
    ),
    "lengths.forward",
)
edits(
    "hidden.adjoint_of_wide_batches",
    "in batches of more than six rows the tangent of the initial c is lost",
    (
        (
            "    th, tc = _state(config, batch, tangents.state, tape.dtype)\n",
            "    th, tc = _state(config, batch, tangents.state, tape.dtype)\n    tc = tc * (batch < 7)\n",
        ),
    ),
    "drawn.adjoint",
)
edits(
    "hidden.dy_of_wide_batches",
    "in batches of more than six rows the gradient of y is lost where the final state is not used",
    (
        (
            "np.asarray(dy[t], tape.dtype)\n",
            "np.asarray(dy[t], tape.dtype) * (batch < 7 or dstate is not None)\n",
        ),
    ),
    "drawn.linear",
)

_RUNNING = (
    "    return Gradients(dx, State(dh, dc), dp)",
    "    return Gradients(dx, State(dh, dc), dp)\n\n\n"
    "def _running(total, rows):\n"
    "    return np.cumsum(np.concatenate([total[None], rows]), axis=0, dtype=total.dtype)[-1]",
)
edits(
    "hidden.running_bias",
    "the gradient of the bias is one running sum over all rows of all steps",
    (_RUNNING, ('dp["bias"] += dz_all.sum(axis=0)', 'dp["bias"][...] = _running(dp["bias"], dz_all)')),
    "backward.rows",
)
edits(
    "hidden.running_products",
    "the gradients of W and R are one running sum over all rows of all steps",
    (
        _RUNNING,
        (
            'dp["weight_x"] += from_x.T @ step.x',
            'dp["weight_x"][...] = _running(dp["weight_x"], from_x[:, :, None] * step.x[:, None])',
        ),
        (
            'dp["weight_h"] += from_h.T @ step.recurrent',
            'dp["weight_h"][...] = _running(dp["weight_h"], from_h[:, :, None] * step.recurrent[:, None])',
        ),
    ),
    "backward.rows",
)
edits(
    "hidden.running_peephole",
    "the gradients of peepholes are one running sum over all rows of all steps",
    (
        _RUNNING,
        (
            'dpeephole["o"] += (dz["o"] * step.c).sum(axis=0)',
            'dpeephole["o"][...] = _running(dpeephole["o"], dz["o"] * step.c)',
        ),
        (
            "dpeephole[k] += (dz[k] * step.c_before).sum(axis=0)",
            "dpeephole[k][...] = _running(dpeephole[k], dz[k] * step.c_before)",
        ),
    ),
    "backward.rows",
)
edits(
    "hidden.running_norms",
    "the gradients of the gains and the shift of layer norm are one running sum over all rows of all steps",
    (
        _RUNNING,
        ('dp["norm_bias_c"] += dc_out.sum(axis=0)', 'dp["norm_bias_c"][...] = _running(dp["norm_bias_c"], dc_out)'),
        *(
            (
                f'dp["norm_gain_{k}"] += ({d} * step.norms["{k}"].value).sum(axis=0)',
                f'dp["norm_gain_{k}"][...] = _running(dp["norm_gain_{k}"], {d} * step.norms["{k}"].value)',
            )
            for k, d in (("c", "dc_out"), ("x", "dz_all"), ("h", "dz_all"))
        ),
    ),
    "backward.rows",
)
