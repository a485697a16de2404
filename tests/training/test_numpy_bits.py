"""The parts of the training on NumPy's arrays: copies of optimizers, and dtypes that differ or are no standard ones."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lstmcore.arrays import namespace_of
from lstmcore.training import (
    SGD,
    Adam,
    AdamW,
    CrossEntropy,
    GaussianLoss,
    QuantileLoss,
    Standardizer,
    clip_by_global_norm,
    losses,
    readout,
)
from lstmcore.training.scaling import scale_targets

SHAPES = {"w": (5, 3), "b": (5,), "large": (130, 257), "one": (), "none": (0, 4)}


def random_arrays(dtype: Any, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}


def assert_equal(found: Any, wanted: Any) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("make", [SGD, lambda: SGD(momentum=0.9), Adam, AdamW])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_copy_of_an_optimizer_steps_on(make: Callable[[], Any], steps: int) -> None:
    """Copies and what is pickled have moments of their own, and the next steps have the same bits."""
    rule, parameters = make(), random_arrays("float32", 0)
    for step in range(steps):
        parameters = rule.step(parameters, random_arrays("float32", step + 1))
    for other in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert other.steps == steps
        twin = make()
        twin.load_state(steps, rule.state(), parameters)
        own = wanted = parameters
        for step in range(2):
            gradients = random_arrays("float32", 9 + step)
            own, wanted = other.step(own, gradients), twin.step(wanted, gradients)
        assert_equal(own, wanted)
        assert_equal(other.state(), twin.state())


@pytest.mark.parametrize("own", ["float64", "float32"])
@pytest.mark.parametrize("rule", [SGD(momentum=0.9, weight_decay=0.01), Adam(weight_decay=0.01)], ids=["sgd", "adam"])
def test_moments_have_the_dtype_of_parameters(rule: Any, own: str) -> None:
    """Decay is added in the wider dtype of the parameters, and so are the moments, which a new optimizer takes."""
    moments: dict[str, Any] = {}
    rule, p = copy.deepcopy(rule), random_arrays(own, 0)
    narrow = {"float64": "float32", "float32": "float16"}[own]
    lr, decay = rule.settings["lr"], rule.settings["weight_decay"]
    wanted = {name: np.atleast_1d(value) for name, value in p.items()}
    for step in range(1, 4):
        gradients = random_arrays(narrow, step)
        p = rule.step(p, gradients)
        for name, value in wanted.items():
            g = np.atleast_1d(gradients[name]) + decay * value
            if rule.name == "sgd":
                moments[name] = 0.9 * moments[name] + g if step > 1 else g
                wanted[name] = value - lr * moments[name]
            else:
                m, v = moments.get(name, (0 * g, 0 * g))
                m, v = moments[name] = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g * g
                root = np.sqrt(v) / math.sqrt(1 - 0.999**step) + 1e-8
                wanted[name] = value - (lr / (1 - 0.9**step)) * m / root
            np.testing.assert_array_equal(np.atleast_1d(p[name]), wanted[name], strict=True)
    assert {value.dtype.name for value in rule.state().values()} == {own}
    again = type(rule)(lr)
    again.settings = rule.settings
    again.load_state(3, rule.state(), p)
    assert_equal(again.step(p, random_arrays(narrow, 4)), rule.step(p, random_arrays(narrow, 4)))


@pytest.mark.parametrize(("own", "other"), [("float64", "float32"), ("float32", "float64"), (">f4", "float32")])
@pytest.mark.parametrize("make", [lambda: SGD(momentum=0.5), Adam, AdamW])
def test_moments_of_another_dtype_are_refused(make: Callable[[], Any], own: str, other: str) -> None:
    """Without decay the moments have the dtype of the gradients, with which no step follows."""
    rule, parameters = make(), random_arrays(own, 0)
    moved = rule.step(parameters, random_arrays(other, 1))
    assert {value.dtype for value in moved.values()} == {np.dtype(own)}
    told = rf"expected the moment '\w+' of 'w' to be {own} of \(5, 3\), as the parameter; got {other} of"
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^optimizer state: {told} .*: an optimizer goes with one model"):
            rule.step(moved, random_arrays(other, 2))
    assert rule.steps == 1


def plain_gaussian(z: Any, wanted: Any) -> tuple[float, Any]:
    mean, spread = z[:, :2], z[:, 2:]
    error, share = wanted - mean, 1 / wanted.size
    scaled, each = error * np.exp(-spread), np.ones((len(z), 1))
    value = float(np.sum(each * (spread + error * scaled + math.log(2 * math.pi)))) * 0.5 * share
    return value, np.concatenate((-scaled, 0.5 * (1 - error * scaled)), axis=1) * each * share


def plain_quantile(z: Any, wanted: Any) -> tuple[float, Any]:
    each = np.array((0.25, 0.5), z.dtype)[:, None]
    error = wanted[:, None] - z.reshape(len(z), 2, 2)
    weights, share = np.ones((len(z), 1, 1)), 1 / z.size
    value = float(np.sum(weights * np.maximum(each * error, (each - 1) * error))) * share
    return value, (np.where(error > 0, -each, 1 - each) * weights.astype(z.dtype) * share).reshape(z.shape)


@pytest.mark.parametrize("outputs", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("targets", ["object", "bool", "int8", "uint8", "int64", "float16", "float64", "bfloat16"])
def test_losses_have_the_bits_of_plain_formulas(outputs: str, targets: str) -> None:
    """NumPy's own arithmetic decides on the dtypes between, also of numbers that the standard does not have."""
    if "bfloat16" in (outputs, targets):
        pytest.importorskip("ml_dtypes")
    random = np.random.default_rng(3)
    z = random.standard_normal((7, 4)).astype(outputs)
    wanted = np.abs(3 * random.standard_normal((7, 2))).astype(targets)
    for loss, plain in ((GaussianLoss(), plain_gaussian), (QuantileLoss((0.25, 0.5)), plain_quantile)):
        (value, gradient), (number, expected) = loss(z, wanted), plain(z, wanted * 1)
        assert value == number
        np.testing.assert_array_equal(gradient, expected.astype(z.dtype), strict=True)


def test_the_gradient_of_classes_has_the_dtype_of_outputs() -> None:
    """A masked array as the mask, and dtypes whose arithmetic is wider, made another dtype of it."""
    z, classes = np.random.default_rng(4).standard_normal((3, 4)), np.array([0, 3, 1], np.uint8)
    kinds = ["float16", "float32", ">f4"]
    for kind in kinds:
        mask = np.ma.masked_array(np.array([True, False, True]))
        for counted in (None, mask):
            assert CrossEntropy()(z.astype(kind), classes, counted)[1].dtype == np.dtype(kind)


@pytest.mark.parametrize("wrong", [2**64 - 100, 2**63, 4])
def test_class_numbers_without_sign_are_refused(wrong: int) -> None:
    """2**64 - 100 as int64 is -100, the number of an entry that does not count."""
    with pytest.raises(ValueError, match=f"^targets: expected class numbers 0 to 3; got {wrong}"):
        CrossEntropy()(np.ones((3, 4)), np.array([0, wrong, 3], np.uint64))


@pytest.mark.parametrize("dtype", ["float32", "f4", "float", np.float32, np.dtype("float16"), ">f4"])
def test_standardised_values_take_every_name_of_a_dtype(dtype: Any) -> None:
    values = np.random.default_rng(5).standard_normal((4, 3))
    scaling = Standardizer.fit([values])
    wanted = ((values - scaling.mean) / scaling.scale).astype(dtype)
    np.testing.assert_array_equal(scaling.apply(values, dtype), wanted, strict=True)
    for given, found in ((scaling, wanted), (None, values.astype(dtype))):
        np.testing.assert_array_equal(scale_targets([values], dtype, given)[0], found, strict=True)


def test_names_that_modules_had_are_there() -> None:
    assert losses.IGNORED == -100
    z = np.array([[1e4, 1e4 + 1], [-3, 2.5]])
    np.testing.assert_allclose(readout.softmax(z)[:, 0], 1 / (1 + np.exp(z[:, 1] - z[:, 0])), rtol=1e-12)


def test_messages_name_the_library_and_the_argument() -> None:
    with pytest.raises(TypeError, match=r"^outputs: .*; got list$"):
        QuantileLoss().point([[1.0, 2.0, 3.0]])
    library = ModuleType("array_api_compat.torch")
    array = SimpleNamespace(__array_namespace__=lambda api_version=None: library, device="cpu")
    with pytest.raises(TypeError, match=r"^b: expected an array of numpy on cpu, as a; got one of torch on cpu"):
        namespace_of(a=np.ones(2), b=array)


@pytest.mark.parametrize("bound", [np.float32(0.1), np.float16(0.1), np.longdouble(0.1), Fraction(1, 10), np.int8(1)])
def test_a_bound_of_any_type_is_a_float(bound: Any) -> None:
    """The norm is above what float32 can hold, so the factor in its dtype would be 0."""
    gradients = {"a": np.full(3, 3e38, np.float32), "b": np.full(2, -3e38, np.float32)}
    clipped, norm = clip_by_global_norm(gradients, bound)
    factor = float(bound) / math.sqrt(5 * float(np.float32(3e38)) ** 2)
    assert norm == pytest.approx(math.sqrt(5) * 3e38, rel=1e-7)
    for name, value in gradients.items():
        np.testing.assert_array_equal(clipped[name], value * np.float32(factor), strict=True)
