"""The LSTM in vector code that is made for this processor and this configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Kernel, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import Precision
from lstmcore_numba import passes, steps
from lstmcore_numba.compiling import address
from lstmcore_numba.norms import linear
from lstmcore_numba.packing import Array, Layout, OwnMasks, Weights, aligned, own_masks, pack, padded
from lstmcore_numba.threads import ROWS, Threads
from lstmcore_numba.tiles import PANEL

#: Bytes of the input's products that are made at once when nothing is recorded, so that they stay in the cache.
_AHEAD: Final = 1 << 20
#: Rows from which threads take rows of the batch where the weights fit into a core's cache; else they take hidden
#: units, and meet after every step.
_ROWS_APART: Final = 48
#: Bytes of weights that fit.
_FIT: Final = 1 << 20
#: Multiply-adds of a step for which a meeting is worth its time.
_STEP_WORTH: Final = 100_000


@dataclass(frozen=True, slots=True)
class Saved:
    """The tape: for all steps by time index, in whole vectors. ``h`` and ``c`` have the states around the steps."""

    weights: Weights
    lengths: Array
    masks: OwnMasks
    x: Array
    h: Array
    c: Array
    gates: Array
    raw: Array
    operand: Array
    q: Array
    projected: Array
    norms: passes.Norms


class NumbaKernel(Kernel):
    """One layer in one direction. Every call has its own buffers, so calls may run side by side."""

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.dtype, self.storage = np.dtype(precision.compute), np.dtype(precision.storage)
        self.layout = Layout(config, self.dtype)
        self.of_cell = config.recurrence == "cell"
        self.raw = steps.needs_raw(config)
        self.codes: dict[Any, int] = {}
        self.no_masks = own_masks(self.layout, None, np.zeros(0, bool))
        one, two, three, five = (np.zeros((1,) * axes, self.dtype) for axes in (1, 2, 3, 5))
        self.no_norms = passes.Norms(five, two, five, two, five, two, three, three, one, one, 0.0)

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        path = f"vectors of {8 * self.layout.lanes * self.dtype.itemsize} bits"
        return Receipt(self.backend.name, "cpu", self.precision.name, path, "made for this processor and this LSTM")

    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        return pack(self.layout, parameters)

    def _code(self, emit: Any, masks: OwnMasks, *, record: bool) -> int:
        """The address of a step function."""
        key = (emit, len(masks.cell) > 0, len(masks.hidden) > 0, record)
        if key not in self.codes:
            variant = steps.Variant(
                self.config,
                self.precision.compute,
                self.precision.storage,
                self.layout.lanes,
                masked_c=key[1],
                masked_h=key[2],
                record=record,
            )
            self.codes[key] = address(emit, variant)
        return self.codes[key]

    def _cost(self, rows: int, inner: int) -> float:
        return float(rows) * inner * self.layout.wide

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
        config, layout, dtype = self.config, self.layout, self.dtype
        count, batch, _ = x.shape
        ends = np.full(batch, count, np.int64) if lengths is None else np.array(lengths, np.int64)
        empty = ends == 0 if lengths is not None else np.zeros(batch, bool)
        own_x = self._own(x, None if lengths is None else ends)
        x = own_x.copy() if record and np.may_share_memory(own_x, x) else own_x
        own = self.no_masks if masks is None else own_masks(layout, masks, empty)
        h, c = np.zeros((batch, layout.output), dtype), np.zeros((batch, layout.hidden), dtype)
        if state is not None:
            # A row without steps only hands its state on: 0 stands in for it, so that a NaN there reaches no product.
            h[:, : config.output_size] = np.where(empty[:, None], 0, state.h)
            c[:, : config.hidden_size] = np.where(empty[:, None], 0, state.c)
        direct = out is not None and out.dtype == dtype and out.flags.c_contiguous
        y = out if direct and out is not None else np.empty((count, batch, config.output_size), dtype)
        saved, h, c = self._run_forward(weights, x, h, c, ends, own, y, record=record)
        last = State(h[:, : config.output_size].astype(self.storage), c[:, : config.hidden_size].copy())
        if state is not None:
            last.h[empty], last.c[empty] = state.h[empty], state.c[empty]
        if out is None:
            out = y.astype(self.storage, copy=False)
        elif not direct:
            out[...] = y
        return out, last, saved

    def _own(self, x: Array, ends: Array | None) -> Array:
        """`x` in the dtype of arithmetic, in order, and with 0 in the padding."""
        if ends is not None:
            active = np.arange(len(x))[:, None, None] < ends[:, None]
            x = np.where(active, x, 0)
        return np.ascontiguousarray(x, self.dtype)

    def _run_forward(
        self,
        weights: Weights,
        x: Array,
        h_first: Array,
        c_first: Array,
        ends: Array,
        masks: OwnMasks,
        y: Array,
        *,
        record: bool,
    ) -> tuple[Saved | None, Array, Array]:
        """The tape and the state after the last step."""
        config, layout, dtype = self.config, self.layout, self.dtype
        count, batch, width = x.shape
        kept = count + 1 if record or count < 2 else 2
        h, c = aligned((kept, batch, layout.output), dtype), aligned((kept, batch, layout.hidden), dtype)
        at = count if config.reverse and (record or count < 2) else 0
        h[at], c[at] = h_first, c_first
        each = count if record else 1
        ahead = max(1, min(count, _AHEAD // max(1, batch * layout.wide * dtype.itemsize)))
        rooms = count if record else ahead
        norms = self._norms(weights, rooms, count, batch, record=record)
        room = 1 if config.layer_norm and not record else rooms
        gates = aligned((room, batch, layout.blocks, layout.gates, layout.lanes), dtype)
        raw = np.empty_like(gates) if record and self.raw else np.empty((1, 1, 1, 1, 1), dtype)
        masked = len(masks.recurrent) > 0
        inner = config.recurrent_size
        operand = np.empty((each, batch, inner) if masked else (1, 1, inner), dtype)
        projects = config.proj_size > 0
        q = np.zeros((each if projects else 1, batch, layout.hidden), dtype)
        projected = np.empty((each if projects else 1, batch, layout.output), dtype)
        if not x.flags.writeable:
            x = x.copy()  # compiled code is made for arrays that may be written to
        step = self._code(steps.forward, masks, record=record)
        step_cell = self._code(steps.forward_cell, masks, record=record) if config.layer_norm else 0
        step_output = self._code(steps.forward_output, masks, record=record) if projects else 0
        cost = self._cost(count * batch, inner + width)
        by_units = self._by_units(batch, inner + width, masked=masked)
        if by_units and cost < count * _STEP_WORTH:
            cost = 0
        with Threads(layout.blocks if by_units else batch // ROWS, cost) as team:
            passes.forward(
                team,
                by_units,
                step,
                step_output,
                step_cell,
                config.hidden_size,
                norms,
                config.reverse,
                self.of_cell,
                ends,
                x,
                weights.input,
                weights.recurrent,
                weights.bias,
                weights.peephole,
                weights.projection,
                masks.recurrent,
                masks.hidden,
                masks.cell,
                gates,
                raw,
                operand,
                q,
                projected,
                h,
                c,
                y,
                ahead,
                np.zeros(1, np.int64),
            )
        end = 0 if config.reverse and kept > 2 else count if kept != 2 else count % 2
        if kept == 2 and count == 1:
            end = 0 if config.reverse else 1
        saved = Saved(weights, ends, masks, x, h, c, gates, raw, operand, q, projected, norms) if record else None
        return saved, h[end], c[end]

    def _by_units(self, batch: int, inner: int, *, masked: bool) -> bool:
        """Whether threads take hidden units, rather than rows of the batch."""
        config, layout = self.config, self.layout
        if config.proj_size > 0 or config.layer_norm or masked:
            return False
        return batch < _ROWS_APART or inner * layout.wide * self.dtype.itemsize > _FIT

    def _norms(self, w: Weights, ahead: int, count: int, batch: int, *, record: bool) -> passes.Norms:
        """Room for what layer norm needs and leaves; next to none without."""
        config, layout, dtype = self.config, self.layout, self.dtype
        if not config.layer_norm:
            return self.no_norms
        each, wide = count if record else 1, (layout.blocks, layout.gates, layout.lanes)
        return passes.Norms(
            aligned((ahead, batch, *wide), dtype),
            np.empty((count, batch), dtype),
            aligned((each, batch, *wide), dtype),
            np.empty((each, batch), dtype),
            aligned((each, batch, layout.blocks, 1, layout.lanes), dtype),
            np.empty((each, batch), dtype),
            w.gain_x,
            w.gain_h,
            w.gain_c,
            w.shift_c,
            config.layer_norm_eps,
        )

    # backward ---------------------------------------------------------------------------------------------------------

    def _backward(self, weights: Weights, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as IEEE 754 says
            return self._run_backward(saved, dy, dstate)

    def _run_backward(self, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        config, layout, dtype = self.config, self.layout, self.dtype
        count, batch, width = saved.x.shape
        w, masks = saved.weights, saved.masks
        dh, dc = np.zeros((batch, layout.output), dtype), np.zeros((batch, layout.hidden), dtype)
        if dstate is not None:
            dh[:, : config.output_size], dc[:, : config.hidden_size] = dstate
        given = np.zeros((count, batch, 0), dtype) if dy is None else np.array(dy, dtype, order="C")
        dz = aligned((count, batch, layout.blocks, layout.gates, layout.lanes), dtype)
        projects = config.proj_size > 0
        dprojected = np.empty((count if projects else 1, batch, layout.output), dtype)
        dq = np.empty((batch, layout.hidden), dtype)
        doperand = np.empty((batch, layout.hidden if self.of_cell else layout.output), dtype)
        normed, norms = config.layer_norm, saved.norms
        dz_h = aligned(dz.shape, dtype) if normed else dz
        dc_out = np.zeros((count if normed else 1, batch, layout.hidden), dtype)
        dnorm_c = np.zeros((batch if normed else 1, layout.blocks, 1, layout.lanes), dtype)
        step_cell = self._code(steps.backward_cell, masks, record=True) if normed else 0
        step = self._code(steps.backward, masks, record=True)
        step_output = self._code(steps.backward_output, masks, record=True) if projects else 0

        cost = self._cost(count * batch, config.recurrent_size)
        by_units = self._by_units(batch, config.recurrent_size, masked=len(masks.recurrent) > 0)
        if by_units and cost < count * _STEP_WORTH:
            cost = 0
        with Threads(-(-layout.blocks // PANEL) if by_units else batch // ROWS, cost) as team:
            passes.backward(
                team,
                by_units,
                step,
                step_output,
                step_cell,
                config.hidden_size,
                norms,
                config.reverse,
                self.of_cell,
                saved.lengths,
                w.back_recurrent,
                w.peephole,
                w.back_projection,
                masks.recurrent,
                masks.hidden,
                masks.cell,
                saved.gates,
                saved.raw,
                saved.projected,
                saved.c,
                given,
                dz,
                dz_h,
                dc_out,
                dnorm_c,
                dprojected,
                dq,
                doperand,
                dh,
                dc,
                np.zeros(1, np.int64),
            )
        rows = count * batch
        each = (rows, *dz.shape[2:])
        x, from_x, from_h = saved.x.reshape(rows, width), dz.reshape(each), dz_h.reshape(each)
        if normed:
            dz_x = dz * norms.gain_x
            from_x = dz_x.reshape(each)
            linear(
                norms.x.reshape(rows, *dz.shape[2:]),
                norms.deviation_x.reshape(rows),
                dz_x.reshape(rows, *dz.shape[2:]),
                layout.real,
                0,
                rows,
            )
        found: dict[str, Array] = {}
        hidden = config.hidden_size
        found["weight_x"], found["bias"] = self._weight_gradient(from_x, x, hidden, width)
        found["weight_h"], _ = self._weight_gradient(from_h, self._operand(saved), hidden, config.recurrent_size)
        if normed:
            found["bias"] = layout.of_gates(dz.sum(axis=(0, 1)))
            found["norm_gain_x"] = layout.of_gates(np.einsum("tnbgl,tnbgl->bgl", dz, norms.x))
            found["norm_gain_h"] = layout.of_gates(np.einsum("tnbgl,tnbgl->bgl", dz, norms.h))
            norm_c = norms.c.reshape(count, batch, layout.hidden)
            found["norm_gain_c"] = np.einsum("tnk,tnk->k", dc_out, norm_c)[: config.hidden_size]
            found["norm_bias_c"] = dc_out.sum(axis=(0, 1))[: config.hidden_size]
        if config.proj_size:
            units = dprojected.reshape(rows, layout.output // layout.lanes, 1, layout.lanes)
            of_q = saved.q.reshape(rows, layout.hidden)
            found["weight_proj"], _ = self._weight_gradient(units, of_q, config.proj_size, hidden)
        if config.peephole:
            found["peephole"] = self._peephole(saved, dz)
        wide_dx = aligned((rows, layout.whole(width)), dtype)
        with Threads(rows // ROWS, self._cost(rows, width)) as team:
            passes.rows_product(team, from_x.reshape(rows, layout.wide), w.back_input, wide_dx)
        dx = wide_dx[:, :width].reshape(count, batch, width)
        state = State(dh[:, : config.output_size].astype(self.storage), dc[:, : config.hidden_size].copy())
        named = {name: found[name].astype(self.storage) for name in config.parameter_shapes}
        return Gradients(dx.astype(self.storage, copy=False), state, named)

    def _weight_gradient(self, dz: Array, a: Array, size: int, columns: int) -> tuple[Array, Array]:
        """``dz^T a`` for dz (rows, B, G, lanes) of `size` units and the first columns of a; sums of dz's rows."""
        _, blocks, gates, lanes = dz.shape
        of_weight, of_bias = np.empty((gates * size, columns), self.dtype), np.empty(gates * size, self.dtype)
        sums, found = aligned(dz.shape[1:], self.dtype), aligned((blocks, columns, gates, lanes), self.dtype)
        with Threads(blocks, float(dz.size) * columns) as team:
            passes.weight_gradient(team, dz, a, size, sums, found, of_weight, of_bias)
        return of_weight, of_bias

    def _operand(self, saved: Saved) -> Array:
        """What R multiplied at every step, (T N, R) or wider."""
        masked = len(saved.masks.recurrent) > 0
        found = saved.operand if masked else self._before(saved.c if self.of_cell else saved.h)
        return found.reshape(found.shape[0] * found.shape[1], found.shape[2])

    def _before(self, states: Array) -> Array:
        """The states that the steps started from."""
        return states[1:] if self.config.reverse else states[:-1]

    def _after(self, states: Array) -> Array:
        """The states that the steps ended in."""
        return states[:-1] if self.config.reverse else states[1:]

    def _peephole(self, saved: Saved, dz: Array) -> Array:
        """The gradient of the peepholes."""
        config, layout = self.config, self.layout
        shape = (*dz.shape[:3], layout.lanes)
        rows = []
        for k in config.peephole_gates:
            read = (self._after if k == "o" else self._before)(saved.c).reshape(shape)
            rows.append(np.einsum("tnbl,tnbl->bl", dz[:, :, :, config.gates.index(k)], read).ravel())
        return np.stack(rows)[:, : config.hidden_size]

    # along tangents ---------------------------------------------------------------------------------------------------

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        y, last, saved = self._forward(weights, x, state, lengths, masks, record=True, out=None)
        if saved is None:
            raise RuntimeError("a recorded call returned no tape")
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as IEEE 754 says
            return Forward(y, last), self._along(saved, tangents, None if lengths is None else saved.lengths)

    def _along(self, saved: Saved, tangents: Tangents, ends: Array | None) -> Forward:
        config, layout, dtype = self.config, self.layout, self.dtype
        count, batch, width = saved.x.shape
        rows, w, masks = count * batch, saved.weights, saved.masks
        given = {name: np.asarray(array, dtype) for name, array in (tangents.parameters or {}).items()}
        normed, norms = config.layer_norm, saved.norms
        tz = np.zeros((rows, layout.wide), dtype)
        tz_h = np.zeros_like(tz) if normed else tz
        if tangents.x is not None:
            tz += self._own(tangents.x, ends).reshape(rows, width) @ w.wide_input.T
        if "weight_x" in given:
            tz += saved.x.reshape(rows, width) @ layout.wide_rows(given["weight_x"]).T
        if "weight_h" in given:
            operand = self._operand(saved)[:, : config.recurrent_size]
            tz_h += operand @ layout.wide_rows(given["weight_h"]).T
        wide = (rows, layout.blocks, layout.gates, layout.lanes)
        if normed:
            norm_x, norm_h = norms.x.reshape(rows, layout.wide), norms.h.reshape(rows, layout.wide)
            linear(norms.x.reshape(wide), norms.deviation_x.reshape(rows), tz.reshape(wide), layout.real, 0, rows)
            tz *= norms.gain_x.ravel()
            for name, norm in (("norm_gain_x", norm_x), ("norm_gain_h", norm_h)):
                if name in given:
                    tz += norm * layout.wide_parameter(given[name]).ravel()
        if "bias" in given:
            tz += layout.wide_parameter(given["bias"]).ravel()
        tgain_c, tshift_c = (layout.unit_parameter(given.get(name)) for name in ("norm_gain_c", "norm_bias_c"))
        tnorm_c = np.zeros((batch if normed else 1, layout.blocks, 1, layout.lanes), dtype)
        tz5, tz_h5 = (part.reshape(count, batch, *wide[1:]) for part in (tz, tz_h))
        tpeephole = np.zeros((len(config.peephole_gates) or 1, layout.hidden), dtype)
        if "peephole" in given:
            tpeephole[:, : config.hidden_size] = given["peephole"]
        projects = config.proj_size > 0
        tprojected = np.zeros((count if projects else 1, batch, layout.output), dtype)
        if "weight_proj" in given:
            projection = padded(padded(given["weight_proj"].T, 0, layout.hidden), 1, layout.output)
            tprojected[...] = (saved.q.reshape(rows, layout.hidden) @ projection).reshape(tprojected.shape)
        th, tc = np.zeros((2, batch, layout.output), dtype), np.zeros((2, batch, layout.hidden), dtype)
        empty = saved.lengths == 0 if ends is not None else np.zeros(batch, bool)
        if tangents.state is not None:
            th[0, :, : config.output_size] = np.where(empty[:, None], 0, tangents.state.h)
            tc[0, :, : config.hidden_size] = np.where(empty[:, None], 0, tangents.state.c)
        tq = np.zeros((batch, layout.hidden), dtype)
        toperand = np.empty((batch, config.recurrent_size), dtype)
        ty = np.empty((count, batch, config.output_size), dtype)
        step = self._code(steps.tangent, masks, record=True)
        step_cell = self._code(steps.tangent_cell, masks, record=True) if normed else 0
        step_output = self._code(steps.tangent_output, masks, record=True) if projects else 0

        with Threads(batch // ROWS, self._cost(rows, config.recurrent_size)) as team:
            passes.tangent(
                team,
                step,
                step_output,
                step_cell,
                config.hidden_size,
                norms,
                config.reverse,
                self.of_cell,
                saved.lengths,
                w.recurrent,
                w.peephole,
                tpeephole,
                w.projection,
                masks.recurrent,
                masks.hidden,
                masks.cell,
                saved.gates,
                saved.raw,
                saved.projected,
                saved.c,
                tz5,
                tz_h5,
                tnorm_c,
                tgain_c,
                tshift_c,
                tprojected,
                tq,
                toperand,
                th,
                tc,
                ty,
            )
        th_last, tc_last = th[count % 2], tc[count % 2]
        last = State(th_last[:, : config.output_size].astype(self.storage), tc_last[:, : config.hidden_size].copy())
        if tangents.state is not None:
            last.h[empty], last.c[empty] = tangents.state.h[empty], tangents.state.c[empty]
        return Forward(ty.astype(self.storage, copy=False), last)


class NumbaBackend(Backend):
    """Every switch, gradients and jvp, in vector code."""

    name = "numba"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32", "float16"}),
            features=FEATURES,
            reasons={
                "tf32": "processors have no TF32",
                "bfloat16": "not written yet",
            },
        )

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("numba", "llvmlite")}

    def _compile(self, config: LSTMConfig, precision: Precision) -> NumbaKernel:
        return NumbaKernel(self, config, precision)
