"""What a run found: dataclasses and their JSON form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

from lstmcore.config import check_version
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.startup import Start
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.json_files import check_schema, read_object

SCHEMA: Final = "lstmcore-benchmark"
#: Version of the JSON form. It grows when a field changes its meaning or goes; a new field does not change it.
VERSION: Final = 1


class Outcome(Enum):
    """What came of a job on a runtime. Only the first two have a time."""

    MEASURED = "measured"
    NOISY = "noisy"
    WRONG = "does not conform"
    THREADS = "too many threads"
    UNSUPPORTED = "unsupported"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Result:
    """A job on a candidate.

    Attributes
    ----------
    share
        The largest error as a share of its budget; up to 1 passes.
    build_s, first_s
        Seconds that making the layer and its first call took, compiling included; apart from the rest.
    median_s
        The median of the rounds' medians.
    spread
        The distance of the quartiles of the rounds' medians as a share of the median.
    rounds
        The rounds' medians; round k of one candidate is beside round k of the others.
    quantiles
        Of all calls: "0" is the shortest, "1" the longest.
    calls, attempts
        How many calls were timed, and how often the point was measured until its spread was within the bound.
    cores, others
        Processors that the runtime kept busy on average, and that everything else did meanwhile.
    peak_bytes
        The most memory in use while it was timed beyond what the runtime had with everything compiled and no layer.
    beside_variants
        Whether it was timed in turn with the variants of its layer, and not with peers.
    """

    job: Job
    candidate: Candidate
    outcome: Outcome
    message: str = ""
    how: str = ""
    share: float | None = None
    build_s: float | None = None
    first_s: float | None = None
    median_s: float | None = None
    spread: float | None = None
    rounds: tuple[float, ...] = ()
    quantiles: Mapping[str, float] = field(default_factory=dict)
    calls: int = 0
    attempts: int = 0
    cores: float | None = None
    others: float | None = None
    peak_bytes: int | None = None
    beside_variants: bool = False

    @property
    def gflops(self) -> float | None:
        """Floating-point operations of the products in 1e-9 s; None without a time."""
        return None if self.median_s is None else self.job.flops / self.median_s / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"job": self.job.to_dict(), "candidate": asdict(self.candidate), "outcome": self.outcome.value}
        return values | {"rounds": list(self.rounds), "quantiles": dict(self.quantiles), "gflops": self.gflops}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the inverse of `to_dict`."""
        known = {name: values[name] for name in cls.__slots__ if name in values}
        known |= {"job": Job.from_dict(values["job"]), "candidate": Candidate(**values["candidate"])}
        return cls(**known | {"outcome": Outcome(values["outcome"]), "rounds": tuple(values["rounds"])})


@dataclass(frozen=True, slots=True)
class Roof:
    """What the machine can do with a number of threads: the bare loops of `roofs`."""

    threads: int
    precision: str
    gflops: float
    lanes: int
    #: Working set in bytes -> bytes read and written per 1e-9 s by a copy
    copies: Mapping[str, float]

    def over(self, job: Job) -> float:
        """GFLOP/s that the job reaches at most where its products read their weights at every step.

        The smaller of what the multiply-adds do and of what the fastest copies bring.
        """
        return min(self.gflops, job.flops / job.bytes * max(self.copies.values()))


#: Fields of a run that are tuples of objects.
_LISTS: Final = ("runtimes", "roofs", "results", "starts")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A whole run.

    Attributes
    ----------
    settings
        Grid, modes, plan, seed.
    runtimes
        A dictionary for each candidate: label, versions, and message where it could not be started.
    """

    started: str
    seconds: float
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    runtimes: tuple[Mapping[str, Any], ...]
    roofs: tuple[Roof, ...]
    results: tuple[Result, ...]
    starts: tuple[Start, ...] = ()

    @property
    def grid(self) -> str:
        """The name of the grid; "own" where points were given in its place."""
        return "own" if self.settings.get("points") else str(self.settings.get("grid", "own"))

    def timed(self) -> Iterator[Result]:
        """Return the results that have a time."""
        return (result for result in self.results if result.median_s is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"runtimes": list(self.runtimes), "roofs": [asdict(roof) for roof in self.roofs]}
        values |= {"results": [one.to_dict() for one in self.results], "starts": [asdict(one) for one in self.starts]}
        return {"schema": SCHEMA, "version": VERSION} | values

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `summary.document` wrote.

        Raises
        ------
        ValueError
            Another file, a newer version, or one that does not fit benchmark.schema.json.
        ImportError
            jsonschema is not installed.
        """
        values = read_object(path)
        if values.get("schema") != SCHEMA:
            raise ValueError(f"{path}: expected a file that lstmcore bench wrote; got another")
        check_version(f"{path}: run", values.get("version"), VERSION)
        check_schema(path, values, SCHEMA)
        run = cls._of(values)
        try:
            run.check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return run

    def check(self) -> None:
        """Raise a ValueError unless the results make a grid: what is compared round by round has the same rounds."""
        seen: dict[tuple[Any, ...], set[Candidate]] = {}
        rounds: dict[tuple[Any, ...], int] = {}
        for index, one in enumerate(self.results):
            at = (one.job, one.candidate.threads, one.beside_variants)
            if one.candidate in seen.setdefault(at, set()):
                raise ValueError(f"results[{index}]: expected a runtime once at {one.job}; got it again")
            seen[at].add(one.candidate)
            # Variants are timed in turn with the plain layer.
            beside = (one.job.mode, one.job.precision, one.job.point) if one.beside_variants else one.job
            group = (beside, one.candidate.threads, one.beside_variants)
            if one.rounds and rounds.setdefault(group, len(one.rounds)) != len(one.rounds):
                raise ValueError(
                    f"results[{index}].rounds: expected {rounds[group]}, as others at {one.job}; got {len(one.rounds)}"
                )
        grids: dict[tuple[Any, ...], set[Candidate]] = {}
        plain = {at: found for at, found in seen.items() if not at[2]}
        for (job, threads, _), candidates in plain.items():
            backends = {one for one in candidates if one.kind == "backend"}
            grids.setdefault((job.mode, job.precision, threads), set()).update(backends)
        for (job, threads, _), candidates in plain.items():
            if missing := grids[job.mode, job.precision, threads] - candidates:
                raise ValueError(f"results: expected {min(one.name for one in missing)} at {job} too; got none")

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self:
        """Return the inverse of `to_dict`."""
        known = {name: values[name] for name in cls.__slots__ if name not in _LISTS}
        return cls(
            **known,
            runtimes=tuple(values["runtimes"]),
            roofs=tuple(Roof(**roof) for roof in values["roofs"]),
            results=tuple(map(Result.from_dict, values["results"])),
            starts=tuple(
                Start(**one | {"candidate": Candidate(**one["candidate"])}) for one in values.get("starts", ())
            ),
        )
