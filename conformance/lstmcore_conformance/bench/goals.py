"""The goals on a GPU, the table by which the backend decides, and what a run on a device comes to in few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lstmcore_conformance.bench.device_points import Compared, surely_faster
from lstmcore_conformance.bench.grids import first_goal
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.results import Outcome
from lstmcore_conformance.bench.statistics import geometric_mean


@dataclass(frozen=True, slots=True)
class Goal:
    """What the ratios of some jobs, the peer's time over ours, have to reach in the mean and at the worst."""

    name: str
    precisions: tuple[str, ...]
    least_mean: float | None = None
    least: float | None = None
    first: bool | None = None

    def holds_for(self, job: Job) -> bool:
        """Return whether the goal is about this job."""
        if job.mode != "training" or job.precision not in self.precisions:
            return False
        return self.first is None or self.first == first_goal(job.point)


GOALS: Final = (
    Goal("tf32 and bf16, H 256 to 1024, N <= 64", ("tf32", "bfloat16"), least_mean=2.0, least=1.0, first=True),
    Goal("tf32 and bf16, the rest", ("tf32", "bfloat16"), least=0.95, first=False),
    Goal("fp16, where cuDNN has a persistent kernel too", ("float16",), least=0.9),
)
#: A variant may take so many times what the plain layer takes.
MOST_OF_PLAIN: Final = 1.3


def persistent(job: Job) -> bool:
    """Return whether cuDNN's persistent kernel takes the job, by PyTorch's rule for it."""
    N, H = job.point.N, job.point.H
    return job.precision == "float16" and H % 128 == 0 and H <= 1024 and N % 8 == 0 and N <= 128


def summary(compared: Sequence[Compared], *, table: bool = True) -> dict[str, Any]:
    """Return means and worst points by precision and mode, and how far the goals are reached.

    `table`: whether the run makes a table that may choose another path than the default one.
    """
    kinds: dict[tuple[str, str], list[Compared]] = {}
    for one in compared:
        kinds.setdefault((one.job.precision, one.job.mode), []).append(one)
    return {
        "ratios": [
            {"precision": precision, "mode": mode}
            | _figures(these, lambda one: one.fastest or "")
            | {"default": _figures(these, lambda _: "")}
            for (precision, mode), these in kinds.items()
        ],
        "goals": [_goal(goal, compared, table=table) for goal in GOALS],
        "paths": [
            {"precision": precision, "mode": mode, "path": path} | _beside_default(path, these)
            for path in dict.fromkeys(path for one in compared for path in one.paths)
            for (precision, mode), these in kinds.items()
        ],
    }


def table_of(compared: Sequence[Compared], gpu: str) -> list[dict[str, Any]]:
    """Return the rows of measured.json, the table by which the backend cupy decides: where persistent kernels win.

    A row is false if they are wrong, fail, or are not faster by more than noise, so that no neighbour's row decides.
    Sizes that they do not have are left out.
    """
    return [
        {
            "gpu": gpu,
            "precision": one.job.precision,
            "mode": one.job.mode,
            "batch": one.job.point.N,
            "hidden": one.job.point.H,
            "persistent": surely_faster(one.paths["persistent"], one.ours),
        }
        for one in compared
        if "persistent" in one.paths and one.paths["persistent"].outcome is not Outcome.UNSUPPORTED
    ]


def _beside_default(path: str, compared: Sequence[Compared]) -> dict[str, Any]:
    """Return at how many points a path is faster than the default one, and at which it is not."""
    medians = [(one, one.paths[path].median_s, one.ours.median_s) for one in compared]
    both = [(one, theirs, default) for one, theirs, default in medians if theirs is not None and default is not None]
    slower = [_sizes(one.job) for one, theirs, default in both if theirs >= default]
    return {"points": len(both), "faster": len(both) - len(slower), "slower_at": slower}


def _figures(compared: Sequence[Compared], path: Callable[[Compared], str]) -> dict[str, Any]:
    """Return what the ratios by `path` come to; `wrong` counts points with a side that does not conform."""
    ratios = [(ratio[0], one) for one in compared if (ratio := one.ratio_of(path(one))) is not None]
    wrong = sum(any(side.outcome is Outcome.WRONG for side in one.results) for one in compared)
    figures: dict[str, Any] = {"points": len(ratios), "without": len(compared) - len(ratios), "wrong": wrong}
    if not ratios:
        return figures | {"mean": None, "worst": None, "worst_at": None, "noisy": 0}
    worst, at = min(ratios, key=lambda pair: pair[0])
    noisy = sum(one.noisy(path(one)) for _, one in ratios)
    mean = geometric_mean([ratio for ratio, _ in ratios])
    return figures | {"mean": mean, "worst": worst, "worst_at": _sizes(at.job), "noisy": noisy}


def _sizes(job: Job) -> str:
    return f"N={job.point.N}, H={job.point.H}"


def _goal(goal: Goal, compared: Sequence[Compared], *, table: bool) -> dict[str, Any]:
    """Return whether a goal is reached, by the default path or that of the run's table; None if no point says so."""
    about = [one for one in compared if goal.holds_for(one.job)]
    if goal.precisions == ("float16",):
        about = [one for one in about if persistent(one.job)]
    figures = _figures(about, lambda one: one.chosen if table else "")
    reached: bool | None = None
    if figures["mean"] is not None:
        reached = not figures["without"] and (
            (goal.least_mean is None or figures["mean"] >= goal.least_mean)
            and (goal.least is None or figures["worst"] >= goal.least)
        )
    return {"goal": goal.name, "least_mean": goal.least_mean, "least": goal.least, "reached": reached} | figures


# Lines ----------------------------------------------------------------------------------------------------------------


def lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of table.txt, of the run's JSON."""
    machine, device = values["machine"], values["device"]
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    yield f"{machine['processor']}; driver {machine.get('driver', 'none')}; {versions}; commit {device['commit']}"
    yield device["conformance"]["verdict"] if device["conformance"] else "conformance: not run"
    for path, judged in device["paths"].items():
        yield f"{path}: {judged['verdict']}"
    for name, cost in device["micro"].items():
        yield f"  {name}: {cost if isinstance(cost, str) else f'{cost:.2f} us'}"
    for name, share in device.get("tensors", {}).items():
        yield f"  PyTorch's tensors, {name}: {share if isinstance(share, str) else f'{share:.2g} of the largest error'}"
    yield from _training_lines(device["training"])
    yield f"time of {device['peer']} over ours, inputs on the device ({device['name']}):"
    yield "  default: the path that an installed package takes today; the goals are judged by it, or by the other path"
    yield "  where this run's table takes it. fastest: picked from the same rounds, so biased upwards."
    yield from _ratio_lines(device["summary"])
    yield from _goal_lines(device["summary"])
    for one in values["variants"]:
        verdict = "reached" if one["geometric_mean"] <= MOST_OF_PLAIN else "missed"
        setting = f"{one['mode']} {one['precision']}, {one['backend']}, {one['variant']}"
        yield f"  {setting}: {one['geometric_mean']:.2f} of plain, goal {MOST_OF_PLAIN:g}: {verdict}"
    if device["no_table"]:
        yield f"  no measured.json: {device['no_table']}"
    if device["not_reached"]:
        yield f"  no time was left for {len(device['not_reached'])} points, first {device['not_reached'][0]}"
    for text in device["errors"]:
        yield f"  error: {text}"


def _training_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each run from end to end, with the peer's time over its own."""
    peers = {(one["data"], one["precision"], one["arrays"]): one["step_s"] for one in found if one["peer"]}
    for data in dict.fromkeys(one["data"] for one in found):
        yield f"training from end to end, {data}, with a linear readout:"
        for one in (one for one in found if one["data"] == data):
            kind = f"{one['precision']}, {one['peer'] or one['path'] or 'default'}, arrays of the {one['arrays']}"
            cost = f"{1e6 * one['step_s']:.0f} us a step"
            if not one["peer"] and (theirs := peers.get((data, one["precision"], one["arrays"]))) is not None:
                cost += f", {theirs / one['step_s']:.2f} of the peer's speed"
            yield f"  {kind}: {cost}, loss {one['losses'][0]:.3f} to {one['losses'][-1]:.3f}"


def _ratio_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"  {'precision':10}{'mode':11}{'path':9}{'points':>7}{'mean':>7}{'worst':>7}  "
        f"{'at':15}{'noisy':>6}{'without':>8}{'wrong':>6}"
    )
    for one in found["ratios"]:
        for path, its in (("default", one["default"]), ("fastest", one)):
            mean, worst = (f"{its[name]:.2f}" if its[name] is not None else "-" for name in ("mean", "worst"))
            yield (
                f"  {one['precision']:10}{one['mode']:11}{path:9}{its['points']:>7}{mean:>7}{worst:>7}  "
                f"{its['worst_at'] or '-':15}{its['noisy']:>6}{its['without']:>8}{its['wrong']:>6}"
            )


def _goal_lines(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found["goals"]:
        verdict = {True: "reached", False: "missed", None: "open"}[one["reached"]]
        wanted = [f"mean >= {one['least_mean']:g}"] if one["least_mean"] is not None else []
        wanted += [f"worst >= {one['least']:g}"] if one["least"] is not None else []
        yield f"  goal, forward and backward, {one['goal']}, {', '.join(wanted)}: {verdict}, {one['points']} points"
    for one in found["paths"]:
        slow = f", slower at {shortened(one['slower_at'])}" if one["slower_at"] else ""
        share = f"{one['faster']} of the {one['points']} points that both can do"
        yield f"  {one['precision']}, {one['mode']}: the {one['path']} path is faster at {share}{slow}"


def shortened(texts: Sequence[str], most: int = 6) -> str:
    """Return as many of the texts as a line has room for, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
