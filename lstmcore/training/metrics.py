"""Metrics of a set, beside the loss: of classes or of values, with weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from lstmcore.arrays import as_real, dtype_kind, namespace_of, to_host

Array = Any
#: Answers, targets and weights, flat -> the value of a metric.
Function: TypeAlias = Callable[[Array, Array, Array], float]


class Metric(NamedTuple):
    """A function of answers, targets and weights (n,); of class numbers (n,), or else of values (n, K)."""

    of_classes: bool
    compute: Function


def _average(values: Array, weights: Array) -> Array:
    """Return the weighted mean over the first axis, float64."""
    xp = namespace_of(values, weights)
    wide = xp.astype(values, xp.float64, copy=False)
    shares = xp.reshape(weights, (-1,) + (1,) * (values.ndim - 1))
    return xp.sum(wide * shares, axis=0) / xp.sum(weights)


def _kinds(*numbers: Array) -> list[int]:
    """Return the class numbers that there are, ascending."""
    xp = namespace_of(*numbers)
    return sorted({int(kind) for array in numbers for kind in to_host(xp.unique_values(array))})


def _accuracy(answers: Array, targets: Array, weights: Array) -> float:
    return float(_average(answers == targets, weights))


def _balanced_accuracy(answers: Array, targets: Array, weights: Array) -> float:
    there = ((kind, targets == kind) for kind in _kinds(targets))
    return float(np.mean([float(_average(answers[own] == kind, weights[own])) for kind, own in there]))


def _f1(answers: Array, targets: Array, weights: Array) -> float:
    xp, scores = namespace_of(answers, targets, weights), []
    for kind in _kinds(answers, targets):
        said, true = answers == kind, targets == kind
        hits, own, wanted = (float(xp.sum(weights[found])) for found in (said & true, said, true))
        scores.append(2 * hits / (own + wanted))
    return float(np.mean(scores))


def _mae(answers: Array, targets: Array, weights: Array) -> float:
    xp = namespace_of(answers, targets, weights)
    return float(_average(xp.mean(xp.abs(answers - targets), axis=1), weights))


def _rmse(answers: Array, targets: Array, weights: Array) -> float:
    xp = namespace_of(answers, targets, weights)
    return math.sqrt(float(_average(xp.mean(xp.square(answers - targets), axis=1), weights)))


def _r2(answers: Array, targets: Array, weights: Array) -> float:
    """Return the mean over the K values of 1 - residual / total; a constant target counts 1 if it is met, else 0."""
    xp = namespace_of(answers, targets, weights)
    residual = to_host(_average(xp.square(answers - targets), weights))
    total = to_host(_average(xp.square(targets - _average(targets, weights)), weights))
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
    """Return name -> value over the entries with a weight above 0; nothing if there are none.

    Arrays are of one library on one device, see `lstmcore.arrays`.
    """
    xp = namespace_of(answers=answers, targets=targets, weights=weights)
    chosen = weights > 0
    if not xp.any(chosen):
        return {}
    if dtype_kind(answers.dtype) == "f":
        targets = as_real(targets, answers)
    arrays = (answers[chosen], targets[chosen], xp.astype(weights[chosen], xp.float64))
    return {name: METRICS[name].compute(*arrays) for name in names}
