"""Properties that only the Numba backend has; the conformance suite tests the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.precision import numpy_dtype

SIZES = [(7, 1, 5, 600), (6, 16, 64, 128), (6, 13, 96, 260), (5, 64, 64, 96)]


def eager_backend() -> Any:
    """Return a backend whose threads share small models too, and are waited for."""
    from lstmcore_numba.kernel import NumbaBackend
    from lstmcore_numba.tuning import Tuning

    tuning = Tuning(
        thread_work=1000,
        barrier_work=1000,
        direction_work=1000,
        work_per_second=1e2,
        wake_seconds=1.0,
        load_pause=0,
    )
    return NumbaBackend(tuning=tuning)


@pytest.fixture
def acquired_workers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of workers of each shared pass."""
    from lstmcore_numba.runtime.thread_pool import ThreadPool

    used: list[int] = []
    acquire = ThreadPool.acquire

    def counted(pool: Any, wanted: int, limit: int | None = None) -> Any:
        workers = acquire(pool, wanted, limit)
        used.append(len(workers))
        return workers

    monkeypatch.setattr(ThreadPool, "acquire", counted)
    return used


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_number_of_threads_changes_no_bit(
    shape: tuple[int, int, int, int],
    bidirectional: bool,
    dtype: str,
    acquired_workers: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, batch, width, hidden = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, batch, width)).astype(numpy_dtype(dtype))
    dy = rng.normal(size=(steps, batch, hidden * (1 + bidirectional))).astype(numpy_dtype(dtype))
    results = []
    for count in (1, 2, 3):
        monkeypatch.setenv("LSTMCORE_NUM_THREADS", str(count))
        lstm = LSTM(width, hidden, bidirectional=bidirectional, dtype=dtype, backend=eager_backend(), seed=0)
        y, (h, c), tape = lstm.record(x)
        gradients = lstm.backward(tape, dy)
        results.append([lstm(x)[0], y, h, c, gradients.x, *gradients.parameters.values()])
    assert 1 in acquired_workers
    assert 2 in acquired_workers
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [12, 14, 20])
def test_threads_that_share_few_rows_change_no_bit(
    batch: int, dtype: str, acquired_workers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(4, batch, 40)).astype(numpy_dtype(dtype))
    results = []
    for count in (1, 2, 3):
        monkeypatch.setenv("LSTMCORE_NUM_THREADS", str(count))
        # A projection is split among threads by rows; its GEMM has K = 150 in two blocks.
        lstm = LSTM(40, 200, proj_size=150, dtype=dtype, backend=eager_backend(), seed=0)
        y, _, tape = lstm.record(x)
        results.append([y, lstm.backward(tape, y).x])
    assert sum(acquired_workers) > 0
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_waiting_worker_runs_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.codegen.numba_compiler import compiled
    from lstmcore_numba.runtime.tasks import make_task
    from lstmcore_numba.runtime.thread_pool import CALLER_ALONE, PassSize, acquire_threads
    from lstmcore_numba.runtime.worker_loop import run_parts
    from lstmcore_numba.tuning import DEFAULT_TUNING

    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "2")

    def inner(part: int, parts: int, parts_run: Any) -> None:
        parts_run[part] = 10 * parts + part

    run_part = compiled(inner)

    def outer(threads: Any, parts_run: Any) -> None:
        run_parts(threads, make_task(run_part, (parts_run,)))

    run = compiled(outer)
    parts_run = np.zeros(2, np.int64)
    run(CALLER_ALONE, parts_run)
    assert parts_run.tolist() == [10, 0]
    end = time.monotonic() + 600  # only against a hang: a busy machine runs the worker at some time
    while parts_run.tolist() != [20, 21] and time.monotonic() < end:
        parts_run[:] = 0
        run(acquire_threads(PassSize(2, 1e12), None, DEFAULT_TUNING), parts_run)
        assert parts_run.tolist() in ([10, 0], [20, 21])
    assert parts_run.tolist() == [20, 21]


def test_a_call_may_be_limited_to_some_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.kernel import NumbaBackend
    from lstmcore_numba.runtime.thread_pool import ThreadPool
    from lstmcore_numba.tuning import Tuning

    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "3")
    asked: list[int] = []
    acquire = ThreadPool.acquire

    def watched(pool: Any, wanted: int, limit: int | None = None) -> Any:
        asked.append(wanted)
        return acquire(pool, wanted, limit)

    monkeypatch.setattr(ThreadPool, "acquire", watched)
    x = np.random.default_rng(0).normal(size=(20, 64, 64)).astype(np.float32)
    for threads, expected in ((None, [2]), (2, [2, 1]), (1, [2, 1])):
        LSTM(64, 96, backend=NumbaBackend(threads, tuning=Tuning(load_pause=0)), seed=0)(x)
        assert asked == expected


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)])
def test_a_wrong_limit_of_threads_is_an_error(threads: Any, error: type[Exception]) -> None:
    from lstmcore_numba.kernel import NumbaBackend

    with pytest.raises(error, match=r"^threads: expected"):
        NumbaBackend(threads)


def test_a_buffer_is_reused_after_its_last_array_is_gone() -> None:
    from lstmcore_numba.runtime.buffer_pool import BufferPool, Lease

    pool = BufferPool()
    dtype = np.dtype(np.float32)
    size = 1 << 20

    def array() -> Any:
        lease = Lease(pool, pool.acquire(4 * size))
        return np.asarray(lease).view(dtype)[:size]

    first, second = array(), array()
    first[...], second[...] = 1, 2
    part, places = first[size // 2 :].reshape(2, -1), {first.ctypes.data, second.ctypes.data}
    del first  # `part` still lies in its memory
    third = array()
    third[...] = 3
    assert (part == 1).all()
    assert third.ctypes.data not in places
    del part, second, third
    again = [array() for _ in range(3)]
    assert places < {one.ctypes.data for one in again}
    assert pool.free_bytes == 0


def test_the_buffer_pool_has_a_limit() -> None:
    from lstmcore_numba.runtime.buffer_pool import BufferPool, Lease

    pool = BufferPool(max_bytes=3 << 20)
    leases = [Lease(pool, pool.acquire(1 << 20)) for _ in range(5)]
    assert pool.free_bytes == 0
    leases.clear()
    assert pool.free_bytes == 3 << 20


@pytest.mark.parametrize("coupling", ["none", "input_from_forget"])
def test_sums_over_thousands_of_rows_stay_within_the_budget(coupling: Any) -> None:
    """Weights' and biases' gradients sum T N rows; added in order they lose more than the naive evaluation."""
    from lstmcore.config import LSTMConfig
    from lstmcore.registry import get_backend
    from lstmcore_conformance.cases.case import Case
    from lstmcore_conformance.oracle import budgets

    model = LSTMConfig(input_size=128, hidden_size=128, coupling=coupling)
    case = Case(name="many rows", model=model, precision="float32", steps=100, batch=64)
    data, kernel = case.data, get_backend("numba").compile(model, "float32")
    weights = kernel.pack(data.parameters)
    tape = kernel.forward(weights, data.x, data.state, record=True).tape
    gradients = kernel.backward(weights, tape, data.dy, data.dstate).parameters
    expected = budgets.gradients(case)
    for name, value in gradients.items():
        assert budgets.measure(f"d_{name}", value, expected[f"d_{name}"]).share <= 1, name


def test_a_row_of_nan_does_not_reach_the_next_call() -> None:
    """A row of NaN leaves nothing in the memory of the next call."""
    lstm = LSTM(5, 7, proj_size=3, backend="numba", seed=0)
    x = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
    expected = lstm(x)[0]
    lstm(np.full_like(x, np.nan))
    np.testing.assert_array_equal(lstm(x)[0], expected)


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_a_wrong_number_of_threads_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.runtime.thread_pool import thread_count

    monkeypatch.setenv("LSTMCORE_NUM_THREADS", text)
    with pytest.raises(ValueError, match=r"LSTMCORE_NUM_THREADS: expected a whole number of at least 1; got"):
        thread_count()


def test_bfloat16_is_declared_where_numpy_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore.backend import UnsupportedError
    from lstmcore.config import LSTMConfig
    from lstmcore_numba.kernel import NumbaBackend

    assert "bfloat16" in NumbaBackend().capabilities().precisions
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # as where it is not installed
    capabilities = NumbaBackend().capabilities()
    assert capabilities.precisions == {"float64", "float32", "float16"}
    assert "pip install ml_dtypes" in capabilities.reasons["bfloat16"]
    with pytest.raises(UnsupportedError, match="pip install ml_dtypes"):
        NumbaBackend().compile(LSTMConfig(input_size=2, hidden_size=3), "bfloat16")
    y, _ = LSTM(3, 4, dtype="float16", backend="numba", seed=0)(np.ones((2, 1, 3), np.float16))
    assert y.dtype == np.float16


def test_bfloat16_is_stored_and_the_cell_is_not() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    lstm = LSTM(5, 7, dtype="bfloat16", backend="numba", seed=0)
    x = np.random.default_rng(0).normal(size=(6, 3, 5)).astype(ml_dtypes.bfloat16)
    y, (h, c), tape = lstm.record(x)
    gradients = lstm.backward(tape, np.ones_like(y))
    stored = [y, h, gradients.x, gradients.state[0], *gradients.parameters.values()]
    assert {array.dtype for array in stored} == {np.dtype(ml_dtypes.bfloat16)}
    assert {c.dtype, gradients.state[1].dtype} == {np.dtype(np.float32)}
    # The same parameters in float32: h differs by a rounding a step, the cell is not rounded itself.
    exact = LSTM(5, 7, backend="numba")
    exact.load_parameters({name: array.astype(np.float32) for name, array in lstm.parameters.items()})
    other, (_, other_c) = exact(x.astype(np.float32))
    assert 0 < np.abs(y.astype(np.float32) - other).max() < 2**-7
    assert 0 < np.abs(c - other_c).max() < 2**-7
    assert (c != c.astype(ml_dtypes.bfloat16).astype(np.float32)).any()


def test_without_the_compiler_the_backend_is_unavailable(run_python: Callable[..., tuple[str, str]]) -> None:
    """Where Numba is told to compile nothing, the backend says so, and `auto` takes another one."""
    code = """
from lstmcore import LSTM, registry
reasons = {record.name: record.reason for record in registry.backends()}
print(reasons["numba"])
print(LSTM(2, 3).backend.name)
try:
    LSTM(2, 3, backend="numba")
except registry.UnavailableError as error:
    print(error)
"""
    reason = "NUMBA_DISABLE_JIT tells Numba to compile nothing, and this backend is compiled code; unset it"
    lines = [reason, "numpy", f"backend 'numba' cannot run here: {reason}"]
    assert run_python(code, NUMBA_DISABLE_JIT="1")[0].splitlines() == lines
    assert run_python(code, NUMBA_DISABLE_JIT="0")[0].splitlines() == ["", "numba"]
