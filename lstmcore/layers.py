"""Layers around an LSTM, each with its backward pass: `Linear`, `Embedding`, `Conv1d`, `AttentionPooling`.

They take the shapes and the names of the layers in PyTorch, so a state_dict loads. Time is the first axis, as in the
LSTM: (T, N, C).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import validation
from lstmcore.precision import get_precision
from lstmcore.scalars import flag, integer

__all__ = ["AttentionPooling", "Conv1d", "Embedding", "LayerGradients", "Linear"]

Array: TypeAlias = npt.NDArray[Any]


class LayerGradients(NamedTuple):
    """Gradients of the input (None if it is no real number), of the parameters by name, and of queries (if any).

    Examples
    --------
    >>> linear = Linear(3, 2, seed=0)
    >>> y, tape = linear.record(np.ones((4, 3), np.float32))
    >>> linear.backward(tape, np.ones_like(y)).parameters["bias"]
    array([4., 4.], dtype=float32)
    """

    x: Array | None
    parameters: dict[str, Array]
    queries: Array | None = None


class Layer(ABC):
    """A layer with parameters.

    Parameters
    ----------
    shapes
        Parameter name -> shape.
    fan_in
        Initial numbers are uniform in ``+-1 / sqrt(fan_in)``.
    dtype
        ``"float32"`` or ``"float64"``.
    seed
        Of the initial numbers; None draws one from the operating system.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], fan_in: int, dtype: str, seed: int | None) -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected 'float32' or 'float64'; got {dtype!r}")
        self.dtype, self.parameter_shapes = dtype, dict(shapes)
        random, bound = np.random.default_rng(seed), fan_in**-0.5
        self.load_parameters({name: random.uniform(-bound, bound, s).astype(dtype) for name, s in shapes.items()})

    @property
    def parameters(self) -> dict[str, Array]:
        """Parameter name -> array, read-only."""
        return dict(self._parameters)

    def load_parameters(self, parameters: Mapping[str, Array], prefix: str = "") -> None:
        """Set all parameters (copied).

        Parameters
        ----------
        parameters
            Names and arrays; those without `prefix` are passed over if there is one.
        prefix
            What precedes the names, for example ``"encoder."``.

        Raises
        ------
        TypeError, ValueError
            A missing or unknown name, a wrong shape or dtype, a number that is not finite.
        """
        validation.check_mapping("parameters", parameters)
        text = {str(name): value for name, value in parameters.items()}  # what is no text is no name of ours either
        found = {name.removeprefix(prefix): value for name, value in text.items() if name.startswith(prefix)}
        validation.check_parameters("parameters", found, self.parameter_shapes, get_precision(self.dtype))
        copies = {name: np.array(found[name], order="C") for name in self.parameter_shapes}
        validation.check_finite_parameters("parameters", copies)
        for array in copies.values():
            array.flags.writeable = False
        self._parameters = copies

    def __call__(self, x: Array) -> Array:
        """Return y as `record` does, without the tape."""
        return self.record(x)[0]

    @abstractmethod
    def record(self, x: Array) -> tuple[Array, Any]:
        """Return y, and what `backward` needs."""

    @abstractmethod
    def backward(self, tape: Any, dy: Array) -> LayerGradients:
        """Return the gradients of ``sum(dy * y)`` for a recorded call."""

    def _check(self, name: str, array: Any, shape: tuple[int | None, ...], letters: str) -> None:
        validation.check_numpy(name, array, shape, self.dtype, letters=letters)


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

    def __init__(self, entries: int, output_size: int, *, dtype: str = "float32", seed: int | None = None) -> None:
        self.entries, self.output_size = integer("entries", entries, 1), integer("output_size", output_size, 1)
        super().__init__({"weight": (entries, output_size)}, 1, dtype, seed)

    def record(self, x: Array) -> tuple[Array, Array]:
        """Return y, and x as the tape; a number outside the table is a ValueError."""
        x = validation.as_array("x", x)
        if x.dtype.kind not in "iu":
            raise TypeError(f"x: expected whole numbers; got dtype {x.dtype}")
        if x.size and not 0 <= x.min() <= x.max() < self.entries:
            wrong = x.max() if x.max() >= self.entries else x.min()
            raise ValueError(f"x: expected 0 to {self.entries - 1}; got {wrong}")
        return self._parameters["weight"][x], x

    def backward(self, tape: Array, dy: Array) -> LayerGradients:
        """Return the gradients; see `Layer.backward`."""
        self._check("dy", dy, (*tape.shape, self.output_size), "(..., O)")
        gradient = np.zeros_like(self._parameters["weight"])
        np.add.at(gradient, tape.reshape(-1), dy.reshape(-1, self.output_size))
        return LayerGradients(None, {"weight": gradient})


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


class _AttentionTape(NamedTuple):
    """The input, the queries (None for the input), the tanh of the sums (Q, S, N, H), and the weights (Q, S, N)."""

    x: Array
    queries: Array | None
    sums: Array
    weights: Array


class AttentionPooling(Layer):
    """Additive attention of each step over all steps: (T, N, C) to (T, N, C) (Bahdanau, Cho and Bengio 2014).

    ``y[t] = sum over s of softmax_s(v . tanh(W q[t] + U x[s])) x[s]``, where the queries q are x unless others are
    given: one query gives one vector a row. Parameters are ``W.weight`` and ``U.weight``
    (H, C) and ``v.weight`` (1, H), as three ``torch.nn.Linear`` without bias in a module.

    Parameters
    ----------
    input_size
        C.
    hidden_size
        H; None for C.
    dtype, seed
        As for `Layer`.

    Examples
    --------
    >>> AttentionPooling(6, seed=0)(np.ones((7, 4, 6), np.float32)).shape
    (7, 4, 6)
    """

    def __init__(
        self, input_size: int, hidden_size: int | None = None, *, dtype: str = "float32", seed: int | None = None
    ) -> None:
        self.input_size = integer("input_size", input_size, 1)
        self.hidden_size = integer("hidden_size", input_size if hidden_size is None else hidden_size, 1)
        matrix = (self.hidden_size, self.input_size)
        shapes = {"W.weight": matrix, "U.weight": matrix, "v.weight": (1, self.hidden_size)}
        super().__init__(shapes, input_size, dtype, seed)

    def __call__(self, x: Array, lengths: Array | None = None, queries: Array | None = None) -> Array:
        """Return y as `record` does, without the tape."""
        return self.record(x, lengths, queries)[0]

    def record(
        self, x: Array, lengths: Array | None = None, queries: Array | None = None
    ) -> tuple[Array, _AttentionTape]:
        """Return y and the tape.

        Parameters
        ----------
        x
            (T, N, C).
        lengths
            (N,) whole numbers from 0 to T: steps past a row's end are not attended to, and y is 0 there.
        queries
            (Q, N, C), then y is (Q, N, C); 0 for a row of length 0. None takes x.
        """
        self._check("x", x, (None, None, self.input_size), "(T, N, C)")
        steps, rows, _ = x.shape
        if queries is not None:
            self._check("queries", queries, (None, rows, self.input_size), "(Q, N, C)")
        ends = validation.check_lengths(lengths, steps, rows)
        asked = (x if queries is None else queries) @ self._parameters["W.weight"].T
        sums = asked[:, None] + (x @ self._parameters["U.weight"].T)[None]
        np.tanh(sums, out=sums)
        scores = sums @ self._parameters["v.weight"][0]
        outside = None if ends is None else np.arange(steps)[:, None] >= ends
        if outside is not None:
            scores[:, outside] = -np.inf
        scores -= np.maximum(scores.max(axis=1, keepdims=True, initial=-np.inf), np.finfo(self.dtype).min)
        weights = np.exp(scores)
        total = weights.sum(axis=1, keepdims=True)
        weights /= np.where(total == 0, 1, total)
        if outside is not None and queries is None:
            weights *= ~outside[:, None]
        return np.einsum("tsn,snc->tnc", weights, x), _AttentionTape(x, queries, sums, weights)

    def backward(self, tape: _AttentionTape, dy: Array) -> LayerGradients:
        """Return the gradients; see `Layer.backward`."""
        x, queries, sums, weights = tape
        self._check("dy", dy, (x if queries is None else queries).shape, "(T, N, C)")
        w, u, v = (self._parameters[f"{name}.weight"] for name in "WUv")
        dweights = np.einsum("tnc,snc->tsn", dy, x)
        dscores = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
        dsums = dscores[..., None] * v[0] * (1 - sums * sums)
        dasked, dkeys = dsums.sum(axis=1), dsums.sum(axis=0)
        dx = np.einsum("tsn,tnc->snc", weights, dy) + dkeys @ u
        asked = (x if queries is None else queries).reshape(-1, self.input_size)
        made = {
            "W.weight": dasked.reshape(-1, self.hidden_size).T @ asked,
            "U.weight": dkeys.reshape(-1, self.hidden_size).T @ x.reshape(-1, self.input_size),
            "v.weight": np.einsum("tsn,tsnh->h", dscores, sums)[None],
        }
        dqueries = dasked @ w
        return LayerGradients(dx + dqueries, made) if queries is None else LayerGradients(dx, made, dqueries)
