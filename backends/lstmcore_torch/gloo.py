"""The engine ``gloo`` of distributed training: PyTorch's, for processes on processors; no MPI is needed.

The processes are started by torchrun.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import pluggy

from lstmcore.distributed import DistributedError, Engine, EngineInfo
from lstmcore.distributed.engine import Array
from lstmcore.extras import installing
from lstmcore.hookspecs import PROJECT
from lstmcore.plugin_calls import UnavailableError
from lstmcore.ranks import (
    LONG_S,
    LOST,
    ROLL_CALL_S,
    asked_timeout,
    end_with_launcher,
    format_wait,
    launched_engine,
    pause,
    tell_end,
)

hookimpl = pluggy.HookimplMarker(PROJECT)

_LOOK_S: Final = 2e-3  # between two looks for answers
_GRACE_S: Final = 5.0  # for a launcher to end the other ranks, which knows why one ended
_MARGIN_S: Final = 60.0  # by which PyTorch waits longer than this engine


class GlooEngine(Engine):
    """The ranks of one gloo group. Every wait has a timeout, which ends this rank and names who did not come.

    Parameters
    ----------
    store
        The `torch.distributed.Store` of the ranks.
    place
        Number of this process, and number of processes.
    timeout
        Seconds that a rank waits for the others.
    """

    def __init__(self, store: Any, place: tuple[int, int], timeout: float) -> None:
        import torch.distributed

        self._library, self._store, self._timeout = torch, torch.distributed.PrefixStore("lstmcore", store), timeout
        self.rank, self.size = place
        self._waits = 0
        settings = {"rank": self.rank, "world_size": self.size, "timeout": timedelta(seconds=timeout + _MARGIN_S)}
        torch.distributed.init_process_group("gloo", store=torch.distributed.PrefixStore("gloo", store), **settings)
        atexit.register(self._leave)

    def allreduce_sum(self, buffer: Array) -> None:
        """See `Engine`."""
        if buffer.size:
            tensor = self._library.from_numpy(buffer)
            self._wait(lambda gloo: gloo.all_reduce(tensor, async_op=True), "a sum over all ranks")

    def broadcast(self, buffer: Array, root: int = 0) -> None:
        """See `Engine`."""
        if buffer.size:
            tensor = self._library.from_numpy(buffer)
            self._wait(lambda gloo: gloo.broadcast(tensor, root, async_op=True), f"what rank {root} sends")

    def barrier(self) -> None:
        """See `Engine`."""
        self._wait(lambda gloo: gloo.barrier(async_op=True), "the meeting of all ranks")

    def abort(self, message: str) -> None:
        """See `Engine`. The others lose this rank, and their launcher ends them."""
        tell_end(message)
        os._exit(2)

    def _wait(self, start: Any, what: str) -> None:
        """Start a call of gloo and wait for it; give the processor to others, as ranks may be more than processors."""
        self._waits += 1
        try:
            work = start(self._library.distributed)
            self._poll(work, what)
            work.wait()
        except RuntimeError as error:
            if isinstance(error, DistributedError):
                raise
            time.sleep(_GRACE_S)
            text = " ".join(str(error).split())
            raise DistributedError(f"{LOST}: rank {self.rank} waited for {what}: {text}", told=True) from error

    def _poll(self, work: Any, what: str) -> None:
        started, looks, told = time.monotonic(), 0, False
        while not work.is_completed():
            looks += 1
            waited = time.monotonic() - started
            if waited > LONG_S and not told:
                self._store.set(f"waits/{self._waits}/{self.rank}", "")
                told = True
            if waited > self._timeout:
                self.abort(self._call_roll(what))
            pause(looks, waited)

    def _call_roll(self, what: str) -> str:
        """Return the message that names the ranks that do not wait as this one does."""
        silent, end = set(range(self.size)) - {self.rank}, time.monotonic() + ROLL_CALL_S
        while silent and time.monotonic() < end:
            silent -= {rank for rank in silent if self._store.check([f"waits/{self._waits}/{rank}"])}
            time.sleep(_LOOK_S)
        return format_wait(silent, "gloo", f"rank {self.rank} waited {self._timeout:g} s for {what}")

    def _leave(self) -> None:
        """End this rank after rank 0, which shows what all have to say: torchrun ends all once one has failed."""
        with contextlib.suppress(RuntimeError):  # the store is gone with the rank that had it
            self._store.set(f"left/{self.rank}", "")
            if self.rank:
                self._store.wait(["left/0"], timedelta(seconds=_GRACE_S))
            self._library.distributed.destroy_process_group()


def _unavailable() -> str | None:
    if find_spec("torch") is None:
        return f"PyTorch is not installed; install it with: {installing('torch')}"
    return None


@cache
def _open() -> GlooEngine:
    """Return the engine of this process, the same each time; alone, it is a group of one."""
    import torch.distributed as gloo

    if gloo.is_initialized():
        raise UnavailableError("this program has a process group of PyTorch already, beside which gloo has no place")
    timeout = asked_timeout()
    end_with_launcher()
    if launched_engine() != "gloo":
        return GlooEngine(gloo.HashStore(), (0, 1), timeout)
    rank, size, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    host, wait = os.environ["MASTER_ADDR"], timedelta(seconds=timeout)
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has a store itself
    try:
        store = gloo.TCPStore(host, port, size, hosts, wait)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store has the keys of those that failed
        return GlooEngine(gloo.PrefixStore(f"attempt{attempt}", store), (rank, size), timeout)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise UnavailableError(f"rank {rank} of {size} cannot meet the others at {host}:{port}: {text}") from error


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, as torchrun sets it; got {text!r}")
    return int(text)


@hookimpl
def lstmcore_engine_info() -> EngineInfo:
    """Describe the engine."""
    return EngineInfo("gloo", "gloo by PyTorch, on processors, started by torchrun", _unavailable, _open)
