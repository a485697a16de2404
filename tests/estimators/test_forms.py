"""The forms of X that the estimators of scikit-learn keep from `fit` to `predict`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import polars
import pytest

from lstmcore.notices import Notice
from lstmcore.sklearn import LSTMClassifier, LSTMRegressor

QUICK: dict[str, Any] = {"epochs": 1, "random_state": 0, "backend": "numpy"}


def ragged(columns: int = 0) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal((length, columns) if columns else length) for length in (3, 5, 4, 6, 5, 3)]


def fitted(X: Any) -> Any:
    return fitted_to(X, len(X))


def fitted_to(X: Any, count: int) -> Any:
    return LSTMRegressor(3, **QUICK).fit(X, np.arange(float(count)))


def test_one_sequence_and_several_of_one_length_are_predicted_after_ragged_ones() -> None:
    X = ragged()
    estimator = fitted(X)
    whole = estimator.predict(X)
    for rows in ([2], [1, 4]):
        some = [X[row] for row in rows]
        for form in (some, [row.tolist() for row in some], np.stack(some), [pandas.Series(row) for row in some]):
            np.testing.assert_allclose(estimator.predict(form), whole[rows], rtol=1e-12)
    estimator.set_params(warm_start=True).fit([X[1], X[4]], [0.0, 1.0])
    with pytest.raises(ValueError, match="expecting 5 features"):
        fitted(np.stack([X[1], X[4]])).predict([X[2]])


@pytest.mark.parametrize("library", [pandas.DataFrame, polars.DataFrame], ids=["pandas", "polars"])
def test_columns_keep_their_order(library: Any) -> None:
    frames = [library({"a": table[:, 0], "b": table[:, 1]}) for table in ragged(2)]
    turned = [frame[["b", "a"]] for frame in frames]
    with pytest.raises(ValueError, match=r"X\[1\]: expected the columns of the first DataFrame, \['a', 'b'\]; got"):
        fitted([frames[0], *turned[1:]])
    estimator = fitted(frames)
    assert estimator.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match=r"X: expected DataFrames with the columns of fit, \['a', 'b'\]; got \['b'"):
        estimator.predict(turned)
    np.testing.assert_array_equal(estimator.predict(frames), estimator.predict(ragged(2)))
    assert not hasattr(estimator.fit(ragged(2), np.arange(6.0)), "feature_names_in_")


@pytest.mark.parametrize("library", [pandas.Series, polars.Series], ids=["pandas", "polars"])
def test_series_are_sequences_of_one_feature(library: Any) -> None:
    X = ragged()
    np.testing.assert_array_equal(fitted([library(row) for row in X]).predict(X), fitted(X).predict(X))


def test_a_sequence_without_steps_is_read_with_the_others() -> None:
    X = [*ragged(2), np.zeros((0, 2))]
    assert LSTMClassifier(3, **QUICK).fit(X, [0, 1] * 3 + [1]).predict(X).shape == (7,)


@pytest.mark.parametrize("width", [0, 1, 2])
def test_one_sequence_in_place_of_several_is_refused(width: int) -> None:
    X = ragged(width)
    estimator = fitted(X)
    with pytest.raises(ValueError, match=r"X: expected a list of sequences .*: give a single sequence in a list, as"):
        estimator.predict(X[0])
    assert estimator.predict([X[0]]).shape == (1,)


def test_an_unknown_option_of_the_lstm_is_told() -> None:
    estimator = LSTMClassifier(3, lstm_options={"peephol": True}, **QUICK)
    with pytest.raises(ValueError, match=r"lstm_options: expected switches of .*; got 'peephol'; did you mean 'peepho"):
        estimator.fit(ragged(2), list("ababab"))
    assert LSTMClassifier(3, lstm_options={"peephole": True}, **QUICK).fit(ragged(2), list("ababab")).score


def test_attention_pools_in_the_dtype_of_predicting() -> None:
    X, y = ragged(2), list("ababab")
    estimator = LSTMClassifier(3, pooling="attention", bidirectional=True, **QUICK).fit(X, y)
    found = estimator.predict_proba(X)
    one = estimator.model_.predict(X)
    np.testing.assert_allclose(found, np.stack(one), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[2], estimator.predict_proba([X[2]])[0])
    assert estimator.model_.pooling is not None and estimator.transform(X).shape == (6, 6)


def test_other_forms_of_panels_say_what_to_give() -> None:
    """A row for each step, or an array in each cell, as sktime has them: what the message says works."""
    X = ragged(2)
    steps = pandas.concat([pandas.DataFrame(row, columns=["a", "b"]) for row in X], keys=range(6))
    with pytest.raises(ValueError, match=r"X: expected a row for each sequence; got 26 rows of 6 sequences: .*groupby"):
        fitted_to(steps, 6)
    nested = pandas.DataFrame([[pandas.Series(row[:, 0]), pandas.Series(row[:, 1])] for row in X])
    with pytest.raises(ValueError, match=r"X: expected a number in each cell; got Series: .*column_stack"):
        fitted_to(nested, 6)
    wanted = fitted(X).predict(X)
    for given in (
        [part for _, part in steps.groupby(level=0, sort=False)],
        [np.column_stack(list(row)) for row in nested.to_numpy()],
    ):
        np.testing.assert_array_equal(fitted(given).predict(given), wanted)
    table = pandas.DataFrame(np.arange(12.0).reshape(6, 2), index=steps.index[:6])
    assert fitted(table).n_features_in_ == 2


def test_the_axes_of_sktime_are_told() -> None:
    """(n, channels, time) is read as (n, time, channels), as only the user knows."""
    X = np.random.default_rng(1).standard_normal((6, 2, 5))
    with pytest.warns(
        Notice, match=r"X: \(6, 2, 5\) is read as \(n, time, channels\), 2 steps of 5 features; if it is"
    ):
        fitted(X)
    estimator = fitted(X.transpose(0, 2, 1))
    fitted(X[:, :, :4])  # twice as many is no surprise, and each warning is an error here
    with pytest.raises(
        ValueError, match=r"got \(2, 5\): if its rows are the features, as in sktime and aeon, give its"
    ):
        estimator.predict(X)
