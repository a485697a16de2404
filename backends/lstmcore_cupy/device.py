"""Interface of what runs the kernels: arrays, compiled programs and matrix products, on a GPU or an emulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lstmcore.uploads import Uploader

Array = Any
Words = npt.NDArray[np.int64]

#: Arithmetic of a matrix product: that of the operands, or float32 operands rounded to TF32. Sums are at least float32.
Compute = Literal["ieee", "tf32"]


class Program(ABC):
    """Compiled kernels. Each takes one ``struct`` by value, whose fields all have 8 bytes."""

    @abstractmethod
    def launch(
        self,
        kernel: str,
        blocks: tuple[int, ...],
        threads: int,
        words: Words,
        *,
        shared_bytes: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Start a kernel on the current stream.

        Parameters
        ----------
        kernel
            Its name.
        blocks
            The grid, one to three numbers, all at least 1.
        threads
            Threads of each block.
        words
            The struct, copied before this returns.
        shared_bytes
            Dynamic shared memory of each block.
        cooperative
            Whether all blocks have to be resident at once.
        """

    def bind(self, kernel: str, blocks: tuple[int, ...], threads: int, words: Words) -> Callable[[], None]:
        """Return a function that starts a kernel of a step with what `words` contains by then; see `launch`.

        A loop over time calls it, so that all that stays the same is found out once.
        """
        return partial(self.launch, kernel, blocks, threads, words)

    @abstractmethod
    def resident_blocks(self, kernel: str, threads: int, shared_bytes: int = 0) -> int:
        """Return how many blocks of a kernel the whole device holds at once."""


class Device(ABC):
    """A device. Its arrays have ``shape``, ``dtype``, ``reshape``, ``view``, ``copy`` and slices as NumPy's have.

    Attributes
    ----------
    name
        The device in receipts.
    model
        The maker's name of the hardware. A measurement on one device holds for all with that name.
    multiprocessors
        Their number.
    shared_bytes
        The most dynamic shared memory of a block.
    failed
        One number in host memory that kernels write. It is not 0 if blocks gave up waiting for each other.
    """

    name: str
    model: str
    multiprocessors: int
    shared_bytes: int
    failed: Words

    @abstractmethod
    def active(self) -> AbstractContextManager[object]:
        """Return a context in which arrays are made and kernels run on this device."""

    @abstractmethod
    def started(self) -> Callable[[], None]:
        """Return a function that lets the then current stream wait for what the current one was given so far."""

    @abstractmethod
    def program(self, text: str) -> Program:
        """Return the kernels of a source; each source is compiled once."""

    @abstractmethod
    def home(self, array: Array) -> Device:
        """Return the device that holds `array`; this one for arrays of the host."""

    @abstractmethod
    def locate(self, array: Array) -> tuple[str, Array] | None:
        """Return the name of the device that holds `array`, and it as that device's; None for arrays of the host."""

    @abstractmethod
    def array(self, array: Array) -> Array:
        """Return `array` on this device, in row-major order and aligned. It is copied only if it has to be."""

    @abstractmethod
    def host(self, array: Array) -> npt.NDArray[Any]:
        """Return `array` as a NumPy array. A NumPy array is returned itself."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an uninitialised array."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of zeros."""

    @abstractmethod
    def clear(self, array: Array) -> None:
        """Set all entries of an array of this device, in row-major order, to zero."""

    @abstractmethod
    def assign(self, target: Array, source: Array) -> None:
        """Copy `source` into `target`, which is on this device or on the host and may have any strides."""

    @abstractmethod
    def writable(self, array: Array | None) -> bool:
        """Return whether kernels can write to `array` as it is: on this device, in row-major order, aligned."""

    @abstractmethod
    def address(self, array: Array) -> int:
        """Return the address of the first entry of `array`."""

    @abstractmethod
    def matmul(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: Compute,
        transpose: tuple[bool, bool] = (False, False),
        accumulate: bool = False,
    ) -> None:
        """Write the product of two matrices into a third one.

        Parameters
        ----------
        a, b, out
            Matrices of one dtype in row-major order.
        compute
            The arithmetic.
        transpose
            Whether `a` and whether `b` are transposed.
        accumulate
            Whether the product is added to `out`.
        """

    def on_stream(self, number: int, address: int) -> AbstractContextManager[object]:
        """Return a context in which a stream of a GPU, given by its address, is the current one."""
        return nullcontext()

    def stream(self) -> int:
        """Return the address of the current stream."""
        return 0

    def uploader(self) -> Uploader:
        """Return what copies the batches of a training to this device."""
        return Uploader(self.array)

    def rehearse(self, work: Callable[[], None]) -> None:
        """Run work as `capture` would record it, so that all that it loads is there, with the same products."""
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that starts all launches and products of `work` on the then current stream.

        They are recorded and do not run yet. `work` was rehearsed; it makes no arrays and copies nothing.

        Raises
        ------
        RuntimeError
            This device records nothing.
        """
        raise RuntimeError(f"{self.name}: records no launches")

    def versions(self) -> dict[str, str]:
        """Return library -> version, for reports."""
        return {}

    def check(self) -> None:
        """Raise an error if a launch that has run by now gave up, once for it. Does not wait.

        Raises
        ------
        RuntimeError
            The blocks of a persistent kernel waited too long for each other.
        """
        if self.failed[0]:
            self.failed[0] = 0
            raise RuntimeError(
                f"{self.name}: the blocks of a persistent kernel waited too long for each other, and what it computed "
                "is NaN; run without it: CupyBackend(device, persistent=False)"
            )
