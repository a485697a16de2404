"""Readout, losses, optimizers, batches and scaling, each by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmcore.training import (
    SGD,
    Adam,
    AdamW,
    CrossEntropy,
    Loss,
    MeanSquaredError,
    Optimizer,
    Readout,
    Standardizer,
    batches_by_length,
    clip_by_global_norm,
    global_norm,
    pad,
    split,
)

STEP = 1e-6


def numeric(function: Any, array: Any) -> Any:
    """Central differences of a scalar function, changing `array` in place and back."""
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + STEP
        above = function()
        array[index] = kept - STEP
        result[index] = (above - function()) / (2 * STEP)
        array[index] = kept
    return result


@pytest.mark.parametrize("activation", ["none", "tanh", "sigmoid", "relu", "softmax"])
@pytest.mark.parametrize("x_size", [0, 2])
@pytest.mark.parametrize("lead", [(4,), (3, 2)])
def test_readout_gradients(activation: Any, x_size: int, lead: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    readout = Readout(5, 3, activation=activation, x_size=x_size, dtype="float64", seed=2)
    h = random.standard_normal((*lead, 5))
    x = random.standard_normal((*lead, x_size)) if x_size else None
    dy = random.standard_normal((*lead, 3))
    parameters = {name: value.copy() for name, value in readout.parameters.items()}

    def scalar() -> float:
        readout.load_parameters(parameters)
        return float(np.sum(dy * readout(h, x)))

    gradients = readout.backward(readout.record(h, x)[1], dy)
    np.testing.assert_allclose(gradients.h, numeric(scalar, h), atol=1e-8)
    if x is None:
        assert gradients.x is None
    else:
        np.testing.assert_allclose(gradients.x, numeric(scalar, x), atol=1e-8)
    for name, value in parameters.items():
        np.testing.assert_allclose(gradients.parameters[name], numeric(scalar, value), atol=1e-8)


def test_readout_by_hand() -> None:
    readout = Readout(2, 1, activation="relu", x_size=1, dtype="float64")
    readout.load_parameters({"weight": np.array([[1.0, -2.0, 3.0]]), "bias": np.array([0.5])})
    assert readout(np.array([[1.0, 2.0]]), np.array([[1.0]])) == pytest.approx(0.5)
    assert readout(np.array([[1.0, 2.0]]), np.array([[0.0]])) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "gelu"}, "readout activation: expected one of none, .*got 'gelu'"),
        ({"steps": "first"}, "readout steps"),
        ({"dtype": "float16"}, "readout dtype"),
        ({"output_size": 0}, "readout output_size: expected at least 1; got 0"),
    ],
)
def test_readout_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Readout(**{"hidden_size": 3, "output_size": 2, **arguments})


def test_readout_takes_whole_numbers_of_any_type() -> None:
    readout = Readout(np.int64(4), np.uint8(3), x_size=np.int32(0))  # type: ignore[arg-type] # what NumPy gives
    assert json.loads(json.dumps(readout.to_dict()))["hidden_size"] == 4
    for wrong in (True, 2.0, "3", None):
        with pytest.raises(TypeError, match="readout hidden_size: expected a whole number; got"):
            Readout(wrong, 3)  # type: ignore[arg-type] # that is the test


def test_readout_refuses_what_is_no_array() -> None:
    readout = Readout(2, 3, x_size=1, dtype="float64")
    h, x = np.zeros((4, 2)), np.zeros((4, 1))
    tape = readout.record(h, x)[1]
    for name, call in (
        ("h", lambda: readout([[0.0, 1.0]], x)),  # type: ignore[arg-type] # that is the test
        ("x", lambda: readout(h, [[0.0]])),  # type: ignore[arg-type] # that is the test
        ("dy", lambda: readout.backward(tape, [[0.0] * 3] * 4)),  # type: ignore[arg-type] # that is the test
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected an array of float64; got list"):
            call()
    with pytest.raises(TypeError, match="h: expected a plain array; got a masked one"):
        readout(np.ma.masked_array(h, mask=h == 0), x)


def test_readout_of_no_rows() -> None:
    readout = Readout(2, 3, x_size=1, dtype="float64")
    y, tape = readout.record(np.zeros((0, 4, 2)), np.zeros((0, 4, 1)))
    gradients = readout.backward(tape, np.zeros_like(y))
    assert gradients.parameters["weight"].shape == (3, 3) and not gradients.parameters["weight"].any()


def test_readout_checks_parameters_and_inputs() -> None:
    readout = Readout(2, 1, dtype="float64")
    good = readout.parameters
    with pytest.raises(ValueError, match=r"readout parameters\['bias'\]: expected finite numbers; got nan at \[0\]"):
        readout.load_parameters(good | {"bias": np.array([np.nan])})
    with pytest.raises(ValueError, match=r"expected shape \(1, 2\)"):
        readout.load_parameters(good | {"weight": np.zeros((2, 1))})
    with pytest.raises(TypeError, match="astype"):
        readout(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="x_size=0"):
        readout(np.zeros((3, 2)), np.zeros((3, 1)))
    assert not good["weight"].flags.writeable


def loss_case(loss: Loss, lead: tuple[int, ...]) -> tuple[Any, Any]:
    random = np.random.default_rng(7)
    z = random.standard_normal((*lead, 4))
    return z, random.integers(0, 4, lead) if isinstance(loss, CrossEntropy) else random.standard_normal(z.shape)


@pytest.mark.parametrize("loss", [CrossEntropy(), MeanSquaredError()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("lead", [(5,), (3, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_gradients(loss: Loss, lead: tuple[int, ...], masked: bool) -> None:
    z, targets = loss_case(loss, lead)
    mask = np.random.default_rng(2).random(lead) < 0.6 if masked else None
    _, gradient = loss(z, targets, mask)
    np.testing.assert_allclose(gradient, numeric(lambda: loss(z, targets, mask)[0], z), atol=1e-8)
    if mask is not None:
        assert 0 < mask.sum() < mask.size
        assert not gradient[~mask].any()


@pytest.mark.parametrize("loss", [CrossEntropy(), MeanSquaredError()], ids=lambda loss: loss.name)
def test_masked_entries_never_matter(loss: Loss) -> None:
    z, targets = loss_case(loss, (6,))
    mask = np.array([True, False, True, True, False, True])
    value, gradient = loss(z, targets, mask)
    kept_value, kept_gradient = loss(z[mask], targets[mask])
    z[~mask] = np.nan
    if isinstance(loss, MeanSquaredError):
        targets[~mask] = np.nan
    else:
        targets[~mask] = -100
    again, gradient_again = loss(z, targets, mask)
    assert value == again == pytest.approx(kept_value, rel=1e-15)
    np.testing.assert_array_equal(gradient, gradient_again)
    np.testing.assert_allclose(gradient[mask], kept_gradient, rtol=1e-15)
    value, gradient = loss(z, targets, np.zeros(6, np.bool_))
    assert value == 0 and not gradient.any()


def test_cross_entropy_by_hand_and_at_the_ends() -> None:
    loss = CrossEntropy()
    assert loss(np.zeros((1, 4)), np.array([2]))[0] == pytest.approx(np.log(4))
    value, gradient = loss(np.array([[1e4, 0.0], [0.0, -1e4]]), np.array([1, 0]))
    assert value == pytest.approx(5e3)
    assert np.isfinite(gradient).all()
    tiny, _ = loss(np.array([[40.0, 0.0]]), np.array([0]))
    assert 0 <= tiny < 1e-15


def test_loss_refusals() -> None:
    with pytest.raises(TypeError, match="integer"):
        CrossEntropy()(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="0 to 2; got 3"):
        CrossEntropy()(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\)"):
        MeanSquaredError()(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="mask"):
        MeanSquaredError()(np.zeros((2, 3)), np.zeros((2, 3)), np.ones((2, 3), np.bool_))


def test_sgd_by_hand() -> None:
    rule = SGD(0.1, momentum=0.5)
    first = rule.step({"p": np.array([1.0])}, {"p": np.array([2.0])})
    second = rule.step(first, {"p": np.array([1.0])})
    assert first["p"] == pytest.approx(0.8)
    assert second["p"] == pytest.approx(0.8 - 0.1 * (0.5 * 2 + 1))


def test_adam_by_hand() -> None:
    gradient, value = np.array([3.0]), np.array([2.0])
    assert Adam(0.1).step({"p": value}, {"p": gradient})["p"] == pytest.approx(1.9)  # first step: lr * sign
    decayed = AdamW(0.1, weight_decay=0.5).step({"p": value}, {"p": gradient})["p"]
    assert decayed == pytest.approx(2.0 * (1 - 0.05) - 0.1)
    rule = Adam(0.1, beta1=0.5, beta2=0.5, eps=0.0)
    rule.step({"p": value}, {"p": np.array([1.0])})
    # m = 0.5 * 0.5 + 0.5 * 3 = 1.75, over 1 - 0.25; v = 0.5 * 0.5 + 0.5 * 9 = 4.75, over 0.75
    wanted = 2.0 - 0.1 * (1.75 / 0.75) / np.sqrt(4.75 / 0.75)
    assert rule.step({"p": value}, {"p": gradient})["p"] == pytest.approx(wanted)


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(0.1), lambda: AdamW(0.1)])
def test_optimizer_state_moves(make: Any) -> None:
    random = np.random.default_rng(0)
    one: Optimizer = make()
    parameters = {"a.b": random.standard_normal(3).astype(np.float32)}
    gradients = [{"a.b": random.standard_normal(3).astype(np.float32)} for _ in range(4)]
    for gradient in gradients[:2]:
        parameters = one.step(parameters, gradient)
    two: Optimizer = make()
    two.load_state(one.steps, one.state(), parameters)
    for gradient in gradients[2:]:
        left, right = one.step(parameters, gradient), two.step(parameters, gradient)
        np.testing.assert_array_equal(left["a.b"], right["a.b"])
        assert left["a.b"].dtype == np.float32
        parameters = left


def test_optimizer_refusals() -> None:
    with pytest.raises(ValueError, match="sgd lr: expected a finite number > 0; got 0"):
        SGD(0)
    with pytest.raises(ValueError, match="adam beta1"):
        Adam(beta1=1.0)
    with pytest.raises(ValueError, match="nesterov"):
        SGD(0.1, nesterov=True)
    with pytest.raises(ValueError, match=r"gradients\['p'\]: expected shape \(2,\); got none"):
        Adam().step({"p": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="optimizer state"):
        Adam().load_state(1, {"momentum.p": np.zeros(2)}, {"p": np.zeros(2)})


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(0.1), lambda: AdamW(0.1)])
def test_moments_must_be_those_of_the_parameters(make: Callable[[], Optimizer]) -> None:
    parameters = {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)}
    used = make()
    used.step(parameters, parameters)
    state = used.state()
    last = list(state)[-1]
    damaged: dict[str, Any] = {
        "none": {},
        "one missing": {name: value for name, value in state.items() if name != last},
        "shape": state | {last: np.ones(1, np.float32)},
        "dtype": state | {last: state[last].astype(np.float64)},
        "unknown": state | {last + "x": state[last]},
    }
    for arrays in damaged.values():
        other = make()
        with pytest.raises(ValueError, match=r"optimizer state: expected the moment '\w+' of '\w+' to be"):
            other.load_state(1, arrays, parameters)
        assert (other.steps, other.state()) == (0, {})
    with pytest.raises(ValueError, match="expected no moments after 0 steps"):
        make().load_state(0, state, parameters)
    with pytest.raises(TypeError, match=r"optimizer steps: expected a whole number; got 1.5"):
        make().load_state(1.5, state, parameters)  # type: ignore[arg-type] # that is the test
    for others in ({"a": np.ones(4, np.float32)}, {**parameters, "c": np.ones(1, np.float32)}, {"d": parameters["a"]}):
        with pytest.raises(ValueError, match="an optimizer goes with one model and one run, make a new one"):
            used.step(others, others)
    assert used.steps == 1


def test_settings_are_numbers() -> None:
    wrong: Any = "0.1"
    with pytest.raises(TypeError, match=r"adam lr: expected a number; got '0.1'"):
        Adam(wrong)
    assert type(SGD(np.float32(0.5)).settings["lr"]) is float


def test_clipping() -> None:
    gradients = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    clipped, norm = clip_by_global_norm(gradients, 2.5)
    assert norm == 5.0
    assert global_norm(clipped) == pytest.approx(2.5)
    assert clipped["b"] == pytest.approx(2.0)
    assert clip_by_global_norm(gradients, 5.0)[0]["a"] == 3.0
    with pytest.raises(ValueError, match="clip_norm"):
        clip_by_global_norm(gradients, 0.0)


def test_batches_cover_everything_once_and_follow_the_seed() -> None:
    lengths = np.random.default_rng(5).integers(1, 60, 203).tolist()
    batches = batches_by_length(lengths, 16, seed=3, epoch=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(203))
    assert {len(batch) for batch in batches} == {16, 203 % 16}
    again = batches_by_length(lengths, 16, seed=3, epoch=1)
    assert all(np.array_equal(left, right) for left, right in zip(batches, again, strict=True))
    for other in (batches_by_length(lengths, 16, seed=3, epoch=2), batches_by_length(lengths, 16, seed=4, epoch=1)):
        assert not np.array_equal(np.concatenate(batches), np.concatenate(other))
    sizes = np.array(lengths)
    steps = sum(len(batch) * sizes[batch].max() for batch in batches)
    shuffled = np.random.default_rng(1).permutation(203)
    without = sum(16 * sizes[shuffled[k : k + 16]].max() for k in range(0, 203, 16))
    assert (steps - sizes.sum()) < 0.5 * (without - sizes.sum())


def test_pad() -> None:
    x, lengths = pad([np.ones((2, 3)), np.ones((0, 3)), np.ones((4, 3))])
    assert x.shape == (4, 3, 3)
    assert lengths.tolist() == [2, 0, 4]
    assert x.sum() == 18 and not x[2:, 0].any()


def test_split_is_stratified_seeded_or_chronological() -> None:
    classes = np.repeat([0, 1, 2], [20, 40, 10])
    train, check = split(70, 0.2, seed=1, classes=classes)
    assert np.bincount(classes[check]).tolist() == [4, 8, 2]
    assert sorted([*train, *check]) == list(range(70))
    assert np.array_equal(check, split(70, 0.2, seed=1, classes=classes)[1])
    assert not np.array_equal(check, split(70, 0.2, seed=2, classes=classes)[1])
    assert split(10, 0.3, seed=1, chronological=True)[1].tolist() == [7, 8, 9]
    assert split(10, 0.0, seed=1)[1].size == 0
    for count, fraction in ((1, 0.5), (4, 1.0), (4, -0.1), (4, 0.99)):
        with pytest.raises(ValueError, match="validation"):
            split(count, fraction, seed=0)


@pytest.mark.parametrize("sizes", [[4] * 100, [1] * 40, [3, 3, 3, 200], [1, 1, 1, 1, 10], [2, 50], [7, 13, 5, 1, 1]])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5])
def test_a_stratified_split_holds_out_the_fraction(sizes: list[int], fraction: float) -> None:
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, check = split(len(classes), fraction, seed=1, classes=classes)
    assert len(check) == max(1, round(fraction * len(classes)))
    assert sorted([*train, *check]) == list(range(len(classes)))
    held = np.bincount(classes[check], minlength=len(sizes))
    kept = np.array(sizes) - held
    assert (np.abs(held - fraction * np.array(sizes)) <= 2).all()
    assert kept.all() or (kept[np.array(sizes) > 1] == 1).all()  # no class is taken whole while another can spare one


def test_equal_remainders_are_drawn_by_lot() -> None:
    classes = np.repeat(np.arange(50), 4)
    first, second = (set(classes[split(200, 0.1, seed=seed, classes=classes)[1]]) for seed in (1, 2))
    assert len(first) == len(second) == 20 and first != second


def test_the_chronological_split_purges() -> None:
    train, check = split(10, 0.3, seed=1, chronological=True, purge=2)
    assert (train.tolist(), check.tolist()) == ([0, 1, 2, 3, 4], [7, 8, 9])
    with pytest.raises(ValueError, match=r"10 sequences that leaves some on both sides with 7 between them; got 0.3"):
        split(10, 0.3, seed=1, chronological=True, purge=7)
    assert split(10, 0.0, seed=1, chronological=True, purge=2)[0].size == 10


def test_standardizer_refuses_what_standardises_nothing() -> None:
    one = np.ones(2)
    for mean, scale, message in (
        (one, np.array([1.0, -2.0]), "scale: expected numbers >= 0; got -2.0"),
        (one, np.array([1.0, np.inf]), "scale: expected finite numbers"),
        (np.array([np.nan, 0.0]), one, "mean: expected finite numbers"),
        (one, np.ones(3), r"scale: expected shape \(2,\) as mean; got \(3,\)"),
        (one, np.ones((1, 2)), "scale: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            Standardizer(mean, scale)
    with pytest.raises(TypeError, match="mean: expected dtype float64"):
        Standardizer(np.ones(2, np.float32), one)
    for empty in ([], [np.zeros((0, 3))]):
        with pytest.raises(ValueError, match="expected at least one step in all sequences together"):
            Standardizer.fit(empty)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1.0, 1e200, 1.5e308])
def test_standardizer_of_any_size(size: float) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (500, 2)) * [size, 1.0]
    scaled = Standardizer.fit([values]).apply(values, "float64")
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-12)


def test_standardizer() -> None:
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((5, 2)) * [3, 0] + [7, 1e9], random.standard_normal((8, 2)) * [3, 0] + [7, 1e9]]
    scaling = Standardizer.fit(arrays)
    values = np.concatenate(arrays)
    scaled = scaling.apply(values, "float64")
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 0], atol=1e-12)
    np.testing.assert_allclose(scaling.undo(scaled), values, rtol=1e-14)


def test_a_constant_is_undone_to_itself() -> None:
    """Whatever a model says in place of the 0 that it learned, as in scikit-learn's TransformedTargetRegressor."""
    values = np.stack([np.full(9, 1e-6), np.arange(9.0)], axis=1)
    scaling = Standardizer.fit([values])
    assert scaling.scale[0] == 0
    scaled = scaling.apply(values, "float64")
    np.testing.assert_array_equal(scaled[:, 0], 0)
    undone = scaling.undo(scaled + 0.25)
    np.testing.assert_array_equal(undone[:, 0], 1e-6)
    np.testing.assert_allclose(undone[:, 1], values[:, 1] + 0.25 * values[:, 1].std())
    np.testing.assert_allclose(scaling.apply(values + 2.0, "float64")[:, 0], 2.0)  # another value stays another
