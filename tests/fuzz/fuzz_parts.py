"""Constructors, calls, and the parts of training, with odd values and arrays."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from fuzz_source import ODD, Source, refused

from lstmcore import LSTM, Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.config import LSTMConfig
from lstmcore.datasets import windows
from lstmcore.dialects.cells import FORMATS, read_cell, write_cell
from lstmcore.dialects.openvino import from_arrays, to_arrays
from lstmcore.layers import AttentionPooling, Conv1d, Embedding, Linear
from lstmcore.training import (
    SGD,
    Adam,
    AdamW,
    Cosine,
    CrossEntropy,
    GaussianLoss,
    MeanSquaredError,
    OnPlateau,
    QuantileLoss,
    Readout,
    SequenceModel,
    Standardizer,
    StepDecay,
    Trainer,
    WarmUp,
    batches_by_length,
    clip_by_global_norm,
    pad,
    split,
)

#: Odd values among which no size fills the memory, and no number of epochs takes a day.
SMALL: Final = tuple(
    value for value in ODD if not isinstance(value, int) or isinstance(value, bool) or abs(value) < 2**16
)


#: Switch of `LSTM` -> values that it may have.
SWITCHES: Final[Mapping[str, tuple[Any, ...]]] = {
    "num_layers": (1, 2),
    "bias": (True, False),
    "batch_first": (False, True),
    "dropout": (0.0, 0.5),
    "bidirectional": (False, True),
    "proj_size": (0, 2),
    "peephole": (False, True),
    "coupling": ("none", "forget_from_input", "input_from_forget"),
    "gate_clip": (None, 0.5),
    "cell_clip": (None, 0.5),
    "proj_clip": (None, 0.5),
    "gate_activation": ("sigmoid", "hard_sigmoid(alpha=0.3)"),
    "cell_activation": ("tanh", "elu(0.5)", "softplus"),
    "hidden_activation": ("tanh", "identity"),
    "recurrence": ("hidden", "cell"),
    "layer_norm": (False, True),
    "zoneout_hidden": (0.0, 0.25),
    "zoneout_cell": (0.0, 0.25),
    "recurrent_dropout": (0.0, 0.25),
    "dtype": ("float32", "float64"),
    "seed": (0, 7),
    "init": ("uniform", "orthogonal"),
    "forget_bias": (None, 1.0),
    "weights": ("same", "int8", "float16"),
}


def constructor(source: Source) -> None:
    """Make an LSTM of odd arguments, and the parts of a model."""
    odd = [value for value in ODD if not isinstance(value, int) or isinstance(value, bool) or abs(value) < 2**31]
    arguments = {
        name: source.often(source.pick(values), odd, 3) for name, values in SWITCHES.items() if source.below(3)
    }
    sizes = [source.often(source.pick((1, 3, 5)), odd, 4) for _ in range(2)]
    lstm = refused(lambda: LSTM(*sizes, backend=source.pick(("numpy", "reference")), **arguments))
    if lstm is not None:
        assert refused(lambda: repr(lstm))
        assert LSTMConfig.from_dict(json.loads(json.dumps(lstm.stack.configs[0].to_dict()))) == lstm.stack.configs[0]
    layers = [lstm, Merge(source.pick(("concat", "sum"))), source.pick(ODD)][: 1 + source.below(3)]
    refused(lambda: Chain(layers, batch_first=source.often(False, ODD)))
    refused(lambda: Chain([Reversed(lstm), lstm]))
    refused(
        lambda: LSTMConfig.from_dict(
            {source.often("input_size", odd): source.pick(odd), "hidden_size": source.pick(odd)}
        )
    )
    pieces = [source.often(source.pick((1, 3)), odd, 4) for _ in range(3)]
    refused(lambda: Readout(pieces[0], pieces[1], x_size=pieces[2], activation=source.often("none", odd)))
    refused(lambda: SequenceModel(lstm, Readout(5, 3)))


@functools.cache
def _lstm(place: int) -> LSTM:
    made: tuple[dict[str, Any], ...] = (
        {},
        {"bidirectional": True, "num_layers": 2, "dropout": 0.5},
        {"peephole": True, "proj_size": 2, "cell_clip": 0.5},
        {"layer_norm": True, "zoneout_hidden": 0.25, "batch_first": True},
        {"dtype": "float64", "coupling": "input_from_forget", "bias": False},
    )
    return LSTM(3, 5, seed=0, backend="numpy", **made[place])


def calls(source: Source) -> None:
    """Call an LSTM with arrays that mostly fit: forward, record, backward, jvp, parameters."""
    lstm = _lstm(source.below(5))
    dtype, (steps, batch) = lstm.precision.storage, (source.pick((3, 0, 1)), source.pick((2, 0, 1)))
    outer = (batch, steps) if lstm.batch_first else (steps, batch)
    layers = lstm.stack.num_layers * lstm.stack.num_directions
    x = source.array((*outer, 3), dtype)
    pair = (source.array((layers, batch, lstm.stack.output_size), dtype), source.array((layers, batch, 5), dtype))
    state = source.often(pair, (None, *ODD)) if source.below(2) else None
    lengths = (
        source.often(np.arange(batch) % (steps + 1), (source.array((batch,), "int64"), *ODD))
        if source.below(2)
        else None
    )
    found = refused(lambda: lstm(x, state, lengths=lengths))
    if found is not None:
        assert found[0].shape[:2] == tuple(x.shape[:2]) or x.ndim == 2
    recorded = refused(lambda: lstm.record(x, state, lengths=lengths))
    if recorded is not None:
        y = recorded[0]
        dstate = source.often(None, (recorded[1], *ODD))
        refused(lambda: lstm.backward(recorded[2], source.array(y.shape, dtype), dstate))
    refused(lambda: lstm.jvp(x, source.array((*outer, 3), dtype), state, lengths=lengths))
    parameters = dict(lstm.parameters)
    name = source.pick(list(parameters))
    changed: Any = parameters | {
        source.often(name, ("x", "", 1, None, b"x")): source.array(parameters[name].shape, dtype)
    }
    other = LSTM(3, 5, seed=0, backend="numpy", dtype=lstm.precision.name)
    refused(lambda: other.load_parameters(source.often(changed, ODD, 8)))


def parts(source: Source) -> None:
    """Call losses, optimizers, batches and standardisation with odd arrays."""
    loss = source.pick((CrossEntropy(), MeanSquaredError()))
    outputs = source.array((4, 3), "float64")
    targets = source.often(np.arange(4) % 3 if loss.of_linear else source.array((4, 3), "float64"), ODD)
    found = refused(lambda: loss(outputs, targets, source.often(None, (np.ones(4, bool), *ODD))))
    assert found is None or found[1].shape == outputs.shape
    rule = source.pick((SGD, Adam, AdamW))
    named = {
        key: source.pick(ODD) for key in ("momentum", "beta1", "eps", "weight_decay", "nesterov") if not source.below(4)
    }
    optimizer = refused(lambda: rule(source.often(0.1, ODD), **named)) or Adam()
    gradients = source.often({"w": source.array((2, 3))}, ODD)
    moved = refused(lambda: optimizer.step({"w": source.array((2, 3))}, gradients))
    if moved is not None:
        refused(lambda: Adam().load_state(source.often(1, ODD), source.often(optimizer.state(), ODD), moved))
    refused(lambda: clip_by_global_norm(gradients, source.often(1.0, ODD)))
    scaling = refused(lambda: Standardizer.fit([source.array((4, 3), "float64") for _ in range(2)]))
    if scaling is not None:
        refused(lambda: scaling.undo(scaling.apply(source.array((4, 3), "float64"), "float32")))
    refused(lambda: pad(source.often([source.array((2, 3)) for _ in range(3)], ODD)))
    refused(lambda: split(source.often(5, SMALL), source.often(0.4, ODD), seed=source.often(0, ODD),
                           classes=source.often(None, ODD), chronological=bool(source.below(2)),
                           purge=source.often(0, SMALL)))  # fmt: skip
    refused(lambda: batches_by_length(source.often([3, 1, 2], ODD), source.often(2, SMALL), seed=0, epoch=1))


def losses(source: Source) -> None:
    """Call losses that give intervals, and schedules, with odd arrays and settings."""
    loss = source.pick((QuantileLoss(), GaussianLoss(), CrossEntropy(), MeanSquaredError()))
    width = {"quantile": 6, "gaussian": 4}.get(loss.name, 3)
    outputs, targets = source.array((4, width), "float64"), source.array((4, 2), "float64")
    if loss.of_linear:
        targets = source.often(np.arange(4) % 3, ODD, 8)
    found = refused(lambda: loss(outputs, targets, source.often(None, (np.ones(4, bool), *ODD), 8)))
    assert found is None or (isinstance(found[0], float) and found[1].shape == outputs.shape)
    refused(lambda: loss.interval(outputs, source.often(0.9, ODD)))
    refused(lambda: loss.point(outputs))
    refused(lambda: loss.target_size(source.often(6, SMALL)))
    refused(lambda: QuantileLoss(source.often((0.1, 0.9), (*ODD, (0.9, 0.1), (0.5, 2.0)))))
    kind = source.pick((StepDecay, Cosine, WarmUp, OnPlateau))
    schedule = refused(lambda: kind(source.often(3, ODD), source.often(0.5, ODD)))
    if schedule is not None:
        assert 0 <= (schedule * schedule).factor(source.pick((0.0, 2.5, 1e300)), []) <= 1


def layers(source: Source) -> None:
    """Make layers around an LSTM of odd arguments, and call them."""
    kinds: Mapping[Any, tuple[Any, ...]] = {
        Linear: (3, 2), Embedding: (9, 2), Conv1d: (3, 2, source.often(3, SMALL, 6)), AttentionPooling: (3, 2),
    }  # fmt: skip
    kind = source.pick(list(kinds))
    sizes = [source.often(size, SMALL, 12) for size in kinds[kind]]
    named = {"seed": source.often(0, SMALL, 12), "dtype": source.often("float32", ODD, 12)}
    if kind is Conv1d:
        named |= {"stride": source.often(1, SMALL, 6), "padding": source.often(0, (1, 5, *ODD[:8]), 6)}
    layer = refused(lambda: kind(*sizes, **named))
    if layer is None:
        return
    x = source.array((5, 2), "int64") if kind is Embedding else source.array((5, 2, 3))
    further = {}
    if kind is AttentionPooling:
        further = {
            "lengths": source.often(None, (np.array([5, 0]), *ODD)),
            "queries": source.often(None, (x[:1] if hasattr(x, "shape") and np.ndim(x) else x, *ODD)),
        }
    recorded = refused(lambda: layer.record(x, **further))
    if recorded is not None:
        refused(lambda: layer.backward(recorded[1], source.array(recorded[0].shape)))
    changed: Any = {name: source.array(shape) for name, shape in layer.parameter_shapes.items()}
    refused(lambda: layer.load_parameters(source.often(changed, ODD, 8), source.often("", ("a.",), 8)))


@functools.cache
def _chain() -> Chain:
    parts = [
        LSTM(3, 4, bidirectional=True, seed=0, backend="numpy"),
        Merge("sum"),
        Reversed(LSTM(4, 2, seed=1, backend="numpy")),
    ]
    return Chain(parts)


def chains(source: Source) -> None:
    """Call a chain with arrays that mostly fit: forward, record, backward, jvp, parameters."""
    chain = _chain()
    steps, batch = source.pick((3, 0, 1)), source.pick((2, 0, 1))
    x = source.array((steps, batch, 3))
    state: Any = None
    if source.below(2):
        state = [tuple(source.array((rows, batch, width)) for _ in range(2)) for rows, width in ((2, 4), (1, 2))]
        state = source.often(source.often(state, (state[:1], [None, None], tuple(state))), ODD)
    lengths = source.often(np.arange(batch) % (steps + 1), (None, *ODD)) if source.below(2) else None
    refused(lambda: chain(x, state, lengths=lengths))
    recorded = refused(lambda: chain.record(x, state, lengths=lengths))
    if recorded is not None:
        refused(
            lambda: chain.backward(
                recorded[2], source.array(recorded[0].shape), source.often(None, (recorded[1], *ODD))
            )
        )
    refused(lambda: chain.jvp(x, source.array((steps, batch, 3)), state, lengths=lengths))
    refused(lambda: chain.load_parameters(source.often(dict(chain.parameters), ODD)))


def cells(source: Source) -> None:
    """Read and write the cells of other libraries from odd arrays."""
    name = source.pick(list(FORMATS))
    content = LSTM(3, 5, seed=0, backend="numpy").content
    sample = refused(lambda: write_cell(name, content, cell_clip=0 if name.startswith("tf-block") else None))
    arrays: Any = {
        source.often(key, ("", 1, "x"), 20): source.often(value, (source.array(value.shape), *ODD), 8)
        for key, value in (sample or {}).items()
    }  # fmt: skip
    told = {key: source.pick(ODD) for key in ("forget_bias", "cell_clip", "proj_clip") if source.below(6) == 1}
    other = source.often(None, (arrays, *ODD), 8)
    found = refused(lambda: read_cell(source.often(name, ODD, 20), source.often(arrays, ODD, 20), other, **told))
    if found is not None:
        refused(lambda: write_cell(source.pick(list(FORMATS)), found, backward=bool(source.below(2)), **told))
    shapes = {"W": (1, 20, 3), "R": (1, 20, 5), "B": (1, 20)}
    given: Any = {key: source.array(shape) for key, shape in shapes.items() if source.below(20)}
    words = ("direction", "activations", "clip", "hidden_size", "x", "input_forget", "linear_before_reset")
    texts = ("reverse", "bidirectional", "tanh", "sigmoid,tanh,relu", "1e999", "nan", "5", "", "9" * 40, "\u0665")
    attributes: Any = {source.pick(words): source.pick(texts) for _ in range(source.below(3))}
    content = refused(lambda: from_arrays(source.often(given, ODD, 20), source.often(attributes, ODD, 20)))
    if content is not None:
        refused(lambda: to_arrays(content))


#: Setting of a `Trainer` -> a value that fits.
_SETTINGS: Final[Mapping[str, Any]] = {
    "batch_size": 3, "clip_norm": 1.0, "validation": 0.3, "chronological": True, "purge": 1, "patience": 1,
    "drift_threshold": 10.0, "input_noise": 0.1, "standardize": True, "standardize_targets": False, "seed": 1,
    "class_weight": "balanced", "metrics": ("f1",), "accumulate": 2, "truncate": 2, "gradient_checkpointing": True,
    "schedule": Cosine(3), "callbacks": (), "loss": "cross-entropy", "checkpoint": None, "distributed": None,
}  # fmt: skip


def training(source: Source) -> None:
    """Train a small model with odd settings on odd data; predict and evaluate with it."""
    loss = source.pick(("cross-entropy", "mean-squared-error", "quantile", "gaussian"))
    width = {"quantile": 3, "gaussian": 2, "cross-entropy": 3}.get(loss, 1)
    every = source.pick(("last", "every", "mean"))
    model = SequenceModel(LSTM(2, 3, seed=0, backend="numpy"), Readout(3, width, steps=every, seed=0))
    odd = {name: source.often(value, SMALL) for name, value in _SETTINGS.items() if source.below(8) == 1}
    trainer = refused(lambda: Trainer(model, **({"loss": loss, "epochs": 1, "quiet": True} | odd)))
    lengths = [source.often(3, (0, 1, 2)) for _ in range(5)]
    inputs: Any = [
        source.array((length, 2), "float64") if not source.below(4) else np.ones((length, 2)) for length in lengths
    ]
    inputs = source.often(inputs, (np.ones((5, 3, 2)), inputs[:0], *ODD), 8)
    ends = [(length,) for length in lengths] if every == "every" else [()] * 5
    if loss == "cross-entropy":
        targets: Any = [np.ones(end, np.int64) * (k % 3) for k, end in enumerate(ends)]
    else:
        targets = [np.ones((*end, 1)) for end in ends]
    targets = source.often(targets, (np.arange(5) % 3, np.ones((5, 1)), source.array((5, 1)), *ODD), 6)
    weights = source.often(None, (np.ones(5), source.array((5,)), *ODD), 6)
    if trainer is not None:
        further = source.often(None, ((inputs, targets), *ODD), 8)
        history = refused(lambda: trainer.fit(inputs, targets, sample_weight=weights, validation_data=further))
        assert history is None or json.dumps(history.to_dict())
    refused(lambda: model.evaluate(inputs, targets, loss, sample_weight=weights, batch_size=source.often(4, SMALL)))
    refused(lambda: model.predict(inputs, coverage=source.often(None, (0.9, *ODD)), batch_size=source.often(4, SMALL)))
    refused(lambda: model.load_parameters(source.often(dict(model.parameters), ODD)))


#: Setting of an estimator -> a value that fits.
_ESTIMATOR: Final[Mapping[str, Any]] = {
    "hidden_size": 3, "num_layers": 1, "bidirectional": True, "dropout": 0.0, "recurrent_dropout": 0.1,
    "pooling": "mean",
    "lstm_options": {"peephole": True}, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.1, "batch_size": 2,
    "clip_norm": 1.0, "validation": 0.4, "patience": 1, "input_noise": 0.1, "standardize": False, "schedule": WarmUp(2),
    "class_weight": "balanced", "warm_start": True, "dtype": "float64", "predict_dtype": "float32", "random_state": 1,
}  # fmt: skip


def estimators(source: Source) -> None:
    """Fit scikit-learn's estimators with odd settings and data, and predict."""
    from sklearn.exceptions import NotFittedError

    from lstmcore.sklearn import LSTMClassifier, LSTMRegressor

    kind = source.pick((LSTMClassifier, LSTMRegressor))
    odd = {name: source.often(value, SMALL) for name, value in _ESTIMATOR.items() if source.below(8) == 1}
    x = source.often(
        source.array((6, 4, 2), "float64"), (source.array((6, 4)), [np.ones((k, 2)) for k in range(1, 7)], *ODD)
    )
    y = source.often(np.arange(6) % 2, (list("ababab"), source.array((6,)), source.array((6, 2)), *ODD))
    made = refused(lambda: kind(**({"hidden_size": 2, "epochs": 1, "backend": "numpy"} | odd)))
    if made is None:
        return
    refused(lambda: made.fit(x, y, source.often(None, (np.ones(6), *ODD))))
    if source.below(2):
        refused(lambda: made.partial_fit(x, y))
    try:
        refused(lambda: made.predict(source.often(x, ODD)))
        refused(lambda: made.score(x, y))
    except NotFittedError:
        pass


def frames(source: Source) -> None:
    """Cut a DataFrame with odd columns into windows."""
    import pandas as pd

    columns = {"shop": list("aaabbb"), "day": [1, 2, 3] * 2, "sold": np.arange(6.0)}
    mixed: Any = [1, "x", None, 2.5, (), {}]
    odd = (
        *(list("abcdef"), [None] * 6, [np.nan] * 6, [2**70] * 6, mixed, np.ones(6, bool)),
        *(pd.date_range("2024-01-01", periods=6), pd.Categorical(list("aabbcc"))),
    )
    frame = pd.DataFrame({name: source.often(values, odd, 8) for name, values in columns.items() if source.below(12)})
    names = ("sold", "day", "shop", None, "", 3, "x")
    made = refused(
        lambda: windows(
            source.often(frame, (frame[:0], *SMALL), 12),
            target=source.often(["sold"], ([], "sold", ["sold", "day"], [source.pick(names)], *SMALL)),
            features=source.often((), (["day"], "day", [source.pick(names)], *SMALL)),
            series=source.pick(names),
            time=source.pick(names),
            sort=bool(source.below(2)),
            window=source.often(1, SMALL),
            horizon=source.often(1, SMALL),
        )
    )
    if made is not None:
        assert np.isfinite(made.absolute(made.targets)).all()
        refused(lambda: made.split(source.often(1, SMALL)))
        refused(made.at_end)
