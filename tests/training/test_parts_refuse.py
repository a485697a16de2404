"""Parts of the training refuse what is no array of real numbers: by TypeError and ValueError that name it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM, Chain
from lstmcore.layers import Embedding, Linear
from lstmcore.training import (
    SGD,
    Adam,
    CrossEntropy,
    GaussianLoss,
    Loss,
    MeanSquaredError,
    QuantileLoss,
    Readout,
    SequenceModel,
    Standardizer,
    Trainer,
    batches_by_length,
    clip_by_global_norm,
    global_norm,
    pad,
    split,
)

TWO = np.ones((4, 3))
CLASSES = np.array([0, 1, 2, 0])
#: What is no array of floating-point numbers, with the type of the error and a part of its text.
NO_FLOATS: tuple[tuple[Any, type[Exception], str], ...] = (
    ([[1.0, 2.0, 3.0]] * 4, TypeError, "expected an array of numbers; got list"),
    (None, TypeError, "expected an array of numbers; got NoneType"),
    (TWO + 1j, TypeError, "expected an array of floating-point numbers; got dtype complex128"),
    (TWO.astype(int), TypeError, "expected an array of floating-point numbers; got dtype int64"),
    (TWO.astype(object), TypeError, "expected an array of floating-point numbers; got dtype object"),
    (np.ma.masked_array(TWO), TypeError, "expected a plain array; got a masked one"),
)


NO_ENTRIES: tuple[tuple[Any, type[Exception], str], ...] = (
    (np.array(1.0), ValueError, r"expected shape \(..., K with K >= 1\); got \(\)"),
    (np.ones((4, 0)), ValueError, r"expected shape \(..., K with K >= 1\); got \(4, 0\)"),
)


@pytest.mark.parametrize("loss", [CrossEntropy(), MeanSquaredError(), QuantileLoss(), GaussianLoss()])
@pytest.mark.parametrize(("outputs", "error", "told"), [*NO_FLOATS, *NO_ENTRIES])
def test_losses_refuse_outputs(loss: Loss, outputs: Any, error: type[Exception], told: str) -> None:
    targets = CLASSES if loss.of_linear else TWO
    with pytest.raises(error, match=f"^outputs: {told}"):
        loss(outputs, targets)


@pytest.mark.parametrize("loss", [QuantileLoss(), GaussianLoss()])
@pytest.mark.parametrize(("outputs", "error", "told"), [*NO_FLOATS, *NO_ENTRIES])
def test_intervals_refuse_outputs(loss: Loss, outputs: Any, error: type[Exception], told: str) -> None:
    for call in (loss.point, lambda outputs: loss.interval(outputs, 0.9)):
        with pytest.raises(error, match=f"^outputs: {told}"):
            call(outputs)


@pytest.mark.parametrize(
    ("loss", "targets", "error", "told"),
    [
        (CrossEntropy(), np.array(1), ValueError, r"targets: expected shape \(4,\), one for each entry; got \(\)"),
        (CrossEntropy(), CLASSES[:3], ValueError, r"targets: expected shape \(4,\), one for each entry; got \(3,\)"),
        (CrossEntropy(), CLASSES[:, None] * [1, 1], ValueError, r"targets: expected shape \(4,\).*; got \(4, 2\)"),
        (CrossEntropy(), CLASSES * 1.0, TypeError, "targets: expected an array of integers; got dtype float64"),
        (CrossEntropy(), [0, 1, 2, 0], TypeError, "targets: expected an array of numbers; got list"),
        (MeanSquaredError(), np.array(1.0), ValueError, r"targets: expected shape \(..., K .*; got \(\)"),
        (MeanSquaredError(), TWO + 1j, TypeError, "targets: expected an array of real numbers; got dtype complex128"),
        (MeanSquaredError(), TWO.tolist(), TypeError, "targets: expected an array of numbers; got list"),
        (QuantileLoss(), np.array(1.0), ValueError, r"targets: expected shape \(..., K .*; got \(\)"),
        (QuantileLoss(), TWO[:, :1] + 1j, TypeError, "targets: expected an array of real numbers; got dtype complex"),
        (QuantileLoss((0.1, 0.5, 0.9)), TWO, ValueError, r"targets: expected shape \(4, 1\); got \(4, 3\)"),
    ],
)
def test_losses_refuse_targets(loss: Loss, targets: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=f"^{told}"):
        loss(TWO, targets)


def test_losses_refuse_masks() -> None:
    for loss, targets in ((MeanSquaredError(), TWO), (CrossEntropy(), CLASSES)):
        with pytest.raises(TypeError, match=r"^mask: expected an array of bool or of weights; got list$"):
            loss(TWO, targets, [True] * 4)


@pytest.mark.parametrize(("value", "error", "told"), NO_FLOATS)
@pytest.mark.parametrize("make", [SGD, Adam])
def test_optimizers_refuse_arrays(make: Callable[[], Adam], value: Any, error: type[Exception], told: str) -> None:
    """A complex gradient lost its imaginary part, and whole numbers did not move."""
    rule = make()
    for parameters, gradients, name in (({"w": value}, {"w": TWO}, "parameters"), ({"w": TWO}, {"w": value}, "grad")):
        with pytest.raises(error, match=rf"^{name}\w*\['w'\]: {told}"):
            rule.step(parameters, gradients)
    assert rule.steps == 0
    for call in (global_norm, lambda gradients: clip_by_global_norm(gradients, 1.0)):
        with pytest.raises(error, match=rf"^gradients\['w'\]: {told}"):
            call({"w": value})


def test_optimizers_refuse_what_is_no_mapping() -> None:
    rule: Any = Adam()
    with pytest.raises(TypeError, match=r"^gradients: expected a mapping of names to arrays; got list"):
        rule.step({"w": TWO}, [TWO])
    with pytest.raises(TypeError, match=r"^optimizer state: expected names; got 3"):
        rule.load_state(1, {3: TWO}, {"w": TWO})
    with pytest.raises(TypeError, match=r"^sgd nesterov: expected True or False; got 'yes'"):
        SGD(0.1, momentum=0.5, nesterov="yes")  # type: ignore[arg-type]  # that is the test
    for bound in ("1", None, 1j, True):
        with pytest.raises(TypeError, match=r"^clip_norm: expected a number > 0; got"):
            clip_by_global_norm({"w": TWO}, bound)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("make", [lambda: SGD(0.5, momentum=0.5), Adam])
def test_an_optimizer_gives_arrays_without_axes(make: Callable[[], Adam]) -> None:
    """NumPy's arithmetic turns an array without axes into a scalar, which `state` and `load_state` do not take."""
    rule, value = make(), {"w": np.array(1.0, np.float32)}
    for _ in range(2):
        value = rule.step(value, {"w": np.array(0.5, np.float32)})
    assert isinstance(value["w"], np.ndarray) and value["w"].dtype == np.float32
    again = make()
    again.load_state(rule.steps, rule.state(), value)
    assert again.step(value, value) == rule.step(value, value)


@pytest.mark.parametrize("fraction", [0.5, 1e-320, np.float64(0.1)])
@pytest.mark.parametrize("chronological", [False, True])
@pytest.mark.parametrize("count", [0, 1])
def test_split_of_too_few(count: int, fraction: float, chronological: bool) -> None:
    with pytest.raises(ValueError, match=f"^validation: expected a fraction of {count} sequences that leaves some"):
        split(count, fraction, seed=0, chronological=chronological)
    assert [len(part) for part in split(count, 0, seed=0, chronological=chronological)] == [count, 0]


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"count": -1}, ValueError, "count: expected at least 0; got -1"),
        ({"count": 4.0}, TypeError, "count: expected a whole number; got 4.0"),
        ({"fraction": "0.5"}, TypeError, "validation: expected a number; got '0.5'"),
        ({"fraction": 0.5j}, TypeError, "validation: expected a number"),
        ({"fraction": float("nan")}, ValueError, "validation: expected a finite number; got nan"),
        ({"seed": -1}, ValueError, "seed: expected at least 0; got -1"),
        ({"classes": np.array(1)}, ValueError, r"classes: expected shape \(4,\), one a sequence; got \(\)"),
        ({"classes": CLASSES[:3]}, ValueError, r"classes: expected shape \(4,\), one a sequence; got \(3,\)"),
    ],
)
def test_split_refuses(change: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=f"^{told}"):
        split(**{"count": 4, "fraction": 0.5, "seed": 0, **change})


@pytest.mark.parametrize(
    ("arrays", "error", "told"),
    [
        ([np.array(1.0)], ValueError, r"arrays\[0\]: expected shape \(..., K with K >= 1\); got \(\)"),
        ([TWO, np.array(1.0)], ValueError, r"arrays\[1\]: expected shape \(..., 3\); got \(\)"),
        ([TWO, np.ones((4, 2))], ValueError, r"arrays\[1\]: expected shape \(..., 3\); got \(4, 2\)"),
        ([np.ones((4, 0))], ValueError, r"arrays\[0\]: expected shape .*; got \(4, 0\)"),
        ([TWO + 1j], TypeError, r"arrays\[0\]: expected an array of real numbers; got dtype complex128"),
        ([TWO.astype(str)], TypeError, r"arrays\[0\]: expected an array of real numbers; got dtype <U32"),
        ([[1.0, 2.0]], TypeError, r"arrays\[0\]: expected an array of numbers; got list"),
        ([], ValueError, "inputs to standardise: expected at least one step"),
    ],
)
def test_standardizer_refuses_arrays(arrays: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=f"^{told}"):
        Standardizer.fit(arrays)


def test_standardizer_refuses_values() -> None:
    """One column was spread over three by NumPy's broadcasting, and the imaginary part was lost."""
    scaling: Any = Standardizer.fit([np.arange(12.0).reshape(4, 3)])
    for call in (lambda values: scaling.apply(values, "float32"), scaling.undo):
        with pytest.raises(ValueError, match=r"^values: expected shape \(..., 3\); got \(4, 1\)"):
            call(np.ones((4, 1)))
        with pytest.raises(TypeError, match=r"^values: expected an array of real numbers; got dtype complex128"):
            call(TWO + 1j)


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        ([3, 10**30], "expected whole numbers; got object"),
        ([float("inf"), 1.0], "expected whole numbers; got float64"),
        (["3", "1"], "expected whole numbers; got <U1"),
    ],
)
def test_batches_refuse_lengths(lengths: Any, told: str) -> None:
    """What no int64 holds left as OverflowError, and a fraction was cut off."""
    with pytest.raises(TypeError, match=f"^lengths: {told}"):
        batches_by_length(lengths, 1, seed=0, epoch=1)
    assert batches_by_length([], 1, seed=0, epoch=1) == []


PARTS: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: LSTM(3, 2, seed=0, backend="numpy"),
    "Chain": lambda: Chain([LSTM(3, 2, seed=0, backend="numpy")]),
    "Linear": lambda: Linear(3, 2, seed=0),
    "Embedding": lambda: Embedding(3, 2, seed=0),
    "Readout": lambda: Readout(3, 2, seed=0),
    "SequenceModel": lambda: SequenceModel(LSTM(3, 2, seed=0, backend="numpy"), Readout(2, 1, seed=0)),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("parameters", [3, None, "weight", [("weight", TWO)], TWO])
def test_parameters_are_a_mapping(part: str, parameters: Any) -> None:
    with pytest.raises(TypeError, match=r"parameters: expected a mapping of name to array; got \w+"):
        PARTS[part]().load_parameters(parameters)


@pytest.mark.parametrize("part", PARTS)
def test_parameters_have_texts_as_names(part: str) -> None:
    with pytest.raises(ValueError, match=r"parameters: .*\b1\b"):
        PARTS[part]().load_parameters({1: TWO})


@pytest.mark.parametrize("targets", [{0: 1, 1: 0}, {"a", "b"}, "ab", b"ab", np.array(1)])
def test_targets_are_in_an_order(targets: Any) -> None:
    """The keys of a mapping, the letters of a text and a set were taken for targets, or left as KeyError."""
    model = SequenceModel(LSTM(3, 2, seed=0, backend="numpy"), Readout(2, 2, seed=0))
    with pytest.raises(TypeError, match=rf"^targets: expected an array, or .*; got {type(targets).__name__}$"):
        Trainer(model, validation=0, epochs=1, quiet=True).fit([TWO, TWO], targets)
    with pytest.raises(TypeError, match=r"^targets: expected an array, or"):
        model.evaluate([TWO, TWO], targets, "cross-entropy")


def test_batches_and_padding_refuse() -> None:
    for change, told in (({"seed": -1}, "seed"), ({"epoch": -2}, "epoch")):
        with pytest.raises(ValueError, match=f"^{told}: expected at least 0"):
            batches_by_length([1, 2], 1, **{"seed": 0, "epoch": 0, **change})
    with pytest.raises(ValueError, match=r"^lengths: expected one number a sequence; got shape \(\)"):
        batches_by_length("1", 1, seed=0, epoch=1)  # type: ignore[arg-type]  # that is the test
    sequences: Any
    for sequences, error, told in (
        ([], ValueError, "sequences: expected at least one; got none"),
        ([np.array(1.0)], ValueError, r"sequences\[0\]: expected shape \(T\); got \(\)"),
        ([TWO, np.ones((4, 2))], ValueError, r"sequences\[1\]: expected shape \(T, 3\); got \(4, 2\)"),
        ([TWO, TWO + 1j], TypeError, r"sequences\[1\]: expected an array of real numbers; got dtype complex128"),
        ([TWO, TWO.tolist()], TypeError, r"sequences\[1\]: expected an array of numbers; got list"),
    ):
        with pytest.raises(error, match=f"^{told}"):
            pad(sequences)


def test_padding_keeps_the_digits_of_every_sequence() -> None:
    """The dtype was that of the first one: 0.5 beside whole numbers became 0."""
    padded, _ = pad([np.ones((1, 1), np.int64), np.full((2, 1), 0.5)])
    assert padded[:, 1, 0].tolist() == [0.5, 0.5]
