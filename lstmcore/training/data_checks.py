"""Checks of the sequences and the targets that a model is trained and judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import validation
from lstmcore.frames import is_frame, plain
from lstmcore.training.entries import IGNORED
from lstmcore.training.losses import Loss
from lstmcore.training.readout import Readout

Array = npt.NDArray[Any]
Targets: TypeAlias = Array | Sequence[Array]


def as_sequences(inputs: Any, width: int, name: str = "inputs") -> Sequence[Array]:
    """Return `inputs`, checked: a non-empty collection of finite real arrays (T, `width`); `name` is for messages.

    DataFrames in it become arrays.

    Raises
    ------
    TypeError, ValueError
        The message names the sequence, and the step with a number that is not finite.
    """
    if is_frame(inputs):
        raise TypeError(
            f"{name}: expected a sequence of arrays (T, {width}), one for each; got one {type(inputs).__name__}: "
            "[frame] for one sequence, or lstmcore.datasets.windows(frame, ...)"
        )
    if not hasattr(inputs, "__len__"):
        raise TypeError(f"{name}: expected a sequence of arrays (T, {width}); got {type(inputs).__name__}")
    if hasattr(inputs, "columns"):
        raise TypeError(
            f"{name}: expected a sequence of arrays (T, {width}), one for each sequence; got a "
            f"{type(inputs).__name__}: give the arrays of its parts, as in [frame[columns].to_numpy()]"
        )
    shape = getattr(inputs, "shape", ())
    if len(shape) == 2 and len(inputs):
        raise ValueError(
            f"{name}: expected a sequence of arrays (T, {width}), or one array (N, T, {width}); got one of shape "
            f"{shape}: give a single sequence in a list, as in [x]"
        )
    if not len(inputs):
        raise ValueError(f"{name}: expected at least one sequence; got none")
    sequences = [plain(f"{name}[{index}]", sequence) for index, sequence in enumerate(inputs)]
    for index, sequence in enumerate(sequences):
        _check_sequence(f"{name}[{index}]", sequence, width)
    return sequences


def as_codes(inputs: Any, entries: int) -> list[Array]:
    """Return `inputs`, checked: a non-empty collection of arrays (T,) of whole numbers from 0 to `entries` - 1, int64.

    (T, 1) is taken too, and a Series.

    Raises
    ------
    TypeError, ValueError
        The message names the sequence.
    """
    if is_frame(inputs) or not hasattr(inputs, "__len__") or getattr(inputs, "ndim", 2) < 2:
        raise TypeError(
            f"inputs: expected a sequence of arrays (T,) of whole numbers; got {type(inputs).__name__}: give a single "
            "sequence in a list, as in [x]"
        )
    if not len(inputs):
        raise ValueError("inputs: expected at least one sequence; got none")
    return [_codes(f"inputs[{index}]", plain(f"inputs[{index}]", one), entries) for index, one in enumerate(inputs)]


def _codes(name: str, sequence: Any, entries: int) -> Array:
    if not isinstance(sequence, np.ndarray) or sequence.dtype.kind not in "iu":
        kind = getattr(sequence, "dtype", type(sequence).__name__)
        raise TypeError(f"{name}: expected an array of whole numbers (T,), which the embedding reads; got {kind}")
    validation.refuse_masked(name, sequence)
    if sequence.ndim == 2 and sequence.shape[1] == 1:
        sequence = sequence[:, 0]
    if sequence.ndim != 1:
        raise ValueError(f"{name}: expected shape (T,); got {sequence.shape}")
    if sequence.size and not 0 <= sequence.min() <= sequence.max() < entries:
        wrong = sequence.max() if sequence.max() >= entries else sequence.min()
        raise ValueError(f"{name}: expected whole numbers from 0 to {entries - 1}, rows of the embedding; got {wrong}")
    return np.asarray(sequence, np.int64)


def _check_sequence(name: str, sequence: Any, width: int) -> None:
    if not isinstance(sequence, np.ndarray) or sequence.dtype.kind not in "fiu":
        kind = getattr(sequence, "dtype", type(sequence).__name__)
        hint = ": use .to_numpy()" if hasattr(sequence, "to_numpy") else ""
        hint = ": use np.array(...)" if kind in ("list", "tuple") else hint
        raise TypeError(f"{name}: expected an array of numbers (T, {width}); got {kind}{hint}")
    validation.refuse_masked(name, sequence)
    if sequence.ndim != 2 or sequence.shape[1] != width:
        turned = sequence.ndim == 2 and sequence.shape[0] == width
        hint = ": if its rows are the features, as in sktime and aeon, give its transpose" if turned else ""
        raise ValueError(f"{name}: expected shape (T, {width}); got {sequence.shape}{hint}")
    if not np.isfinite(sequence).all():
        step = int(np.flatnonzero(~np.isfinite(sequence).all(axis=1))[0])
        raise ValueError(f"{name}: expected finite numbers; got NaN or infinity at step {step}")


def entry_shapes(inputs: Sequence[Array], readout: Readout) -> list[tuple[int, ...]]:
    """Return the shape of the entries of each sequence: (T,) with a readout at every step, else ()."""
    return [(len(sequence),) if readout.steps == "every" else () for sequence in inputs]


def find_classes(targets: Any, outputs: int) -> list[str] | None:
    """Return the names of the classes, sorted, if the first target has names in place of numbers, else None.

    Raises
    ------
    ValueError
        Another number of names than `outputs`.
    """
    targets = _collection(targets)
    if not len(targets):
        return None
    first = validation.as_array("targets[0]", plain("targets[0]", targets[0]))
    if not _are_texts(first):
        return None
    every = (validation.as_array("targets", plain("targets", target)) for target in targets)
    found = sorted({str(name) for target in every for name in target.flat})
    if len(found) != outputs:
        raise ValueError(
            f"targets: expected {outputs} different names of classes, one for each output of the readout; got "
            f"{len(found)}: {', '.join(map(repr, found[:5]))}"
        )
    return found


def check_targets(
    targets: Any,
    inputs: Sequence[Array],
    loss: Loss,
    readout: Readout,
    *,
    classes: Sequence[str] = (),
    weights: Sequence[Array] | None = None,
) -> list[Array]:
    """Raise unless `targets` are what `loss` needs for `inputs`; return them as one array a sequence.

    Parameters
    ----------
    targets, inputs
        One target a sequence, and the checked sequences.
    loss, readout
        Those of the training: classes or vectors, of the last step or of every one.
    classes
        The names of the classes, if targets may be names.
    weights
        The weights of the entries; what an entry of weight 0 holds does not matter, and it is returned as 0.

    Raises
    ------
    TypeError
        Classes that are neither whole numbers nor names nor one-hot, values that are no numbers.
    ValueError
        Another count or shape, a class outside 0 to K - 1, an unknown name, NaN or infinity.
    """
    targets = _collection(targets)
    if len(targets) != len(inputs):
        raise ValueError(f"targets: expected {len(inputs)}, one a sequence; got {len(targets)}")
    places = {name: number for number, name in enumerate(classes)}
    outputs = readout.output_size if loss.of_linear else loss.target_size(readout.output_size)
    checked = []
    for index, (given, shape) in enumerate(zip(targets, entry_shapes(inputs, readout), strict=True)):
        name, weight = f"targets[{index}]", None if weights is None else weights[index]
        target = plain(name, given)
        array = validation.as_array(name, target)
        if shape == (0,) and array.size == 0 and not isinstance(target, np.ndarray):
            array = np.zeros((0,) if loss.of_linear else (0, outputs), np.int64)  # an empty list has no dtype
        if loss.of_linear:
            checked.append(_class_numbers(name, array, shape, outputs, places))
        else:
            checked.append(_values(name, array, (*shape, outputs), weight))
    return checked


def _collection(targets: Any) -> Any:
    """Return targets that can be counted and are in an order; a Series or a DataFrame becomes an array."""
    targets = plain("targets", targets)
    # The keys of a mapping, the letters of a text and a set would pass for targets.
    one = isinstance(targets, Mapping | Set | str | bytes) or getattr(targets, "ndim", 1) == 0
    if one or not hasattr(targets, "__len__"):
        raise TypeError(f"targets: expected an array, or a sequence of them; got {type(targets).__name__}")
    return targets


def _are_texts(array: Array) -> bool:
    return array.dtype.kind in "UT" or (array.dtype == object and all(isinstance(v, str) for v in array.flat))


def _class_numbers(name: str, array: Array, shape: tuple[int, ...], outputs: int, places: dict[str, int]) -> Array:
    """Return class numbers of `shape` from numbers, names or one-hot rows; an axis of size 1 at the end may follow."""
    if array.shape == (*shape, 1):
        array = array[..., 0]
    if places and _are_texts(array):
        unknown = [text for text in array.flat if text not in places]
        if unknown:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, places))}; got {str(unknown[0])!r}")
        array = np.array([places[text] for text in array.flat], np.int64).reshape(array.shape)
    if array.shape == (*shape, outputs) and outputs > 1 and array.dtype.kind in "biuf":
        if not (((array == 0) | (array == 1)).all() and (array.sum(axis=-1) == 1).all()):
            raise ValueError(f"{name}: expected class numbers, or one-hot rows of zeros and one 1; got other rows")
        array = array.argmax(axis=-1)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected class numbers of an integer dtype; got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}; got {array.shape}")
    wrong = array[(array != IGNORED) & ((array < 0) | (array >= outputs))]
    if wrong.size:
        raise ValueError(f"{name}: expected class numbers 0 to {outputs - 1}; got {wrong.min()}")
    return array


def _values(name: str, array: Array, shape: tuple[int, ...], weight: Array | None) -> Array:
    """Return finite values of `shape`; the axis of a single output may be missing."""
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected numbers; got {array.dtype}")
    if shape[-1] == 1 and array.shape == shape[:-1]:
        array = array[..., None]
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}; got {array.shape}")
    if weight is not None:
        array = np.where(weight[..., None] > 0, array, 0)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers; got NaN or infinity")
    return array
