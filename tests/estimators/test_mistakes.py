"""Mistakes of a first hour with estimators and DataFrames are told by the argument that the user gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest

from lstmcore import datasets
from lstmcore.sklearn import LSTMClassifier, LSTMRegressor

X = [np.full((3 + row % 3, 2), float(row % 2)) for row in range(12)]
Y = np.array(["down", "up"])[np.arange(12) % 2]


def classifier(**settings: Any) -> LSTMClassifier:
    return LSTMClassifier(2, epochs=1, backend="numpy", random_state=0, **settings)


def test_the_argument_is_called_as_the_user_calls_it() -> None:
    """These were named 'inputs', 'readout steps' and 'adam lr'."""
    hole = [x.copy() for x in X]
    hole[3][1, 0] = np.nan
    with pytest.raises(ValueError, match=r"^X\[3\]: expected finite numbers; got NaN or infinity at step 1$"):
        classifier().fit(hole, Y)
    with pytest.raises(ValueError, match=r"^X\[0\]: expected shape \(T, 2\); got \(3, 1\)$"):
        classifier().fit(X, Y).predict([x[:, :1] for x in X])
    for pooling in ("max", "every"):
        with pytest.raises(ValueError, match=rf"^pooling: expected one of last, mean, attention; got '{pooling}'$"):
            classifier(pooling=pooling).fit(X, Y)
    for rate, told in ((-1.0, "> 0; got -1.0"), (0, "> 0; got 0"), (np.inf, "; got inf")):
        with pytest.raises(ValueError, match=f"^learning_rate: expected a finite number{told}".replace("r> ", "r > ")):
            classifier(learning_rate=rate).fit(X, Y)


@pytest.mark.parametrize("y", [Y, list(Y), pandas.Series(Y), pandas.Series(Y, dtype="object")])
def test_a_regression_on_names_of_classes(y: Any) -> None:
    """It was 'could not convert string to float'."""
    regressor = LSTMRegressor(2, epochs=1, backend="numpy", random_state=0)
    for rows in (X, np.zeros((12, 4))):
        with pytest.raises(ValueError, match=r"^y: expected numbers; got .*'down'.*: LSTMClassifier learns classes$"):
            regressor.fit(rows, y)
    assert regressor.fit(X, np.arange(12).astype(str).astype(object)).predict(X).shape == (12,)


def test_a_class_that_the_first_part_had_not() -> None:
    learner = classifier().partial_fit(X[::2], Y[::2])
    with pytest.raises(
        ValueError, match="y: expected classes down; got 'up': partial_fit takes all classes at its first"
    ):
        learner.partial_fit(X, Y)


def test_forecasts_of_another_shape() -> None:
    """It was NumPy's message on a reshape."""
    frame = pandas.DataFrame({"sold": np.arange(20.0), "heat": 1.0})
    cut = datasets.windows(frame, target=["sold"], window=4, horizon=2)
    with pytest.raises(ValueError, match=r"^relative: expected shape \(15, 2\), a row for each window; got \(3, 2\)$"):
        cut.absolute(np.zeros((3, 2)))
    assert cut.absolute(cut.targets).shape == (15, 2, 1)


def test_messages_of_windows_and_data_sets() -> None:
    frame = pandas.DataFrame({f"sensor{number}": np.arange(5.0) for number in range(300)})
    with pytest.raises(ValueError, match=r"sensor19, ... \(300 in all\); got 'sensor'; did"):
        datasets.windows(frame, target=["sensor"], window=2)
    with pytest.raises(ValueError, match=r"^frame: expected at least 9 rows for window=8 and horizon=1; got 5: use a"):
        datasets.windows(frame, target=["sensor1"], window=8)
    with pytest.raises(ValueError, match=r"got 'japanese_vowels'; did you mean 'japanese-vowels'\?"):
        datasets.load("japanese_vowels")
