"""Edits of the equations that show no fault on data that are too regular.

A test shows that each gives the right answer on the data that it names.
"""

from __future__ import annotations

from lstmcore_conformance.mutants.construction import edits, preceded

_BEGIN = "    h, c = _state(config, batch, state, dtype)\n    y = np.zeros((steps"
_NEXT = "        h, c = np.where(active, h_new, h), np.where(active, c_new, c)\n        y[t]"
edits(
    "hidden.state_two_ago",
    "from the third step on the gates read the h of two steps ago",
    (
        (_BEGIN, _BEGIN.replace("\n    y", "\n    older = h\n    y")),
        ("State(h, c), given,", "State(older if len(tape) > 1 else h, c), given,"),
        (_NEXT, "        older = h\n" + _NEXT),
    ),
    "forward.switches",
    "one step",
)
edits(
    "hidden.cell_of_the_first_step",
    "after the first step the forget gate multiplies the cell before the first step",
    (
        (_BEGIN, _BEGIN.replace("\n    y", "\n    first = c\n    y")),
        ("State(h, c), given,", "State(h, first if tape else c), given,"),
    ),
    "forward.switches",
    "one step",
)
edits(
    "hidden.truncated",
    "the gradient of h flows back through every other step only",
    (
        (
            "        dh = np.where(step.active, dh_before, dh)\n",
            "        dh = np.where(step.active, dh_before, dh) * (t == 0 or t % 2)\n",
        ),
    ),
    "backward.switches",
    "one step",
)
edits(
    "hidden.bias_mean",
    "the gradient of the bias is the mean over the rows",
    (('dp["bias"] += dz_all.sum(axis=0)', 'dp["bias"] += dz_all.mean(axis=0)'),),
    "backward.switches",
    "one row",
)
edits(
    "hidden.norm_of_the_batch",
    "layer norm has one deviation for the whole batch",
    (
        (
            "deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True)",
            "deviation = np.sqrt((centred * centred).mean(keepdims=True)",
        ),
    ),
    "forward.switches",
    "one row",
)
edits(
    "hidden.recurrent_of_neighbour",
    "the gradient of R pairs each row with its neighbour",
    (
        (
            'dp["weight_h"] += from_h.T @ step.recurrent',
            'dp["weight_h"] += from_h.T @ np.roll(step.recurrent, 1, axis=0)',
        ),
    ),
    "backward.switches",
    "one row",
)
edits(
    "hidden.leading_dimension",
    "W is read as if its rows were H wide",
    (
        (
            'step.x @ p["weight_x"].T, step',
            'step.x @ np.resize(p["weight_x"], (1, p["weight_x"].size * 2)).ravel()['
            "(np.arange(len(p['weight_x']))[:, None] * config.hidden_size + np.arange(config.input_size)) "
            "% p['weight_x'].size].T, step",
        ),
    ),
    "forward.switches",
    "I = H",
)
edits(
    "hidden.dx_width",
    "the gradient of x is scaled by H / I",
    (('dx = from_x @ p["weight_x"]', 'dx = from_x @ p["weight_x"] * (config.hidden_size / config.input_size)'),),
    "backward.switches",
    "I = H",
)
edits(
    "hidden.cell_state_ignored",
    "the initial c is taken to be zero",
    ((_BEGIN, _BEGIN.replace("\n    y", "\n    c = np.zeros_like(c)\n    y")),),
    "forward.switches",
    "zero state",
)
edits(
    "hidden.first_recurrent",
    "the first step leaves R out of the gradient of R",
    (
        preceded(
            "        dx[t], dh_before, dc_before = _backward_step(",
            "        first = step is tape.steps[0][1]\n"
            "        step.recurrent = 0 * step.recurrent if first else step.recurrent\n",
        ),
    ),
    "backward.switches",
    "zero state",
)
edits(
    "hidden.gates_rotated",
    "the rows of W and R are read in the order f, g, o, i",
    (
        (
            "return dict(zip(config.gates, np.swapaxes",
            "return dict(zip(config.gates[1:] + config.gates[:1], np.swapaxes",
        ),
    ),
    "forward.switches",
    "equal weights",
)
edits(
    "hidden.units_reversed",
    "the recurrent input is read with its units in the other order",
    (('step.recurrent @ p["weight_h"].T\n    if', 'step.recurrent @ p["weight_h"][:, ::-1].T\n    if'),),
    "forward.switches",
    "equal weights",
)
