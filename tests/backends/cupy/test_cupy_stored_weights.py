"""Weights in fewer bytes on the CuPy backend: they stay as stored on the device, and the product widens them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from emulation import EmulatedDevice
from lstmcore import LSTM
from lstmcore.backend import UnsupportedError
from lstmcore.config import LSTMConfig
from lstmcore.precision import get_precision
from lstmcore.stored_weights import StoredMatrix, store
from lstmcore_cupy import program_source
from lstmcore_cupy.kernel import CupyBackend
from lstmcore_cupy.launch import Programs

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

FORMS = ("bfloat16", "float16", "int8")
CONFIG = LSTMConfig(input_size=2, hidden_size=3)
#: Rows, outputs and depth: one of each, whole warps, and parts of them.
SIZES = ((1, 1, 1), (1, 16, 32), (1, 37, 33), (2, 4, 7), (4, 9, 70), (9, 37, 5))


def _programs(form: str, precision: str = "float32", **options: Any) -> Programs:
    return Programs(EmulatedDevice(**options), CONFIG, get_precision(precision).with_weights(form))


def _operands(form: str, sizes: tuple[int, int, int], dtype: Any = np.float32) -> tuple[Any, StoredMatrix, Any]:
    """Return a, a matrix whose rows differ in size by up to 2^20, and what is in out before."""
    rows, outputs, depth = sizes
    rng = np.random.default_rng(sizes)
    matrix = rng.standard_normal((outputs, depth)) * 2.0 ** rng.integers(-16, 4, (outputs, 1))
    a, out = (rng.standard_normal(shape).astype(dtype) for shape in ((rows, depth), (rows, outputs)))
    return a, store("w", matrix, form), out


def _product(programs: Programs, form: str, sizes: tuple[int, int, int], *, accumulate: bool = False) -> Any:
    """Return the product, and how far it is from the one in float64, in roundings of its terms."""
    a, matrix, out = _operands(form, sizes, programs.real)
    want, terms = (a.astype(np.float64), matrix.read(np.float64)), out.astype(np.float64) if accumulate else 0.0
    if not accumulate:
        out[...] = np.nan
    programs.matmul(a, matrix, out, transpose_b=True, accumulate=accumulate)
    error = np.abs(out - (want[0] @ want[1].T + terms))
    return out, error / (np.abs(want[0]) @ np.abs(want[1].T) + np.abs(terms)) / np.finfo(programs.real).eps


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])  # more to compile
@pytest.mark.parametrize("form", FORMS)
def test_the_product_is_that_of_the_matrix_read_back(form: str, precision: str) -> None:
    """A sum of K terms is one of 32 sums of K / 32."""
    programs = _programs(form, precision)
    for sizes in SIZES:
        for accumulate in (False, True):
            _, error = _product(programs, form, sizes, accumulate=accumulate)
            assert (error <= 4).all(), sizes


@pytest.mark.parametrize("form", FORMS)
def test_stored_numbers_are_widened_exactly(form: str) -> None:
    """Each int8, and every 13th bit pattern of 16 bits that is finite, times 1."""
    patterns = np.arange(256) if form == "int8" else np.arange(0, 1 << 16, 13)
    values = patterns.astype(np.uint16).view("float16") if form == "float16" else patterns.astype("uint16")
    scale = None
    if form == "int8":
        values, scale = patterns.astype(np.uint8).view(np.int8), np.full(256, 0.1, np.float32)
        scale = (scale.view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32)
    matrix = StoredMatrix(form, values[:, None], scale)
    with np.errstate(invalid="ignore"):
        want = matrix.read()[:, 0]
    finite = np.isfinite(want)
    matrix = replace(matrix, values=matrix.values[finite], scale=None if scale is None else scale[finite])
    out = np.empty((1, finite.sum()), np.float32)
    _programs(form).matmul(np.ones((1, 1), np.float32), matrix, out, transpose_b=True)
    assert np.array_equal(out[0], want[finite])


def test_a_row_has_the_same_bits_alone_and_beside_others() -> None:
    programs = _programs("int8")
    a, matrix, _ = _operands("int8", (6, 21, 70))
    a[1] *= 2.0**20
    a[4] = np.nan
    together, alone = np.empty((6, 21), np.float32), np.empty((1, 21), np.float32)
    programs.matmul(a, matrix, together, transpose_b=True)
    for row in (0, 1, 2, 3, 5):
        programs.matmul(a[row : row + 1], matrix, alone, transpose_b=True)
        assert np.array_equal(alone[0], together[row])
    assert np.isnan(together[4]).all()


#: Text of product.cu -> its replacement.
FAULTS = {
    "a.scale[output + own]": "a.scale[output]",
    "weight * scale": "(unsigned char)weight * scale",
    "k < a.depth; k += WARP": "k < a.depth - 1; k += WARP",
    "places[o] = own * (int)a.depth": "places[o] = 0",
    "a.a + (row + n < a.rows ? row + n : a.rows - 1) * a.depth": "a.a + row * a.depth",
    "part[o * ROWS + n] +=": "part[o * ROWS] +=",
    "a.accumulate ? *out + part[0] : part[0]": "part[0]",
    "lane % 2 ||": "",
    "(row + n) * a.outputs + output + o": "(row + n) * a.outputs + output",
}


@pytest.mark.slow  # compiling takes a second for each
@pytest.mark.parametrize("there", FAULTS)
def test_a_planted_fault_is_caught(there: str) -> None:
    assert program_source.source("product.cu").count(there) == 1
    programs = _programs("int8", edit=lambda text: text.replace(there, FAULTS[there]))
    errors = [_product(programs, "int8", sizes, accumulate=True)[1] for sizes in ((1, 37, 33), (9, 37, 5))]
    assert any(not (error <= 4).all() for error in errors)


@pytest.mark.parametrize("form", FORMS)
def test_an_lstm_keeps_its_matrices_as_stored(form: str) -> None:
    """The device has no float32 copy of a matrix, and the results are those of NumPy's backend."""
    options: dict[str, Any] = {"bidirectional": True, "seed": 3, "weights": form}
    own, other = (LSTM(5, 6, 2, backend=name, **options) for name in (CupyBackend(EmulatedDevice()), "numpy"))
    for direction in own._weights:
        kinds = {name: type(array) for name, array in direction.parameters.items()}
        assert kinds == {"weight_x": StoredMatrix, "weight_h": StoredMatrix, "bias": np.ndarray}
    rng = np.random.default_rng(1)
    x = rng.standard_normal((7, 3, 5)).astype(np.float32)
    state = tuple(rng.standard_normal((4, 3, 6)).astype(np.float32) for _ in range(2))
    (y, last), (want, want_last) = (lstm(x, state, [7, 2, 0]) for lstm in (own, other))
    for got, expected in zip((y, *last), (want, *want_last), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-20)


@pytest.mark.parametrize(("form", "size"), [("float16", 2 * 24 * 6), ("int8", 24 * 6 + 4 * 24)])
def test_the_receipt_tells_the_bytes_of_a_step(form: str, size: int) -> None:
    backend = CupyBackend(EmulatedDevice(), persistent=True)
    receipt = backend.compile(LSTMConfig(input_size=5, hidden_size=6), get_precision("float32").with_weights(form))
    found = receipt.receipt(7, 2)
    assert f"{form} weights widened when they are multiplied: a step reads {size} bytes of weight_h" in found.reason
    assert found.path == "a product and a kernel a step"
    assert found.fallback == "the persistent kernels have no stored weights"
    plain = CupyBackend(EmulatedDevice()).compile(receipt.config, receipt.precision).receipt(7, 2)
    assert plain.fallback is None


def test_integer_products_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match="weights:int8a16: products are those of float32; int8 stores the same"):
        LSTM(2, 3, weights="int8a16", backend=CupyBackend(EmulatedDevice()))
