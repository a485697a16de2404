"""Constants of the CuPy backend, and the table of measurements that picks the faster path.

``python -m lstmcore_conformance.gpu`` writes the table, `measured.json`. It is empty: no GPU has run that command.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from math import log2
from typing import Final, Literal, NamedTuple

Mode = Literal["inference", "training"]

#: Numbers in the buffer of ``W x`` of an unrecorded call. More steps than fit run in several parts.
FORWARD_BUFFER: Final = 1 << 26
#: Threads of a block at most, for kernels with a thread for each column.
MAX_THREADS: Final = 256
#: Rows that one thread adds up. A sum over more rows is a sum of such sums.
SUM_ROWS: Final = 64
#: Rows over which one matrix product sums. A gradient over more rows is a sum of such products.
MATMUL_ROWS: Final = 1 << 11
#: Pinned buffers of the batches of a training: the host is at most so many batches ahead of the GPU.
UPLOAD_BUFFERS: Final = 4
#: Elements of a tile that a thread of a persistent kernel loads at most, unless the block has all its warps.
LOADS: Final = 16
#: Blocks that share an array where a launch takes many, at most: two for each multiprocessor of a large GPU.
ARRAY_BLOCKS: Final = 256
#: Graphs of a kernel that are kept, and bytes of the workspace that the products of each have.
GRAPHS: Final = 32
GRAPH_WORKSPACE: Final = 4 << 20


class Point(NamedTuple):
    """A measurement: sizes on a GPU, and whether the persistent kernels were right and faster there, beyond noise."""

    gpu: str
    precision: str
    mode: Mode
    batch: int
    hidden: int
    persistent: bool


@cache
def points() -> tuple[Point, ...]:
    """Return the table of `measured.json`."""
    rows = json.loads(files(__package__).joinpath("measured.json").read_text("utf-8"))
    return tuple(Point(**row) for row in rows)


def decide(gpu: str, precision: str, mode: Mode, batch: int, hidden: int) -> tuple[bool, str]:
    """Return whether to run the persistent kernels, and why: as at the nearest sizes that were measured.

    Parameters
    ----------
    gpu
        `Device.model`.
    precision
        Its name.
    mode
        Whether the call is recorded.
    batch, hidden
        N and H.
    """
    measured = [point for point in points() if (point.gpu, point.precision, point.mode) == (gpu, precision, mode)]
    if not measured:
        return False, f"which path is faster in {mode} in {precision} has not been measured on {gpu}"

    def distance(point: Point) -> float:
        return abs(log2(point.batch / max(1, batch))) + abs(log2(point.hidden / hidden))

    nearest = min(measured, key=distance)
    verdict = "were faster" if nearest.persistent else "were wrong, or not faster beyond noise,"
    return (
        nearest.persistent,
        f"the persistent kernels {verdict} in {mode} in {precision} at N={nearest.batch}, H={nearest.hidden} on {gpu}",
    )
