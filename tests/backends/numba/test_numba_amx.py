"""Products of the Numba backend on AMX; where the processor has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.config import LSTMConfig

#: (T, N, I, H): rows that fill a pair of tiles, one, and a part of one; sizes that divide nothing.
SHAPES = [(3, 64, 40, 48), (4, 35, 33, 37), (3, 17, 70, 20), (5, 5, 9, 33)]


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of any size run on AMX."""
    from lstmcore_numba import workspace as rooms
    from lstmcore_numba.gemm import amx

    if not amx.usable():
        pytest.skip("this machine has no AMX, or its system does not hand it out")
    for name in ("_AMX_ROWS", "_AMX_INNER", "_AMX_WORTH"):
        monkeypatch.setattr(rooms, name, 1)


def results(shape: tuple[int, int, int, int], x: Any, threads: int = 1, **switches: Any) -> list[Any]:
    """Outputs, the last state and all gradients."""
    from lstmcore_numba.kernel import NumbaBackend

    _, n, inputs, hidden = shape
    rng = np.random.default_rng(1)
    model = LSTM(inputs, hidden, seed=3, backend=NumbaBackend(threads=threads), **switches)
    h, c = (rng.normal(size=(1, n, size)).astype(np.float32) for size in (hidden, hidden))
    y, (h_n, c_n), tape = model.record(x, (h, c))
    gradients = model.backward(tape, rng.normal(size=y.shape).astype(np.float32))
    return [model(x, (h, c))[0], y, h_n, c_n, gradients.x, *gradients.state, *gradients.parameters.values()]


def inputs(shape: tuple[int, int, int, int]) -> Any:
    return np.random.default_rng(0).normal(size=shape[:3]).astype(np.float32)


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products run in vectors again."""
    monkeypatch.setattr("lstmcore_numba.workspace.usable", lambda: False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_of_parts_lose_no_more_than_vectors(
    shape: Any, everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of bfloat16 parts differ from those of vectors and lose no more."""
    x = inputs(shape)
    mine = results(shape, x)
    without(monkeypatch)
    theirs = results(shape, x)
    assert any(not np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True)), "no product ran on AMX"
    # Both are off by some roundings of sums of as many terms as the longest product has, here T N or G H.
    terms = max(shape[0] * shape[1], 4 * shape[3])
    for a, b in zip(mine, theirs, strict=True):
        assert np.abs(a - b).max() <= np.finfo(np.float32).eps * np.sqrt(terms) * 4 * np.abs(b).max()


@pytest.mark.parametrize("switches", [{}, {"coupling": "input_from_forget"}, {"layer_norm": True}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_number_of_threads_changes_no_bit_on_amx(shape: Any, switches: Any, everywhere: None) -> None:
    x = inputs(shape)
    for one, two in zip(results(shape, x, 1, **switches), results(shape, x, 2, **switches), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_multiplied_in_float32(
    value: float, everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[1]
    x = inputs(shape)
    clean = results(shape, x)
    x[1, 7, 3] = value
    odd = results(shape, x)
    others = np.arange(shape[1]) != 7
    for a, b in zip(odd[:7], clean[:7], strict=True):  # all but the parameters' gradients have a row of their own
        np.testing.assert_array_equal(a[:, others], b[:, others])
    without(monkeypatch)
    for a, b in zip(odd, results(shape, x), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_finite_are_multiplied_in_float32(
    everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rng, found = LSTMConfig(input_size=40, hidden_size=48), np.random.default_rng(2), []
    weights = {name: rng.normal(size=size).astype(np.float32) for name, size in config.parameter_shapes.items()}
    weights["weight_x"][5, 4] = np.inf  # a gate that is shut or open, not one that is no number
    for _ in range(2):
        from lstmcore_numba.kernel import NumbaBackend

        kernel = NumbaBackend(threads=1).compile(config, "float32")
        found.append(kernel.forward(kernel.pack(weights), inputs(SHAPES[0])).y)
        without(monkeypatch)
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()


def test_the_receipt_tells_of_amx(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.kernel import NumbaBackend

    kernel = NumbaBackend().compile(LSTMConfig(input_size=40, hidden_size=48), "float32")
    assert kernel.receipt(steps=5, batch=64).path == "vectors of 512 bits, products on AMX"
    without(monkeypatch)
    assert kernel.receipt(steps=5, batch=64).path == "vectors of 512 bits"


def test_amx_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.gemm import amx

    monkeypatch.setenv("LSTMCORE_AMX", "0")
    assert not amx.usable.__wrapped__()
    monkeypatch.setenv("LSTMCORE_AMX", "no")
    with pytest.raises(ValueError, match="LSTMCORE_AMX: expected 0 or 1, got 'no'"):
        amx.usable.__wrapped__()


@pytest.mark.slow
def test_the_suite_on_amx_at_all_sizes(everywhere: None) -> None:
    from lstmcore_conformance import run
    from lstmcore_numba.kernel import NumbaBackend

    report = run(NumbaBackend(), precisions=["float32"])
    assert report.conforms, report.verdict
