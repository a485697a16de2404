"""GEMMs of the Numba backend on AMX, if the processor has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.config import LSTMConfig

#: (T, N, I, H): rows that fill two tiles, one, and a part of one; sizes that divide nothing. In the last one a step has
#: few rows and all steps have many, without gaps between them, as there is one block of units.
SHAPES = [(3, 64, 40, 48), (4, 35, 33, 37), (3, 17, 70, 20), (5, 5, 9, 33), (7, 5, 9, 16)]


@pytest.fixture
def everywhere() -> Any:
    """Return a tuning with which GEMMs of any size run on AMX."""
    from lstmcore_numba.gemm.amx import amx_usable
    from lstmcore_numba.tuning import Tuning

    if not amx_usable():
        pytest.skip("this machine has no AMX, or its system does not allow it")
    return Tuning(amx_rows=1, amx_k=1, amx_work=1)


def without_amx() -> Any:
    """Return a tuning with which all GEMMs run in vectors."""
    from lstmcore_numba.tuning import Tuning

    return Tuning(amx=False)


def results(shape: tuple[int, int, int, int], x: Any, tuning: Any, threads: int = 1, **switches: Any) -> list[Any]:
    """Return outputs, the final state and all gradients."""
    from lstmcore_numba.kernel import NumbaBackend

    _, n, inputs, hidden = shape
    rng = np.random.default_rng(1)
    model = LSTM(inputs, hidden, seed=3, backend=NumbaBackend(threads=threads, tuning=tuning), **switches)
    h, c = (rng.normal(size=(1, n, size)).astype(np.float32) for size in (hidden, hidden))
    y, (h_n, c_n), tape = model.record(x, (h, c))
    gradients = model.backward(tape, rng.normal(size=y.shape).astype(np.float32))
    return [model(x, (h, c))[0], y, h_n, c_n, gradients.x, *gradients.state, *gradients.parameters.values()]


def inputs(shape: tuple[int, int, int, int]) -> Any:
    return np.random.default_rng(0).normal(size=shape[:3]).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_split_gemms_lose_no_more_than_vectors(shape: Any, everywhere: Any) -> None:
    """GEMMs of split operands differ from those in vectors, and their errors are no larger."""
    x = inputs(shape)
    mine = results(shape, x, everywhere)
    theirs = results(shape, x, without_amx())
    assert any(not np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True)), "no GEMM ran on AMX"
    # Both have errors of some roundings of sums over the largest K, here T N or G H.
    terms = max(shape[0] * shape[1], 4 * shape[3])
    for a, b in zip(mine, theirs, strict=True):
        assert np.abs(a - b).max() <= np.finfo(np.float32).eps * np.sqrt(terms) * 4 * np.abs(b).max()


@pytest.mark.parametrize("switches", [{}, {"coupling": "input_from_forget"}, {"layer_norm": True}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_number_of_threads_changes_no_bit_on_amx(shape: Any, switches: Any, everywhere: Any) -> None:
    x = inputs(shape)
    one_thread, two_threads = (results(shape, x, everywhere, threads, **switches) for threads in (1, 2))
    for one, two in zip(one_thread, two_threads, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_row_is_multiplied_in_float32(value: float, everywhere: Any) -> None:
    shape = SHAPES[1]
    x = inputs(shape)
    clean = results(shape, x, everywhere)
    x[1, 7, 3] = value
    odd = results(shape, x, everywhere)
    others = np.arange(shape[1]) != 7
    for a, b in zip(odd[:7], clean[:7], strict=True):  # all but the parameters' gradients have an axis N
        np.testing.assert_array_equal(a[:, others], b[:, others])
    for a, b in zip(odd, results(shape, x, without_amx()), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_non_finite_weights_are_multiplied_in_float32(everywhere: Any) -> None:
    from lstmcore_numba.kernel import NumbaBackend

    config, rng, outputs = LSTMConfig(input_size=40, hidden_size=48), np.random.default_rng(2), []
    weights = {name: rng.normal(size=size).astype(np.float32) for name, size in config.parameter_shapes.items()}
    weights["weight_x"][5, 4] = np.inf  # the gate is 0 or 1, not NaN
    for tuning in (everywhere, without_amx()):
        kernel = NumbaBackend(threads=1, tuning=tuning).compile(config, "float32")
        outputs.append(kernel.forward(kernel.pack(weights), inputs(SHAPES[0])).y)
    np.testing.assert_array_equal(*outputs)
    assert np.isfinite(outputs[0]).all()


def test_the_receipt_names_amx(everywhere: Any) -> None:
    from lstmcore_numba.kernel import NumbaBackend

    def path(tuning: Any) -> str:
        kernel = NumbaBackend(tuning=tuning).compile(LSTMConfig(input_size=40, hidden_size=48), "float32")
        return kernel.receipt(steps=5, batch=64).path

    assert path(everywhere) == "vectors of 512 bits, products on AMX"
    assert path(without_amx()) == "vectors of 512 bits"


def test_amx_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.gemm.amx import amx_usable

    monkeypatch.setenv("LSTMCORE_AMX", "0")
    assert not amx_usable.__wrapped__()
    monkeypatch.setenv("LSTMCORE_AMX", "no")
    with pytest.raises(ValueError, match="LSTMCORE_AMX: expected 0 or 1, got 'no'"):
        amx_usable.__wrapped__()


@pytest.mark.slow
def test_the_suite_on_amx_at_all_sizes(everywhere: Any) -> None:
    from lstmcore_conformance import run
    from lstmcore_numba.kernel import NumbaBackend

    report = run(NumbaBackend(tuning=everywhere), precisions=["float32"])
    assert report.conforms, report.verdict
