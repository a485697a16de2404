"""What is particular to the Numba backend; the conformance suite has the rest."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.precision import numpy_dtype

DTYPES = ["float32", "float64"]


#: Bytes of vectors. Processors without AVX-512 have the narrower ones.
WIDTHS = [16, 32, 64]


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    """Return each width of vectors that the machine has."""
    from lstmcore_numba.codegen.emitter import vector_bytes

    found: int = request.param
    if found > vector_bytes():
        pytest.skip(f"this machine has vectors of {vector_bytes()} bytes")
    return found


def on_arrays(function: Callable[[Any], Any], dtype: str, width: int) -> Callable[[Any], Any]:
    """Return a function on arrays that calls `function` on vectors of `width` bytes."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    from lstmcore_numba.codegen.emitter import INDEX, Emitter
    from lstmcore_numba.codegen.step_compiler import machine

    module = ir.Module("test")
    module.triple = llvm.get_process_triple()
    code = ir.Function(module, ir.FunctionType(ir.VoidType(), [INDEX] * 3), "f")
    builder = ir.IRBuilder(code.append_basic_block())
    e = Emitter(builder, dtype, width // np.dtype(dtype).itemsize)
    with e.loop(e.index(0), code.args[2], []) as loop:
        place = builder.mul(loop.i, e.index(width))
        e.store(function(e.load(e.address(code.args[0], place))), e.address(code.args[1], place))
    builder.ret_void()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine())
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(engine.get_function_address("f"))

    def run(x: Any, engine: Any = engine) -> Any:
        whole = np.zeros(-(-len(x) * x.itemsize // width) * width // x.itemsize, dtype)
        whole[: len(x)] = x
        y = np.empty_like(whole)
        call(whole.ctypes.data, y.ctypes.data, whole.nbytes // width)
        return y[: len(x)]

    return run


#: Name -> the function in long double, and where it is tried.
FUNCTIONS = {
    "expm1": (np.expm1, (-30, 30)),
    "tanh": (np.tanh, (-30, 30)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), (-80, 80)),
    "log1p": (np.log1p, (0, 1)),
}


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="long double is no wider than double here")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_right_to_two_epsilons(name: str, dtype: str, width: int) -> None:
    from lstmcore_numba.codegen import gate_functions as functions

    right, (low, high) = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(low, high, 4000), rng.uniform(0, 1, 1000) * 10.0 ** rng.uniform(-30, 0, 1000)])
    x = x.astype(dtype)
    got, want = on_arrays(getattr(functions, name), dtype, width)(x), right(x.astype(np.longdouble))
    assert np.max(np.abs(got - want) / np.abs(want)) < 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_special_numbers(dtype: str, width: int) -> None:
    from lstmcore_numba.codegen import gate_functions as functions

    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30], dtype)
    np.testing.assert_array_equal(on_arrays(functions.tanh, dtype, width)(x), np.tanh(x))
    np.testing.assert_array_equal(
        on_arrays(functions.sigmoid, dtype, width)(x), np.array([np.nan, 1, 0, 0.5, 0.5, 1, 0], dtype)
    )


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_vectors_are_rounded_as_arrays_are(storage: str, width: int) -> None:
    """A vector that is rounded to a storage dtype has the bits of an array that is converted to it and back."""
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    short = np.arange(2**16, dtype=np.uint32) << 16  # every bfloat16, and the middle between each and the next one
    x = np.concatenate([bits, short, short | 0x8000]).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(numpy_dtype(storage)).astype(np.float32)
    np.testing.assert_array_equal(on_arrays(lambda v: v.rounded_to(storage), "float32", width)(x), want)


SIZES = [(7, 1, 5, 600), (6, 16, 64, 128), (6, 13, 96, 260), (5, 64, 64, 96)]


@pytest.fixture
def eager_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small models are shared too, and threads waited for; the threads that were taken, call by call."""
    from lstmcore_numba import workspace as rooms
    from lstmcore_numba.runtime import thread_pool as threads

    monkeypatch.setattr(threads, "WORTH", 1000)  # so that these small models are shared too
    monkeypatch.setattr(rooms, "_STEP_WORTH", 1000)
    monkeypatch.setattr(rooms, "_BESIDE_WORTH", 1000)
    used: list[int] = []
    taken = threads._Team.take

    def take(team: Any, wanted: int, limit: int | None = None) -> Any:
        found = taken(team, wanted, limit)
        used.append(len(found))
        return found

    monkeypatch.setattr(threads._Team, "take", take)
    monkeypatch.setattr(threads, "_SPEED", 1e2)  # however long it takes a thread to wake up
    monkeypatch.setattr(threads, "_LONGEST", 1.0)
    return used


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_number_of_threads_changes_no_bit(
    shape: tuple[int, int, int, int],
    bidirectional: bool,
    dtype: str,
    eager_threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, batch, width, hidden = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, batch, width)).astype(numpy_dtype(dtype))
    dy = rng.normal(size=(steps, batch, hidden * (1 + bidirectional))).astype(numpy_dtype(dtype))
    found = []
    for count in (1, 2, 3):
        monkeypatch.setenv("LSTMCORE_NUM_THREADS", str(count))
        lstm = LSTM(width, hidden, bidirectional=bidirectional, dtype=dtype, backend="numba", seed=0)
        y, (h, c), tape = lstm.record(x)
        gradients = lstm.backward(tape, dy)
        found.append([lstm(x)[0], y, h, c, gradients.x, *gradients.parameters.values()])
    assert 1 in eager_threads
    assert 2 in eager_threads
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [12, 14, 20])
def test_threads_that_share_few_rows_change_no_bit(
    batch: int, dtype: str, eager_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(4, batch, 40)).astype(numpy_dtype(dtype))
    found = []
    for count in (1, 2, 3):
        monkeypatch.setenv("LSTMCORE_NUM_THREADS", str(count))
        # Rows, whose products are cut along 150 values.
        lstm = LSTM(40, 200, proj_size=150, dtype=dtype, backend="numba", seed=0)
        y, _, tape = lstm.record(x)
        found.append([y, lstm.backward(tape, y).x])
    assert sum(eager_threads) > 0
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_thread_that_waits_takes_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.codegen.numba_compiler import compiled
    from lstmcore_numba.runtime import thread_pool as threads
    from lstmcore_numba.runtime.worker_loop import outlined, side_by_side

    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "2")

    def inner(part: int, parts: int, found: Any) -> None:
        found[part] = 10 * parts + part

    run_part = compiled(inner)

    def outer(team: Any, found: Any) -> None:
        side_by_side(team, outlined(run_part, (found,)))

    run = compiled(outer)
    found = np.zeros(2, np.int64)
    run(threads.ALONE, found)
    assert found.tolist() == [10, 0]
    end = time.monotonic() + 600  # ends a hang alone: a busy machine gives the thread a processor at some time
    while found.tolist() != [20, 21] and time.monotonic() < end:
        found[:] = 0
        with threads.Threads(2, 1e12) as team:
            run(team, found)
        assert found.tolist() in ([10, 0], [20, 21])
    assert found.tolist() == [20, 21]


def test_a_call_may_be_limited_to_some_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.kernel import NumbaBackend
    from lstmcore_numba.runtime import thread_pool as threads

    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "3")
    asked: list[int] = []
    taken = threads._Team.take

    def take(team: Any, wanted: int, limit: int | None = None) -> Any:
        asked.append(wanted)
        return taken(team, wanted, limit)

    monkeypatch.setattr(threads._Team, "take", take)
    x = np.random.default_rng(0).normal(size=(20, 64, 64)).astype(np.float32)
    LSTM(64, 96, backend=NumbaBackend(), seed=0)(x)
    assert asked == [2]
    LSTM(64, 96, backend=NumbaBackend(threads=2), seed=0)(x)
    assert asked == [2, 1]
    LSTM(64, 96, backend=NumbaBackend(threads=1), seed=0)(x)
    assert asked == [2, 1]


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)])
def test_a_wrong_limit_of_threads_is_an_error(threads: Any, error: type[Exception]) -> None:
    from lstmcore_numba.kernel import NumbaBackend

    with pytest.raises(error, match=r"^threads: expected"):
        NumbaBackend(threads)


def test_memory_is_used_again_and_never_while_it_is_in_use() -> None:
    from lstmcore_numba.runtime import buffer_pool as memory

    pool = memory._Pool()
    dtype = np.dtype(np.float32)
    size = 1 << 20

    def array() -> Any:
        lease = memory._Lease(pool, pool.take(4 * size))
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
    assert pool.size == 0


def test_memory_that_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.runtime import buffer_pool as memory

    monkeypatch.setattr(memory, "_MOST", 3 << 20)
    pool = memory._Pool()
    leases = [memory._Lease(pool, pool.take(1 << 20)) for _ in range(5)]
    assert pool.size == 0
    leases.clear()
    assert pool.size == 3 << 20


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
    found = kernel.backward(weights, tape, data.dy, data.dstate).parameters
    expected = budgets.gradients(case)
    for name, value in found.items():
        assert budgets.measure(f"d_{name}", value, expected[f"d_{name}"]).share <= 1, name


def test_a_row_of_nan_does_not_reach_the_next_call() -> None:
    """A row of NaN leaves nothing in the memory of the next call."""
    lstm = LSTM(5, 7, proj_size=3, backend="numba", seed=0)
    x = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
    wanted = lstm(x)[0]
    lstm(np.full_like(x, np.nan))
    np.testing.assert_array_equal(lstm(x)[0], wanted)


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_a_wrong_number_of_threads_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.runtime.thread_pool import thread_count

    monkeypatch.setenv("LSTMCORE_NUM_THREADS", text)
    with pytest.raises(ValueError, match=r"LSTMCORE_NUM_THREADS: expected a whole number of at least 1; got"):
        thread_count()


def test_threads_that_others_have_taken_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.runtime import thread_pool as threads

    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "2")
    team = threads._team(os.getpid())
    taken = team.take(5)
    try:
        assert len(taken) == 1
        with threads.Threads(8, 1e12) as free:
            assert len(free) == 1  # how often to look for threads, and none of these
    finally:
        team.give(taken)
    with threads.Threads(8, 1e12) as free:
        assert len(free) == 2


def run_python(code: str, **env: str) -> tuple[str, str]:
    """Return what a new process writes to stdout and to stderr.

    It finds the code that the tests before it compiled, and keeps its own there, unless `env` names another folder.
    """
    given = {**os.environ, **env}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def narrower(width: int) -> int:
    """Return each width below the machine's own, at which the conformance suite runs in any case."""
    from lstmcore_numba.codegen.emitter import vector_bytes

    if width == vector_bytes():
        pytest.skip("the session conformance(backend='numba') runs the whole suite at this width")
    return width


def test_the_width_may_be_asked_for(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.codegen.emitter import vector_bytes

    monkeypatch.setenv("LSTMCORE_VECTOR_BYTES", str(width))
    assert vector_bytes() == width


def test_products_at_a_narrower_width(narrower: int) -> None:
    """Products are exact at each width and dtype, for every number of rows and vectors that a tile can have.

    Rows go to two tiles and one more. Values are small whole numbers, whose sums are exact.
    """
    code = """
import numpy as np
from lstmcore_numba.gemm.vector import BYTES, PANEL, ROWS, product
rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for rows in range(1, 2 * ROWS + 2):
        for inner in (1, 2, 7, 64, 301):
            a = rng.integers(-9, 10, (rows, inner)).astype(dtype)
            for vectors in (1, 2, 3, 4, 6):
                b = rng.integers(-9, 10, (inner, vectors, BYTES // a.itemsize)).astype(dtype)
                packed = np.concatenate([b[:, k : k + PANEL].ravel() for k in range(0, vectors, PANEL)])
                c = np.ones((rows, b[0].size), dtype)
                from_a, from_b, to_c = (array.ctypes.data for array in (a, packed, c))
                a_row, c_row = a.strides[0], c.strides[0]
                for fresh, before in ((False, 1), (True, 0)):
                    product(dtype(0), vectors, from_a, a_row, a.itemsize, from_b, to_c, c_row, inner, rows, fresh)
                    np.testing.assert_array_equal(c, before + a @ b.reshape(inner, -1))
print(BYTES)
"""
    assert run_python(code, LSTMCORE_VECTOR_BYTES=str(narrower))[0] == f"{narrower}\n"


@pytest.mark.slow  # such a process keeps no code: four minutes of compiling
def test_the_suite_at_a_narrower_width(narrower: int) -> None:
    """Sizes and switches pass at a narrower width, in each storage dtype that vectors know."""
    code = """
from lstmcore.registry import get_backend
from lstmcore_conformance import run
from lstmcore_numba.gemm.vector import BYTES
select = "forward.sizes or backward.sizes or jvp.sizes or forward.switches or backward.switches"
report = run(get_backend("numba"), precisions=["float32", "float64", "bfloat16"], select=select)
assert report.conforms, (report.verdict, [item.message for item in report.bad][:3])
print(BYTES)
"""
    assert run_python(code, LSTMCORE_VECTOR_BYTES=str(narrower))[0] == f"{narrower}\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_computes_beside_a_busy_parent() -> None:
    """A forked process computes although a thread of its parent held the memory when it forked."""
    code = """
import os, threading
import numpy as np
from lstmcore import LSTM
from lstmcore_numba.runtime import buffer_pool as memory
lstm, x = LSTM(64, 96, backend="numba", seed=0), np.ones((50, 64, 64), np.float32)
wanted = lstm(x)[0]
held, done = threading.Event(), threading.Event()
def hold():
    with memory._POOL.lock:
        held.set()
        done.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(lstm(x)[0], wanted) else 1)
timer = threading.Timer(60, os.kill, (child, 9))
timer.start()
_, status = os.waitpid(child, 0)
timer.cancel()
done.set()
print(os.waitstatus_to_exitcode(status))
"""
    assert run_python(code)[0] == "0\n"


def test_bfloat16_is_declared_where_numpy_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore.backend import UnsupportedError
    from lstmcore.config import LSTMConfig
    from lstmcore_numba.kernel import NumbaBackend

    assert "bfloat16" in NumbaBackend().capabilities().precisions
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # as where it is not installed
    found = NumbaBackend().capabilities()
    assert found.precisions == {"float64", "float32", "float16"}
    assert "pip install ml_dtypes" in found.reasons["bfloat16"]
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


def test_a_width_that_the_machine_has_not_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.codegen.emitter import vector_bytes

    monkeypatch.setenv("LSTMCORE_VECTOR_BYTES", "128")
    with pytest.raises(ValueError, match="LSTMCORE_VECTOR_BYTES: expected 16, 32 or 64, at most"):
        vector_bytes()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Return what two processes wrote that begin, one after the other, with the same empty folder for code."""
    folder = tmp_path_factory.mktemp("code")
    code = """
import json
import numpy as np
from lstmcore import LSTM
from lstmcore_numba import time_loop as passes
for units in (4, 5):
    lstm = LSTM(3, units, backend="numba", seed=0)
    for _ in range(2):
        lstm(np.zeros((2, 1, 3), np.float32))
stats = [one.stats for one in (passes.forward, passes.forward_again)]
print(json.dumps([[sum(one.cache_hits.values()), sum(one.cache_misses.values())] for one in stats]))
"""
    return [run_python(code, NUMBA_CACHE_DIR=str(folder)) for _ in range(2)]


def test_a_second_process_finds_the_code_on_the_disk(two_processes: list[tuple[str, str]]) -> None:
    assert [json.loads(out) for out, _ in two_processes] == [[[0, 1], [0, 1]], [[1, 0], [1, 0]]]


def test_only_the_first_process_says_that_it_compiles(two_processes: list[tuple[str, str]]) -> None:
    """One line says it, although several functions are compiled, one of them in a later call."""
    told = "lstmcore: compiling for this processor, which takes some seconds\n"
    assert [err for _, err in two_processes] == [told, ""]


def test_where_nothing_can_be_kept_code_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.codegen import numba_compiler as jit

    plain = jit.njit

    def refusing(cache: bool = False, **given: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return plain(**given)

    monkeypatch.setattr(jit, "njit", refusing)
    assert jit.compiled(lambda x: x + 1)(2) == 3


def test_chains_stand_side_by_side_and_memory_in_its_order() -> None:
    from llvmlite import ir

    from lstmcore_numba.codegen.instruction_order import spread_chains

    number, place = ir.DoubleType(), ir.PointerType()
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [place, place, ir.IntType(64)]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    one, other, address = function.args
    same_place = builder.inttoptr(builder.add(address, address), place, name="same_place")
    old = builder.load(same_place, typ=number, name="old")
    chains = []
    for name in ("a", "b"):
        value = old
        for k in range(4):
            value = builder.fadd(value, ir.Constant(number, 1.0), name=f"{name}{k}")
        chains.append(value)
    early = builder.store(ir.Constant(number, 2.0), one)
    after = builder.load(one, typ=number, name="after")
    middle = builder.store(chains[0], other)
    last = builder.store(builder.fadd(after, chains[1], name="sum"), other)
    builder.ret_void()
    spread_chains(function)
    order = function.entry_basic_block.instructions
    names = [one.name for one in order if one.name and one.name[0] in "ab" and one.name != "after"]
    assert names == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]
    places = [order.index(one) for one in (old, early, after, middle, last)]
    assert places == sorted(places)
    assert order[-1].opname == "ret void"


def test_code_that_is_kept_is_of_all_files(tmp_path: Path) -> None:
    """A function's own file is not enough: the code of what it calls is kept with it."""
    from numba.core.caching import IndexDataCacheFile

    from lstmcore_numba import time_loop as passes
    from lstmcore_numba.codegen import numba_compiler as jit

    stamp = passes.forward._cache._cache_file._source_stamp
    assert stamp[1] == jit.source_stamps(Path(jit.__file__).parents[1])
    assert {os.path.join("gemm", "vector.py"), os.path.join("time_loop", "forward.py"), "packing.py"} <= {
        name for name, *_ in stamp[1]
    }

    first, second = tmp_path / "one.py", tmp_path / "rooms" / "two.py"
    second.parent.mkdir()
    first.write_text("a = 1")
    second.write_text("b = 2")
    before = jit.source_stamps(tmp_path)
    IndexDataCacheFile(str(tmp_path), "f", ("own", before)).save("key", b"code")
    assert IndexDataCacheFile(str(tmp_path), "f", ("own", jit.source_stamps(tmp_path))).load("key") == b"code"
    second.write_text("b = 30")
    assert IndexDataCacheFile(str(tmp_path), "f", ("own", jit.source_stamps(tmp_path))).load("key") is None


def test_masks_of_any_order_share_code() -> None:
    """Masks are copied in C order, since each order of an array has a type and code of its own."""
    from lstmcore.backend import Masks
    from lstmcore.config import LSTMConfig
    from lstmcore_numba.packing import Layout, own_masks

    recurrent, steps = (np.asfortranarray(np.random.default_rng(0).random(shape)) for shape in ((3, 4), (2, 3, 4)))
    layout = Layout(LSTMConfig(input_size=2, hidden_size=4), np.dtype(np.float32))
    own = own_masks(layout, Masks(recurrent, steps, steps), None)
    assert all(mask.flags.c_contiguous for mask in (own.recurrent, own.hidden, own.cell))
    np.testing.assert_array_equal(own.recurrent, recurrent.astype(np.float32))


def test_models_of_as_many_vectors_share_the_code_of_their_steps() -> None:
    from lstmcore.config import LSTMConfig
    from lstmcore_numba import cell as steps
    from lstmcore_numba.kernel import NumbaBackend

    def codes(hidden_size: int, input_size: int, **switches: Any) -> dict[str, int]:
        config = LSTMConfig(input_size=input_size, hidden_size=hidden_size, **switches)
        kernel = NumbaBackend().compile(config, "float32")
        every = [steps.forward, steps.backward, *((steps.forward_output,) if config.proj_size else ())]
        return {emit.__name__: kernel._code(emit, kernel.no_masks, record=True) for emit in every}

    lanes = NumbaBackend().compile(LSTMConfig(input_size=1, hidden_size=1), "float32").layout.lanes
    most = 3 * lanes
    assert codes(most, 4) == codes(most - 1, 9, reverse=True) == codes(most - lanes + 1, 2, recurrence="cell")
    assert codes(most, 4, proj_size=most - 1) == codes(most - 1, 4, proj_size=most - 2)
    alone = [codes(most, 4, **switches) for switches in ({}, {"peephole": True}, {"bias": False}, {"proj_size": 2})]
    alone += [codes(most + 1, 4), codes(most, 4, proj_size=lanes + 1), codes(most, 4, cell_clip=1.0)]
    forward = [found["forward"] for found in alone]
    assert len(set(forward)) == len(forward)
