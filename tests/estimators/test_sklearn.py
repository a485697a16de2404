"""`lstmcore.sklearn` is what scikit-learn's tools take, and takes more kinds of sequences than they know."""

from __future__ import annotations

import doctest
import io
import os
import pickle
from typing import Any

import joblib
import numpy as np
import pandas
import polars
import pytest
from sklearn.base import clone
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import lstmcore.sklearn
from lstmcore.sklearn import LSTMClassifier, LSTMRegressor
from lstmcore.training import AdamW, Callback, SequenceModel, load_model
from lstmcore.training.metrics import compute_metrics

#: Mini-batches of a set and of one with repeated or removed rows differ.
REPETITION = {
    "check_sample_weight_equivalence_on_dense_data": "a batch has another row where one is repeated or removed"
}
QUICK: dict[str, Any] = {"epochs": 25, "batch_size": 16, "learning_rate": 0.05}


def named_checks() -> list[Any]:
    """Return the checks of both estimators on both backends; those that are expected to fail must fail."""
    found = []
    for backend in ("numpy", "numba"):
        for kind in (LSTMClassifier, LSTMRegressor):
            for estimator, check in estimator_checks_generator(kind(8, backend=backend, **QUICK)):
                name = check.func.__name__
                marks = [pytest.mark.xfail(reason=REPETITION[name], strict=True)] if name in REPETITION else []
                found.append(pytest.param(estimator, check, marks=marks, id=f"{backend}-{kind.__name__}-{name}"))
    return found


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("estimator", "check"), named_checks())
def test_check_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(autouse=True)
def numpy_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests compile nothing."""
    monkeypatch.setenv("LSTMCORE_BACKEND", "numpy")


def ragged(count: int = 40, seed: int = 0) -> tuple[list[Any], Any]:
    """Two classes, with names, of sequences of 3 to 8 steps and 2 features."""
    random = np.random.default_rng(seed)
    kinds = np.arange(count) % 2
    inputs = [random.standard_normal((int(random.integers(3, 9)), 2)) + np.array([1.5 * k, -k]) for k in kinds]
    return inputs, np.array(["down", "up"])[kinds]


def test_lists_of_sequences_of_unequal_length_in_the_tools() -> None:
    """`cross_val_score` and `GridSearchCV` split lists; two processes give what one gives."""
    X, y = ragged()
    estimator = LSTMClassifier(6, random_state=3, **QUICK)
    scores = cross_val_score(estimator, X, y, cv=3)
    assert scores.mean() > 0.9
    grid = {"hidden_size": [2, 6], "pooling": ["last", "mean"]}
    searches = [GridSearchCV(estimator, grid, cv=2, n_jobs=jobs).fit(X, y) for jobs in (1, 2)]
    first, second = (search.cv_results_["mean_test_score"] for search in searches)
    np.testing.assert_array_equal(first, second)
    assert searches[0].best_score_ > 0.9 and searches[0].predict(X[:3]).dtype.kind == "U"


def test_kinds_of_X_that_are_the_same_sequences() -> None:
    """Arrays (n, T, I), lists of arrays and lists of DataFrames; (n, T) arrays and DataFrames are one feature."""
    random = np.random.default_rng(1)
    X, y = random.standard_normal((20, 5, 2)), np.arange(20) % 2
    estimator = LSTMClassifier(4, random_state=0, epochs=3)
    kinds = [X, list(X), [pandas.DataFrame(row) for row in X], [polars.DataFrame(row) for row in X]]
    found = [clone(estimator).fit(kind, y).predict_proba(kind) for kind in kinds]
    flat = X[..., 0]
    names = [f"t{step}" for step in range(5)]
    wide = [flat, flat[..., None], pandas.DataFrame(flat, columns=names), polars.DataFrame(flat, schema=names)]
    narrow = [clone(estimator).fit(kind, pandas.Series(y)).predict_proba(kind) for kind in wide]
    for group in (found, narrow):
        for other in group[1:]:
            np.testing.assert_allclose(other, group[0], rtol=1e-5)  # sums follow the order in memory
    assert not np.allclose(found[0], narrow[0], rtol=1e-2)
    fitted = clone(estimator).fit(X, y)
    assert fitted.n_features_in_ == 2 and fitted.predict(X[:, :3]).shape == (20,)  # another T
    with pytest.raises(ValueError, match=r"X\[0\]: expected shape \(T, 2\); got \(5, 3\)"):
        fitted.predict(random.standard_normal((2, 5, 3)))
    ragged_rows = [row[: 3 + index % 3] for index, row in enumerate(flat)]
    assert clone(estimator).fit(ragged_rows, y).n_features_in_ == 1


def test_predictions_do_not_depend_on_the_other_rows() -> None:
    X, y = ragged()
    fitted = LSTMClassifier(6, random_state=0, epochs=2).fit(X, y)
    assert fitted.model_.readout.dtype == "float32"
    whole = fitted.predict_proba(X)
    np.testing.assert_allclose(whole[::-1], fitted.predict_proba(X[::-1]), rtol=1e-12)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-12)
    narrow = fitted.set_params(predict_dtype="float32").predict_proba(X)
    assert 0 < np.abs(narrow - whole).max() < 1e-5
    np.testing.assert_array_equal(narrow, np.stack(fitted.model_.predict(X)))


def test_the_estimator_is_the_trainer(tmp_path: Any) -> None:
    """A regression with two targets; its model is written and read like any other."""
    X, _ = ragged()
    y = np.stack([[1e3 + 50 * x[:, 0].mean(), x[:, 1].max()] for x in X])
    fitted = LSTMRegressor(12, random_state=0, epochs=60, optimizer="adamw", weight_decay=0.0).fit(X, y)
    assert fitted.predict(X).shape == (40, 2) and fitted.score(X, y) > 0.8
    assert isinstance(fitted.model_, SequenceModel) and isinstance(fitted.optimizer_, AdamW)
    fitted.model_.save(tmp_path / "m")
    again = load_model(tmp_path / "m", dtype="float64")
    np.testing.assert_array_equal(np.stack(again.predict(X)), fitted.predict(X))
    one = LSTMRegressor(12, random_state=0, epochs=2).fit(X, pandas.Series(y[:, 0]))
    assert one.predict(X).shape == (40,)


def test_pipelines_and_frames_out() -> None:
    """A scaler that gives DataFrames before, the features of the LSTM as a DataFrame after it."""
    random = np.random.default_rng(1)
    frame = pandas.DataFrame(random.standard_normal((30, 6)), columns=list("abcdef"))
    y = (frame.sum(axis=1) > 0).astype(int)
    pipeline = make_pipeline(StandardScaler(), LSTMClassifier(5, random_state=0, **QUICK))
    pipeline.set_output(transform="pandas").fit(frame, y)
    assert pipeline.score(frame, y) > 0.9
    assert list(pipeline[-1].feature_names_in_) == list("abcdef")
    features = pipeline.transform(frame)
    assert isinstance(features, pandas.DataFrame) and list(features.columns[:2]) == [
        "lstmclassifier0",
        "lstmclassifier1",
    ]
    table = pipeline.set_output(transform="polars").transform(frame)
    np.testing.assert_array_equal(table.to_numpy(), features.to_numpy())
    model = pipeline[-1].model_
    scaled = model.scaled([row[:, None] for row in StandardScaler().fit_transform(frame)])
    _, (h, _) = model.lstm(np.stack(scaled, axis=1))
    np.testing.assert_allclose(features.to_numpy(), h[0], rtol=1e-4, atol=1e-5)


def test_copies_predict_the_same() -> None:
    X, y = ragged()
    fitted = LSTMClassifier(6, random_state=0, callbacks=[Callback()], epochs=3).fit(X, y)
    whole, file = fitted.predict_proba(X), io.BytesIO()
    joblib.dump(fitted, file)
    file.seek(0)
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(file)):
        np.testing.assert_array_equal(copy.predict_proba(X), whole)
    copy = clone(fitted)
    assert not hasattr(copy, "model_")
    np.testing.assert_array_equal(copy.fit(X, y).predict_proba(X), whole)


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"sample_weight": -np.ones(40)}])
def test_partial_fit_after_a_fit_that_was_refused(wrong: dict[str, Any]) -> None:
    """It was an AttributeError, since the model was there without its optimizer, or without its number of epochs."""
    X, y = ragged()
    settings: dict[str, Any] = {"hidden_size": 4, "epochs": 1, "backend": "numpy", "random_state": 0}
    learner = LSTMClassifier(**(settings | {"epochs": wrong.get("epochs", 1)}))
    with pytest.raises(ValueError, match=r"epochs|sample_weight"):
        learner.fit(X, y, wrong.get("sample_weight"))
    learner.set_params(epochs=1).partial_fit(X, y)
    assert learner.n_epochs_ == 1
    np.testing.assert_array_equal(learner.predict(X), LSTMClassifier(**settings).partial_fit(X, y).predict(X))


def test_partial_fit_refuses_what_is_no_schedule() -> None:
    X, y = ragged()
    learner = LSTMClassifier(4, schedule={"lr": 1}, backend="numpy")
    with pytest.raises(TypeError, match=r"schedule: expected a Schedule such as Cosine\(60\), or None; got {'lr': 1}"):
        learner.partial_fit(X, y)
    assert not hasattr(learner, "model_")


def test_warm_start_goes_on_and_partial_fit_learns_by_epochs() -> None:
    X, y = ragged()
    fresh = LSTMClassifier(6, random_state=0, warm_start=True, epochs=2).fit(X, y)
    first = fresh.history_.epochs[-1].loss
    kept = fresh.model_
    assert fresh.fit(X, y).model_ is kept and fresh.history_.epochs[0].loss < first
    with pytest.raises(ValueError, match="y: expected classes down, up; got 'left'"):
        fresh.fit(X, np.where(np.arange(40) < 3, "left", y))
    cold = LSTMClassifier(6, random_state=0, epochs=2).fit(X, y)
    assert cold.fit(X, y).model_ is not kept
    learner = LSTMClassifier(6, random_state=0, learning_rate=0.05)
    learner.partial_fit(X[::2], y[::2], classes=["down", "up"])  # the first part has one class
    scaling = learner.model_.input_scaling
    for _ in range(20):
        learner.partial_fit(X, y)
    assert learner.score(X, y) > 0.9 and learner.n_epochs_ == 21 and learner.optimizer_.steps == 1 + 20 * 2
    assert learner.model_.input_scaling is scaling
    regressor = LSTMRegressor(6, random_state=0)
    values = np.array([x[:, 0].mean() for x in X])
    losses = [np.square(regressor.partial_fit(X, values).predict(X) - values).mean() for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


def test_weights_of_classes_and_sequences() -> None:
    """Targets by lot: the class with the weight is the one that is predicted."""
    X, y = ragged()
    y = np.random.default_rng(0).permutation(y)
    for weight, answer in (({"up": 200}, "up"), ({"down": 200}, "down")):
        by_class = LSTMClassifier(2, random_state=0, class_weight=weight, **QUICK).fit(X, y)
        each = np.where(y == answer, 200.0, 1.0)
        by_row = LSTMClassifier(2, random_state=0, **QUICK).fit(X, y, sample_weight=each)
        np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), rtol=1e-4)
        assert np.mean(by_class.predict(X) == answer) > 0.9


def test_metrics_of_the_trainer_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    targets, answers, weights = random.integers(0, 4, 90), random.integers(0, 5, 90), random.random(90)
    found = compute_metrics(("accuracy", "balanced-accuracy", "f1"), answers, targets, weights)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = balanced_accuracy_score(targets, answers, sample_weight=weights)
    assert found == pytest.approx({
        "accuracy": accuracy_score(targets, answers, sample_weight=weights),
        "balanced-accuracy": balanced,
        "f1": f1_score(targets, answers, average="macro", sample_weight=weights),
    })  # fmt: skip
    values, wanted = random.standard_normal((90, 3)), random.standard_normal((90, 3))
    found = compute_metrics(("mae", "rmse", "r2"), values, wanted, weights)
    assert found == pytest.approx({
        "mae": mean_absolute_error(wanted, values, sample_weight=weights),
        "rmse": np.sqrt(np.average(np.square(values - wanted), axis=0, weights=weights).mean()),
        "r2": r2_score(wanted, values, sample_weight=weights),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer: expected one of sgd, adam, adamw; got 'lbfgs'"),
        ({"lstm_options": {"seed": 3}}, "lstm_options: expected other switches than the estimator's own; got 'seed'"),
        ({"class_weight": {1: 2.0}}, "class_weight: expected classes down, up; got 1"),
        ({"pooling": "max"}, "pooling: expected one of last, mean, attention; got 'max'"),
    ],
)
def test_parameters_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTMClassifier(**settings).fit(*ragged())


@pytest.mark.parametrize("kind", [LSTMClassifier, LSTMRegressor])
def test_the_example_of_the_docstring_runs(kind: Any) -> None:
    names = {**vars(lstmcore.sklearn), "np": np}
    test = doctest.DocTestParser().get_doctest(kind.__doc__, names, kind.__name__, None, None)
    result: list[str] = []
    doctest.DocTestRunner().run(test, out=result.append)
    assert test.examples and result == [] and os.environ["LSTMCORE_BACKEND"] == "numpy"
