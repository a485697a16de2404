"""Locks after a fork: a child computes although a thread of its parent held a lock when it forked."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest

from lstmcore.locks import ForkSafeLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

#: A new process, since pytest's own may have threads. The timer is only against a hang.
CODE = """
import os, threading
import numpy as np
from lstmcore import LSTM, registry
lstm, x = LSTM(3, 4, backend="numpy", seed=0), np.ones((2, 1, 3), np.float32)
expected = lstm(x)[0]
for name, owner in {"registry": registry._lock, "LSTM": lstm._step_lock}.items():
    held, done = threading.Event(), threading.Event()
    def hold():
        with owner.lock:
            held.set()
            done.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        made = LSTM(3, 4, backend="numpy", seed=0)
        os._exit(0 if all(np.array_equal(one.record(x)[0], expected) for one in (made, lstm)) else 1)
    timer = threading.Timer(60, os.kill, (child, 9))
    timer.start()
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    timer.cancel()
    done.set()
    thread.join()
"""


def test_a_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout == "registry 0\nLSTM 0\n", done.stderr


def test_a_lock_excludes_and_lives_as_long_as_its_owner() -> None:
    owner = ForkSafeLock()
    with owner.lock:
        assert not owner.lock.acquire(blocking=False)
    reentrant = ForkSafeLock(threading.RLock)
    with reentrant.lock, reentrant.lock:
        pass
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
