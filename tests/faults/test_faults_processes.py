"""Threads, forks, workers and the end of the interpreter: every backend gives the same bits, and nothing hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM, UnsupportedError, registry

THREADS = 16
BACKENDS = [record.name for record in registry.backends() if record.available]
#: Packages that start threads of their own: a process which has used them must not fork.
NO_FORK = ("torch", "jax", "onnxruntime", "openvino", "cupy")
FORKING = [name for name in BACKENDS if name.partition("-")[0] not in NO_FORK]
#: Where the test before used jax; the children here do not.
JAX_WARNS = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


def made(backend: str) -> LSTM:
    dtype = "float64" if backend == "reference" else "float32"
    return LSTM(5, 12, bidirectional=True, seed=0, backend=backend, dtype=dtype)


def inputs(lstm: LSTM, count: int) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal((4 + k % 5, 1 + k % 3, 5)).astype(lstm.precision.storage) for k in range(count)]


def outputs(lstm: LSTM, x: Any) -> list[Any]:
    """Return the values, and the gradients where the backend has them."""
    y, state = lstm(x)
    found = [y, *state]
    with contextlib.suppress(UnsupportedError):
        y, state, tape = lstm.record(x)
        gradients = lstm.backward(tape, y, state)
        found += [gradients.x, *gradients.parameters.values()]
    return found


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_threads_give_the_same_bits(backend: str) -> None:
    """All threads call one object at once, with inputs of several sizes."""
    lstm = made(backend)
    xs = inputs(lstm, 64)
    expected = [outputs(lstm, x) for x in xs]
    start = threading.Barrier(THREADS)

    def call(number: int) -> list[bool]:
        start.wait()
        return [same(outputs(lstm, xs[k]), expected[k]) for k in range(number % 4, 64, 4)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [good for part in pool.map(call, range(THREADS)) for good in part]
    assert len(found) == 16 * THREADS
    assert all(found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@JAX_WARNS
@pytest.mark.parametrize("backend", FORKING)
def test_workers_of_a_pre_fork_server_give_the_same_bits(backend: str) -> None:
    """The parent loads and warms the model, as gunicorn with --preload does, and serves while it forks."""
    lstm = made(backend)
    xs = inputs(lstm, 8)
    expected = [outputs(lstm, x) for x in xs]
    busy = threading.Event()

    def serve() -> None:
        while not busy.is_set():
            outputs(lstm, xs[0])

    thread = threading.Thread(target=serve)
    thread.start()
    children = []
    try:
        for _ in range(6):
            child = os.fork()
            if child == 0:
                signal.alarm(120)  # against a hang: the child ends by SIGALRM
                good = all(same(outputs(lstm, x), values) for x, values in zip(xs, expected, strict=True))
                os._exit(0 if good else 1)
            children.append(child)
    finally:
        busy.set()
        thread.join()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6


def answer(lstm: LSTM, x: Any) -> list[Any]:
    return outputs(lstm, x)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_a_pool_give_the_same_bits(method: str) -> None:
    lstm = made("numpy")
    xs = inputs(lstm, 6)
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        found = list(pool.map(answer, [lstm] * 6, xs))
    assert all(same(one, outputs(lstm, x)) for one, x in zip(found, xs, strict=True))


@pytest.mark.parametrize("engine", ["loky", "threading"])
def test_workers_of_joblib_give_the_same_bits(engine: str) -> None:
    joblib = pytest.importorskip("joblib")
    lstm = made("numpy")
    xs = inputs(lstm, 6)
    found = joblib.Parallel(n_jobs=2, backend=engine)(joblib.delayed(answer)(lstm, x) for x in xs)
    assert all(same(one, outputs(lstm, x)) for one, x in zip(found, xs, strict=True))


@JAX_WARNS
def test_workers_of_a_data_loader_give_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    lstm = made("numpy")
    xs = inputs(lstm, 6)
    loader = torch.utils.data.DataLoader(
        xs, batch_size=None, num_workers=2, collate_fn=lambda x: outputs(lstm, np.asarray(x))
    )
    for found, x in zip(loader, xs, strict=True):
        assert same([np.asarray(value) for value in found], outputs(lstm, x))


AT_EXIT = """
import threading, time, sys
import numpy as np
from lstmcore import LSTM
lstm, x = LSTM(5, 12, seed=0, backend={backend!r}, dtype={dtype!r}), np.ones((40, 3, 5), {dtype!r})
expected = lstm(x)[0]
begun = threading.Barrier(5)
def call():
    begun.wait()
    while True:
        lstm(x)
for _ in range(4):
    threading.Thread(target=call, daemon=True).start()
begun.wait()
print("ending", flush=True)
"""


@pytest.mark.parametrize("backend", FORKING)
def test_the_interpreter_ends_while_threads_compute(backend: str) -> None:
    dtype = "float64" if backend == "reference" else "float32"
    code = AT_EXIT.format(backend=backend, dtype=dtype)
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stdout) == (0, "ending\n"), done.stderr
        assert "rror" not in done.stderr
