"""GEMMs of packed bfloat16 pairs in the Numba backend, if the processor has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")

#: (T, N, I, H): one row, rows of one tile and of several, sizes that divide nothing.
SHAPES = [(6, 1, 5, 33), (5, 4, 9, 20), (4, 17, 40, 48), (3, 64, 33, 37)]


@pytest.fixture
def pairs() -> None:
    """Skip the test if the processor has no GEMM of pairs."""
    from lstmcore_numba.gemm.bf16 import pairs_usable

    if not pairs_usable():
        pytest.skip("this processor has no AVX512_BF16")


def short(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(size=shape).astype(ml_dtypes.bfloat16)


def backend(*, use_pairs: bool = True) -> Any:
    """Return a backend on one thread."""
    from lstmcore_numba.kernel import NumbaBackend
    from lstmcore_numba.tuning import Tuning

    return NumbaBackend(threads=1, tuning=Tuning(bf16_pairs=use_pairs))


def results(shape: tuple[int, int, int, int], x: Any, *, use_pairs: bool = True, **switches: Any) -> list[Any]:
    """Return outputs and the final state, called and recorded, and all gradients."""

    _, n, inputs, hidden = shape
    rng = np.random.default_rng(1)
    model = LSTM(inputs, hidden, dtype="bfloat16", seed=3, backend=backend(use_pairs=use_pairs), **switches)
    state = short(rng, 1, n, switches.get("proj_size") or hidden), rng.normal(size=(1, n, hidden)).astype(np.float32)
    (y, last), (y_recorded, last_recorded, tape) = model(x, state), model.record(x, state)
    gradients = model.backward(tape, short(rng, *y.shape))
    results = [y, *last, y_recorded, *last_recorded, gradients.x, *gradients.state, *gradients.parameters.values()]
    return [array.astype(np.float32) for array in results]


def inputs(shape: tuple[int, int, int, int]) -> Any:
    return short(np.random.default_rng(0), *shape[:3])


@pytest.mark.parametrize("inner", [1, 2, 7, 64, 301])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13])
def test_a_gemm_of_pairs_is_right(rows: int, inner: int, pairs: None) -> None:
    from lstmcore_numba.gemm import bf16
    from products import matmul

    rng = np.random.default_rng(0)
    a = rng.integers(-9, 10, (rows, inner)).astype(ml_dtypes.bfloat16)  # sums of small whole numbers are exact
    read = bf16.pack_pairs(a)
    for vectors in (1, 2, 3, 4, 6):
        b = rng.integers(-9, 10, (inner, vectors, 16)).astype(np.float32)
        panels = [bf16.pack_weight_pairs(b[None, :, k : k + 4]).ravel() for k in range(0, vectors, 4)]
        packed, c = np.concatenate(panels), np.ones((rows, 16 * vectors), np.float32)
        for fresh, before in ((False, 1), (True, 0)):
            matmul(read, packed, vectors, c, fresh)
            np.testing.assert_array_equal(c, before + a.astype(np.float32) @ b.reshape(inner, -1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gemms_of_pairs_lose_no_more_than_float32(shape: Any, pairs: None) -> None:
    """GEMMs of bfloat16 pairs differ from those of float32, and their errors are no larger."""
    shape = (1, *shape[1:])  # one step: the h of a second one could be rounded differently
    x = inputs(shape)
    mine = results(shape, x)
    theirs = results(shape, x, use_pairs=False)
    (c, other_c), eps = (mine[2], theirs[2]), np.finfo(np.float32).eps
    assert not np.array_equal(c, other_c), "no GEMM took pairs"
    assert np.abs(c - other_c).max() <= eps * np.sqrt(shape[2] + shape[3]) * 4 * np.abs(other_c).max()
    for a, b in zip(mine, theirs, strict=True):
        assert np.abs(a - b).max() <= 2**-7 * np.abs(b).max()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_a_non_finite_row_leaves_the_others_alone(shape: Any, value: float, pairs: None) -> None:
    x = inputs(shape)
    clean = results(shape, x)
    assert all(np.isfinite(array).all() for array in clean)
    x[1, 2, 0] = value  # with an odd width, the number after the last of row 1
    odd = results(shape, x)
    others = np.arange(shape[1]) != 2
    for a, b in zip(odd[:9], clean[:9], strict=True):  # all but the parameters' gradients have an axis N
        np.testing.assert_array_equal(a[:, others], b[:, others])
    if np.isnan(value):
        assert np.isnan(odd[0][1:, 2]).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_are_the_same_wherever_they_are_written(shape: Any, pairs: None) -> None:
    steps, n, width, hidden = shape
    model = LSTM(width, hidden, dtype="bfloat16", seed=3, backend="numba")
    x = inputs(shape)
    bits, size = np.zeros(x.size + 1, np.uint16), hidden
    bits[1:] = x.view(np.uint16).ravel()
    shifted = bits[1:].view(x.dtype).reshape(x.shape)  # pairs in it need not lie on multiples of 4 bytes
    spread = np.zeros((steps, n, 2 * size), x.dtype)
    expected, state = model(x)
    for source in (x, shifted, np.asfortranarray(x)):
        for out in (None, np.ones((steps, n, size), x.dtype), spread[..., ::2]):
            y, last = model(source, out=out)
            assert out is None or y is out
            np.testing.assert_array_equal(y.view(np.uint16), expected.view(np.uint16))
            for one, other in zip(last, state, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_replayed_calls_have_their_own_results(shape: Any, pairs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.call_cache import CallCache

    replays: list[bool] = []
    replay = CallCache.replay

    def watched(*args: Any) -> Any:
        result = replay(*args)
        replays.append(result is not None)
        return result

    monkeypatch.setattr(CallCache, "replay", watched)
    _, n, width, hidden = shape
    rng, model = np.random.default_rng(0), LSTM(width, hidden, dtype="bfloat16", seed=3, backend="numba")
    calls = []
    for k in range(4):
        x, state = short(rng, *shape[:3]), None
        if k % 2:
            state = short(rng, 1, n, hidden), rng.normal(size=(1, n, hidden)).astype(np.float32)
        y, last = model(x, state)
        recorded, recorded_last, _ = model.record(x, state)
        calls.append(((y, *last), (recorded, *recorded_last)))
    for outputs, expected in calls:  # at the end: a result that a later call wrote to would differ
        for one, other in zip(outputs, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    assert replays == [False, True, True, True]


@pytest.mark.parametrize("switches", [{"recurrent_dropout": 0.5}, {"recurrence": "cell"}], ids=str)
def test_other_operands_are_multiplied_in_float32(switches: Any, pairs: None) -> None:
    x, outputs = inputs(SHAPES[1]), []
    for use_pairs in (True, False):
        model = LSTM(9, 20, dtype="bfloat16", seed=3, backend=backend(use_pairs=use_pairs), **switches)
        outputs.append(model.record(x)[0].astype(np.float32))
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_the_receipt_names_pairs(pairs: None) -> None:
    from lstmcore.config import LSTMConfig

    def path(precision: str, *, use_pairs: bool = True, **switches: Any) -> str:
        config = LSTMConfig(input_size=4, hidden_size=5, **switches)
        return backend(use_pairs=use_pairs).compile(config, precision).receipt(steps=5, batch=3).path

    assert path("bfloat16") == "vectors of 512 bits, products of bfloat16 pairs"
    assert path("bfloat16", recurrence="cell") == path("float16") == "vectors of 512 bits"
    assert path("bfloat16", use_pairs=False) == "vectors of 512 bits"


def test_pairs_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.gemm import bf16

    monkeypatch.setenv("LSTMCORE_BF16", "0")
    assert not bf16.pairs_usable.__wrapped__()
    monkeypatch.setenv("LSTMCORE_BF16", "no")
    with pytest.raises(ValueError, match="LSTMCORE_BF16: expected 0 or 1, got 'no'"):
        bf16.pairs_usable.__wrapped__()


@pytest.mark.parametrize("features", ["+avx512f", "+avx512f,-avx512bf16", "+avx512bf16"])
def test_code_for_a_processor_without_them_has_none(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import config

    from lstmcore_numba.gemm import bf16

    monkeypatch.setattr(config, "CPU_FEATURES", features)
    assert not bf16.pairs_usable.__wrapped__()


@pytest.mark.parametrize("lengths", [[4, 2, 0]], ids=str)
def test_zeros_are_of_the_dtype_of_what_they_replace(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy 1 has no common dtype of a bfloat16 and a whole number; so `where` is not asked for one."""
    where = np.where

    def strict(condition: Any, one: Any, other: Any) -> Any:
        assert np.asarray(one).dtype == np.asarray(other).dtype
        return where(condition, one, other)

    rng = np.random.default_rng(0)
    model = LSTM(9, 20, dtype="bfloat16", seed=3, backend="numba")
    x, state = short(rng, 4, 3, 9), (short(rng, 1, 3, 20), rng.normal(size=(1, 3, 20)).astype(np.float32))
    monkeypatch.setattr(np, "where", strict)
    model(x, state, lengths=lengths)
    model.jvp(x, x, state, state, lengths=lengths)
