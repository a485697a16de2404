"""Windows of several columns of one series: targets, which are forecast, and features, which are only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.series import Series
from lstmcore.datasets.series_windows import Windows

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ForecastWindows:
    """Windows of K targets and F features with the same last rows.

    A target is seen relative to its last value, as `Windows` says; a feature as it stands. Of a feature no value
    after the last row of a window is read.

    Attributes
    ----------
    parts
        The windows of each target.
    features
        The filled series of each feature.
    """

    parts: tuple[Windows, ...]
    features: tuple[Series, ...] = ()

    @classmethod
    def join(cls, parts: Sequence[Windows], features: Sequence[Series]) -> ForecastWindows:
        """Return the windows that every target has, and in whose last rows every feature was measured.

        Raises
        ------
        ValueError
            No such window.
        """
        origins = parts[0].origins
        for part in parts[1:]:
            origins = np.intersect1d(origins, part.origins)
        for feature in features:
            origins = origins[origins < len(feature)]
            origins = origins[~feature.gaps[origins]]
        if not origins.size:
            columns = ", ".join([*(part.series.column for part in parts), *(one.column for one in features)])
            raise ValueError(
                f"{parts[0].series.name}: expected rows in which all of {columns} are measured, and their targets "
                "after them; got none"
            )
        return cls(tuple(replace(part, origins=origins) for part in parts), tuple(features))

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def series(self) -> Series:
        """The series of the first target."""
        return self.parts[0].series

    @property
    def origins(self) -> npt.NDArray[np.intp]:
        """(count,) the row of the last value of each window."""
        return self.parts[0].origins

    @property
    def horizon(self) -> int:
        """How many values follow a window."""
        return self.parts[0].horizon

    @property
    def inputs(self) -> Floats:
        """(count, window, K + F) the windows."""
        rows = self.origins[:, None] + np.arange(1 - self.parts[0].window, 1)
        features = [feature.values[rows][..., None] for feature in self.features]
        return np.concatenate([*(part.inputs for part in self.parts), *features], axis=2)

    @property
    def targets(self) -> Floats:
        """(count, K * horizon) the values that follow, relative to the last ones, target by target."""
        return np.concatenate([part.targets for part in self.parts], axis=1)

    @property
    def actual(self) -> Floats:
        """(count, K, horizon) the values that follow each window."""
        return self._stacked(lambda part: part.actual)

    def absolute(self, relative: Floats) -> Floats:
        """Return forecasts (count, K * horizon) that are relative to the last values as values (count, K, horizon)."""
        pieces = np.split(relative, len(self.parts), axis=1)
        return np.stack([part.absolute(piece) for part, piece in zip(self.parts, pieces, strict=True)], axis=1)

    def last_value_forecast(self) -> Floats:
        """Return (count, K, horizon): the last value of each window, repeated."""
        return self._stacked(Windows.last_value_forecast)

    def seasonal_naive_forecast(self, season: int) -> Floats:
        """Return (count, K, horizon), see `Windows.seasonal_naive_forecast`; ValueError if the history is too short."""
        return self._stacked(lambda part: part.seasonal_naive_forecast(season))

    def _stacked(self, take: Callable[[Windows], Floats]) -> Floats:
        return np.stack([take(part) for part in self.parts], axis=1)
