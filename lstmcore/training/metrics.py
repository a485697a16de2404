"""Metrics of a set, beside the loss: of classes or of values, with weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
#: Answers, targets and weights, flat -> the value of a metric.
Function: TypeAlias = Callable[[Array, Array, Array], float]


class Metric(NamedTuple):
    """A function of answers, targets and weights (n,); of class numbers (n,), or else of values (n, K)."""

    of_classes: bool
    compute: Function


def _accuracy(answers: Array, targets: Array, weights: Array) -> float:
    return float(np.average(answers == targets, weights=weights))


def _balanced_accuracy(answers: Array, targets: Array, weights: Array) -> float:
    recalls = [
        np.average(answers[targets == kind] == kind, weights=weights[targets == kind]) for kind in np.unique(targets)
    ]
    return float(np.mean(recalls))


def _f1(answers: Array, targets: Array, weights: Array) -> float:
    scores = []
    for kind in np.union1d(answers, targets):
        hits = weights[(answers == kind) & (targets == kind)].sum()
        scores.append(2 * hits / (weights[answers == kind].sum() + weights[targets == kind].sum()))
    return float(np.mean(scores))


def _mae(answers: Array, targets: Array, weights: Array) -> float:
    return float(np.average(np.abs(answers - targets).mean(axis=1), weights=weights))


def _rmse(answers: Array, targets: Array, weights: Array) -> float:
    return float(np.sqrt(np.average(np.square(answers - targets).mean(axis=1), weights=weights)))


def _r2(answers: Array, targets: Array, weights: Array) -> float:
    """Return the mean over the K values of 1 - residual / total; a constant target counts 1 if it is met, else 0."""
    residual = np.average(np.square(answers - targets), axis=0, weights=weights)
    total = np.average(np.square(targets - np.average(targets, axis=0, weights=weights)), axis=0, weights=weights)
    constant = total == 0
    return float(np.mean(np.where(constant, residual == 0, 1 - residual / np.where(constant, 1, total))))


METRICS: Final = {
    "accuracy": Metric(True, _accuracy),
    "balanced-accuracy": Metric(True, _balanced_accuracy),
    "f1": Metric(True, _f1),
    "mae": Metric(False, _mae),
    "rmse": Metric(False, _rmse),
    "r2": Metric(False, _r2),
}


def check_metrics(names: Sequence[str], of_classes: bool) -> tuple[str, ...]:
    """Return the names of metrics, which must be those of classes, or those of values.

    Raises
    ------
    TypeError, ValueError
        No sequence of names, an unknown name, or a metric of the other kind.
    """
    if isinstance(names, str):
        raise TypeError(f"metrics: expected a sequence of names; got the text {names!r}: use [{names!r}]")
    known = [name for name, metric in METRICS.items() if metric.of_classes == of_classes]
    for name in names:
        if name not in known:
            raise ValueError(f"metrics: expected some of {', '.join(known)}, which suit the loss; got {name!r}")
    return tuple(names)


def compute_metrics(names: Sequence[str], answers: Array, targets: Array, weights: Array) -> dict[str, float]:
    """Return name -> value over the entries with a weight above 0; nothing if there are none."""
    chosen = weights > 0
    if not chosen.any():
        return {}
    arrays = (answers[chosen], targets[chosen], weights[chosen].astype(np.float64))
    return {name: METRICS[name].compute(*arrays) for name in names}
