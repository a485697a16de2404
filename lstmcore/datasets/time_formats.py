"""Formats of times in the cells of a table: each reads a cell as a number, and writes a number as a cell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

_EPOCH: Final = datetime(1970, 1, 1)
_QUARTER: Final = re.compile(
    r"(?P<year>\d{4})[- ]?[qQ](?P<part>[1-4])|[qQ](?P<part_first>[1-4])[- /]?(?P<year_last>\d{4})"
)
_MONTH: Final = re.compile(r"(?P<year>\d{4})[mM:](?P<part>\d{1,2})")


class TimeFormat(NamedTuple):
    """One format.

    Attributes
    ----------
    read
        Returns the seconds since 1970 of a cell, or its number; ValueError if the cell has another format.
    write
        Returns the cell of such a number; the second argument is a cell of the column, whose style is kept.
    are_dates
        Whether the numbers are seconds since 1970.
    only_if_named
        Whether the column is read as times only if its name says so, since its cells are plain numbers.
    """

    read: Callable[[str], float]
    write: Callable[[float, str], str]
    are_dates: bool = True
    only_if_named: bool = False


def to_seconds(moment: datetime) -> float:
    """Return the seconds from 1970 to `moment`; a time without a zone counts as one of UTC."""
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return (moment - _EPOCH).total_seconds()


def to_moment(seconds: float) -> datetime:
    """Return the moment, without a zone, that `to_seconds` gave `seconds` for."""
    return _EPOCH + timedelta(seconds=seconds)


def _read_iso(text: str) -> float:
    return to_seconds(datetime.fromisoformat(text))


def _write_iso(seconds: float, like: str) -> str:
    """Return the moment with the parts, the separators and the zone that the cell `like` has."""
    moment, example = to_moment(seconds), datetime.fromisoformat(like)
    if example.tzinfo is not None:
        moment = moment.replace(tzinfo=UTC).astimezone(example.tzinfo)
    if "W" in like:
        return moment.strftime("%G-W%V-%u" if "-" in like else "%GW%V%u")
    dashes = like[4:5] == "-"
    date_length = 10 if dashes else 8
    if len(like) <= date_length and not (moment.hour or moment.minute or moment.second):
        return moment.strftime("%Y-%m-%d" if dashes else "%Y%m%d")
    if not dashes:
        return moment.strftime("%Y%m%dT%H%M%S%z")
    clock = re.split(r"[Z+-]", like[11:])[0]
    parts = "microseconds" if moment.microsecond else "minutes" if clock.count(":") == 1 else "seconds"
    written = moment.isoformat(like[10:11] or " ", parts)
    return written.replace("+00:00", "Z") if like.endswith("Z") else written


def _read_part(pattern: re.Pattern[str], months: int) -> Callable[[str], float]:
    """Return a function that reads a year with the number of one of its parts, each of which has `months` months."""

    def read(text: str) -> float:
        if (match := pattern.fullmatch(text)) is None:
            raise ValueError(f"no part of a year: {text!r}")
        groups = match.groupdict()
        year, part = groups["year"] or groups.get("year_last"), groups["part"] or groups.get("part_first")
        return to_seconds(datetime(int(str(year)), months * (int(str(part)) - 1) + 1, 1))

    return read


def _write_part(pattern: re.Pattern[str], months: int) -> Callable[[float, str], str]:
    def write(seconds: float, like: str) -> str:
        match, moment = pattern.fullmatch(like), to_moment(seconds)
        if match is None:
            raise ValueError(f"no part of a year: {like!r}")
        part, text = (moment.month - 1) // months + 1, like
        spans = [(match.span(name), name) for name, value in match.groupdict().items() if value is not None]
        for (start, stop), name in sorted(spans, reverse=True):
            value = moment.year if name.startswith("year") else part
            text = f"{text[:start]}{value:0{stop - start}d}{text[stop:]}"
        return text

    return write


def _read_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"not finite: {text!r}")
    return number


def _write_number(number: float, like: str) -> str:
    return f"{number:.{len(like.partition('.')[2])}f}" if "e" not in like.casefold() else repr(number)


def _by_directives(form: str) -> TimeFormat:
    return TimeFormat(
        read=lambda text: to_seconds(datetime.strptime(text, form)),
        write=lambda seconds, _: to_moment(seconds).strftime(form),
        only_if_named=form == "%Y%m",
    )


_DATES: Final = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m-%d-%Y",
    "%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y",
)  # fmt: skip
_CLOCKS: Final = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_DIRECTIVES: Final = (
    *(f"{date}{clock}" for date in _DATES for clock in _CLOCKS),
    "%Y-%m", "%Y/%m", "%m/%Y", "%b %Y", "%B %Y", "%b-%Y", "%b-%y", "%b %y", "%Y-%b", "%Y %b", "%Y%m",
)  # fmt: skip

#: Name -> format, in the order in which they are tried.
TIME_FORMATS: Final[Mapping[str, TimeFormat]] = {
    "ISO 8601": TimeFormat(_read_iso, _write_iso),
    "quarters": TimeFormat(_read_part(_QUARTER, 3), _write_part(_QUARTER, 3)),
    "months": TimeFormat(_read_part(_MONTH, 1), _write_part(_MONTH, 1)),
    **{form: _by_directives(form) for form in _DIRECTIVES},
    "numbers": TimeFormat(_read_number, _write_number, are_dates=False, only_if_named=True),
}

#: Cells that are times to a reader, in whatever format.
_LOOKS_LIKE_TIME: Final = re.compile(
    r"\d{1,4}[-/. ]\d{1,2}[-/. ]\d{1,4}|\d{1,2}:\d{2}"  # numbers of a date, a clock
    r"|[^\W\d]{3,}\W{0,3}(1[5-9]|20)\d{2}|\d{1,2}\W{1,3}[^\W\d]{3,}\W{1,3}\d{2}"  # a word and a year
)


def looks_like_time(text: str) -> bool:
    """Return whether a cell has the look of a time, in a known format or not: a part of a date, or a clock."""
    return len(text) <= 40 and _LOOKS_LIKE_TIME.search(text) is not None
