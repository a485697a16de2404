"""Jobs on a device: a backend, its paths and a peer are judged, then timed in turn by the device's clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from lstmcore.backend import Backend
from lstmcore_conformance.bench.grids import FEWEST
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.judging import budgets_beside_peer, expectation, judge, judge_losses, peer_budgets
from lstmcore_conformance.bench.results import Outcome, Result
from lstmcore_conformance.bench.runtimes import Prepared, resident
from lstmcore_conformance.bench.statistics import paired_ratio
from lstmcore_conformance.bench.timed_device import Device, Named
from lstmcore_conformance.bench.timing import measure, timed_result
from lstmcore_conformance.bench.worker_client import FailedError
from lstmcore_conformance.cases.case import Data
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.oracle.budgets import GROUP_FLOOR
from lstmcore_conformance.suite.backend_under_test import Failure

#: The difference of two paths that says nothing where there are too few rounds for an interval.
NOISE: Final = 0.02
#: Steps on which variants are judged: of all steps the reference on the host would take minutes.
JUDGED: Final = 4
_OUTPUTS: Final = ("y", "h_n", "c_n")
_PEER: Final = "peer"


@dataclass(frozen=True, slots=True)
class Compared:
    """The results of one job: the backend on the path that it takes by itself and on others, and the peer."""

    ours: Result
    peer: Result
    paths: Mapping[str, Result] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The job."""
        return self.ours.job

    @property
    def sides(self) -> dict[str, Result]:
        """All paths of the backend; the one that it takes by itself is ""."""
        return {"": self.ours, **self.paths}

    @property
    def results(self) -> tuple[Result, ...]:
        """All results."""
        return (self.ours, self.peer, *self.paths.values())

    @property
    def fastest(self) -> str | None:
        """The path with the least time, None if none has any."""
        medians = {name: side.median_s for name, side in self.sides.items() if side.median_s is not None}
        return min(medians, key=medians.__getitem__) if medians else None

    @property
    def chosen(self) -> str:
        """The path that a table of these results takes: "" if no other is faster by more than noise."""
        faster = {name: side for name, side in self.paths.items() if surely_faster(side, self.ours)}
        return min(faster, key=lambda name: faster[name].median_s or np.inf, default="")

    def ratio_of(self, path: str) -> tuple[float, float, float] | None:
        """Return the peer's time over that of a path and its interval (95 %); None if either has no time.

        That of the fastest path is picked from the rounds that it is computed from, and so biased upwards.
        """
        side = self.sides[path]
        return paired_ratio(self.peer.rounds, side.rounds) if side.rounds and self.peer.rounds else None

    def noisy(self, path: str) -> bool:
        """Return whether the times of the peer or of a path scatter."""
        return Outcome.NOISY in (self.sides[path].outcome, self.peer.outcome)

    def to_dict(self) -> dict[str, Any]:
        """Return the ratios, for JSON; the results are elsewhere in it."""
        values: dict[str, Any] = {"job": self.job.to_dict(), "fastest": self.fastest, "chosen": self.chosen}
        for prefix, path in (("", self.fastest or ""), ("default_", "")):
            ratio = self.ratio_of(path) or (None, None, None)
            values |= dict(zip((f"{prefix}ratio", f"{prefix}low", f"{prefix}high"), ratio, strict=True))
        return values


def surely_faster(side: Result, other: Result) -> bool:
    """Return whether `side` is faster by more than noise: by the interval of the ratio, with few rounds by `NOISE`."""
    if side.median_s is None or other.median_s is None:
        return False
    if len(side.rounds) == len(other.rounds) >= FEWEST:
        return paired_ratio(other.rounds, side.rounds)[1] > 1
    return side.median_s < other.median_s * (1 - NOISE)


def graphs_beside_launches(one: Compared) -> dict[str, Any]:
    """Return what graphs of a job came to, for JSON; `ratio` is the time of launches one by one over theirs."""
    side, ours = one.paths["graphs"], one.ours
    ratio = paired_ratio(ours.rounds, side.rounds)[0] if ours.rounds and side.rounds else None
    return {
        "job": one.job.to_dict(),
        "outcome": side.outcome.value,
        "message": side.message,
        "first_s": side.first_s,
        "graphs_s": side.median_s,
        "launches_s": ours.median_s,
        "ratio": ratio,
    }


class DeviceClock:
    """Times the calls of one job in this process; it answers as a worker's process does."""

    def __init__(self, device: Device, calls: Mapping[str, Prepared]) -> None:
        self.device, self.calls = device, calls

    def ask(self, do: str, **details: Any) -> Mapping[str, Any]:
        """Return the nanoseconds of calls that take `seconds` in all, at least one, after `settle` that are not timed.

        Raises
        ------
        FailedError
            The call raised.
        """
        prepared, times = self.calls[details["key"]], list[float]()
        try:
            with prepared.around():
                for _ in range(details["settle"]):
                    self.device.seconds(prepared.call)
                while not times or sum(times) < details["seconds"]:
                    times.append(self.device.seconds(prepared.call))
        except Exception as error:  # whatever a side raises is its result
            raise FailedError(_text(error)) from None
        return {"ns": [1e9 * one for one in times], "cpu_ns": 0, "wall_ns": 1e9 * sum(times), "used_ns": 0}


def compare(device: Device, job: Job, data: Data, truth: Named, rng: np.random.Generator) -> Compared:
    """Judge and time all sides of a job. What a side raises is its outcome."""
    wanted = {name: array for name, array in truth.items() if job.mode == "training" or name in _OUTPUTS}
    made = _Sides(device, wanted)
    made.add(_PEER, Result(job, device.peer, Outcome.ERROR), partial(device.bind_peer, job, data))
    for path in ("", *device.paths):
        empty = Result(job, device.candidate(path), Outcome.ERROR)
        if (reason := device.refusal(job.precision)) is not None:
            made.results[path] = replace(empty, outcome=Outcome.UNSUPPORTED, message=reason)
        else:
            here = device.on(path) if path else device
            default = made.calls.get("")
            made.add(path, empty, partial(here.bind, job, data), but=default.path if path and default else None)
    made.judge(job.precision)
    results = made.timed(rng)
    return Compared(results[""], results[_PEER], {path: results[path] for path in device.paths})


def compare_variants(
    device: Device, jobs: Mapping[Job, Data], rng: np.random.Generator, *, path: str = ""
) -> list[Result]:
    """Judge the plain layer and its variants on `JUDGED` steps and time them in turn.

    On a path, those that run as by default are left out: they are unsupported.
    """
    here, made = device.on(path) if path else device, _Sides(device, {})
    for job, data in jobs.items():
        name, empty = str(job), Result(job, device.candidate(path), Outcome.ERROR, beside_variants=True)
        but = device.bind(job, data).path if path else None
        made.add(name, empty, partial(here.bind, job, data), but=but)
        if name in made.calls:
            made.results[name] = _judged_by_oracle(here.backend, made.results[name])
    return list(made.timed(rng).values())


def _judged_by_oracle(backend: Backend, result: Result) -> Result:
    """Return the result with the verdict on a short call of the same layer, as on a processor."""
    point = result.job.point
    job = replace(result.job, point=point._replace(T=min(point.T, JUDGED)))
    try:
        share = judge(resident.prepare(backend, job, job.case.data).outputs(), expectation(job)).share
    except Failure as error:
        return replace(result, outcome=Outcome.WRONG, message=str(error))
    except Exception as error:  # whatever a side raises is its result
        return replace(result, message=_text(error))
    finally:
        budgets.forget()
    return replace(result, outcome=Outcome.MEASURED, share=share)


class _Sides:
    """The sides of one job that are prepared, judged and timed."""

    def __init__(self, device: Device, wanted: Named) -> None:
        self.device, self.wanted = device, wanted
        self.results: dict[str, Result] = {}
        self.calls: dict[str, Prepared] = {}
        self.lost: dict[str, dict[str, float]] = {}

    def add(self, name: str, empty: Result, prepare: Callable[[], Prepared], but: str | None = None) -> None:
        """Prepare a side, call it once and find what it loses; not where its kernel takes the path `but`."""
        result = empty
        try:
            made = prepare()
            if but is not None and made.path == but:
                message = made.fallback or "the same path"
                self.results[name] = replace(empty, outcome=Outcome.UNSUPPORTED, message=message, how=made.how)
                return
            with made.around():
                result = replace(empty, how=made.how, first_s=self.device.seconds(made.call))
                outputs = made.outputs()
            if absent := [one for one in self.wanted if one not in outputs]:
                message = f"nothing under the name {absent[0]}"
                self.results[name] = replace(result, outcome=Outcome.WRONG, message=message)
                return
            self.calls[name], self.lost[name] = made, losses(self.device, outputs, self.wanted)
        except Exception as error:  # whatever a side raises is its result
            result = replace(result, message=_text(error))
        self.results[name] = result

    def judge(self, precision: str) -> None:
        """Judge the peer by what rounding may do, and our sides by what the peer loses."""
        peer_lost = self.lost.get(_PEER)
        for name, lost in self.lost.items():
            result = self.results[name]
            if name == _PEER:
                share, message = judge_losses(lost, peer_budgets(lost, precision))
            elif peer_lost is not None and self.results[_PEER].outcome is Outcome.MEASURED:
                share, message = judge_losses(lost, budgets_beside_peer(peer_lost, precision))
            else:
                why = self.results[_PEER].outcome.value
                self.results[name] = replace(result, message=f"nothing to judge it by: the peer {why}")
                continue
            outcome = Outcome.WRONG if message else Outcome.MEASURED
            known = share if np.isfinite(share) else None
            self.results[name] = replace(result, outcome=outcome, message=message, share=known)

    def timed(self, rng: np.random.Generator) -> dict[str, Result]:
        """Return the results, those that are right with their times."""
        plan = self.device.grid.plan
        right = {name: call for name, call in self.calls.items() if self.results[name].outcome is Outcome.MEASURED}
        clock = DeviceClock(self.device, right)
        samples = measure({name: (clock, name) for name in right}, plan, rng, threads=1, busy=lambda: 0.0)
        timed = {name: timed_result(self.results[name], samples[name], plan) for name in right}
        return self.results | {name: replace(one, cores=None, others=None) for name, one in timed.items()}


def losses(device: Device, outputs: Named, wanted: Named) -> dict[str, float]:
    """Return name -> the largest error, relative to the array's scale.

    Arrays that are smaller than the largest of theirs by `GROUP_FLOOR` are not asked for more than it gives.
    """
    scales = {name: device.scale(array) for name, array in wanted.items()}
    groups = [[name for name in scales if (name in _OUTPUTS) == inner] for inner in (True, False)]
    lost: dict[str, float] = {}
    for group in groups:
        floor = GROUP_FLOOR * max((scales[name] for name in group), default=0.0)
        for name in group:
            error = device.error(outputs[name], wanted[name])
            lost[name] = error / max(scales[name], floor, np.finfo(float).tiny)
    return lost


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
