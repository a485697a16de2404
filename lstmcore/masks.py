"""Random masks from a counter-based generator: the same ``(seed, stream, step)`` gives the same bits everywhere.

The generator is Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, doi:10.1145/2063384.2063405. SPEC.md says how masks are made from it, for other languages too.

`MaskDraw` says what to draw. `draw_on_host` draws it with NumPy; a backend may draw it on its device, with the same
bits: `lstmcore.kernels.LayerBackend.draw_mask`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.containers import Masks, StackMasks
from lstmcore.precision import Precision

Array = Any
Words = npt.NDArray[np.uint32]

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


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


@dataclass(frozen=True, slots=True)
class MaskDraw:
    """All that fixes a mask bit by bit: in C order, word ``e`` below `limit` gives the first of two values.

    Attributes
    ----------
    seed, stream, step
        Key and counter of the generator, as in `random_words`.
    shape, dtype
        Those of the mask.
    rate
        The probability of the first value, in [0, 1).
    values
        The two values.
    rows
        The rows of axis -2 in a larger batch: they get the numbers that they have in it. None: the whole batch.

    Raises
    ------
    ValueError
        `seed`, `stream` or `step` outside its range.

    Examples
    --------
    >>> draw_on_host(MaskDraw(1, 0, 0, (2, 4), "float32", 0.5, (0.0, 2.0))).dtype.name
    'float32'
    """

    seed: int
    stream: int
    step: int
    shape: tuple[int, ...]
    dtype: str
    rate: float
    values: tuple[float, float]
    rows: BatchRows | None = None

    def __post_init__(self) -> None:
        _check_counter(self.seed, self.stream, self.step)

    @property
    def limit(self) -> int:
        """The bound of words that give the first value, ``floor(rate * 2**32)``."""
        return int(self.rate * 2.0**32)


#: Draws a mask, on the host or on a device.
Drawing: TypeAlias = Callable[[MaskDraw], Array]


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
    c0, c1, c2, c3 = (counter[..., lane].astype(np.uint64) for lane in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def random_words(seed: int, stream: int, step: int, count: int) -> Words:
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

    Raises
    ------
    ValueError
        `seed` outside 0 to 2**64 - 1, `stream` or `step` outside 0 to 2**32 - 1.
    """
    return _blocks(seed, stream, step, np.arange(-(-count // 4))).reshape(-1)[:count]


def _check_counter(seed: int, stream: int, step: int) -> None:
    """Raise ValueError if a number is outside its range."""
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32), ("step", step, 32)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name}: expected 0 to 2**{bits} - 1; got {value}")


def _blocks(seed: int, stream: int, step: int, numbers: npt.NDArray[np.intp]) -> Words:
    """Return the blocks (..., 4) with these numbers."""
    _check_counter(seed, stream, step)
    counter = np.zeros((*numbers.shape, 4), np.uint32)
    counter[..., 0] = numbers.astype(np.uint32)
    counter[..., 2] = step
    counter[..., 3] = stream
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def _words_of_rows(seed: int, stream: int, step: int, shape: tuple[int, ...], rows: BatchRows) -> Words:
    """Return the words that rows of a batch have in the array (..., N, width) of the whole batch.

    Parameters
    ----------
    seed, stream, step
        As in `random_words`.
    shape
        That of the result, (..., n, width).
    rows
        The n rows, and N.
    """
    *lead, count, width = shape
    outer = np.arange(math.prod(lead))[:, None]
    first = ((outer * rows.whole + rows.numbers) * width)[..., None]
    reach = (width + 2) // 4 + 1  # blocks of a run of words that starts in any lane
    words = _blocks(seed, stream, step, first // 4 + np.arange(reach)).reshape(*first.shape[:-1], 4 * reach)
    return np.take_along_axis(words, first % 4 + np.arange(width), axis=-1).reshape(*lead, count, width)


def bernoulli(
    seed: int, stream: int, step: int, shape: tuple[int, ...], rate: float, rows: BatchRows | None = None
) -> npt.NDArray[np.bool_]:
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
        As in `MaskDraw`.
    """
    if rows is None:
        words = random_words(seed, stream, step, math.prod(shape)).reshape(shape)
    else:
        words = _words_of_rows(seed, stream, step, shape, rows)
    return words < int(rate * 2.0**32)


def draw_on_host(draw: MaskDraw) -> npt.NDArray[Any]:
    """Return the mask as an array of NumPy."""
    first, second = (np.dtype(draw.dtype).type(value) for value in draw.values)
    hits = bernoulli(draw.seed, draw.stream, draw.step, draw.shape, draw.rate, draw.rows)
    mask: npt.NDArray[Any] = np.where(hits, first, second)
    return mask


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
    draw: Drawing = draw_on_host,
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
    rows
        As in `MaskDraw`.
    draw
        Draws each mask.
    """

    def mask(kind: Kind, rate: float, shape: tuple[int, ...]) -> Array | None:
        if not rate:
            return None
        values = _dropout_values(rate) if kind == Kind.RECURRENT else (1.0, 0.0)
        return draw(MaskDraw(seed, stream(index, kind), step, shape, precision.compute, rate, values, rows))

    return Masks(
        mask(Kind.RECURRENT, config.recurrent_dropout, (batch, config.recurrent_size)),
        mask(Kind.ZONEOUT_HIDDEN, config.zoneout_hidden, (steps, batch, config.output_size)),
        mask(Kind.ZONEOUT_CELL, config.zoneout_cell, (steps, batch, config.hidden_size)),
    )


def _dropout_values(rate: float) -> tuple[float, float]:
    """Return 0 for what is dropped, with probability `rate`, and the factor of what stays."""
    return 0.0, 1.0 / (1.0 - rate)


def stack_masks(  # noqa: PLR0913  (the sizes, and the numbers that fix the bits)
    stack: StackConfig,
    precision: Precision,
    steps: int,
    batch: int,
    *,
    seed: int,
    step: int,
    rows: BatchRows | None = None,
    draw: Drawing = draw_on_host,
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
        As in `MaskDraw`: the rows of one process get the masks that they have in the whole batch.
    draw
        Draws each mask. `lstmcore.placement.drawing` gives one that draws where x is.
    """
    configs = stack.configs
    rate = stack.dropout if stack.num_layers > 1 else 0.0
    if not rate and not any(c.recurrent_dropout or c.zoneout_hidden or c.zoneout_cell for c in configs):
        return None
    shape, dtype = (steps, batch, stack.num_directions * stack.output_size), precision.compute
    layers = tuple(
        layer_masks(config, precision, steps, batch, seed=seed, index=index, step=step, rows=rows, draw=draw)
        for index, config in enumerate(configs)
    )
    dropout = tuple(
        draw(MaskDraw(seed, stream(layer, Kind.DROPOUT), step, shape, dtype, rate, _dropout_values(rate), rows))
        for layer in range(stack.num_layers - 1 if rate else 0)
    )
    return StackMasks(layers, dropout)
