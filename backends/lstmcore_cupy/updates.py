"""Steps of optimizers, and the norm of gradients: a launch or two for all arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from lstmcore.updates import Formula, Updates
from lstmcore_cupy import program_source
from lstmcore_cupy.device import Array, Device, Words
from lstmcore_cupy.launch import Call, blocks_for

#: The same as in updates.cu: arrays of a launch, whose argument may have 4096 bytes.
_ARRAYS: Final = 96
#: Numbers of ``struct Item`` there.
_ITEM: Final = 4
#: The kernels that move parameters, by the names of formulas.
_FORMULAS: Final = ("sgd", "adam")
_DTYPES: Final = ("float32", "float64")
_SUM: Final = np.dtype(np.float64)


class CupyUpdates(Updates):
    """Kernels of ``updates.cu`` on the device that holds the arrays.

    Parameters
    ----------
    device
        That of the backend; arrays of another GPU stay there.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def refusal(self, formula: str | None, dtype: str) -> str | None:
        """See `Updates.refusal`."""
        if formula is not None and formula not in _FORMULAS:
            return f"the kernels have {' and '.join(_FORMULAS)}; not {formula}"
        return None if dtype in _DTYPES else f"the kernels compute in {' and '.join(_DTYPES)}; not {dtype}"

    def move(
        self, formula: Formula, values: Sequence[Array], gradients: Sequence[Array], moments: Sequence[Array]
    ) -> Array:
        """See `Updates.move`."""
        device = self._device.home(values[0])
        with device.active():
            run = _Launches(device, gradients, values)
            run.header.put(**dict(zip(("first", "second"), moments, strict=False)))
            run.header.put_numbers(_numbers(formula), run.dtype)
            return run.transform(formula.name)

    def norm(self, gradients: Sequence[Array]) -> Array:
        """See `Updates.norm`."""
        device = self._device.home(gradients[0])
        with device.active():
            run = _Launches(device, gradients)
            norm = run.add_squares()
            run.start("root_of_squares", (1, 1), first=0)
            return norm

    def clip(self, gradients: Sequence[Array], bound: float) -> tuple[Array, Array]:
        """See `Updates.clip`."""
        device = self._device.home(gradients[0])
        with device.active():
            run = _Launches(device, gradients)
            norm = run.add_squares()
            run.header.put_numbers({"bound": bound}, _SUM)
            return run.transform("clip"), norm


class _Launches:
    """Launches over some arrays, each over the next `_ARRAYS` of them.

    Attributes
    ----------
    header
        ``struct Update``.
    dtype
        That of the arrays.
    """

    def __init__(self, device: Device, gradients: Sequence[Array], values: Sequence[Array] = ()) -> None:
        self._device, self.dtype = device, np.dtype(gradients[0].dtype)
        program = device.program(program_source.update_program(self.dtype.name))
        self.header = Call(device, program, "Update")
        self._kept = [array if device.writable(array) else device.array(array) for array in (*values, *gradients)]
        addresses = [device.address(array) for array in self._kept]
        sizes = [array.size for array in gradients]
        self._items: Words = np.zeros((len(gradients), _ITEM), np.int64)
        self._items[: len(values), 0] = addresses[: len(values)]
        self._items[:, 1] = addresses[len(values) :]
        self._items[:, 2] = np.cumsum(sizes) - sizes
        self._items[:, 3] = sizes
        self._size, self._largest = sum(sizes), max(sizes)

    def start(self, kernel: str, blocks: tuple[int, int], first: int) -> None:
        """Start a kernel on the arrays from number `first` on."""
        items = self._items[first : first + _ARRAYS]
        self.header.put(arrays=len(items))
        self.header.launch_over(kernel, items, _ARRAYS, blocks)

    def add_squares(self) -> Array:
        """Let the header have sums of squares of all arrays, and a place for their norm, which is returned."""
        blocks = blocks_for(self._size)
        starts = range(0, len(self._items), _ARRAYS)
        squares, norm = self._device.empty((blocks * len(starts),), _SUM), self._device.empty((), _SUM)
        self.header.put(squares=squares, parts=blocks * len(starts), norm=norm)
        for number, first in enumerate(starts):
            self.header.put(first_part=number * blocks)
            self.start("squares", (blocks, 1), first)
        return norm

    def transform(self, kernel: str) -> Array:
        """Return what a kernel writes for all arrays, one after the other."""
        target = self._device.empty((self._size,), self.dtype)
        self.header.put(target=target)
        for first in range(0, len(self._items), _ARRAYS):
            arrays = min(_ARRAYS, len(self._items) - first)
            self.start(kernel, (arrays, blocks_for(self._largest)), first)
        return target


def _numbers(formula: Formula) -> Mapping[str, float]:
    """Return the fields of ``struct Update`` for a formula; differences are rounded once, as on the host."""
    numbers = dict(formula.numbers)
    for name in ("1", "2"):
        if f"beta{name}" in numbers:
            numbers[f"rest{name}"] = 1 - numbers[f"beta{name}"]
    return numbers
