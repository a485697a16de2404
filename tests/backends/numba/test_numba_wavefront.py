"""Layers of a stack in a wavefront, in the Numba backend."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.config import LSTMConfig, StackConfig
from stacks import StackCase, make_stack_case

ALL = {
    "peephole": True,
    "layer_norm": True,
    "zoneout_hidden": 0.2,
    "zoneout_cell": 0.1,
    "recurrent_dropout": 0.25,
    "proj_size": 11,
}


def eager_backend(threads: int) -> Any:
    """Return a backend that runs small stacks in wavefronts, and waits for its threads."""
    from lstmcore_numba.kernel import NumbaBackend
    from lstmcore_numba.tuning import Tuning

    tuning = Tuning(
        thread_work=1,
        work_per_second=1e2,
        wake_seconds=2.0,
        load_pause=0,
        barrier_work=1,
        wavefront_work=1,
        wavefront_step_work=10**12,
        wavefront_lag=2,
        wavefront_lags=1,
    )
    return NumbaBackend(threads=threads, tuning=tuning)


@pytest.fixture
def wavefronts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of threads of each wavefront. New memory is filled with NaN."""
    from lstmcore_numba import time_loop
    from lstmcore_numba.runtime import buffer_pool

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        return np.full(shape, np.nan, dtype)

    monkeypatch.setattr(buffer_pool, "empty", empty)
    run: list[int] = []

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(threads: Any, *args: Any) -> None:
            run.append(1 + len(threads) // 2)  # see run_parts
            real(threads, *args)

        return call

    monkeypatch.setattr(time_loop, "forward_wavefront", counted(time_loop.forward_wavefront))
    return run


def results(case: StackCase, dtype: str, threads: int) -> list[Any]:
    """Return the results of every kind of call."""
    kernel = eager_backend(threads).compile_stack(case.stack, dtype)
    weights = kernel.pack(case.parameters)
    plain = kernel.forward(weights, case.x, case.state)
    some = kernel.forward(weights, case.x, None, lengths=case.lengths, masks=case.masks)
    recorded = kernel.forward(
        weights, case.x, case.state, lengths=case.lengths, masks=case.masks, record=True, out=np.empty_like(some.y)
    )
    gradients = kernel.backward(weights, recorded.tape, case.dy, case.dstate)
    forward = [part for one in (plain, some, recorded) for part in (one.y, *one.state)]
    return [*forward, gradients.x, *gradients.state, *gradients.parameters.values()]


def same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("layers", "batch", "dtype", "switches"),
    [
        (2, 3, "float32", {}),
        (2, 1, "float32", {}),
        (3, 9, "float32", {}),
        (5, 4, "float64", {}),
        (3, 5, "float32", ALL),
        (5, 2, "float64", {"recurrence": "cell", "coupling": "input_from_forget"}),
        (3, 8, "float64", {"proj_size": 7}),
    ],
    ids=str,
)
def test_the_same_bits_as_layers_in_turn(
    layers: int, batch: int, dtype: str, switches: dict[str, Any], wavefronts: list[int]
) -> None:
    """A wavefront gives the bits of layers in turn, for any number of threads."""
    stack = StackConfig.make(LSTMConfig(input_size=5, hidden_size=37, **switches), num_layers=layers, dropout=0.3)
    case = make_stack_case(stack, steps=17, batch=batch, dtype=dtype)
    in_turn = results(case, dtype, 1)
    assert not wavefronts
    for count in (2, 3, 7):
        same(in_turn, results(case, dtype, count))
    assert len(wavefronts) == sum(3 * -(-layers // count) for count in (2, 3, 7)), "some calls ran no wavefront"
    assert 2 in wavefronts
    assert 3 in wavefronts


@pytest.mark.parametrize("come", [0, 1, 2])
def test_a_wavefront_does_not_wait_for_absent_threads(
    come: int, wavefronts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lstmcore_numba.runtime.thread_pool import ThreadPool

    case = make_stack_case(
        StackConfig.make(LSTMConfig(input_size=5, hidden_size=37), num_layers=5), steps=17, batch=3, dtype="float32"
    )
    in_turn = results(case, "float32", 1)
    acquire = ThreadPool.acquire
    monkeypatch.setattr(ThreadPool, "acquire", lambda pool, wanted, limit=None: acquire(pool, min(wanted, come), limit))
    outputs: list[list[Any]] = []
    caller = threading.Thread(target=lambda: outputs.append(results(case, "float32", 6)), daemon=True)
    caller.start()
    caller.join(60)
    assert outputs, "threads wait for each other"
    same(in_turn, outputs[0])
    assert wavefronts == [come + 1] * 3


def test_calls_at_the_same_time_do_not_wait_for_each_other(wavefronts: list[int]) -> None:
    case = make_stack_case(
        StackConfig.make(LSTMConfig(input_size=5, hidden_size=37), num_layers=3), steps=17, batch=3, dtype="float32"
    )
    in_turn = results(case, "float32", 1)
    outputs: list[list[Any]] = []
    callers = [
        threading.Thread(target=lambda: outputs.append(results(case, "float32", 3)), daemon=True) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(outputs) == len(callers)
    for one in outputs:
        same(in_turn, one)


def test_the_receipt_names_a_wavefront() -> None:
    from lstmcore_numba.kernel import NumbaBackend

    def told(threads: int, steps: int, batch: int, **switches: Any) -> set[bool]:
        stack = StackConfig.make(LSTMConfig(input_size=64, hidden_size=64), num_layers=3, **switches)
        kernel = NumbaBackend(threads=threads).compile_stack(stack, "float32")
        return {"layers in a wavefront" in receipt.path for receipt in kernel.receipts(steps, batch)}

    assert told(2, 100, 4) == {True}
    assert told(1, 100, 4) == {False}
    assert told(2, 1, 4) == {False}
    assert told(2, 100, 512) == {False}
    assert told(2, 100, 4, bidirectional=True) == {False}


@pytest.mark.slow
def test_the_suite_with_wavefronts_at_all_sizes(wavefronts: list[int]) -> None:
    from lstmcore_conformance import run

    report = run(eager_backend(3), precisions=["float32"], select="stack")
    assert report.conforms, [(item.check, item.message) for item in report.bad][:3]
    assert wavefronts


@pytest.mark.slow
@pytest.mark.parametrize("wait", [True, False])
def test_a_layer_that_does_not_wait_is_caught(wait: bool, tmp_path: Path) -> None:
    """Numbers are wrong where layers do not wait and the last one runs first.

    One thread runs them all then, so that their order is known. The code is kept where no other process looks.
    """
    code = f"""
from importlib import import_module
import numpy as np
from lstmcore import LSTM
from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.kernel import NumbaBackend
from lstmcore_numba.runtime import buffer_pool
from lstmcore_numba.runtime.tasks import call_task
from lstmcore_numba.tuning import Tuning

@compiled
def at_once(address, least, spin_limit):
    pass

@compiled
def last_first(threads, task):
    function, arguments = task
    parts = 1 + len(threads) // 2
    for part in range(parts - 1, -1, -1):
        call_task(function, arguments, part, parts)

if not {wait}:
    forward = import_module("lstmcore_numba.time_loop.forward")
    forward.wait_for, forward.run_parts = at_once, last_first
buffer_pool.empty = lambda shape, dtype: np.full(shape, np.nan, dtype)
backend = NumbaBackend(threads=2, tuning=Tuning(work_per_second=1e2, wake_seconds=2.0, load_pause=0))
lstm = LSTM(64, 64, num_layers=2, backend=backend, seed=0)
x = np.ones((100, 4, 64), np.float32)
print(all(np.isfinite(lstm(x)[0]).all() for _ in range(100)))  # with threads, which come early or late
"""
    given = {**os.environ} if wait else {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)
    assert done.stdout == f"{wait}\n", done.stderr
