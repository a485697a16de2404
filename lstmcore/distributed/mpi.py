"""The engine of MPI, by mpi4py: any MPI that mpi4py loads, on one machine or on a cluster."""

from __future__ import annotations

import importlib.util
import time
from typing import Any, Final

import numpy as np
import pluggy

from lstmcore.distributed.engine import Array, Engine, EngineInfo
from lstmcore.extras import installing
from lstmcore.hookspecs import PROJECT
from lstmcore.plugin_calls import UnavailableError
from lstmcore.ranks import (
    LONG_S,
    ROLL_CALL_S,
    DistributedError,
    asked_timeout,
    end_with_launcher,
    format_wait,
    launched_size,
    pause,
    tell_end,
)

hookimpl = pluggy.HookimplMarker(PROJECT)

_LOOK_S: Final = 2e-3  # between two looks for answers
_CALL, _ANSWER = 1, 2


class MPIEngine(Engine):
    """The ranks of ``MPI.COMM_WORLD``. Every wait has a timeout, which ends all ranks and names who did not come.

    Parameters
    ----------
    mpi
        The module ``mpi4py.MPI``.
    timeout
        Seconds that a rank waits for the others.
    """

    def __init__(self, mpi: Any, timeout: float) -> None:
        self._mpi, self._timeout = mpi, timeout
        self._sums, self._calls = mpi.COMM_WORLD.Dup(), mpi.COMM_WORLD.Dup()
        self.rank, self.size = self._sums.Get_rank(), self._sums.Get_size()

    def allreduce_sum(self, buffer: Array) -> None:
        """See `Engine`."""
        self._wait(self._sums.Iallreduce(self._mpi.IN_PLACE, buffer, self._mpi.SUM), "a sum over all ranks")

    def broadcast(self, buffer: Array, root: int = 0) -> None:
        """See `Engine`."""
        self._wait(self._sums.Ibcast(buffer, root), f"what rank {root} sends")

    def barrier(self) -> None:
        """See `Engine`."""
        self._wait(self._sums.Ibarrier(), "the meeting of all ranks")

    def abort(self, message: str) -> None:
        """See `Engine`."""
        tell_end(message)
        self._mpi.COMM_WORLD.Abort(2)

    def _wait(self, request: Any, what: str) -> None:
        """Wait for a request; give the processor to others, since ranks may be more than processors."""
        started, spins = time.monotonic(), 0
        while not request.Test():
            spins += 1
            waited = time.monotonic() - started
            if waited > self._timeout:
                message = self._call_roll(what)
                self.abort(message)
                raise DistributedError(message)
            if waited > LONG_S:
                self._answer_calls()
            pause(spins, waited)

    def _answer_calls(self) -> None:
        """Tell every rank that calls the roll that this one is here, and waits too."""
        status = self._mpi.Status()
        while self._calls.Iprobe(self._mpi.ANY_SOURCE, _CALL, status):
            caller = status.Get_source()
            self._calls.Recv(np.zeros(1, np.uint8), caller, _CALL)
            self._calls.Send(np.zeros(1, np.uint8), caller, _ANSWER)  # so small that it does not wait

    def _call_roll(self, what: str) -> str:
        """Return the message that names the ranks that do not wait as this one does."""
        silent, status = set(range(self.size)) - {self.rank}, self._mpi.Status()
        requests = [self._calls.Isend(np.zeros(1, np.uint8), rank, _CALL) for rank in silent]
        end = time.monotonic() + ROLL_CALL_S
        while silent and time.monotonic() < end:
            self._answer_calls()
            while self._calls.Iprobe(self._mpi.ANY_SOURCE, _ANSWER, status):
                self._calls.Recv(np.zeros(1, np.uint8), status.Get_source(), _ANSWER)
                silent.discard(status.Get_source())
            time.sleep(_LOOK_S)
        for request in requests:
            request.Cancel()
        return format_wait(silent, "MPI", f"rank {self.rank} waited {self._timeout:g} s for {what}")


def _unavailable() -> str | None:
    if importlib.util.find_spec("mpi4py") is None:
        return f"mpi4py is not installed: {installing('mpi')}"
    return None


def _open() -> MPIEngine:
    """Return the engine of this process; the MPI library is loaded and started here."""
    timeout = asked_timeout()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(f"mpi4py finds no MPI library: {' '.join(str(error).split())}") from error
    expected, size = launched_size(), MPI.COMM_WORLD.Get_size()
    if expected is not None and size != expected:
        library = MPI.Get_library_version().split(",")[0].splitlines()[0]
        raise UnavailableError(
            f"expected {expected} ranks, as the launcher says; {library}, which mpi4py loads, sees {size}: take the "
            "mpiexec of that MPI"
        )
    end_with_launcher()
    return MPIEngine(MPI, timeout)


@hookimpl
def lstmcore_engine_info() -> EngineInfo:
    """Describe the engine."""
    return EngineInfo("mpi", "MPI by mpi4py, on one machine or on a cluster", _unavailable, _open)
