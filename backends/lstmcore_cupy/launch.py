"""Launches: the struct that kernels are given, and the programs of a kernel's configuration on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision, numpy_dtype
from lstmcore_cupy import program_source
from lstmcore_cupy.device import Array, Compute, Device, Program, Words

_WARP: Final = 32
_MOST_THREADS: Final = 256
#: Rows that one thread sums up one after another; sums of more are sums of such sums.
_PART: Final = 64
#: Rows that one product sums over; gradients over more are sums of such products.
_PRODUCT_ROWS: Final = 1 << 11


class Call:
    """One struct, filled field by field, and launches with it. Keeps the arrays whose addresses are in it."""

    def __init__(self, device: Device, program: Program, struct: str) -> None:
        self._device, self._program = device, program
        self._places = program_source.fields(struct)
        self._words: Words = np.zeros(len(self._places), np.int64)
        self._kept: dict[str, Array] = {}

    def put(self, **values: Array | int | None) -> None:
        """Set fields: numbers, and arrays by their address, None for no array."""
        for name, value in values.items():
            if isinstance(value, int):
                self._words[self._places[name]] = value
            else:
                self._kept[name] = value
                self._words[self._places[name]] = 0 if value is None else self._device.address(value)

    def put_numbers(self, values: Mapping[str, float], dtype: np.dtype[Any]) -> None:
        """Set fields of type ``Number``."""
        numbers = self._words.view(dtype).reshape(len(self._words), -1)
        for name, value in values.items():
            numbers[self._places[name], 0] = value

    def launch(self, kernel: str, rows: int, width: int, *, whole_rows: bool = False) -> None:
        """Start a kernel that has a block for each of `rows` and `width` columns in each.

        `whole_rows`: one block has all columns of a row, since it sums over them.
        """
        threads = min(_MOST_THREADS, -(-width // _WARP) * _WARP)
        self._program.launch(kernel, (rows, 1 if whole_rows else -(-width // threads)), threads, self._words)

    def step(self, s: int, kernel: str, rows: int, width: int, *, whole_rows: bool = False) -> None:
        """As `launch`, for a step."""
        self._words[self._places["s"]] = s
        self.launch(kernel, rows, width, whole_rows=whole_rows)

    @property
    def words(self) -> Words:
        """The struct as it is now."""
        return self._words


class Programs:
    """The kernels of a configuration and a precision on a device, and what is done with rows and matrices beside them.

    `real` is what is computed in, `storage` what x, y, h and parameters are kept in.
    """

    def __init__(self, device: Device, config: LSTMConfig, precision: Precision) -> None:
        self.device, self.config = device, config
        self.real, self.storage = numpy_dtype(precision.compute), numpy_dtype(precision.storage)
        #: How products multiply, and those of which both operands have no more digits than the storage format: the
        #: 16-bit formats have no more than TF32, so nothing is lost there.
        self.compute: Compute = "tf32" if precision.name == "tf32" else "ieee"
        self.compute_stored: Compute = "ieee" if precision.name in ("float64", "float32") else "tf32"
        #: Whether the persistent kernels multiply on tensor cores: with no loss in the 16-bit formats.
        self.tensor_cores = precision.name not in ("float64", "float32")
        self.program = device.program(program_source.program(config, precision))
        self._rows = device.program(program_source.rows_program(precision))

    def call(self, **values: Array | int | None) -> Call:
        """A call of the configuration's kernels."""
        call, config = Call(self.device, self.program, "Call"), self.config
        call.put_numbers(program_source.numbers(config), self.real)
        call.put(
            I=config.input_size,
            H=config.hidden_size,
            P=config.output_size,
            R=config.recurrent_size,
            reverse=int(config.reverse),
            **values,
        )
        return call

    def empty(self, *shape: int) -> Array:
        """A new array to compute in."""
        return self.device.empty(shape, self.real)

    def zeros(self, *shape: int) -> Array:
        """A new array of zeros."""
        return self.device.zeros(shape, self.real)

    def widen(self, array: Array, ends: Array | None = None, out: Array | None = None) -> Array:
        """A copy of an array (T, N, W), or of any with `ends` None, to compute with; 0 in padding."""
        array = self.device.array(array)
        wide = self.device.empty(array.shape, self.real) if out is None else out
        self._launch_rows("widen", wide.shape, ends=ends, narrow=array, wide=wide)
        return wide

    def operand(self, array: Array) -> Array:
        """`array` to compute with, itself where it is so already."""
        return array if self.real == self.storage else self.widen(array)

    def narrow(self, array: Array) -> Array:
        """A copy of `array` in the storage format."""
        found = self.device.empty(array.shape, self.storage)
        self._launch_rows("narrow", array.shape, wide_source=array, narrow_target=found)
        return found

    def _launch_rows(self, kernel: str, shape: tuple[int, ...], **arrays: Array | None) -> None:
        steps, rows, width = (1, *_matrix(shape)) if len(shape) < 3 else shape
        if steps * rows * width:
            call = Call(self.device, self._rows, "Rows")
            call.put(T=steps, N=rows, width=width, **arrays)
            call.launch(kernel, steps * rows, width)

    def sums(
        self,
        a: Array,
        b: Array | None = None,
        *,
        width: int,
        ends: Array | None = None,
        b_backwards: bool = False,
    ) -> Array:
        """The sums of ``a b`` over the first two axes of (T, N, .), of `width` columns from the first entry of each.

        `b_backwards`: b goes on with the step before where a goes on with the one after. It begins with its first entry
        of the last step then.
        """
        steps, rows = a.shape[:2]
        call = Call(self.device, self._rows, "Rows")
        call.put(ends=ends, a=a, a_step=_stride(a, 0), a_row=_stride(a, 1))
        if b is not None:
            step = _stride(b, 0)
            call.put(b=b[-1] if b_backwards else b, b_step=-step if b_backwards else step, b_row=_stride(b, 1))
        while True:
            parts = -(-(steps * rows) // _PART)
            found = self.empty(parts, width)
            call.put(T=steps, N=rows, width=width, part=_PART, sums=found)
            call.launch("sum_rows", parts, width)
            if parts == 1:
                return found[0]
            steps, rows = parts, 1
            call = Call(self.device, self._rows, "Rows")
            call.put(a=found, a_step=width, a_row=width)

    def product(
        self, a: Array, b: Array, out: Array, *, turn_b: bool = False, accumulate: bool = False, stored: bool = False
    ) -> None:
        """``out = a b`` for every row of `a` (..., K).

        `turn_b`: of the transposed b. `stored`: both operands were in the storage format.
        """
        compute = self.compute_stored if stored else self.compute
        self.device.product(_rows_of(a), b, _rows_of(out), compute=compute, turn_b=turn_b, accumulate=accumulate)

    def outer(self, a: Array, b: Array) -> Array:
        """The sum of ``a b'`` over all rows of a (..., K) and b (..., L): (K, L)."""
        a, b = _rows_of(a), _rows_of(b)
        found = self.empty(a.shape[1], b.shape[1])
        for first in range(0, len(a), _PRODUCT_ROWS):
            part = slice(first, first + _PRODUCT_ROWS)
            self.device.product(a[part], b[part], found, compute=self.compute, turn_a=True, accumulate=first > 0)
        return found


def cooperate(
    programs: Programs,
    kernel: str,
    calls: Sequence[Call],
    blocks: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
) -> None:
    """Start a kernel that takes a ``struct Directions`` and whose blocks wait for each other.

    Raises
    ------
    RuntimeError
        An earlier such launch gave up.
    """
    device = programs.device
    device.check()
    for call in calls:
        call.put(arrived=device.zeros(blocks[1:2], np.dtype(np.int64)), failed=device.failed.ctypes.data)
    words = np.concatenate([calls[0].words, calls[-1].words])
    programs.program.launch(kernel, blocks, threads, words, shared_bytes=shared_bytes, cooperative=True)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A shape as that of rows."""
    return prod(shape[:-1]), shape[-1]


def _rows_of(array: Array) -> Array:
    return array if array.ndim == 2 else array.reshape(_matrix(array.shape))


def _stride(array: Array, axis: int) -> int:
    return int(array.strides[axis]) // int(array.dtype.itemsize)
