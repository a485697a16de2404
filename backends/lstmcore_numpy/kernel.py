"""The LSTM on NumPy: one product of the input for many steps, one recurrent product a step, nothing per row or gate.

The pointwise work is done in place on the packed gates. See docs/performance.md for what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lstmcore.activations import clip, derivative, inside, value
from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Kernel, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, TANH, LSTMConfig
from lstmcore.precision import Precision
from lstmcore_numpy.parts import (
    Array,
    Layout,
    Norm,
    Rows,
    Saved,
    Weights,
    after,
    before,
    blocks,
    folds,
    normalise,
    normalise_linear,
    order,
    own_masks,
    pack,
)

#: Elements of the input product that are made at once when nothing is recorded, so that they stay in the cache.
_BLOCK: Final = 1 << 19


class NumpyKernel(Kernel):
    """One layer in one direction. Every call has its own buffers, so calls may run side by side."""

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.layout = Layout.of(config)
        self.fold = folds(config)
        self.dtype = np.dtype(precision.compute)
        self.storage = np.dtype(precision.storage)
        self.rounds = self.dtype != self.storage
        self.columns = {gate: self.layout.columns(gate) for gate in self.layout.gates}
        self.early = slice(0, (len(self.layout.gates) - 1) * config.hidden_size)

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        path = "one tanh for all gates" if self.fold else "a function for each gate"
        why = "sigmoid and tanh gates without a clip" if self.fold else "gate functions or a gate clip of one's own"
        return Receipt(self.backend.name, "cpu", self.precision.name, path, why)

    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        return pack(self.config, self.precision, parameters, fold=self.fold)

    # forward ----------------------------------------------------------------------------------------------------------

    def _forward(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Saved | None]:
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as IEEE 754 says
            return self._run(weights, x, state, lengths, masks, record, out)

    def _run(
        self,
        w: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Saved | None]:
        config, dtype = self.config, self.dtype
        steps, batch, _ = x.shape
        hidden, width = config.hidden_size, config.output_size
        rows = Rows.of(lengths, steps)
        x = rows.only(x)
        x = np.array(x, dtype) if record and rows.active is None else np.ascontiguousarray(x, dtype)
        masks = own_masks(masks, rows)
        y = np.empty((steps, batch, width), self.storage) if out is None else out
        scheduled = order(config, steps)

        # What the tape keeps for every step, inference keeps for two: the step's and the one before.
        kept = steps + 1 if record else 2
        hs, cs = np.empty((kept, batch, width), dtype), np.empty((kept, batch, hidden), dtype)
        at = steps if config.reverse and record else 0
        hs[at] = 0 if state is None else state.h
        cs[at] = 0 if state is None else state.c
        # A row without steps only hands its state on: 0 stands in for it, so that a NaN there reaches no product.
        empty = np.zeros(batch, bool) if lengths is None else lengths == 0
        hs[at][empty] = cs[at][empty] = 0
        if masks.recurrent is not None:
            masks.recurrent[empty] = 0
        rows_of_gates = w.forward_x.shape[1]
        size = max(1, steps if record else _BLOCK // max(1, batch * rows_of_gates))
        gates = np.empty((min(size, steps), batch, rows_of_gates), dtype)
        saved = self._tape(w, rows, x, hs, cs, gates, masks) if record else None
        scratch = _Scratch(batch, rows_of_gates, config, dtype)

        for block in blocks(scheduled, size):
            first = min(block[0], block[-1])
            part = gates[: len(block)]
            self._input_product(w, x[first : first + len(block)], part, saved)
            for t in block:
                to = (t if config.reverse else t + 1) if record else 1 - at
                z, h, c = part[t - first], hs[to], cs[to]
                self._step(w, t, z, hs[at], cs[at], h, c, masks, scratch, saved)
                if not rows.full[t] and rows.active is not None:
                    past = ~rows.active[t]
                    np.copyto(h, hs[at], where=past)
                    np.copyto(c, cs[at], where=past)
                    y[t] = np.where(past, 0, h)
                else:
                    y[t] = h
                at = to
        last = State(hs[at].astype(self.storage), cs[at].copy())
        if state is not None:
            last.h[empty], last.c[empty] = state.h[empty], state.c[empty]
        return y, last, saved

    def _tape(self, w: Weights, rows: Rows, x: Array, hs: Array, cs: Array, gates: Array, masks: Masks) -> Saved:
        config = self.config
        steps, batch, _ = x.shape
        cell = (steps, batch, config.hidden_size)

        def room(shape: tuple[int, ...], wanted: bool) -> Array | None:
            return np.empty(shape, self.dtype) if wanted else None

        def norm(shape: tuple[int, ...]) -> Norm | None:
            return (
                Norm(np.empty(shape, self.dtype), np.empty((*shape[:2], 1), self.dtype)) if config.layer_norm else None
            )

        return Saved(
            w,
            rows,
            x,
            hs,
            cs,
            gates,
            np.empty(cell, self.dtype),
            masks,
            recurrent=room((steps, batch, config.recurrent_size), masks.recurrent is not None),
            z=room(gates.shape, not self.fold),
            c_unclipped=room(cell, config.cell_clip is not None),
            h_unclipped=room((steps, batch, config.output_size), config.proj_clip is not None),
            c_out=room(cell, config.hidden_activation != TANH),
            norm_x=norm(gates.shape),
            norm_h=norm(gates.shape),
            norm_c=norm(cell),
        )

    def _input_product(self, w: Weights, x: Array, z: Array, saved: Saved | None) -> None:
        """``W x + b`` of several steps into `z`, normalised where the configuration says so."""
        rows = z.shape[0] * z.shape[1]
        np.matmul(x.reshape(rows, x.shape[2]), w.forward_x, out=z.reshape(rows, z.shape[2]))
        if w.gain_x is not None:
            norm = normalise(self.config, z)
            np.multiply(norm.value, w.gain_x, out=z)
            if saved is not None:
                saved.norm_x = norm  # a recorded call has one block
        if w.bias is not None:
            z += w.bias

    def _step(
        self,
        w: Weights,
        t: int,
        z: Array,
        h_before: Array,
        c_before: Array,
        h: Array,
        c: Array,
        masks: Masks,
        scratch: _Scratch,
        saved: Saved | None,
    ) -> None:
        """One step: `z` has the input product and becomes the gates; `h` and `c` are written."""
        config, columns, room = self.config, self.columns, scratch.cell

        recurrent = c_before if config.recurrence == "cell" else h_before
        if masks.recurrent is not None:
            recurrent = np.multiply(recurrent, masks.recurrent, out=scratch.recurrent)
            if saved is not None and saved.recurrent is not None:
                saved.recurrent[t] = recurrent
        product = np.matmul(recurrent, w.forward_h, out=scratch.gates)
        if w.gain_h is not None:
            norm = normalise(config, product)
            if saved is not None and saved.norm_h is not None:
                saved.norm_h.value[t], saved.norm_h.deviation[t] = norm
            product = np.multiply(norm.value, w.gain_h, out=product)
        z += product
        for gate in "if":
            if gate in w.peephole:
                z[:, columns[gate]] += np.multiply(c_before, w.peephole[gate], out=room)

        if not w.peephole:
            self._activate(t, z, slice(0, z.shape[1]), saved)
        else:
            self._activate(t, z, self.early, saved)
        g = z[:, columns["g"]]
        i, f = self._input_and_forget(z)

        np.multiply(f, c_before, out=c)
        c += np.multiply(i, g, out=room)
        if config.cell_clip is not None:
            if saved is not None and saved.c_unclipped is not None:
                saved.c_unclipped[t] = c
            np.clip(c, -config.cell_clip, config.cell_clip, out=c)
        _blend(c, c_before, config.zoneout_cell, masks.zoneout_cell, t, room)

        if w.peephole:
            z[:, columns["o"]] += np.multiply(c, w.peephole["o"], out=room)
            self._activate(t, z, columns["o"], saved)
        o = z[:, columns["o"]]

        n = c
        if w.gain_c is not None:
            norm = normalise(config, c)
            if saved is not None and saved.norm_c is not None:
                saved.norm_c.value[t], saved.norm_c.deviation[t] = norm
            n = norm.value * w.gain_c
            if w.shift_c is not None:
                n += w.shift_c
        u = saved.u[t] if saved is not None else room
        if config.hidden_activation == TANH:
            np.tanh(n, out=u)
        else:
            u[...] = value(config.hidden_activation, n)
            if saved is not None and saved.c_out is not None:
                saved.c_out[t] = n
        if w.forward_proj is None:
            np.multiply(o, u, out=h)
        else:
            np.matmul(np.multiply(o, u, out=scratch.q), w.forward_proj, out=h)
            if config.proj_clip is not None:
                if saved is not None and saved.h_unclipped is not None:
                    saved.h_unclipped[t] = h
                np.clip(h, -config.proj_clip, config.proj_clip, out=h)
        _blend(h, h_before, config.zoneout_hidden, masks.zoneout_hidden, t, scratch.output)
        if self.rounds:
            h[...] = h.astype(self.storage)

    def _activate(self, t: int, z: Array, columns: slice, saved: Saved | None) -> None:
        """The gate functions on `columns` of the packed pre-activations, in place."""
        hidden = self.config.hidden_size
        if self.fold:
            np.tanh(z[:, columns], out=z[:, columns])
            sigmoid = z[:, max(columns.start, hidden) : columns.stop]
            sigmoid *= 0.5
            sigmoid += 0.5
            return
        if saved is not None and saved.z is not None:
            saved.z[t][:, columns] = z[:, columns]
        for gate, own in self.columns.items():
            if columns.start <= own.start and own.stop <= columns.stop:
                part = z[:, own]
                if self.config.gate_clip is not None:
                    part = clip(part, self.config.gate_clip)
                z[:, own] = value(self._function(gate), part)

    def _function(self, gate: str) -> Any:
        return self.config.cell_activation if gate == "g" else self.config.gate_activation

    def _input_and_forget(self, gates: Array) -> tuple[Array, Array]:
        """The gates i and f of packed gates (..., G H), one made from the other where they are coupled."""
        coupling = self.config.coupling
        if coupling == "forget_from_input":
            i = gates[..., self.columns["i"]]
            return i, 1 - i
        f = gates[..., self.columns["f"]]
        return (1 - f if coupling == "input_from_forget" else gates[..., self.columns["i"]]), f

    def gate_derivative(self, saved: Saved, t: int, gate: str) -> Array:
        """The derivative of a gate with respect to its pre-activation."""
        columns = self.columns[gate]
        if saved.z is None:
            y: Array = saved.gates[t][:, columns]
            slope: Array = 1 - y * y if gate == "g" else y * (1 - y)
            return slope
        z, bound = saved.z[t][:, columns], self.config.gate_clip
        if bound is None:
            return derivative(self._function(gate), z)
        return derivative(self._function(gate), clip(z, bound)) * inside(z, bound)

    def hidden_derivative(self, saved: Saved, t: int) -> Array:
        """The derivative of u at the (normalised) cell."""
        if saved.c_out is None:
            u: Array = saved.u[t]
            slope: Array = 1 - u * u
            return slope
        return derivative(self.config.hidden_activation, saved.c_out[t])

    def keep(self, rate: float, mask: Array | None, t: int) -> Any:
        """The zoneout factor of the old value at step t."""
        return rate if mask is None else mask[t]

    # backward ---------------------------------------------------------------------------------------------------------

    def _backward(self, weights: Weights, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        with np.errstate(all="ignore"):  # as in _forward
            return self._run_backward(saved, dy, dstate)

    def _run_backward(self, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        config, dtype, w = self.config, self.dtype, saved.weights
        steps, batch, _ = saved.x.shape
        dh = np.zeros((batch, config.output_size), dtype)
        dc = np.zeros((batch, config.hidden_size), dtype)
        if dstate is not None:
            dh[...], dc[...] = dstate
        if dy is not None:
            dy = saved.rows.only(np.asarray(dy, dtype))
        dz = np.empty_like(saved.gates)
        from_h = np.empty_like(dz) if config.layer_norm else dz
        dh_new = np.empty((steps, batch, config.output_size), dtype) if config.proj_size else None
        dnorm = np.empty_like(saved.u) if config.layer_norm else None

        for t in reversed(order(config, steps)):
            if dy is not None:
                dh += dy[t]
            active = None if saved.rows.full[t] or saved.rows.active is None else saved.rows.active[t]
            dh_step, dc_step = (dh, dc) if active is None else (np.where(active, dh, 0), np.where(active, dc, 0))
            dh_before, dc_before = self._step_backward(w, saved, t, dh_step, dc_step, dz[t], from_h[t], dh_new, dnorm)
            if active is None:
                dh, dc = dh_before, dc_before
            else:
                dh, dc = np.where(active, dh_before, dh), np.where(active, dc_before, dc)
        parameters, dx = self._products(saved, dz, from_h, dh_new, dnorm)
        storage = self.storage
        return Gradients(
            dx.astype(storage, copy=False),
            State(dh.astype(storage), dc),
            {name: parameters[name].astype(storage, copy=False) for name in config.parameter_shapes},
        )

    def _step_backward(
        self,
        w: Weights,
        saved: Saved,
        t: int,
        dh: Array,
        dc: Array,
        dz: Array,
        from_h: Array,
        dh_new: Array | None,
        dnorm: Array | None,
    ) -> tuple[Array, Array]:
        """One step back: fills dz, and from_h with layer norm; returns the gradients of the state before the step."""
        config, columns = self.config, self.columns
        c_before = before(config, saved.c)[t]
        gates = saved.gates[t]
        g, o = gates[:, columns["g"]], gates[:, columns["o"]]
        i, f = self._input_and_forget(gates)

        # h = keep h_before + (1 - keep) clip(W_proj q)
        dh_before = None
        dq = dh
        if config.zoneout_hidden:
            keep = self.keep(config.zoneout_hidden, saved.masks.zoneout_hidden, t)
            dh_before, dq = keep * dh, (1 - keep) * dh
        if config.proj_clip is not None and saved.h_unclipped is not None:
            dq = dq * inside(saved.h_unclipped[t], config.proj_clip)
        if w.weight_proj is not None and dh_new is not None:
            dh_new[t] = dq
            dq = dq @ w.weight_proj

        # q = o u(LN(c)), o = s(z_o + p_o c)
        dn = dq * o
        dn *= self.hidden_derivative(saved, t)
        if w.gain_c is not None and dnorm is not None and saved.norm_c is not None:
            dnorm[t] = dn
            dn *= w.gain_c
            dn = normalise_linear(Norm(saved.norm_c.value[t], saved.norm_c.deviation[t]), dn)
        dn += dc
        dc = dn
        dz_o = dz[:, columns["o"]]
        np.multiply(dq, saved.u[t], out=dz_o)
        dz_o *= self.gate_derivative(saved, t, "o")
        if w.peephole:
            dc += dz_o * w.raw_peephole["o"]

        # c = keep c_before + (1 - keep) clip(f c_before + i g)
        kept = None
        if config.zoneout_cell:
            keep = self.keep(config.zoneout_cell, saved.masks.zoneout_cell, t)
            kept, dc = keep * dc, (1 - keep) * dc
        if config.cell_clip is not None and saved.c_unclipped is not None:
            dc *= inside(saved.c_unclipped[t], config.cell_clip)
        dc_before = dc * f
        if kept is not None:
            dc_before += kept
        dz_g = dz[:, columns["g"]]
        np.multiply(dc, i, out=dz_g)
        dz_g *= self.gate_derivative(saved, t, "g")
        for gate in "if":
            if gate not in columns:
                continue
            own = dz[:, columns[gate]]
            if config.coupling == "none":
                np.multiply(dc, g if gate == "i" else c_before, out=own)
            else:
                np.multiply(dc, g - c_before if gate == "i" else c_before - g, out=own)
            own *= self.gate_derivative(saved, t, gate)
            if gate in w.raw_peephole:
                dc_before += own * w.raw_peephole[gate]

        # z = LN(W x) + LN(R (m * r)) + b
        if w.raw_gain_h is not None and saved.norm_h is not None:
            norm = Norm(saved.norm_h.value[t], saved.norm_h.deviation[t])
            from_h[...] = normalise_linear(norm, dz * w.raw_gain_h)
        dr = from_h @ w.weight_h
        if saved.masks.recurrent is not None:
            dr *= saved.masks.recurrent
        if config.recurrence == "cell":
            dc_before += dr
            return (np.zeros_like(dh) if dh_before is None else dh_before), dc_before
        return (dr if dh_before is None else dh_before + dr), dc_before

    def _products(
        self, saved: Saved, dz: Array, from_h: Array, dh_new: Array | None, dnorm: Array | None
    ) -> tuple[dict[str, Array], Array]:
        """What is one product or sum over all steps: the gradients of the parameters and of x."""
        config, w, layout = self.config, saved.weights, self.layout
        gates, hidden = dz.shape[2], config.hidden_size
        flat = (saved.x.shape[0] * saved.x.shape[1],)
        packed: dict[str, Array] = {}
        from_x = dz
        if w.raw_gain_x is not None and saved.norm_x is not None and saved.norm_h is not None:
            packed["norm_gain_x"] = np.einsum("tnk,tnk->k", dz, saved.norm_x.value)
            packed["norm_gain_h"] = np.einsum("tnk,tnk->k", dz, saved.norm_h.value)
            from_x = normalise_linear(saved.norm_x, dz * w.raw_gain_x)
        recurrent = saved.recurrent
        if recurrent is None:
            recurrent = before(config, saved.c if config.recurrence == "cell" else saved.h)
        rows_x, rows_h = from_x.reshape(*flat, gates), from_h.reshape(*flat, gates)
        packed["weight_x"] = rows_x.T @ saved.x.reshape(*flat, config.input_size)
        packed["weight_h"] = rows_h.T @ recurrent.reshape(*flat, config.recurrent_size)
        if config.bias:
            packed["bias"] = dz.sum(axis=(0, 1))
        result = {name: layout.unpacked(rows, config.gates) for name, rows in packed.items()}
        if dh_new is not None:
            q = saved.gates[..., self.columns["o"]] * saved.u
            result["weight_proj"] = dh_new.reshape(*flat, config.output_size).T @ q.reshape(*flat, hidden)
        if config.peephole:
            cells = {"i": before(config, saved.c), "f": before(config, saved.c), "o": after(config, saved.c)}
            result["peephole"] = np.stack(
                [np.einsum("tnh,tnh->h", dz[..., self.columns[k]], cells[k]) for k in config.peephole_gates]
            )
        if dnorm is not None and saved.norm_c is not None:
            result["norm_gain_c"] = np.einsum("tnh,tnh->h", dnorm, saved.norm_c.value)
            result["norm_bias_c"] = dnorm.sum(axis=(0, 1))
        return result, (rows_x @ w.weight_x).reshape(saved.x.shape)

    # forward-mode derivative ------------------------------------------------------------------------------------------

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        from lstmcore_numpy.tangent import jvp  # built on this module

        with np.errstate(all="ignore"):  # as in _forward
            y, last, saved = self._run(weights, x, state, lengths, masks, True, None)
            if saved is None:
                raise RuntimeError("a recorded call returned no tape")
            return Forward(y, last), jvp(self, saved, tangents)


class _Scratch:
    """The buffers that every step of one call uses again."""

    def __init__(self, batch: int, gates: int, config: LSTMConfig, dtype: np.dtype[Any]) -> None:
        self.gates = np.empty((batch, gates), dtype)
        self.recurrent = np.empty((batch, config.recurrent_size), dtype)
        self.cell = np.empty((batch, config.hidden_size), dtype)
        self.q = np.empty((batch, config.hidden_size), dtype) if config.proj_size else self.cell
        self.output = np.empty((batch, config.output_size), dtype)


def _blend(new: Array, old: Array, rate: float, mask: Array | None, t: int, room: Array) -> None:
    """Zoneout: ``new = keep old + (1 - keep) new`` in place, keep being the mask's step or the rate."""
    if rate:
        keep: Any = rate if mask is None else mask[t]
        new *= 1 - keep
        new += np.multiply(old, keep, out=room)


class NumpyBackend(Backend):
    """Every switch, gradient and jvp on NumPy arrays."""

    name = "numpy"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32", "float16"}),
            features=FEATURES,
            reasons={
                "tf32": "NumPy's products have no TF32",
                "bfloat16": "NumPy has no bfloat16",
            },
        )

    def _compile(self, config: LSTMConfig, precision: Precision) -> NumpyKernel:
        return NumpyKernel(self, config, precision)
