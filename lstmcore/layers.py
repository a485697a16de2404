"""Layers around an LSTM, each with its backward pass: `Linear`, `Embedding`, `Conv1d`, `AttentionPooling`.

They take the shapes and the names of the layers in PyTorch, so a state_dict loads. Time is the first axis, as in the
LSTM: (T, N, C). `Embedding` and `AttentionPooling` compute where their parameters are, on a device too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lstmcore import validation
from lstmcore.arrays import add_by_row, dtype_kind, is_on_host, namespace_of
from lstmcore.attention import AttentionPooling
from lstmcore.layer_base import Array, Layer, LayerGradients
from lstmcore.scalars import flag, integer

__all__ = ["AttentionPooling", "Conv1d", "Embedding", "LayerGradients", "Linear"]


class Linear(Layer):
    """``y = W x + b`` on the last axis: (..., I) to (..., O), as ``torch.nn.Linear``.

    Parameters
    ----------
    input_size, output_size
        I and O.
    bias
        Whether there is b.
    dtype, seed
        As for `Layer`.

    Examples
    --------
    >>> Linear(3, 2, seed=0)(np.ones((7, 4, 3), np.float32)).shape
    (7, 4, 2)
    """

    def __init__(
        self, input_size: int, output_size: int, bias: bool = True, *, dtype: str = "float32", seed: int | None = None
    ) -> None:
        self.input_size, self.output_size = integer("input_size", input_size, 1), integer("output_size", output_size, 1)
        flag("bias", bias)
        shapes = {"weight": (output_size, input_size)} | ({"bias": (output_size,)} if bias else {})
        super().__init__(shapes, input_size, dtype, seed)

    def record(self, x: Array) -> tuple[Array, Array]:
        """Return y, and x as the tape."""
        self._check("x", x, (*np.shape(x)[:-1], self.input_size), "(..., I)")
        y = x @ self._parameters["weight"].T
        if "bias" in self._parameters:
            y += self._parameters["bias"]
        return y, x

    def backward(self, tape: Array, dy: Array) -> LayerGradients:
        """Return the gradients; see `Layer.backward`."""
        self._check("dy", dy, (*tape.shape[:-1], self.output_size), "(..., O)")
        rows = dy.reshape(-1, self.output_size)
        made = {"weight": rows.T @ tape.reshape(-1, self.input_size), "bias": rows.sum(axis=0)}
        return LayerGradients(dy @ self._parameters["weight"], {name: made[name] for name in self.parameter_shapes})


class Embedding(Layer):
    """A row of a table for each whole number: (...) to (..., O), as ``torch.nn.Embedding``.

    Parameters
    ----------
    entries, output_size
        Rows and columns of the table.
    dtype, seed
        As for `Layer`.

    Examples
    --------
    >>> Embedding(10, 4, seed=0)(np.array([[1, 7], [0, 9]])).shape
    (2, 2, 4)
    """

    _on_devices = True

    def __init__(self, entries: int, output_size: int, *, dtype: str = "float32", seed: int | None = None) -> None:
        self.entries, self.output_size = integer("entries", entries, 1), integer("output_size", output_size, 1)
        super().__init__({"weight": (entries, output_size)}, 1, dtype, seed)

    def record(self, x: Array) -> tuple[Array, Array]:
        """Return y, and x as the tape; a number outside the table is a ValueError.

        On a device, where the parameters may be too, numbers outside the table are not looked for: that would wait.
        """
        weight = self._parameters["weight"]
        if not is_on_host(weight):
            xp = namespace_of(parameters=weight, x=x)
            self._check_codes(dtype_kind(x.dtype), x.dtype)
            rows = xp.take(weight, xp.reshape(xp.astype(x, xp.int64, copy=False), (-1,)), axis=0)
            return xp.reshape(rows, (*x.shape, self.output_size)), x
        x = validation.as_array("x", x)
        self._check_codes(x.dtype.kind, x.dtype)
        if x.size and not 0 <= x.min() <= x.max() < self.entries:
            wrong = x.max() if x.max() >= self.entries else x.min()
            raise ValueError(f"x: expected 0 to {self.entries - 1}; got {wrong}")
        return weight[x], x

    @staticmethod
    def _check_codes(kind: str, dtype: Any) -> None:
        if kind not in "iu":
            raise TypeError(f"x: expected whole numbers; got dtype {dtype}")

    def backward(self, tape: Array, dy: Array) -> LayerGradients:
        """Return the gradients; see `Layer.backward`."""
        xp = self._check_place("dy", dy, (*tape.shape, self.output_size), "(..., O)")
        rows = xp.reshape(dy, (-1, self.output_size))
        return LayerGradients(None, {"weight": add_by_row(self.entries, xp.reshape(tape, (-1,)), rows)})


class _ConvTape(NamedTuple):
    """The windows (T' N, K C) of a convolution, and the shape of its input."""

    windows: Array
    shape: tuple[int, int, int]


class Conv1d(Layer):
    """A convolution over time: (T, N, C) to (T', N, O), with the weights of ``torch.nn.Conv1d``.

    ``T' = (T + 2 padding - K) // stride + 1``. The weight is (O, C, K).

    Parameters
    ----------
    input_size, output_size
        C and O.
    kernel_size
        K.
    stride
        Steps from one window to the next.
    padding
        Zeros before the first step and after the last one.
    bias
        Whether a bias is added.
    dtype, seed
        As for `Layer`.

    Examples
    --------
    >>> Conv1d(3, 8, 5, stride=2, padding=2, seed=0)(np.ones((9, 4, 3), np.float32)).shape
    (5, 4, 8)
    """

    def __init__(  # noqa: PLR0913  (a public constructor)
        self,
        input_size: int,
        output_size: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        sizes = (("input_size", input_size, 1), ("output_size", output_size, 1), ("kernel_size", kernel_size, 1))
        checked = [integer(*size) for size in (*sizes, ("stride", stride, 1), ("padding", padding, 0))]
        self.input_size, self.output_size, self.kernel_size, self.stride, self.padding = checked
        flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (output_size, input_size, kernel_size)}
        super().__init__(shapes | ({"bias": (output_size,)} if bias else {}), input_size * kernel_size, dtype, seed)

    def load_parameters(self, parameters: Mapping[str, Array], prefix: str = "") -> None:
        """Set all parameters; see `Layer.load_parameters`."""
        super().load_parameters(parameters, prefix)
        # As (K C, O), so that a call is one product.
        weight = self._parameters["weight"]
        self._matrix = np.ascontiguousarray(weight.transpose(2, 1, 0)).reshape(-1, len(weight))
        self._bias = self._parameters.get("bias")

    def record(self, x: Array) -> tuple[Array, _ConvTape]:
        """Return y and the tape."""
        self._check("x", x, (None, None, self.input_size), "(T, N, C)")
        steps, rows, width = x.shape
        last = steps + 2 * self.padding - self.kernel_size
        if last < 0:
            raise ValueError(f"x: expected T + 2 padding >= kernel_size={self.kernel_size}; got T={steps}")
        if self.padding:
            padded = np.zeros((steps + 2 * self.padding, rows, width), x.dtype)
            padded[self.padding : self.padding + steps] = x
        else:
            padded = np.ascontiguousarray(x)
        step, row, item = padded.strides
        count = last // self.stride + 1
        shape, strides = (count, rows, self.kernel_size, width), (step * self.stride, row, step, item)
        # The constructor takes a tenth of the time of as_strided; the copy makes one product of all windows.
        view: Array = np.ndarray(shape, padded.dtype, padded, strides=strides)
        windows = np.ascontiguousarray(view).reshape(count * rows, -1)
        y = windows @ self._matrix
        if self._bias is not None:
            y += self._bias
        return y.reshape(count, rows, self.output_size), _ConvTape(windows, x.shape)

    def backward(self, tape: _ConvTape, dy: Array) -> LayerGradients:
        """Return the gradients; see `Layer.backward`."""
        steps, rows, width = tape.shape
        count = len(tape.windows) // rows if rows else (steps + 2 * self.padding - self.kernel_size) // self.stride + 1
        self._check("dy", dy, (count, rows, self.output_size), "(T', N, O)")
        flat = dy.reshape(-1, self.output_size)
        by_kernel = (tape.windows.T @ flat).reshape(self.kernel_size, width, self.output_size)
        made = {"weight": np.ascontiguousarray(by_kernel.transpose(2, 1, 0)), "bias": flat.sum(axis=0)}
        dwindows = (flat @ self._matrix.T).reshape(count, rows, self.kernel_size, width)
        padded = np.zeros((steps + 2 * self.padding, rows, width), dy.dtype)
        for k in range(self.kernel_size):
            padded[k : k + self.stride * (count - 1) + 1 : self.stride] += dwindows[:, :, k]
        dx = padded[self.padding : self.padding + steps]
        return LayerGradients(dx, {name: made[name] for name in self.parameter_shapes})
