"""Packed parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lstmcore_cupy.device import Array
from lstmcore_cupy.launch import Programs


@dataclass(frozen=True, slots=True)
class Weights:
    """Copies of the parameters by name, in the compute dtype, and the programs of the device that holds them.

    Attributes
    ----------
    wait
        Lets the current stream wait for the copies, which another stream may have made. Every pass calls it.
    """

    programs: Programs
    parameters: dict[str, Array]
    wait: Callable[[], None]

    def fields(self) -> dict[str, Array | None]:
        """Return the parameters that are fields of ``struct Call``, by the name of the field."""
        parameter = self.parameters.get
        return {
            "weight_h": parameter("weight_h"),
            "bias": parameter("bias"),
            "peephole": parameter("peephole"),
            "gain_x": parameter("norm_gain_x"),
            "gain_h": parameter("norm_gain_h"),
            "gain_c": parameter("norm_gain_c"),
            "shift_c": parameter("norm_bias_c"),
        }
