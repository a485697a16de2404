"""Models with an embedding below the LSTM and attention above it: gradients, runs, files, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.layers import AttentionPooling, Embedding
from lstmcore.training import Adam, CrossEntropy, MeanSquaredError, Readout, SequenceModel, Standardizer, Trainer
from lstmcore.training.model_card import describe_model
from lstmcore.training.network import Batch
from small_models import opened, rewrite, trainer

ENTRIES, WIDTH, HIDDEN = 7, 3, 4


def make(parts: str = "embedding pooling", dtype: str = "float64", **more: Any) -> SequenceModel:
    """A model with the named parts; other settings are the readout's `steps` and `with_x`, and the LSTM's."""
    steps, with_x, outputs = more.pop("steps", "last"), more.pop("with_x", False), more.pop("outputs", 3)
    lstm = LSTM(WIDTH, HIDDEN, dtype=dtype, seed=1, backend="numpy", **more)
    table = Embedding(ENTRIES, WIDTH, dtype=dtype, seed=2) if "embedding" in parts else None
    pooling = AttentionPooling(lstm.output_width, 5, dtype=dtype, seed=3) if "pooling" in parts else None
    readout = Readout.of(lstm, outputs, steps=steps, with_x=with_x, seed=4)
    return SequenceModel(lstm, readout, embedding=table, pooling=pooling)


def sequences(model: SequenceModel, lengths: tuple[int, ...] = (5, 2, 7, 1)) -> list[Any]:
    random = np.random.default_rng(6)
    if model.embedding is None:
        return [random.standard_normal((length, WIDTH)).astype(model.readout.dtype) for length in lengths]
    return [random.integers(0, ENTRIES, length) for length in lengths]


def targets_of(model: SequenceModel, inputs: list[Any]) -> list[Any]:
    random = np.random.default_rng(7)
    every = model.readout.steps == "every"
    return [random.standard_normal((len(x), 3) if every else 3).astype(model.readout.dtype) for x in inputs]


CASES = [
    ("embedding", {}),
    ("embedding", {"steps": "every", "with_x": True}),
    ("embedding", {"steps": "mean", "with_x": True, "bidirectional": True}),
    ("embedding", {"steps": "last", "with_x": True, "batch_first": True}),
    ("pooling", {"bidirectional": True, "num_layers": 2}),
    ("pooling", {"steps": "every", "with_x": True}),
    ("embedding pooling", {"with_x": True, "bidirectional": True, "batch_first": True}),
    ("embedding pooling", {"steps": "every", "peephole": True}),
]


@pytest.mark.parametrize("by_parts", [False, True], ids=["whole", "by parts"])
@pytest.mark.parametrize(("parts", "more"), CASES)
def test_gradients_are_slopes_of_the_loss(parts: str, more: dict[str, Any], by_parts: bool) -> None:
    """Central differences along random directions, for every parameter; gradient checkpointing gives the same."""
    if by_parts and more.get("bidirectional"):
        more = more | {"bidirectional": False}
    model = make(parts, **more)
    inputs = sequences(model)
    batch, loss = Batch.of(inputs, targets_of(model, inputs), None, model.readout), MeanSquaredError()
    network = model.network
    learned = network.learn_by_parts(batch, loss) if by_parts else network.learn(batch, loss)
    start, random = model.parameters, np.random.default_rng(8)
    assert set(learned.gradients) == set(start)
    for name, gradient in learned.gradients.items():
        along = random.standard_normal(gradient.shape)
        values = []
        for step in (1e-6, -1e-6):
            model.load_parameters({**start, name: start[name] + step * along})
            values.append(network.learn(batch, loss).loss)
        slope = float((gradient * along).sum())
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-9), name
        assert np.abs(gradient).max() > 1e-9, name


def test_attention_weighs_the_steps_by_hand() -> None:
    model = make("pooling")
    (x,) = sequences(model, (6,))
    y, state = model.lstm(x)
    w, u, v = (model.parameters[f"pooling.{name}.weight"] for name in "WUv")
    scores = np.tanh(w @ y[-1] + y @ u.T) @ v[0]
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(model.predict([x])[0], model.readout(weights @ y), rtol=1e-12)
    assert state is not None


def test_an_embedding_is_a_one_hot_product() -> None:
    """The LSTM reads rows of the table: that of one-hot rows times the table, with the same answers."""
    model = make("embedding", steps="every", with_x=True)
    plain = SequenceModel(model.lstm, model.readout)
    inputs = sequences(model)
    table = model.parameters["embedding.weight"]
    for one, two in zip(
        model.predict(inputs), plain.predict([np.eye(ENTRIES)[x] @ table for x in inputs]), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(
        model.predict(inputs), model.predict([x[:, None].astype(np.uint8) for x in inputs]), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("parts", ["embedding", "pooling", "embedding pooling"])
def test_padding_and_other_rows_change_nothing(parts: str) -> None:
    model = make(parts, bidirectional=True)
    inputs = sequences(model, (5, 0, 9, 1))
    alone = [model.predict([x])[0] for x in inputs]
    for one, two in zip(model.predict(inputs), alone, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def order_task() -> tuple[list[Any], Any]:
    """Sequences of codes; the class is whether the first of the codes 1 and 2 came first."""
    random = np.random.default_rng(9)
    inputs, targets = [], []
    for number in range(48):
        x = random.integers(3, ENTRIES, int(random.integers(4, 9)))
        one, two = sorted(random.choice(len(x), 2, replace=False))
        x[[one, two]] = (1, 2) if number % 2 else (2, 1)
        inputs.append(x)
        targets.append(number % 2)
    return inputs, np.array(targets)


def test_a_run_learns_saves_and_resumes(tmp_path: Path) -> None:
    inputs, targets = order_task()
    runs = []
    for stop in (0, 8):
        model = make(outputs=2, dtype="float32")
        settings: dict[str, Any] = {"epochs": 40, "validation": 0.0, "checkpoint": tmp_path / f"run{stop}"}
        if stop:
            trainer(model, optimizer=Adam(0.02), **(settings | {"epochs": stop})).fit(inputs, targets)
            model = make(outputs=2, dtype="float32")
        resume = tmp_path / f"run{stop}" if stop else None
        history = trainer(model, optimizer=Adam(0.02), **settings).fit(inputs, targets, resume=resume)
        runs.append(model)
    for name, value in runs[0].parameters.items():
        np.testing.assert_array_equal(value, runs[1].parameters[name])
    before = make(outputs=2, dtype="float32").parameters
    assert all((runs[0].parameters[name] != value).any() for name, value in before.items())
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss
    runs[0].save(tmp_path / "m")
    loaded = SequenceModel.load(tmp_path / "m", backend="numpy")
    np.testing.assert_array_equal(np.stack(loaded.predict(inputs)), np.stack(runs[0].predict(inputs)))
    assert loaded.evaluate(inputs, targets) == runs[0].evaluate(inputs, targets)
    wide = SequenceModel.load(tmp_path / "m", dtype="float64", backend="numpy")
    assert (wide.embedding, wide.pooling) != (None, None) and wide.parameters["pooling.W.weight"].dtype == np.float64
    np.testing.assert_allclose(np.stack(wide.predict(inputs)), np.stack(loaded.predict(inputs)), rtol=1e-4, atol=1e-5)
    small = runs[0].compress("bfloat16")
    assert small.embedding is runs[0].embedding and small.pooling is runs[0].pooling


def test_truncated_and_checkpointed_runs_take_an_embedding() -> None:
    model = make("embedding", steps="every", outputs=ENTRIES)
    inputs = sequences(model, (9, 6, 8, 7))
    nexts = [np.roll(x, -1) for x in inputs]
    history = trainer(model, truncate=3, validation=0.0).fit(inputs, nexts)
    assert history.epochs[-1].loss < history.epochs[0].loss
    models = [make("embedding", steps="every", outputs=ENTRIES) for _ in range(2)]
    for one, checkpointing in zip(models, (False, True), strict=True):
        trainer(one, validation=0.0, gradient_checkpointing=checkpointing).fit(inputs, nexts)
    for name, value in models[0].parameters.items():
        np.testing.assert_allclose(value, models[1].parameters[name], rtol=1e-9, atol=1e-12)


def test_the_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "m"
    make().save(path)
    tensors, header = opened(path)
    assert header["embedding"] == {"entries": ENTRIES, "output_size": WIDTH}
    assert header["pooling"] == {"input_size": HIDDEN, "hidden_size": 5}
    for change, message in (
        ({"drop": "embedding.weight"}, "embedding.weight"),
        ({"drop": "pooling.v.weight"}, "pooling.v.weight"),
        ({"embedding__weight": np.zeros((ENTRIES, 2))}, r"embedding.weight'?.*expected shape \(7, 3\)"),
        ({"pooling__U__weight": np.full((5, HIDDEN), np.nan)}, "pooling.U.weight"),
        (
            {"input_scaling__mean": np.zeros(WIDTH), "input_scaling__scale": np.ones(WIDTH)},
            "input_scaling: expected No",
        ),
    ):
        make().save(path)
        rewrite(path, **change)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            SequenceModel.load(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"entries": 7}, "'output_size' missing in embedding"),
        ({"entries": 7, "output_size": 3, "bias": 1}, "'bias', which is unknown"),
        ({"entries": 0, "output_size": 3}, "embedding entries: expected at least 1"),
        ({"entries": 7, "output_size": 2}, "embedding"),
        ([7, 3], "embedding in the header: expected a JSON object"),
    ],
)
def test_a_header_of_another_embedding_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    import json

    from safetensors.numpy import save_file

    path = tmp_path / "m"
    make().save(path)
    tensors, header = opened(path)
    save_file(tensors, path, metadata={"lstmcore": json.dumps(header | {"embedding": value})})
    with pytest.raises((TypeError, ValueError), match=message):
        SequenceModel.load(path)


def build(**changes: Any) -> SequenceModel:
    lstm = LSTM(WIDTH, HIDDEN, seed=1, backend="numpy")
    parts: dict[str, Any] = {"readout": Readout(HIDDEN, 2, seed=0), "embedding": Embedding(ENTRIES, WIDTH, seed=0)}
    return SequenceModel(lstm, **(parts | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embedding": 3}, TypeError, "embedding: expected an Embedding or None; got int"),
        ({"pooling": 3}, TypeError, "pooling: expected an AttentionPooling or None; got int"),
        ({"embedding": Embedding(9, 2)}, ValueError, "embedding output_size: expected 3, the LSTM's input_size; got 2"),
        ({"embedding": Embedding(9, 3, dtype="float64")}, ValueError, "embedding dtype: expected float32"),
        ({"pooling": AttentionPooling(3)}, ValueError, "pooling input_size: expected 4, the width of"),
        ({"pooling": AttentionPooling(4, dtype="float64")}, ValueError, "pooling dtype: expected float32"),
        (
            {"pooling": AttentionPooling(4), "readout": Readout(4, 2, steps="mean")},
            ValueError,
            "readout steps: expected 'last' or 'every' with attention pooling; got 'mean'",
        ),
        (
            {"input_scaling": Standardizer(np.zeros(3), np.ones(3))},
            ValueError,
            "input_scaling: expected None with an embedding",
        ),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([np.array([0.0, 1.0])], TypeError, r"inputs\[0\]: expected an array of whole numbers \(T,\), which the embed"),
        ([[0, 1]], TypeError, r"inputs\[0\]: expected an array of whole numbers .*got list"),
        ([np.array([0, 7])], ValueError, r"inputs\[0\]: expected whole numbers from 0 to 6.*got 7"),
        ([np.array([0]), np.array([-1])], ValueError, r"inputs\[1\]: expected whole numbers from 0 to 6.*got -1"),
        ([np.zeros((2, 3), int)], ValueError, r"inputs\[0\]: expected shape \(T,\); got \(2, 3\)"),
        (np.array([0, 1]), TypeError, r"give a single sequence in a list, as in \[x\]"),
        ([], ValueError, "inputs: expected at least one sequence"),
    ],
)
def test_sequences_that_are_no_codes(inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build().predict(inputs)


def test_settings_that_need_real_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="input_noise: expected 0 with an embedding, which reads whole numbers"):
        Trainer(build(), input_noise=0.1)
    with pytest.raises(ValueError, match="truncate: expected a model without attention pooling"):
        Trainer(make("pooling", steps="every"), truncate=3)
    assert Trainer(build()).standardize is False


def test_the_card_names_what_is_read() -> None:
    told = describe_model(make())
    assert told["reads"] == "sequences of whole numbers from 0 to 6, each embedded in 3 numbers"
    assert told["gives"] == "3 numbers at the last step, through attention over all steps"
    assert describe_model(make("", steps="mean"))["gives"] == "3 numbers from the mean over the steps"
    count = sum(value.size for value in make().parameters.values())
    assert told["parameters"].startswith(f"{count:,} in")


def test_onnx_refuses_attention_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pooling: expected a model without attention pooling for ONNX; got one"):
        make("pooling").to_onnx(tmp_path / "m.onnx")


def test_cross_entropy_counts_codes() -> None:
    inputs, targets = order_task()
    model = make(outputs=2)
    found = model.evaluate(inputs, targets, CrossEntropy())
    answers = [int(output.argmax()) for output in model.predict(inputs)]
    assert found.accuracy == pytest.approx(np.mean(np.array(answers) == targets))
