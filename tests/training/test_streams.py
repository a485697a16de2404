"""Sequences that are loaded a batch at a time: the same runs as with lists, and never all of them at once."""

from __future__ import annotations

import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.training import MeanSquaredError, QuantileLoss, Readout, SequenceModel, Standardizer
from lstmcore.training.scaling import merge_standardizers
from small_models import data, make, trainer


class Source:
    """Sequences of a list, loaded as copies; it counts how often each is read, and which copies are alive."""

    def __init__(self, inputs: Any, targets: Any, lengths: Any = None) -> None:
        self.inputs, self.targets = inputs, targets
        self.read: list[int] = []
        self.alive = self.most = 0
        if lengths is not None:
            self.lengths = lengths

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read.append(index)
        x = np.array(self.inputs[index])
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(x, self._gone)
        return x, self.targets[index]

    def _gone(self) -> None:
        self.alive -= 1


def every_step(count: int = 20) -> tuple[list[Any], list[Any]]:
    inputs, _ = data(count)
    random = np.random.default_rng(5)
    return inputs, [random.integers(0, 3, len(x)) for x in inputs]


CASES: dict[str, Any] = {
    "classes": ({}, {}, data),
    "balanced": ({}, {"class_weight": "balanced", "metrics": ("f1",)}, lambda: (data(22)[0], data(22)[1])),
    "every step": ({"steps": "every", "bidirectional": False}, {"truncate": 3, "class_weight": [1, 2, 3]}, every_step),
    "values": (
        {},
        {"loss": "mean-squared-error", "chronological": True, "purge": 2},
        lambda: (data()[0], np.random.default_rng(1).standard_normal((24, 3))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_bits_of_a_run_on_lists(name: str, tmp_path: Path) -> None:
    """Without standardisation, whose sums are in another order; the run also resumes, with the same data alone."""
    switches, settings, load = CASES[name]
    inputs, targets = load()
    settings = {"standardize": False, "epochs": 4, "validation": 0.25, "input_noise": 0.1} | settings
    ways: list[tuple[Any, ...]] = [(inputs, targets), (Source(inputs, targets),)]
    models, histories = [make(**switches) for _ in ways], []
    for model, given in zip(models, ways, strict=True):
        histories.append(trainer(model, checkpoint=tmp_path / "run", **settings).fit(*given))
    close = {"rtol": 1e-9, "atol": 1e-12} if name == "balanced" else {"rtol": 0.0}  # weights are summed by class
    assert len(histories[0].epochs) == len(histories[1].epochs) == 4
    losses = [[(epoch.loss, epoch.validation_loss) for epoch in history.epochs] for history in histories]
    np.testing.assert_allclose(*losses, **close)
    for key, value in models[0].parameters.items():
        np.testing.assert_allclose(value, models[1].parameters[key], **close)
    one, two = (model.evaluate(*given, batch_size=7) for model, given in zip(models, ways, strict=True))
    np.testing.assert_allclose(one[:1] + one[2:3], two[:1] + two[2:3], **close)
    assert one.accuracy == two.accuracy
    for left, right in zip(models[0].predict(inputs), models[1].predict(Source(inputs, targets)), strict=True):
        np.testing.assert_allclose(left, right, **close)
    longer = settings | {"epochs": 6}
    history = trainer(make(**switches), **longer).fit(Source(inputs, targets), resume=tmp_path / "run")
    assert len(history.epochs) == 6 and history.to_dict()["epochs"][:4] == histories[1].to_dict()["epochs"]
    other = [inputs[0] + 1, *inputs[1:]]
    with pytest.raises(ValueError, match="checkpoint of another run: expected settings data_sha256"):
        trainer(make(**switches), **longer).fit(Source(other, targets), resume=tmp_path / "run")


@pytest.mark.parametrize("loss", [MeanSquaredError(), QuantileLoss((0.1, 0.9))], ids=lambda loss: loss.name)
def test_standardised_runs_are_those_of_lists_up_to_rounding(loss: Any) -> None:
    inputs, _ = data()
    width = loss.target_size(4)
    targets = 100 + 30 * np.random.default_rng(2).standard_normal((24, width))
    settings: dict[str, Any] = {"loss": loss, "standardize_targets": True, "epochs": 3}
    models = [make(outputs=4), make(outputs=4)]
    trainer(models[0], **settings).fit(inputs, targets)
    trainer(models[1], **settings).fit(Source(inputs, targets))
    for name in ("input_scaling", "target_scaling"):
        for part in ("mean", "scale"):
            one, two = (getattr(getattr(model, name), part) for model in models)
            np.testing.assert_allclose(one, two, rtol=1e-12)
    for key, value in models[0].parameters.items():
        np.testing.assert_allclose(value, models[1].parameters[key], rtol=1e-7, atol=1e-10)
    assert models[0].evaluate(inputs, targets).loss == pytest.approx(models[1].evaluate(Source(inputs, targets)).loss)


@pytest.mark.slow  # a run over 40 MB: four to six seconds
def test_data_that_do_not_fit_into_memory() -> None:
    """64 sequences of 0.6 MB, of which a run holds a batch of two: one raw at a time, far less than all in all."""
    steps, width = 200, 400
    whole = 64 * steps * width * 8

    class Large:
        most = alive = 0

        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            x = np.random.default_rng(index).standard_normal((steps, width))
            Large.alive += 1
            Large.most = max(Large.most, Large.alive)
            weakref.finalize(x, self.gone)
            return x, index % 2

        def gone(self) -> None:
            Large.alive -= 1

    lstm = LSTM(width, 2, seed=0, backend="numpy")
    model = SequenceModel(lstm, Readout.of(lstm, 2, activation="softmax", seed=0))
    tracemalloc.start()
    try:
        trainer(model, epochs=1, batch_size=2, validation=0.05).fit(Large())
        model.evaluate(Large(), batch_size=2)
        outputs = model.predict(Large(), batch_size=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(outputs) == 64
    assert Large.alive <= 1 and Large.most <= 2
    assert peak < whole / 3


def test_each_is_read_once_an_epoch_and_batches_go_by_length() -> None:
    """Lengths that are known save predict and evaluate a pass, and batches are those of a list."""
    inputs, targets = data()
    lengths = [len(x) for x in inputs]
    source, known = Source(inputs, targets), Source(inputs, targets, lengths)
    model = make()
    trainer(model, epochs=2, validation=0.25).fit(source)
    assert sorted(source.read) == sorted([*range(24)] * 3)
    assert source.read[:24] == [*range(24)] and source.most <= 2
    for given, passes in ((source, 4), (known, 2)):
        given.read.clear()
        model.predict(given, batch_size=5)
        model.evaluate(given, batch_size=5)
        assert sorted(given.read) == sorted([*range(24)] * passes)
    known.read.clear()
    model.predict(known, batch_size=5)
    order = [lengths[index] for index in known.read]
    assert order == sorted(lengths)


def test_inputs_alone_are_predicted() -> None:
    inputs, targets = data(7)

    class Inputs(Source):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    model = make()
    for one, two in zip(model.predict(Inputs(inputs, targets)), model.predict(inputs), strict=True):
        np.testing.assert_array_equal(one, two)


def test_another_source_may_watch() -> None:
    inputs, targets = data()
    model, same = make(), make()
    history = trainer(model, standardize=False, validation=0).fit(
        Source(inputs, targets), validation_data=Source(*data(9, 4))
    )
    wanted = trainer(same, standardize=False, validation=0).fit(inputs, targets, validation_data=data(9, 4))
    assert history.to_dict() == wanted.to_dict()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": 3}, TypeError, "data: expected targets too, or an object whose items are .*; got int alone"),
        ({"inputs": [np.ones((3, 2))]}, TypeError, "data: expected targets too.*; got list alone"),
        ({"inputs": Source([], [])}, ValueError, "data: expected at least one sequence; got none"),
        ({"x": np.ones((3, 5))}, ValueError, r"data\[4\], x: expected shape \(T, 2\); got \(3, 5\)"),
        ({"x": np.full((3, 2), np.nan)}, ValueError, r"data\[4\], x: expected finite numbers; got NaN"),
        ({"y": 3}, ValueError, r"data\[4\], y: expected class numbers 0 to 2; got 3"),
        ({"y": "b"}, TypeError, r"data\[4\], y: expected class numbers"),
        ({"lengths": [3]}, ValueError, r"data.lengths: expected 24, one a sequence; got 1"),
        ({"lengths": [99] * 24}, ValueError, r"data\[0\]: expected 99 steps, as its lengths"),
        ({"lengths": [2.9] * 24}, TypeError, r"data.lengths\[0\]: expected"),
        ({"lengths": ["3"] * 24}, TypeError, r"data.lengths\[0\]: expected"),
        ({"lengths": 5}, TypeError, r"data.lengths: expected a list of whole numbers; got int"),
        ({"sample_weight": np.ones(24)}, ValueError, "sample_weight: expected None with a source of sequences"),
        ({"validation_data": data(3)}, TypeError, "validation_data: expected a source, as the training data are"),
    ],
)
def test_what_is_no_source(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    inputs, targets = data()
    inputs, targets = list(inputs), list(targets)
    for name, values in (("x", inputs), ("y", targets)):
        if name in changes:
            values[4] = changes.pop(name)
    source = Source(inputs, targets, changes.pop("lengths", None))
    given = changes.pop("inputs", source)
    with pytest.raises(error, match=message):
        trainer(make()).fit(given, **changes)


def test_an_item_is_a_pair() -> None:
    class Alone(Source):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    with pytest.raises(
        TypeError, match=r"data\[0\]: expected a tuple \(x, y\), a sequence and its target; got ndarray"
    ):
        trainer(make()).fit(Alone(*data()))
    assert len(make().predict(Alone(*data()))) == 24

    class Three(Source):
        def __getitem__(self, index: int) -> Any:
            return (*super().__getitem__(index), 1.0)

    for call in (trainer(make()).fit, make().predict):
        with pytest.raises(TypeError, match=r"\[0\]: expected a tuple \(x, y\), .*; got a tuple of 3"):
            call(Three(*data()))
    with pytest.raises(ValueError, match="sample_weight: expected None with a source"):
        make().evaluate(Source(*data()), loss="cross-entropy", sample_weight=np.ones(24))


def test_a_source_that_changes_is_told() -> None:
    """Each sequence has the steps that the first pass found."""

    class Longer(Source):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return (x if len(self.read) <= len(self) else np.concatenate([x, x])), y

    with pytest.raises(ValueError, match=r"data\[\d+\]: expected \d+ steps, .* the first pass say; got \d+"):
        trainer(make()).fit(Longer(*data()))


def test_a_resumed_run_has_the_same_weights_of_classes(tmp_path: Path) -> None:
    """With lists and with a source."""
    inputs, targets = data()
    for number, given in enumerate([(inputs, targets), (Source(inputs, targets),)]):
        file = tmp_path / f"{number}.safetensors"
        trainer(make(), checkpoint=file, epochs=1, class_weight=[1, 2, 3]).fit(*given)
        for other in (None, [3, 2, 1]):
            with pytest.raises(ValueError, match="checkpoint of another run: expected settings weights_sha256"):
                trainer(make(), epochs=2, class_weight=other).fit(*given, resume=file)


def test_a_part_without_a_class_that_counts_is_refused() -> None:
    inputs, targets = every_step()
    with pytest.raises(ValueError, match="expected a class with a weight above 0 in the training part; got none"):
        trainer(make(steps="every")).fit(Source(inputs, [np.full(len(y), -100) for y in targets]))


def test_parts_merge_to_the_whole() -> None:
    """Also with numbers near the largest, constants, and parts of no rows."""
    random = np.random.default_rng(3)
    arrays = [random.standard_normal((count, 4)) * [1, 1e153, 1e-9, 0] + [5, 0, 3, 0.1] for count in (1, 7, 2, 30)]
    parts = [(Standardizer.fit([array]), len(array)) for array in arrays]
    parts.insert(2, (Standardizer(np.full(4, 9.0), np.ones(4)), 0))
    merged, whole = merge_standardizers(parts), Standardizer.fit(arrays)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-10)
    lost = 4 * np.finfo(float).eps * np.abs(whole.mean)  # the rounding of numbers that are far from their spread
    assert (np.abs(merged.scale - whole.scale) <= 1e-10 * whole.scale + lost).all()
    assert merged.scale[3] == 0 and merged.mean[3] == 0.1
    with pytest.raises(ValueError, match="got empty sequences only"):
        merge_standardizers(parts[2:3])
