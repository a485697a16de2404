"""A kernel in C behind ctypes, for the conformance suite: ``lstmcore conform c_kernel:CBackend`` in this folder."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Backend, Capabilities, Kernel, Masks, Receipt, State
from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision

Array = npt.NDArray[np.float32]
_PARAMETERS = ("weight_x", "weight_h", "bias")


def _pointer(array: Array) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


class CKernel(Kernel):
    """One layer in one direction: every call goes to ``lstm_forward`` of kernel.c."""

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision, library: ctypes.CDLL) -> None:
        super().__init__(backend, config, precision)
        self._call = library.lstm_forward

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        return Receipt("c", "cpu", self.precision.name, "one loop in C", "the only path")

    def _pack(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        shapes = self.config.parameter_shapes
        missing = {
            name: np.zeros(4 * self.config.hidden_size, np.float32) for name in _PARAMETERS if name not in shapes
        }
        return {**missing, **{name: np.array(parameters[name], order="C") for name in shapes}}

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
        self,
        weights: dict[str, Array],
        x: Array,
        state: State | None,
        lengths: None,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, None]:
        (steps, batch, width), hidden = x.shape, self.config.hidden_size
        zeros = np.zeros((batch, hidden), np.float32)
        h, c = (np.array(part, order="C") for part in (state or (zeros, zeros)))
        y, z = np.empty((steps, batch, hidden), np.float32), np.empty(4 * hidden, np.float32)
        sizes = map(ctypes.c_size_t, (steps, batch, width, hidden))
        arrays = (np.ascontiguousarray(x), *(weights[name] for name in _PARAMETERS), h, c, y, z)
        self._call(*sizes, *map(_pointer, arrays))
        if out is not None:
            out[...] = y
            y = out
        return y, State(h, c), None


class CBackend(Backend):
    """What kernel.c computes: float32, forward, the plain LSTM."""

    name = "c"

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(Path(__file__).with_name("kernel.so")))

    def capabilities(self) -> Capabilities:
        """Return what the kernel has; declare more, and more is tested."""
        return Capabilities("cpu", frozenset({"float32"}), features=frozenset(), derivatives=frozenset())

    def _compile(self, config: LSTMConfig, precision: Precision) -> CKernel:
        return CKernel(self, config, precision, self._library)
