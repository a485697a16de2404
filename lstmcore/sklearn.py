"""Estimators for scikit-learn: an LSTM that classifies sequences, and one that predicts values for them.

X is an array (n, T) of sequences with one feature, an array (n, T, I), a DataFrame of n rows, or a list of n arrays
or DataFrames (T, I), whose T may differ.
"""
# long file: scikit-learn wants every parameter in the signature of each estimator; a third of the lines are docstrings

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Backend
from lstmcore.config import SHARED_SWITCHES
from lstmcore.extras import installing
from lstmcore.frames import is_frame, plain, shared_columns
from lstmcore.layers import AttentionPooling
from lstmcore.lstm import LSTM
from lstmcore.notices import notify
from lstmcore.scalars import finite
from lstmcore.suggestions import did_you_mean
from lstmcore.training.batches import pad
from lstmcore.training.callbacks import Callback
from lstmcore.training.data_checks import as_sequences
from lstmcore.training.history import History
from lstmcore.training.learning import Learner, Recipe
from lstmcore.training.losses import make_loss
from lstmcore.training.model import SequenceModel
from lstmcore.training.optimizers import OPTIMIZERS, Optimizer
from lstmcore.training.readout import Readout
from lstmcore.training.scaling import Standardizer
from lstmcore.training.schedules import Schedule
from lstmcore.training.sets import check_examples, fit_target_scaling, make_sets, scale_examples, weigh
from lstmcore.training.trainer import Trainer
from lstmcore.training.trainer_checks import check_helpers
from lstmcore.training.weights import ClassWeight

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        RegressorMixin,
        TransformerMixin,
    )
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        _check_sample_weight,
        _check_y,
        check_array,
        check_consistent_length,
        check_is_fitted,
        validate_data,
    )
except ImportError as error:
    raise ImportError(f"lstmcore.sklearn: expected scikit-learn 1.6 or newer: {installing('sklearn')}") from error

__all__ = ["LSTMClassifier", "LSTMRegressor"]

Array = npt.NDArray[Any]

#: Sequences that `transform` runs at once.
_BATCH = 256


class _LSTMEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # untyped
    """The part that both estimators share: reading data, making and training the model."""

    #: Name of the loss, and the readout's activation.
    _loss: str
    _activation: str
    _multi_output: bool
    model_: SequenceModel
    optimizer_: Optimizer
    n_epochs_: int
    #: Whether `fit` read a collection of sequences, not a table.
    _of_sequences = False

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new model, or go on with the last one if `warm_start`.

        Parameters
        ----------
        X
            n sequences, see the class.
        y
            Classes (n,), or values (n,) or (n, K).
        sample_weight
            (n,) numbers >= 0; None for 1.

        Raises
        ------
        TypeError, ValueError
            X, y, weights or parameters that do not fit. The estimator stays as it was: not fitted, or fitted before.
        DivergedError
            As for `Trainer`. Without a finished epoch, the estimator stays as it was too.
        """
        run = _Run()
        with self._put_back_unless(run):
            self._fit(X, y, sample_weight, run)
        return self

    def _fit(self, X: Any, y: Any, sample_weight: Any, run: _Run) -> None:
        going_on = self.warm_start and hasattr(self, "model_")
        sequences, targets = self._read_both(X, y, reset=not going_on)
        targets = self._encode(targets, reset=not going_on)
        model = self.model_ if going_on else self._new_model(sequences[0].shape[1])
        optimizer = self._new_optimizer()
        trainer = Trainer(
            model,
            loss=self._loss,
            optimizer=optimizer,
            standardize_targets=self._multi_output and self.standardize,
            class_weight=self._class_weight(),
            seed=self._seed(),
            quiet=not self.verbose,
            callbacks=(run, *check_helpers(self.schedule, self.callbacks)),
            **{name: getattr(self, name) for name in _OF_TRAINER},
        )
        self.model_, self.optimizer_ = model, optimizer
        trainer.fit(sequences, targets, sample_weight=_weights(sample_weight, len(sequences)))

    @contextmanager
    def _put_back_unless(self, run: _Run) -> Iterator[None]:
        """Undo a block that raises, unless it finished an epoch; if it did, keep the history of `run`."""
        before = vars(self).copy()
        put_back = _copy_of(before["model_"]) if "model_" in before else None
        try:
            yield
        except BaseException:
            if not run.history.epochs:
                self.__dict__ = before
                if put_back is not None:
                    put_back()
            raise
        finally:
            if run.history.epochs:
                self.history_, self.n_epochs_ = run.history, len(run.history.epochs)

    def _learn_once(self, sequences: Sequence[Array], targets: Array, sample_weight: Any) -> None:
        """Learn one epoch with the optimizer where it is; a new model is standardised by these sequences."""
        check_helpers(self.schedule, ())
        if not hasattr(self, "model_"):
            self.model_, self.optimizer_ = self._new_model(sequences[0].shape[1]), self._new_optimizer()
            self.n_epochs_ = 0
        model, loss = self.model_, make_loss(self._loss)
        whole = check_examples(model, loss, sequences, targets, _weights(sample_weight, len(sequences)))
        sets = make_sets(whole, whole, lambda *_: (np.empty(0, np.intp),) * 2, False)
        examples = weigh(sets, model, loss, self._class_weight()).fit
        if self.standardize and model.input_scaling is None:
            model.input_scaling = Standardizer.fit(examples.inputs)
            if self._multi_output:
                model.target_scaling = fit_target_scaling(examples, loss)
        recipe = Recipe(self.batch_size, self.clip_norm, self.input_noise, self._seed())
        optimizer = copy.deepcopy(self.optimizer_)  # an epoch that fails leaves the moments before it
        learner = Learner(model, loss, optimizer, recipe, self.schedule)
        learner.learn_epoch(self.n_epochs_ + 1, scale_examples(examples, model, loss))
        model.loss, self.optimizer_ = loss, optimizer
        self.n_epochs_ += 1

    def transform(self, X: Any) -> Array:
        """Return (n, D * P): what the readout reads of each sequence, by `pooling`.

        Parameters
        ----------
        X
            n sequences, see the class.
        """
        model, sequences = self._ready(X)
        scaled, rows = model.scaled(sequences), []
        for start in range(0, len(scaled), _BATCH):
            rows.append(model.network.run(*pad(scaled[start : start + _BATCH]))[1].features)
        return np.concatenate(rows)

    @property
    def _n_features_out(self) -> int:
        return int(self.model_.readout.hidden_size)

    def _outputs(self, X: Any) -> Array:
        """Return (n, K): the outputs of the model."""
        model, sequences = self._ready(X)
        return np.stack(model.predict(sequences))

    def _ready(self, X: Any) -> tuple[SequenceModel, Sequence[Array]]:
        """Return the model that predicts, in `predict_dtype`, and checked sequences."""
        check_is_fitted(self, "model_")
        sequences = self._read(X, reset=False)
        model, dtype = self.model_, self.predict_dtype
        if dtype == model.readout.dtype:
            return model, sequences
        own = cast(LSTM, model.lstm)
        arrays = {name: value.astype(dtype) for name, value in own.parameters.items()}
        lstm = LSTM.from_config(own.stack, arrays, dtype=dtype, backend=own.backend)
        readout = Readout(**(model.readout.to_dict() | {"dtype": dtype}), seed=0)
        readout.load_parameters({name: value.astype(dtype) for name, value in model.readout.parameters.items()})
        pooling = None
        if (attention := model.pooling) is not None:
            pooling = AttentionPooling(attention.input_size, attention.hidden_size, dtype=dtype, seed=0)
            pooling.load_parameters({name: value.astype(dtype) for name, value in attention.parameters.items()})
        more: dict[str, Any] = {
            "input_scaling": model.input_scaling,
            "target_scaling": model.target_scaling,
            "pooling": pooling,
        }
        return SequenceModel(lstm, readout, loss=model.loss, **more), sequences

    def _new_model(self, width: int) -> SequenceModel:
        switches = dict(self.lstm_options or {})
        names = ("num_layers", "bidirectional", "dropout", "recurrent_dropout", "dtype", "backend")
        own = {name: getattr(self, name) for name in names}
        if taken := sorted(set(switches) & {*own, "seed", "batch_first", "input_size", "hidden_size"}):
            raise ValueError(f"lstm_options: expected other switches than the estimator's own; got {taken[0]!r}")
        known = sorted({*SHARED_SWITCHES, "strict", "init", "forget_bias"})
        if unknown := [name for name in switches if name not in known]:
            near = did_you_mean(str(unknown[0]), known)
            raise ValueError(f"lstm_options: expected switches of {', '.join(known)}; got {unknown[0]!r}{near}")
        seed = self._seed()
        lstm = LSTM(width, self.hidden_size, seed=seed, **own, **switches)
        activation: Any = self._activation
        if self.pooling not in _POOLING:
            raise ValueError(f"pooling: expected one of {', '.join(_POOLING)}; got {self.pooling!r}")
        attention = self.pooling == "attention"
        steps: Any = "last" if attention else self.pooling
        readout = Readout.of(lstm, self._n_outputs, activation=activation, steps=steps, seed=seed + 1)
        pooling = AttentionPooling(lstm.output_width, dtype=self.dtype, seed=seed + 2) if attention else None
        return SequenceModel(lstm, readout, pooling=pooling)

    def _new_optimizer(self) -> Optimizer:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        if finite("learning_rate", self.learning_rate) <= 0:
            raise ValueError(f"learning_rate: expected a finite number > 0; got {self.learning_rate!r}")
        return OPTIMIZERS[self.optimizer](self.learning_rate, weight_decay=self.weight_decay)

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _class_weight(self) -> Any:
        return None

    def _read_both(self, X: Any, y: Any, *, reset: bool) -> tuple[Sequence[Array], Array]:
        """Return checked sequences and targets of the same number."""
        several = self._multi_output
        _refuse_panel(X, y)
        if several:
            _refuse_words(y)
        if not self._reads_sequences(X, reset=reset):
            X, y = validate_data(self, X, y, reset=reset, multi_output=several, y_numeric=several, dtype=_FLOATS)
            return list(X[..., None]), y
        sequences = self._read(X, reset=reset)
        if y is None:
            raise ValueError(f"y: {type(self).__name__} requires y to be passed, but the target y is None")
        y = _check_y(y, multi_output=several, y_numeric=several, estimator=self)
        check_consistent_length(sequences, y)
        return sequences, y

    def _read(self, X: Any, *, reset: bool) -> Sequence[Array]:
        """Return checked sequences; `reset` says that they fix the number of features."""
        if not self._reads_sequences(X, reset=reset):
            return list(validate_data(self, X, reset=reset, dtype=_FLOATS)[..., None])
        if not reset:
            _refuse_single(X, self.model_.lstm.input_size)
        if getattr(X, "ndim", 0) == 3:
            if reset:
                _tell_order(X.shape)
            X = list(check_array(X, allow_nd=True, estimator=self))
        self._check_columns(X, reset=reset)
        X = [np.asarray(plain(f"X[{index}]", row)) for index, row in enumerate(X)]
        X = [row[:, None] if row.ndim == 1 else row for row in X]
        width = X[0].shape[1] if reset else self.model_.lstm.input_size
        sequences = as_sequences(X, width, "X")
        if reset:
            self.n_features_in_ = width
        return sequences

    def _reads_sequences(self, X: Any, *, reset: bool) -> bool:
        """Return whether X is a collection of sequences, not a table; after `fit` also if only its form tells."""
        if reset:
            self._of_sequences = _are_sequences(X)
            return self._of_sequences
        known = self._of_sequences and not is_frame(X) and isinstance(X, list | tuple | np.ndarray)
        return known or _are_sequences(X)

    def _check_columns(self, X: Any, *, reset: bool) -> None:
        """Raise unless all DataFrames in X have the columns of `fit`, in order; `reset` keeps them."""
        names = shared_columns("X", X)
        if reset:
            self.__dict__.pop("feature_names_in_", None)
            if names and all(isinstance(name, str) for name in names):
                self.feature_names_in_ = np.array(names, object)
        elif names and (fitted := getattr(self, "feature_names_in_", None)) is not None and names != list(fitted):
            raise ValueError(f"X: expected DataFrames with the columns of fit, {list(fitted)}; got {names}")


class _Run(Callback):
    """The history of a run of `fit`: its epochs tell whether the model was trained."""

    def __init__(self) -> None:
        self.history = History()

    def on_fit_start(self, model: SequenceModel, history: History) -> None:
        self.history = history


def _copy_of(model: SequenceModel) -> Callable[[], None]:
    """Return a function that gives a model the weights and settings that it has now; its arrays are never written."""
    parameters, step = model.parameters, model.lstm.step
    settings = {name: getattr(model, name) for name in ("task", "input_scaling", "target_scaling", "loss")}

    def put_back() -> None:
        model.load_parameters(parameters)
        model.lstm.step = step
        for name, value in settings.items():
            setattr(model, name, value)

    return put_back


def _tell_order(shape: tuple[int, ...]) -> None:
    """Warn if an array looks as if it were (n, channels, time): over twice as many features as steps."""
    _, steps, features = shape
    if features > 2 * steps:
        notify(
            f"X: {shape} is read as (n, time, channels), {steps} steps of {features} features; if it is "
            "(n, channels, time), as in sktime and aeon, give X.transpose(0, 2, 1)",
            stacklevel=4,
        )


def _are_sequences(X: Any) -> bool:
    """Return whether X is (n, T, I), or a collection of arrays or DataFrames (T, I), or of (T,) of several lengths."""
    if is_frame(X):
        return False
    if isinstance(X, np.ndarray) and X.dtype != object:
        return X.ndim == 3
    if not isinstance(X, list | tuple | np.ndarray) or not len(X):
        return False
    dimensions = {
        len(getattr(row, "shape", ())) or (np.ndim(row[0]) + 1 if len(row) else 1) for row in X if _sized(row)
    }
    return dimensions == {2} or (dimensions == {1} and len({len(row) for row in X if _sized(row)}) > 1)


def _refuse_single(X: Any, width: int) -> None:
    """Raise ValueError if X is one sequence in place of several."""
    if isinstance(X, np.ndarray) and X.dtype != object and (X.ndim == 1 or X.shape[1:] == (width,)):
        raise ValueError(
            f"X: expected a list of sequences (T, {width}), or an array (n, T, {width}); got one array of shape "
            f"{X.shape}: give a single sequence in a list, as in [x]"
        )


def _refuse_panel(X: Any, y: Any) -> None:
    """Raise ValueError for a DataFrame of pandas that has a row for each step, or an array in each cell."""
    if not is_frame(X) or not hasattr(X, "iloc") or getattr(X, "ndim", 0) != 2 or not X.size:
        return
    if _sized(cell := X.iloc[0, 0]) and np.ndim(cell):
        raise ValueError(
            f"X: expected a number in each cell; got {type(cell).__name__}: give a list of sequences (T, I), as in "
            "[np.column_stack(list(row)) for row in X.to_numpy()]"
        )
    names = X.index.get_level_values(0)
    if X.index.nlevels > 1 and _sized(y) and len(y) == names.nunique() < len(X):
        raise ValueError(
            f"X: expected a row for each sequence; got {len(X)} rows of {len(y)} sequences: give a list of DataFrames, "
            "as in [part for _, part in X.groupby(level=0, sort=False)]"
        )


def _refuse_words(y: Any) -> None:
    """Raise ValueError if the targets of a regression are texts that are no numbers."""
    values = np.asarray(y) if isinstance(y, list | tuple) or hasattr(y, "__array__") else np.empty(0)
    for value in values.ravel()[:1] if values.dtype.kind in "UTO" else ():
        try:
            float(value)
        except (TypeError, ValueError):
            raise ValueError(f"y: expected numbers; got {value!r}: LSTMClassifier learns classes") from None


def _sized(row: Any) -> bool:
    return hasattr(row, "__len__") and not isinstance(row, str | bytes) and hasattr(row, "__getitem__")


def _weights(sample_weight: Any, count: int) -> Array | None:
    if sample_weight is None:
        return None
    return np.asarray(_check_sample_weight(sample_weight, np.empty((count, 1)), dtype=np.float64))


#: Values of `pooling`.
_POOLING = ("last", "mean", "attention")

#: Dtypes of a 2-D X; others are converted to the first.
_FLOATS = [np.float64, np.float32]

#: Parameters that are settings of `Trainer` under the same names.
_OF_TRAINER = (
    "epochs",
    "batch_size",
    "clip_norm",
    "validation",
    "patience",
    "input_noise",
    "standardize",
    "schedule",
)


def _keep(estimator: Any, arguments: Mapping[str, Any]) -> None:
    """Set the parameters of an estimator as they are, as scikit-learn wants its constructors to do."""
    for name in estimator._get_param_names():
        setattr(estimator, name, arguments[name])


class LSTMClassifier(ClassifierMixin, _LSTMEstimator):  # type: ignore[misc]  # untyped
    """A classifier of sequences.

    X is an array (n, T) of sequences with one feature, an array (n, T, I), a DataFrame of n rows, or a list of n
    arrays or DataFrames (T, I), whose T may differ. After `fit` on a list of sequences with one feature, those of
    `predict` may have any T, also the same.

    Parameters
    ----------
    hidden_size, num_layers, bidirectional, dropout, recurrent_dropout
        As for `lstmcore.LSTM`.
    pooling
        ``"last"``: the readout reads the end of a sequence. ``"mean"``: the mean over its steps. ``"attention"``: what
        its end attends to, see `lstmcore.layers.AttentionPooling`.
    lstm_options
        Other switches of `lstmcore.LSTM`, as a mapping.
    optimizer, learning_rate, weight_decay
        ``"adam"``, ``"adamw"`` or ``"sgd"``, and its numbers.
    epochs, batch_size, clip_norm, validation, patience, input_noise, standardize, schedule, callbacks
        As for `lstmcore.training.Trainer`. `standardize` is for the targets of a regression too.
    class_weight
        ``"balanced"``, or a mapping from a class to its weight.
    warm_start
        Whether `fit` goes on with the model that is there.
    dtype, predict_dtype
        Precisions of learning and of predicting. In float64 a prediction does not depend on the other rows.
    backend
        As for `lstmcore.LSTM`.
    random_state
        Seed of weights, batches, masks and the validation set; None draws one.
    verbose
        Whether to show progress.

    Attributes
    ----------
    classes_
        The classes, sorted; columns of `predict_proba`.
    model_ : lstmcore.training.SequenceModel
        The trained model; ``model_.save(path)`` writes it.
    history_ : lstmcore.training.History
        The epochs of the last `fit`.
    n_features_in_ : int
        T of an X of shape (n, T), else I.
    feature_names_in_
        The column names of the DataFrames of `fit`, if they are texts; those of `predict` must be the same.

    Examples
    --------
    >>> X = [np.full((length, 2), length % 2) for length in range(3, 23)]
    >>> y = ["odd" if length % 2 else "even" for length in range(3, 23)]
    >>> estimator = LSTMClassifier(8, epochs=20, random_state=0).fit(X, y)
    >>> estimator.score(X, y), estimator.predict_proba(X).shape
    (1.0, (20, 2))
    """

    _loss = "cross-entropy"
    _activation = "softmax"
    _multi_output = False

    def __init__(  # noqa: PLR0913  (a public constructor)
        self,
        hidden_size: int = 32,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        pooling: str = "last",
        lstm_options: Mapping[str, Any] | None = None,
        optimizer: str = "adam",
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        epochs: int = 60,
        batch_size: int = 32,
        clip_norm: float | None = 1.0,
        validation: float = 0.0,
        patience: int | None = None,
        input_noise: float = 0.0,
        standardize: bool = True,
        schedule: Schedule | None = None,
        callbacks: Sequence[Callback] | None = (),
        class_weight: ClassWeight | None = None,
        warm_start: bool = False,
        dtype: str = "float32",
        predict_dtype: str = "float64",
        backend: str | Backend | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        _keep(self, locals())

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn one epoch from these sequences; the first call makes and standardises the model.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes
            All classes, at the first call; None for those of `y`.
        """
        first = not hasattr(self, "model_")
        with self._put_back_unless(_Run()):
            sequences, targets = self._read_both(X, y, reset=first)
            if first and classes is not None:
                self._encode(np.asarray(classes), reset=True)
            self._learn_once(sequences, self._encode(targets, reset=first and classes is None), sample_weight)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Return (n, K): the probability of each of `classes_`.

        Parameters
        ----------
        X
            n sequences, see the class.
        """
        return self._outputs(X)

    def predict(self, X: Any) -> Array:
        """Return (n,): the most probable class.

        Parameters
        ----------
        X
            n sequences, see the class.
        """
        best = self._outputs(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _encode(self, y: Array, *, reset: bool) -> Array:
        """Return class numbers; `reset` says that these are all classes."""
        check_classification_targets(y)
        if reset:
            self.classes_ = np.unique(y)
            self._n_outputs = len(self.classes_)
        hint = ": partial_fit takes all classes at its first call, by classes="
        if unknown := sorted(set(y.tolist()) - set(self.classes_.tolist()), key=str):
            raise ValueError(
                f"y: expected classes {', '.join(map(str, self.classes_))}; got {unknown[0]!r}{'' if reset else hint}"
            )
        return np.searchsorted(self.classes_, y)

    def _class_weight(self) -> Any:
        if not isinstance(self.class_weight, Mapping):
            return self.class_weight
        places = {name: number for number, name in enumerate(self.classes_.tolist())}
        if unknown := [name for name in self.class_weight if name not in places]:
            raise ValueError(f"class_weight: expected classes {', '.join(map(str, places))}; got {unknown[0]!r}")
        return {places[name]: weight for name, weight in self.class_weight.items()}


class LSTMRegressor(RegressorMixin, _LSTMEstimator):  # type: ignore[misc]  # untyped
    """A regression on sequences; the target is a value, or several values.

    Parameters
    ----------
    hidden_size ... verbose
        As for `LSTMClassifier`, without `class_weight`.

    Attributes
    ----------
    model_, history_, n_features_in_
        As of `LSTMClassifier`.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(40, 6))
    >>> estimator = LSTMRegressor(8, epochs=60, random_state=0).fit(X, X.sum(axis=1))
    >>> estimator.predict(X).shape, estimator.score(X, X.sum(axis=1)) > 0.9
    ((40,), True)
    """

    _loss = "mean-squared-error"
    _activation = "none"
    _multi_output = True

    def __init__(  # noqa: PLR0913  (a public constructor)
        self,
        hidden_size: int = 32,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        pooling: str = "last",
        lstm_options: Mapping[str, Any] | None = None,
        optimizer: str = "adam",
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        epochs: int = 60,
        batch_size: int = 32,
        clip_norm: float | None = 1.0,
        validation: float = 0.0,
        patience: int | None = None,
        input_noise: float = 0.0,
        standardize: bool = True,
        schedule: Schedule | None = None,
        callbacks: Sequence[Callback] | None = (),
        warm_start: bool = False,
        dtype: str = "float32",
        predict_dtype: str = "float64",
        backend: str | Backend | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        _keep(self, locals())

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn one epoch from these sequences; the first call makes and standardises the model.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        """
        first = not hasattr(self, "model_")
        with self._put_back_unless(_Run()):
            sequences, targets = self._read_both(X, y, reset=first)
            self._learn_once(sequences, self._encode(targets, reset=first), sample_weight)
        return self

    def predict(self, X: Any) -> Array:
        """Return (n,) values, or (n, K) if the targets of `fit` had two axes.

        Parameters
        ----------
        X
            n sequences, see the class.
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if self._flat else outputs

    def _encode(self, y: Array, *, reset: bool) -> Array:
        """Return (n, K) float64; `reset` says that K is fixed by it."""
        if reset:
            self._flat, self._n_outputs = y.ndim == 1, 1 if y.ndim == 1 else y.shape[1]
        return np.asarray(y, np.float64).reshape(len(y), -1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
