"""The trainer and the model refuse settings and data that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.lstm import LSTM
from lstmcore.training import (
    Callback,
    CrossEntropy,
    MeanSquaredError,
    Readout,
    SequenceModel,
    Trainer,
)
from small_models import REGRESSION, data, make, trainer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, r"loss: expected one of cross-entropy, mean-squared-error, .*; got 'hinge'"),
        ({"epochs": 0}, "epochs: expected at least 1; got 0"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"validation": 1.0}, "validation"),
        ({"input_noise": -1.0}, "input_noise"),
        ({"seed": -1}, "seed"),
        ({"epochs": 1.5}, "epochs: expected a whole number; got 1.5"),
        ({"epochs": "3"}, "epochs: expected a whole number; got '3'"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number; got 2.5"),
        ({"patience": True}, "patience: expected a whole number; got True"),
        ({"seed": 1.5}, "seed: expected a whole number; got 1.5"),
        ({"clip_norm": "1"}, "clip_norm: expected a number; got '1'"),
        ({"input_noise": None}, "input_noise: expected a number; got None"),
        (
            {"loss": 3},
            "loss: expected one of cross-entropy, mean-squared-error, .*, or a Loss; got int",
        ),
        ({"optimizer": "adam"}, r"optimizer: expected an Optimizer such as Adam\(0.001\), or None; got 'adam'"),
        ({"model": None}, "model: expected a SequenceModel; got NoneType"),
        ({"purge": 2}, "purge: needs chronological=True"),
        ({"checkpoint": "/no/such/folder/run"}, "checkpoint: expected a file in a folder that exists"),
        ({"standardize_targets": True}, "standardize_targets: expected no target_scaling of class numbers"),
        ({"schedule": 0.5}, r"schedule: expected a Schedule such as Cosine\(60\), or None; got 0.5"),
        ({"callbacks": [print]}, "callbacks: expected Callback objects; got <built-in function print>"),
        ({"callbacks": Callback()}, "callbacks: expected a sequence of Callback objects, or None; got Callback"),
        ({"class_weight": 3}, "class_weight: expected 'balanced', a mapping or a number for each class; got int"),
        ({"metrics": "f1"}, r"metrics: expected a sequence of names; got the text 'f1': use \['f1'\]"),
        ({"metrics": ["rmse"]}, "metrics: expected some of accuracy, balanced-accuracy, f1, .*; got 'rmse'"),
        ({"accumulate": 0}, "accumulate: expected at least 1; got 0"),
        ({"truncate": 0}, "truncate: expected at least 1; got 0"),
        ({"truncate": 3, "accumulate": 2}, "truncate, accumulate: expected one of the two; got truncate=3"),
        ({"truncate": 3}, "truncate: expected an LSTM in one direction"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing: expected an LSTM in one direction"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing: expected True or False; got 1"),
        ({"model": make(bidirectional=False), "truncate": 3}, "truncate: expected a readout with steps='every'; got"),
        ({"class_weight": "balanced", **REGRESSION}, "class_weight: expected a loss of classes"),
    ],
)
def test_trainer_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(**({"model": make(), "quiet": True} | settings))


def test_settings_may_be_numbers_of_any_type(tmp_path: Path) -> None:
    inputs, targets = data()
    settings: dict[str, Any] = {"epochs": np.int64(2), "batch_size": np.uint8(5), "input_noise": np.float32(0.5)}
    settings |= {"clip_norm": np.float64(1), "checkpoint": tmp_path / "run", "seed": np.int32(3)}
    whole = trainer(make(), **settings).fit(inputs, targets)
    plain: dict[str, Any] = {"epochs": 2, "batch_size": 5, "input_noise": 0.5, "clip_norm": 1.0}
    assert trainer(make(), **plain).fit(inputs, targets, resume=tmp_path / "run") == whole


@pytest.mark.parametrize("steps", ["last", "every"])
@pytest.mark.parametrize("kind", ["classes", "values"])
def test_targets_are_checked_as_inputs_are(steps: Any, kind: str) -> None:  # long: one line for each mistake
    inputs, classes = data(12)
    every = steps == "every"
    lead = [(len(sequence),) if every else () for sequence in inputs]
    good = [
        np.full(shape, c) if kind == "classes" else np.ones((*shape, 3)) for shape, c in zip(lead, classes, strict=True)
    ]
    wrong: list[tuple[Any, type[Exception], str]] = [
        (good[:11], ValueError, "targets: expected 12, one a sequence; got 11"),
        (7, TypeError, "targets: expected an array, or a sequence of them; got int"),
    ]

    def third(value: Any, error: type[Exception], message: str) -> None:
        wrong.append(([*good[:3], value, *good[4:]], error, rf"^targets\[3\]: {message}"))

    if kind == "classes":
        third(good[3] * 1.0, TypeError, "expected class numbers of an integer dtype; got float64")
        third(np.eye(3)[good[3]] * 0.5, ValueError, "expected class numbers, or one-hot rows of zeros and one 1")
        third(good[3] + 3, ValueError, "expected class numbers 0 to 2; got 3")
        third(good[3] * 0 - 1, ValueError, "expected class numbers 0 to 2; got -1")
        third(good[3].astype(str), TypeError, "expected class numbers of an integer dtype; got <U")
    else:
        third(good[3] * np.nan, ValueError, "expected finite numbers; got NaN or infinity")
        third(good[3] * np.inf, ValueError, "expected finite numbers")
        third(
            good[3][..., 0], ValueError, r"expected shape \((5, )?3,?\)" if not every else r"expected shape \(\d, 3\)"
        )
        third(good[3].astype(str), TypeError, "expected numbers; got <U")
    third(np.ma.masked_array(good[3], mask=good[3] == 0), TypeError, "expected a plain array; got a masked one")
    third([[1], [2, 3]], ValueError, "expected an array; got rows of different lengths")
    model = make(steps=steps)
    before = model.parameters
    settings = {} if kind == "classes" else REGRESSION
    for targets, error, message in wrong:
        with pytest.raises(error, match=message):
            trainer(model, **settings).fit(inputs, targets)
        with pytest.raises(error, match=message):
            model.evaluate(inputs, targets, CrossEntropy() if kind == "classes" else MeanSquaredError())
    assert model.input_scaling is None and all(model.parameters[name] is value for name, value in before.items())
    listed = [target.tolist() for target in good]
    histories = [trainer(make(steps=steps), **settings).fit(inputs, targets) for targets in (good, listed)]
    assert histories[0].epochs == histories[1].epochs


def test_numbers_that_the_dtype_cannot_hold_are_told() -> None:
    inputs, targets = data(12)
    model = make(dtype="float32")
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected numbers that fit into float32"):
        trainer(model, standardize=False).fit([sequence * 1e300 for sequence in inputs], targets)
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected numbers that fit into float32"):
        model.predict([inputs[0] * 1e300])
    with pytest.raises(ValueError, match=r"targets\[0\]: expected numbers that fit into float32"):
        trainer(model, **REGRESSION).fit(inputs, np.full((12, 3), 1e300))
    values = np.random.default_rng(0).standard_normal((12, 3)) * 1e300
    history = trainer(make(dtype="float32"), standardize_targets=True, **REGRESSION).fit(inputs, values)
    assert history.epochs[0].loss < 10


def test_evaluate_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="inputs: expected at least one sequence; got none"):
        make().evaluate([], [], CrossEntropy())
    inputs, targets = data(6)
    with pytest.raises(ValueError, match="loss: expected a loss, since this model has none: it was not trained"):
        make().evaluate(inputs, targets)
    with pytest.raises(ValueError, match=r"loss: expected one of cross-entropy, mean-squared-error, .*; got 'hinge'"):
        make().evaluate(inputs, targets, "hinge")
    for call in (lambda: make().predict(inputs, batch_size=0), lambda: make().evaluate(inputs, targets, "cross-entropy",
                                                                                     batch_size=0)):  # fmt: skip
        with pytest.raises(ValueError, match="batch_size: expected at least 1; got 0"):
            call()


def test_fit_refuses_bad_data() -> None:
    inputs, targets = data(6)
    for bad, message in (
        ([], "inputs: expected at least one sequence"),
        ([*inputs[:5], np.zeros((3, 4))], r"inputs\[5\]: expected shape \(T, 2\); got \(3, 4\)"),
        (
            [*inputs[:5], np.full((3, 2), np.nan)],
            r"inputs\[5\]: expected finite numbers; got NaN or infinity at step 0",
        ),
        (inputs[:5], "targets: expected 5, one a sequence; got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(make()).fit(bad, targets)
    with pytest.raises(TypeError, match=r"inputs\[0\]: expected an array of numbers"):
        trainer(make()).fit([np.array([["a", "b"]])] * 6, targets)


def test_model_refuses_layers_that_do_not_fit() -> None:
    lstm = LSTM(2, 4, dtype="float64", seed=0, backend="numpy")
    for readout, message in (
        (Readout(5, 1, dtype="float64"), "readout hidden_size: expected 4.*got 5"),
        (Readout(4, 1, x_size=3, dtype="float64"), "readout x_size: expected 0 or input_size=2; got 3"),
        (Readout(4, 1), "readout dtype: expected float64"),
    ):
        with pytest.raises(ValueError, match=message):
            SequenceModel(lstm, readout)


class Frame:
    """What a DataFrame shows of itself."""

    columns = ("a", "b")

    def __len__(self) -> int:
        return 5

    def to_numpy(self) -> np.ndarray[Any, Any]:
        return np.ones((5, 2))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            Frame(),
            r"inputs: expected a sequence of arrays \(T, 2\), one for each sequence; got a Frame: give the arrays",
        ),
        (
            np.ones((5, 2)),
            r"or one array \(N, T, 2\); got one of shape \(5, 2\): give a single sequence in a list, as in",
        ),
        ([Frame()], r"inputs\[0\]: expected an array of numbers \(T, 2\); got Frame: use .to_numpy\(\)"),
        ([[[1.0, 2.0]]], r"inputs\[0\]: expected an array of numbers \(T, 2\); got list: use np.array"),
    ],
)
def test_inputs_of_another_form_say_what_to_give(inputs: Any, message: str) -> None:
    model = SequenceModel(LSTM(2, 4, seed=0), Readout(4, 1, seed=0))
    with pytest.raises((TypeError, ValueError), match=message):
        model.predict(inputs)
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(model, loss="mean-squared-error", quiet=True).fit(inputs, np.ones((5, 1)))


def test_devices_that_are_refused() -> None:
    """A device is that of the backend of the model's LSTM; one that computes on the host has none."""
    lstm = LSTM(2, 3, seed=0, backend="numpy")
    model = SequenceModel(lstm, Readout(3, 2, seed=0))
    with pytest.raises(ValueError, match=r"^device: expected None, since backend 'numpy' .* computes on the host; got"):
        Trainer(model, device="cuda")
    with pytest.raises(TypeError, match=r"^device: expected the name of a device, such as 'cuda:0', or None; got 0"):
        Trainer(model, device=0)  # type: ignore[arg-type] # that is the test
