"""Kernels of every backend, on arrays that lie between pages of memory which nothing may touch."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from fuzz_source import Source

from lstmcore import LSTM
from lstmcore.backend import Backend

_WHOLE: Final[dict[str, Any]] = {"bidirectional": True, "peephole": True, "layer_norm": True}
_OWN: Final[tuple[dict[str, Any], ...]] = ({"num_layers": 2}, _WHOLE, {"hidden_size": 16, "weights": "int8"})
#: Backend -> the LSTMs that are called; sizes divide nothing, or everything.
KINDS: Final[Mapping[str, tuple[dict[str, Any], ...]]] = {
    "reference": ({"num_layers": 2}, {"num_layers": 2, **_WHOLE}),
    "numpy": (*_OWN, {"hidden_size": 8, "proj_size": 4, "num_layers": 2, "dtype": "float64"}),
    "numba": (*_OWN, {"hidden_size": 32, "dtype": "bfloat16"}),
    "cupy": ({"num_layers": 2}, _WHOLE, {"hidden_size": 32, "dtype": "float16"}),
    "torch": ({"num_layers": 2}, {"bidirectional": True, "proj_size": 2}),
    "jax": ({"num_layers": 2}, {"bidirectional": True}),
    "onnxruntime": ({}, {"bidirectional": True, "peephole": True}),
    "openvino": ({}, {"bidirectional": True}),
}
#: Backends of this project, which give the same bits wherever arrays lie.
_SAME_BITS: Final = frozenset(("reference", "numpy", "numba", "cupy"))
#: (T, N) of calls; a backend that compiles for each size has few.
_SIZES: Final = tuple((steps, batch) for steps in range(9) for batch in range(7))
_FEW_SIZES: Final = ((5, 4), (1, 1), (0, 3), (4, 0))


class Guarded:
    """Memory between two pages that nothing may touch: an access beside an array at its end ends the process."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self._map = mmap.mmap(-1, self.size + 2 * page)
        self.view = np.frombuffer(self._map, np.uint8)[page : page + self.size]
        start = self.view.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        for address in (start - page, start + self.size):
            if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def copy(self, array: Any, at_end: bool) -> Any:
        """Return a copy of `array` at one end of the memory."""
        first = self.size - array.nbytes if at_end else 0
        view = self.view[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view


class _Call(NamedTuple):
    """The arrays of a call: x, h, c, dy, and room for y."""

    x: Any
    h: Any
    c: Any
    dy: Any
    out: Any


@functools.cache
def _memory(name: str) -> Guarded:
    return Guarded(1 << 16)


@functools.cache
def _backend(name: str) -> Backend | str:
    if name != "cupy":
        return name
    # The CUDA sources, compiled for this processor.
    sys.path.append(str(Path(__file__).parents[1] / "backends" / "cupy"))
    from emulation import EmulatedDevice
    from lstmcore_cupy.kernel import CupyBackend

    return CupyBackend(EmulatedDevice())


@functools.cache
def _made(name: str, place: int) -> LSTM:
    default = {"hidden_size": 7, "dtype": "float64" if name == "reference" else "float32", "seed": 0}
    return LSTM(3, **(default | KINDS[name][place]), backend=_backend(name))


def warm(backend: str) -> None:
    """Compile what the inputs will run, so that it takes no time of theirs."""
    for place in range(len(KINDS[backend])):
        for content in (b"", b"\x01" * 16):
            kernels(backend, Source(bytes([place]) + content))


def kernels(backend: str, source: Source) -> None:
    """Run a kernel on guarded arrays, and compare with the same call on other ones."""
    place = source.below(len(KINDS[backend]))
    lstm = _made(backend, place)
    steps, batch = source.pick(_FEW_SIZES if backend == "jax" else _SIZES)
    random = np.random.default_rng(source.below(2**31))
    lengths = random.integers(0, steps + 1, batch) if source.below(2) else None
    at_end, loads = bool(source.below(2)), source.below(4) == 1
    plain = _drawn(lstm, steps, batch, random)
    guarded = _Call(*(_memory(f"array {k}").copy(array, at_end) for k, array in enumerate(plain)))
    expected = _results(lstm, plain, lengths)
    if loads:
        lstm.load_parameters(
            {name: _memory(name).copy(array, at_end) for name, array in lstm.parameters.items()}
            if lstm.precision.weights == "same" else lstm.stored_parameters
        )  # fmt: skip
    found = _results(lstm, guarded, lengths)
    for name in ("x", "h", "c", "dy"):
        assert np.array_equal(getattr(plain, name), getattr(guarded, name)), f"{name} was written to"
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if backend in _SAME_BITS:
            assert np.array_equal(one, other)
        else:
            assert np.isfinite(other).all()


def _drawn(lstm: LSTM, steps: int, batch: int, random: np.random.Generator) -> _Call:
    """Return the arrays of a call; no number is 0, NaN or beyond what 16 bits hold."""
    width, layers = lstm.output_width, lstm.stack.num_layers * lstm.stack.num_directions
    sizes = ((steps, batch, 3), (layers, batch, lstm.stack.output_size), (layers, batch, lstm.stack.hidden_size))
    x, h, c, dy = (random.standard_normal(size) for size in (*sizes, (steps, batch, width)))
    storage = lstm.parameters["weight_x_l0"].dtype
    x, h, dy = (array.astype(storage) for array in (x, h, dy))
    return _Call(x, h, c.astype(lstm.precision.compute), dy, np.zeros_like(dy))


def _results(lstm: LSTM, call: _Call, lengths: Any) -> Sequence[Any]:
    """Return what all calls of an LSTM give that its backend declares."""
    state, lstm.step = (call.h, call.c), 0
    y, last = lstm(call.x, state, lengths=lengths, out=call.out)
    found = [np.array(y), *last]
    derivatives = lstm.backend.capabilities().derivatives if lstm.precision.weights == "same" else frozenset()
    if "backward" in derivatives:
        y, last, tape = lstm.record(call.x, state, lengths=lengths)
        gradients = lstm.backward(tape, call.dy, last)
        found += [y, *last, gradients.x, *gradients.parameters.values()]
    if "jvp" in derivatives:
        ty, tstate = lstm.jvp(call.x, call.x, state, lengths=lengths)
        found += [ty, *tstate]
    return found
