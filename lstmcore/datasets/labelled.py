"""Labelled sequences of one's own: a CSV file with a row a step, or a NumPy archive."""

from __future__ import annotations

import math
import os
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.csv_table import Table, Wanted
from lstmcore.datasets.csvfile import Layout
from lstmcore.datasets.series import Fill, Series
from lstmcore.files import check_regular, tell_damage
from lstmcore.notices import notify
from lstmcore.unpacking import ZIP_FAULTS, UnpackBudget, zip_faults_told

Array = npt.NDArray[Any]

#: Version of a header in an archive -> its reader.
_HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
#: Errors of NumPy at the text of a header, which it reads as Python, beside ValueError.
_HEADER_FAULTS: Final = (SyntaxError, TypeError, IndexError, tokenize.TokenError)
#: Bytes of a sequence or a label of an archive beside its numbers: an array, a name and their places in lists.
_BYTES_OF_A_ROW: Final = 256


class LabelLayout(NamedTuple):
    """The columns of a table of labelled sequences, one row a step.

    Attributes
    ----------
    id
        The column that tells the sequences apart.
    label
        The column with the class, the same in every row of a sequence; None for a file without classes.
    features
        The columns that are read; empty for all others but those of times.
    rows
        How the rows are read; ``rows.time`` orders the steps of each sequence.
    fill
        What to do about gaps, see `Series.filled`.

    Examples
    --------
    >>> LabelLayout("walk", "gait").features
    ()
    """

    id: str
    label: str | None = None
    features: tuple[str, ...] = ()
    rows: Layout = Layout()
    fill: Fill = "error"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Sequences with names, and a label each if they are known.

    Attributes
    ----------
    name
        What messages call the file.
    inputs
        One array (T, I) a sequence, float64.
    ids
        The names of the sequences.
    labels
        The label of each; None if the file has none.
    features
        The names of the I columns; empty if they have none.

    Examples
    --------
    >>> data = Labelled("mine", (np.ones((3, 2)),), ("a",), ("walk",), ("x", "y"))
    >>> len(data), data.input_size
    (1, 2)
    """

    name: str
    inputs: tuple[Array, ...]
    ids: tuple[str, ...]
    labels: tuple[str, ...] | None
    features: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def input_size(self) -> int:
        """I: the width of a step."""
        return int(self.inputs[0].shape[1])


def read_labelled(
    path: str | Path, layout: LabelLayout, *, name: str | None = None, needs_label: bool = True
) -> Labelled:
    r"""Read labelled sequences from a CSV or Parquet file with one row a step.

    Parameters
    ----------
    path
        The file.
    layout
        Its columns.
    name
        What messages call the file; None for its path.
    needs_label
        Whether a file without the column ``layout.label`` is an error; else its sequences have no labels.

    Raises
    ------
    ValueError, OSError, ImportError
        As `read_csv`; one column for two uses, two labels in one sequence, steps that do not ascend in time, no column
        of numbers.

    Warns
    -----
    lstmcore.notices.Notice
        As `read_csv`, but for times that are not evenly spaced.

    Examples
    --------
    >>> _ = Path("walks.csv").write_text("walk,t,x,gait\n1,0,0.5,slow\n1,1,0.7,slow\n2,0,3.5,fast\n")
    >>> data = read_labelled("walks.csv", LabelLayout("walk", "gait"))
    >>> data.ids, data.labels, data.features, data.inputs[0].tolist()
    (('1', '2'), ('slow', 'fast'), ('x',), [[0.5], [0.7]])
    """
    _refuse_doubles(layout)
    labelled = [] if layout.label is None else [layout.label]
    texts, optional = ([layout.id, *labelled], []) if needs_label else ([layout.id], labelled)
    wanted = Wanted(layout.features or None, texts, layout.rows.time, optional)
    table = Table.read(path, name, wanted, layout.rows.given)
    if not table.values:
        raise ValueError(f"{table.name}: expected columns of numbers besides {', '.join(texts)}; got none")
    there = layout.label is not None and (needs_label or layout.label in table.header)
    key, label = table.column(layout.id), table.column(str(layout.label)) if there else None
    found = table.find_times({key} if label is None else {key, label}, key)
    if found.note:
        notify(found.note, 3)
    times = np.arange(len(table.lines), dtype=np.float64) if found.times is None else found.times.values
    groups = table.groups(key, "sequence")
    values = np.array([table.values[column] for column in table.values]).T
    inputs = []
    for group, rows in groups.items():
        ordered = _in_time(table, rows, times, found.column, layout)
        inputs.append(_filled(table, ordered, values, layout, group))
    labels = None if label is None else tuple(_label(table, label, group, rows) for group, rows in groups.items())
    return Labelled(table.name, tuple(inputs), tuple(groups), labels, tuple(table.header[k] for k in table.values))


def _refuse_doubles(layout: LabelLayout) -> None:
    """Raise ValueError if a column is to be read as two things."""
    if layout.label == layout.id:
        raise ValueError(f"label: expected another column than that of id; got {layout.label!r} for both")
    for name, column in (("id", layout.id), ("label", layout.label), ("time", layout.rows.time)):
        if column in layout.features:
            raise ValueError(f"features: expected columns besides those of id, label and time; got {column!r}, {name}")


def _in_time(
    table: Table, rows: npt.NDArray[np.intp], times: Array, column: int | None, layout: LabelLayout
) -> npt.NDArray[np.intp]:
    """Return the rows of a sequence in the order of their times."""
    order = np.argsort(times[rows], kind="stable")
    distances = np.diff(times[rows] if not layout.rows.sort else times[rows][order])
    wrong = np.flatnonzero(distances < 0) if (distances < 0).any() else np.flatnonzero(distances == 0)
    if column is not None and wrong.size:
        one, two = (rows if not layout.rows.sort else rows[order])[wrong[0] : wrong[0] + 2]
        cells = table.cells[column]
        hint = "take one of the rows out" if times[one] == times[two] else "sort the rows with --sort"
        raise ValueError(
            f"{table.where(table.lines[two], column)}: expected times that ascend in each sequence; got "
            f"{cells[two]!r} after {cells[one]!r}: {hint}, or choose --time -"
        )
    return rows[order]


def _label(table: Table, column: int, group: str, rows: npt.NDArray[np.intp]) -> str:
    """Return the label of a sequence, which is the same in all its rows."""
    cells = table.cells[column]
    first: str = cells[rows[0]]
    for row in rows:
        if not cells[row]:
            raise ValueError(
                f"{table.where(table.lines[row], column)}: expected the class of the sequence {group!r}; got an empty "
                "cell: fill it, or take the rows of this sequence out"
            )
        if cells[row] != first:
            raise ValueError(
                f"{table.where(table.lines[row], column)}: expected one label for all rows of the sequence {group!r}; "
                f"got {cells[row]!r} after {first!r}"
            )
    return first


def _filled(table: Table, rows: npt.NDArray[np.intp], values: Array, layout: LabelLayout, group: str) -> Array:
    """Return the values (T, I) of a sequence without gaps."""
    taken = values[rows]
    gaps = np.isnan(taken)
    if not gaps.any():
        return np.asarray(taken)
    lines, steps = np.array(table.lines)[rows], np.arange(len(rows), dtype=np.float64)
    for number, column in enumerate(table.values):
        name = f"{table.name}, sequence {group!r}"
        labels = tuple(map(str, range(len(rows))))
        series = Series(name, table.header[column], taken[:, number], lines, gaps[:, number], labels, steps)
        taken[:, number] = series.filled(layout.fill).values
    return np.asarray(taken)


def read_archive(path: str | Path, *, part: str = "", name: str | None = None) -> Labelled:
    r"""Read labelled sequences from a NumPy archive (``.npz``) with arrays ``X`` and ``y``.

    Parameters
    ----------
    path
        The file. ``X`` is (N, T, I), or (N, T) for I = 1; ``y`` (N,) holds the labels, numbers or texts, and may be
        missing. ``lengths`` (N,) holds T of each sequence, if they are padded at the end.
    part
        ``"train"`` or ``"test"`` reads ``X_train`` and so on.
    name
        What messages call the file; None for its path.

    Raises
    ------
    ValueError
        No such archive, arrays that are not there or of other shapes, numbers that are not finite.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> np.savez("walks.npz", X=np.ones((4, 7, 2)), y=np.array(["slow", "fast", "slow", "slow"]), lengths=[7, 5, 3, 7])
    >>> data = read_archive("walks.npz")
    >>> data.labels[:2], data.inputs[1].shape
    (('slow', 'fast'), (5, 2))
    """
    name, end = str(path) if name is None else name, f"_{part}" if part else ""
    budget = UnpackBudget(os.stat(path).st_size)
    with open_archive(path, name) as archive:
        names, members = list(archive.files), frozenset(archive.zip.namelist())
        keys = [f"{word}{end}" for word in ("X", "y", "lengths")]
        arrays = {key: _unpacked(archive, key, budget) for key in keys if f"{key}.npy" in members}
    x = arrays.get(f"X{end}")
    if x is None:
        raise ValueError(f"{name}: expected an array 'X{end}'; got {', '.join(names) or 'none'}")
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or x.dtype.kind not in "fiu" or 0 in x.shape:
        raise ValueError(f"{name}: X{end}: expected numbers (N, T, I); got {x.dtype} {x.shape}")
    count, steps = x.shape[:2]
    lengths = np.asarray(arrays.get(f"lengths{end}", np.full(count, steps)))
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > steps:
        raise ValueError(f"{name}: lengths{end}: expected {count} whole numbers from 1 to {steps}; got {lengths.dtype}")
    inputs = tuple(np.asarray(row[:length], np.float64) for row, length in zip(x, lengths, strict=True))
    for number, sequence in enumerate(inputs):
        if not np.isfinite(sequence).all():
            raise ValueError(f"{name}: X{end}[{number}]: expected finite numbers; got NaN or infinity")
    labels = _archive_labels(name, arrays, end, count)
    return Labelled(name, inputs, tuple(map(str, range(count))), labels)


@contextmanager
def open_archive(path: str | Path, name: str | None = None) -> Iterator[Any]:
    """Open a NumPy archive; its faults, in the block too, are a ValueError that begins with `name`, or the path."""
    check_regular(path)
    told = tell_damage(str(path) if name is None else name, "a NumPy archive of numbers and texts", ZIP_FAULTS)
    with told, Path(path).open("rb") as stream:
        if stream.read(2) != b"PK":
            raise ValueError("got no archive: save the arrays by np.savez, under the names X and y")
        stream.seek(0)
        with zip_faults_told():
            archive = np.load(stream, allow_pickle=False)
        with archive:
            yield archive


def _unpacked(archive: Any, key: str, budget: UnpackBudget) -> Array:
    """Return an array of an archive, unless it is not what its header says, or may be made to fill memory."""
    info = archive.zip.getinfo(f"{key}.npy")
    with zip_faults_told(), archive.zip.open(info) as stream:
        shape, dtype = _header(key, stream)
        start = stream.tell()
    if dtype.hasobject:
        raise ValueError(
            f"{key}: expected numbers or texts; got objects: save it without: pad X, give lengths, and make y "
            "numbers or texts"
        )
    if (size := math.prod(shape) * dtype.itemsize) != info.file_size - start:
        raise ValueError(f"{key}: expected {size:,} bytes, those of {dtype} {shape}; got {info.file_size:,} in all")
    budget.take(key, info.file_size + _bytes_made(shape, dtype), info.compress_size)
    with zip_faults_told(), archive.zip.open(info) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _bytes_made(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes that reading an array takes beside its own: a copy in float64, or the texts of labels."""
    rows = _BYTES_OF_A_ROW * (shape[0] if shape else 1)
    if dtype.kind in "SU":
        return rows + 2 * 4 * math.prod(shape) * dtype.itemsize
    return rows + (0 if dtype == np.float64 else 8 * math.prod(shape))


def _header(key: str, stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return what an array of an archive says of itself."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"{key}: expected numbers or texts; got columns with names")
    try:
        shape, _, dtype = _HEADERS[version](stream)
    except _HEADER_FAULTS as error:
        raise ValueError(f"{key}: expected the header of an array; got {error}") from error
    return shape, dtype


def _archive_labels(name: str, arrays: Mapping[str, Array], end: str, count: int) -> tuple[str, ...] | None:
    labels = arrays.get(f"y{end}")
    if labels is None:
        return None
    labels = labels[:, 0] if labels.shape == (count, 1) else labels
    if labels.shape != (count,) or labels.dtype.kind not in "iubSU":
        raise ValueError(
            f"{name}: y{end}: expected {count} labels, whole numbers or texts; got {labels.dtype} {labels.shape}"
        )
    decoded = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
    return tuple(str(label) for label in decoded.tolist())


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct labels: by their number if all are whole numbers, else by the alphabet.

    Examples
    --------
    >>> class_names(["10", "9", "9"]), class_names(["b", "a"])
    (('9', '10'), ('a', 'b'))
    """
    distinct = set(labels)
    numbers = all(label.lstrip("+-").isdecimal() for label in distinct)
    return tuple(sorted(distinct, key=lambda label: (int(label) if numbers else 0, label)))
