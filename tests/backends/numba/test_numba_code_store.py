"""Compiled code on the disk: who finds it, and what happens where it cannot be stored or read."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

RunPython = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def two_processes(run_python: RunPython, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Return what two processes wrote that begin, one after the other, with the same empty folder for code."""
    folder = tmp_path_factory.mktemp("code")
    code = """
import json
import numpy as np
from lstmcore import LSTM
from lstmcore_numba import time_loop
for units in (4, 5):
    lstm = LSTM(3, units, backend="numba", seed=0)
    for _ in range(2):
        lstm(np.zeros((2, 1, 3), np.float32))
stats = [function.stats for function in (time_loop.forward, time_loop.replay_forward)]
print(json.dumps([[sum(function.cache_hits.values()), sum(function.cache_misses.values())] for function in stats]))
"""
    return [run_python(code, NUMBA_CACHE_DIR=str(folder)) for _ in range(2)]


def test_a_second_process_finds_the_code_on_the_disk(two_processes: list[tuple[str, str]]) -> None:
    assert [json.loads(out) for out, _ in two_processes] == [[[0, 1], [0, 1]], [[1, 0], [1, 0]]]


def test_only_the_first_process_says_that_it_compiles(two_processes: list[tuple[str, str]]) -> None:
    """One line says it, although several functions are compiled, one of them in a later call."""
    assert two_processes[0][1].count("\n") == 1
    assert two_processes[0][1].startswith("lstmcore: compiling for this processor, about ")
    assert two_processes[1][1] == ""


@pytest.mark.slow  # compiles all passes once more, in an empty folder
def test_what_was_compiled_ahead_is_found(run_python: RunPython, tmp_path: Path) -> None:
    """After `lstmcore backends --warm numba`, a process that infers and trains compiles no pass."""
    warm = "from lstmcore.cli import main; main(['backends', '--warm', 'numba'], standalone_mode=False)"
    code = """
import numpy as np
from lstmcore import LSTM
for size, batch, options in (
    (5, 1, {}), (7, 6, {}), (130, 1, {"bidirectional": True}), (130, 1, {"num_layers": 2}), (160, 64, {})
):
    lstm = LSTM(size, size, backend="numba", **options)
    x = np.ones((50, batch, size), np.float32)
    for _ in range(2):
        lstm(x)
    y, _, tape = lstm.record(x, lengths=[50] * batch)
    lstm.backward(tape, y)
"""
    out, err = run_python(warm, NUMBA_CACHE_DIR=str(tmp_path))
    assert out.startswith("numba: compiled in ")
    assert err.startswith("lstmcore: compiling")
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) == ("", "")


def test_machine_code_is_made_of_what_is_called_alone(folder: Path) -> None:
    """A function that compiled code calls is stored with its caller. It has code of its own where it is called."""
    from lstmcore_numba.codegen.numba_compiler import compiled

    def add(x: int, y: int) -> int:
        return x + y

    inner = compiled(add)
    outer = compiled(lambda x: inner(x, 1) + inner(x, 2))
    assert outer(4) == 11
    assert len(inner.overloads) == 1  # constants of other values are no other types
    assert len(list(folder.rglob("*.nbc"))) == 1
    assert inner(3, 4) == 7
    assert outer(5) == 13
    assert len(list(folder.rglob("*.nbc"))) == 2
    assert compiled(add)(3, 5) == 8


def test_a_microkernel_is_compiled_once_for_all_its_calls(folder: Path) -> None:
    """Code that two functions call is linked once, and a microkernel is not copied into the products that use it."""
    from numba import types

    from lstmcore_numba.codegen.numba_compiler import compiled, plain_intrinsic
    from lstmcore_numba.gemm.operands import call_microkernel

    @plain_intrinsic
    def store_seven(context: Any, address: Any) -> Any:
        def emit_code(builder: Any, place: Any) -> None:
            builder.store(place.type(7), builder.inttoptr(place, place.type.as_pointer()))

        def emit(target: Any, builder: Any, signature: Any, args: Any) -> Any:
            call_microkernel(builder, "store_seven", emit_code, args)
            return target.get_dummy_value()

        return types.void(types.int64), emit

    leaf = compiled(lambda address: store_seven(address))
    left, right = compiled(lambda address: leaf(address)), compiled(lambda address: (leaf(address), leaf(address)))

    def both(numbers: Any) -> None:
        left(numbers.ctypes.data)
        right(numbers.ctypes.data + 8)

    entry, numbers = compiled(both), np.zeros(3, np.int64)
    entry(numbers)
    assert numbers.tolist() == [7, 7, 0]
    (assembly,) = entry.inspect_asm().values()
    assert assembly.count("\nlstmcore_store_seven:") == 1
    assert assembly.count("lstmcore_store_seven\n") + assembly.count("lstmcore_store_seven, ") >= 3


class Terminal(io.StringIO):
    """A stream that may be a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def happened(*, is_start: bool, module: str = "lstmcore_numba.time_loop.forward") -> Any:
    """Return an event of Numba's compiler."""
    dispatcher = SimpleNamespace(py_func=SimpleNamespace(__module__=module))
    return SimpleNamespace(is_start=is_start, data={"dispatcher": dispatcher})


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_shown_on_a_terminal_alone(is_terminal: bool) -> None:
    from lstmcore_numba.codegen.numba_compiler import CompileMessage
    from lstmcore_numba.codegen.step_compiler import CompileCosts

    stream, now = Terminal(is_terminal), iter(range(100))
    message = CompileMessage(stream, lambda: next(now), CompileCosts())
    message.notify(happened(is_start=True, module="other"))
    assert stream.getvalue() == ""
    for is_start in (True, True, False, False, True, False):  # two calls, the first with a function inside
        message.notify(happened(is_start=is_start))
    line, shown = stream.getvalue().split("\n")
    assert line == "lstmcore: compiling for this processor, some seconds; later processes find the code"
    clear = "\r\x1b[K"
    texts = [f"  {functions} functions in {seconds} s" for functions, seconds in ((0, 1), (0, 2), (1, 3))]
    texts += ["", "  2 functions in 5 s", ""]
    assert shown == (clear + clear.join(texts) if is_terminal else "")


def test_the_message_estimates_from_step_functions() -> None:
    """A processor that takes twice as long for their instructions takes twice as long for the loops."""
    from lstmcore_numba.codegen.numba_compiler import CompileMessage
    from lstmcore_numba.codegen.step_compiler import CompileCosts

    told = []
    for seconds in (0.1, 0.2):
        stream = Terminal(False)
        CompileMessage(stream, lambda: 0.0, CompileCosts(1000, seconds)).notify(happened(is_start=True))
        found = re.fullmatch(
            r".*, about (\d+) s of CPU time for inference and (\d+) s more for .*\n", stream.getvalue()
        )
        assert found is not None
        told.append([int(number) for number in found.groups()])
    assert all(abs(twice - 2 * once) <= 1 for once, twice in zip(*told, strict=True))  # both are rounded
    assert min(told[0]) > 1


def test_step_functions_are_counted() -> None:
    from lstmcore.config import LSTMConfig
    from lstmcore_numba import cell
    from lstmcore_numba.codegen.step_compiler import STEP_COSTS, compile_step
    from lstmcore_numba.codegen.step_emitter import StepVariant, step_config

    before, config = replace(STEP_COSTS), LSTMConfig(input_size=1, hidden_size=99, peephole=True, cell_clip=1.0)
    compile_step(cell.forward, StepVariant(step_config(config, 2), "float32", "float32", 2))
    assert STEP_COSTS.instructions > before.instructions + 100
    assert STEP_COSTS.seconds > before.seconds


def test_without_a_cache_folder_code_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CompileResultCacheImpl

    from lstmcore_numba.codegen import code_store
    from lstmcore_numba.codegen.numba_compiler import compiled

    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    monkeypatch.setattr(code_store, "GIVEN_WARNINGS", set())
    with pytest.warns(RuntimeWarning, match="compiled code is not stored, so every process compiles again"):
        function = compiled(lambda x: x + 1)
    assert function(2) == 3
    assert compiled(lambda x: x + 2)(2) == 4  # the warning is given once


def test_code_that_is_kept_is_of_all_files(tmp_path: Path) -> None:
    """A function's own file is not enough: the code of what it calls is kept with it."""
    from numba.core.caching import IndexDataCacheFile

    from lstmcore_numba import time_loop
    from lstmcore_numba.codegen import code_store

    stamp = time_loop.forward._cache._cache_file._source_stamp
    assert stamp[1] == code_store.source_stamps(Path(code_store.__file__).parents[1])
    assert {os.path.join("gemm", "vector.py"), os.path.join("time_loop", "forward.py"), "packing.py"} <= {
        name for name, *_ in stamp[1]
    }

    first, second = tmp_path / "one.py", tmp_path / "folder" / "two.py"
    second.parent.mkdir()
    first.write_text("a = 1")
    second.write_text("b = 2")
    before = code_store.source_stamps(tmp_path)
    IndexDataCacheFile(str(tmp_path), "f", ("own", before)).save("key", b"code")
    assert IndexDataCacheFile(str(tmp_path), "f", ("own", code_store.source_stamps(tmp_path))).load("key") == b"code"
    second.write_text("b = 30")
    assert IndexDataCacheFile(str(tmp_path), "f", ("own", code_store.source_stamps(tmp_path))).load("key") is None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder in which the functions of a test store their code. No warning has been given."""
    from numba.core import config

    from lstmcore_numba.codegen import code_store

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(code_store, "GIVEN_WARNINGS", set())
    return tmp_path


def _triple(x: int) -> int:
    return 3 * x


def hits(function: Any) -> int:
    """Return how many signatures of a compiled function came from the disk."""
    total: int = sum(function.stats.cache_hits.values())
    return total


#: What may have become of a file.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda stored: stored[: len(stored) // 2],
    "a flipped bit": lambda stored: stored[:-100] + bytes([stored[-100] ^ 1]) + stored[-99:],
    "something else": lambda _: b"no pickle",
}


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_code_is_compiled_again(damage: str, ending: str, folder: Path) -> None:
    """Damage to an index or to code is told once, and the next process finds whole code."""
    from lstmcore_numba.codegen.numba_compiler import compiled

    assert compiled(_triple)(2) == 6
    (stored,) = folder.rglob(f"*.{ending}")
    stored.write_bytes(DAMAGES[damage](stored.read_bytes()))
    function = compiled(_triple)
    with pytest.warns(RuntimeWarning, match="damaged") as warned:
        assert function(2) == 6
    assert len(warned) == 1
    assert hits(function) == 0
    after = compiled(_triple)
    assert after(2) == 6
    assert hits(after) == 1


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("numba.core.caching.os.replace", OSError(errno.ENOSPC, "No space left on device")),
        ("numba.core.caching.tempfile.TemporaryFile", PermissionError(errno.EROFS, "Read-only file system")),
    ],
    ids=["full", "read-only"],
)
def test_a_folder_without_room_is_done_without(
    where: str, error: OSError, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that got full or read-only after the start costs a warning and no call."""
    from lstmcore_numba.codegen.numba_compiler import compiled

    one, other = compiled(_triple), compiled(lambda x: x + 4)

    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(where, refuse)
    with pytest.warns(RuntimeWarning, match="cannot be stored, so the next process compiles again") as warned:
        assert (one(2), one(3), other(1)) == (6, 9, 5)
    assert len(warned) == 1
    assert not list(folder.rglob("*.nb*"))


def test_code_that_cannot_be_read_is_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lstmcore_numba.codegen.numba_compiler import compiled

    assert compiled(_triple)(2) == 6

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.warns(RuntimeWarning, match="stored code cannot be read and is compiled again: .*Permission denied"):
        assert compiled(_triple)(2) == 6


def test_code_is_compiled_where_warnings_are_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An exception out of the store would end the compilation: standard error has the text of the warning instead."""
    from lstmcore_numba.codegen.numba_compiler import compiled

    assert compiled(_triple)(2) == 6
    (stored,) = folder.rglob("*.nbc")
    stored.write_bytes(b"")
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(_triple)(2) == 6
    assert capsys.readouterr().err == f"lstmcore: stored code is damaged and is compiled again: {stored}\n"


def test_code_of_another_library_is_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is whole may hold what this version of Numba cannot load."""
    from numba.core.caching import CompileResultCacheImpl

    from lstmcore_numba.codegen.numba_compiler import compiled

    assert compiled(_triple)(2) == 6

    def refuse(*args: Any) -> None:
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(CompileResultCacheImpl, "rebuild", refuse)
    with pytest.warns(RuntimeWarning, match="stored code cannot be loaded and is compiled again: .*not enough values"):
        assert compiled(_triple)(2) == 6


def interrupt_in_a_callback(monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]) -> None:
    """Call `interrupt` where LLVM hands over an object file. ctypes swallows an exception there, and LLVM goes on."""
    from numba.core.codegen import CPUCodeLibrary

    def set_compiled(library: Any, value: bool) -> None:
        if value:
            interrupt()
        library.__dict__["_compiled"] = value

    flag = property(lambda library: library.__dict__["_compiled"], set_compiled)
    monkeypatch.setattr(CPUCodeLibrary, "_compiled", flag, raising=False)


def interrupt_before_the_optimiser(monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]) -> None:
    """Call `interrupt` where Numba has made a function's code and LLVM has not begun."""
    from numba.core.codegen import CPUCodeLibrary

    finalize = CPUCodeLibrary.finalize

    def interrupted(library: Any) -> None:
        interrupt()
        finalize(library)

    monkeypatch.setattr(CPUCodeLibrary, "finalize", interrupted)


def interrupt_at_the_end(monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]) -> None:
    """Call `interrupt` where Numba is about to note that a function is not compiled any more."""
    from numba.core.dispatcher import CompilingCounter

    leave = CompilingCounter.__exit__

    def interrupted(counter: Any, *args: Any) -> None:
        interrupt()
        leave(counter, *args)

    monkeypatch.setattr(CompilingCounter, "__exit__", interrupted)


def interrupt_with_a_lock(monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]) -> None:
    """Call `interrupt` where Numba is about to release the lock of its compiler, which the next thread needs.

    No code is looked up: what goes wrong there costs a warning alone.
    """
    from numba.core.compiler_lock import _CompilerLock

    from lstmcore_numba.codegen.code_store import CodeStore

    monkeypatch.setattr(CodeStore, "load_overload", lambda *args: None)
    release = _CompilerLock.release

    def interrupted(lock: Any) -> None:
        interrupt()
        release(lock)

    monkeypatch.setattr(_CompilerLock, "release", interrupted)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # ctypes tells what it swallows
@pytest.mark.filterwarnings("ignore:lstmcore. compiled code cannot be stored:RuntimeWarning")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=["signal", "memory"])
@pytest.mark.parametrize(
    "where",
    [interrupt_in_a_callback, interrupt_before_the_optimiser, interrupt_at_the_end, interrupt_with_a_lock],
    ids=["callback", "before", "end", "lock"],
)
def test_an_interrupted_compilation_is_tried_again(
    where: Callable[..., None], error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a compilation, the next call compiles, in this thread or another one."""
    from numba.core import compiler_lock

    from lstmcore_numba.codegen.numba_compiler import compiled

    inner = compiled(lambda x: x + 5)
    outer = compiled(lambda x: 2 * inner(x))
    left = [error]

    def interrupt() -> None:
        if left:
            raise left.pop()

    where(monkeypatch, interrupt)
    result = None
    with contextlib.suppress(BaseException):  # Numba wraps some
        result = outer(1)
    assert not left
    assert (result == 12) == (where is interrupt_in_a_callback)  # ctypes swallows the exception, and code is there
    assert not compiler_lock.global_compiler_lock.is_locked()
    assert outer(1) == 12
