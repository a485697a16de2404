"""Forecasting a series: how it is cut into training and held-out rows, and how forecasts are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.csvfile import Layout
from lstmcore.datasets.series import Fill, Series
from lstmcore.datasets.series_windows import Windows, mean_absolute, root_mean_square
from lstmcore.scalars import finite, flag, integer
from lstmcore.training.forecast_windows import ForecastWindows
from lstmcore.training.model import SequenceModel

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastTask:
    """A task to forecast columns from their past and that of other columns; kept in the model's file.

    Attributes
    ----------
    target
        The column, or the first of several.
    window, horizon
        The last `window` values give the next `horizon` ones.
    season
        Rows of a season, for the seasonal-naive forecast.
    test_rows
        The last rows of each series, held out from training.
    fill
        The treatment of gaps.
    series, time, sort, separator, decimal, encoding
        How the rows of a file are read, see `lstmcore.datasets.Layout`.
    trained_to
        Name of a series -> the time of its last row that was trained on (`Series.times`).
    other_targets, features
        More columns to forecast, and columns that are read only.

    Raises
    ------
    TypeError, ValueError
        A value of another type, or outside its domain.
    """

    target: str
    window: int
    horizon: int
    season: int
    test_rows: int
    fill: Fill
    series: str | None = None
    time: str | None = None
    sort: bool = False
    trained_to: dict[str, float] = field(default_factory=dict)
    other_targets: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        for name in ("target", "series", "time", "separator", "decimal", "encoding"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name != "target")):
                raise TypeError(f"task {name}: expected the name of a column; got {value!r}")
        for name in ("other_targets", "features"):
            names = getattr(self, name)
            if not isinstance(names, tuple | list) or not all(isinstance(column, str) for column in names):
                raise TypeError(f"task {name}: expected a list of names of columns; got {names!r}")
            object.__setattr__(self, name, tuple(names))
        if twice := [column for column in self.columns if self.columns.count(column) > 1]:
            raise ValueError(f"task targets, features: expected each column once; got {twice[0]!r} twice")
        for name in ("window", "horizon", "season", "test_rows"):
            object.__setattr__(self, name, integer(f"task {name}", getattr(self, name), 1))
        if self.fill not in get_args(Fill):
            raise ValueError(f"task fill: expected one of {', '.join(get_args(Fill))}; got {self.fill!r}")
        flag("task sort", self.sort)
        if not isinstance(self.trained_to, dict):
            raise TypeError(f"task trained_to: expected a mapping; got {type(self.trained_to).__name__}")
        for name, value in self.trained_to.items():
            finite(f"task trained_to {name!r}", value)

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns to forecast."""
        return (self.target, *self.other_targets)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read: targets, then features."""
        return (*self.targets, *self.features)

    @property
    def layout(self) -> Layout:
        """How the rows of a file are read."""
        said = (self.separator, self.decimal, self.encoding)
        return Layout(self.series, self.time, self.sort, self.fill != "error", *said)

    def to_dict(self) -> dict[str, Any]:
        """Return the task in JSON types."""
        return {
            "kind": "forecast",
            **asdict(self),
            "other_targets": [*self.other_targets],
            "features": [*self.features],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ForecastTask:
        """Return the task that `to_dict` described.

        Raises
        ------
        TypeError, ValueError
            Not what `to_dict` gives.
        """
        known = [item.name for item in fields(cls)]
        needed = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
        if not {"kind", *needed} <= set(values) <= {"kind", *known}:
            raise ValueError(f"task: expected kind, {', '.join(known)}; got {', '.join(sorted(map(str, values)))}")
        return cls(**{name: value for name, value in values.items() if name != "kind"})

    def training(self, *columns: Series) -> ForecastWindows:
        """Return the windows whose targets lie before the held-out rows; no held-out value fills a gap in them.

        A gap that reaches the held-out rows is cut off: it holds neither targets nor the last value of a window.

        Parameters
        ----------
        *columns
            The series of each column of the task, with the same rows.

        Raises
        ------
        ValueError
            Fewer than one row held out, or too few rows before them.
        """
        heads = []
        for series in self._checked(columns):
            stop = self.first_test_row(series)
            series.filled(self.fill)  # a gap that cannot be filled, also a held-out one, is an error before any work
            measured = np.flatnonzero(~series.gaps[:stop])
            heads.append(series.head(int(measured[-1]) + 1 if measured.size else 0).filled(self.fill))
        targets, features = heads[: len(self.targets)], heads[len(self.targets) :]
        return ForecastWindows.join([Windows.cut(head, self.window, self.horizon) for head in targets], features)

    def held_out(self, *columns: Series) -> ForecastWindows:
        """Return the windows whose targets lie in the held-out rows; each sees the real values before its targets."""
        filled = [series.filled(self.fill) for series in self._checked(columns)]
        targets, features = filled[: len(self.targets)], filled[len(self.targets) :]
        start = self.first_test_row(targets[0])
        parts = [Windows.cut(series, self.window, self.horizon, start=start) for series in targets]
        return ForecastWindows.join(parts, features)

    def at_end(self, *columns: Series) -> ForecastWindows:
        """Return the one window that ends the series, whose horizon is 0; ValueError for fewer rows than it has."""
        filled = [series.filled(self.fill) for series in self._checked(columns)]
        parts = tuple(Windows.at_end(series, self.window) for series in filled[: len(self.targets)])
        return ForecastWindows(parts, tuple(filled[len(self.targets) :]))

    def _checked(self, columns: tuple[Series, ...]) -> tuple[Series, ...]:
        if len(columns) != len(self.columns):
            raise ValueError(f"columns: expected a series for each of {', '.join(self.columns)}; got {len(columns)}")
        return columns

    def first_test_row(self, series: Series) -> int:
        """Return the number of the first row that is held out.

        Raises
        ------
        ValueError
            Fewer than one row held out, or none before them.
        """
        if len(series) < 2:
            raise ValueError(f"{series.name}: expected at least 2 rows, to train on and to hold out; got {len(series)}")
        if not 0 < self.test_rows < len(series):
            raise ValueError(
                f"{series.name}: expected 1 to {len(series) - 1} test rows of {len(series)}; got {self.test_rows}"
            )
        return len(series) - self.test_rows


class TrainingSet(NamedTuple):
    """Windows to learn from: inputs, targets, and how many to leave out before those that validate."""

    inputs: tuple[Floats, ...]
    targets: Floats
    purge: int


def training_set(task: ForecastTask, panel: Sequence[Sequence[Series]]) -> TrainingSet:
    """Return the training windows of all series, each with its columns; none has rows of two.

    They are in the order of their distance to the end of the training rows, so that the last ones, which validate,
    are the last of each series.

    Raises
    ------
    ValueError
        As `ForecastTask.training`, for the first series without a window.
    """
    parts = [task.training(*columns) for columns in panel]
    order = np.argsort(np.concatenate([part.origins - part.origins[-1] for part in parts]), kind="stable")
    inputs, targets = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "targets"))
    return TrainingSet(tuple(inputs[order]), targets[order], (task.horizon - 1) * len(parts))


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of one way to forecast a column, in its units, over all held-out windows and steps."""

    name: str
    rmse: float
    mae: float
    target: str

    def to_dict(self, *, several: bool) -> dict[str, Any]:
        """Return the score for a report, with its column if there are several."""
        listed: dict[str, Any] = {"target": self.target} if several else {}
        return {**listed, "name": self.name, "rmse": self.rmse, "mae": self.mae}


def forecasts(model: SequenceModel, windows: ForecastWindows) -> Floats:
    """Return (count, K, horizon): the model's forecasts in units of the series."""
    return windows.absolute(np.stack(model.predict(tuple(windows.inputs))))


def errors(model: SequenceModel, windows: ForecastWindows, season: int) -> dict[str, Floats]:
    """Return, for the model and the naive forecasts by name, forecast minus truth (count, K, horizon).

    The seasonal-naive forecast is left out if the history is too short for it.
    """
    ways = {"model": forecasts(model, windows)}
    if int(windows.origins[0]) + 1 >= season:
        ways[f"seasonal naive ({season} rows ago)"] = windows.seasonal_naive_forecast(season)
    ways["last value"] = windows.last_value_forecast()
    return {name: values - windows.actual for name, values in ways.items()}


def scores(series_errors: Sequence[Mapping[str, Floats]], targets: Sequence[str]) -> list[dict[str, Any]]:
    """Return the scores of each target over the windows of all series together, for a report.

    Parameters
    ----------
    series_errors
        The `errors` of each series; a way that one of them does not have is left out.
    targets
        The names of the columns.
    """
    pooled = {
        name: np.concatenate([found[name] for found in series_errors])
        for name in series_errors[0]
        if all(name in found for found in series_errors)
    }
    return [
        Score(name, root_mean_square(part), mean_absolute(part), target).to_dict(several=len(targets) > 1)
        for column, target in enumerate(targets)
        for name, values in pooled.items()
        for part in (values[:, column],)
    ]


def trained_windows(task: ForecastTask, windows: ForecastWindows) -> int:
    """Return how many windows have a target in a row that the model was trained on."""
    last = task.trained_to.get(windows.series.id)
    if last is None:
        return 0
    return int((windows.series.times[windows.origins + 1] <= last).sum())
