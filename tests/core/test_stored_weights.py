"""Weights in fewer bytes: rounding, reading back, and LSTMs that compute with them."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load_file

from lstmcore import LSTM
from lstmcore.backend import Backend, Capabilities, Kernel, UnsupportedError
from lstmcore.config import LSTMConfig
from lstmcore.precision import Precision
from lstmcore.stored_weights import FORMATS, INT8A16, StoredMatrix, store


def _matrices(largest: float) -> st.SearchStrategy[Any]:
    numbers = st.floats(-largest, largest, width=32)
    return arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=numbers)


#: Matrices up to the largest numbers of float16 and of float32.
HALF, WIDE = _matrices(65504.0), _matrices(float(np.finfo(np.float32).max))


@given(HALF)
def test_sixteen_bits_round_to_nearest_even(matrix: Any) -> None:
    """Both formats of 16 bits equal NumPy's and ml_dtypes' conversion, bit for bit."""
    for form, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        expected = matrix.astype(dtype)
        stored = store("w", matrix, form)
        assert stored.values.view(np.uint16).tobytes() == expected.view(np.uint16).tobytes()
        assert np.array_equal(stored.read(), expected.astype(np.float32))
        assert stored.nbytes == matrix.nbytes // 2


@given(WIDE)
def test_int8_is_the_nearest_multiple_of_a_scale(matrix: Any) -> None:
    """No product with a scale is rounded, and the largest of a row is 127 scales or -127."""
    stored = store("w", matrix, "int8")
    values, scale = stored.values.astype(np.float64), np.asarray(stored.scale, np.float64)[:, None]
    assert np.array_equal(stored.read(np.float64), values * scale)
    assert (np.abs(values * scale - matrix) <= (0.5 + 2.0**-16) * scale).all()
    largest = np.abs(matrix).max(axis=1)
    assert (np.abs(values).max(axis=1)[largest > 2.0**-90] == 127).all()
    assert np.abs(values).max() <= 127
    assert (scale[largest == 0] == 1).all()
    assert stored.nbytes == matrix.size + 4 * len(matrix)


@given(WIDE)
def test_int8_is_stored_in_the_same_way_again(matrix: Any) -> None:
    """What was read back is stored as the same bytes, and so are the negatives."""
    once = store("w", matrix, "int8")
    again, negative = store("w", once.read(), "int8"), store("w", -matrix, "int8")
    assert np.array_equal(-once.read(), negative.read())
    assert np.array_equal(once.read(), again.read())
    nonzero = once.values.any(axis=1)  # a row that is too small for its scale is a row of zeros from then on
    assert np.array_equal(once.values, again.values)
    assert np.array_equal(np.asarray(once.scale)[nonzero], np.asarray(again.scale)[nonzero])
    assert (np.asarray(again.scale)[~nonzero] == 1).all()


def test_a_row_has_a_scale_of_its_own() -> None:
    """A row with a number of 2**20 leaves the others as they are."""
    matrix = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    alone = store("w", matrix, "int8").read()
    matrix[2, 4] = 2.0**20
    assert np.array_equal(np.delete(store("w", matrix, "int8").read(), 2, 0), np.delete(alone, 2, 0))


@pytest.mark.parametrize(("form", "number"), [("float16", 65520.0), ("bfloat16", 3.4e38)])
def test_a_number_too_large_for_the_format_is_refused(form: str, number: float) -> None:
    matrix = np.array([[1.0, number]], np.float32)
    with pytest.raises(ValueError, match=f"w: expected numbers that {form} can hold; got one of magnitude"):
        store("w", matrix, form)


def _lstm(**options: Any) -> LSTM:
    return LSTM(5, 6, 2, bidirectional=True, proj_size=4, peephole=True, seed=3, backend="numpy", **options)


@pytest.mark.parametrize("form", FORMATS)
def test_an_lstm_computes_with_the_weights_that_it_stores(form: str) -> None:
    """The results are those of the LSTM whose matrices were read back, to the last bit; vectors stay as they are."""
    rng = np.random.default_rng(1)
    whole = _lstm()
    small = whole.compressed(form)
    rounded = {
        name: store(name, array, form).read() if array.ndim == 2 and not name.startswith("peephole") else array
        for name, array in whole.parameters.items()
    }
    assert sum(isinstance(array, StoredMatrix) for array in small.stored_parameters.values()) == 3 * 4
    for name, array in small.parameters.items():
        assert np.array_equal(array, rounded[name]), name
    other = _lstm()
    other.load_parameters(rounded)
    x = rng.normal(size=(7, 3, 5)).astype(np.float32)
    state = tuple(rng.normal(size=(4, 3, size)).astype(np.float32) for size in (4, 6))
    expected, got = (lstm(x, state, [7, 2, 0]) for lstm in (other, small))
    for want, have in zip((expected[0], *expected[1]), (got[0], *got[1]), strict=True):
        if form == INT8A16:  # activations are rounded as well
            assert 0 < np.abs(want - have).max() < 1e-4
        else:
            assert want.tobytes() == have.tobytes()
    assert not np.array_equal(whole(x, state, [7, 2, 0])[0], got[0])


@pytest.mark.parametrize("form", FORMATS)
def test_copies_keep_the_stored_weights(form: str) -> None:
    lstm = LSTM(3, 5, weights=form, seed=0, backend="numpy")
    x = np.ones((4, 2, 3), np.float32)
    for other in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert other.precision.weights == form
        assert other(x)[0].tobytes() == lstm(x)[0].tobytes()
    assert f"weights={form!r}" in repr(lstm)
    lstm.load_parameters(lstm.parameters)
    assert lstm(x)[0].tobytes() == other(x)[0].tobytes()


def test_a_format_is_that_of_the_argument_then_of_the_dtype() -> None:
    """None takes the dtype's; a name is heeded, the name ``same`` too."""
    stored = _lstm(weights="int8").precision
    assert _lstm(dtype=stored).precision.weights == "int8"
    assert _lstm(dtype=stored, weights="same").precision == _lstm().precision
    assert _lstm(dtype=stored, weights="float16").precision.weights == "float16"
    integers = _lstm(dtype="int8a16").precision
    assert integers == _lstm(weights="int8a16").precision == _lstm(dtype=stored, weights="int8a16").precision
    assert (integers.name, integers.epsilon) == ("float32", 2.0**-15)
    assert integers.with_weights("same") == _lstm().precision
    with pytest.raises(ValueError, match=r"other than 'int8a16', which has float32 sums, for float64"):
        _lstm(dtype="float64", weights="int8a16")


def test_what_stored_weights_refuse() -> None:
    """Derivatives, a second format, unknown ones, 16-bit precisions, a backend that does not declare the format."""
    lstm = LSTM(3, 5, weights="int8", seed=0, backend="numpy")
    x = np.ones((4, 2, 3), np.float32)
    for call in (lambda: lstm.record(x), lambda: lstm.jvp(x, x)):
        with pytest.raises(UnsupportedError, match="weights: derivatives need weights that are stored as they are"):
            call()
    with pytest.raises(ValueError, match="stored as they are; got int8: compress the original"):
        lstm.compressed("float16")
    with pytest.raises(ValueError, match="weights: expected one of same, bfloat16, float16, int8, int8a16; got 'int4'"):
        LSTM(3, 5, weights="int4")
    with pytest.raises(ValueError, match="weights: expected 'same', since float16 has 16 bits a weight"):
        LSTM(3, 5, dtype="float16", weights="int8")
    with pytest.raises(UnsupportedError, match="weights:int8: not implemented"):
        LSTM(3, 5, weights="int8", backend=_Bare())


class _Bare(Backend):
    """A backend that declares no format."""

    name = "bare"

    def capabilities(self) -> Capabilities:
        return Capabilities("cpu", frozenset({"float32"}), frozenset())

    def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
        raise AssertionError("not asked for")


GOLDEN = load_file(Path(__file__).parents[2] / "conformance/lstmcore_conformance/vectors/stored_weights.safetensors")


@pytest.mark.parametrize("form", ["bfloat16", "float16", "int8"])
def test_the_golden_matrix_is_stored_as_in_the_file(form: str) -> None:
    stored = store("w", GOLDEN["w"], form)
    assert stored.values.tobytes() == GOLDEN[form].tobytes()
    assert stored.read().tobytes() == GOLDEN[f"{form}_read"].tobytes()
    if stored.scale is not None:
        assert stored.scale.tobytes() == GOLDEN["int8_scale"].tobytes()


def _exact(row: Any) -> list[Fraction]:
    return [Fraction(float(number)) for number in row]


def _rounded(exact: Fraction, bits: int, least: int) -> Fraction:
    """Return the nearest number of `bits` significant bits and an exponent of at least `least`, ties to even."""
    if exact == 0:
        return exact
    step = Fraction(2) ** (max(math.frexp(float(abs(exact)))[1] - 1, least) - bits + 1)
    return round(exact / step) * step  # Python rounds the half of a Fraction to even


def test_the_golden_file_is_right_by_exact_fractions() -> None:
    """The file follows from SPEC.md in exact arithmetic, which shares no code with the library."""
    bits = GOLDEN["bfloat16"].astype(np.uint32) << np.uint32(16)
    halves = {"bfloat16": (bits.view(np.float32), 8, -126), "float16": (GOLDEN["float16"], 11, -14)}
    for row, numbers in enumerate(GOLDEN["w"]):
        exact = _exact(numbers)
        for form, (values, significant, least) in halves.items():
            expected = [_rounded(number, significant, least) for number in exact]
            assert _exact(values[row]) == _exact(GOLDEN[f"{form}_read"][row]) == expected
        scale = _rounded(max(map(abs, exact)) / 127, 24, -126)
        step = Fraction(2) ** (math.frexp(float(scale))[1] - 16)
        scale = max(scale // step * step, Fraction(2) ** -100) if scale else Fraction(1)
        quotients = [round(_rounded(number / scale, 24, -126)) for number in exact]
        assert Fraction(float(GOLDEN["int8_scale"][row])) == scale
        assert GOLDEN["int8"][row].tolist() == [max(-127, min(127, number)) for number in quotients]
        assert _exact(GOLDEN["int8_read"][row]) == [int(number) * scale for number in GOLDEN["int8"][row]]
