"""Windows of the series in a DataFrame, for forecasting from several columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.dates import Times, Unreadable, count_steps, parse_times
from lstmcore.frames import is_frame, open_frame
from lstmcore.notices import notify
from lstmcore.scalars import integer
from lstmcore.suggestions import did_you_mean, shortened

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FrameWindows:
    """Windows of one or several series, with the values that follow.

    A target column is seen relative to its last value in the window: that takes the trend out without a look at the
    future; `absolute` puts the last value back. Features are as they are. Windows are in the order of their distance
    to the end of their series, so that ``Trainer(chronological=True, purge=windows.purge)`` holds out the last ones.

    Attributes
    ----------
    columns, outputs
        The names of the columns of a window, targets first, and K, how many of them are targets.
    window, horizon
        How many rows a window has, and how many follow it.
    ids
        What tells each series apart; one empty text for a single series.
    tables
        (rows, columns) of each series.
    places
        (count, 2): the number of the series, and the row of the last value of each window.

    Examples
    --------
    >>> import pandas
    >>> frame = pandas.DataFrame({"load": [1.0, 2.0, 4.0, 7.0], "heat": [5.0, 6.0, 7.0, 8.0]})
    >>> made = windows(frame, target=["load"], features=["heat"], window=2, horizon=1)
    >>> made.inputs[0].tolist(), made.targets.tolist()
    ([[-1.0, 5.0], [0.0, 6.0]], [[2.0], [3.0]])
    """

    columns: tuple[str, ...]
    outputs: int
    window: int
    horizon: int
    ids: tuple[Any, ...]
    tables: tuple[Floats, ...]
    places: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def inputs(self) -> Floats:
        """(count, window, columns) the windows."""
        found = self._rows(np.arange(1 - self.window, 1))
        found[..., : self.outputs] -= self.last[:, None]
        return found

    @property
    def last(self) -> Floats:
        """(count, K) the last values of the targets in each window."""
        return self._rows(np.zeros(1, np.intp))[:, 0, : self.outputs]

    @property
    def actual(self) -> Floats:
        """(count, horizon, K) the values that follow each window; not of those at the end of a series."""
        return self._rows(np.arange(1, self.horizon + 1))[..., : self.outputs]

    @property
    def targets(self) -> Floats:
        """(count, horizon * K) the values that follow, relative to the last values."""
        return (self.actual - self.last[:, None]).reshape(len(self), -1)

    @property
    def purge(self) -> int:
        """How many windows share targets with those after them: ``horizon - 1`` of each series."""
        return (self.horizon - 1) * len(self.tables)

    @property
    def series(self) -> list[Any]:
        """The id of the series of each window."""
        return [self.ids[number] for number in self.places[:, 0]]

    def absolute(self, relative: Any) -> Floats:
        """Return forecasts (count, horizon * K), relative to the last values, as values (count, horizon, K).

        Raises
        ------
        ValueError
            Another number of values.
        """
        size = self.horizon * self.outputs
        if np.size(relative) != len(self) * size:
            raise ValueError(
                f"relative: expected shape ({len(self)}, {size}), a row for each window; got {np.shape(relative)}"
            )
        return np.reshape(relative, (len(self), self.horizon, self.outputs)) + self.last[:, None]

    def split(self, rows: int) -> tuple[FrameWindows, FrameWindows]:
        """Return the windows without a target in the last `rows` rows of their series, and those with all there.

        Raises
        ------
        ValueError
            One of the two has no window.
        """
        rows = integer("rows", rows, self.horizon)
        ends = np.array([len(table) for table in self.tables])[self.places[:, 0]] - rows
        parts = (self.places[:, 1] + self.horizon < ends, self.places[:, 1] + 1 >= ends)
        for name, part in zip(("before", "in"), parts, strict=True):
            if not part.any():
                raise ValueError(f"rows: expected a number that leaves windows {name} the last rows; got {rows}")
        learned, tested = (replace(self, places=self.places[part]) for part in parts)
        return learned, tested

    def at_end(self) -> FrameWindows:
        """Return the window that ends each series: its forecast is of rows that are not there yet."""
        rows = [(number, len(table) - 1) for number, table in enumerate(self.tables)]
        return replace(self, places=np.array(rows, np.intp))

    def _rows(self, offsets: npt.NDArray[np.intp]) -> Floats:
        found = np.empty((len(self), len(offsets), len(self.columns)))
        for number, table in enumerate(self.tables):
            chosen = np.flatnonzero(self.places[:, 0] == number)
            rows = self.places[chosen, 1, None] + offsets
            if rows.size and rows.max() >= len(table):
                raise ValueError("windows at the end of a series: expected none for known values; got some")
            found[chosen] = table[rows]
        return found


def windows(  # noqa: PLR0913  (the columns by what they are, and the sizes)
    frame: Any,
    *,
    target: Sequence[str],
    window: int,
    horizon: int = 1,
    features: Sequence[str] = (),
    series: str | None = None,
    time: str | None = None,
    sort: bool = False,
) -> FrameWindows:
    """Cut the series of a DataFrame of pandas, polars or another library into windows; none has rows of two series.

    Parameters
    ----------
    frame
        A DataFrame with a row for each step, without missing numbers in the columns that are used.
    target
        The columns to forecast.
    window, horizon
        How many rows a window has, and how many follow it.
    features
        Columns that are read beside the targets.
    series
        The column that tells the series apart; None for one.
    time
        The column of times, dates or numbers, which must ascend within each series; None takes the rows as they stand.
        If they are not even, that is a warning: every row is one step.
    sort
        Whether to sort each series by its times.

    Raises
    ------
    ImportError
        narwhals is not installed.
    TypeError
        No DataFrame; a column of another kind.
    ValueError
        Columns that are not there, missing numbers, times that do not ascend or come twice, too few rows.

    Examples
    --------
    >>> import pandas
    >>> frame = pandas.DataFrame({"shop": list("aaaabbbb"), "week": [1, 2, 3, 4] * 2, "sold": range(8)})
    >>> made = windows(frame, target=["sold"], series="shop", time="week", window=2)
    >>> len(made), made.series, made.absolute(made.targets)[:, 0, 0].tolist()
    (4, ['a', 'b', 'a', 'b'], [2.0, 6.0, 3.0, 7.0])
    """
    if not is_frame(frame) or not hasattr(table := open_frame("frame", frame), "columns"):
        hint = ": use frame.to_frame()" if hasattr(frame, "to_frame") else ""
        raise TypeError(f"frame: expected a DataFrame; got {type(frame).__name__}{hint}")
    for name, listed in (("target", target), ("features", features)):
        if isinstance(listed, str):
            raise TypeError(f"{name}: expected a sequence of columns; got the text {listed!r}: use [{listed!r}]")
    columns = (*target, *features)
    if not target or len(set(columns)) < len(columns):
        raise ValueError(f"target, features: expected different columns, at least one target; got {columns}")
    for column in (*columns, *(name for name in (series, time) if name is not None)):
        if column not in table.columns:
            near = did_you_mean(str(column), map(str, table.columns))
            if column in getattr(getattr(frame, "index", None), "names", ()):  # of pandas
                near = ", which is the index: use frame.reset_index()"
            raise ValueError(f"frame: expected columns {shortened([*map(str, table.columns)])}; got {column!r}{near}")
    window, horizon = integer("window", window, 1), integer("horizon", horizon, 1)
    values = np.stack([_numbers(column, table[column].to_numpy()) for column in columns], axis=1)
    if not len(values):
        raise ValueError(f"frame: expected at least {window + horizon} rows; got 0")
    ids, rows_of = _groups(None if series is None else table[series].to_numpy(), len(values))
    if time is not None:
        times = _times(time, table[time].to_numpy())
        rows_of = [_in_order(times, rows, (time, name), sort) for name, rows in zip(ids, rows_of, strict=True)]
    tables = tuple(values[rows] for rows in rows_of)
    for name, own in zip(ids, tables, strict=True):
        _check_table(own, columns, _named(name), (window, horizon))
    places = [(number, row) for number, own in enumerate(tables) for row in range(window - 1, len(own) - horizon)]
    order = sorted(places, key=lambda place: place[1] - len(tables[place[0]]))
    return FrameWindows(columns, len(target), window, horizon, ids, tables, np.array(order, np.intp))


def _check_table(own: Floats, columns: tuple[str, ...], where: str, sizes: tuple[int, int]) -> None:
    """Raise ValueError for a missing number, or fewer rows than a window and its horizon, `sizes`, have."""
    if np.isnan(own).any():
        row, place = (int(found[0]) for found in np.nonzero(np.isnan(own)))
        raise ValueError(
            f"{where}column {columns[place]!r}: expected numbers; got none in row {row} of the series: "
            "fill it, and add a column that says where"
        )
    if len(own) < sum(sizes):
        window, horizon = sizes
        hint = "use a shorter window" if len(own) > horizon else "use a shorter horizon, or more rows"
        raise ValueError(
            f"{where.removesuffix(', ')}: expected at least {window + horizon} rows for window={window} and "
            f"horizon={horizon}; got {len(own)}: {hint}"
        )


def _named(name: Any) -> str:
    return f"frame, series {name!r}, " if name != "" else "frame, "


def _numbers(column: str, values: Any) -> Floats:
    try:
        if values.dtype.kind not in "biufO":
            raise TypeError(f"dtype {values.dtype}")
        return np.array([np.nan if v is None else v for v in values] if values.dtype == object else values, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"column {column!r}: expected numbers; got {error}: give each category a column") from None


def _groups(values: Any, count: int) -> tuple[tuple[Any, ...], list[npt.NDArray[np.intp]]]:
    """Return the ids of the series in the order in which they come, and the rows of each."""
    if values is None:
        return ("",), [np.arange(count, dtype=np.intp)]
    found: dict[Any, list[int]] = {}
    for row, name in enumerate(values.tolist()):
        found.setdefault(name, []).append(row)
    return tuple(found), [np.array(rows, np.intp) for rows in found.values()]


def _times(column: str, values: Any) -> Times:
    if values.dtype.kind == "M":
        seconds = values.astype("datetime64[us]").astype(np.int64) / 1e6
        found: Times | Unreadable | None = Times(np.where(np.isnat(values), np.nan, seconds), "ISO 8601")
    elif values.dtype.kind in "iuf":
        found = Times(values.astype(np.float64), "numbers")
    else:
        found = parse_times([str(value) for value in values], numbers=False) if len(values) else None
    if not isinstance(found, Times) or not np.isfinite(found.values).all():
        raise ValueError(
            f"column {column!r}: expected a date, or a number, in each row; got {values[:3].tolist()}, ..."
        )
    return found


def _in_order(times: Times, rows: npt.NDArray[np.intp], names: tuple[str, Any], sort: bool) -> npt.NDArray[np.intp]:
    """Return the rows of a series in the order of their times; `names` are those of the column and of the series."""
    column, where = names[0], _named(names[1])
    if sort:
        rows = rows[np.argsort(times.values[rows], kind="stable")]
    own = times.values[rows]
    if (np.diff(np.sort(own)) == 0).any():
        raise ValueError(
            f"{where}column {column!r}: expected each time once; got one twice: take one row out, or name the column "
            "of the series"
        )
    back = np.flatnonzero(np.diff(own) < 0)
    if back.size:
        raise ValueError(
            f"{where}column {column!r}: expected times that ascend; row {back[0] + 1} of the series is earlier than "
            "the one before it: use sort=True"
        )
    steps = count_steps(times._replace(values=own))
    if not steps.even:
        row = int(np.flatnonzero(steps.counts != 1)[0]) + 1
        notify(f"{where}column {column!r}: expected even steps; got another before row {row}: each row is one step", 4)
    return rows
