"""PyTorch's LSTM, the function that ``torch.nn.LSTM`` calls, behind the contract of a kernel.

PyTorch computes. This module reverses rows, packs sequences that end early and asks autograd for gradients.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from lstmcore.backend import Array, Backend, Capabilities, Gradients, Kernel, Masks, Receipt, State
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import Precision

#: Our names in the order of PyTorch's weights. Its second bias, which it adds to the first, is 0.
_ORDER: Final = ("weight_x", "weight_h", "bias", "weight_proj")
_HAS: Final = frozenset({"no_bias", "proj_size", "reverse", "lengths"})

_WARNING: Final = "LSTM with projections is not supported with oneDNN"
_warned = threading.Lock()
_has_warned = False


@dataclass(frozen=True, slots=True)
class Packed:
    """The order of a packed sequence: its steps one after another, the longest row first.

    Attributes
    ----------
    rows
        The rows that have steps, longest first.
    sizes
        The number of rows of each step, as PyTorch takes it.
    index
        For every packed entry its index in an array (T N, ...).
    """

    rows: npt.NDArray[np.int64]
    sizes: torch.Tensor
    index: npt.NDArray[np.int64]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64], *, reverse: bool) -> Packed:
        """Return the order for rows of these lengths; a reversed row starts at its last step."""
        order = np.argsort(-lengths, kind="stable")
        rows = order[lengths[order] > 0]
        ends = lengths[rows]
        step, place = np.nonzero(np.arange(ends.max(initial=0))[:, None] < ends)
        time = ends[place] - 1 - step if reverse else step
        return cls(rows, torch.from_numpy(np.bincount(step)), time * len(lengths) + rows[place])


@dataclass(frozen=True, slots=True)
class Saved:
    """The tape: T, N, and PyTorch's inputs and outputs. `graph` is None if no row had a step."""

    steps: int
    batch: int
    packed: Packed | None
    graph: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]] | None


class TorchKernel(Kernel):
    """One layer in one direction. Every call makes its own tensors, so calls may run in parallel."""

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.dtype = np.dtype(precision.storage)
        self.names = tuple(name for name in _ORDER if name in config.parameter_shapes)
        if config.proj_size and self.dtype == np.float32:
            _swallow_warning()

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        composed = "one direction of one layer a call; layers and directions are put together by lstmcore"
        path, reason, fallback = "ATen", "", None
        if self.dtype != np.float32:
            reason = "PyTorch gives oneDNN no float64"
        elif self.config.proj_size:
            reason = "PyTorch gives oneDNN no projection"
        elif not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:  # type: ignore[no-untyped-call,unused-ignore]  # PyTorch gives it no type
            reason, fallback = "oneDNN is off", "oneDNN, which is faster, is off"
        else:
            path, reason = "oneDNN", "PyTorch takes it for float32; with lengths, which make a packed sequence, ATen"
        return Receipt(self.backend.name, "cpu", self.precision.name, path, f"{reason}; {composed}", fallback)

    def _pack(self, parameters: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
        with _plain():
            return tuple(
                torch.from_numpy(np.array(parameters[name], order="C")).requires_grad_() for name in self.names
            )

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
        self,
        weights: tuple[torch.Tensor, ...],
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Saved | None]:
        count, batch, width = x.shape
        packed = None if lengths is None else Packed.of(lengths, reverse=self.config.reverse)
        last = self._state(batch) if state is None else State(np.array(state[0]), np.array(state[1]))
        y = np.zeros((count, batch, self.config.output_size), self.dtype) if out is None else out
        if not count or not batch or (packed is not None and not len(packed.rows)):
            y[...] = 0
            return y, last, Saved(count, batch, packed, None) if record else None
        arrays = (self._packed(x, packed), *(_rows_of(part, packed)[None] for part in last))
        with _plain(), torch.set_grad_enabled(record):
            inputs = tuple(torch.from_numpy(_readable(part, copy=record)).requires_grad_(record) for part in arrays)
            outputs = self._call(weights, inputs, packed)
            y_packed, h, c = (output.detach().numpy() for output in outputs)
            graph = ((*inputs, *weights), outputs) if record else None
        self._unpack(y, y_packed, packed)
        rows = slice(None) if packed is None else packed.rows
        last.h[rows], last.c[rows] = h[0], c[0]
        return y, last, Saved(count, batch, packed, graph) if record else None

    def _call(
        self, weights: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...], packed: Packed | None
    ) -> tuple[torch.Tensor, ...]:
        """Run PyTorch's LSTM and return y, h and c."""
        x, h, c = inputs
        tensors = list(weights)
        if self.config.bias:
            tensors.insert(3, torch.zeros_like(weights[2], requires_grad=False))
        options = (self.config.bias, 1, 0.0, torch.is_grad_enabled(), False)  # layers, dropout, training, directions
        outputs: tuple[torch.Tensor, ...]
        if packed is None:
            outputs = torch._VF.lstm(x, (h, c), tensors, *options, False)  # the batch is not the first axis
        else:
            outputs = torch._VF.lstm(x, packed.sizes, (h, c), tensors, *options)
        return outputs

    def _backward(
        self, weights: tuple[torch.Tensor, ...], saved: Saved, dy: Array | None, dstate: State | None
    ) -> Gradients:
        count, batch, packed = saved.steps, saved.batch, saved.packed
        dx = np.zeros((count, batch, self.config.input_size), self.dtype)
        state = self._state(batch) if dstate is None else State(np.array(dstate[0]), np.array(dstate[1]))
        shapes = self.config.parameter_shapes
        if saved.graph is None or (dy is None and dstate is None):
            return Gradients(dx, state, {name: np.zeros(shape, self.dtype) for name, shape in shapes.items()})
        inputs, outputs = saved.graph
        cotangents: list[Array | None] = [None if dy is None else self._packed(dy, packed)]
        cotangents += [None if dstate is None else _rows_of(part, packed)[None] for part in state]
        with _plain():
            pairs = [
                (output, torch.from_numpy(_readable(cotangent)))
                for output, cotangent in zip(outputs, cotangents, strict=True)
                if cotangent is not None
            ]
            gradients = torch.autograd.grad(
                [output for output, _ in pairs],
                inputs,
                [cotangent for _, cotangent in pairs],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        x, h, c, *parameters = (tensor.detach().numpy() for tensor in gradients)
        self._unpack(dx, x, packed)
        rows = slice(None) if packed is None else packed.rows
        state.h[rows], state.c[rows] = h[0], c[0]
        copies = {name: np.array(value) for name, value in zip(self.names, parameters, strict=True)}
        return Gradients(dx, state, {name: copies[name] for name in shapes})

    def _state(self, batch: int) -> State:
        """Return a state of zeros."""
        return State(
            *(np.zeros((batch, width), self.dtype) for width in (self.config.output_size, self.config.hidden_size))
        )

    def _packed(self, array: Array, packed: Packed | None) -> Array:
        """Return an array (T, N, ...) in PyTorch's order of rows."""
        if packed is not None:
            return array.reshape(-1, array.shape[2])[packed.index]
        return array[::-1] if self.config.reverse else array

    def _unpack(self, target: Array, source: Array, packed: Packed | None) -> None:
        """Write `source`, in the order of `_packed`, to `target` (T, N, ...), with 0 in padding."""
        if packed is None:
            target[...] = source[::-1] if self.config.reverse else source
            return
        count, batch, width = target.shape
        flat = (
            target.reshape(count * batch, width)
            if target.flags.c_contiguous
            else np.empty((count * batch, width), target.dtype)
        )
        flat[...] = 0
        flat[packed.index] = source
        if flat.base is not target:
            target[...] = flat.reshape(target.shape)


class TorchBackend(Backend):
    """The features of PyTorch's LSTM: bias, projection, lengths, gradients."""

    name = "torch"

    def capabilities(self) -> Capabilities:
        """Return the features above, in float64 and float32."""
        none = "PyTorch's LSTM has none"
        fixed = "PyTorch's LSTM has its sigmoid and its two tanh in fixed places"
        half = "PyTorch returns c in the dtype of x; the contract keeps it in float32"
        reasons = {name: fixed if name.startswith("activation:") else none for name in FEATURES - _HAS}
        reasons |= {"bfloat16": half, "float16": half, "tf32": "PyTorch is not asked for it here"}
        reasons |= {"jvp": "PyTorch has no forward derivative of the LSTM of oneDNN"}
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32"}),
            features=_HAS,
            derivatives=frozenset({"backward"}),
            reasons=reasons,
        )

    def versions(self) -> dict[str, str]:
        """Return the version of PyTorch."""
        return {"torch": str(torch.__version__)}

    def _compile(self, config: LSTMConfig, precision: Precision) -> TorchKernel:
        return TorchKernel(self, config, precision)


def _rows_of(array: Array, packed: Packed | None) -> Array:
    """Return the rows of (N, ...) that have steps, in PyTorch's order."""
    return array if packed is None else array[packed.rows]


def _readable(array: Array, *, copy: bool = False) -> Array:
    """Return `array` writable and without negative strides, as PyTorch reads it; a copy if needed, or if `copy`."""
    if copy or any(stride < 0 for stride in array.strides):  # NumPy calls an axis of one entry contiguous all the same
        return np.array(array, order="C")
    return np.require(array, requirements=("C", "A", "W"))


@contextmanager
def _plain() -> Iterator[None]:
    """Return a context without inference mode and autocast, which the caller may have switched on for the thread."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield


def _swallow_warning() -> None:
    """Swallow a warning that PyTorch gives once a process: projections do not go to oneDNN. The receipt says it.

    This runs once, because all threads share the filters of warnings.
    """
    global _has_warned
    with _warned, warnings.catch_warnings():
        if _has_warned:
            return
        warnings.filterwarnings("ignore", _WARNING, UserWarning)
        shapes = ((1, 1, 1), (1, 1, 1), (1, 1, 2), (8, 1), (8, 1), (1, 2))
        x, h, c, *weights = (torch.from_numpy(np.zeros(shape, np.float32)) for shape in shapes)
        with torch.no_grad():
            torch._VF.lstm(x, (h, c), weights, False, 1, 0.0, False, False, False)
        _has_warned = True
