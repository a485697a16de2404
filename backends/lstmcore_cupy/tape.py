"""Values that a recorded forward pass keeps for the derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lstmcore.backend import Masks
from lstmcore_cupy.device import Array
from lstmcore_cupy.launch import Call
from lstmcore_cupy.packing import Weights


@dataclass(frozen=True, slots=True)
class Saved:
    """The tape of all steps of a call; its arrays are on the device of the weights.

    Attributes
    ----------
    weights
        Those of the call.
    ends
        (N,), the lengths, or None.
    masks
        Copies of the masks.
    x
        (T, N, I) in the compute dtype, 0 in padding.
    buffers
        Fields of ``struct Call``, which documents their shapes.
    to_host
        Whether the arrays of the call were NumPy's.
    """

    weights: Weights
    ends: Array | None
    masks: Masks
    x: Array
    buffers: dict[str, Any]
    to_host: bool

    def call(self, **values: Array | int | None) -> Call:
        """Return a call on the recorded arrays; `values` are further fields."""
        weights, masks = self.weights, self.masks
        steps, batch, _ = self.x.shape
        call = weights.programs.call(T=steps, N=batch, ends=self.ends, **weights.fields(), **self.buffers, **values)
        call.put(mask_r=masks.recurrent, mask_h=masks.zoneout_hidden, mask_c=masks.zoneout_cell)
        return call
