"""Models of a `Chain`, and of an LSTM that is batch first: gradients, training, files, predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from lstmcore.chain import Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.cli import main
from lstmcore.lstm import LSTM
from lstmcore.training import AdamW, CrossEntropy, Readout, SequenceModel, Standardizer, load_model
from small_models import data, make, opened, trainer

ENDS = ("merge", "reversed", "both")


def chain_model(
    end: str = "merge", *, steps: Any = "last", x: bool = False, batch_first: bool = False
) -> SequenceModel:
    """Three layers of other sizes that end in a merge by product, a reversed layer, or both directions."""
    shared: dict[str, Any] = {"dtype": "float64", "backend": "numpy"}
    layers: list[Any] = [LSTM(2, 5, seed=1, zoneout_cell=0.1, **shared), Reversed(LSTM(5, 3, seed=2, **shared))]
    layers += [LSTM(3, 4, 2, bidirectional=True, seed=3, dropout=0.2, **shared)]
    layers += {"merge": [Merge("mul")], "both": [], "reversed": [Reversed(LSTM(8, 6, seed=4, **shared))]}[end]
    chain = Chain(layers, batch_first=batch_first)
    readout = Readout(chain.output_width, 3, steps=steps, x_size=2 if x else 0, dtype="float64", seed=2)
    return SequenceModel(chain, readout)


@pytest.mark.parametrize(
    ("end", "steps", "batch_first"),
    [("merge", "last", False), ("reversed", "last", True), ("both", "last", False), ("merge", "every", True)],
)
def test_gradients(end: str, steps: Any, batch_first: bool) -> None:
    """Against central differences, with the random masks off: a call in place of a recorded one has none."""
    model = chain_model(end, steps=steps, x=True, batch_first=batch_first)
    random = np.random.default_rng(4)
    inputs = [random.standard_normal((length, 2)) for length in (3, 5, 4)]
    targets: Any = [random.integers(0, 3, (len(s),) if steps == "every" else ()) for s in inputs]
    plain = {"zoneout_cell": 0.0, "dropout": 0.0}
    quiet = Chain([
        type(layer)(_plain(layer.lstm, plain)) if isinstance(layer, Reversed)
        else layer if isinstance(layer, Merge) else _plain(layer, plain)
        for layer in model.lstm.layers  # type: ignore[union-attr]  # it is a chain
    ], batch_first=batch_first)  # fmt: skip
    quiet.load_parameters(model.lstm.parameters)
    model = SequenceModel(quiet, model.readout)
    loss = CrossEntropy()
    learned = model.learn(inputs, targets, loss)
    parameters = {name: np.array(value) for name, value in model.parameters.items()}
    assert list(learned.gradients) == list(parameters)
    for name, value in parameters.items():
        for place in random.choice(value.size, min(value.size, 2), replace=False):
            index = np.unravel_index(place, value.shape)
            kept, seen = value[index], []
            for step in (1e-6, -1e-6):
                value[index] = kept + step
                model.load_parameters(parameters)
                seen.append(model.evaluate(inputs, targets, loss).loss)
            value[index] = kept
            assert learned.gradients[name][index] == pytest.approx((seen[0] - seen[1]) / 2e-6, abs=1e-8), name


def _plain(lstm: LSTM, changes: dict[str, float]) -> LSTM:
    config, stack = lstm.stack.layers[0][0], lstm.stack
    return LSTM(
        config.input_size, config.hidden_size, stack.num_layers, bidirectional=stack.num_directions == 2,
        dtype="float64", backend="numpy", seed=lstm.seed, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_chain_learns_and_comes_back(end: str, tmp_path: Path) -> None:
    """A run that is resumed is the same run; the file gives the same predictions on another backend."""
    inputs, targets = data(30)
    model, path = chain_model(end), tmp_path / "m"
    settings: dict[str, Any] = {"batch_size": 8, "standardize": False}
    history = trainer(model, epochs=9, optimizer=AdamW(0.05), **settings).fit(inputs, targets)
    assert history.epochs[-1].loss < 0.97 * history.epochs[0].loss
    fresh, answers = data(20, seed=9)
    outputs = model.predict(fresh)
    trainer(chain_model(end), epochs=2, optimizer=AdamW(0.05), checkpoint=tmp_path / "run", **settings).fit(
        inputs, targets
    )
    again = chain_model(end)
    resumed = trainer(again, epochs=9, optimizer=AdamW(0.05), **settings).fit(inputs, targets, resume=tmp_path / "run")
    assert resumed == history
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, again.parameters[name])
    model.save(path)
    assert load_model(path, backend="numpy").evaluate(fresh, answers) == model.evaluate(fresh, answers)
    for left, right in zip(outputs, load_model(path, backend="reference").predict(fresh), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9)


def test_the_drift_is_that_of_all_layers() -> None:
    model = chain_model()
    inputs, targets = data(4)
    wanted = []
    for sequence in inputs:
        _, state = model.lstm(sequence[:, None])
        wanted.append(float(np.sqrt(sum(np.square(c).sum() for _, c in state))))
    assert model.evaluate(inputs, targets, "cross-entropy").drift == pytest.approx(np.mean(wanted), rel=1e-12)


@pytest.mark.parametrize("steps", ["last", "every"])
def test_batch_first_changes_nothing_but_the_layout(tmp_path: Path, steps: Any) -> None:
    """Sequences are (T, I), or an array (N, T, I), with either layout of the LSTM."""
    inputs, classes = data(24)
    targets: Any = [np.full(len(s), c) for s, c in zip(inputs, classes, strict=True)] if steps == "every" else classes
    models = [make(steps=steps, x=True, num_layers=2), make(steps=steps, x=True, num_layers=2, batch_first=True)]
    histories = [trainer(model).fit(inputs, targets) for model in models]
    assert histories[0] == histories[1]
    models[1].save(tmp_path / "m")
    loaded = load_model(tmp_path / "m", backend="numpy")
    assert loaded.lstm.batch_first and not models[0].lstm.batch_first
    for one, two, three in zip(*(model.predict(inputs) for model in (*models, loaded)), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    block = np.random.default_rng(0).standard_normal((5, 7, 2))
    np.testing.assert_array_equal(models[1].predict(block), models[0].predict(list(block)))  # type: ignore[arg-type]


def test_damaged_files_of_chains(tmp_path: Path) -> None:
    model, path = chain_model(), tmp_path / "m"
    model.input_scaling = Standardizer(np.zeros(2), np.ones(2))
    model.save(path)
    tensors, header = opened(path)
    for change, message in (
        ({"layers": header["lstm"]["layers"][:2]}, "expected none but those|readout hidden_size|readout.weight"),
        ({"layers": []}, "layers in the header: expected a list of layers"),
        ({"layers": header["lstm"]["layers"][1:]}, "expected mean and scale of shape"),
        ({"more": 1}, "lstm in the header: expected layers, dtype; got 'more'"),
        ({"dtype": "float32"}, "readout dtype: expected"),
        ({"batch_first": 2}, "batch_first: expected True or False; got 2"),
    ):
        changed = {**header, "lstm": {**header["lstm"], **change}}
        save_file(tensors, path, metadata={"lstmcore": json.dumps(changed)})
        with pytest.raises(ValueError, match=f"{path}: .*({message})|{path}: ({message})"):
            load_model(path)
    wrong: Any = Chain([LSTM(2, 4, dtype="float64", seed=0, backend="numpy")])
    with pytest.raises(ValueError, match="readout hidden_size: expected 4, the width of the LSTM's output; got 5"):
        SequenceModel(wrong, Readout(5, 1, dtype="float64"))
    wrong = object()
    with pytest.raises(TypeError, match="lstm: expected an LSTM or a Chain; got object"):
        SequenceModel(wrong, Readout(5, 1, dtype="float64"))


def test_the_command_line_says_that_a_readout_is_missing(tmp_path: Path) -> None:
    for layers in (LSTM(2, 4, seed=0, backend="numpy"), Chain([LSTM(2, 4, seed=0, backend="numpy")])):
        layers.save(tmp_path / "layers")
        for command in ("evaluate", "predict"):
            result = CliRunner().invoke(main, [command, str(tmp_path / "layers"), "japanese-vowels"])
            assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
            assert "layers: expected a file of format 'lstmcore-model'; got 'lstmcore-" in result.stderr
            made = f"SequenceModel({type(layers).__name__}.load(path), Readout(...))"
            assert f"a readout is missing: {made} makes a model" in result.stderr
