"""The parent's end of the workers: starts them, asks, and tells what ended one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from lstmcore_conformance.bench.jobs import Mode
from lstmcore_conformance.bench.runtimes import PEERS, Kind
from lstmcore_conformance.oracle.budgets import Expectation

#: Seconds that a request may take: the largest point of the slowest runtime takes less.
LIMIT: Final = 900.0


class EndedError(RuntimeError):
    """The worker's process is no more."""


class FailedError(RuntimeError):
    """The runtime raised; `unsupported` where it says that it does not do the job."""

    def __init__(self, message: str, *, unsupported: bool = False) -> None:
        super().__init__(message)
        self.unsupported = unsupported


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A runtime with a number of threads.

    `resident` is of a backend with a device of its own: its arrays are there before the clock starts, and stay.
    """

    kind: Kind
    name: str
    threads: int
    resident: bool = False

    @property
    def title(self) -> str:
        """The name, and whether its arrays are on its device: what tells apart the backends of a run."""
        return f"{self.name} (resident)" if self.resident else self.name

    @property
    def label(self) -> str:
        """The name that readers know; a backend of a peer's name is our adapter of it."""
        if self.kind == "peer":
            return PEERS[self.name].label if self.name in PEERS else self.name
        return f"{self.title} (adapter)" if self.name in PEERS else self.title

    def takes(self, mode: Mode) -> bool:
        """Return whether it takes part in a mode: a backend does in all."""
        return self.kind == "backend" or self.name not in PEERS or mode in PEERS[self.name].modes

    def judged(self, expected: Expectation) -> Expectation:
        """Return what it is judged by: a peer has no values that its way to call lacks."""
        lacks = PEERS[self.name].lacks if self.kind == "peer" and self.name in PEERS else frozenset()
        return {name: one for name, one in expected.items() if name not in lacks}

    @property
    def described(self) -> str:
        """The label and the number of threads."""
        return f"{self.label}, {self.threads} thread{'s' * (self.threads > 1)}"


def environment(threads: int) -> dict[str, str]:
    """Return the variables that tell every known library how many threads to use."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "LSTMCORE")
    found = {f"{name}_NUM_THREADS": str(threads) for name in names}
    found |= {"NPROC": str(threads), "VECLIB_MAXIMUM_THREADS": str(threads)}
    if threads == 1:
        found["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return found


class Worker:
    """A process that runs one runtime. `facts` is what it said of itself when it had started."""

    #: The module that the process runs.
    module: ClassVar[str] = "lstmcore_conformance.bench.worker"

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        words = ["-m", self.module, candidate.kind, candidate.name, str(candidate.threads)]
        words += ["resident"] if candidate.resident else []
        env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
        # A plug-in may be found by a path that only this process knows.
        env |= environment(candidate.threads) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(  # noqa: S603  (this interpreter and this package)
            [sys.executable, *words],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self._read()
            self.facts = self._read()
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **details: Any) -> Mapping[str, Any]:
        """Return the answer to a request.

        Raises
        ------
        FailedError
            The runtime raised.
        EndedError
            Its process ended, or it took longer than `LIMIT`.
        """
        if self.process.stdin is None:
            raise EndedError("the worker has no input")
        try:
            self.process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise EndedError(self._end()) from None
        return self._read()

    def _read(self) -> Mapping[str, Any]:
        if self.process.stdout is None:
            raise EndedError("the worker has no output")
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise EndedError(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise FailedError(answer["failed"], unsupported=answer["unsupported"])
        return answer

    def _end(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return f"its process was killed: out of memory, or longer than {LIMIT:.0f} s"
        return f"its process ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def close(self) -> None:
        """End the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
