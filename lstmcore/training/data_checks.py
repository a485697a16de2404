"""Checks of the sequences and the targets that a model is trained and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore import validation
from lstmcore.training.losses import Loss
from lstmcore.training.readout import Readout

Array = npt.NDArray[Any]
Targets: TypeAlias = Array | Sequence[Array]


def check_inputs(inputs: Sequence[Array], width: int) -> None:
    """Raise unless `inputs` is a non-empty collection of finite real arrays (T, `width`).

    Raises
    ------
    TypeError, ValueError
        The message names the sequence, and the step with a number that is not finite.
    """
    if not hasattr(inputs, "__len__"):
        raise TypeError(f"inputs: expected a sequence of arrays (T, {width}); got {type(inputs).__name__}")
    if not len(inputs):
        raise ValueError("inputs: expected at least one sequence; got none")
    for index, sequence in enumerate(inputs):
        if not isinstance(sequence, np.ndarray) or sequence.dtype.kind not in "fiu":
            kind = getattr(sequence, "dtype", type(sequence).__name__)
            raise TypeError(f"inputs[{index}]: expected an array of numbers (T, {width}); got {kind}")
        validation.refuse_masked(f"inputs[{index}]", sequence)
        if sequence.ndim != 2 or sequence.shape[1] != width:
            raise ValueError(f"inputs[{index}]: expected shape (T, {width}); got {sequence.shape}")
        if not np.isfinite(sequence).all():
            step = int(np.flatnonzero(~np.isfinite(sequence).all(axis=1))[0])
            raise ValueError(f"inputs[{index}]: expected finite numbers; got NaN or infinity at step {step}")


def check_targets(targets: Targets, inputs: Sequence[Array], loss: Loss, readout: Readout) -> list[Array]:
    """Raise unless `targets` are what `loss` needs for `inputs`; return them as one array a sequence.

    Parameters
    ----------
    targets, inputs
        One target a sequence, and the checked sequences.
    loss, readout
        Those of the training: class numbers or vectors, of the last step or of every one.

    Raises
    ------
    TypeError
        Class numbers of no integer dtype, values that are no numbers.
    ValueError
        Another count or shape, a class number outside 0 to K - 1, NaN or infinity.
    """
    if not hasattr(targets, "__len__"):
        raise TypeError(f"targets: expected an array, or a sequence of them; got {type(targets).__name__}")
    if len(targets) != len(inputs):
        raise ValueError(f"targets: expected {len(inputs)}, one a sequence; got {len(targets)}")
    lengths = [(len(sequence),) if readout.steps == "every" else () for sequence in inputs]
    return [
        _check_target(f"targets[{index}]", target, steps, loss, readout.output_size)
        for index, (target, steps) in enumerate(zip(targets, lengths, strict=True))
    ]


def _check_target(name: str, target: Any, steps: tuple[int, ...], loss: Loss, outputs: int) -> Array:
    """Return one target as an array; `steps` is (T,) for a target at every step, else empty."""
    validation.refuse_masked(name, target)
    array = validation.as_array(name, target)
    if steps == (0,) and array.size == 0 and not isinstance(target, np.ndarray):
        array = np.zeros((0,) if loss.of_linear else (0, outputs), np.int64)  # an empty list has no dtype
    shape = steps + (() if loss.of_linear else (outputs,))
    if array.dtype.kind not in ("iu" if loss.of_linear else "fiu"):
        kind = "class numbers of an integer dtype" if loss.of_linear else "numbers"
        raise TypeError(f"{name}: expected {kind}; got {array.dtype}")
    if array.shape != shape:
        hint = ""
        if loss.of_linear and array.shape == (*shape, outputs):
            hint = ": a class is its number: use targets.argmax(axis=-1)"
        elif not loss.of_linear and (*array.shape, 1) == shape:
            hint = ": use targets[..., None]"
        raise ValueError(f"{name}: expected shape {shape}; got {array.shape}{hint}")
    if loss.of_linear and array.size and not 0 <= array.min() <= array.max() < outputs:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name}: expected class numbers 0 to {outputs - 1}; got {wrong}")
    if not loss.of_linear and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers; got NaN or infinity")
    return array
