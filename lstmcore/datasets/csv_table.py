"""The rows of a CSV or Parquet file: columns of numbers, and columns whose cells are kept as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.csv_numbers import read_number
from lstmcore.datasets.csv_text import Given, find_format, read_rows
from lstmcore.datasets.dates import Times, Unreadable, may_be_times, parse_times
from lstmcore.extras import installing
from lstmcore.files import check_regular
from lstmcore.notices import Finding, notify
from lstmcore.suggestions import did_you_mean, shortened

Rows = Iterator[tuple[int, list[str]]]

#: Names of columns that hold times, also as plain numbers.
TIME_NAMES: Final = frozenset({"date", "datetime", "time", "timestamp", "ds", "year", "t", "index", "step"})
#: Names of columns that divide a year or a day, so that a time in another column comes more than once.
_PARTS: Final = frozenset({"quarter", "month", "week", "day", "hour", "minute", "second", "period"})
#: First rows that decide which columns may hold times; of the others no cell is kept.
_FIRST_ROWS: Final = 100


class Wanted(NamedTuple):
    """The columns that are read.

    Attributes
    ----------
    numbers
        Columns of numbers. None takes all that are not in `texts`, nor `time`, nor dates.
    texts
        Columns whose cells are kept.
    time
        The column with the times; None finds it, ``"-"`` says that there is none.
    optional
        Columns whose cells are kept if there are such.
    """

    numbers: Sequence[str] | None
    texts: Sequence[str] = ()
    time: str | None = None
    optional: Sequence[str] = ()


class TimeColumn(NamedTuple):
    """The column with the times, by its number, what it holds, and what may surprise about it."""

    column: int | None
    times: Times | None
    note: str = ""


@dataclass
class Table:
    """What is read of a file. `values` and `cells` have the columns by their numbers."""

    name: str
    wanted: Wanted
    header: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    values: dict[int, list[float]] = field(default_factory=dict)
    cells: dict[int, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, name: str | None, wanted: Wanted, given: Given) -> Table:
        """Read a file.

        Parameters
        ----------
        path, name
            The file, and what messages call it: None for its path.
        wanted
            The columns to read.
        given
            What the user says about the text.

        Raises
        ------
        ValueError, OSError, ImportError
            As `lstmcore.datasets.read_csv`.
        """
        check_regular(path)
        table, file = cls(str(path) if name is None else name, wanted), Path(path)
        if file.suffix.casefold() == ".parquet":
            if any(given):
                raise ValueError(f"separator, decimal, encoding: only for a CSV file; got {file.name!r}")
            table._take(_parquet_rows(file, table.name), ".", ",")
            return table
        time = [] if wanted.time in (None, "-") else [str(wanted.time)]
        form = find_format(file, table.name, [*(wanted.numbers or ()), *wanted.texts, *time], given)
        table._take(read_rows(file, table.name, form), form.decimal, form.separator)
        if form.found:
            notify(form.found, 5, Finding)
        return table

    @staticmethod
    def read_header(path: str | Path, given: Given) -> tuple[str, ...]:
        """Return the names of the columns of a file; errors are those of `read`."""
        check_regular(path)
        file, name = Path(path), str(path)
        if file.suffix.casefold() == ".parquet":
            rows = _parquet_rows(file, name)
        else:
            rows = read_rows(file, name, find_format(file, name, (), given))
        return tuple(cell.strip() for cell in next(rows, (0, []))[1])

    def _take(self, rows: Rows, decimal: str, separator: str) -> None:
        """Take the header, then all rows."""
        self.header = [cell.strip() for cell in next(rows, (0, []))[1]]
        first = list(islice(rows, _FIRST_ROWS))
        numbers = self._number_columns([row for _, row in first], decimal)
        self.values = {column: [] for column in numbers}
        self.cells = {column: [] for column in range(len(self.header)) if column not in self.values}
        empty: list[int] = []
        for line, row in chain(first, rows):
            if not row:
                empty.append(line)
                continue
            if len(self.header) == 1:
                for column in self.values:
                    self.values[column] += [math.nan] * len(empty)
                self.lines += empty
            empty = []
            if len(row) != len(self.header):
                raise ValueError(self._wrong_width(line, row, separator))
            for column, values in self.values.items():
                values.append(read_number(self.where(line, column), row[column], decimal))
            for column, cells in self.cells.items():
                cells.append(row[column].strip())
            self.lines.append(line)
            if len(self.lines) == _FIRST_ROWS:
                self._drop()
        if not self.lines:
            raise ValueError(f"{self.name}: expected rows after the header; got none")
        if len(self.lines) < _FIRST_ROWS:
            self._drop()

    def where(self, line: int, column: int) -> str:
        """Return the place of a cell, for messages."""
        return f"{self.name}, line {line}, column {self.header[column]!r}"

    def _wrong_width(self, line: int, row: list[str], separator: str) -> str:
        hint = ""
        if separator == "," and len(row) > len(self.header):
            hint = ": a cell with a comma must be in quotes, or the separator another one (--separator)"
        return f"{self.name}, line {line}: expected {len(self.header)} cells as in the header; got {len(row)}{hint}"

    def _number_columns(self, first: list[list[str]], decimal: str) -> list[int]:
        """Return the columns of numbers, after a check that all wanted columns are there."""
        texts = [self.column(name) for name in self._texts()]
        time = self.wanted.time
        times = [] if time in (None, "-") else [self.column(str(time))]
        taken = {*texts, *times}
        if time is None:
            taken |= {k for k in range(len(self.header)) if self._is_time_name(k)}
        whole = [row for row in first if len(row) == len(self.header)]
        cells = [[row[column].strip() for row in whole] for column in range(len(self.header))]
        others = [k for k in range(len(self.header)) if k not in taken and not _are_dates(cells[k], decimal)]
        if self.wanted.numbers is None:
            return others
        numbers = [self.column(name) for name in self.wanted.numbers]
        if (dates := next((k for k in numbers if _are_dates(cells[k], decimal)), None)) is not None:
            listed = ", ".join(self.header[k] for k in others) or "others"
            cell = next(filter(None, cells[dates]))[:40]
            raise ValueError(
                f"{self.name}, column {self.header[dates]!r}: expected numbers; got times such as "
                f"{cell!r}: name this column with --time, and choose from {listed}"
            )
        return numbers

    def _drop(self) -> None:
        """Keep the cells of columns that are wanted, may hold times, or are the first: those of labels."""
        kept = {self.column(name) for name in self._texts()} | set(list(self.cells)[:2])
        if self.wanted.time not in (None, "-"):
            kept.add(self.column(str(self.wanted.time)))
        self.cells = {
            column: cells
            for column, cells in self.cells.items()
            if column in kept or (self.wanted.time is None and may_be_times(cells, numbers=self._is_time_name(column)))
        }

    def _texts(self) -> list[str]:
        """Return the columns of texts, with the optional ones that are there."""
        return [*self.wanted.texts, *(name for name in self.wanted.optional if name in self.header)]

    def _is_time_name(self, column: int) -> bool:
        return self.header[column].casefold() in TIME_NAMES

    def column(self, name: str) -> int:
        """Return the number of a column.

        Raises
        ------
        TypeError
            The name is no text.
        ValueError
            No such column, or several.
        """
        if not isinstance(name, str):
            raise TypeError(f"{self.name}: expected the name of a column, a text; got {name!r}")
        if not any(self.header):
            raise ValueError(
                f"{self.name}: expected a header row with the names of the columns; got an empty file or line"
            )
        if (count := self.header.count(name)) != 1:
            found = "no such column" if count == 0 else f"{count} of them"
            hint = ": give each column a name of its own" if count else did_you_mean(name, self.header)
            raise ValueError(
                f"{self.name}, line 1: expected one column {name!r}; got {found} in {shortened(self.header)}"
                f"{self._header_hint() or hint}"
            )
        return self.header.index(name)

    def _header_hint(self) -> str:
        if len(self.header) > 1:
            return ""
        signs = [sign for sign in (";", "\t", "|", ",", " ") if sign in self.header[0]]
        if not signs:
            return ""
        if signs[0] == ",":
            return " (the whole row is in quotes: save the file without quotes around rows)"
        return f" (it is one cell: if {signs[0]!r} separates cells, choose it with --separator, and unquote whole rows)"

    def find_times(self, other_than: set[int], key: int | None = None) -> TimeColumn:
        """Return the column with the times and what it holds; None without one.

        Columns whose names say that they hold times come first.

        Parameters
        ----------
        other_than
            Columns that are left out.
        key
            The column that tells series or sequences apart, each of which has its own times; None for one of them.

        Raises
        ------
        ValueError
            A cell that is no time in a column that has them, or that the user named.
        """
        if self.wanted.time == "-":
            return TimeColumn(None, None)
        named = self.wanted.time is not None
        choices = [self.column(str(self.wanted.time))] if named else sorted(
            (column for column in self.cells if column not in other_than),
            key=lambda column: not self._is_time_name(column),
        )  # fmt: skip
        unknown = ""
        for column in choices:
            times = parse_times(self.cells[column], numbers=named or self._is_time_name(column))
            if isinstance(times, Times) and (named or not self._is_part(column, times, key)):
                return TimeColumn(column, times, self._ambiguous(column, times))
            if isinstance(times, Times):
                unknown = unknown or self._part(column)
            if (isinstance(times, Unreadable) and times.mostly_read) or (named and not isinstance(times, Times)):
                raise ValueError(self._no_time(column, times.row if isinstance(times, Unreadable) else 0))
            if isinstance(times, Unreadable):
                unknown = unknown or self._unknown(column)
        return TimeColumn(None, None, unknown)

    def _no_time(self, column: int, row: int) -> str:
        return (
            f"{self.where(self.lines[row], column)}: expected a time as in the other rows; got "
            f"{self.cells[column][row][:40]!r}: name another column with --time, or '-' for rows that follow one "
            "another as they stand"
        )

    def _ambiguous(self, column: int, times: Times) -> str:
        if not times.other:
            return ""
        return (
            f"{self.name}, column {self.header[column]!r}: {self.cells[column][0]!r} was read as {times.form}, and "
            f"{times.other} fits all rows too: write the times as 2020-12-31 if that is wrong"
        )

    def _unknown(self, column: int) -> str:
        return (
            f"{self.where(self.lines[0], column)}: expected times in a known format, such as 2020-12-31; got "
            f"{self.cells[column][0][:40]!r}: order and steps of the rows were not checked; --time - says that they "
            "follow one another as they stand"
        )

    def _part(self, column: int) -> str:
        part = next(name for name in self.header if name.casefold() in _PARTS)
        return (
            f"{self.name}, column {self.header[column]!r}: expected each time once; got only a part of the time, "
            f"beside {part!r}: order and steps of the rows were not checked; make one column of both, such as 1959-03, "
            "or choose --time - for rows that follow one another as they stand"
        )

    def _is_part(self, column: int, times: Times, key: int | None) -> bool:
        """Return whether a column of plain numbers is only a part of the time, as the year beside the month is."""
        if times.are_dates or not {name.casefold() for name in self.header} & _PARTS:
            return False
        groups = [""] * len(times.values) if key is None else self.cells[key]
        return len(set(zip(groups, times.values.tolist(), strict=True))) < len(times.values)

    def groups(self, column: int, what: str) -> dict[str, npt.NDArray[np.intp]]:
        """Return the rows of each value of a column of texts, in the order in which the file begins them.

        Parameters
        ----------
        column, what
            The number of the column, and what its cells name, for messages.

        Raises
        ------
        ValueError
            An empty cell.
        """
        rows: dict[str, list[int]] = {}
        for row, cell in enumerate(self.cells[column]):
            if not cell:
                raise ValueError(
                    f"{self.where(self.lines[row], column)}: expected the name of a {what}; got an empty cell"
                )
            rows.setdefault(cell, []).append(row)
        return {name: np.array(numbers, np.intp) for name, numbers in rows.items()}


def _are_dates(cells: list[str], decimal: str) -> bool:
    """Return whether some cells look like times and none is a number."""
    for cell in cells:
        try:
            if not math.isnan(read_number("", cell, decimal)):
                return False
        except ValueError:
            continue
    return bool(cells) and may_be_times(cells, numbers=False)


def _parquet_rows(path: Path, name: str) -> Rows:
    """Yield the header and the rows of a Parquet file, as a CSV file has them."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError(f"{name}: a Parquet file needs pandas: {installing('parquet')}") from error
    try:
        frame: Any = pandas.read_parquet(path)
    except ImportError as error:
        raise ImportError(f"{name}: a Parquet file needs pandas and pyarrow: {installing('parquet')}") from error
    if frame.index.name is not None:
        frame = frame.reset_index()
    for column in frame.select_dtypes("datetime").columns:
        if (frame[column].dropna() == frame[column].dropna().dt.normalize()).all():
            frame[column] = frame[column].dt.date  # days, not moments
    yield 1, [str(column) for column in frame.columns]
    to_text: Callable[[Any], str] = lambda cell: "" if pandas.isna(cell) else str(cell)  # noqa: E731  (typed)
    for line, row in enumerate(frame.itertuples(index=False, name=None), 2):
        yield line, [to_text(cell) for cell in row]
