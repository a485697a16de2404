"""Workers of the benchmark with a clock that stands still but for what planted backends take."""

from __future__ import annotations

import sys
from typing import ClassVar

from lstmcore_conformance.bench.worker import Clock, main
from lstmcore_conformance.bench.worker_client import Worker

_NOW = [0]


def take(nanoseconds: int) -> None:
    """Let that much time go by, all of it on one processor."""
    _NOW[0] += nanoseconds


def seconds() -> float:
    """Read the clock in seconds; a microsecond goes by, since pytest-benchmark waits for a clock to move."""
    take(1000)
    return _NOW[0] / 1e9


def _now() -> int:
    return _NOW[0]


CLOCK = Clock(_now, _now)


class SteppingWorker(Worker):
    """A worker whose process has that clock."""

    module: ClassVar[str] = "stepping"


if __name__ == "__main__":
    sys.modules["stepping"] = sys.modules[__name__]  # backends import it, and move the clock that is read
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), resident="resident" in sys.argv[4:], clock=CLOCK)
