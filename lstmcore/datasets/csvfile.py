"""One column of a CSV file as a series, or as several series that another column tells apart."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple, TextIO

import numpy as np

from lstmcore.datasets.dates import Times, parse_times
from lstmcore.datasets.series import Series, in_order, with_even_steps
from lstmcore.files import check_regular
from lstmcore.notices import notify

_GAPS: Final = frozenset({"", "na", "n/a", "nan", "null", "none"})
#: The largest number that is read: the squares of such numbers, and their sums, are float64s too.
_LARGEST: Final = 1e150
#: Characters of a row: a file without line ends is refused before it fills the memory.
_LONGEST_ROW: Final = 1 << 20
#: Names of columns that hold times as plain numbers.
_TIME_NAMES: Final = frozenset({"date", "datetime", "time", "timestamp", "ds", "year", "t", "index", "step"})
#: Names of columns that divide a year or a day, so that a time in another column comes more than once.
_PARTS: Final = frozenset({"quarter", "month", "week", "day", "hour", "minute", "second", "period"})


class Layout(NamedTuple):
    """How the rows of a table are read.

    Attributes
    ----------
    series
        The column that tells several series apart; None for one series.
    time
        The column with the times. None takes the first that holds dates; ``"-"`` takes the rows as they stand.
    sort
        Whether to sort the rows by time; without it, rows that do not ascend are an error.
    insert
        Whether to put in the rows that are missing between two times, as gaps; without it they are a warning.

    Examples
    --------
    >>> Layout(series="shop", sort=True).insert
    False
    """

    series: str | None = None
    time: str | None = None
    sort: bool = False
    insert: bool = False


def read_csv(
    path: str | Path,
    target: str,
    *,
    name: str | None = None,
    time: str | None = None,
    sort: bool = False,
    insert: bool = False,
) -> Series:
    r"""Read the column `target` of a CSV file with a header row.

    Empty cells and ``NA``, ``NaN``, ``null`` are gaps, which stay gaps until `Series.filled`. An empty line is one
    if the file has a single column and a value follows; other empty lines are passed over. Times must ascend evenly.

    Parameters
    ----------
    path, target
        The file, and the name of the column.
    name
        What messages call the file; None for its path.
    time, sort, insert
        As in `Layout`.

    Raises
    ------
    ValueError
        No header, no rows, no such column, a row with another number of cells, a cell that is no finite number up to
        1e150; times that do not ascend or come twice; a file that is not UTF-8 text, a folder, a pipe, a device, or
        a line of over a million characters. The message names the file, the line and the column.
    OSError
        The file cannot be read.

    Warns
    -----
    lstmcore.notices.Notice
        Times that are not evenly spaced, at the first line: every row is taken as one step.

    Examples
    --------
    >>> _ = Path("sales.csv").write_text("week,sales\n1,3.5\n2,\n3,4.5\n")
    >>> series = read_csv("sales.csv", "sales")
    >>> series.labels, series.gaps.tolist()
    (('1', '2', '3'), [False, True, False])
    """
    return read_panel(path, target, Layout(None, time, sort, insert), name=name)[0]


def read_panel(path: str | Path, target: str, layout: Layout, *, name: str | None = None) -> tuple[Series, ...]:
    r"""Read the column `target` of a CSV file as one `Series` for each value of the column ``layout.series``.

    Parameters
    ----------
    path, target, name
        As for `read_csv`.
    layout
        How the rows are read.

    Returns
    -------
    tuple
        The series in the order in which the file begins them; one for a file with one series.

    Raises
    ------
    ValueError, OSError
        As `read_csv`; a row without the name of its series.

    Warns
    -----
    lstmcore.notices.Notice
        As `read_csv`, once for all series.

    Examples
    --------
    >>> _ = Path("shops.csv").write_text("shop,week,sales\n" + "a,1,3\na,2,4\nb,1,5\nb,2,6\n")
    >>> [(series.id, series.values.tolist()) for series in read_panel("shops.csv", "sales", Layout("shop"))]
    [('a', [3.0, 4.0]), ('b', [5.0, 6.0])]
    """
    check_regular(path)
    table = _Table(str(path) if name is None else name, target, layout)
    with Path(path).open(newline="", encoding="utf-8-sig") as stream:
        table.read(stream)
    return table.split()


@dataclass
class _Lines:
    """The lines of a stream; a row of over `_LONGEST_ROW` characters is an error."""

    name: str
    stream: TextIO
    number: int = 0
    taken: int = 0  # characters of the row so far

    def __iter__(self) -> Iterator[str]:
        while line := self.stream.readline(_LONGEST_ROW + 1 - self.taken):
            self.taken += len(line)
            if self.taken > _LONGEST_ROW:
                raise ValueError(
                    f"{self.name}, line {self.number + 1}: expected a row of at most {_LONGEST_ROW} characters; got a "
                    "longer one: is it a text file with line ends, and is every quotation closed?"
                )
            self.number += 1
            yield line


@dataclass
class _Table:
    """The columns of a CSV file that make series."""

    name: str
    target: str
    layout: Layout
    header: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    cells: dict[int, list[str]] = field(default_factory=dict)  # of columns that may name rows, by their number

    def read(self, stream: TextIO) -> None:
        """Read all rows, and keep the cells of the target and of the columns that may be times or names of series."""
        lines = _Lines(self.name, stream)
        reader = csv.reader(lines, strict=True)
        try:
            self.header = [cell.strip() for cell in next(reader, [])]
            index = self._column(self.target)
            empty: list[int] = []
            for row in reader:
                lines.taken = 0
                if not row:
                    empty.append(reader.line_num)
                    continue
                if len(self.header) == 1:
                    self.lines += empty
                    self.values += [math.nan] * len(empty)
                empty = []
                self._add(reader.line_num, row, index)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name}: expected UTF-8 text; got {error.reason} at byte {error.start}") from None
        except csv.Error as error:
            raise ValueError(f"{self.name}, line {reader.line_num}: expected CSV; {error}") from None
        if not self.values:
            raise ValueError(f"{self.name}: expected rows after the header; got none")

    def _add(self, line: int, row: list[str], index: int) -> None:
        if len(row) != len(self.header):
            raise ValueError(
                f"{self.name}, line {line}: expected {len(self.header)} cells as in the header; got {len(row)}"
            )
        if not self.lines:
            self.cells = {other: [] for other in self._kept(row, index)}
        self.values.append(_number(f"{self.name}, line {line}, column {self.target!r}", row[index]))
        self.lines.append(line)
        for other, cells in self.cells.items():
            cells.append(row[other].strip())

    def _kept(self, row: list[str], index: int) -> list[int]:
        """Return the columns whose cells are kept, given the first row: series, times and labels."""
        others = [other for other in range(len(self.header)) if other != index]
        wanted = {self._column(name) for name in (self.layout.series, self._time_name()) if name is not None}
        if self.layout.time is None:
            wanted |= {other for other in others if self._times(other, [row[other].strip()]) is not None}
        return sorted(wanted | set(others[:2]))  # the first may be that of the series, and the labels the next

    def _time_name(self) -> str | None:
        return None if self.layout.time == "-" else self.layout.time

    def _times(self, column: int, cells: list[str]) -> Times | int | None:
        numbers = self.layout.time is not None or self.header[column].casefold() in _TIME_NAMES
        return parse_times(cells, numbers=numbers)

    def _column(self, name: str) -> int:
        """Return the number of a column."""
        if not any(self.header):
            raise ValueError(
                f"{self.name}: expected a header row with the names of the columns; got an empty file or line"
            )
        if (count := self.header.count(name)) != 1:
            found = "no such column" if count == 0 else f"{count} of them"
            hint = " (cells must be separated by commas)" if len(self.header) == 1 and ";" in self.header[0] else ""
            raise ValueError(
                f"{self.name}, line 1: expected one column {name!r}; got {found} in {', '.join(self.header)}{hint}"
            )
        return self.header.index(name)

    def _find_times(self, series: int | None) -> tuple[int | None, Times | None]:
        """Return the column with the times and what it holds; None without one.

        Columns whose names say that they hold times come first.
        """
        if self.layout.time == "-":
            return None, None
        named = self.layout.time is not None
        choices = [self._column(self.layout.time)] if self.layout.time is not None else sorted(
            (column for column in self.cells if column not in (series, self.header.index(self.target))),
            key=lambda column: self.header[column].casefold() not in _TIME_NAMES,
        )  # fmt: skip
        for column in choices:
            times = self._times(column, self.cells[column])
            if isinstance(times, Times) and not self._is_part(column, times, named):
                return column, times
            if isinstance(times, int) or named:
                row = times if isinstance(times, int) else 0
                raise ValueError(
                    f"{self.name}, line {self.lines[row]}, column {self.header[column]!r}: expected a time as in the "
                    f"other rows; got {self.cells[column][row][:40]!r}: name another column with --time, or '-' for "
                    "rows that follow one another as they stand"
                )
        return None, None

    def _is_part(self, column: int, times: Times, named: bool) -> bool:
        """Return whether a column of plain numbers is only a part of the time, as the year beside the month is."""
        names = {name.casefold() for name in self.header}
        return not (named or times.are_dates) and bool(names & _PARTS) and len(set(times.values)) < len(times.values)

    def split(self) -> tuple[Series, ...]:
        """Return the series, each in the order of its times.

        Raises
        ------
        ValueError
            A row without a name of its series; times that do not ascend or come twice.
        """
        key = None if self.layout.series is None else self._column(self.layout.series)
        column, times = self._find_times(key)
        values = np.array(self.values)
        target = self.header.index(self.target)
        label = column if column is not None else next((c for c in self.cells if c not in (key, target)), None)
        labels = tuple(map(str, range(len(values)))) if label is None else tuple(self.cells[label])
        moments = np.arange(len(values), dtype=np.float64) if times is None else times.values
        whole = Series(self.name, self.target, values, np.array(self.lines), np.isnan(values), labels, moments)
        made, notes = [], []
        for name, rows in self._groups(key):
            series = whole
            if key is not None:
                part = whole.take(np.array(rows, np.intp))
                series = replace(part, name=f"{whole.name}, series {name!r}", id=name)
            if column is not None and times is not None:
                hint = self._hint({key, column, target}, name)
                series = in_order(series, self.header[column], sort=self.layout.sort, hint=hint)
                series, note = with_even_steps(series, self.header[column], times.are_dates, insert=self.layout.insert)
                notes += [note] if note else []
            elif key is not None:
                series = replace(series, times=np.arange(len(series), dtype=np.float64))
            made.append(series)
        if notes:
            more = f" (and in {len(notes) - 1} more series)" if len(notes) > 1 else ""
            notify(notes[0] + more, 4)
        return tuple(made)

    def _groups(self, key: int | None) -> Iterator[tuple[str, list[int]]]:
        if key is None:
            yield "", []
            return
        groups: dict[str, list[int]] = {}
        for row, cell in enumerate(self.cells[key]):
            if not cell:
                raise ValueError(
                    f"{self.name}, line {self.lines[row]}, column {self.header[key]!r}: expected the name of a "
                    "series; got an empty cell"
                )
            groups.setdefault(cell, []).append(row)
        yield from groups.items()

    def _hint(self, used: set[int | None], name: str) -> str:
        """Return what to do about a time that comes twice in the series `name`; `used` columns tell nothing apart."""
        others = ", ".join(text for column, text in enumerate(self.header) if column not in used)
        if name or not others:
            return "remove one of them"
        return f"if the file holds several series, name the column that tells them apart with --series ({others})"


def _number(where: str, text: str) -> float:
    text = text.strip()
    if text.lower() in _GAPS:
        return math.nan
    try:
        number = float("" if "_" in text else text)  # float() takes 1_000 as Python does
    except ValueError:
        raise ValueError(f"{where}: expected a number; got {text[:40]!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number; got {text[:40]!r}")
    if abs(number) > _LARGEST:
        raise ValueError(
            f"{where}: expected a number of at most {_LARGEST:g} in size; got {text[:40]!r}: scale the column"
        )
    return number
