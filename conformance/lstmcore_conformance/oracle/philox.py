"""The masks and the initial parameters of SPEC.md, implemented a second time from its text, in Python integers."""

from __future__ import annotations

from math import floor
from typing import Final

import numpy as np

from lstmcore.backend import Masks, StackMasks
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore_conformance.cases.case import Array, Case

_WORD: Final = 1 << 32
DROPOUT, RECURRENT, ZONEOUT_HIDDEN, ZONEOUT_CELL = range(4)


def block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return four random words by Philox4x32-10 (Salmon et al. 2011)."""
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = second // _WORD ^ b ^ low, second % _WORD, first // _WORD ^ d ^ high, first % _WORD
        low, high = (low + 0x9E3779B9) % _WORD, (high + 0xBB67AE85) % _WORD
    return a, b, c, d


def drawn(seed: int, stream: int, step: int, shape: tuple[int, ...], rate: float) -> Array:
    """Return an array that is true at the elements that are drawn.

    Parameters
    ----------
    seed, stream, step
        The key and the counter of the generator.
    shape
        The shape of the mask.
    rate
        The probability with which an element is drawn.
    """
    return (_words(seed, stream, step, int(np.prod(shape))) < floor(rate * _WORD)).reshape(shape)


def _words(seed: int, stream: int, step: int, count: int) -> Array:
    key = (seed % _WORD, seed // _WORD)
    words = [word for first in range(-(-count // 4)) for word in block((first, 0, step, stream), key)]
    return np.array(words[:count], np.uint64)


def masks_of(stack: StackConfig, case: Case, seed: int, step: int) -> StackMasks:
    """Return all masks of a recorded call.

    Parameters
    ----------
    stack, case
        The model, and the case with the sizes and the precision.
    seed, step
        The seed of the layer and the number of the call.
    """
    steps, batch, dtype = case.steps, case.batch, case.policy.compute

    def dropout(stream: int, shape: tuple[int, ...], rate: float) -> Array | None:
        return np.where(drawn(seed, stream, step, shape, rate), 0, 1 / (1 - rate)).astype(dtype) if rate else None

    def zoneout(stream: int, width: int, rate: float) -> Array | None:
        return drawn(seed, stream, step, (steps, batch, width), rate).astype(dtype) if rate else None

    def layer(k: int, config: LSTMConfig) -> Masks:
        return Masks(
            dropout(4 * k + RECURRENT, (batch, config.recurrent_size), config.recurrent_dropout),
            zoneout(4 * k + ZONEOUT_HIDDEN, config.output_size, config.zoneout_hidden),
            zoneout(4 * k + ZONEOUT_CELL, config.hidden_size, config.zoneout_cell),
        )

    between = (steps, batch, stack.num_directions * stack.output_size)
    masks = [dropout(4 * k + DROPOUT, between, stack.dropout) for k in range(stack.num_layers - 1)]
    return StackMasks(
        tuple(layer(k, config) for k, config in enumerate(stack.configs)),
        tuple(mask for mask in masks if mask is not None),
    )


# Initial parameters ---------------------------------------------------------------------------------------------------

#: The parameters in the order of section 1, which numbers them.
_ORDER: Final = (
    *("weight_x", "weight_h", "bias", "weight_proj", "peephole"),
    *("norm_gain_x", "norm_gain_h", "norm_gain_c", "norm_bias_c"),
)
#: The stream of the first parameter.
_FIRST: Final = 1 << 31


def initial_of(stack: StackConfig, seed: int, *, orthogonal: bool, forget_bias: float | None) -> dict[str, Array]:
    """Return the initial parameters of section 6 in float64.

    Parameters
    ----------
    stack
        The model.
    seed
        The seed of the LSTM.
    orthogonal
        Whether ``weight_h`` is orthogonal; else all is uniform.
    forget_bias
        The bias of every forget gate; None for what is drawn.
    """
    made: dict[str, Array] = {}
    for config, suffix in zip(stack.configs, stack.suffixes, strict=True):
        shapes, hidden = config.parameter_shapes, config.hidden_size
        for name in (name for name in _ORDER if name in shapes):
            shape, stream = shapes[name], _FIRST + len(made)
            if name.startswith("norm_"):
                values = np.full(shape, float(name.startswith("norm_gain")))
            elif name == "weight_h" and orthogonal:
                values = _orthogonal(seed, stream, (len(config.gates), hidden, config.recurrent_size)).reshape(shape)
            else:
                values = (2 * _fractions(seed, stream, int(np.prod(shape))) - 1).reshape(shape) / np.sqrt(hidden)
            if name == "bias" and forget_bias is not None:
                row = config.gates.index("f") * hidden
                values[row : row + hidden] = forget_bias
            made[name + suffix] = values
    return made


def _fractions(seed: int, stream: int, count: int) -> Array:
    return (_words(seed, stream, 0, count).astype(np.float64) + 0.5) / _WORD


def _orthogonal(seed: int, stream: int, shape: tuple[int, int, int]) -> Array:
    """Return normal numbers whose columns in each gate were orthonormalised, first to last."""
    count = int(np.prod(shape))
    radius, angle = np.split(_fractions(seed, stream, 2 * count), 2)
    gates: Array = (np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)).reshape(shape)
    for gate in gates:
        for column in range(shape[2]):
            for _ in range(2):  # the second time takes away what rounding left
                gate[:, column] -= gate[:, :column] @ (gate[:, :column].T @ gate[:, column])
            gate[:, column] /= np.sqrt(gate[:, column] @ gate[:, column])
    return gates
