"""Times in a column of a table: their formats, their step, and the first row where they do not ascend evenly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DAY: Final = 86400.0
_EPOCH: Final = datetime(1970, 1, 1)
_FORMATS: Final = (
    *(f"{date}{clock}" for date in ("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y")
      for clock in ("", " %H:%M", " %H:%M:%S")),
    "%Y-%m", "%Y/%m", "%b %Y", "%B %Y", "%d %b %Y", "%d-%b-%Y",
)  # fmt: skip


class Times(NamedTuple):
    """The times of a column: seconds since 1970, or the numbers of a column of numbers."""

    values: Floats
    are_dates: bool


class Steps(NamedTuple):
    """How many steps lie between each two neighbours; 0 where a distance is no whole number of steps."""

    counts: npt.NDArray[np.int64]
    even: bool


def _seconds(moment: datetime) -> float:
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return (moment - _EPOCH).total_seconds()


def _iso(text: str) -> float:
    return _seconds(datetime.fromisoformat(text))


def _quarter(text: str) -> float:
    year, separator, quarter = text.upper().replace("-", "").replace(" ", "").partition("Q")
    if not separator or len(year) != 4 or quarter not in ("1", "2", "3", "4"):
        raise ValueError(f"no quarter: {text!r}")
    return _seconds(datetime(int(year), 3 * int(quarter) - 2, 1))


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"not finite: {text!r}")
    return number


def _parsers() -> tuple[Callable[[str], float], ...]:
    def reader(form: str) -> Callable[[str], float]:
        return lambda text: _seconds(datetime.strptime(text, form))

    return (_iso, _quarter, *map(reader, _FORMATS))


_PARSERS: Final = _parsers()


def reads(parser: Callable[[str], float], text: str) -> bool:
    """Return whether `parser` reads a cell."""
    try:
        parser(text)
    except ValueError:
        return False
    return True


def parse_times(texts: Sequence[str], *, numbers: bool) -> Times | int | None:
    """Read the cells of a column as times.

    A column of dates is one whose first and last cell are dates of the same format. Where two formats fit all cells,
    as for 01/02/2020, the one in which they ascend is taken.

    Parameters
    ----------
    texts
        The cells, at least one.
    numbers
        Whether plain numbers are times too.

    Returns
    -------
    Times, int or None
        The times; the number of the first cell that is no time in a column that has them; None for no such column.
    """
    wrong: int | None = None
    fitting: list[Times] = []
    for parser in (*_PARSERS, *((_number,) if numbers else ())):
        if (fitting and parser is _number) or not (reads(parser, texts[0]) and reads(parser, texts[-1])):
            continue
        values = np.empty(len(texts))
        try:
            for index, text in enumerate(texts):
                values[index] = parser(text)
        except ValueError:
            wrong = max(wrong or 0, index)
            continue
        fitting.append(Times(values, parser is not _number))
    ascending = [times for times in fitting if (np.diff(times.values) > 0).all()]
    return (ascending or fitting)[0] if fitting else wrong


def count_steps(times: Times) -> Steps:
    """Return the distances of ascending times in steps; the step is the usual distance.

    A month, a quarter and a year are steps whatever their days. A step of one day skips weekends if no date is on one.
    """
    values = times.values
    if len(values) < 3:
        return Steps(np.ones(max(len(values) - 1, 0), np.int64), True)
    step = float(np.median(np.diff(values)))
    units = values / step
    if times.are_dates:
        days = values / _DAY
        dates = np.array(np.floor(days), "datetime64[D]")
        months = dates.astype("datetime64[M]").astype(np.int64).astype(np.float64)
        weekdays = (dates.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
        for least, most, length in ((27.5, 31.5, 1), (89.5, 92.5, 3), (364.5, 366.5, 12)):
            if least * _DAY <= step <= most * _DAY:
                units = months / length
        if step == _DAY and (weekdays < 5).all():
            units = np.busday_count(dates[0], dates).astype(np.float64)
    distances = np.diff(units)
    counts = np.rint(distances).astype(np.int64)
    counts[np.abs(distances - counts) > 0.25 * np.maximum(counts, 1)] = 0
    return Steps(counts, bool((counts == 1).all()))
