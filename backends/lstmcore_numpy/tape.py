"""Values that a recorded forward pass keeps for the derivatives."""

from __future__ import annotations

from dataclasses import dataclass

from lstmcore.backend import Masks
from lstmcore_numpy.layer_norm import Norm
from lstmcore_numpy.packing import Array, Weights
from lstmcore_numpy.step_schedule import StepSchedule


@dataclass(slots=True)
class Saved:
    """Values of every step in the order of the steps, in the compute dtype.

    Attributes
    ----------
    weights, schedule, masks
        Those of the call; the masks are columns.
    operands
        (T, K, N), the operand ``[x; r; 1]`` of every step.
    c
        (T + 1, H, N), the cell before the first step and after every step.
    gates
        (T, G H, N), activated, packed as in `Layout`.
    u
        (T, H, N), the activated cell.
    z
        (T, G H, N), pre-activations; None if the slopes follow from the gates.
    c_unclipped, h_unclipped
        (T, H, N) and (T, P, N), values before the cell clip and the projection clip; None without that clip.
    c_out
        (T, H, N), argument of the hidden activation; None if that is tanh.
    norm_x, norm_h, norm_c
        Normalised ``W x``, ``R r`` and c; None without layer norm.
    """

    weights: Weights
    schedule: StepSchedule
    masks: Masks
    operands: Array
    c: Array
    gates: Array
    u: Array
    z: Array | None = None
    c_unclipped: Array | None = None
    h_unclipped: Array | None = None
    c_out: Array | None = None
    norm_x: Norm | None = None
    norm_h: Norm | None = None
    norm_c: Norm | None = None
