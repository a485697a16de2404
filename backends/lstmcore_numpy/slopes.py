"""Derivatives of the activations at a recorded step."""

from __future__ import annotations

import numpy as np

from lstmcore.activations import clip, derivative, inside
from lstmcore_numpy.cell_plan import CellPlan
from lstmcore_numpy.packing import Array
from lstmcore_numpy.tape import Saved


def gate_slopes(plan: CellPlan, saved: Saved, t: int, out: Array) -> Array:
    """Return the derivatives of the gates of a step with respect to their pre-activations.

    Parameters
    ----------
    plan, saved
        The plan of the layer and the tape.
    t
        The step.
    out
        (G H, N), where the result is written; it is returned.
    """
    layout, bound = plan.layout, plan.config.gate_clip
    if saved.z is None:
        gates, g, sigmoids = saved.gates[t], layout.places["g"], layout.sigmoids
        np.multiply(gates[g], gates[g], out[g])
        np.subtract(1, out[g], out[g])
        np.subtract(1, gates[sigmoids], out[sigmoids])  # exact if the gate is near 1; y - y * y is not
        np.multiply(gates[sigmoids], out[sigmoids], out[sigmoids])
        return out
    for gate in layout.gates:
        rows = layout.places[gate]
        z, function = saved.z[t, rows], plan.activation(gate)
        slope = derivative(function, z) if bound is None else derivative(function, clip(z, bound)) * inside(z, bound)
        out[rows] = slope
    return out


def hidden_slope(plan: CellPlan, saved: Saved, t: int, out: Array) -> Array:
    """Return the derivative of the hidden activation at the (normalised) cell of a step.

    Parameters
    ----------
    plan, saved
        The plan of the layer and the tape.
    t
        The step.
    out
        (H, N), where the result is written; it is returned.
    """
    if saved.c_out is None:
        np.multiply(saved.u[t], saved.u[t], out)
        np.subtract(1, out, out)
    else:
        out[...] = derivative(plan.config.hidden_activation, saved.c_out[t])
    return out
