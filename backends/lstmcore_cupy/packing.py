"""Packed parameters and what a forward pass leaves for the derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lstmcore.backend import Masks
from lstmcore_cupy.device import Array
from lstmcore_cupy.launch import Programs


@dataclass(frozen=True, slots=True)
class Weights:
    """Copies of the parameters by their names, to compute with, and the programs of the device where they are."""

    programs: Programs
    parameters: dict[str, Array]

    def fields(self) -> dict[str, Array | None]:
        """Those that are fields of ``struct Call``."""
        given = self.parameters.get
        return {
            "weight_h": given("weight_h"),
            "bias": given("bias"),
            "peephole": given("peephole"),
            "gain_x": given("norm_gain_x"),
            "gain_h": given("norm_gain_h"),
            "gain_c": given("norm_gain_c"),
            "shift_c": given("norm_bias_c"),
        }


@dataclass(frozen=True, slots=True)
class Saved:
    """The tape: all steps of a call.

    Attributes
    ----------
    x
        To compute with; 0 in padding.
    kept
        Fields of ``struct Call``, which tells their shapes.
    to_host
        Whether the call's arrays were NumPy's.
    """

    weights: Weights
    ends: Array | None
    masks: Masks
    x: Array
    kept: dict[str, Any]
    to_host: bool
