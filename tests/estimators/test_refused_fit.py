"""An estimator whose `fit` is refused is what it was before, as scikit-learn's own are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from lstmcore.sklearn import LSTMClassifier, LSTMRegressor
from lstmcore.training import Callback, DivergedError, History, SequenceModel
from lstmcore.training.learning import Learner


def ragged() -> tuple[list[Any], Any]:
    """Return two classes, with names, of sequences of 3 to 8 steps and 2 features."""
    random, kinds = np.random.default_rng(0), np.arange(40) % 2
    X = [random.normal(2.0 * kind - 1, 1.0, size=(random.integers(3, 9), 2)) for kind in kinds]
    return X, np.array(["down", "up"])[kinds]


def _refused() -> dict[str, Any]:
    """Return data and settings that `fit` refuses, each at another place."""
    X, y = ragged()
    hole = [x.copy() for x in X]
    hole[3][1, 0] = np.nan
    wide = [np.concatenate([x, x], axis=1) for x in X]
    other = np.where(y == "up", "b", "a")
    return {
        "a NaN": ((hole, other), {}),
        "a row too few": ((wide, other[:-1]), {}),
        "weights": ((X, other, -np.ones(40)), {}),
        "weights of another number": ((wide, other, np.ones(3)), {}),
        "epochs": ((wide, other), {"epochs": -1}),
        "a switch": ((wide, other), {"lstm_options": {"peepholes": True}}),
        "too large for float32": (([x * 1e300 for x in X], other), {"standardize": False}),
        "ended in the first epoch": ((X, y), {"callbacks": [_Spoiler()]}),
    }


class _Spoiler(Callback):
    """Changes the weights and ends the run before an epoch is finished."""

    def on_fit_start(self, model: SequenceModel, history: History) -> None:
        model.load_parameters({name: value * np.float32(-2) for name, value in model.parameters.items()})
        raise ValueError("spoiled")


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("how", _refused())
def test_a_refused_fit_leaves_the_estimator_as_it_was(how: str, warm_start: bool) -> None:
    """As with MLPClassifier: not fitted, or fitted on what came before. It predicted with an untrained model."""
    X, y = ragged()
    data, settings = _refused()[how]
    fresh = LSTMClassifier(4, epochs=2, backend="numpy", random_state=0, warm_start=warm_start).set_params(**settings)
    with pytest.raises((TypeError, ValueError)):
        fresh.fit(*data)
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    assert not [name for name in vars(fresh) if name.endswith("_")]
    fitted = LSTMClassifier(4, epochs=2, backend="numpy", random_state=0, warm_start=warm_start).fit(X, y)
    before, answers = dict(vars(fitted)), fitted.predict_proba(X)
    with pytest.raises((TypeError, ValueError)):
        fitted.set_params(**settings).fit(*data)
    after = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
    assert {name: before[name] for name in after} == after
    np.testing.assert_array_equal(fitted.predict_proba(X), answers)
    assert set(fitted.predict(X)) <= {"up", "down"}


def test_a_refused_partial_fit_leaves_the_estimator_as_it_was() -> None:
    X, y = ragged()
    learner = LSTMClassifier(4, backend="numpy", random_state=0, batch_size=8)
    with pytest.raises(ValueError, match="sample_weight"):
        learner.partial_fit(X, y, sample_weight=-np.ones(40))
    with pytest.raises(NotFittedError):
        learner.predict(X)
    answers, optimizer = learner.partial_fit(X, y).predict_proba(X), learner.optimizer_
    moments = {name: value.copy() for name, value in optimizer.state().items()}
    huge = [x * 1e300 for x in X]
    with pytest.raises(ValueError, match="float32"):
        learner.partial_fit(huge, y)
    np.testing.assert_array_equal(learner.predict_proba(X), answers)
    assert learner.optimizer_ is optimizer and learner.n_epochs_ == 1
    np.testing.assert_equal(dict(optimizer.state()), moments)


def test_an_interrupted_partial_fit_leaves_the_estimator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an epoch, whose first steps have moved the weights and the moments."""
    X, y = ragged()
    learner = LSTMClassifier(4, backend="numpy", random_state=0, batch_size=8).partial_fit(X, y)
    answers, optimizer, step = learner.predict_proba(X), learner.optimizer_, Learner._step
    moments = {name: value.copy() for name, value in optimizer.state().items()}
    taken: list[Any] = []

    def interrupted(self: Learner, *arguments: Any) -> Any:
        taken.append(step(self, *arguments))
        if len(taken) == 3:
            raise KeyboardInterrupt
        return taken[-1]

    monkeypatch.setattr(Learner, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.partial_fit(X, y)
    np.testing.assert_array_equal(learner.predict_proba(X), answers)
    assert learner.optimizer_ is optimizer and learner.n_epochs_ == 1
    np.testing.assert_equal(dict(optimizer.state()), moments)


def test_a_fit_that_diverges_at_once_is_no_fit() -> None:
    X, _ = ragged()
    y = np.arange(40.0)
    settings: dict[str, Any] = {"optimizer": "sgd", "clip_norm": None, "backend": "numpy", "random_state": 0}
    learner = LSTMRegressor(4, epochs=3, learning_rate=1e30, **settings)
    with pytest.raises(DivergedError, match="epoch 1"):
        learner.fit(X, y)
    with pytest.raises(NotFittedError):
        learner.predict(X)
    answers = learner.set_params(learning_rate=0.01).fit(X, y).predict(X)
    with pytest.raises(DivergedError, match="epoch 1"):
        learner.set_params(learning_rate=1e30).fit(X, y)
    np.testing.assert_array_equal(learner.predict(X), answers)


class _Interrupt(Callback):
    """Ctrl-C after an epoch."""

    def on_epoch_end(self, model: SequenceModel, history: History) -> str | None:
        if len(history.epochs) == 2:
            raise KeyboardInterrupt
        return None


def test_an_interrupted_fit_keeps_its_epochs() -> None:
    X, y = ragged()
    settings: dict[str, Any] = {"hidden_size": 4, "backend": "numpy", "random_state": 0}
    learner = LSTMClassifier(epochs=5, callbacks=[_Interrupt()], **settings)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(X, y)
    whole = LSTMClassifier(epochs=2, **settings).fit(X, y)
    np.testing.assert_array_equal(learner.predict_proba(X), whole.predict_proba(X))
    assert learner.n_epochs_ == 2 and learner.history_ == whole.history_
