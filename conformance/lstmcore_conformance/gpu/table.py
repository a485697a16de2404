"""What a run comes to, in few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lstmcore_conformance.bench.statistics import geometric_mean
from lstmcore_conformance.gpu.plan import GOALS, MOST_OF_PLAIN, Goal, Point, persistent
from lstmcore_conformance.gpu.timing import Compared, Side, surely_faster


def summary(
    points: Sequence[Compared], variants: Mapping[str, Mapping[str, Side]], *, table: bool = True
) -> dict[str, Any]:
    """Means and worst points by precision and mode, and how far the goals are reached; for JSON and for the table.

    `table`: whether the run makes a table that may choose another path than the default one.
    """
    kinds = dict.fromkeys((one.point.precision, one.point.mode) for one in points)
    return {
        "ratios": [
            {"precision": precision, "mode": mode}
            | _figures(these, lambda one: one.fastest or "")
            | {"default": _figures(these, lambda _: "")}
            for precision, mode in kinds
            for these in [[one for one in points if (one.point.precision, one.point.mode) == (precision, mode)]]
        ],
        "goals": [_goal(goal, points, table=table) for goal in GOALS],
        "paths": [
            {"precision": precision, "mode": mode, "path": path}
            | _beside(path, [one for one in points if (one.point.precision, one.point.mode) == (precision, mode)])
            for path in dict.fromkeys(path for one in points for path in one.paths)
            for precision, mode in kinds
        ],
        "variants": [
            {"setting": setting, "variant": name, "over_plain": over, "reached": over <= MOST_OF_PLAIN}
            for setting, sides in variants.items()
            for name, side in sides.items()
            if name != "plain" and (over := _over(side, sides.get("plain"))) is not None
        ],
    }


def _over(side: Side, plain: Side | None) -> float | None:
    if side.median is None or plain is None or plain.median is None:
        return None
    return side.median / plain.median


def table_of(points: Sequence[Compared], gpu: str) -> list[dict[str, Any]]:
    """Where the persistent kernels were faster: rows of the table by which the backend cupy decides, measured.json.

    Where they are wrong, fail, or are not faster by more than noise, the row says that they are not to be taken, so
    that no neighbour's decides. Only sizes that they do not have are left out.
    """
    return [
        {
            "gpu": gpu,
            "precision": one.point.precision,
            "mode": one.point.mode,
            "batch": one.point.N,
            "hidden": one.point.H,
            "persistent": surely_faster(one.paths["persistent"], one.ours),
        }
        for one in points
        if "persistent" in one.paths and one.paths["persistent"].outcome != "unsupported"
    ]


def _beside(path: str, points: Sequence[Compared]) -> dict[str, Any]:
    """At how many points a path is faster than what is taken by itself, and where it is not."""
    medians = [(one, one.paths[path].median, one.ours.median) for one in points]
    both = [(one, path_s, own_s) for one, path_s, own_s in medians if path_s is not None and own_s is not None]
    slower = [_sizes(one.point) for one, path_s, own_s in both if path_s >= own_s]
    return {"points": len(both), "faster": len(both) - len(slower), "slower_at": slower}


def _figures(points: Sequence[Compared], path: Callable[[Compared], str]) -> dict[str, Any]:
    """Of the points with a ratio by `path`; `wrong`: those where a side does not conform; `without`: those without."""
    ratios = [(ratio[0], one) for one in points if (ratio := one.ratio_of(path(one))) is not None]
    outcomes = [{one.peer.outcome, *(side.outcome for side in one.sides.values())} for one in points]
    wrong = sum("does not conform" in these for these in outcomes)
    found: dict[str, Any] = {"points": len(ratios), "without": len(points) - len(ratios), "wrong": wrong}
    if not ratios:
        return found | {"mean": None, "worst": None, "worst_at": None, "noisy": 0}
    worst, at = min(ratios, key=lambda pair: pair[0])
    noisy = sum(one.noisy(path(one)) for _, one in ratios)
    mean = geometric_mean([ratio for ratio, _ in ratios])
    return found | {"mean": mean, "worst": worst, "worst_at": _sizes(at.point), "noisy": noisy}


def _some(texts: Sequence[str], most: int = 6) -> str:
    """As many as a line of the table has room for."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _sizes(point: Point) -> str:
    return f"N={point.N}, H={point.H}"


def _goal(goal: Goal, points: Sequence[Compared], *, table: bool) -> dict[str, Any]:
    """Whether a goal is reached, by the default path or that of the run's table; None where no point says so."""
    about = [one for one in points if goal.holds_for(one.point)]
    if goal.precisions == ("float16",):
        about = [one for one in about if persistent(one.point)]
    figures = _figures(about, lambda one: one.chosen if table else "")
    reached: bool | None = None
    if figures["mean"] is not None:
        reached = not figures["without"] and (
            (goal.least_mean is None or figures["mean"] >= goal.least_mean)
            and (goal.least is None or figures["worst"] >= goal.least)
        )
    return {"goal": goal.name, "least_mean": goal.least_mean, "least": goal.least, "reached": reached} | figures


def lines(values: Mapping[str, Any]) -> Iterator[str]:
    """The table, of the run's JSON."""
    facts = values["facts"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield f"{facts['device']}; driver {facts.get('driver', 'none')}; {versions}; commit {values['commit']}"
    yield values["conformance"]["verdict"] if values["conformance"] else "conformance: not run"
    for path, judged in values["paths"].items():
        yield f"{path}: {judged['verdict']}"
    for name, cost in values["micro"].items():
        yield f"  {name}: {cost if isinstance(cost, str) else f'{cost:.2f} us'}"
    yield f"time of {values['peer']} over ours, inputs on the device ({values['place']}):"
    yield "  default: the path that an installed package takes today; the goals are judged by it, or by the other path"
    yield "  where this run's table takes it. fastest: picked from the same rounds, so biased upwards."
    yield (
        f"  {'precision':10}{'mode':11}{'path':9}{'points':>7}{'mean':>7}{'worst':>7}  "
        f"{'at':15}{'noisy':>6}{'without':>8}{'wrong':>6}"
    )
    for one in values["summary"]["ratios"]:
        for path, its in (("default", one["default"]), ("fastest", one)):
            mean, worst = (f"{its[name]:.2f}" if its[name] is not None else "-" for name in ("mean", "worst"))
            yield (
                f"  {one['precision']:10}{one['mode']:11}{path:9}{its['points']:>7}{mean:>7}{worst:>7}  "
                f"{its['worst_at'] or '-':15}{its['noisy']:>6}{its['without']:>8}{its['wrong']:>6}"
            )
    for one in values["summary"]["goals"]:
        said = {True: "reached", False: "missed", None: "open"}[one["reached"]]
        wanted = [f"mean >= {one['least_mean']:g}"] if one["least_mean"] is not None else []
        wanted += [f"worst >= {one['least']:g}"] if one["least"] is not None else []
        yield f"  goal, forward and backward, {one['goal']}, {', '.join(wanted)}: {said}, {one['points']} points"
    for one in values["summary"]["paths"]:
        slow = f", slower at {_some(one['slower_at'])}" if one["slower_at"] else ""
        share = f"{one['faster']} of the {one['points']} points that both can do"
        yield f"  {one['precision']}, {one['mode']}: the {one['path']} path is faster at {share}{slow}"
    for one in values["summary"]["variants"]:
        said = "reached" if one["reached"] else "missed"
        yield f"  {one['setting']}, {one['variant']}: {one['over_plain']:.2f} of plain, goal {MOST_OF_PLAIN:g}: {said}"
    if values["no_table"]:
        yield f"  no measured.json: {values['no_table']}"
    if values["not_reached"]:
        yield f"  no time was left for {len(values['not_reached'])} points, first {values['not_reached'][0]}"
    for text in values["errors"]:
        yield f"  error: {text}"
