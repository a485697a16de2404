"""Batches of sequences of about the same length, in an order that follows from the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.config import finite, integer
from lstmcore.validation import as_array, check_real

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]

#: Batches whose sequences are sorted by length together: more pad less, fewer mix more.
_POOL: Final = 4


def batches_by_length(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """Shuffle, sort pools of a few batches by length, cut them into batches and shuffle the batches.

    Every index is in exactly one batch. The same arguments give the same batches.

    Parameters
    ----------
    lengths
        T of each sequence.
    batch_size
        At least 1.
    seed, epoch
        They fix the order.

    Raises
    ------
    TypeError, ValueError
        `batch_size` is no whole number, or below 1; `seed` or `epoch` below 0; `lengths` are no whole numbers.

    Examples
    --------
    >>> batches = batches_by_length([5, 2, 9, 2, 7], 2, seed=0, epoch=1)
    >>> sorted(int(index) for batch in batches for index in batch)
    [0, 1, 2, 3, 4]
    """
    batch_size = integer("batch_size", batch_size, 1)
    seed, epoch = integer("seed", seed, 0), integer("epoch", epoch, 0)
    sizes = as_array("lengths", lengths)
    if sizes.ndim != 1:
        raise ValueError(f"lengths: expected one number a sequence; got shape {sizes.shape}")
    if sizes.size and sizes.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected whole numbers; got {sizes.dtype}")
    random = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
    order = random.permutation(len(sizes))
    batches: list[Indices] = []
    for start in range(0, len(order), _POOL * batch_size):
        pool = order[start : start + _POOL * batch_size]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def pad(sequences: Sequence[Array]) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return sequences (T, I) as (max T, N, I), with zeros past their ends, and their lengths (N,).

    Raises
    ------
    TypeError, ValueError
        No sequence, one that is no array of real numbers, or one of another width.

    Examples
    --------
    >>> x, lengths = pad([np.ones((3, 2)), np.ones((5, 2))])
    >>> x.shape, lengths.tolist()
    ((5, 2, 2), [3, 5])
    """
    if not len(sequences):
        raise ValueError("sequences: expected at least one; got none")
    for index, sequence in enumerate(sequences):
        check_real(f"sequences[{index}]", sequence, kinds="fiub")
        if not sequence.ndim or sequence.shape[1:] != sequences[0].shape[1:]:
            wanted = ", ".join(("T", *map(str, sequences[0].shape[1:])))
            raise ValueError(f"sequences[{index}]: expected shape ({wanted}); got {sequence.shape}")
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    shape = (int(lengths.max()), len(sequences), *sequences[0].shape[1:])
    stacked = np.zeros(shape, np.result_type(*{sequence.dtype for sequence in sequences}))
    for row, sequence in enumerate(sequences):
        stacked[: len(sequence), row] = sequence
    return stacked, lengths


def split(
    count: int,
    fraction: float,
    *,
    seed: int,
    classes: Array | None = None,
    chronological: bool = False,
    purge: int = 0,
) -> tuple[Indices, Indices]:
    """Numbers of the training and of the validation sequences, ascending.

    Parameters
    ----------
    fraction
        Share of the validation set, in [0, 1). If it is above 0, at least one sequence.
    classes
        (count,) class numbers: every class then gives its share (stratified). What the whole parts of the shares
        leave goes to the classes with the largest remainders, by lot if they are equal; a class keeps at least
        one sequence for training, as long as others have more.
    chronological
        Take the last ones, for windows of a series, which overlap their neighbours.
    purge
        How many sequences before the chronological ones are in neither set: windows of `horizon` values share
        targets with the `horizon - 1` windows before them.

    Raises
    ------
    TypeError
        A count, fraction, seed or purge that is no number.
    ValueError
        `fraction` outside [0, 1), too few sequences for both sets, or classes of another shape.

    Examples
    --------
    >>> fit, check = split(10, 0.2, seed=0, chronological=True)
    >>> check.tolist()
    [8, 9]
    """
    if not 0 <= finite("validation", fraction) < 1:
        raise ValueError(f"validation: expected a fraction in [0, 1); got {fraction!r}")
    count, purge, seed = integer("count", count, 0), integer("purge", purge, 0), integer("seed", seed, 0)
    if classes is not None and (np.ndim(classes) != 1 or len(classes) != count):
        raise ValueError(f"classes: expected shape ({count},), one a sequence; got {np.shape(classes)}")
    everything = np.arange(count, dtype=np.intp)
    if fraction == 0:
        return everything, everything[:0]
    kept, wanted = chronological_sizes(count, fraction, purge)
    if chronological:
        chosen, rest = everything[count - wanted :], everything[:kept]
    elif count == 0:
        chosen = rest = everything
    else:
        random = np.random.default_rng(np.random.SeedSequence((seed, 0x5EED)))
        groups = [everything] if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]
        shuffled = [random.permutation(group) for group in groups]
        shares = _shares([len(group) for group in groups], wanted, random)
        chosen = np.concatenate([group[:share] for group, share in zip(shuffled, shares, strict=True)])
        rest = np.setdiff1d(everything, chosen)
    if not chosen.size or not rest.size:
        between = f" with {purge} between them" if chronological and purge else ""
        raise ValueError(
            f"validation: expected a fraction of {count} sequences that leaves some on both sides{between}; "
            f"got {fraction}: give more sequences, or 0 to validate on none"
        )
    return rest, np.sort(chosen)


def chronological_sizes(count: int, fraction: float, purge: int) -> tuple[int, int]:
    """Return how many sequences train and validate if the last ones do, see `split`; 0 train if there are too few."""
    wanted = max(1, round(fraction * count)) if fraction else 0
    return max(count - wanted - (purge if wanted else 0), 0), wanted


def _shares(sizes: list[int], wanted: int, random: np.random.Generator) -> list[int]:
    """Return how many each group gives so that all give `wanted` together; the largest remainders get the rest."""
    total, ties = sum(sizes), random.permutation(len(sizes))
    shares = [wanted * size // total for size in sizes]
    for spared in (1, 0):  # first from those that keep one for training
        while sum(shares) < wanted and (room := [g for g, size in enumerate(sizes) if shares[g] + spared < size]):
            shares[max(room, key=lambda g: (wanted * sizes[g] - total * shares[g], ties[g]))] += 1
    return shares


def chunks_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the numbers of sequences, at most `batch_size` of about the same of their `lengths` at a time."""
    size = integer("batch_size", batch_size, 1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
