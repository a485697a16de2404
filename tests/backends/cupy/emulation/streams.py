"""Streams and events of a GPU on the processor. Copies from pinned memory run as late as events allow.

A kernel runs when it is launched, as before. A copy from pinned memory is kept on its stream until another stream or
the host waits for an event that was recorded behind it. So a buffer that is written to too early gives wrong numbers,
and so does a reader that does not wait.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from typing import Any

from emulation.recording import RecordedGraph


class Event:
    """An event of CuPy. `order` of the counts tells when it is recorded and waited for."""

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._stream, self._reached = cupy, None, False

    def record(self, stream: Stream | None = None) -> None:
        self._stream = self._cupy.streams[-1] if stream is None else stream
        self._cupy.counts.order.append(f"{self._stream.name}: record")
        self._reached = False
        self._stream.add(self._reach)

    @property
    def name(self) -> str:
        """The stream that recorded it."""
        return "nothing" if self._stream is None else self._stream.name

    def _reach(self) -> None:
        self._reached = True

    @property
    def done(self) -> bool:
        """Whether the copies before it are over. What a stream was given otherwise may run for long."""
        return self._reached and self._stream is not None and self._stream.copies

    def run(self) -> None:
        """Run the stream that recorded it up to there."""
        if self._stream is not None:
            self._stream.run_until(lambda: self._reached)

    def synchronize(self) -> None:
        self._cupy.counts.waits += 1
        self.run()


class Stream:
    """A stream of CuPy."""

    def __init__(self, cupy: Any, name: str) -> None:
        self._cupy, self.name = cupy, name
        self._pending: deque[Callable[[], None]] = deque()
        self.copies = False
        self.ptr = 0 if name == "null" else id(self)

    def __enter__(self) -> Stream:
        self._cupy.streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._cupy.streams.pop()

    def record(self) -> Event:
        event = Event(self._cupy)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self._cupy.counts.stream_waits += 1
        self._cupy.counts.order.append(f"{self.name}: wait for {event.name}")
        self.add(event.run)

    def synchronize(self) -> None:
        self._cupy.counts.waits += 1
        self._cupy.counts.order.append(f"{self.name}: waited for by the host")
        self.run_until(lambda: False)

    def begin_capture(self) -> None:
        if not self.ptr:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self._cupy.recorder.begin()

    def end_capture(self) -> RecordedGraph:
        return RecordedGraph(self._cupy.recorder, self._cupy.recorder.end(), self._cupy.launched)

    def launch(self) -> None:
        """Run what is before a launch."""
        self.run_until(lambda: False)
        order, entry = self._cupy.counts.order, f"{self.name}: launch"
        if not order or order[-1] != entry:
            order.append(entry)

    def copy(self, target: Any, source: ctypes.c_void_p, size: int) -> None:
        """Copy from pinned memory to the memory of an array of NumPy, later."""
        address = source.value or 0
        if not any(begin <= address and address + size <= end for begin, end in self._cupy.pinned()):
            raise ValueError("a copy from memory that is not pinned waits for the stream")
        self._cupy.counts.copies_in += 1
        self._cupy.counts.order.append(f"{self.name}: copy")
        self._cupy.counts.copied.append(size)
        self.copies = True

        def run() -> None:
            ctypes.memmove(target.ctypes.data, address, size)

        self._pending.append(run)

    def add(self, action: Callable[[], None]) -> None:
        """Run an action after what is on the stream."""
        if self._pending:
            self._pending.append(action)
        else:
            action()

    def run_until(self, reached: Callable[[], bool]) -> None:
        while self._pending and not reached():
            self._pending.popleft()()
