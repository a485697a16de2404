"""Loops over time as CUDA graphs: recorded once, then started by one call in place of two for each step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from lstmcore.locks import ForkSafeLock
from lstmcore_cupy import tuning
from lstmcore_cupy.device import Device

#: In place of the graph of work that has been rehearsed and not recorded.
_REHEARSED: Final = object()


class Graphs:
    """Graphs of the loops of one kernel on one device; those that ran last are kept.

    A graph has the sizes and the addresses of its call in it. The key has all of them, so a graph only ever runs for a
    call that would start the same launches with the same arguments. Other sizes, or arrays in other places, are
    recorded anew. Memory pools give a loop of training the same places again and again.

    A graph runs on the stream on which it was recorded alone. Its workspace goes back to the memory of that stream when
    the graph is forgotten, which may be while it runs: what gets the memory next there is behind it in the stream.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = ForkSafeLock()

    def run(self, device: Device, key: Hashable, work: Callable[[], None]) -> None:
        """Run work that starts launches and products alone: at first itself, from the second time on as a graph.

        Parameters
        ----------
        device
            The device.
        key
            All that the launches and products depend on.
        work
            Starts them.
        """
        key = device.stream(), key
        with self._lock.lock:
            start = self._kept.get(key)
        if start is None:
            device.rehearse(work)
            self._keep(key, _REHEARSED)
            return
        if start is _REHEARSED:
            start = device.capture(work)
        self._keep(key, start)
        start()

    def _keep(self, key: Hashable, start: Any) -> None:
        with self._lock.lock:
            self._kept[key] = start
            self._kept.move_to_end(key)
            if len(self._kept) > tuning.GRAPHS:
                self._kept.popitem(last=False)
