"""Weights of entries: those that the caller gives, and those of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import validation
from lstmcore.frames import plain
from lstmcore.scalars import finite
from lstmcore.training.entries import IGNORED
from lstmcore.training.losses import Loss

Array = npt.NDArray[Any]
#: One number for each class, by its number or name or in order; or ``"balanced"``.
ClassWeight: TypeAlias = str | Mapping[Any, float] | Sequence[float]
Targets: TypeAlias = Array | Sequence[Array]


def check_weights(weights: Any, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Return the weights of the entries of each sequence, float64.

    Parameters
    ----------
    weights
        A number for each sequence, or an array (T,) for each, of numbers >= 0 or of bool: a mask.
    shapes
        The shape of the entries of each sequence: () or (T,).

    Raises
    ------
    TypeError, ValueError
        Another count or shape, no numbers, negative ones, or none above 0.
    """
    weights = plain("sample_weight", weights)
    if not hasattr(weights, "__len__"):
        raise TypeError(f"sample_weight: expected a number or an array a sequence; got {type(weights).__name__}")
    if len(weights) != len(shapes):
        raise ValueError(f"sample_weight: expected {len(shapes)}, one a sequence; got {len(weights)}")
    checked = []
    for index, (given, shape) in enumerate(zip(weights, shapes, strict=True)):
        name = f"sample_weight[{index}]"
        array = validation.as_array(name, plain(name, given))
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: expected numbers >= 0; got {array.dtype}")
        if array.shape not in ((), shape):
            raise ValueError(f"{name}: expected one number{f', or shape {shape}' if shape else ''}; got {array.shape}")
        if not (np.isfinite(array).all() and (array >= 0).all()):
            raise ValueError(f"{name}: expected finite numbers >= 0; got {array.min()}")
        checked.append(np.broadcast_to(array, shape).astype(np.float64))
    if not any(array.any() for array in checked):
        raise ValueError("sample_weight: expected at least one number above 0; got zeros only")
    return checked


def count_classes(targets: Targets, outputs: int) -> Array:
    """Return (K,): how many entries of the targets are of each of the K = `outputs` classes."""
    every = np.concatenate([np.atleast_1d(target) for target in targets])
    return np.bincount(every[every != IGNORED], minlength=outputs)


def class_table(weight: ClassWeight, counts: Array, names: Sequence[Any], outputs: int) -> Array:
    """Return (K,): the weight of each class.

    Parameters
    ----------
    weight
        ``"balanced"``: entries / (classes that are there * entries of the class); a mapping from a class number, or a
        name, to its weight, 1 for those that it lacks; or K numbers.
    counts
        (K,) how many entries of the training part each class has.
    names
        The names of the classes; empty for none.
    outputs
        K.

    Raises
    ------
    TypeError, ValueError
        Another text, a class that is not there, numbers that are not finite or below 0.
    """
    if isinstance(weight, str):
        if weight != "balanced":
            raise ValueError(f"class_weight: expected 'balanced', a mapping or {outputs} numbers; got {weight!r}")
        return np.asarray(counts.sum() / (max(np.count_nonzero(counts), 1) * np.maximum(counts, 1)))
    table = np.ones(outputs)
    if not isinstance(weight, Mapping):
        if len(weight) != outputs:
            raise ValueError(f"class_weight: expected {outputs} numbers, one a class; got {len(weight)}")
        weight = dict(enumerate(weight))
    places = {name: number for number, name in enumerate(names or range(outputs))}
    for key, value in weight.items():
        number = places.get(key, key)
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < outputs:
            raise ValueError(f"class_weight: expected classes {', '.join(map(repr, places))}; got {key!r}")
        table[number] = finite(f"class_weight[{key!r}]", value)
    if (table < 0).any():
        raise ValueError(f"class_weight: expected numbers >= 0; got {table.min()}")
    return table


def with_class_weights(weights: Sequence[Array] | None, targets: Targets, table: Array) -> list[Array]:
    """Return the weights of the entries times those of their classes."""
    of_class = [table[np.where(target == IGNORED, 0, target)] for target in targets]
    return of_class if weights is None else [own * more for own, more in zip(weights, of_class, strict=True)]


def mean_weight(weights: Sequence[Array], targets: Targets, loss: Loss) -> float:
    """Return the mean weight of the entries that count, of which there is at least one."""
    total, count = 0.0, 0
    for own, target in zip(weights, targets, strict=True):
        counted = own[target != IGNORED] if loss.of_linear else own
        total, count = total + float(np.sum(counted)), count + int(np.count_nonzero(counted))
    return total / count


def require_entry(part: str, weights: Sequence[Array] | None, targets: Targets, loss: Loss) -> None:
    """Raise ValueError if no entry of a part counts: each has a weight of 0, or the class -100.

    Parameters
    ----------
    part
        The name of the part, for the message.
    weights, targets
        One of each a sequence; None for weights of 1.
    loss
        The loss of the run.
    """
    if weights is not None and not any(np.any(own) for own in weights):
        raise ValueError(f"sample_weight, class_weight: expected a weight above 0 in the {part} part; got zeros only")
    if not loss.of_linear:
        return
    for index, target in enumerate(targets):
        counts = np.asarray(target) != IGNORED
        if np.any(counts if weights is None else counts & (weights[index] > 0)):
            return
    raise ValueError(f"targets: expected a class with a weight above 0 in the {part} part; got {IGNORED} only")
