"""The way of batches to the device that trains on them: each is there when its step begins.

Inputs that fit stay on the device for the whole run, and batches are gathered there. Others are copied batch by batch,
while the device computes the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore.arrays import namespace_of
from lstmcore.training.losses import Loss
from lstmcore.training.model import SequenceModel
from lstmcore.training.network import Batch, Examples, ExampleSet, count_entries
from lstmcore.uploads import Uploader

Array = Any

#: Inputs stay on the device if they take at most this part of the memory that is free at the start.
_FREE_PART: Final = 4
#: The numbers of steps in a table of them.
_PLACE: Final = np.dtype(np.int32)


class Piece(NamedTuple):
    """A batch, or the steps of one that are learned together.

    Attributes
    ----------
    position
        The place in the run, in epochs.
    batch
        The sequences.
    first
        Whether its sequences begin here, with a state of zeros.
    last
        Whether the epoch ends with it.
    """

    position: float
    batch: Batch
    first: bool
    last: bool


class Feed:
    """The batches of a run on the host, which are learned as they are."""

    def examples(self, examples: ExampleSet) -> ExampleSet:
        """Return the examples of which the pieces of an epoch are to be made."""
        return examples

    def pieces(self, pieces: Iterator[Piece], loss: Loss) -> Iterator[Piece]:
        """Yield the pieces where the network computes."""
        return pieces


class _Resident(NamedTuple):
    """Inputs on a device.

    Attributes
    ----------
    table
        (S + 1, I): zeros, then the steps of all sequences.
    places
        The examples with the numbers of rows of `table` in place of inputs: padding, 0, is a row of zeros.
    """

    table: Array
    places: Examples

    def gather(self, places: Array) -> Array:
        """Return x (T, N, I) of the numbers of rows (T, N)."""
        xp = namespace_of(self.table, places)
        rows = xp.take(self.table, xp.reshape(places, (-1,)), axis=0)
        return xp.reshape(rows, (*places.shape, self.table.shape[1]))


class DeviceFeed(Feed):
    """The batches of a run on a device.

    Parameters
    ----------
    uploader
        Copies what is not there.
    resident
        The inputs, if they are there.
    """

    def __init__(self, uploader: Uploader, resident: _Resident | None) -> None:
        self._uploader, self.resident = uploader, resident

    def examples(self, examples: ExampleSet) -> ExampleSet:
        """See `Feed.examples`."""
        return examples if self.resident is None else self.resident.places

    def pieces(self, pieces: Iterator[Piece], loss: Loss) -> Iterator[Piece]:
        """Yield the pieces on the device; the copies of one begin before the step of the one before it."""
        begun: Callable[[], Piece] | None = None
        for piece in pieces:
            following = self._begin(piece, loss)
            if begun is not None:
                yield begun()
            begun = following
        if begun is not None:
            yield begun()

    def _begin(self, piece: Piece, loss: Loss) -> Callable[[], Piece]:
        """Begin to copy a piece, and return the function that returns it on the device."""
        batch, weights = piece.batch, piece.batch.counted(loss)
        counts = count_entries(weights, len(batch.lengths))
        take = self._uploader.start([batch.x, batch.targets, *(() if weights is None else (weights,))])

        def placed() -> Piece:
            x, targets, *rest = take()
            x = x if self.resident is None else self.resident.gather(x)
            own = batch._replace(x=x, targets=targets, weights=rest[0] if rest else None, counts=counts)
            return piece._replace(batch=own)

        return placed


@contextmanager
def feeding(
    device: str | None, model: SequenceModel, examples: ExampleSet, resident_bytes: int | None
) -> Iterator[Feed]:
    """Give the batches of a run to its device, and its memory back at the end.

    Parameters
    ----------
    device
        That of the run; None for the host.
    model
        The model.
    examples
        Scaled examples to learn from.
    resident_bytes
        The most bytes of inputs that stay on the device; None for a part of what is free there.
    """
    if device is None:
        yield Feed()
        return
    backend = model.lstm.backend
    uploader = backend.uploader()
    try:
        if resident_bytes is None:
            resident_bytes = (uploader.free_bytes() or 0) // _FREE_PART
        table = _table_of(examples, resident_bytes)
        yield DeviceFeed(uploader, None if table is None else _Resident(backend.to_device(table[0]), table[1]))
    finally:
        uploader.close()


def _table_of(examples: ExampleSet, most: int) -> tuple[Array, Examples] | None:
    """Return the table of `_Resident` on the host, and its places; None if it shall not be on the device."""
    if not isinstance(examples, Examples) or not examples.size:
        return None
    first, lengths = np.asarray(examples.inputs[0]), examples.lengths
    if first.ndim == 1:  # whole numbers for an embedding: no more bytes than the numbers of rows
        return None
    width, rows = first.shape[1], sum(lengths) + 1
    row_bytes = width * first.dtype.itemsize
    if rows * row_bytes > most or row_bytes <= _PLACE.itemsize or rows > np.iinfo(_PLACE).max:
        return None  # where the numbers of a batch's rows are no fewer bytes than the rows, nothing is won
    table = np.concatenate([np.zeros((1, width), first.dtype), *examples.inputs])
    ends = np.cumsum(lengths) + 1
    places = [np.arange(end - length, end, dtype=_PLACE) for end, length in zip(ends, lengths, strict=True)]
    return table, examples._replace(inputs=places)
