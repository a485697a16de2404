"""The protocol between the processes of one training, and the hook by which an engine of it is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt
import pluggy

from lstmcore.hookspecs import PROJECT

Array = npt.NDArray[Any]
GROUP: Final = "lstmcore.engines"

hookspec = pluggy.HookspecMarker(PROJECT)


class Engine(ABC):
    """The processes of one training, as each of them sees it. All call the same methods in the same order.

    Buffers are C-contiguous NumPy arrays, of the same dtype and size on every rank. For one number of ranks, a sum has
    the same bits in every run and on every rank.

    Attributes
    ----------
    rank
        Number of this process, from 0.
    size
        Number of processes.

    Examples
    --------
    >>> import numpy as np
    >>> class Alone(Engine):
    ...     rank, size = 0, 1
    ...     def allreduce_sum(self, buffer): pass
    ...     def broadcast(self, buffer, root=0): pass
    ...     def barrier(self): pass
    ...     def abort(self, message): raise SystemExit(message)
    >>> buffer = np.ones(3)
    >>> Alone().allreduce_sum(buffer)
    >>> buffer.tolist()
    [1.0, 1.0, 1.0]
    """

    rank: int
    size: int

    @abstractmethod
    def allreduce_sum(self, buffer: Array) -> None:
        """Replace the buffer by the sum over all ranks; float32 or float64.

        Raises
        ------
        DistributedError
            A rank did not come in time.
        """

    @abstractmethod
    def broadcast(self, buffer: Array, root: int = 0) -> None:
        """Replace the buffer by that of rank `root`. Raises as `allreduce_sum`."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here. Raises as `allreduce_sum`."""

    @abstractmethod
    def abort(self, message: str) -> None:
        """Show the message in one line and end all ranks."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The description of an engine, known before its library is imported.

    Attributes
    ----------
    name
        What `get_engine` takes.
    summary
        One line.
    unavailable
        Returns why the engine cannot run here, with the install line of a missing package, or None. Must be quick.
    open
        Returns the engine of this process.

    Examples
    --------
    >>> from lstmcore.distributed import engines
    >>> [info.name for info in engines()]
    ['gloo', 'mpi']
    """

    name: str
    summary: str
    unavailable: Callable[[], str | None]
    open: Callable[[], Engine]


@hookspec(firstresult=True)
def lstmcore_engine_info() -> EngineInfo:  # type: ignore[empty-body]  # a specification has no body
    """Describe the engine without importing its library."""
