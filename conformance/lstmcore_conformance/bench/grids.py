"""Which points are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from lstmcore_conformance.bench.jobs import LENGTHS_MODES, Job, Mode, Point
from lstmcore_conformance.bench.timing import Plan

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
#: Sequences of different lengths.
LENGTHS: Final = (
    Point(100, 16, 64, 128),
    Point(100, 64, 64, 64),
    Point(100, 64, 128, 256),
    Point(1000, 16, 64, 128),
    Point(1000, 64, 64, 128),
)
#: Where the variants are compared with the plain layer.
VARIED: Final = (Point(100, 1, 64, 128), Point(50, 16, 128, 256), Point(50, 64, 256, 256))

#: Names of the grids, from the smallest.
NAMES: Final = ("quick", "standard", "full")


def points(grid: str, mode: Mode) -> tuple[Point, ...]:
    """Return the points of a grid, each once.

    Raises
    ------
    ValueError
        No grid has that name.
    """
    if grid not in NAMES:
        raise ValueError(f"grid: expected one of {', '.join(NAMES)}; got {grid!r}")
    if mode == "streaming":
        return STREAMING[:3] if grid == "quick" else STREAMING
    if mode in LENGTHS_MODES:
        return LENGTHS[:2] if grid == "quick" else LENGTHS
    if grid == "full":
        return tuple(dict.fromkeys((*STANDARD, *(point for sweep in SWEEPS.values() for point in sweep), *MAP)))
    return QUICK if grid == "quick" else STANDARD


def varied(grid: str) -> tuple[Point, ...]:
    """Return the points at which variants are measured."""
    return VARIED[:2] if grid == "quick" else VARIED


# Devices --------------------------------------------------------------------------------------------------------------

#: Rounds that a point on a device has whatever they take.
FEWEST: Final = 5


class TrainingSize(NamedTuple):
    """The sizes of a training run.

    Attributes
    ----------
    sequences, rows, hidden, epochs
        How many sequences, rows of a batch, hidden units, and epochs, at least two.
    steps
        T of drawn sequences, which are as wide as the state; 0 for Japanese Vowels.
    """

    sequences: int
    rows: int
    hidden: int
    epochs: int
    steps: int = 0

    @property
    def name(self) -> str:
        """The data, and N, H and T."""
        if not self.steps:
            return f"Japanese Vowels, N={self.rows}, H={self.hidden}"
        return f"drawn sequences, N={self.rows}, H={self.hidden}, T={self.steps}"


@dataclass(frozen=True, slots=True)
class DeviceGrid:
    """The sizes of a run on a device: one layer whose input is as wide as its state.

    Attributes
    ----------
    varied
        Sizes of the variants.
    training
        Sizes of the training from end to end.
    recorded
        Sizes at which loops over time are timed as graphs too.
    """

    name: str
    precisions: tuple[str, ...]
    steps: int
    rows: tuple[int, ...]
    hidden: tuple[int, ...]
    varied: Point
    plan: Plan
    training: tuple[TrainingSize, ...]
    recorded: tuple[Point, ...] = ()

    def sizes(self) -> list[Point]:
        """Return those first that the first goal is about, then the cheap ones: time may run out before the end."""
        points = [Point(self.steps, n, h, h) for n in self.rows for h in self.hidden]
        return sorted(points, key=lambda point: (not first_goal(point), point.N * point.H**2))

    def jobs(self, point: Point) -> Iterator[Job]:
        """Yield everything that is timed at those sizes."""
        for precision in self.precisions:
            yield Job("inference", point, precision)
            yield Job("training", point, precision)

    def all(self) -> list[Job]:
        """Return every job, in its order."""
        return [job for point in self.sizes() for job in self.jobs(point)]


def first_goal(point: Point) -> bool:
    """Return whether the first goal is about these sizes."""
    return point.N <= 64 and 256 <= point.H <= 1024


GPU: Final = DeviceGrid(
    name="gpu",
    precisions=("tf32", "bfloat16", "float32", "float16"),
    steps=512,
    rows=(1, 16, 64, 128, 256),
    hidden=(64, 128, 256, 512, 1024, 2048),
    varied=Point(512, 64, 512, 512),
    plan=Plan(rounds=11, seconds=0.0, repeats=0, fewest=FEWEST, limit=0.8),
    training=(TrainingSize(270, 30, 100, 6), TrainingSize(256, 64, 512, 4, steps=128)),
    recorded=(Point(128, 1, 128, 128), Point(128, 64, 128, 128), Point(128, 64, 512, 512)),
)
STAND_IN: Final = DeviceGrid(
    name="stand-in",
    precisions=("float32", "float16"),
    steps=6,
    rows=(2, 3),
    hidden=(5, 8),
    varied=Point(4, 3, 5, 5),
    plan=Plan(rounds=FEWEST, seconds=0.0, repeats=0),
    training=(TrainingSize(12, 4, 5, 3), TrainingSize(18, 9, 6, 3, steps=5)),
    recorded=(Point(4, 3, 5, 5),),
)
#: Switches that are timed beside the plain layer on a device.
DEVICE_VARIANTS: Final = ("layer_norm", "zoneout", "peephole", "input_from_forget")
