"""Columns of a CSV or Parquet file as a series, or as several series that another column tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lstmcore.datasets.csv_table import Table, TimeColumn, Wanted
from lstmcore.datasets.csv_text import Given
from lstmcore.datasets.series import Series, in_order, with_even_steps
from lstmcore.notices import notify


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
    separator
        The sign between cells, such as ``";"`` or ``"tab"``. None finds it from the header and the first rows.
    decimal
        ``"."`` or ``","``. None takes the comma if numbers in the first rows have one, and none has a point.
    encoding
        The encoding of the text, such as ``"cp1252"``. None takes UTF-8, UTF-16 or, if it is neither, cp1252.

    Examples
    --------
    >>> Layout(series="shop", sort=True).insert
    False
    """

    series: str | None = None
    time: str | None = None
    sort: bool = False
    insert: bool = False
    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None

    @property
    def given(self) -> Given:
        """What is said about the text."""
        return Given(self.separator, self.decimal, self.encoding)


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
    A file whose name ends in ``.parquet`` is read by pandas.

    Parameters
    ----------
    path, target
        The file, and the name of the column.
    name
        What messages call the file; None for its path.
    time, sort, insert
        As in `Layout`; `read_panel` takes a whole one.

    Raises
    ------
    ValueError
        No header, no rows, no such column, a row with another number of cells, a cell that is no finite number up to
        1e150; times that do not ascend or come twice; a file that is no text, a folder, a pipe, a device, or a line
        of over a million characters. The message names the file, the line and the column.
    OSError
        The file cannot be read.
    ImportError
        A Parquet file without pandas or pyarrow.

    Warns
    -----
    lstmcore.notices.Notice
        Times that are not evenly spaced, at the first line: every row is taken as one step. Times in a format that
        is not known. A separator other than a comma, a decimal comma, an encoding other than UTF-8, which were found.

    Examples
    --------
    >>> _ = Path("sales.csv").write_text("week,sales\n1,3.5\n2,\n3,4.5\n")
    >>> series = read_csv("sales.csv", "sales")
    >>> series.labels, series.gaps.tolist()
    (('1', '2', '3'), [False, True, False])
    """
    return read_columns(path, [target], Layout(None, time, sort, insert), name=name)[0][0]


def read_header(path: str | Path, layout: Layout) -> tuple[str, ...]:
    r"""Return the names of the columns of a CSV or Parquet file.

    Parameters
    ----------
    path, layout
        The file, and how it is written.

    Raises
    ------
    ValueError, OSError, ImportError
        As `read_csv`.

    Examples
    --------
    >>> _ = Path("heat.csv").write_text("hour,load\n1,3\n")
    >>> read_header("heat.csv", Layout())
    ('hour', 'load')
    """
    return Table.read_header(path, layout.given)


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
    ValueError, OSError, ImportError
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
    return tuple(columns[0] for columns in read_columns(path, [target], layout, name=name))


def read_columns(
    path: str | Path, columns: Sequence[str], layout: Layout, *, name: str | None = None
) -> tuple[tuple[Series, ...], ...]:
    r"""Read several columns of a CSV file, for each value of the column ``layout.series``.

    Parameters
    ----------
    path, name
        As for `read_csv`.
    columns
        Their names, each once.
    layout
        How the rows are read.

    Returns
    -------
    tuple
        For each series of the file, one `Series` a column, with the same rows.

    Raises
    ------
    ValueError, OSError, ImportError
        As `read_panel`.

    Warns
    -----
    lstmcore.notices.Notice
        As `read_panel`.

    Examples
    --------
    >>> _ = Path("heat.csv").write_text("hour,load,heat\n1,3,20\n2,4,21\n")
    >>> ((load, heat),) = read_columns("heat.csv", ["load", "heat"], Layout())
    >>> load.values.tolist(), heat.column
    ([3.0, 4.0], 'heat')
    """
    if twice := [column for column in columns if list(columns).count(column) > 1]:
        raise ValueError(f"columns: expected each once; got {twice[0]!r} twice")
    texts = () if layout.series is None else (layout.series,)
    table = Table.read(path, name, Wanted(columns, texts, layout.time), layout.given)
    return _split(table, layout, [table.column(column) for column in columns])


def _split(table: Table, layout: Layout, columns: list[int]) -> tuple[tuple[Series, ...], ...]:
    """Return the columns of each series, in the order of its times."""
    key = None if layout.series is None else table.column(layout.series)
    found = table.find_times({*columns} if key is None else {*columns, key}, key)
    notes = [found.note] if found.note else []
    label = found.column
    if label is None:
        label = next((column for column in table.cells if column != key), None)
    count = len(table.lines)
    labels = tuple(map(str, range(count))) if label is None else tuple(table.cells[label])
    times = np.arange(count, dtype=np.float64) if found.times is None else found.times.values
    form = "" if found.times is None else found.times.form
    wholes = []
    for column in columns:
        values = np.array(table.values[column])
        lines = np.array(table.lines)
        name = table.header[column]
        wholes.append(Series(table.name, name, values, lines, np.isnan(values), labels, times, form=form))
    groups = {"": None} if key is None else table.groups(key, "series")
    made, uneven = [], []
    for group, rows in groups.items():
        parts = wholes
        if rows is not None:
            name = f"{table.name}, series {group!r}"
            parts = [replace(whole.take(rows), name=name, id=group) for whole in wholes]
        hint = _hint(table, {key, label, *columns}, group)
        ordered = [_ordered(table, part, found, layout, hint) for part in parts]
        made.append(tuple(part for part, _ in ordered))
        uneven += [note for _, note in ordered[:1] if note]
    if uneven:
        more = f" (and in {len(uneven) - 1} more series)" if len(uneven) > 1 else ""
        notes.append(uneven[0] + more)
    for note in notes:
        notify(note, 5)
    return tuple(made)


def _ordered(table: Table, part: Series, found: TimeColumn, layout: Layout, hint: str) -> tuple[Series, str | None]:
    """Return one column of one series in the order of its times, and a warning about its steps."""
    if found.column is None or found.times is None:
        return replace(part, times=np.arange(len(part), dtype=np.float64)), None
    time = table.header[found.column]
    return with_even_steps(in_order(part, time, sort=layout.sort, hint=hint), time, insert=layout.insert)


def _hint(table: Table, used: set[int | None], group: str) -> str:
    """Return what to do about a time that comes twice in a series; `used` columns tell nothing apart."""
    others = ", ".join(text for column, text in enumerate(table.header) if column not in used)
    if group or not others:
        return "remove one of them"
    return f"if the file holds several series, name the column that tells them apart with --series ({others})"
