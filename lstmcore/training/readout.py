"""The readout layer ``y = g(W [h, x] + b)``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from lstmcore import validation
from lstmcore.arrays import frozen_copy, is_on_host, namespace_of
from lstmcore.chain import Chain
from lstmcore.config import integer
from lstmcore.lstm import LSTM
from lstmcore.precision import get_precision

Array = Any
ReadoutActivation = Literal["none", "tanh", "sigmoid", "relu", "softmax"]
Steps = Literal["last", "every", "mean"]

DTYPES: Final = ("float32", "float64")


class ReadoutTape(NamedTuple):
    """The arrays that `Readout.record` keeps for `Readout.backward`."""

    features: Array
    linear: Array
    output: Array


class ReadoutGradients(NamedTuple):
    """Gradients of h, of x (None without the x part) and of the parameters by name."""

    h: Array
    x: Array | None
    parameters: dict[str, Array]


class Readout:
    """A dense layer on the outputs of an LSTM, ``y = g(W [h, x] + b)``.

    Parameters
    ----------
    hidden_size
        Width of h: ``D * P`` of the LSTM.
    output_size
        K: width of y.
    activation
        g. ``"softmax"`` gives probabilities over the K outputs.
    x_size
        Width of the input x that is read next to h; 0 for none.
    steps
        ``"every"``: y has one entry a step. ``"last"``: one a sequence, made from the final state of the last layer.
        Forward that is h at the row's last valid step; for the reversed direction h at step 0, where it ends. So
        both directions have read the whole sequence. The x part is x at the row's last valid step. ``"mean"``: one a
        sequence, made from the means of h and of x over its steps.
    dtype
        ``"float32"`` or ``"float64"``; that of the LSTM.
    seed
        Seed of the initial weights, uniform in ``+-1/sqrt(width)`` as in ``torch.nn.Linear``.

    The parameters are where those are that were loaded last, at first on the host. h, x and dy are arrays of the same
    library on the same device, and so are the results; see `lstmcore.arrays`.

    Raises
    ------
    TypeError, ValueError
        A size, an activation, a dtype or `steps` outside its domain.

    Examples
    --------
    >>> readout = Readout(8, 3, activation="softmax", seed=0)
    >>> probabilities = readout(np.ones((2, 8), np.float32))
    >>> probabilities.shape, bool(np.allclose(probabilities.sum(axis=1), 1))
    ((2, 3), True)
    """

    def __init__(  # noqa: PLR0913  (a public constructor)
        self,
        hidden_size: int,
        output_size: int,
        *,
        activation: ReadoutActivation = "none",
        x_size: int = 0,
        steps: Steps = "last",
        dtype: str = "float32",
        seed: int | None = None,
    ) -> None:
        sizes = (("hidden_size", hidden_size, 1), ("output_size", output_size, 1), ("x_size", x_size, 0))
        hidden_size, output_size, x_size = (integer(f"readout {name}", value, least) for name, value, least in sizes)
        for name, text, choices in (
            ("activation", activation, get_args(ReadoutActivation)),
            ("steps", steps, get_args(Steps)),
            ("dtype", dtype, DTYPES),
        ):
            if text not in choices:
                raise ValueError(f"readout {name}: expected one of {', '.join(choices)}; got {text!r}")
        self.hidden_size, self.output_size, self.x_size = hidden_size, output_size, x_size
        self.activation, self.steps, self.dtype = activation, steps, dtype
        width = hidden_size + x_size
        self.parameter_shapes = {"weight": (output_size, width), "bias": (output_size,)}
        random, bound = np.random.default_rng(seed), width**-0.5
        self.load_parameters(
            {name: random.uniform(-bound, bound, shape).astype(dtype) for name, shape in self.parameter_shapes.items()}
        )

    @classmethod
    def of(
        cls,
        lstm: LSTM | Chain,
        output_size: int,
        *,
        activation: ReadoutActivation = "none",
        with_x: bool = False,
        steps: Steps = "last",
        seed: int | None = None,
    ) -> Readout:
        """Return a readout that fits an LSTM or a chain: its input size and its dtype are those of `lstm`.

        Parameters
        ----------
        lstm
            The layers below.
        output_size, activation, steps, seed
            As for the constructor.
        with_x
            Whether the input x is read next to h.

        Raises
        ------
        TypeError, ValueError
            As the constructor.

        Examples
        --------
        >>> from lstmcore import LSTM
        >>> Readout.of(LSTM(2, 4, bidirectional=True, dtype="float64"), 3, with_x=True).parameter_shapes["weight"]
        (3, 10)
        """
        return cls(
            lstm.output_width,
            output_size,
            activation=activation,
            x_size=lstm.input_size if with_x else 0,
            steps=steps,
            dtype=lstm.precision.storage,
            seed=seed,
        )

    @property
    def parameters(self) -> dict[str, Array]:
        """``weight`` (K, hidden_size + x_size) and ``bias`` (K,), read-only."""
        return dict(self._parameters)

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Set the parameters (copied).

        Raises
        ------
        TypeError, ValueError
            A missing or unknown name, a wrong shape or dtype, arrays of two libraries or on two devices, a value on the
            host that is not finite. Nothing waits for values on a device.
        """
        validation.check_parameters("readout parameters", parameters, self.parameter_shapes, get_precision(self.dtype))
        namespace_of(**{f"readout parameters[{name!r}]": parameters[name] for name in self.parameter_shapes})
        on_host = {name: value for name, value in parameters.items() if is_on_host(value)}
        validation.check_finite_parameters("readout parameters", on_host)
        self._parameters = {name: frozen_copy(parameters[name]) for name in self.parameter_shapes}

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that make this layer, for JSON."""
        names = ("hidden_size", "output_size", "activation", "x_size", "steps", "dtype")
        return {name: getattr(self, name) for name in names}

    def __call__(self, h: Array, x: Array | None = None) -> Array:
        """Compute y as `record` does, without the tape."""
        return self.record(h, x)[0]

    def record(self, h: Array, x: Array | None = None) -> tuple[Array, ReadoutTape]:
        """Compute y (..., K) from h (..., hidden_size) and x (..., x_size), and keep what `backward` needs."""
        lead = getattr(h, "shape", ())[:-1]
        validation.check_array("h", h, (*lead, self.hidden_size), self.dtype)
        if (x is None) != (self.x_size == 0):
            raise ValueError(f"x: expected {'an array' if self.x_size else 'None'} with x_size={self.x_size}")
        if x is not None:
            validation.check_array("x", x, (*lead, self.x_size), self.dtype)
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        xp = namespace_of(h=h, x=x, **{"readout parameters": weight})
        features = h if x is None else xp.concat((h, x), axis=-1)
        linear = features @ weight.T + bias
        output = _activate(xp, self.activation, linear)
        return output, ReadoutTape(features, linear, output)

    def backward(self, tape: ReadoutTape, dy: Array, *, of_linear: bool = False) -> ReadoutGradients:
        """Gradients of ``sum(dy * y)``; with `of_linear` of ``sum(dy * (W [h, x] + b))``, for a fused loss."""
        validation.check_array("dy", dy, tape.output.shape, self.dtype)
        weight = self._parameters["weight"]
        xp = namespace_of(dy=dy, tape=tape.output, **{"readout parameters": weight})
        dz = dy if of_linear else _derivative(xp, self.activation, tape, dy)
        entries = math.prod(dy.shape[:-1])
        flat = xp.reshape(dz, (entries, self.output_size))
        dfeatures = dz @ weight
        return ReadoutGradients(
            dfeatures[..., : self.hidden_size],
            dfeatures[..., self.hidden_size :] if self.x_size else None,
            {
                "weight": flat.T @ xp.reshape(tape.features, (entries, self.hidden_size + self.x_size)),
                "bias": xp.sum(flat, axis=0),
            },
        )


def softmax(z: Array) -> Array:
    """Return the softmax over the last axis, shifted by the maximum so that nothing overflows.

    Examples
    --------
    >>> softmax(np.zeros(4)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    xp = namespace_of(z=z)
    e = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def _activate(xp: Any, name: str, z: Array) -> Array:
    if name == "tanh":
        return xp.tanh(z)
    if name == "sigmoid":
        return 0.5 * (1.0 + xp.tanh(0.5 * z))
    if name == "relu":
        return xp.maximum(z, 0.0)
    return softmax(z) if name == "softmax" else z


def _derivative(xp: Any, name: str, tape: ReadoutTape, dy: Array) -> Array:
    y = tape.output
    if name == "tanh":
        return dy * (1 - y * y)
    if name == "sigmoid":
        return dy * y * (1 - y)
    if name == "relu":
        return xp.where(tape.linear > 0, dy, 0.0)
    return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True)) if name == "softmax" else dy
