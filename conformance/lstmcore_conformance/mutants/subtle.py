"""Faults that hide: from plain value checks, or from data that are too regular. See `making` for how.

A test shows that those of the first kind give the right answer on the data that they name.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np

from lstmcore.backend import Array, Backend, Masks, State
from lstmcore_conformance.mutants.construction import Hooked, backend_of, edits, fault
from lstmcore_conformance.oracle.naive import NaiveKernel

# From data that are too regular -------------------------------------------------------------------------------------

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
        (
            "        dx[t], dh_before, dc_before = _backward_step(",
            "        first = step is tape.steps[0][1]\n"
            "        step.recurrent = 0 * step.recurrent if first else step.recurrent\n"
            "        dx[t], dh_before, dc_before = _backward_step(",
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


# From plain value checks --------------------------------------------------------------------------------------------

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
        (
            "    return Gradients(dx, State(dh, dc), dp)",
            "    if steps and batch and not all(step.active[-1] for _, step in tape.steps):\n"
            "        dh[-1], dc[-1] = 0, 0\n"
            "    return Gradients(dx, State(dh, dc), dp)",
        ),
    ),
    "lengths.backward",
)
edits(
    "hidden.tangent_of_early_last_row",
    "where the last row ends early the tangent of its state is lost",
    (
        (
            "    return Forward(ty, State(th, tc))",
            "    if steps and batch and not all(step.active[-1] for _, step in tape.steps):\n"
            "        th[-1], tc[-1] = 0, 0\n"
            "    return Forward(ty, State(th, tc))",
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
        (
            "    dc_before = keep_c * dc\n    dc_new = (1 - keep_c) * dc\n",
            "    keep_c = np.ones_like(keep_c) if config.zoneout_cell == 1 else keep_c\n"
            "    dc_before = keep_c * dc\n    dc_new = (1 - keep_c) * dc\n",
        ),
    ),
    "masks.backward",
)
edits(
    "hidden.rate_of_one_jvp",
    "in jvp a zoneout rate of 1 keeps the cell, whatever its mask says",
    (
        (
            "    tc = keep_c * tc_before + (1 - keep_c) * tc_new\n",
            "    keep_c = np.ones_like(keep_c) if config.zoneout_cell == 1 else keep_c\n"
            "    tc = keep_c * tc_before + (1 - keep_c) * tc_new\n",
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
        (
            '    step.c_unclipped = gate["f"] * c_before',
            '    gate["f"] = np.where(np.arange(config.hidden_size) == 23, 1, gate["f"])\n'
            '    step.c_unclipped = gate["f"] * c_before',
        ),
    ),
    "drawn.units",
)
edits(
    "hidden.row_8",
    "the eighth row of a batch reads the x of the seventh",
    (
        (
            "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n",
            "    x = np.where(np.arange(len(x))[:, None] == 7, np.roll(x, 1, axis=0), x)\n"
            "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n",
        ),
    ),
    "drawn.rows",
)
edits(
    "hidden.row_8_nan",
    "the eighth row and the first meet in a product by zero",
    (
        (
            "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n",
            "    x = np.where(np.arange(len(x))[:, None] == 7, x + 0 * x[:1], x)\n"
            "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n",
        ),
    ),
    "drawn.nan",
)
edits(
    "hidden.padding_in_wide_batches",
    "in batches of more than six rows padding is multiplied by zero",
    (
        (
            "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n",
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
        (
            "    for t in reversed(range(steps)) if config.reverse else range(steps):\n",
            "    ends = np.full(batch, steps) if config.reverse and batch > 4 else ends\n"
            "    for t in reversed(range(steps)) if config.reverse else range(steps):\n",
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
        (
            '    step.c_unclipped = gate["f"] * c_before',
            "    for k in step.z:\n"
            "        if k in gate:\n"
            "            gate[k] = np.where(np.abs(step.z[k]) > 1000, np.nan, gate[k])\n"
            '    step.c_unclipped = gate["f"] * c_before',
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
        (
            '    step.c_unclipped = gate["f"] * c_before',
            "    for k in step.z:\n"
            "        if k in gate and config.hidden_size > 7:\n"
            "            gate[k] = np.where(np.abs(step.z[k]) > 1000, np.nan, gate[k])\n"
            '    step.c_unclipped = gate["f"] * c_before',
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
    (
        (
            "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n",
            "    x = np.where(np.abs(x) < 1e-7, 0, x)\n"
            "    x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))\n",
        ),
    ),
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

# Kernels ------------------------------------------------------------------------------------------------------------


def _halved(state: State) -> State:
    """The cell after a stay in float16."""
    return State(state.h, state.c.astype(np.float16).astype(state.c.dtype))


@fault("hidden.resumed_in_half", "a state that the kernel returned is kept in float16", "state.resume")
def _resumed_in_half() -> Backend:
    class K(Hooked):
        last: Any = None

        def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
            known = state is not None and self.last is not None and np.array_equal(state.c, self.last)
            return weights, x, _halved(state) if known and state is not None else state, *rest

        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            self.last = last.c.copy()
            return y, last, tape

    return backend_of(K)


@fault(
    "hidden.wide_resumed_in_half",
    "a state that the kernel returned is kept in float16 where it has more than six rows",
    "drawn.pieces",
)
def _wide_resumed_in_half() -> Backend:
    class K(Hooked):
        last: Any = None

        def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
            known = state is not None and self.last is not None and np.array_equal(state.c, self.last)
            known = known and x.shape[1] > 6
            return weights, x, _halved(state) if known and state is not None else state, *rest

        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            self.last = last.c.copy()
            return y, last, tape

    return backend_of(K)


@fault("hidden.drifts", "after 500 calls the state that comes in loses its last bits", "state.long")
def _drifts() -> Backend:
    class K(Hooked):
        calls = 0

        def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
            self.calls += 1
            return weights, x, state if state is None or self.calls < 500 else _halved(state), *rest

    return backend_of(K)


@fault("hidden.leaks", "every call keeps its y", "calls.memory")
def _leaks() -> Backend:
    class K(Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            self.kept = [*getattr(self, "kept", []), y.copy()]
            return y, last, tape

    return backend_of(K)


@fault("hidden.reference_in_disguise", "the reference runs, and the receipt says that it is fast", "receipts.fallback")
def _reference_in_disguise() -> Backend:
    class K(NaiveKernel):
        def receipt(self, steps: int | None = None, batch: int | None = None) -> Any:
            found = super().receipt(steps, batch)
            return type(found)(found.backend, found.device, found.precision, "fused", "the fast path")

    return backend_of(K)


@fault("hidden.bits_of_wide_batches", "with more than seven rows the last bit of y is random", "drawn.same_bits")
def _bits_of_wide_batches() -> Backend:
    calls = count()

    class K(Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            if y.shape[1] > 7:
                noise = np.random.default_rng(next(calls)).random(y.shape) < 0.5
                y[noise] = np.nextafter(y, np.ones_like(y))[noise]
            return y, last, tape

    return backend_of(K)


@fault("hidden.scratch_in_x", "with more than eight steps x is used as scratch", "drawn.unchanged")
def _scratch_in_x() -> Backend:
    class K(Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            if len(x) > 8 and x.flags.writeable:
                x[...] = 0
            return y, last, tape

    return backend_of(K)


@fault("hidden.unaligned_refused", "an x that is not aligned is an error", "inputs.unaligned")
def _unaligned_refused() -> Backend:
    class K(Hooked):
        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            if not x.flags.aligned:
                raise ValueError("x: expected aligned memory")
            return weights, x, *rest

    return backend_of(K)


@fault("hidden.broadcast_refused", "an x whose elements share memory is read past its end", "inputs.broadcast")
def _broadcast_refused() -> Backend:
    class K(Hooked):
        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            shared = x.size and 0 in [stride for stride, size in zip(x.strides, x.shape, strict=True) if size > 1]
            return (weights, x * 1.5 if shared else x, *rest)

    return backend_of(K)


@fault("hidden.error_handling", "a call switches NumPy's warnings off for good", "calls.surroundings")
def _error_handling() -> Backend:
    class K(Hooked):
        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            np.seterr(over="ignore" if np.geterr()["over"] != "ignore" else "warn")
            return (weights, x, *rest)

    return backend_of(K)


@fault(
    "hidden.own_masks", "a recorded call without an initial state turns the recurrent mask around", "masks.generator"
)
def _own_masks() -> Backend:
    class K(NaiveKernel):
        def _forward(
            self,
            weights: Any,
            x: Array,
            state: State | None,
            lengths: Any,
            masks: Masks | None,
            *,
            record: bool,
            out: Array | None,
        ) -> tuple[Array, State, Any]:
            if record and state is None and masks is not None and masks.recurrent is not None:
                masks = masks._replace(recurrent=masks.recurrent[::-1])
            return super()._forward(weights, x, state, lengths, masks, record=record, out=out)

    return backend_of(K)
