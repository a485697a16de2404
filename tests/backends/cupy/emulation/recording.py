"""Streams of the stand-in that record: kernels and products are taken up, and run when their graph is launched.

All else that CuPy would start, copy or wait for meanwhile is an error, as on a GPU; so are products by CuPy's cuBLAS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emulation import EmulatedProgram
from lstmcore_cupy.device import Program, Words

Work = Callable[[], None]


class Recorder:
    """The work that a stream records, if one does.

    Attributes
    ----------
    graphs
        How many graphs were recorded.
    replaying
        Whether a graph runs: what it starts is one launch.
    """

    def __init__(self) -> None:
        self._work: list[Work] | None = None
        self.graphs, self.replaying = 0, False

    @property
    def active(self) -> bool:
        """Whether a stream records."""
        return self._work is not None

    def begin(self) -> None:
        if self._work is not None:
            raise RuntimeError("two streams record at a time")
        self._work = []

    def end(self) -> list[Work]:
        if self._work is None:
            raise RuntimeError("no stream records")
        work, self._work = self._work, None
        self.graphs += 1
        return work

    def start(self, work: Work) -> None:
        """Take up work, or run it if no stream records."""
        if self._work is None:
            work()
        else:
            self._work.append(work)

    def refuse(self, name: str) -> None:
        """Raise an error if a stream records."""
        if self._work is not None:
            raise RuntimeError(f"{name}: cudaErrorStreamCaptureUnsupported")


class RecordedGraph:
    """The graph of recorded work."""

    def __init__(self, recorder: Recorder, work: list[Work], launched: Callable[[str], None]) -> None:
        self._recorder, self._work, self._launched = recorder, work, launched

    def launch(self) -> None:
        self._recorder.refuse("a graph")
        self._launched("graph")
        self._recorder.replaying = True
        try:
            for work in self._work:
                work()
        finally:
            self._recorder.replaying = False


class RecordingProgram(Program):
    """Kernels whose launches a stream may record, with the struct of that moment."""

    def __init__(self, own: EmulatedProgram, recorder: Recorder) -> None:
        self._own, self._recorder = own, recorder

    def launch(self, kernel: str, blocks: tuple[int, ...], threads: int, words: Words, **options: Any) -> None:
        kept = words.copy()
        self._recorder.start(lambda: self._own.launch(kernel, blocks, threads, kept, **options))

    def resident_blocks(self, kernel: str, threads: int, shared_bytes: int = 0) -> int:
        return self._own.resident_blocks(kernel, threads, shared_bytes)


class OwnProducts:
    """A stand-in for `RecordedProducts`; `used` has the stream and the bytes of the workspace, for each use."""

    def __init__(self) -> None:
        self.used: list[tuple[int, int]] = []

    def use(self, stream: int, workspace: int, size: int) -> None:
        if not workspace:
            raise ValueError("no workspace")
        self.used.append((stream, size))
