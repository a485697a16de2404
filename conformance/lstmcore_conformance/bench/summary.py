"""What a run comes to: each backend beside the best peer, and each switch beside the plain layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lstmcore_conformance.bench.jobs import Job, Mode
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result, Roof
from lstmcore_conformance.bench.statistics import geometric_mean, paired_ratio
from lstmcore_conformance.render.compact_json import compact_json


class Setting(NamedTuple):
    """What one table is about."""

    mode: Mode
    precision: str
    threads: int

    def __str__(self) -> str:
        return f"{self.mode}, {self.precision}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A backend's time at one point beside that of the best peer: above 1 the backend is faster.

    `low` and `high` bound the ratio by a bootstrap over the rounds, in which the two ran one shortly after the other.
    """

    ours: Result
    peer: Result
    ratio: float
    low: float
    high: float

    @property
    def noisy(self) -> bool:
        """Whether either time is."""
        return Outcome.NOISY in (self.ours.outcome, self.peer.outcome)


@dataclass(frozen=True, slots=True)
class Summary:
    """A backend in one setting. `refused` counts its points without a time, for whatever reason."""

    setting: Setting
    backend: str
    comparisons: tuple[Comparison, ...]
    refused: int

    @property
    def mean(self) -> float:
        """The geometric mean of the ratios."""
        return geometric_mean([one.ratio for one in self.comparisons])

    @property
    def worst(self) -> Comparison:
        """The point with the smallest ratio."""
        return min(self.comparisons, key=lambda one: one.ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return {
            **self.setting._asdict(),
            "backend": self.backend,
            "points": len(self.comparisons),
            "noisy": sum(one.noisy for one in self.comparisons),
            "refused": self.refused,
            "geometric_mean": self.mean,
            "worst": {"point": self.worst.ours.job.point._asdict(), "ratio": self.worst.ratio},
            "ratios": [
                {
                    "point": one.ours.job.point._asdict(),
                    "peer": one.peer.candidate.name,
                    "ratio": one.ratio,
                    "low": one.low,
                    "high": one.high,
                }
                for one in self.comparisons
            ],
        }


@dataclass(frozen=True, slots=True)
class Variant:
    """The time with a switch over the time of the plain layer, at each point; `noisy` where either time is."""

    setting: Setting
    backend: str
    name: str
    ratios: tuple[tuple[Job, float], ...]
    noisy: frozenset[Job] = frozenset()

    @property
    def mean(self) -> float:
        """The geometric mean over the points."""
        return geometric_mean([ratio for _, ratio in self.ratios])

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max(ratio for _, ratio in self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        ratios = [{"point": job.point._asdict(), "ratio": ratio} for job, ratio in self.ratios]
        known = {"backend": self.backend, "variant": self.name, "geometric_mean": self.mean, "worst": self.worst}
        return {**self.setting._asdict(), **known, "noisy": len(self.noisy), "ratios": ratios}


def setting(result: Result) -> Setting:
    """Where a result belongs."""
    return Setting(result.job.mode, result.job.precision, result.candidate.threads)


def settings(results: Iterable[Result]) -> list[Setting]:
    """All settings, in the order in which they were measured first."""
    return list(dict.fromkeys(map(setting, results)))


def plain(benchmark: Benchmark, at: Setting) -> list[Result]:
    """Return the results of the grid in one setting; those beside variants are not in it."""
    return [one for one in benchmark.results if setting(one) == at and not one.beside_variants]


def fastest(results: Iterable[Result]) -> Result | None:
    """Return the result with the least time, None if none has a time."""
    return min((one for one in results if one.median_s is not None), key=lambda one: one.median_s or 0.0, default=None)


def best_peer(results: Sequence[Result]) -> Result | None:
    """Return the fastest peer of one point, None if none has a time."""
    return fastest(one for one in results if one.candidate.kind == "peer")


def compare(ours: Result, peer: Result) -> Comparison:
    """Return the comparison of the two, round by round."""
    return Comparison(ours, peer, *paired_ratio(peer.rounds, ours.rounds))


def summaries(benchmark: Benchmark) -> list[Summary]:
    """Every backend in every setting in which it and a peer have a time at some point."""
    found = []
    for at in settings(benchmark.results):
        results = plain(benchmark, at)
        for name in dict.fromkeys(one.candidate.title for one in results if one.candidate.kind == "backend"):
            pairs, refused = [], 0
            for job in dict.fromkeys(one.job for one in results):
                here = [one for one in results if one.job == job]
                ours = next(one for one in here if (one.candidate.kind, one.candidate.title) == ("backend", name))
                peer = best_peer(here)
                refused += ours.median_s is None
                if peer is not None and ours.median_s is not None:
                    pairs.append(compare(ours, peer))
            if pairs:
                found.append(Summary(at, name, tuple(pairs), refused))
    return found


def variants(benchmark: Benchmark) -> list[Variant]:
    """Every switch of every backend in every setting."""
    found = []
    results = [one for one in benchmark.results if one.beside_variants and one.median_s is not None]
    plains = {(setting(one), one.candidate, one.job.point): one for one in results if one.job.variant == "plain"}
    for at in settings(results):
        here = [one for one in results if setting(one) == at and one.job.variant != "plain"]
        for backend, name in dict.fromkeys((one.candidate.name, one.job.variant) for one in here):
            ratios, noisy = [], set()
            for one in here:
                base = plains.get((at, one.candidate, one.job.point))
                if (one.candidate.name, one.job.variant) == (backend, name) and base is not None:
                    ratios.append((one.job, paired_ratio(one.rounds, base.rounds)[0]))
                    if Outcome.NOISY in (one.outcome, base.outcome):
                        noisy.add(one.job)
            if ratios:
                found.append(Variant(at, backend, name, tuple(ratios), frozenset(noisy)))
    return found


def roof_of(benchmark: Benchmark, at: Setting) -> Roof | None:
    """Return the machine's roof in that setting."""
    return next((one for one in benchmark.roofs if (one.threads, one.precision) == (at.threads, at.precision)), None)


def document(benchmark: Benchmark) -> str:
    """Return the run as JSON, with its summary."""
    known = {"summary": [one.to_dict() for one in summaries(benchmark)]}
    known |= {"variants": [one.to_dict() for one in variants(benchmark)]}
    return compact_json(benchmark.to_dict() | known)
