"""What is measured, in which order, and the goals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

Mode = Literal["inference", "training"]
MODES: Final[tuple[Mode, ...]] = ("inference", "training")

#: Switch -> what turns it on; each is timed beside the plain LSTM of the same backend.
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "layer norm": {"layer_norm": True},
    "zoneout": {"zoneout_hidden": 0.1, "zoneout_cell": 0.1},
    "peephole": {"peephole": True},
    "CIFG": {"coupling": "input_from_forget"},
}


@dataclass(frozen=True, slots=True)
class Point:
    """Sizes of a call of one layer whose input is as wide as its state."""

    precision: str
    mode: Mode
    T: int
    N: int
    H: int

    @property
    def flops(self) -> float:
        """Floating-point operations of the products: 16 T N H^2, in training three times that."""
        return 16.0 * self.T * self.N * self.H**2 * (3 if self.mode == "training" else 1)

    def __str__(self) -> str:
        return f"{self.mode} {self.precision} T={self.T} N={self.N} H={self.H}"


@dataclass(frozen=True, slots=True)
class Grid:
    """The sizes of a run.

    Attributes
    ----------
    varied
        T, N and H of the variants.
    rounds, seconds
        How many turns each side has at most, and how long a point may take once it has `FEWEST`.
    """

    precisions: tuple[str, ...]
    steps: int
    rows: tuple[int, ...]
    hidden: tuple[int, ...]
    varied: tuple[int, int, int]
    rounds: int
    seconds: float

    def sizes(self) -> list[tuple[int, int]]:
        """N and H, those first that the first goal is about, then the cheap ones: time may run out before the end."""
        pairs = [(n, h) for n in self.rows for h in self.hidden]
        return sorted(pairs, key=lambda pair: (not _first(*pair), pair[0] * pair[1] ** 2))

    def points(self, n: int, h: int) -> Iterator[Point]:
        """Everything that is timed at those sizes."""
        for precision in self.precisions:
            for mode in MODES:
                yield Point(precision, mode, self.steps, n, h)

    def all(self) -> list[Point]:
        """Every point, in its order."""
        return [point for pair in self.sizes() for point in self.points(*pair)]


#: Turns that a point has whatever they take.
FEWEST: Final = 5

GPU: Final = Grid(
    precisions=("tf32", "bfloat16", "float32", "float16"),
    steps=512,
    rows=(1, 16, 64, 128, 256),
    hidden=(64, 128, 256, 512, 1024, 2048),
    varied=(512, 64, 512),
    rounds=11,
    seconds=0.8,
)
STAND_IN: Final = Grid(
    precisions=("float32", "float16"),
    steps=6,
    rows=(2, 3),
    hidden=(5, 8),
    varied=(4, 3, 5),
    rounds=FEWEST,
    seconds=0.0,
)


def _first(n: int, h: int) -> bool:
    return n <= 64 and 256 <= h <= 1024


@dataclass(frozen=True, slots=True)
class Goal:
    """What the ratios of some points, the peer's time over ours, have to reach in the mean and at the worst."""

    name: str
    precisions: tuple[str, ...]
    least_mean: float | None = None
    least: float | None = None
    first: bool | None = None

    def holds_for(self, point: Point) -> bool:
        """Whether the goal is about this point."""
        if point.mode != "training" or point.precision not in self.precisions:
            return False
        return self.first is None or self.first == _first(point.N, point.H)


GOALS: Final = (
    Goal("tf32 and bf16, H 256 to 1024, N <= 64", ("tf32", "bfloat16"), least_mean=2.0, least=1.0, first=True),
    Goal("tf32 and bf16, the rest", ("tf32", "bfloat16"), least=0.95, first=False),
    Goal("fp16, where cuDNN has a persistent kernel too", ("float16",), least=0.9),
)
#: A variant may take so many times what the plain layer takes.
MOST_OF_PLAIN: Final = 1.3


def persistent(point: Point) -> bool:
    """Whether cuDNN's persistent kernel takes the point, by PyTorch's rule for it."""
    return (
        point.precision == "float16" and point.H % 128 == 0 and point.H <= 1024 and point.N % 8 == 0 and point.N <= 128
    )


class Deadline:
    """How much of the time is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, below 0 where it has passed."""
        return self.end - time.monotonic()
