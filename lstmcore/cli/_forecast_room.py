"""Whether series have the rows that a forecast needs, and what to change if they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Final, NamedTuple, TypeAlias

from lstmcore.datasets.series_windows import rows_of_origins
from lstmcore.training.batches import chronological_sizes

#: Rows of the shortest series, rows ahead -> its test rows, the rows that the model reads, and those of a season.
Sizes: TypeAlias = Callable[[int, int], tuple[int, int, int | None]]
#: Rows beyond those that are there which are looked through for advice.
_FAR: Final = 1_000


class Asked(NamedTuple):
    """What a training is asked for: rows ahead, the share that validates, a window if given, and if rows have gaps."""

    horizon: int
    validation: float
    window: int | None
    gaps: bool


class _Lengths(NamedTuple):
    """Rows of the shortest series, how many series there are, and the rows of all beyond the shortest."""

    shortest: int
    series: int
    beyond: int


def check_room(name: str, lengths: Sequence[int], asked: Asked, sizes: Sizes) -> None:
    """Raise ValueError unless some windows remain to learn from, to validate and to test, with sizes that would do.

    A bound in the message holds for all that was looked through: every horizon or window up to it does, and every
    number of rows from it on.

    Parameters
    ----------
    name
        The data, for the message.
    lengths
        The rows of each series; gaps are counted as rows.
    asked, sizes
        The settings, and what follows from them.
    """
    shortest, ahead = min(lengths), asked.horizon
    here = _Lengths(shortest, len(lengths), sum(lengths) - len(lengths) * shortest)
    if _fits(here, ahead, asked.validation, sizes(shortest, ahead)):
        return

    def serves(at: _Lengths, horizon: int, window: int | None = None) -> bool:
        held, own, season = sizes(at.shortest, horizon)
        history = (season or window or own) <= at.shortest - held
        return history and _fits(at, horizon, asked.validation, (held, window or own, season))

    most = _leading(serves(here, h) for h in range(1, min(ahead, shortest)))
    widest = _leading(serves(here, ahead, w) for w in range(1, min(asked.window or 1, shortest)))
    more = range(shortest + _FAR, shortest, -1)
    enough = more.start + 1 - _leading(serves(_Lengths(rows, len(lengths), 0), ahead) for rows in more)
    rows = f"{shortest} rows" if len(lengths) == 1 else f"the {shortest} rows of the shortest series"
    needed = f"at least {enough} rows" + " of each series" * (len(lengths) > 1)
    give = f", or give {needed}" * (enough <= more.start)
    gaps = "; gaps may leave less room than this" * asked.gaps
    held = sizes(shortest, most or ahead)[0]
    if most:
        raise ValueError(
            f"--horizon: expected at most {most} for {rows} of {name}, the last {held} of which are kept for the test; "
            f"got {ahead}: forecast fewer rows ahead{give}{gaps}"
        )
    if widest:
        raise ValueError(
            f"--window: expected at most {widest} for {rows} of {name}; got {asked.window}: read fewer rows{give}{gaps}"
        )
    if enough <= more.start:
        raise ValueError(f"{name}: expected {needed} to learn from, to validate and to test; got {shortest}{gaps}")
    raise ValueError(
        f"{name}: expected rows to learn from, to validate and to test; got {shortest}, {held} test rows and "
        f"--horizon {ahead}: change several of rows, --horizon, --window, --season, --test-rows and --validation"
    )


def _leading(fitting: Iterable[bool]) -> int:
    """Return how many come before the first that is false."""
    return sum(takewhile(bool, fitting))


def _fits(at: _Lengths, horizon: int, validation: float, sizes: tuple[int, int, int | None]) -> bool:
    """Return whether every series has windows to learn from and to test, and both sides of the validation do."""
    held, window, _ = sizes
    start = at.shortest - held
    learned = rows_of_origins(start, window, horizon)
    if not learned or not rows_of_origins(at.shortest, window, horizon, start):
        return False
    count = len(learned) * at.series + at.beyond  # each row more is a window more
    return chronological_sizes(count, validation, (horizon - 1) * at.series)[0] > 0
