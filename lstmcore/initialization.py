"""Initial parameters from a seed: the same numbers on every backend.

The random words are those of `lstmcore.masks.random_words`, in other streams
than those of masks: one seed fixes weights and masks.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.masks import random_words
from lstmcore.precision import Precision, numpy_dtype

Array = npt.NDArray[Any]
Init = Literal["uniform", "orthogonal"]

#: Streams from here on are for parameters, in the order of `StackConfig.parameter_shapes`; those of masks are below.
FIRST_STREAM: Final = 2**31


def initial_parameters(
    stack: StackConfig, precision: Precision, seed: int, init: str = "uniform", forget_bias: float | None = None
) -> dict[str, Array]:
    """Return the initial parameters of a stack.

    Parameters
    ----------
    stack, precision
        What they are for. The numbers are the same in every precision, up to the rounding to its storage dtype.
    seed
        0 to 2**64 - 1.
    init
        ``"uniform"``: all weights and biases uniform in ``+-1 / sqrt(H)``, as PyTorch does (which has two biases for
        each gate, not one). ``"orthogonal"``: the same, but ``weight_h`` of every gate is a random
        matrix with orthonormal columns (Saxe, McClelland and Ganguli 2013, arXiv:1312.6120). Gains of the layer
        norm are 1 and its shift is 0 in both.
    forget_bias
        The bias of the forget gate, or None to leave what `init` gives. 1 helps to remember over long times
        (Gers, Schmidhuber and Cummins 2000; Jozefowicz, Zaremba and Sutskever 2015).

    Returns
    -------
    dict
        Full parameter name -> array of the storage dtype.

    Raises
    ------
    ValueError
        An unknown `init`, a `forget_bias` that is not finite or has no forget gate's bias to go to.
    """
    if init not in get_args(Init):
        raise ValueError(f"init: expected one of {', '.join(map(repr, get_args(Init)))}; got {init!r}")
    if forget_bias is not None:
        _check_forget_bias(stack.layers[0][0], forget_bias)
    dtype = numpy_dtype(precision.storage)
    parameters: dict[str, Array] = {}
    for config, suffix in zip(stack.configs, stack.suffixes, strict=True):
        bound = config.hidden_size**-0.5
        for name, shape in config.parameter_shapes.items():
            stream = FIRST_STREAM + len(parameters)
            if name.startswith("norm_"):
                values = np.full(shape, 1.0 if "gain" in name else 0.0)
            elif name == "weight_h" and init == "orthogonal":
                values = _orthogonal(seed, stream, len(config.gates), config.hidden_size, config.recurrent_size)
            else:
                values = bound * (2.0 * _uniform(seed, stream, int(np.prod(shape))) - 1.0).reshape(shape)
            if name == "bias" and forget_bias is not None:
                row = config.gates.index("f") * config.hidden_size
                values[row : row + config.hidden_size] = forget_bias
            parameters[name + suffix] = values.astype(dtype)
    return parameters


def _check_forget_bias(config: LSTMConfig, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"forget_bias: expected a number or None; got {value!r}")
    if not np.isfinite(value):
        raise ValueError(f"forget_bias: expected a finite number; got {value}")
    if not config.bias:
        raise ValueError(f"forget_bias: needs bias=True; got forget_bias={value} with bias=False")
    if "f" not in config.gates:
        raise ValueError(
            f"forget_bias: needs a forget gate with a bias of its own; got forget_bias={value} "
            f"with coupling={config.coupling!r}"
        )


def _uniform(seed: int, stream: int, count: int) -> Array:
    """Return `count` numbers, uniform in the open interval (0, 1), from one random word each."""
    return np.asarray((random_words(seed, stream, 0, count) + 0.5) / 2.0**32)


def _orthogonal(seed: int, stream: int, gates: int, rows: int, columns: int) -> Array:
    """Return (gates * rows, columns): each gate's block has orthonormal columns, distributed uniformly (Haar)."""
    count = gates * rows * columns
    radius, angle = np.split(_uniform(seed, stream, 2 * count), 2)
    normal = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)  # Box and Muller 1958
    q, r = np.linalg.qr(normal.reshape(gates, rows, columns))
    signs = np.where(np.einsum("gii->gi", r) < 0, -1.0, 1.0)  # Mezzadri 2007: without them q is not uniform
    return (q * signs[:, None, :]).reshape(gates * rows, columns)
