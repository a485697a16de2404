"""The kernels' own source on the processor, started by the code that starts them on a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lstmcore_cupy.device import Array, Compute, Device, Program, Words

Order = Literal["ascending", "descending", "mixed"]

_HEADER = Path(__file__).parent / "cuda.h"
#: Without optimisation, since most of the time goes into compiling.
_FLAGS = ("-std=c++17", "-O0", "-fPIC", "-shared", "-ffp-contract=off", "-w")
_SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class EmulatedProgram(Program):
    """A source, compiled as a shared library for the processor.

    `launches` has the names of the kernels that ran, in order.
    """

    def __init__(
        self, library: Path, order: Order, seed: int | None, *, fibres: bool, launched: Callable[[str], None]
    ) -> None:
        self._library, self._order, self._fibres = ctypes.CDLL(str(library)), order, fibres
        self._seed = -1 if seed is None else seed
        self.launches: list[str] = []
        self._launched = launched

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
        resident = self.resident_blocks(kernel, threads, shared_bytes)
        if shared_bytes > EmulatedDevice.shared_bytes or (cooperative and np.prod(blocks) > resident):
            raise ValueError(f"blocks: expected at most {resident}, which the device holds at once; got {blocks}")
        if not 1 <= threads <= 1024 or min(blocks) < 1 or blocks[0] >= 2**31 or max((1, *blocks[1:])) >= 2**16:
            raise ValueError(f"no GPU starts {blocks} blocks of {threads} threads")
        grid = np.array((*blocks, 1, 1)[:3], np.int64)
        order = np.arange(threads, dtype=np.int32)
        if self._order == "descending":
            order = order[::-1].copy()
        elif self._order == "mixed":
            np.random.default_rng(threads).shuffle(order)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (words, grid)]
        backwards, fibres = int(self._order != "ascending"), int(self._fibres or cooperative)
        run = getattr(self._library, kernel)
        options = (backwards, fibres, ctypes.c_long(shared_bytes), int(cooperative), ctypes.c_long(self._seed))
        self.launches.append(kernel)
        self._launched(kernel)
        run(*pointers, threads, ctypes.c_void_p(order.ctypes.data), *options)

    def resident_blocks(self, kernel: str, threads: int, shared_bytes: int = 0) -> int:
        return EmulatedDevice.multiprocessors


class EmulatedDevice(Device):
    """A device whose arrays are NumPy's. An uninitialised array is full of NaN.

    Parameters
    ----------
    order
        The order of the threads of a block. Unless it is ascending, blocks run last to first.
    seed
        Seed of the turns of the blocks of a cooperative launch. With None each block runs until it waits for others.
    sanitize
        Whether to compile with AddressSanitizer and UndefinedBehaviorSanitizer, which must be loaded already.
    edit
        Applied to every source before it is compiled.
    launched
        Is told the name of each kernel that runs.
    """

    name = model = "emulated"
    multiprocessors = 4
    shared_bytes = 227 << 10

    def __init__(
        self,
        order: Order = "ascending",
        seed: int | None = None,
        *,
        sanitize: bool = False,
        edit: Callable[[str], str] | None = None,
        launched: Callable[[str], None] = lambda kernel: None,
    ) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"seed: expected 0 or more; got {seed}")
        self._order: Order = order
        self._seed = seed
        self._flags = (*_FLAGS, *(_SANITIZED if sanitize else ()))
        self._edit, self._launched = edit, launched
        self.failed = np.zeros(1, np.int64)
        self._programs: dict[str, EmulatedProgram] = {}
        self._lock = threading.Lock()

    def active(self) -> AbstractContextManager[object]:
        return nullcontext()

    def started(self) -> Callable[[], None]:
        return lambda: None

    def program(self, text: str) -> EmulatedProgram:
        with self._lock:
            if text not in self._programs:
                # Outside cooperative launches only sums and products have barriers and shuffles.
                fibres = any(f"#define {macro}" in text for macro in ("LAYER_NORM 1\n", "WEIGHTS ", "UPDATES "))
                library = self._build(text)
                self._programs[text] = EmulatedProgram(
                    library, self._order, self._seed, fibres=fibres, launched=self._launched
                )
            return self._programs[text]

    def prepare(self, texts: Iterable[str]) -> None:
        """Compile programs, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._build, texts))

    def _build(self, text: str) -> Path:
        """Return the library of a source, compiled or from an earlier run."""
        source = f'#include "{_HEADER}"\n' + (text if self._edit is None else self._edit(text))
        key = hashlib.sha256(repr((source, _HEADER.read_text("utf-8"), self._flags)).encode()).hexdigest()
        folder = Path(tempfile.gettempdir()) / f"lstmcore-emulation-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        library = folder / f"{key}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as name:
                compiled = Path(name) / "kernels.so"
                command = ("g++", *self._flags, "-x", "c++", "-", "-o", str(compiled))
                done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"g++ refuses the kernels: {done.stderr}")
                compiled.replace(library)
        return library

    def home(self, array: Array) -> Device:
        return self

    def locate(self, array: Array) -> tuple[str, Array] | None:
        return None  # its arrays are NumPy's

    def array(self, array: Array) -> Array:
        return np.require(array, requirements=("C", "A"))

    def host(self, array: Array) -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = array
        return result

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.zeros(shape, dtype)

    def clear(self, array: Array) -> None:
        array[...] = 0

    def assign(self, target: Array, source: Array) -> None:
        target[...] = source

    def writable(self, array: Array | None) -> bool:
        return isinstance(array, np.ndarray) and array.flags.carray

    def address(self, array: Array) -> int:
        return int(array.ctypes.data)

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
        if not all(matrix.ndim == 2 and matrix.flags.carray for matrix in (a, b, out)):
            raise ValueError("matmul takes matrices in row-major order")
        if compute == "tf32":
            a, b = tf32(a), tf32(b)
        a, b = (matrix.T if transposed else matrix for matrix, transposed in zip((a, b), transpose, strict=True))
        product = a @ b
        out[...] = out + product if accumulate else product


def tf32(array: Array) -> Array:
    """Return numbers of float32, rounded to the nearest of TF32, ties to even."""
    bits = array.view(np.uint32)
    rounded = bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(array), rounded.view(np.float32), array)
