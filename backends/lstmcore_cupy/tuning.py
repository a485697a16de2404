"""Which path is faster: a table of what was measured on GPUs decides, and says so where it has nothing.

`measured.json` is what ``python -m lstmcore_conformance.gpu`` writes under that name. It is empty: no GPU has run it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from math import log2
from typing import Literal, NamedTuple

Mode = Literal["inference", "training"]


class Point(NamedTuple):
    """Sizes that were tried on a GPU, and whether the persistent kernels were right and faster there, beyond noise."""

    gpu: str
    precision: str
    mode: Mode
    batch: int
    hidden: int
    persistent: bool


@cache
def points() -> tuple[Point, ...]:
    """The table."""
    rows = json.loads(files(__package__).joinpath("measured.json").read_text("utf-8"))
    return tuple(Point(**row) for row in rows)


def decide(gpu: str, precision: str, mode: Mode, batch: int, hidden: int) -> tuple[bool, str]:
    """Whether the persistent kernels are to be taken, and why: as at the nearest sizes that were measured."""
    own = [point for point in points() if (point.gpu, point.precision, point.mode) == (gpu, precision, mode)]
    if not own:
        return False, f"which path is faster in {mode} in {precision} has not been measured on {gpu}"

    def distance(point: Point) -> float:
        return abs(log2(point.batch / max(1, batch))) + abs(log2(point.hidden / hidden))

    near = min(own, key=distance)
    were = "were faster" if near.persistent else "were wrong, or not faster beyond noise,"
    return (
        near.persistent,
        f"the persistent kernels {were} in {mode} in {precision} at N={near.batch}, H={near.hidden} on {gpu}",
    )
