"""The parts of the training on arrays of a device, by array-api-strict, against NumPy's; and NumPy's bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from lstmcore import arrays, layer_base
from lstmcore.arrays import is_on_host, to_host
from lstmcore.backend import State
from lstmcore.layers import AttentionPooling, Embedding, Linear
from lstmcore.training import (
    SGD,
    Adam,
    AdamW,
    CrossEntropy,
    GaussianLoss,
    Loss,
    MeanSquaredError,
    QuantileLoss,
    Readout,
    Standardizer,
    clip_by_global_norm,
    global_norm,
    network,
)
from lstmcore.training.metrics import METRICS, compute_metrics
from lstmcore.training.scaling import scale_targets
from strict_arrays import DEVICE, LIKE, assert_same, away

LOSSES = (CrossEntropy(), MeanSquaredError(), QuantileLoss((0.1, 0.5, 0.9)), GaussianLoss())
RULES: tuple[Callable[[], Any], ...] = (
    lambda: SGD(0.1, weight_decay=0.1),
    lambda: SGD(0.1, momentum=0.9, nesterov=True),
    lambda: Adam(0.1, weight_decay=0.1),
    lambda: AdamW(0.1),
)
SHAPES = {"w": (5, 3), "b": (5,), "large": (130, 257), "one": (), "none": (0, 4)}


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an array of the device that is asked for its number raise: Python would wait for the device."""

    def refuse(self: Any) -> Any:
        raise AssertionError("a number of the device is waited for")

    for name in ("__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(type(LIKE), name, refuse)


def random_like(shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def loss_case(loss: Loss, dtype: str, lead: tuple[int, ...], kind: str) -> tuple[Any, Any, Any]:
    """Return outputs, targets and a mask; outputs of masked entries are NaN."""
    random = np.random.default_rng(len(lead) + len(kind))
    outputs = 3 * random.standard_normal((*lead, 6)).astype(dtype)
    targets: Any = random.integers(0, 6, lead, np.int8)
    if not loss.of_linear:
        targets = random.standard_normal((*lead, loss.target_size(6))).astype(dtype)
    mask = None if kind == "no mask" else random.random(lead) < 0.6
    if mask is not None:
        outputs[~mask] = np.nan
    if kind == "weights":
        mask = mask * random.random(lead)
    if kind == "ignored":
        mask = None
        outputs = np.nan_to_num(outputs)
        targets = (
            np.where(random.random(lead) < 0.3, -100, targets * 1) if loss.of_linear else (4 * targets).astype("int16")
        )
    return outputs, targets, mask


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["no mask", "mask", "weights", "ignored"])
def test_losses_on_a_device(loss: Loss, dtype: str, kind: str, waiting: None) -> None:
    """Values and gradients; NumPy leaves masked entries out of its sums, the device adds zeros, in another order."""
    for lead in ((7,), (3, 5), (0,)):
        case = loss_case(loss, dtype, lead, kind)
        value, gradient = loss(*away(case))
        wanted, expected = loss(*case)
        assert isinstance(wanted, float)
        assert_same((value, gradient), (wanted, expected), ulps=4)
        assert expected.dtype == dtype


def test_a_loss_of_no_entry_on_a_device(waiting: None) -> None:
    for loss in LOSSES:
        outputs, targets, _ = loss_case(loss, "float32", (3,), "no mask")
        found = loss(*away((outputs * np.nan, targets, np.zeros(3, np.bool_))))
        assert_same(found, (0.0, np.zeros_like(outputs)))


def test_a_class_that_is_not_there_is_nan_on_a_device(waiting: None) -> None:
    """To raise, as on the host, the device would have to be waited for; the run that it is in diverges."""
    outputs = np.ones((3, 4))
    for wrong in (4, -1, 2**64 - 100):
        value, gradient = CrossEntropy()(
            *away((outputs, classes := np.array([0, wrong, 3], np.uint64 if wrong > 4 else int)))
        )
        assert np.isnan(to_host(value)) and np.isnan(to_host(gradient)[1]).all()
        with pytest.raises(ValueError, match=f"targets: expected class numbers 0 to 3; got {wrong}"):
            CrossEntropy()(outputs, classes)


@pytest.mark.parametrize("loss", LOSSES[2:], ids=lambda loss: loss.name)
def test_intervals_on_a_device(loss: Loss) -> None:
    outputs = random_like({"y": (3, 2, 6)}, "float64", 0)["y"]
    assert_same(loss.point(away(outputs)), loss.point(outputs))
    assert_same(loss.interval(away(outputs), 0.8), loss.interval(outputs, 0.8))


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimizers_on_a_device(make: Callable[[], Any], dtype: str, waiting: None) -> None:
    """Several steps, then the state goes to the host and into a new optimizer of the device, and on."""
    host, device = make(), make()
    own = random_like(SHAPES, dtype, 0)
    moved = away(own)
    for step in range(5):
        gradients = random_like(SHAPES, dtype, step + 1)
        own, moved = host.step(own, gradients), device.step(moved, away(gradients))
        assert_same(moved, own)
        if host.state():
            assert_same(device.state(), host.state())
        if step == 2:
            kept = {name: to_host(value) for name, value in device.state().items()}
            device = make()
            device.load_state(3, away(kept), moved)


@pytest.mark.parametrize("make", RULES)
def test_optimizers_have_the_bits_of_plain_formulas(make: Callable[[], Any]) -> None:
    """All parameters are updated together, in blocks; each has the bits of the formulas on its array alone."""
    rule, parameters = make(), random_like(SHAPES, "float32", 0)
    wanted = {
        name: np.atleast_1d(value) for name, value in parameters.items()
    }  # old NumPy has scalars of its own rules
    moments = {name: (np.zeros(0), np.zeros(0)) for name in SHAPES}
    for step in range(1, 4):
        gradients = random_like(SHAPES, "float32", step)
        parameters = rule.step(parameters, gradients)
        for name, g in gradients.items():
            wanted[name], moments[name] = plainly(rule, step, wanted[name], np.atleast_1d(g), moments[name])
            np.testing.assert_array_equal(np.atleast_1d(parameters[name]), wanted[name])
            assert parameters[name].dtype == np.float32 and parameters[name].shape == SHAPES[name]


def plainly(rule: Any, step: int, p: Any, g: Any, moments: Any) -> tuple[Any, Any]:
    """Return a parameter and its moments after a step, by the formulas of the docstrings."""
    lr, decay = rule.settings["lr"], rule.settings["weight_decay"]
    if rule.name == "sgd":
        g = g + decay * p if decay else g
        m = g if step == 1 else rule.settings["momentum"] * moments[0] + g
        return p - lr * (g + rule.settings["momentum"] * m if rule.settings["nesterov"] else g), (m, m)
    beta1, beta2, eps = (rule.settings[name] for name in ("beta1", "beta2", "eps"))
    p, g = (p * (1 - lr * decay), g) if rule.name == "adamw" else (p, g + decay * p)
    m, v = (np.zeros_like(g), np.zeros_like(g)) if step == 1 else moments
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    root = np.sqrt(v) / math.sqrt(1 - beta2**step) + eps
    return p - (lr / (1 - beta1**step)) * m / root, (m, v)


def test_an_optimizer_takes_parameters_in_another_order() -> None:
    """The moments follow the names, also if the dtypes differ and the order changes on the way."""
    parameters = random_like({"a": (3,), "b": (2, 2), "c": (4,)}, "float64", 0)
    parameters["b"] = parameters["b"].astype("float32")
    gradients = [
        {
            name: g.astype(parameters[name].dtype)
            for name, g in random_like({"a": (3,), "b": (2, 2), "c": (4,)}, "float64", n).items()
        }
        for n in range(3)
    ]
    first, second, other = Adam(), Adam(), dict(reversed(parameters.items()))
    for turn, g in enumerate(gradients):
        parameters = first.step(parameters, g)
        other = second.step(dict(reversed(other.items())) if turn == 2 else other, g)
        assert list(parameters) == ["a", "b", "c"]
        assert {name: value.tolist() for name, value in parameters.items()} == {
            name: other[name].tolist() for name in parameters
        }
        assert other["b"].dtype == np.float32


@pytest.mark.parametrize("activation", ["none", "tanh", "sigmoid", "relu", "softmax"])
def test_the_readout_on_a_device(activation: Any, waiting: None) -> None:
    """Its parameters are where those are that were loaded, and so are its results."""
    for dtype, x_size, lead in (("float32", 2, (3, 5)), ("float64", 0, (7,)), ("float32", 3, (0, 4))):
        host = Readout(4, 3, activation=activation, x_size=x_size, dtype=dtype, seed=1)
        device = Readout(4, 3, activation=activation, x_size=x_size, dtype=dtype)
        device.load_parameters(away(host.parameters))
        assert_same(device.parameters, host.parameters)
        given = random_like({"h": (*lead, 4), "x": (*lead, max(x_size, 1)), "dy": (*lead, 3)}, dtype, 2)
        h, x, dy = given["h"], given["x"] if x_size else None, given["dy"]
        (y, tape), (wanted, kept) = device.record(*away((h, x))), host.record(h, x)
        assert_same((y, *tape), (wanted, *kept))
        for of_linear in (False, True):
            found = tuple(device.backward(tape, away(dy), of_linear=of_linear))
            assert_same(found, tuple(host.backward(kept, dy, of_linear=of_linear)))


@pytest.fixture
def strict_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let arrays of array-api-strict count as ones of a device: DLPack says that they are the host's."""
    monkeypatch.setattr(layer_base, "is_on_device", lambda array: not is_on_host(array))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_embedding_on_a_device(
    dtype: str, waiting: None, strict_is_a_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradient adds up rows that come again; in one part, or in several."""
    host, device = Embedding(7, 3, dtype=dtype, seed=1), Embedding(7, 3, dtype=dtype)
    device.load_parameters(away(host.parameters))
    assert_same(device.parameters, host.parameters)
    for codes in (np.array([[1, 6], [0, 6], [6, 1]]), np.zeros((0, 2), np.int64), np.array([3, 3], np.uint8)):
        (y, tape), (wanted, kept) = device.record(away(codes)), host.record(codes)
        assert_same(y, wanted)
        dy = np.random.default_rng(2).standard_normal(y.shape).astype(dtype)
        right = host.backward(kept, dy).parameters
        for most in (1 << 24, 12):
            monkeypatch.setattr(arrays, "_CHOSEN", most)
            assert_same(device.backward(tape, away(dy)).parameters, right, ulps=4)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint64"])
def test_sums_of_more_rows_than_a_dtype_counts(dtype: str, waiting: None) -> None:
    """Rows from 256 on got the sums of those from 0 on: numbers of the rows were counted in the dtype of the names."""
    rows, values = np.array([0, 5, 100, 5], dtype), np.arange(8.0).reshape(4, 2)
    wanted = np.zeros((400, 2))
    np.add.at(wanted, rows.astype(int), values)
    assert_same(arrays.add_by_row(400, away(rows), away(values)), wanted)


def test_what_layers_refuse_on_a_device(strict_is_a_device: None) -> None:
    embedding, pooling = Embedding(7, 3), AttentionPooling(5, 2)
    embedding.load_parameters(away(embedding.parameters))
    with pytest.raises(TypeError, match="x: expected whole numbers; got dtype"):
        embedding.record(away(np.ones((2, 2))))
    mixed = {**pooling.parameters, "U.weight": away(pooling.parameters["U.weight"])}
    with pytest.raises(TypeError, match=r"parameters\['U.weight'\]: expected an array of"):
        pooling.load_parameters(mixed)
    assert all(is_on_host(value) for value in pooling.parameters.values())


@pytest.mark.parametrize("asked", [None, 1, 3])
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=str)
def test_attention_on_a_device(
    lengths: list[int] | None, asked: int | None, waiting: None, strict_is_a_device: None
) -> None:
    host, device = AttentionPooling(5, 2, seed=1), AttentionPooling(5, 2)
    device.load_parameters(away(host.parameters))
    for steps in (4, 0):
        shapes = {"x": (steps, 3, 5), "q": (asked or steps, 3, 5)}
        given = random_like(shapes, "float32", 3)
        x, queries = given["x"], None if asked is None else given["q"]
        ends = None if lengths is None or not steps else np.array(lengths)
        (y, tape), (wanted, kept) = device.record(away(x), ends, away(queries)), host.record(x, ends, queries)
        assert_same(y, wanted)
        if ends is not None:
            past = np.arange(len(wanted))[:, None] >= ends if asked is None else np.tile(ends == 0, (len(wanted), 1))
            assert not wanted[past].any() and wanted[~past].all()
        dy = random_like({"dy": y.shape}, "float32", 4)["dy"]
        assert_same(tuple(device.backward(tape, away(dy))), tuple(host.backward(kept, dy)))


def test_layers_refuse_what_is_elsewhere(strict_is_a_device: None) -> None:
    told = r"parameters\['weight'\]: expected a NumPy array, which Linear computes with; got"
    with pytest.raises(TypeError, match=told):
        Linear(2, 3).load_parameters(away(Linear(2, 3).parameters))
    pooling, embedding = AttentionPooling(5), Embedding(7, 3)
    for layer in (pooling, embedding):
        layer.load_parameters(away(layer.parameters))
    with pytest.raises(TypeError, match=r"x: expected an array of .* as parameters; got one of"):
        pooling.record(np.ones((2, 3, 5), np.float32))
    with pytest.raises(TypeError, match=r"x: expected an array of .* as parameters; got one of"):
        embedding.record(np.array([1]))
    with pytest.raises(TypeError, match=r"x: expected whole numbers; got dtype .*float64"):
        embedding.record(away(np.ones(2)))


def test_clipping_on_a_device(waiting: None) -> None:
    """Nothing is asked of the device, so all gradients are multiplied, by 1 where the norm is below the bound."""
    gradients = random_like(SHAPES, "float32", 3)
    norm = global_norm(gradients)
    assert_same(global_norm(away(gradients)), norm, ulps=1)
    for bound in (0.5 * norm, 2 * norm, 3):
        assert_same(clip_by_global_norm(away(gradients), bound), clip_by_global_norm(gradients, bound), ulps=1)
    for wild in (np.inf, np.nan):
        found, told = clip_by_global_norm(away(gradients | {"b": gradients["b"] * wild}), 1.0)
        assert not np.isfinite(to_host(told))
        np.testing.assert_array_equal(to_host(found["w"]), gradients["w"])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_standardisation_on_a_device(dtype: str) -> None:
    """Mean and scale are fitted where the values are, and kept on the host."""
    random = np.random.default_rng(4)
    sequences = [(30 * random.standard_normal((length, 3))).astype(dtype) for length in (4, 0, 9)]
    for sequence in sequences:
        sequence[:, 1] = 7
    wanted, found = Standardizer.fit(sequences), Standardizer.fit(away(sequences))
    for own, expected in ((found.mean, wanted.mean), (found.scale, wanted.scale)):
        assert type(own) is np.ndarray
        np.testing.assert_array_equal(own, expected)
    for values in sequences:
        for kind in ("float32", "f8", np.float32):
            assert_same(found.apply(away(values), kind), wanted.apply(values, kind))
        assert_same(found.undo(away(values)), wanted.undo(values))
    assert_same(scale_targets(away(sequences), "float32", found), scale_targets(sequences, "float32", wanted))
    assert_same(scale_targets(away(sequences), "float32", None), scale_targets(sequences, "float32", None))
    with pytest.raises(ValueError, match=r"targets\[1\]: expected numbers that fit into float32.*got up to 1e\+200"):
        scale_targets(away([np.ones(2), np.array([1e200])]), "float32", None)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_on_a_device(name: str) -> None:
    random = np.random.default_rng(5)
    weights = random.random(40) * (random.random(40) < 0.7)
    answers: Any = random.integers(0, 4, 40)
    targets: Any = random.integers(1, 5, 40)
    if not METRICS[name].of_classes:
        answers, targets = random.standard_normal((2, 40, 3))
        targets[:, 1] = 2.0
    for wanted in (targets, targets.astype(np.int32)):
        found = compute_metrics([name], *away((answers, wanted, weights)))
        assert found == pytest.approx(compute_metrics([name], answers, wanted, weights), rel=1e-14)
    assert compute_metrics([name], *away((answers, targets, 0 * weights))) == {}


def test_mixed_places_name_both_arguments() -> None:
    """NumPy's arrays beside those of a device, and two devices, are refused by every part."""
    two, classes = np.ones((2, 3)), np.array([0, 1])
    other = strict.asarray(two, device=strict.Device("device2"))
    readout, moved = Readout(3, 3, dtype="float64"), Readout(3, 3, dtype="float64")
    moved.load_parameters(away(readout.parameters))
    adam = Adam()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: CrossEntropy()(away(two), classes), "targets: .* as outputs; got"),
        (lambda: MeanSquaredError()(away(two), other), "targets: .*device1.*, as outputs; got .*device2"),
        (lambda: MeanSquaredError()(away(two), away(two), classes > 0), "mask: .* as outputs; got"),
        (lambda: readout(away(two)), "readout parameters: .* as h; got .*numpy"),
        (lambda: moved(two), "readout parameters: .* as h; got .*strict"),
        (lambda: moved.backward(moved.record(away(two))[1], two), "tape: .* as dy; got"),
        (lambda: readout.load_parameters(readout.parameters | {"bias": away(np.ones(3))}), r"\['bias'\].*\['weight'\]"),
        (lambda: adam.step({"w": away(two)}, {"w": two}), r"gradients\['w'\]: .* as parameters\['w'\]; got"),
        (
            lambda: adam.load_state(1, {"first.w": two, "second.w": two}, {"w": away(two)}),
            r"parameters\['w'\]: .* as opt",
        ),
        (lambda: global_norm({"a": two, "b": away(two)}), r"gradients\['b'\]: .* as gradients\['a'\]; got"),
        (lambda: Standardizer.fit([two, away(two)]), r"arrays\[1\]: .* as arrays\[0\]; got"),
        (lambda: compute_metrics(["mae"], two, away(two), np.ones(2)), "targets: .* as answers; got"),
    ]
    for call, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert adam.steps == 0
    adam.step({"w": two}, {"w": two})
    with pytest.raises(TypeError, match=r"optimizer state\['first.w'\]: .* as parameters\['w'\]; got"):
        adam.step(away({"w": two}), away({"w": two}))
    assert moved.parameters["weight"].device == DEVICE


def test_reads_of_padded_batches_on_a_device(waiting: None) -> None:
    """The means over the steps of a row, their gradient, x at the ends of rows, the right answers, the final cells."""
    random = np.random.default_rng(6)
    lengths = np.array([5, 0, 3, 1])
    values, gradient = random.standard_normal((5, 4, 3)).astype("float32"), random.standard_normal((4, 3))
    for function, arguments in (
        (network._mean, (values, lengths)),
        (network._at_ends, (values, lengths)),
        (network._at_ends, (values[:0], 0 * lengths)),
        (network._spread, (gradient, lengths, 5)),
    ):
        array, *others = arguments
        assert_same(function(away(array), *others), function(array, *others))
    outputs, targets, weights = random.standard_normal((5, 4, 3)), random.integers(0, 3, (5, 4)), random.random((5, 4))
    for counted in (None, weights, weights > 0.5):
        right = network.count_right(*away((outputs, targets, counted)), CrossEntropy())
        assert_same(right, network.count_right(outputs, targets, counted, CrossEntropy()))
    cells = [State(values[:2], values[2:4]), State(values[:1], values[:1])]
    moved = [State(*away(tuple(pair))) for pair in cells]
    assert_same(network.square_cells(moved), network.square_cells(cells))
    assert_same(network.square_cells(moved[0]), network.square_cells(cells[0]))
    ends = values[lengths - 1, np.arange(4)]
    np.testing.assert_array_equal(network._at_ends(values, lengths), np.where(lengths[:, None] > 0, ends, 0))
