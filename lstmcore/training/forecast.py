"""Forecasting a series: how it is cut into training and held-out rows, and how forecasts are judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from lstmcore.config import integer
from lstmcore.datasets.csvfile import Fill, Series
from lstmcore.datasets.windows import Windows, mean_absolute, root_mean_square
from lstmcore.training.model import SequenceModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastTask:
    """A task to forecast a column from its past; kept in the model's file.

    Attributes
    ----------
    target
        The column.
    window, horizon
        The last `window` values give the next `horizon` ones.
    season
        Rows of a season, for the seasonal-naive forecast.
    test_rows
        The last rows, held out from training.
    fill
        The treatment of gaps.

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

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise TypeError(f"task target: expected the name of a column; got {self.target!r}")
        for name in ("window", "horizon", "season", "test_rows"):
            object.__setattr__(self, name, integer(f"task {name}", getattr(self, name), 1))
        if self.fill not in get_args(Fill):
            raise ValueError(f"task fill: expected one of {', '.join(get_args(Fill))}; got {self.fill!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the task in JSON types."""
        return {"kind": "forecast", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ForecastTask:
        """Return the task that `to_dict` described.

        Raises
        ------
        TypeError, ValueError
            Not what `to_dict` gives.
        """
        known = [item.name for item in fields(cls)]
        if set(values) != {"kind", *known}:
            raise ValueError(f"task: expected kind, {', '.join(known)}; got {', '.join(sorted(map(str, values)))}")
        return cls(**{name: values[name] for name in known})

    def training(self, series: Series) -> Windows:
        """Return the windows whose targets lie before the held-out rows; no held-out value fills a gap in them.

        A gap that reaches the held-out rows is cut off: it holds neither targets nor the last value of a window.

        Raises
        ------
        ValueError
            Fewer than one row held out, or too few rows before them.
        """
        stop = self._first_test_row(series)
        series.filled(self.fill)  # a gap that cannot be filled, also a held-out one, is an error before any work
        measured = np.flatnonzero(~series.gaps[:stop])
        stop = int(measured[-1]) + 1 if measured.size else 0
        return Windows.cut(series.head(stop).filled(self.fill), self.window, self.horizon)

    def held_out(self, series: Series) -> Windows:
        """Return the windows whose targets lie in the held-out rows; each sees the real values before its targets."""
        return Windows.cut(series.filled(self.fill), self.window, self.horizon, start=self._first_test_row(series))

    def _first_test_row(self, series: Series) -> int:
        if len(series) < 2:
            raise ValueError(f"{series.name}: expected at least 2 rows, to train on and to hold out; got {len(series)}")
        if not 0 < self.test_rows < len(series):
            raise ValueError(
                f"{series.name}: expected 1 to {len(series) - 1} test rows of {len(series)}; got {self.test_rows}"
            )
        return len(series) - self.test_rows


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of one way to forecast, in units of the series, over all held-out windows and steps."""

    name: str
    rmse: float
    mae: float


def forecasts(model: SequenceModel, windows: Windows) -> npt.NDArray[np.float64]:
    """Return (count, horizon): the model's forecasts in units of the series."""
    return windows.absolute(np.stack(model.predict(tuple(windows.inputs))))


def scores(model: SequenceModel, windows: Windows, season: int) -> list[Score]:
    """Return the scores of the model, of the last value and of the seasonal-naive forecast.

    The seasonal-naive forecast is left out if the history is too short for it.
    """
    ways = {"model": forecasts(model, windows)}
    if int(windows.origins[0]) + 1 >= season:
        ways[f"seasonal naive ({season} rows ago)"] = windows.seasonal_naive_forecast(season)
    ways["last value"] = windows.last_value_forecast()
    return [
        Score(name, root_mean_square(values - windows.actual), mean_absolute(values - windows.actual))
        for name, values in ways.items()
    ]
