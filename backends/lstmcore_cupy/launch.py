"""Launches: the struct that kernels take, and the programs of a configuration on a device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision, numpy_dtype
from lstmcore.stored_weights import SAME, StoredMatrix
from lstmcore_cupy import program_source, tuning
from lstmcore_cupy.device import Array, Compute, Device, Program, Words
from lstmcore_cupy.graphs import Graphs

_WARP: Final = 32
#: Kernel of product.cu -> outputs and rows of a warp there.
_MULTIPLY: Final = {"multiply_row": (16, 1), "multiply_rows": (4, 4)}


class Call:
    """One struct, filled field by field, and launches with it. It keeps a reference to every array in the struct."""

    def __init__(self, device: Device, program: Program, struct: str) -> None:
        self._device, self._program = device, program
        self._places = program_source.fields(struct)
        self._words: Words = np.zeros(len(self._places), np.int64)
        self._arrays: dict[str, Array] = {}
        self._steps: dict[tuple[str, int, int], Callable[[], None]] = {}

    def put(self, **values: Array | int | None) -> None:
        """Set fields: a number, an array by its address, None for no array."""
        for name, value in values.items():
            if isinstance(value, int):
                self._words[self._places[name]] = value
            else:
                self._arrays[name] = value
                self._words[self._places[name]] = 0 if value is None else self._device.address(value)

    def put_numbers(self, values: Mapping[str, float], dtype: np.dtype[Any]) -> None:
        """Set fields of type ``Number``, which have the compute dtype `dtype`."""
        numbers = self._words.view(dtype).reshape(len(self._words), -1)
        for name, value in values.items():
            numbers[self._places[name], 0] = value

    def launch(self, kernel: str, rows: int, width: int, *, whole_rows: bool = False) -> None:
        """Start a kernel that has a block for each of `rows`.

        Parameters
        ----------
        kernel
            Its name.
        rows
            Rows of the grid.
        width
            Columns of each row.
        whole_rows
            Whether one block has all columns of a row, because it sums over them.
        """
        self._program.launch(kernel, *_grid(rows, width, whole_rows=whole_rows), self._words)

    def step(self, s: int, kernel: str, rows: int, width: int, *, whole_rows: bool = False) -> None:
        """Start a kernel for step `s`; see `launch`."""
        self._words[self._places["s"]] = s
        start = self._steps.get((kernel, rows, width))
        if start is None:
            start = self._program.bind(kernel, *_grid(rows, width, whole_rows=whole_rows), self._words)
            self._steps[kernel, rows, width] = start
        start()

    def launch_over(self, kernel: str, items: Words, most: int, blocks: tuple[int, int]) -> None:
        """Start a kernel whose argument has a list of items after this struct.

        Parameters
        ----------
        kernel
            Its name.
        items
            A row of words for each item, at most `most` rows.
        most
            The length of the list in the source.
        blocks
            The grid.
        """
        struct = np.zeros(len(self._words) + most * items.shape[1], np.int64)
        struct[: len(self._words)] = self._words
        struct[len(self._words) : len(self._words) + items.size] = items.reshape(-1)
        self._program.launch(kernel, blocks, tuning.MAX_THREADS, struct)

    @property
    def words(self) -> Words:
        """The struct with its current fields."""
        return self._words


class Programs:
    """The kernels of a configuration and a precision on a device, and operations on rows and matrices.

    Attributes
    ----------
    real, storage
        The compute dtype, and the dtype of x, y, h and parameters.
    compute, compute_stored
        The arithmetic of matrix products, and of those of which both operands have no more digits than `storage`.
        The 16-bit formats have no more digits than TF32, so TF32 loses nothing there.
    tensor_cores
        Whether the persistent kernels multiply on tensor cores. With the 16-bit formats that loses nothing.
    graphs
        The CUDA graphs of loops over time; None if loops start each launch themselves.
    rows
        The kernels of ``rows.cu``.
    """

    def __init__(self, device: Device, config: LSTMConfig, precision: Precision, graphs: Graphs | None = None) -> None:
        self.device, self.config, self.graphs = device, config, graphs
        self.real, self.storage = numpy_dtype(precision.compute), numpy_dtype(precision.storage)
        self.compute: Compute = "tf32" if precision.name == "tf32" else "ieee"
        self.compute_stored: Compute = "ieee" if precision.name in ("float64", "float32") else "tf32"
        self.tensor_cores = precision.name not in ("float64", "float32")
        self.program = device.program(program_source.program(config, precision))
        self.rows = device.program(program_source.rows_program(precision))
        stored = precision.weights != SAME
        self._product = device.program(program_source.product_program(precision)) if stored else None

    def call(self, **values: Array | int | None) -> Call:
        """Return a call of the kernels of the configuration; `values` are further fields."""
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

    def run_loop(self, work: Callable[[], None], key: Callable[[], Hashable]) -> None:
        """Run a loop over time, which starts launches and products alone, by itself or as a CUDA graph.

        Parameters
        ----------
        work
            The loop.
        key
            Returns all that its launches and products depend on, but for the configuration.
        """
        if self.graphs is None:
            work()
        else:
            self.graphs.run(self.device, key(), work)

    def empty(self, *shape: int) -> Array:
        """Return an uninitialised array in the compute dtype."""
        return self.device.empty(shape, self.real)

    def zeros(self, *shape: int) -> Array:
        """Return an array of zeros in the compute dtype."""
        return self.device.zeros(shape, self.real)

    def widen(self, array: Array, ends: Array | None = None, out: Array | None = None) -> Array:
        """Return a copy of `array` in the compute dtype, with 0 in padding.

        `array` is (T, N, W), or has any shape if `ends` is None. `out` takes the result instead of a fresh array.
        """
        array = self.device.array(array)
        wide = self.device.empty(array.shape, self.real) if out is None else out
        self._launch_rows("widen", wide.shape, ends=ends, narrow=array, wide=wide)
        return wide

    def operand(self, array: Array) -> Array:
        """Return `array` in the compute dtype; itself if it has that dtype."""
        return array if self.real == self.storage else self.widen(array)

    def narrow(self, array: Array) -> Array:
        """Return `array` in the storage dtype; itself if it has that dtype, so it must not be anybody else's."""
        if self.real == self.storage:
            return array
        result = self.device.empty(array.shape, self.storage)
        self._launch_rows("narrow", array.shape, wide_source=array, narrow_target=result)
        return result

    def _launch_rows(self, kernel: str, shape: tuple[int, ...], **arrays: Array | None) -> None:
        """Start a kernel of ``rows.cu`` on arrays of a shape, unless they are empty."""
        steps, rows, width = (1, *_matrix(shape)) if len(shape) < 3 else shape
        if steps * rows * width:
            call = Call(self.device, self.rows, "Rows")
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
        """Return the sums (width,) of ``a b`` over steps and rows.

        Parameters
        ----------
        a, b
            (T, N, .); without `b` the sums are those of `a`.
        width
            Columns, counted from the first entry of each array.
        ends
            (N,), lengths; later steps are not read. None for all steps.
        b_backwards
            Whether the steps of `b` are taken in reverse order.
        """
        steps, rows = a.shape[:2]
        call = Call(self.device, self.rows, "Rows")
        call.put(ends=ends, a=a, a_step=_stride(a, 0), a_row=_stride(a, 1))
        if b is not None:
            step = _stride(b, 0)
            call.put(b=b[-1] if b_backwards else b, b_step=-step if b_backwards else step, b_row=_stride(b, 1))
        while True:
            parts = -(-(steps * rows) // tuning.SUM_ROWS)
            sums = self.empty(parts, width)
            call.put(T=steps, N=rows, width=width, part=tuning.SUM_ROWS, sums=sums)
            call.launch("sum_rows", parts, width)
            if parts == 1:
                return sums[0]
            steps, rows = parts, 1
            call = Call(self.device, self.rows, "Rows")
            call.put(a=sums, a_step=width, a_row=width)

    def matmul(
        self,
        a: Array,
        b: Array | StoredMatrix,
        out: Array,
        *,
        transpose_b: bool = False,
        accumulate: bool = False,
        stored: bool = False,
    ) -> None:
        """Write ``a b`` into `out`.

        Parameters
        ----------
        a, out
            (..., K) and (..., L).
        b
            (K, L). With `transpose_b` it may be a `StoredMatrix` with arrays of the device.
        transpose_b
            Whether `b` is (L, K) and is transposed.
        accumulate
            Whether the product is added to `out`.
        stored
            Whether the values of both operands were in the storage dtype.
        """
        if isinstance(b, StoredMatrix):
            self._multiply_stored(_rows_of(a), b, _rows_of(out), accumulate=accumulate)
            return
        compute, transpose = self.compute_stored if stored else self.compute, (False, transpose_b)
        self.device.matmul(_rows_of(a), b, _rows_of(out), compute=compute, transpose=transpose, accumulate=accumulate)

    def _multiply_stored(self, a: Array, b: StoredMatrix, out: Array, *, accumulate: bool) -> None:
        """Write ``a b'`` into `out`: b is read as it is stored, and widened in registers."""
        if self._product is None:
            raise RuntimeError("a stored matrix in programs of a precision whose weights are stored as they are")
        rows, outputs = out.shape
        call = Call(self.device, self._product, "Product")
        call.put(rows=rows, outputs=outputs, depth=a.shape[1], accumulate=int(accumulate))
        call.put(a=a, weight=b.values, scale=b.scale, out=out)
        kernel = "multiply_row" if rows == 1 else "multiply_rows"
        each_outputs, each_rows = _MULTIPLY[kernel]
        call.launch(kernel, -(-rows // each_rows), -(-outputs // each_outputs) * _WARP)

    def outer(self, a: Array, b: Array, *, stored: bool = False) -> Array:
        """Return the sum (K, L) of ``a b'`` over all rows of a (..., K) and b (..., L).

        `stored` says whether the values of `b` were in the storage dtype.
        """
        a, b = _rows_of(a), _rows_of(b)
        result, begun = self.empty(a.shape[1], b.shape[1]), False
        for first in range(0, len(a), tuning.MATMUL_ROWS):
            part = slice(first, first + tuning.MATMUL_ROWS)
            terms, compute = self._terms(a[part], stored)
            for term in terms:
                self.device.matmul(term, b[part], result, compute=compute, transpose=(True, False), accumulate=begun)
                begun = True
        return result

    def matmul_by_rows(self, a: Array, b: Array) -> Array:
        """Return ``a b`` (..., L), of a (..., K) and b (K, L) whose values were in the storage dtype."""
        result = self.empty(*a.shape[:-1], b.shape[1])
        rows, out = _rows_of(a), _rows_of(result)
        size = len(rows) if self.compute == self.compute_stored else tuning.MATMUL_ROWS  # halves take memory
        for first in range(0, len(rows), max(1, size)):
            part = slice(first, first + size)
            terms, compute = self._terms(rows[part], True)
            for number, term in enumerate(terms):
                self.device.matmul(term, b, out[part], compute=compute, accumulate=number > 0)
        return result

    def _terms(self, a: Array, stored: bool) -> tuple[tuple[Array, ...], Compute]:
        """Return matrices whose sum is `a`, and the arithmetic of their products with a second operand.

        Tensor cores are several times faster in TF32 than in float32. A second operand of the 16-bit formats is exact
        there, so two products, of the upper and the lower half of `a`, lose 2^-22 of it at most.
        """
        if not stored or self.compute == self.compute_stored:
            return (a,), self.compute
        upper, lower = (self.empty(*a.shape) for _ in range(2))
        self._launch_rows("split_rows", a.shape, wide_source=a, upper=upper, lower=lower)
        return (upper, lower), self.compute_stored


def cooperate(
    programs: Programs,
    kernel: str,
    calls: Sequence[Call],
    blocks: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
) -> None:
    """Start a kernel that takes a ``struct Directions`` and whose blocks wait for each other.

    Parameters
    ----------
    programs
        Those of the configuration.
    kernel
        Its name.
    calls
        One for each direction.
    blocks, threads
        The grid, and the threads of a block.
    shared_bytes
        Dynamic shared memory of each block.

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


def _grid(rows: int, width: int, *, whole_rows: bool) -> tuple[tuple[int, int], int]:
    """Return the blocks and the threads of each; see `Call.launch`."""
    threads = min(tuning.MAX_THREADS, -(-width // _WARP) * _WARP)
    return (rows, 1 if whole_rows else -(-width // threads)), threads


def blocks_for(size: int) -> int:
    """Return how many blocks share an array of a list; a thread has every so many-th number of it."""
    return max(1, min(tuning.ARRAY_BLOCKS, -(-size // tuning.MAX_THREADS)))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a matrix with the rows of an array of that shape."""
    return prod(shape[:-1]), shape[-1]


def _rows_of(array: Array) -> Array:
    return array if array.ndim == 2 else array.reshape(_matrix(array.shape))


def _stride(array: Array, axis: int) -> int:
    return int(array.strides[axis]) // int(array.dtype.itemsize)
