"""A series of numbers, with its gaps kept as gaps and its rows in the order of their times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.dates import Steps, Times, count_steps
from lstmcore.datasets.time_formats import TIME_FORMATS

Fill = Literal["error", "linear", "previous"]

#: Rows that may be put into holes, for each row that is there: more is a wrong date, not a hole.
_MOST_INSERTED: Final = 10


@dataclass(frozen=True, slots=True)
class Series:
    r"""A series of numbers at equal distances in time.

    Attributes
    ----------
    name
        What messages call it: the file or the data set, and the series where a file has several.
    column
        The name of the column.
    values
        (rows,) float64; a gap is NaN until `filled`.
    lines
        (rows,) the line of the file on which each value stands.
    gaps
        (rows,) bool: where the file has no value. `filled` keeps it.
    labels
        The times as text, or the first other column, or row numbers.
    times
        (rows,) float64, ascending: seconds since 1970, numbers of a column of times, or row numbers.
    id
        The cell that tells the series of a file apart; empty for a file with one.
    form
        The name of the format in which `labels` are times; empty if they are none.

    Examples
    --------
    >>> from pathlib import Path
    >>> from lstmcore.datasets import read_csv
    >>> _ = Path("sales.csv").write_text("week,sales\n1,3.5\n2,\n3,4.5\n")
    >>> read_csv("sales.csv", "sales").filled("linear").values.tolist()
    [3.5, 4.0, 4.5]
    """

    name: str
    column: str
    values: npt.NDArray[np.float64]
    lines: npt.NDArray[np.int64]
    gaps: npt.NDArray[np.bool_]
    labels: tuple[str, ...]
    times: npt.NDArray[np.float64]
    id: str = ""
    form: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def head(self, rows: int) -> Series:
        """Return the first `rows` rows."""
        return self.take(np.arange(min(rows, len(self)), dtype=np.intp))

    def take(self, rows: npt.NDArray[np.intp]) -> Series:
        """Return these rows, in this order."""
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in ("values", "lines", "gaps", "times")}
        return replace(self, labels=tuple(self.labels[row] for row in rows), **arrays)

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


def in_order(series: Series, time: str, *, sort: bool, hint: str) -> Series:
    """Return the series with ascending times.

    Parameters
    ----------
    series
        With the times of its rows, in the order of the file.
    time
        The column with the times, for messages.
    sort
        Whether to sort the rows.
    hint
        What to do about a time that comes twice, for the message.

    Raises
    ------
    ValueError
        A time that comes twice; times that do not ascend, without `sort`.
    """
    order = np.argsort(series.times, kind="stable").astype(np.intp)
    repeats = np.flatnonzero(np.diff(series.times[order]) == 0)
    if repeats.size:
        first, again = order[repeats[0]], order[repeats[0] + 1]
        raise ValueError(
            f"{series.name}, line {series.lines[again]}, column {time!r}: expected each time once; got "
            f"{series.labels[again]!r} again, as on line {series.lines[first]}: {hint}"
        )
    back = np.flatnonzero(np.diff(series.times) < 0)
    if not back.size:
        return series
    if not sort:
        row = back[0] + 1
        raise ValueError(
            f"{series.name}, line {series.lines[row]}, column {time!r}: expected times that ascend; got "
            f"{series.labels[row]!r} after {series.labels[row - 1]!r}: sort the rows with --sort"
        )
    return series.take(order)


def steps_of(series: Series) -> Steps:
    """Return the steps of the times of a series, which ascend."""
    return count_steps(Times(series.times, series.form or "numbers"))


def next_labels(series: Series, count: int) -> tuple[str, ...]:
    """Return the times of the `count` rows that follow, written as `labels` are; none if these are no times.

    Parameters
    ----------
    series
        With ascending times; where they are not even, a step is the usual distance.
    count
        How many rows follow.
    """
    if not series.form or len(series) < 2:
        return ()
    steps, write = steps_of(series), TIME_FORMATS[series.form].write
    return tuple(write(steps.after(series.times[-1], k), series.labels[-1]) for k in range(1, count + 1))


def with_even_steps(series: Series, time: str, *, insert: bool) -> tuple[Series, str | None]:
    """Return the series with the rows that are missing between its times put in as gaps, if `insert`.

    Parameters
    ----------
    series
        With ascending times and their format.
    time
        The column with the times.
    insert
        Whether to put rows in.

    Returns
    -------
    Series
        The series, longer if rows were missing.
    str or None
        A warning: how the steps are uneven still, at the first such line.

    Raises
    ------
    ValueError
        Far more rows missing than there are.
    """
    steps = steps_of(series)
    counts = steps.counts
    if steps.even:
        return series, None
    odd = np.flatnonzero(counts == 0) if not counts.all() else np.flatnonzero(counts != 1)
    row = int(odd[0]) + 1
    where = f"{series.name}, line {series.lines[row]}, column {time!r}: expected even steps; got"
    between = f"between {series.labels[row - 1]!r} and {series.labels[row]!r}"
    if not counts.all():
        return series, f"{where} another distance {between}: every row is taken as one step"
    missing = int(counts.sum()) - len(counts)
    found = f"{where} {counts[row - 1] - 1} missing {between}"
    if not insert:
        return series, (
            f"{found} ({missing} in all): every row is taken as one step; --fill linear or --fill previous puts the "
            "missing rows in"
        )
    if missing > _MOST_INSERTED * len(series):
        raise ValueError(
            f"{found}, and {missing} in all, too many for {len(series)} rows: mend the dates, or choose --fill error"
        )
    return _insert(series, steps), None


def _insert(series: Series, steps: Steps) -> Series:
    """Return the series with a gap for each step without a row."""
    places = np.concatenate(([0], np.cumsum(steps.counts)))
    rows = np.searchsorted(places, np.arange(places[-1] + 1))  # of the row itself, or of the next one
    is_new = np.ones(len(rows), np.bool_)
    is_new[places] = False
    longer = series.take(rows)
    times, labels, write = longer.times.copy(), list(longer.labels), TIME_FORMATS[series.form].write
    for place in np.flatnonzero(is_new):
        before = int(rows[place]) - 1
        times[place] = steps.after(series.times[before], int(place - places[before]))
        labels[place] = write(times[place], series.labels[before])
    values = np.where(is_new, np.nan, longer.values)
    return replace(longer, values=values, gaps=longer.gaps | is_new, times=times, labels=tuple(labels))
