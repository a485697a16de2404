"""Forks of a process whose threads hold locks: of this backend, of Numba and of llvmlite."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

#: Each lock is held by a thread when the process forks. The child computes with code from the disk, compiles a step
#: function, starts a pool of threads and compiles a function with Numba. The timer is only against a hang.
CODE = """
import contextlib, os, sys, threading
import numpy as np
from llvmlite.binding import ffi
from numba.core import compiler_lock, event
from lstmcore import LSTM
from lstmcore_numba.codegen import numba_compiler, step_compiler
from lstmcore_numba.kernel import NumbaBackend
from lstmcore_numba.runtime import buffer_pool, thread_pool

backend = NumbaBackend(threads=2)
lstm, x = LSTM(64, 96, backend=backend, seed=0), np.ones((50, 64, 64), np.float32)
expected = lstm(x)[0]
numba_compiler._CACHES_CODE = False  # the functions below are compiled by every process

@contextlib.contextmanager
def compiling():
    "Wait in the middle of a compilation: `outer` waits for `inner`."
    class Listener(event.Listener):
        def on_start(self, happened):
            if happened.data["dispatcher"] is inner:
                held.set()
                done.wait()
        def on_end(self, happened):
            pass
    with event.install_listener("numba:compile", Listener()):
        outer(1)
    yield

locks = {
    "step compiler": lambda: step_compiler._LOCK.lock,
    "buffer pool": lambda: buffer_pool.POOL.owner.lock,
    "thread pool": lambda: thread_pool.thread_pool(os.getpid()).lock,
    "Numba": lambda: compiler_lock.global_compiler_lock,
    "llvmlite": lambda: ffi.lib._lock,
    "a compilation": compiling,
}
for index, (name, lock) in enumerate(locks.items()):
    inner = numba_compiler.compiled(lambda x: x + 3)
    outer = numba_compiler.compiled(lambda x: 2 * inner(x))
    held, done = threading.Event(), threading.Event()
    def hold():
        with lock():
            held.set()
            done.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        done.set()  # else the child's own compilation waits, too
        made = LSTM(5, 20 + 20 * index, hidden_activation="softsign", backend=backend, seed=0)
        made(np.ones((2, 1, 5), np.float32))
        right = np.array_equal(lstm(x)[0], expected) and outer(4) == 14
        os._exit(0 if right else 1)
    timer = threading.Timer(120, os.kill, (child, 9))
    timer.start()
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    timer.cancel()
    done.set()
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_computes_whatever_its_parent_held(run_python: Callable[..., tuple[str, str]]) -> None:
    names = ("step compiler", "buffer pool", "thread pool", "Numba", "llvmlite", "a compilation")
    out, _ = run_python(CODE)
    assert out.splitlines() == [f"{name} 0" for name in names]
