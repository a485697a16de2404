"""A forecast with its history, as a picture (needs matplotlib, the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.series import Series, steps_of
from lstmcore.datasets.time_formats import TIME_FORMATS, to_moment
from lstmcore.training.forecast import ForecastTask, forecasts
from lstmcore.training.model import SequenceModel
from lstmcore.training.plots import check_picture, require_matplotlib, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats: TypeAlias = npt.NDArray[np.float64]

_HISTORY, _FORECAST, _MARK = "#222222", "#d95f02", "#999999"
#: The share of the test errors that the band of a forecast holds, and how many of them it needs.
_BAND: Final = 0.8
_FEWEST: Final = 10
#: Panels of one picture.
MOST_PANELS: Final = 8


@dataclass(frozen=True, slots=True)
class ForecastPicture:
    """What one panel shows of a column: rows of history, forecasts of test rows, and the forecast after the last row.

    Attributes
    ----------
    title
        The name of the column, and of the series if it has one.
    history
        The series, its gaps as NaN.
    filled
        (rows,) the history as the model reads it: its gaps are filled.
    tested
        (rows,) the forecast one row ahead of each test row of the history; NaN for other rows.
    ahead
        (horizon,) the forecast.
    low, high
        (horizon,) the band of the forecast, from the errors on the test rows; None with too few of them.
    """

    title: str
    history: Series
    filled: Floats
    tested: Floats
    ahead: Floats
    low: Floats | None
    high: Floats | None


def forecast_pictures(
    model: SequenceModel, task: ForecastTask, columns: Sequence[Series], rows: int | None = None
) -> list[ForecastPicture]:
    """Return what to draw of each target of one series.

    Parameters
    ----------
    model, task
        The model and its task.
    columns
        The series of each column of the task.
    rows
        Rows of history. None shows the test rows, a window, or four horizons, whichever is most, up to 400.

    Raises
    ------
    ValueError
        As `ForecastTask.held_out`.
    """
    windows, end = task.held_out(*columns), task.at_end(*columns)
    every = replace(task, horizon=1).held_out(*columns)  # the last rows too, which whole horizons do not follow
    tested, ahead = forecasts(model, every), forecasts(model, end)[0]
    spread = windows.actual - tested[np.isin(every.origins, windows.origins)]
    rows = rows or min(max(task.test_rows, task.window, 4 * task.horizon, 20), 400)
    pictures = []
    for number, (name, series) in enumerate(zip(task.targets, columns, strict=False)):
        start = max(len(series) - rows, 0)
        shown = np.full(len(series), np.nan)
        shown[every.origins + 1] = tested[:, number, 0]
        low = high = None
        if len(spread) >= _FEWEST:
            edges = np.quantile(spread[:, number], [(1 - _BAND) / 2, (1 + _BAND) / 2], axis=0)
            low, high = ahead[number] + edges[0], ahead[number] + edges[1]
        title = f"{name}, {series.id}" if series.id else name
        history = series.take(np.arange(start, len(series), dtype=np.intp))
        filled = end.parts[number].series.values[start:]
        pictures.append(ForecastPicture(title, history, filled, shown[start:], ahead[number], low, high))
    return pictures


def plot_forecast(pictures: Sequence[ForecastPicture], path: str | Path, *, title: str = "") -> None:
    """Draw forecasts with their histories, one below the other; the ending of `path` chooses the format.

    Parameters
    ----------
    pictures
        What `forecast_pictures` returned, at most `MOST_PANELS`.
    path, title
        The file, and the heading of the picture.

    Raises
    ------
    ImportError
        matplotlib is missing.
    ValueError
        No pictures or too many, or an ending that matplotlib does not write.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 0 < len(pictures) <= MOST_PANELS:
        raise ValueError(f"pictures: expected 1 to {MOST_PANELS}; got {len(pictures)}")
    kind = check_picture(path)
    figure = Figure(figsize=(9.5, 1.3 + 2.7 * len(pictures)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axes, picture in zip(panels, pictures, strict=True):
        _draw(axes, picture)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    save_picture(figure, path, kind, title)


def _moments(series: Series, ahead: int) -> tuple[Any, Any]:
    """Return the positions of the rows of a series, and of the rows that follow, on the axis of time."""
    steps = steps_of(series)
    next_times = [steps.after(float(series.times[-1]), k) for k in range(1, ahead + 1)]
    if series.form and TIME_FORMATS[series.form].are_dates:
        return [to_moment(time) for time in series.times.tolist()], [to_moment(time) for time in next_times]
    return series.times, np.array(next_times)


def _draw(axes: Axes, picture: ForecastPicture) -> None:
    history, ahead = picture.history, picture.ahead
    now, later = _moments(history, len(ahead))
    marker = "." if len(history) <= 60 else ""
    axes.plot(now, history.values, color=_HISTORY, linewidth=1.3, marker=marker, markersize=4, label="measured")
    if history.gaps.any():
        axes.plot(now, picture.filled, color=_HISTORY, linewidth=1.0, linestyle=":", label="filled")
    if np.isfinite(picture.tested).any():
        label = "forecast one row ahead, test rows"
        axes.plot(now, picture.tested, color=_FORECAST, linewidth=1.0, alpha=0.75, linestyle="--", label=label)
    axes.axvline(now[-1], color=_MARK, linewidth=1.0, linestyle=":")
    line = [now[-1], *later]
    values = np.array([picture.filled[-1], *ahead])
    marks: Any = {"marker": "o", "markersize": 4, "markevery": slice(1, None)}
    axes.plot(line, values, color=_FORECAST, linewidth=2.0, label="forecast", **marks)
    if picture.low is not None and picture.high is not None:
        low, high = (np.array([picture.filled[-1], *edge]) for edge in (picture.low, picture.high))
        label = f"{_BAND:.0%} of the test errors"
        axes.fill_between(line, low, high, color=_FORECAST, alpha=0.2, linewidth=0, label=label)
    axes.set_title(picture.title, loc="left", fontsize="medium", parse_math=False)
    axes.margins(x=0.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if isinstance(now, list):
        from matplotlib import dates

        untyped: Any = dates
        locator = untyped.AutoDateLocator(maxticks=9)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator))
