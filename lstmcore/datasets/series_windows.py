"""A series cut into windows for forecasting, and the naive forecasts that a model must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.series import Series

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of a filled series that have `horizon` values after them.

    A window is seen relative to its last value: ``inputs = window - last``, ``targets = following values - last``.
    That takes the trend out without a look at the future; `absolute` puts the last value back.

    Attributes
    ----------
    origins
        (count,) the row of the last value of each window.

    Examples
    --------
    >>> from lstmcore import datasets
    >>> windows = Windows.cut(datasets.load("co2").filled("linear"), window=52, horizon=4)
    >>> windows.inputs.shape[1:], windows.targets.shape[1:]
    ((52, 1), (4,))
    """

    series: Series
    window: int
    horizon: int
    origins: npt.NDArray[np.intp]

    @classmethod
    def cut(cls, series: Series, window: int, horizon: int, *, start: int = 0, stop: int | None = None) -> Windows:
        """Return the windows whose targets lie in rows `start` to `stop`; their inputs may begin before `start`.

        A window is left out if its last value or a target was a gap: a filled value is no measurement to be
        judged by, and a linear fill at the origin would have seen the future.

        Parameters
        ----------
        series
            A filled series.
        window, horizon
            How many values a window has, and how many follow it; at least 1.
        start, stop
            The rows of the targets; None for the end of the series.

        Raises
        ------
        ValueError
            A window or horizon below 1, unfilled gaps, or no window at all.
        """
        for name, value in (("window", window), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1; got {value}")
        if np.isnan(series.values).any():
            raise ValueError(f"{series.name}: expected a series without gaps; fill it first")
        stop = len(series) if stop is None else stop
        origins = _measured(series, rows_of_origins(stop, window, horizon, start), horizon)
        if not origins.size:
            missing = int(series.gaps[:stop].sum())
            note = f", {missing} of them gaps" if missing else ""
            shorter = _measured(series, rows_of_origins(stop, 1, horizon, start), horizon).size
            raise ValueError(
                f"{series.name}: expected at least {max(window, start) + horizon} measured rows for window={window}, "
                f"horizon={horizon} and targets from row {start}; got {stop}{note}: "
                + ("use a shorter window" if shorter else "use a shorter horizon, or more rows")
            )
        return cls(series, window, horizon, origins)

    @classmethod
    def at_end(cls, series: Series, window: int) -> Windows:
        """Return the one window that ends the series; its horizon is 0, since nothing follows it.

        Raises
        ------
        ValueError
            Fewer rows than the window.
        """
        if len(series) < window:
            raise ValueError(f"{series.name}: expected at least {window} rows for window={window}; got {len(series)}")
        return cls(series, window, 0, np.array([len(series) - 1], np.intp))

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def last(self) -> Floats:
        """(count, 1) the last value of each window."""
        return np.asarray(self.series.values[self.origins][:, None])

    @property
    def inputs(self) -> Floats:
        """(count, window, 1) the windows relative to their last values."""
        rows = self.origins[:, None] + np.arange(1 - self.window, 1)
        return np.asarray((self.series.values[rows] - self.last)[..., None])

    @property
    def actual(self) -> Floats:
        """(count, horizon) the values that follow each window."""
        return np.asarray(self.series.values[self.origins[:, None] + np.arange(1, self.horizon + 1)])

    @property
    def targets(self) -> Floats:
        """(count, horizon) the values that follow, relative to the last values."""
        return np.asarray(self.actual - self.last)

    def absolute(self, relative: Floats) -> Floats:
        """Return forecasts that are relative to the last value as values of the series."""
        return np.asarray(relative + self.last)

    def last_value_forecast(self) -> Floats:
        """Return (count, horizon): the last value of each window, repeated."""
        return np.repeat(self.last, self.horizon, axis=1)

    def seasonal_naive_forecast(self, season: int) -> Floats:
        """Return (count, horizon): each value as one season ago, or as many whole seasons ago as the horizon needs.

        Raises
        ------
        ValueError
            `season` below 1, or longer than the history before the first window's targets.
        """
        if season < 1:
            raise ValueError(f"season: expected at least 1; got {season}")
        if season > int(self.origins[0]) + 1:
            raise ValueError(
                f"season: expected at most {int(self.origins[0]) + 1}, the rows of history before the first target; "
                f"got {season}"
            )
        ahead = np.arange(1, self.horizon + 1)
        rows = self.origins[:, None] + ahead - -(-ahead // season) * season
        return np.asarray(self.series.values[rows])


def rows_of_origins(stop: int, window: int, horizon: int, start: int = 0) -> range:
    """Return the last rows of the windows whose targets lie in rows `start` to `stop`, gaps or not; empty if none."""
    first = max(window, start) - 1
    return range(first, max(first, stop - horizon))


def _measured(series: Series, rows: range, horizon: int) -> npt.NDArray[np.intp]:
    """Return those of `rows` that are measured, with all of the `horizon` rows that follow each."""
    if not rows:
        return np.empty(0, np.intp)
    origins = np.arange(rows.start, rows.stop, dtype=np.intp)
    gaps = np.concatenate(([0], np.cumsum(series.gaps)))
    return np.asarray(origins[gaps[origins + horizon + 1] == gaps[origins]])


def root_mean_square(error: Floats) -> float:
    """Return the root of the mean square over all entries."""
    return float(np.sqrt(np.mean(np.square(error))))


def mean_absolute(error: Floats) -> float:
    """Return the mean of the absolute values over all entries."""
    return float(np.mean(np.abs(error)))
