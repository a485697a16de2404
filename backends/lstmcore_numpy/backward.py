"""The backward pass as docs/backward.md derives it, on columns.

What is a sum over steps and rows, the gradients of the parameters, is one product over all of them, or as many as one
block has: never one a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lstmcore.activations import clip, derivative, inside
from lstmcore.backend import Gradients, State
from lstmcore_numpy.parts import Array, Saved, normalise_linear

if TYPE_CHECKING:
    from lstmcore_numpy.kernel import NumpyKernel

#: Rows times steps that the products over many steps sum over at once.
_BLOCK: Final = 1 << 11


def backward(kernel: NumpyKernel, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
    """See `Kernel._backward`."""
    config, dtype, storage = kernel.config, kernel.dtype, kernel.storage
    steps, _, batch = saved.operands.shape
    schedule, widths = saved.schedule, (config.output_size, config.hidden_size)
    dh, dc = (np.zeros((width, batch), dtype) for width in widths)
    if dstate is not None:
        dh[...], dc[...] = dstate.h.T, dstate.c.T
    dys = None if dy is None else schedule.columns(dy, dtype)
    dx = np.empty((steps, batch, config.input_size), storage)
    parameters: dict[str, Array] = {}
    size = max(1, min(steps, _BLOCK // max(1, batch)))
    block = _Block(kernel, saved, size)
    for end in range(steps, 0, -size) if steps else (0,):
        first = max(0, end - size)
        for t in reversed(range(first, end)):
            if dys is not None:
                dh += dys[t]
            past = schedule.past[t]
            if past is None:
                dh, dc = block.step(t, t - first, dh, dc)
            else:
                dh_before, dc_before = block.step(t, t - first, np.where(past, 0, dh), np.where(past, 0, dc))
                dh, dc = np.where(past, dh, dh_before), np.where(past, dc, dc_before)
        schedule.ordered(dx)[first:end] = block.input_gradient(end - first)
        for name, part in block.parameter_gradients(slice(first, end)).items():
            parameters[name] = parameters[name] + part if name in parameters else part
    return Gradients(
        dx,
        State(dh.T.astype(storage, order="C"), dc.T.copy()),
        {name: parameters[name].astype(storage, copy=False) for name in config.parameter_shapes},
    )


class _Block:
    """The buffers of one backward pass, for a block of steps at a time.

    What the products read is (., S, N), so that the S steps of a block are one matrix.
    """

    def __init__(self, kernel: NumpyKernel, saved: Saved, size: int) -> None:
        self.kernel, self.saved = kernel, saved
        config, dtype, batch = kernel.config, kernel.dtype, saved.operands.shape[2]
        self.dz = np.empty((kernel.layout.size, batch), dtype)
        self.slopes = np.empty_like(self.dz)
        self.room = np.empty((config.hidden_size, batch), dtype)
        self.all_dz = np.empty((kernel.layout.size, size, batch), dtype)
        self.all_from_x = np.empty_like(self.all_dz) if config.layer_norm else self.all_dz
        self.all_from_h = np.empty_like(self.all_dz) if config.layer_norm else self.all_dz
        self.all_dh = np.empty((config.output_size, size, batch), dtype) if config.proj_size else None
        self.all_dn = np.empty((config.hidden_size, size, batch), dtype) if config.layer_norm else None

    def step(self, t: int, at: int, dh: Array, dc: Array) -> tuple[Array, Array]:
        """Step `t`, the block's step `at`, back: the gradients of the state before it, in arrays of their own."""
        kernel, saved, dz, room = self.kernel, self.saved, self.dz, self.room
        config, layout, masks, w = kernel.config, kernel.layout, saved.masks, saved.weights
        c_before, gates, u = saved.c[t], saved.gates[t], saved.u[t]
        g, o = gates[layout.places["g"]], gates[layout.places["o"]]
        i, f = kernel.input_and_forget(gates)
        slopes = gate_slopes(kernel, saved, t, self.slopes)

        # h = keep h_before + (1 - keep) clip(W_proj q)
        dh_before = None
        dq = dh
        if config.zoneout_hidden:
            keep = config.zoneout_hidden if masks.zoneout_hidden is None else masks.zoneout_hidden[t]
            dh_before, dq = keep * dh, (1 - keep) * dh
        if saved.h_unclipped is not None and config.proj_clip is not None:
            dq = dq * inside(saved.h_unclipped[t], config.proj_clip)
        if w.proj is not None and self.all_dh is not None:
            self.all_dh[:, at] = dq
            dq = w.proj.T @ dq

        # q = o u(LN(c)), o = s(z_o + p_o c)
        dn = dq * o
        dn *= hidden_slope(kernel, saved, t, room)
        if w.gain_c is not None and saved.norm_c is not None and self.all_dn is not None:
            self.all_dn[:, at] = dn
            dn = normalise_linear(saved.norm_c.at(t), dn * w.gain_c)
        dc = np.add(dn, dc, dn)
        dz_o = dz[layout.places["o"]]
        np.multiply(dq, u, dz_o)
        dz_o *= slopes[layout.places["o"]]
        if config.peephole:
            dc += np.multiply(dz_o, w.raw_peephole["o"], room)

        # c = keep c_before + (1 - keep) clip(f c_before + i g)
        kept = None
        if config.zoneout_cell:
            keep = config.zoneout_cell if masks.zoneout_cell is None else masks.zoneout_cell[t]
            kept, dc = keep * dc, (1 - keep) * dc
        if saved.c_unclipped is not None and config.cell_clip is not None:
            dc *= inside(saved.c_unclipped[t], config.cell_clip)
        np.multiply(dc, i, dz[layout.places["g"]])
        if config.coupling == "none":
            np.multiply(dc, g, dz[layout.places["i"]])
            np.multiply(dc, c_before, dz[layout.places["f"]])
        elif config.coupling == "forget_from_input":
            np.multiply(dc, g - c_before, dz[layout.places["i"]])
        else:
            np.multiply(dc, c_before - g, dz[layout.places["f"]])
        dz[layout.early] *= slopes[layout.early]
        dc_before = np.multiply(dc, f, dc)
        if kept is not None:
            dc_before += kept
        for gate in "if":
            if gate in w.raw_peephole:
                dc_before += np.multiply(dz[layout.places[gate]], w.raw_peephole[gate], room)

        # z = LN(W x) + LN(R (m r)) + b
        self.all_dz[:, at] = from_h = dz
        if saved.norm_x is not None and saved.norm_h is not None:
            from_h = normalise_linear(saved.norm_h.at(t), dz * w.raw_gain_h)
            self.all_from_h[:, at] = from_h
            self.all_from_x[:, at] = normalise_linear(saved.norm_x.at(t), dz * w.raw_gain_x)
        dr = np.matmul(w.backward[layout.r], from_h)
        if masks.recurrent is not None:
            dr *= masks.recurrent
        if config.recurrence == "cell":
            dc_before += dr
            return (np.zeros_like(dh) if dh_before is None else dh_before), dc_before
        return (dr if dh_before is None else dh_before + dr), dc_before

    def input_gradient(self, count: int) -> Array:
        """The gradient of x of the block's first `count` steps, (count, N, I)."""
        from_x = _matrix(self.all_from_x[:, :count])
        weight_x = self.saved.weights.backward[self.kernel.layout.x]
        dx: Array = np.matmul(from_x.T, weight_x.T)
        return dx.reshape(count, self.dz.shape[1], len(weight_x))

    def parameter_gradients(self, steps: slice) -> dict[str, Array]:
        """The gradients of the parameters from `steps`, those of the block."""
        saved, config, layout = self.saved, self.kernel.config, self.kernel.layout
        count = steps.stop - steps.start

        def block(array: Array) -> Array:
            return _matrix(array[:, :count])

        def kept(array: Array) -> Array:
            return _matrix(array[steps].transpose(1, 0, 2))

        dz = block(self.all_dz)
        packed: dict[str, Array] = {}
        if saved.norm_x is not None and saved.norm_h is not None:
            packed["weight_x"] = block(self.all_from_x) @ kept(saved.operands[:, layout.x]).T
            packed["weight_h"] = block(self.all_from_h) @ kept(saved.operands[:, layout.r]).T
            packed["norm_gain_x"] = (dz * kept(saved.norm_x.value)).sum(axis=1)
            packed["norm_gain_h"] = (dz * kept(saved.norm_h.value)).sum(axis=1)
        else:
            both = dz @ kept(saved.operands[:, : layout.r.stop]).T
            packed["weight_x"], packed["weight_h"] = both[:, layout.x], both[:, layout.r]
        if config.bias:
            packed["bias"] = dz.sum(axis=1)
        result = {name: layout.unpacked(rows, config.gates) for name, rows in packed.items()}
        if self.all_dh is not None:
            q = kept(saved.gates[:, layout.places["o"]]) * kept(saved.u)
            result["weight_proj"] = block(self.all_dh) @ q.T
        if config.peephole:
            before, after = kept(saved.c[:-1]), kept(saved.c[1:])
            cells = {"i": before, "f": before, "o": after}
            result["peephole"] = np.stack(
                [(dz[layout.places[gate]] * cells[gate]).sum(axis=1) for gate in config.peephole_gates]
            )
        if self.all_dn is not None and saved.norm_c is not None:
            dn = block(self.all_dn)
            result["norm_gain_c"] = (dn * kept(saved.norm_c.value)).sum(axis=1)
            result["norm_bias_c"] = dn.sum(axis=1)
        return result


def gate_slopes(kernel: NumpyKernel, saved: Saved, t: int, out: Array) -> Array:
    """The derivatives of the gates of step `t` with respect to their pre-activations, into `out` (G H, N)."""
    layout, bound = kernel.layout, kernel.config.gate_clip
    if saved.z is None:
        gates, g, sigmoids = saved.gates[t], layout.places["g"], layout.sigmoids
        np.multiply(gates[g], gates[g], out[g])
        np.subtract(1, out[g], out[g])
        np.subtract(1, gates[sigmoids], out[sigmoids])  # exact where the gate is near 1; y - y * y is not
        np.multiply(gates[sigmoids], out[sigmoids], out[sigmoids])
        return out
    for gate in layout.gates:
        own = layout.places[gate]
        z, function = saved.z[t, own], kernel.function(gate)
        out[own] = derivative(function, z) if bound is None else derivative(function, clip(z, bound)) * inside(z, bound)
    return out


def hidden_slope(kernel: NumpyKernel, saved: Saved, t: int, out: Array) -> Array:
    """The derivative of u at the (normalised) cell of step `t`, into `out` (H, N)."""
    if saved.c_out is None:
        np.multiply(saved.u[t], saved.u[t], out)
        np.subtract(1, out, out)
    else:
        out[...] = derivative(kernel.config.hidden_activation, saved.c_out[t])
    return out


def _matrix(array: Array) -> Array:
    """(K, S, N) as (K, S N)."""
    return array.reshape(array.shape[0], array.shape[1] * array.shape[2])
