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


@pytest.fixture
def passes_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small stacks run in wavefronts, whose threads are waited for, in memory of NaN; the threads of each."""
    from lstmcore_numba import time_loop as passes
    from lstmcore_numba import workspace as rooms
    from lstmcore_numba.runtime import buffer_pool as memory
    from lstmcore_numba.runtime import thread_pool as threads

    monkeypatch.setattr(threads, "WORTH", 1)
    monkeypatch.setattr(threads, "_SPEED", 1e2)
    monkeypatch.setattr(threads, "_LONGEST", 2.0)
    for name, value in {"_WORTH": 1, "_STEP": 10**12, "_AHEAD": 2, "_RUNS": 1}.items():
        monkeypatch.setattr(rooms, f"_WAVE{name}", value)
    monkeypatch.setattr(rooms, "_STEP_WORTH", 1)

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        return np.full(shape, np.nan, dtype)

    monkeypatch.setattr(memory, "empty", empty)
    run: list[int] = []

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(team: Any, *args: Any) -> None:
            run.append(len(team))
            real(team, *args)

        return call

    monkeypatch.setattr(passes, "forward_wave", counted(passes.forward_wave))
    return run


def results(case: StackCase, dtype: str, threads: int) -> list[Any]:
    """What every kind of call returns."""
    from lstmcore_numba.kernel import NumbaBackend

    kernel = NumbaBackend(threads=threads).compile_stack(case.stack, dtype)
    weights = kernel.pack(case.parameters)
    plain = kernel.forward(weights, case.x, case.state)
    some = kernel.forward(weights, case.x, None, lengths=case.lengths, masks=case.masks)
    recorded = kernel.forward(
        weights, case.x, case.state, lengths=case.lengths, masks=case.masks, record=True, out=np.empty_like(some.y)
    )
    found = kernel.backward(weights, recorded.tape, case.dy, case.dstate)
    forward = [part for one in (plain, some, recorded) for part in (one.y, *one.state)]
    return [*forward, found.x, *found.state, *found.parameters.values()]


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
    layers: int, batch: int, dtype: str, switches: dict[str, Any], passes_run: list[int]
) -> None:
    """A wavefront gives the bits of layers in turn, for any number of threads."""
    stack = StackConfig.make(LSTMConfig(input_size=5, hidden_size=37, **switches), num_layers=layers, dropout=0.3)
    case = make_stack_case(stack, steps=17, batch=batch, dtype=dtype)
    in_turn = results(case, dtype, 1)
    assert not passes_run
    for count in (2, 3, 7):
        same(in_turn, results(case, dtype, count))
    assert len(passes_run) == sum(3 * -(-layers // count) for count in (2, 3, 7)), "some calls ran no wavefront"
    assert 2 in passes_run
    assert 3 in passes_run


@pytest.mark.parametrize("come", [0, 1, 2])
def test_threads_that_do_not_come_are_not_waited_for(
    come: int, passes_run: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lstmcore_numba.runtime.thread_pool import _Team

    case = make_stack_case(
        StackConfig.make(LSTMConfig(input_size=5, hidden_size=37), num_layers=5), steps=17, batch=3, dtype="float32"
    )
    in_turn = results(case, "float32", 1)
    take = _Team.take
    monkeypatch.setattr(_Team, "take", lambda team, wanted, limit=None: take(team, min(wanted, come), limit))
    found: list[list[Any]] = []
    caller = threading.Thread(target=lambda: found.append(results(case, "float32", 6)), daemon=True)
    caller.start()
    caller.join(60)
    assert found, "threads wait for each other"
    same(in_turn, found[0])
    assert passes_run == [come + 1] * 3


def test_calls_at_the_same_time_do_not_wait_for_each_other(passes_run: list[int]) -> None:
    case = make_stack_case(
        StackConfig.make(LSTMConfig(input_size=5, hidden_size=37), num_layers=3), steps=17, batch=3, dtype="float32"
    )
    in_turn = results(case, "float32", 1)
    found: list[list[Any]] = []
    callers = [
        threading.Thread(target=lambda: found.append(results(case, "float32", 3)), daemon=True) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(found) == len(callers)
    for one in found:
        same(in_turn, one)


def test_the_receipt_tells_of_a_wavefront() -> None:
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
def test_the_suite_with_wavefronts_at_all_sizes(passes_run: list[int]) -> None:
    from lstmcore_conformance import run
    from lstmcore_numba.kernel import NumbaBackend

    report = run(NumbaBackend(threads=3), precisions=["float32"], select="stack")
    assert report.conforms, [(item.check, item.message) for item in report.bad][:3]
    assert passes_run


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
from lstmcore_numba.runtime import buffer_pool as memory
from lstmcore_numba.runtime import thread_pool as threads
from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.kernel import NumbaBackend
from lstmcore_numba.runtime.worker_loop import call_part

@compiled
def at_once(address, least, looks):
    pass

@compiled
def last_first(team, work):
    function, arguments = work
    for part in range(len(team) - 1, -1, -1):
        call_part(function, arguments, part, len(team))

if not {wait}:
    forward = import_module("lstmcore_numba.time_loop.forward")
    forward.wait_for, forward.side_by_side = at_once, last_first
threads._SPEED, threads._LONGEST = 1e2, 2.0
memory.empty = lambda shape, dtype: np.full(shape, np.nan, dtype)
lstm = LSTM(64, 64, num_layers=2, backend=NumbaBackend(threads=2), seed=0)
x = np.ones((100, 4, 64), np.float32)
print(all(np.isfinite(lstm(x)[0]).all() for _ in range(100)))  # with threads, which come early or late
"""
    given = {**os.environ} if wait else {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)
    assert done.stdout == f"{wait}\n", done.stderr
