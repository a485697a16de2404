"""The process of one runtime with one number of threads: it does what the parent asks, one line of JSON at a time.

`team.Worker` starts it as ``python -m lstmcore_conformance.bench.worker KIND NAME THREADS [resident]``. Its
second answer tells versions, or why the runtime cannot be imported. Whatever a library prints goes to standard error:
answers have a pipe of their own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

#: Processor time in a stretch of idle time below which a process is quiet, both in seconds, and how long is waited.
QUIET: Final = 0.0002
STRETCH: Final = 0.004
PATIENCE: Final = 0.5


class Clock(NamedTuple):
    """What calls are timed by: functions that return nanoseconds, of time and of the time of all processors."""

    wall_ns: Callable[[], int]
    processor_ns: Callable[[], int]


SYSTEM: Final = Clock(time.perf_counter_ns, time.process_time_ns)


def main(kind: str, name: str, threads: int, *, resident: bool = False, clock: Clock = SYSTEM) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _answer(answers, lambda: {"pid": os.getpid()})
    server: Server | None = None

    def started() -> dict[str, Any]:
        nonlocal server
        server = Server(kind, name, threads, resident=resident, clock=clock)
        return {"versions": server.runtime.versions()}

    _answer(answers, started)
    for line in sys.stdin:
        if server is None:
            return
        request = json.loads(line)
        _answer(answers, partial(getattr(server, request.pop("do")), **request))


def _answer(answers: TextIO, work: Callable[[], Mapping[str, Any]]) -> None:
    try:
        found = dict(work())
    except Exception as error:  # whatever a runtime raises is its result
        text = " ".join(str(error).split())
        unsupported = type(error).__name__ in ("Unsupported", "UnsupportedError")
        found = {"failed": text if unsupported else f"{type(error).__name__}: {text}", "unsupported": unsupported}
    answers.write(json.dumps(found) + "\n")
    answers.flush()


class Server:
    """The jobs that are ready in this process; each method is a request."""

    def __init__(self, kind: str, name: str, threads: int, *, resident: bool = False, clock: Clock = SYSTEM) -> None:
        from lstmcore_conformance.bench import runtimes

        self.clock = clock
        self.runtime = runtimes.make(kind, name, threads, resident=resident)
        self.jobs: dict[str, Any] = {}

    def prepare(self, key: str, job: Mapping[str, Any], data: str, outputs: str) -> dict[str, Any]:
        """Build the job, call it a first time and write its values for the parent to judge.

        It is built once more for what is timed, so that memory that only compiling took is not counted, and what
        writing the values took is not either.
        """
        from lstmcore_conformance.bench.array_io import load_data
        from lstmcore_conformance.bench.jobs import Job

        given, wanted = load_data(Path(data)), Job.from_dict(job)
        start = time.perf_counter()
        ready = self.runtime.prepare(wanted, given)
        built = time.perf_counter()
        with ready.around():
            ready.call()
        first = time.perf_counter()
        how = ready.how
        del ready
        gc.collect()
        _give_back()
        before = _memory("VmRSS")
        self.jobs[key] = self.runtime.prepare(wanted, given)
        self._save(key, outputs)
        gc.collect()
        gc.freeze()  # to walk all that JAX imported before every turn takes 0.1 s, and makes its next call 3 ms longer
        _give_back()
        _forget_peak()
        return {"build_s": built - start, "first_s": first - built, "how": how, "resident": before}

    def measure(self, key: str, seconds: float, most: int, settle: int) -> dict[str, Any]:
        """Time calls for about that long, at least one and at most `most`; then wait until all threads rest.

        `settle` calls before them are not timed.
        """
        ready, began = self.jobs[key], self.clock.processor_ns()
        gc.collect()
        with ready.around():
            for _ in range(settle):
                ready.call()
            gc.disable()
            try:
                cpu, start = self.clock.processor_ns(), self.clock.wall_ns()
                times = timed(ready.call, int(seconds * 1e9), most, self.clock.wall_ns)
                cpu, wall = self.clock.processor_ns() - cpu, self.clock.wall_ns() - start
            finally:
                gc.enable()
        rest()
        return {"ns": times, "cpu_ns": cpu, "wall_ns": wall, "used_ns": self.clock.processor_ns() - began}

    def drop(self, key: str, outputs: str) -> dict[str, Any]:
        """Write the job's values once more and forget it; tell the most memory that was in use while it was timed."""
        peak = _memory("VmHWM")
        try:
            self._save(key, outputs)
        finally:
            self.jobs.pop(key, None)
            gc.unfreeze()
            gc.collect()
            _give_back()
        return {"peak": peak}

    def _save(self, key: str, outputs: str) -> None:
        """Write the values of a job that is ready."""
        from lstmcore_conformance.bench.array_io import save_arrays

        ready = self.jobs[key]
        with ready.around():
            made = ready.outputs()
        save_arrays(Path(outputs), made)


def timed(call: Callable[[], Any], stretch: int, most: int, clock: Callable[[], int] = SYSTEM.wall_ns) -> list[int]:
    """Return the nanoseconds of each call: as many as begin in a stretch of nanoseconds, one to `most`."""
    times: list[int] = []
    end = clock() + stretch
    after = 0
    while after < end and len(times) < most:
        before = clock()
        call()
        after = clock()
        times.append(after - before)
    return times


def rest() -> float:
    """Wait until the threads of this process have stopped spinning; seconds that it took, at most `PATIENCE`."""
    start = time.perf_counter()
    while time.perf_counter() - start < PATIENCE:
        used = time.process_time()
        time.sleep(STRETCH)
        if time.process_time() - used < QUIET:
            break
    return time.perf_counter() - start


def _memory(field: str) -> int | None:
    """Bytes, as Linux tells them of this process; None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:")), None)


def _give_back() -> None:
    """Let the C library return what it holds and nobody uses, so that the next job finds as little as this one."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _forget_peak() -> None:
    """Let VmHWM start anew from what is in use, where the system lets a process do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), resident="resident" in sys.argv[4:])
