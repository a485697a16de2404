"""Random masks from a counter-based generator: the same ``(seed, stream, step)`` gives the same bits everywhere.

The generator is Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, doi:10.1145/2063384.2063405. SPEC.md says how masks are made from it, for other languages too.

The words are drawn where the array `like` is: on the host, or by the device of a backend, see `lstmcore.arrays`.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.arrays import device_of, move_like, namespace_of
from lstmcore.backend import Masks, StackMasks
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import Precision

Array = Any
#: uint32.
Words = Any

_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = 0xFFFFFFFF
_HOST: Final = np.empty(0)


class Kind(IntEnum):
    """The use of a mask; with the index of the layer and direction it makes the stream."""

    DROPOUT = 0
    RECURRENT = 1
    ZONEOUT_HIDDEN = 2
    ZONEOUT_CELL = 3


class BatchRows(NamedTuple):
    """Rows of a batch that one process computes: their numbers (n,), ascending, and the rows N of the whole batch."""

    numbers: npt.NDArray[np.intp]
    whole: int


def stream(index: int, kind: Kind) -> int:
    """Return the stream of mask `kind` for entry `index` of `StackConfig.configs` (DROPOUT: of the layers)."""
    return 4 * index + int(kind)


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Return the blocks of Philox4x32-10 for counters and a key.

    Parameters
    ----------
    counter
        (..., 4) words.
    key
        Two words.

    Returns
    -------
    ndarray
        (..., 4) random words, one block for each counter.
    """
    xp = namespace_of(counter)
    c0, c1, c2, c3 = (xp.astype(counter[..., lane : lane + 1], xp.uint64) for lane in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _LOW, (product0 >> 32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return xp.astype(xp.concat((c0, c1, c2, c3), axis=-1), xp.uint32)


def random_words(seed: int, stream: int, step: int, count: int, like: Array = _HOST) -> Words:
    """Return `count` random 32-bit words.

    Word ``4 b + l`` is lane ``l`` of the block with counter ``(b, 0, step, stream)``.
    The key is ``(seed mod 2**32, seed // 2**32)``.

    Parameters
    ----------
    seed
        0 to 2**64 - 1.
    stream, step
        0 to 2**32 - 1.
    count
        How many words.
    like
        The words are an array of the same library on the same device.

    Raises
    ------
    ValueError
        `seed` outside 0 to 2**64 - 1, `stream` or `step` outside 0 to 2**32 - 1.
    """
    xp = namespace_of(like)
    numbers = xp.arange(-(-count // 4), device=device_of(like))
    return xp.reshape(_blocks(seed, stream, step, numbers), (-1,))[:count]


def _blocks(seed: int, stream: int, step: int, numbers: Array) -> Words:
    """Return the blocks (..., 4) with these numbers."""
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32), ("step", step, 32)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name}: expected 0 to 2**{bits} - 1; got {value}")
    xp = namespace_of(numbers)
    counter = xp.zeros((*numbers.shape, 4), dtype=xp.uint32, device=device_of(numbers))
    counter[..., 0] = xp.astype(numbers, xp.uint32)
    counter[..., 2] = step
    counter[..., 3] = stream
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def _words_of_rows(seed: int, stream: int, step: int, shape: tuple[int, ...], rows: BatchRows, like: Array) -> Words:
    """Return the words that rows of a batch have in the array (..., N, width) of the whole batch.

    Parameters
    ----------
    seed, stream, step
        As in `random_words`.
    shape
        That of the result, (..., n, width).
    rows
        The n rows, and N.
    like
        As in `random_words`.
    """
    *lead, count, width = shape
    xp, device = namespace_of(like), device_of(like)
    outer = xp.arange(math.prod(lead), device=device)[:, None]
    first = ((outer * rows.whole + move_like(rows.numbers, like)) * width)[..., None]
    reach = (width + 2) // 4 + 1  # blocks of a run of words that starts in any lane
    blocks = _blocks(seed, stream, step, first // 4 + xp.arange(reach, device=device))
    words = xp.reshape(blocks, (*first.shape[:-1], 4 * reach))
    own = xp.take_along_axis(words, first % 4 + xp.arange(width, device=device), axis=-1)
    return xp.reshape(own, (*lead, count, width))


def bernoulli(  # noqa: PLR0913  (the numbers that fix the bits, and the place)
    seed: int,
    stream: int,
    step: int,
    shape: tuple[int, ...],
    rate: float,
    rows: BatchRows | None = None,
    like: Array = _HOST,
) -> Array:
    """Return True with probability `rate`, in C order: word ``e`` is below ``floor(rate * 2**32)``.

    Parameters
    ----------
    seed, stream, step
        Key and counter of the generator, as in `random_words`.
    shape
        That of the result.
    rate
        In [0, 1).
    rows
        The rows of axis -2 in a larger batch: they get the numbers that they have in it. None: the whole batch.
    like
        As in `random_words`.
    """
    if rows is None:
        words = namespace_of(like).reshape(random_words(seed, stream, step, math.prod(shape), like), shape)
    else:
        words = _words_of_rows(seed, stream, step, shape, rows, like)
    return words < int(rate * 2.0**32)


def dropout_mask(  # noqa: PLR0913  (as `bernoulli`, and the dtype)
    seed: int,
    stream: int,
    step: int,
    shape: tuple[int, ...],
    rate: float,
    dtype: str,
    rows: BatchRows | None = None,
    like: Array = _HOST,
) -> Array:
    """Return 0 with probability `rate`, else ``1 / (1 - rate)``, in `dtype`.

    Parameters
    ----------
    seed, stream, step
        Key and counter of the generator, as in `random_words`.
    shape, dtype
        Those of the result.
    rate, rows, like
        As in `bernoulli`.
    """
    dropped, xp = bernoulli(seed, stream, step, shape, rate, rows, like), namespace_of(like)
    return xp.astype(~dropped, getattr(xp, dtype)) * (1.0 / (1.0 - rate))


def layer_masks(  # noqa: PLR0913  (the sizes, and the three numbers that fix the bits)
    config: LSTMConfig,
    precision: Precision,
    steps: int,
    batch: int,
    *,
    seed: int,
    index: int,
    step: int,
    rows: BatchRows | None = None,
    like: Array = _HOST,
) -> Masks:
    """Return the masks of one layer in one direction, entry `index` of `StackConfig.configs`; None for a rate of 0.

    Parameters
    ----------
    config, precision
        The layer and its policy; masks have the compute dtype.
    steps, batch
        T and N.
    seed, step
        Of the `LSTM`, and the number of the recorded call.
    index
        Position in `StackConfig.configs`.
    rows, like
        As in `bernoulli`.
    """
    dtype, xp = precision.compute, namespace_of(like)

    def zoneout(kind: Kind, rate: float, width: int) -> Array | None:
        if rate == 0.0:
            return None
        shape = (steps, batch, width)
        return xp.astype(bernoulli(seed, stream(index, kind), step, shape, rate, rows, like), getattr(xp, dtype))

    recurrent = None
    if config.recurrent_dropout:
        shape = (batch, config.recurrent_size)
        rate = config.recurrent_dropout
        recurrent = dropout_mask(seed, stream(index, Kind.RECURRENT), step, shape, rate, dtype, rows, like)
    return Masks(
        recurrent,
        zoneout(Kind.ZONEOUT_HIDDEN, config.zoneout_hidden, config.output_size),
        zoneout(Kind.ZONEOUT_CELL, config.zoneout_cell, config.hidden_size),
    )


def stack_masks(  # noqa: PLR0913  (the sizes, and the numbers that fix the bits)
    stack: StackConfig,
    precision: Precision,
    steps: int,
    batch: int,
    *,
    seed: int,
    step: int,
    rows: BatchRows | None = None,
    like: Array = _HOST,
) -> StackMasks | None:
    """Return all masks of a stack for recorded call number `step`, or None if every rate is 0.

    Parameters
    ----------
    stack, precision
        All layers and directions, and the policy; masks have the compute dtype.
    steps, batch
        T and N.
    seed, step
        Of the `LSTM`, and the number of the recorded call.
    rows
        As in `bernoulli`: the rows of one process get the masks that they have in the whole batch.
    like
        As in `random_words`: x, whose masks these are.
    """
    configs = stack.configs
    dropout = stack.dropout if stack.num_layers > 1 else 0.0
    if not dropout and not any(c.recurrent_dropout or c.zoneout_hidden or c.zoneout_cell for c in configs):
        return None
    shape = (steps, batch, stack.num_directions * stack.output_size)
    return StackMasks(
        tuple(
            layer_masks(config, precision, steps, batch, seed=seed, index=index, step=step, rows=rows, like=like)
            for index, config in enumerate(configs)
        ),
        tuple(
            dropout_mask(seed, stream(layer, Kind.DROPOUT), step, shape, dropout, precision.compute, rows, like)
            for layer in range(stack.num_layers - 1 if dropout else 0)
        ),
    )
