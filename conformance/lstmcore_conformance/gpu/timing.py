"""One point: both sides are judged, then timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from lstmcore.precision import get_precision
from lstmcore_conformance.bench.statistics import paired_ratio, spread
from lstmcore_conformance.gpu.places import Given, Named, Place, Ready
from lstmcore_conformance.gpu.plan import FEWEST, Deadline, Grid, Point
from lstmcore_conformance.oracle.budgets import GROUP_FLOOR, ROUNDING, SAFETY

#: What the peer may lose, in epsilons of the storage or of a product's operands, and as a share of the array's scale:
#: more is no rounding, and nothing is compared with it.
PEER_EPSILONS: Final = 256.0
PEER_SHARE: Final = 0.125
#: The spread of a side's times above which they are noisy.
BOUND: Final = 0.1
#: The difference of two paths that says nothing where there are too few rounds for an interval.
NOISE: Final = 0.02
_DEFAULT: Final = ("default_ratio", "default_low", "default_high")


@dataclass(slots=True)
class Side:
    """What came of one side of a point: `share` is the worst error as a share of its budget, up to 1 passes."""

    outcome: str = "not run"
    message: str = ""
    how: str = ""
    share: float | None = None
    first_s: float | None = None
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Seconds, None without a time."""
        return float(np.median(self.times)) if self.times else None

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON."""
        share = self.share if self.share is not None and np.isfinite(self.share) else None
        return {
            "outcome": self.outcome,
            "message": self.message,
            "how": self.how,
            "share": share,
            "first_s": self.first_s,
            "median_s": self.median,
            "spread": spread(self.times) if self.times else None,
            "times_s": self.times,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """A point: both sides, and the peer's time over ours with its interval, where both have a time.

    `paths` are those of ours that it does not take by itself, by their names. `ratio` is that of the fastest: picked
    from the same rounds, it is biased upwards.
    """

    point: Point
    ours: Side
    peer: Side
    paths: dict[str, Side] = field(default_factory=dict)

    @property
    def fastest(self) -> str | None:
        """The name of the path of ours that is fastest, "" for the one that it takes by itself; None without a time."""
        medians = {name: side.median for name, side in self.sides.items() if side.median is not None}
        return min(medians, key=medians.__getitem__) if medians else None

    @property
    def chosen(self) -> str:
        """The path that a table of these measurements takes: "" where no other is faster by more than noise."""
        faster = {name: side for name, side in self.paths.items() if surely_faster(side, self.ours)}
        return min(faster, key=lambda name: faster[name].median or np.inf, default="")

    @property
    def sides(self) -> dict[str, Side]:
        """All paths of ours."""
        return {"": self.ours, **self.paths}

    @property
    def best(self) -> Side:
        """The fastest of ours, the one that it takes by itself where none has a time."""
        return self.sides[self.fastest or ""]

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """The median over the rounds of the peer's time over ours, and its interval (95 %)."""
        return self.ratio_of(self.fastest or "")

    def ratio_of(self, path: str) -> tuple[float, float, float] | None:
        """As `ratio`, of one of our paths."""
        side = self.sides[path]
        if not side.times or not self.peer.times:
            return None
        return paired_ratio(self.peer.times, side.times)

    def noisy(self, path: str) -> bool:
        """Whether the times of the peer or of a path scatter."""
        return any(side.outcome == "noisy" for side in (self.sides[path], self.peer))

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON."""
        names = ("precision", "mode", "T", "N", "H")
        known = {name: getattr(self.point, name) for name in names}
        ratio, low, high = self.ratio or (None, None, None)
        median = self.best.median
        figures = {"ratio": ratio, "low": low, "high": high}
        figures |= dict(zip(_DEFAULT, self.ratio_of("") or (None, None, None), strict=True))
        figures |= {"tflops": None if median is None else self.point.flops / median / 1e12}
        sides = {"ours": self.ours.to_dict(), "peer": self.peer.to_dict()}
        paths = {name: side.to_dict() for name, side in self.paths.items()}
        return known | figures | sides | {"paths": paths, "fastest": self.fastest, "chosen": self.chosen}


def surely_faster(side: Side, other: Side) -> bool:
    """Whether `side` is faster by more than noise: by the interval of their ratio, or by `NOISE` with few rounds."""
    if side.median is None or other.median is None:
        return False
    if len(side.times) == len(other.times) >= FEWEST:
        return paired_ratio(other.times, side.times)[1] > 1
    return side.median < other.median * (1 - NOISE)


def losses(place: Place, got: Named, want: Named) -> dict[str, float]:
    """Name -> the largest error, relative to the array's scale.

    Arrays that are smaller than the largest of theirs by `GROUP_FLOOR` are not asked for more than it gives.
    """
    scales = {name: place.scale(array) for name, array in want.items()}
    groups = [[name for name in scales if (name in _OUTPUTS) == outputs] for outputs in (True, False)]
    found: dict[str, float] = {}
    for group in groups:
        floor = GROUP_FLOOR * max((scales[name] for name in group), default=0.0)
        for name in group:
            found[name] = place.error(got[name], want[name]) / max(scales[name], floor, np.finfo(float).tiny)
    return found


_OUTPUTS: Final = ("y", "h_n", "c_n")


def judge_peer(lost: Mapping[str, float], precision: str) -> tuple[str, str]:
    """Outcome and message of the peer."""
    allowed = min(PEER_EPSILONS * get_precision(precision).epsilon, PEER_SHARE)
    name = max(lost, key=lost.__getitem__)
    if lost[name] <= allowed:
        return "right", ""
    return "does not conform", f"{name} is off by {lost[name]:.2g} of its scale, more than rounding may make it"


def judge_ours(lost: Mapping[str, float], peer: Mapping[str, float], precision: str) -> tuple[str, str, float]:
    """Outcome, message and the worst share of a budget: as in docs/conformance.md, from what the peer loses.

    For ours an array may lose `SAFETY` times what the peer does and half an epsilon more.
    """
    rounding = ROUNDING * get_precision(precision).epsilon
    shares = {name: value / (SAFETY * (peer[name] + rounding)) for name, value in lost.items()}
    worst = max(shares, key=shares.__getitem__)
    if shares[worst] <= 1:
        return "right", "", shares[worst]
    return "does not conform", f"{worst} is off by {shares[worst]:.3g} of its budget", shares[worst]


def compare(place: Place, grid: Grid, point: Point, given: Given, want: Named, rng: np.random.Generator) -> Compared:
    """Judge and time both sides at a point. What either side raises is its outcome."""
    wanted = {name: array for name, array in want.items() if point.mode == "training" or name in _OUTPUTS}
    places = {"peer": place, "": place, **{name: place.on(name) for name in place.paths}}
    sides = {name: Side() for name in places}
    ready: dict[str, Ready] = {}
    lost: dict[str, dict[str, float]] = {}
    for name, side in sides.items():
        if name != "peer" and (reason := place.refusal(point.precision)):
            side.outcome, side.message = "unsupported", reason
            continue
        prepare = places[name].peer if name == "peer" else places[name].ours
        but = sides[""].how if name in place.paths else None
        made = _prepared(place, side, partial(prepare, given, point.precision, point.mode), wanted, but)
        if made is not None:
            ready[name], lost[name] = made
    peer = sides["peer"]
    if "peer" in lost:
        peer.outcome, peer.message = judge_peer(lost["peer"], point.precision)
    for name, side in sides.items():
        if name == "peer" or name not in lost:
            continue
        if peer.outcome == "right":
            side.outcome, side.message, side.share = judge_ours(lost[name], lost["peer"], point.precision)
        else:
            side.outcome, side.message = "error", f"nothing to judge it by: the peer {peer.outcome}"
    right = {name: (ready[name], side) for name, side in sides.items() if side.outcome == "right"}
    _take_turns(place, grid, right, rng)
    return Compared(point, sides[""], peer, {name: sides[name] for name in place.paths})


def _prepared(
    place: Place, side: Side, prepare: Callable[[], Ready], wanted: Named, but: str | None = None
) -> tuple[Ready, dict[str, float]] | None:
    """The call, done once, and what it loses of what is wanted; None where it raised, gave less, or runs as `but`."""
    try:
        made = prepare()
        if made.how == but:
            side.outcome, side.message, side.how = "unsupported", made.fallback or "the same path", made.how
            return None
        side.how, side.first_s = made.how, place.seconds(made.call)
        outputs = made.outputs()
        absent = [name for name in wanted if name not in outputs]
        if not absent:
            return made, losses(place, outputs, wanted)
        side.outcome, side.message = "does not conform", f"nothing under the name {absent[0]}"
    except Exception as error:  # whatever a side raises is its result
        side.outcome, side.message = "error", f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _take_turns(place: Place, grid: Grid, sides: Mapping[str, tuple[Ready, Side]], rng: np.random.Generator) -> None:
    """Time the sides in an order drawn anew in each round; a call that is not timed comes first."""
    names = list(sides)
    if not names:
        return
    patience = Deadline(grid.seconds)
    for turn in range(grid.rounds + 1):
        for index in rng.permutation(len(names)):
            ready, side = sides[names[index]]
            try:
                seconds = place.seconds(ready.call)
            except Exception as error:  # as above
                side.outcome, side.message = "error", f"{type(error).__name__}: {' '.join(str(error).split())}"
                for _, other in sides.values():
                    other.times.clear()
                return
            if turn:
                side.times.append(seconds)
        if turn >= FEWEST and patience.left < 0:
            break
    for _, side in sides.values():
        scattered = spread(side.times) > BOUND
        side.outcome = "noisy" if scattered else "measured"
        side.message = f"the spread is {spread(side.times):.0%}" if scattered else ""


def beside_plain(
    place: Place,
    grid: Grid,
    point: Point,
    given: Mapping[str, Given],
    rng: np.random.Generator,
    *,
    but: str | None = None,
) -> dict[str, Side]:
    """The plain layer and its variants in turn, without those that run as `but` says."""
    sides, calls = {name: Side() for name in given}, {}
    for name, data in given.items():
        made = _prepared(place, sides[name], partial(place.ours, data, point.precision, point.mode), {}, but)
        if made is not None:
            calls[name] = (made[0], sides[name])
    _take_turns(place, grid, calls, rng)
    return sides
