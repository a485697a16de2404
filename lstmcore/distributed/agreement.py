"""What ranks tell each other beside sums: texts, and whether a step failed on any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from lstmcore.distributed.engine import Engine
from lstmcore.plugin_calls import format_error
from lstmcore.ranks import DistributedError

R = TypeVar("R")


def share_text(engine: Engine, text: str, root: int = 0) -> str:
    """Return the text of rank `root`; every rank calls it, with a text of its own.

    Parameters
    ----------
    engine
        The ranks.
    text
        That of this rank.
    root
        The rank whose text all get.

    Raises
    ------
    DistributedError
        A rank did not come in time.

    Examples
    --------
    >>> share_text(get_engine("mpi"), "hello")  # doctest: +SKIP
    'hello'
    """
    own = text.encode() if engine.rank == root else b""
    count = np.array([len(own)], np.int64)
    engine.broadcast(count, root)
    letters = np.zeros(int(count[0]), np.uint8)
    if engine.rank == root:
        letters[:] = np.frombuffer(own, np.uint8)
    engine.broadcast(letters, root)
    return letters.tobytes().decode()


def agree(engine: Engine, action: Callable[[], R]) -> R:
    """Return the result of `action` on this rank, if it failed on none; every rank calls it.

    Parameters
    ----------
    engine
        The ranks.
    action
        A function that calls none of them.

    Raises
    ------
    Exception
        What `action` raised on this rank, if it failed here and on every rank, or here first.
    DistributedError
        It failed on another rank; the message names that rank and its error.

    Examples
    --------
    On four ranks of which the second has no ``sales.csv``, each of the others gets an error with that rank's words:

    >>> class SecondFails(Engine):
    ...     rank, size = 0, 4
    ...     def allreduce_sum(self, buffer): buffer[1] = 1
    ...     def broadcast(self, buffer, root=0):
    ...         text = b"FileNotFoundError: sales.csv"
    ...         buffer[:] = len(text) if buffer.dtype == np.int64 else np.frombuffer(text, np.uint8)
    ...     def barrier(self): pass
    ...     def abort(self, message): raise SystemExit(message)
    >>> agree(SecondFails(), lambda: "the sales of rank 0")
    Traceback (most recent call last):
    lstmcore.ranks.DistributedError: rank 1: FileNotFoundError: sales.csv
    """
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:  # whatever it is, the other ranks have to hear of it
        failure = error
    failed = np.zeros(engine.size)
    failed[engine.rank] = failure is not None
    engine.allreduce_sum(failed)
    if not failed.any():
        return result
    first = int(np.argmax(failed))
    text = share_text(engine, "" if failure is None else format_error(failure), first)
    if failure is not None and failed.all():
        raise failure
    raise DistributedError(f"rank {first}: {text}", told=True) from failure
