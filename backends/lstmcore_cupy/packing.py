"""Packed parameters: one launch copies all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

import numpy as np

from lstmcore.stored_weights import StoredMatrix
from lstmcore_cupy.device import Array, Device, Words
from lstmcore_cupy.launch import Call, Programs, blocks_for

#: The same as in rows.cu: arrays of a launch, whose argument may have 4096 bytes.
_PARAMETERS: Final = 128
#: Numbers between the places at which packed arrays may start: products get operands that are aligned as fresh ones.
_PLACE: Final = 256


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


def pack(
    programs: Sequence[Programs], parameters: Sequence[Mapping[str, Array | StoredMatrix]], *, copies: bool = False
) -> tuple[tuple[Weights, ...], list[Array]]:
    """Return the weights of some kernels on one device, and copies of all their arrays in the storage dtype.

    Parameters
    ----------
    programs
        Those of each kernel.
    parameters
        Those of each kernel.
    copies
        Whether the copies are wanted; without, the list is empty. They share the memory of the weights if the compute
        dtype is the storage dtype, so they must not be written to.
    """
    device = programs[0].device
    with device.active():
        named = [
            [(name, each[name]) for name in own.config.parameter_shapes]
            for own, each in zip(programs, parameters, strict=True)
        ]
        arrays = [array for each in named for _, array in each if not isinstance(array, StoredMatrix)]
        wide, narrow = _copied(programs[0], arrays, narrow=copies)
        left = iter(wide)
        packed = [
            {name: to_device(device, one) if isinstance(one, StoredMatrix) else next(left) for name, one in each}
            for each in named
        ]
        wait = device.started()
        return tuple(Weights(own, each, wait) for own, each in zip(programs, packed, strict=True)), narrow


def _copied(programs: Programs, arrays: Sequence[Array], *, narrow: bool) -> tuple[list[Array], list[Array]]:
    """Return copies of arrays in the compute dtype, and with `narrow` copies in the storage dtype."""
    device, same = programs.device, programs.real == programs.storage
    arrays = [device.array(array) for array in arrays]
    sizes = [int(array.size) for array in arrays]
    *starts, end = accumulate((-(-size // _PLACE) * _PLACE for size in sizes), initial=0)
    wide = device.empty((end,), programs.real)
    stored = device.empty((end,), programs.storage) if narrow and not same else None
    call = Call(device, programs.rows, "Packing")
    call.put(wide=wide, narrow=stored)
    items: Words = np.array([[device.address(array) for array in arrays], starts, sizes], np.int64).T
    for first in range(0, len(items), _PARAMETERS):
        some = items[first : first + _PARAMETERS]
        call.launch_over("pack", some, _PARAMETERS, (len(some), blocks_for(max(sizes))))

    def parts(flat: Array) -> list[Array]:
        places = zip(starts, sizes, arrays, strict=True)
        return [flat[start : start + size].reshape(array.shape) for start, size, array in places]

    copies = parts(wide)
    return copies, (copies if stored is None else parts(stored)) if narrow else []


def to_device(device: Device, matrix: StoredMatrix) -> StoredMatrix:
    """Return a stored matrix whose arrays are on `device`."""
    scale = None if matrix.scale is None else device.array(matrix.scale)
    return replace(matrix, values=device.array(matrix.values), scale=scale)
