"""Medians and their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[Any]


def spread(values: Values) -> float:
    """Return the distance of the quartiles as a share of the median."""
    low, middle, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75))
    return float((high - low) / middle) if middle else 0.0


def geometric_mean(values: Values) -> float:
    """Return the n-th root of the product."""
    return float(np.exp(np.mean(np.log(np.asarray(values, float)))))


def paired_ratio(
    above: Values, below: Values, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return the median of ``above / below`` over rounds and its bootstrap interval (of resampled rounds).

    The two have to be of the same rounds, in which the candidates ran one shortly after the other.
    """
    ratios = np.asarray(above, float) / np.asarray(below, float)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(draws, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    low, high = np.quantile(medians, ((1 - level) / 2, (1 + level) / 2))
    return float(np.median(ratios)), float(low), float(high)


def unpaired_ratio(
    above: Values, below: Values, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio of the medians of rounds of two runs, and its bootstrap interval."""
    rng, parts = np.random.default_rng(seed), (np.asarray(above, float), np.asarray(below, float))
    top, bottom = (np.median(part[rng.integers(len(part), size=(draws, len(part)))], axis=1) for part in parts)
    low, high = np.quantile(top / bottom, ((1 - level) / 2, (1 + level) / 2))
    return float(np.median(parts[0]) / np.median(parts[1])), float(low), float(high)
