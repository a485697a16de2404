"""One column of a CSV file as a series, with its gaps kept as gaps."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

Fill = Literal["error", "linear", "previous"]

_GAPS: Final = frozenset({"", "na", "n/a", "nan", "null", "none"})
#: The largest number that is read: the squares of such numbers, and their sums, are float64s too.
_LARGEST: Final = 1e150


@dataclass(frozen=True, slots=True)
class Series:
    """A series of numbers at equal distances in time.

    Attributes
    ----------
    name
        What messages call it: the file or the data set.
    column
        The name of the column.
    values
        (rows,) float64; a gap is NaN until `filled`.
    lines
        (rows,) the line of the file on which each value stands.
    gaps
        (rows,) bool: where the file has no value. `filled` keeps it.
    labels
        The first other column, as text (a date, as a rule), or row numbers.
    """

    name: str
    column: str
    values: npt.NDArray[np.float64]
    lines: npt.NDArray[np.int64]
    gaps: npt.NDArray[np.bool_]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def head(self, rows: int) -> Series:
        """Return the first `rows` rows."""
        cut = slice(0, rows)
        return replace(
            self, values=self.values[cut], lines=self.lines[cut], gaps=self.gaps[cut], labels=self.labels[cut]
        )

    def filled(self, method: Fill) -> Series:
        """Return the series without NaN.

        Parameters
        ----------
        method
            ``"error"``: a gap is an error. ``"linear"``: on the straight line between the neighbours (the later one
            is in the future of the gap). ``"previous"``: the last value before the gap.

        Raises
        ------
        ValueError
            A gap, with ``"error"``; a gap without the neighbours that the method needs; an unknown method.
        """
        if method not in get_args(Fill):
            raise ValueError(f"fill: expected one of {', '.join(get_args(Fill))}; got {method!r}")
        rows = np.flatnonzero(self.gaps)
        if not rows.size or not np.isnan(self.values).any():
            return self
        known = np.flatnonzero(~self.gaps)
        first = f"{self.name}, line {self.lines[rows[0]]}, column {self.column!r}"
        if method == "error":
            raise ValueError(
                f"{first}: expected a number; got a gap ({rows.size} of {len(self)} rows have none): "
                "fill them in the file, or choose --fill linear or --fill previous"
            )
        if not known.size or rows[0] < known[0]:
            raise ValueError(f"{first}: expected a value before the gap, which fill={method!r} needs; got none")
        if method == "linear":
            if rows[-1] > known[-1]:
                line = self.lines[known[-1] + 1]
                raise ValueError(
                    f"{self.name}, line {line}, column {self.column!r}: expected a value after the gap, which "
                    "fill='linear' needs; got none: cut the end off, or choose fill='previous'"
                )
            values = np.interp(np.arange(len(self)), known, self.values[known])
        else:
            values = self.values[np.maximum.accumulate(np.where(self.gaps, 0, np.arange(len(self))))]
        return replace(self, values=values)


def read_csv(path: str | Path, target: str, *, name: str | None = None) -> Series:
    """Read the column `target` of a CSV file with a header row; further columns are labels and are not parsed.

    Empty cells and ``NA``, ``NaN``, ``null`` are gaps, which stay gaps until `Series.filled`. An empty line is one
    if the file has a single column and a value follows; other empty lines are passed over.

    Raises
    ------
    ValueError
        No header, no rows, no such column, a row with another number of cells, a cell that is no finite number up to
        1e150, or a file that is not UTF-8 text; the message names the file, the line and the column.
    OSError
        The file cannot be read.
    """
    name = str(path) if name is None else name
    values: list[float] = []
    lines: list[int] = []
    labels: list[str] = []
    with Path(path).open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = [cell.strip() for cell in next(reader, [])]
            index = _column(name, header, target)
            label = next((other for other in range(len(header)) if other != index), None)
            empty: list[int] = []
            for row in reader:
                line = reader.line_num
                if not row:
                    empty.append(line)
                    continue
                if len(header) == 1:
                    lines += empty
                    labels += [str(len(labels) + number) for number in range(len(empty))]
                    values += [math.nan] * len(empty)
                empty = []
                if len(row) != len(header):
                    raise ValueError(
                        f"{name}, line {line}: expected {len(header)} cells as in the header; got {len(row)}"
                    )
                values.append(_number(f"{name}, line {line}, column {target!r}", row[index]))
                lines.append(line)
                labels.append(str(len(labels)) if label is None else row[label].strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: expected UTF-8 text; got {error.reason} at byte {error.start}") from None
        except csv.Error as error:
            raise ValueError(f"{name}, line {reader.line_num}: expected CSV; {error}") from None
    if not values:
        raise ValueError(f"{name}: expected rows after the header; got none")
    array = np.array(values)
    return Series(name, target, array, np.array(lines), np.isnan(array), tuple(labels))


def _column(name: str, header: list[str], target: str) -> int:
    if not any(header):
        raise ValueError(f"{name}: expected a header row with the names of the columns; got an empty file or line")
    if (count := header.count(target)) != 1:
        found = "no such column" if count == 0 else f"{count} of them"
        hint = " (cells must be separated by commas)" if len(header) == 1 and ";" in header[0] else ""
        raise ValueError(f"{name}, line 1: expected one column {target!r}; got {found} in {', '.join(header)}{hint}")
    return header.index(target)


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
