"""Whether series have the rows that a forecast needs, and what to change if they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

#: Rows of the shortest series, rows ahead -> its test rows, the rows that the model reads, and those of a season.
Sizes: TypeAlias = Callable[[int, int], tuple[int, int, int | None]]
#: Rows beyond those that are there which are looked through for advice.
_FAR: Final = 5_000


class Asked(NamedTuple):
    """What a training is asked for: rows ahead, the share that validates, and whether other sizes are given too."""

    horizon: int
    validation: float
    fixed: bool


def check_room(name: str, lengths: Sequence[int], asked: Asked, sizes: Sizes) -> None:
    """Raise ValueError unless some windows remain to learn from and to validate, with a horizon that would do.

    Parameters
    ----------
    name
        The data, for the message.
    lengths
        The rows of each series; gaps are counted as rows.
    asked, sizes
        The settings, and what follows from them.
    """
    if _fits(lengths, asked.horizon, asked.validation, sizes):
        return
    shortest = min(lengths)
    held = sizes(shortest, asked.horizon)[0]
    shorter, longer = range(min(asked.horizon - 1, shortest), 0, -1), range(shortest + 1, shortest + _FAR)
    most = next((h for h in shorter if _fits(lengths, h, asked.validation, sizes)), 0)
    enough = next((k for k in longer if _fits([k] * len(lengths), asked.horizon, asked.validation, sizes)), None)
    rows = f"{shortest} rows" if len(lengths) == 1 else f"the {shortest} rows of the shortest series"
    more = "more rows" if enough is None else f"at least {enough} rows" + " of each series" * (len(lengths) > 1)
    if most:
        raise ValueError(
            f"--horizon: expected at most {most} for {rows} of {name}, the last {held} of which are kept for the test; "
            f"got {asked.horizon}: forecast fewer rows ahead, or give {more}"
        )
    if not asked.fixed:
        raise ValueError(f"{name}: expected {more} to learn from, to validate and to test; got {shortest}")


def _fits(lengths: Sequence[int], horizon: int, validation: float, sizes: Sizes) -> bool:
    """Return whether every series has a window, and both sides of the validation split do."""
    held, window, _ = sizes(min(lengths), horizon)
    counts = [length - held - window - horizon + 1 for length in lengths]
    if not validation or min(counts) < 1:
        return min(counts) > 0
    total = sum(counts)
    return total - max(1, round(validation * total)) > (horizon - 1) * len(lengths)
