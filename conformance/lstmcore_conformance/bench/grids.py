"""Which points are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lstmcore_conformance.bench.jobs import Mode, Point

STANDARD: Final = (
    Point(100, 1, 32, 32),
    Point(100, 1, 64, 128),
    Point(100, 1, 128, 256),
    Point(100, 1, 256, 512),
    Point(100, 1, 512, 1024),
    Point(50, 16, 64, 128),
    Point(50, 16, 128, 256),
    Point(50, 32, 256, 512),
    Point(50, 64, 64, 64),
    Point(100, 64, 128, 128),
    Point(50, 64, 256, 256),
    Point(50, 64, 512, 512),
    Point(20, 128, 1024, 1024),
)
QUICK: Final = (
    Point(100, 1, 32, 32),
    Point(100, 1, 64, 128),
    Point(50, 16, 64, 128),
    Point(50, 16, 128, 256),
    Point(50, 64, 64, 64),
)

#: What is swept -> the points: each of T, N and H alone, the rest as in the middle of the table.
SWEEPS: Final[Mapping[str, tuple[Point, ...]]] = {
    "T": tuple(Point(T, 16, 64, 128) for T in (1, 4, 16, 64, 256, 1024)),
    "N": tuple(Point(50, N, 64, 128) for N in (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "H": tuple(Point(50, 16, 64, H) for H in (16, 32, 64, 100, 128, 256, 512, 1024)),
}
#: Points for the maps over (N, H).
MAP: Final = tuple(Point(50, N, H, H) for N in (1, 4, 16, 64) for H in (32, 64, 128, 256, 512))

#: One step a call.
STREAMING: Final = (
    Point(1, 1, 32, 32),
    Point(1, 1, 64, 128),
    Point(1, 1, 128, 256),
    Point(1, 1, 256, 512),
    Point(1, 16, 64, 128),
)
#: Where the variants are compared with the plain layer.
VARIED: Final = (Point(100, 1, 64, 128), Point(50, 16, 128, 256), Point(50, 64, 256, 256))

#: Names of the grids, from the smallest.
NAMES: Final = ("quick", "standard", "full")


def points(grid: str, mode: Mode) -> tuple[Point, ...]:
    """The points of a grid, each once.

    Raises
    ------
    ValueError
        No grid has that name.
    """
    if grid not in NAMES:
        raise ValueError(f"grid: expected one of {', '.join(NAMES)}; got {grid!r}")
    if mode == "streaming":
        return STREAMING[:3] if grid == "quick" else STREAMING
    if grid == "full":
        return tuple(dict.fromkeys((*STANDARD, *(point for sweep in SWEEPS.values() for point in sweep), *MAP)))
    return QUICK if grid == "quick" else STANDARD


def varied(grid: str) -> tuple[Point, ...]:
    """The points at which variants are measured."""
    return VARIED[:2] if grid == "quick" else VARIED
