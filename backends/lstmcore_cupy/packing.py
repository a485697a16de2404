"""Packed parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lstmcore.stored_weights import StoredMatrix
from lstmcore_cupy.device import Array, Device
from lstmcore_cupy.launch import Programs


@dataclass(frozen=True, slots=True)
class Weights:
    """Copies of the parameters by name, in the compute dtype, and the programs of the device that holds them.

    A stored matrix stays as it is stored, with its arrays on the device.

    Attributes
    ----------
    wait
        Lets the current stream wait for the copies, which another stream may have made. Every pass calls it.
    """

    programs: Programs
    parameters: dict[str, Array | StoredMatrix]
    wait: Callable[[], None]

    def fields(self) -> dict[str, Array | None]:
        """Return the parameters that are fields of ``struct Call``, by the name of the field."""
        parameter = self.parameters.get
        weight_h = parameter("weight_h")
        return {
            "weight_h": None if isinstance(weight_h, StoredMatrix) else weight_h,  # the persistent kernels' alone
            "bias": parameter("bias"),
            "peephole": parameter("peephole"),
            "gain_x": parameter("norm_gain_x"),
            "gain_h": parameter("norm_gain_h"),
            "gain_c": parameter("norm_gain_c"),
            "shift_c": parameter("norm_bias_c"),
        }

    def places(self) -> tuple[int, ...]:
        """Return the addresses of the arrays of all parameters."""
        arrays: list[Array | None] = []
        for parameter in self.parameters.values():
            stored = isinstance(parameter, StoredMatrix)
            arrays += [parameter.values, parameter.scale] if stored else [parameter]
        return tuple(self.programs.device.address(array) for array in arrays if array is not None)


def to_device(device: Device, matrix: StoredMatrix) -> StoredMatrix:
    """Return a stored matrix whose arrays are on `device`."""
    scale = None if matrix.scale is None else device.array(matrix.scale)
    return replace(matrix, values=device.array(matrix.values), scale=scale)
