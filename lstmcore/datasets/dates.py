"""Times in a column of a table: their format, their step, and the first row where they do not ascend evenly."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.time_formats import TIME_FORMATS, TimeFormat, looks_like_time, to_moment, to_seconds

Floats = npt.NDArray[np.float64]

_DAY: Final = 86400.0
#: Cells, spread over a column, that decide which formats are tried on all of them.
_PROBES: Final = 15


class Times(NamedTuple):
    """The times of a column.

    Attributes
    ----------
    values
        Seconds since 1970, or the numbers of a column of numbers.
    form
        The name of their format, see `TIME_FORMATS`.
    other
        Another format that fits every cell as well, with steps as even; empty if there is none.
    """

    values: Floats
    form: str
    other: str = ""

    @property
    def are_dates(self) -> bool:
        """Whether the values are seconds since 1970."""
        return TIME_FORMATS[self.form].are_dates


class Unreadable(NamedTuple):
    """A column with times that cannot be read: the row of the first cell in no known or in another format."""

    row: int
    mostly_read: bool  # whether most of the other cells have one known format


class Steps(NamedTuple):
    """How many steps lie between each two neighbours; 0 where a distance is no whole number of steps.

    `months` is the length of a step in months, or 0; `seconds` its length otherwise, `workdays` whether it skips
    weekends; `month_ends` whether all dates are last days of months.
    """

    counts: npt.NDArray[np.int64]
    months: int = 0
    seconds: float = 1.0
    workdays: bool = False
    month_ends: bool = False

    @property
    def even(self) -> bool:
        """Whether every distance is one step."""
        return bool((self.counts == 1).all())

    @property
    def season(self) -> int | None:
        """Steps in the season that such data usually have: a year, a week or a day; None if none is usual."""
        if self.months:
            return 12 // self.months if self.months < 12 else None
        if self.workdays:
            return 5
        usual = {3600.0: 24, _DAY: 7, 7 * _DAY: 52}
        return usual.get(self.seconds)

    def after(self, value: float, count: int) -> float:
        """Return the time `count` steps after `value`."""
        if self.months:
            moment = to_moment(value)
            month = moment.year * 12 + moment.month - 1 + count * self.months
            year, month = month // 12, month % 12 + 1
            last = calendar.monthrange(year, month)[1]
            day = last if self.month_ends else min(moment.day, last)
            return to_seconds(moment.replace(year=year, month=month, day=day))
        if self.workdays:
            days = np.busday_offset(np.datetime64(to_moment(value).date()), count).astype(np.int64)
            return float(days) * _DAY + value % _DAY
        return value + count * self.seconds


def _reads(form: TimeFormat, text: str) -> bool:
    try:
        form.read(text)
    except ValueError:
        return False
    return True


def _probes(texts: Sequence[str]) -> list[str]:
    """Return cells that are spread over the column, the first and the last among them."""
    return [texts[row] for row in sorted(set(np.linspace(0, len(texts) - 1, _PROBES).astype(int).tolist()))]


def _is_number(text: str) -> bool:
    return _reads(TIME_FORMATS["numbers"], text)


def may_be_times(texts: Sequence[str], *, numbers: bool) -> bool:
    """Return whether a column of these first cells may hold times, or has cells that look like some."""
    probes = _probes(texts)
    return numbers or any(looks_like_time(text) or _reads(TIME_FORMATS["ISO 8601"], text) for text in probes)


def parse_times(texts: Sequence[str], *, numbers: bool) -> Times | Unreadable | None:
    """Read the cells of a column as times.

    A column holds times if more than half of some cells spread over it have the same format. Where several formats
    fit all cells, as for 01/02/2020, the one with the most even steps is taken, and of these one that ascends.

    Parameters
    ----------
    texts
        The cells, at least one.
    numbers
        Whether the name of the column says that it has times: plain numbers are times too, and cells that cannot be
        read are told.

    Returns
    -------
    Times, Unreadable or None
        The times; the first cell that is none in a column that has them; None for no such column.
    """
    probes = _probes(texts)
    plain = sum(map(_is_number, probes)) * 2 > len(probes)
    fitting: list[Times] = []
    fewest, wrong = len(texts), None
    for name, form in TIME_FORMATS.items():
        if (form.only_if_named and not numbers) or (fitting and name == "numbers"):
            continue
        if plain and not form.only_if_named and name != "ISO 8601":
            continue  # most formats have signs that no number has
        if sum(_reads(form, text) for text in probes) * 2 <= len(probes):
            continue
        values, bad = _read_all(form, texts)
        if not bad:
            fitting.append(Times(values, name))
        elif len(bad) < fewest:
            fewest, wrong = len(bad), Unreadable(bad[0], True)
    if fitting:
        return _most_even(fitting)
    if wrong is not None:
        return wrong
    like = sum(looks_like_time(text) for text in probes) * 2 > len(probes)
    return Unreadable(0, False) if like or (numbers and not plain) else None


def _read_all(form: TimeFormat, texts: Sequence[str]) -> tuple[Floats, list[int]]:
    """Return the values of all cells, and the rows that cannot be read."""
    values, bad = np.zeros(len(texts)), []
    for row, text in enumerate(texts):
        try:
            values[row] = form.read(text)
        except ValueError:
            bad.append(row)
    return values, bad


def _most_even(fitting: list[Times]) -> Times:
    """Return the times with the fewest odd steps; of several the first that ascends."""

    def judge(times: Times) -> tuple[int, bool]:
        counts = count_steps(times._replace(values=np.unique(times.values))).counts
        return int((counts != 1).sum()), not bool((np.diff(times.values) > 0).all())

    judged = [(judge(times), times) for times in fitting]
    best = min(grade for grade, _ in judged)
    equal = [times for grade, times in judged if grade == best]
    first = equal[0]
    others = [times.form for times in equal[1:] if not np.array_equal(times.values, first.values)]
    return first._replace(other=others[0] if others else "")


def count_steps(times: Times) -> Steps:
    """Return the distances of ascending times in steps; the step is the usual distance.

    A month, a quarter and a year are steps whatever their days. A step of one day skips weekends if no date is on one.
    """
    values = times.values
    if len(values) < 2:
        return Steps(np.ones(0, np.int64))
    step = float(np.quantile(np.diff(values), 0.5, method="lower"))
    made = Steps(np.ones(len(values) - 1, np.int64), seconds=step)
    units = values / step
    if times.are_dates:
        days = np.array(np.floor(values / _DAY), "datetime64[D]")
        months = days.astype("datetime64[M]")
        weekdays = (days.astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
        for least, most, length in ((27.5, 31.5, 1), (89.5, 92.5, 3), (364.5, 366.5, 12)):
            if least * _DAY <= step <= most * _DAY:
                units = months.astype(np.int64) / length
                ends = bool(((days + 1).astype("datetime64[M]") != months).all())
                made = made._replace(months=length, month_ends=ends)
        if step == _DAY and (weekdays < 5).all() and len(values) > 5:
            units = np.busday_count(days[0], days).astype(np.float64)
            made = made._replace(workdays=True)
    if len(values) < 3:
        return made
    distances = np.diff(units)
    counts = np.rint(distances).astype(np.int64)
    counts[np.abs(distances - counts) > 0.25 * np.maximum(counts, 1)] = 0
    return made._replace(counts=counts)
