"""A run as pictures (needs matplotlib, the extra `plot`)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lstmcore_conformance.bench import grids
from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result, Roof
from lstmcore_conformance.bench.summary import best_peer, plain, roof_of, settings
from lstmcore_conformance.bench.tables import digits
from lstmcore_conformance.bench.worker_client import Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that are told apart with any eyes (Okabe and Ito): the peers have theirs, backends take the others in turn.
_PEERS: Final = {
    "torch": "#d55e00",
    "torch-packed": "#d55e00",
    "torch-padded": "#882255",
    "onnxruntime": "#009e73",
    "jax": "#cc79a7",
    "tutorial": "#8a8a8a",
}
_BACKENDS: Final = ("#0072b2", "#e69f00", "#56b4e9", "#000000", "#b39c00")
_MARKS: Final = {
    "torch": "s",
    "torch-packed": "s",
    "torch-padded": "<",
    "onnxruntime": "D",
    "jax": "^",
    "tutorial": "v",
}
_OWN_MARKS: Final = ("o", "p", "h", "X", "*")
_INK: Final = "#33393f"
_SOFT: Final = "#6b737c"
_LETTERS: Final = {"T": "steps T", "N": "rows N", "H": "hidden units H"}


def pictures(benchmark: Benchmark) -> Iterator[tuple[str, str, Figure]]:
    """Name, what it shows, and the figure, for everything that the run has enough points for.

    What it shows, where and when are written on the figure too: a picture goes its own way.
    """
    machine = benchmark.machine
    where = f"{machine['processor']}, {machine['cores']} cores; {benchmark.started[:10]}; lstmcore bench"
    for name, title, figure in _pictures(benchmark):
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=_INK)
        figure.supxlabel(where, x=0.99, ha="right", fontsize=7.5, color=_SOFT)
        yield name, title, figure


def _pictures(benchmark: Benchmark) -> Iterator[tuple[str, str, Figure]]:
    for at in settings(benchmark.results):
        results = [one for one in plain(benchmark, at) if one.median_s is not None]
        name = f"{at.mode}-{at.precision}-{at.threads}"
        if not results:
            continue
        if at.mode == "streaming":
            yield f"latency-{name}", f"Latency of a step, {at}", _latency(results)
            continue
        yield f"speed-{name}", f"Speed beside the best peer, {at}", _speed(results)
        for letter in _LETTERS:
            if series := _sweep(results, letter):
                title = f"Time against {_LETTERS[letter]}, {at}"
                yield f"scaling-{letter}-{name}", title, _scaling(results, series, letter)
        for backend in dict.fromkeys(one.candidate.title for one in results if one.candidate.kind == "backend"):
            cells = list(_cells(results, backend))
            if len({(job.point.N, job.point.H) for job, *_ in cells}) > 3:
                yield f"map-{backend}-{name}", f"{backend} over N and H, {at}", _maps(cells)
        if (roof := roof_of(benchmark, at)) is not None:
            yield f"roofline-{name}", f"Roofline, {at}", _roofline(results, roof)


def file_name(name: str) -> str:
    """Return the name of a picture as every system takes it for a file."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the figure as "png" or "svg"; the same run gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "lstmcore", "svg.fonttype": "path"}):
        figure.savefig(stream, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


# Parts ----------------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, count: int = 1, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many axes, so many of them side by side at most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    columns = min(count, columns)
    axes = [figure.add_subplot(-(-count // columns), columns, 1 + place) for place in range(count)]
    for one in axes:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        one.tick_params(colors=_INK, labelsize=9)
    return figure, axes


def _look(candidates: Iterable[Candidate]) -> dict[Candidate, dict[str, Any]]:
    """Colour, mark and label of each; backends in front."""
    found: dict[Candidate, dict[str, Any]] = {}
    own = cycle(zip(_BACKENDS, _OWN_MARKS, strict=True))
    for one in candidates:
        peer = one.name in _PEERS and one.kind == "peer"  # a stand-in of a peer has the look of a backend
        colour, mark = (_PEERS[one.name], _MARKS[one.name]) if peer else next(own)
        found[one] = {"color": colour, "marker": mark, "label": one.label, "zorder": 2 if peer else 3}
    return found


def _candidates(results: Sequence[Result]) -> list[Candidate]:
    return list(dict.fromkeys(one.candidate for one in results))


def _by_point(results: Sequence[Result]) -> dict[Job, list[Result]]:
    found: dict[Job, list[Result]] = {}
    for one in results:
        found.setdefault(one.job, []).append(one)
    return found


def _points(
    axes: Axes, results: Sequence[Result], across: Sequence[float], up: Sequence[float], style: Mapping[str, Any]
) -> None:
    """Draw the results there, the noisy ones hollow."""
    axes.plot(across, up, **style)
    noisy = [place for place, one in enumerate(results) if one.outcome is Outcome.NOISY]
    hollow = {**style, "label": None, "linestyle": "", "markerfacecolor": "white", "alpha": None}
    axes.plot([across[place] for place in noisy], [up[place] for place in noisy], **hollow)


def _of(points: Sequence[Point], results: Sequence[Result]) -> Sequence[Result]:
    """Those of the points, where the run has them all; else all."""
    whole = {one.job.point for one in results}.issuperset(points)
    return [one for one in results if one.job.point in points] if whole else results


def _plain_numbers(axis: Any, ticks: Sequence[float] | None = None, *, dense: bool = False) -> None:
    """Numbers on a logarithmic axis as people write them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(
            LogLocator(10, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if dense else (1.0, 2.0, 5.0), numticks=9)
        )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# Pictures -------------------------------------------------------------------------------------------------------------


def _speed(results: Sequence[Result]) -> Figure:
    """How fast each runtime is beside the best peer, at each point: of a run that sweeps sizes too, of the table's."""
    points = _by_point(_of(grids.STANDARD, results))
    figure, (axes,) = _figure(8.2, 1.7 + 0.36 * len(points))
    look, named = _look(_candidates(results)), set()
    lanes = dict(zip(look, np.linspace(-0.28, 0.28, len(look)), strict=True))
    for row, here in enumerate(points.values()):
        peer = best_peer(here)
        base = peer.median_s if peer is not None else min(one.median_s or np.inf for one in here)
        for one in here:
            style = dict(look[one.candidate])
            if one.candidate in named:
                style.pop("label")
            named.add(one.candidate)
            if one.outcome is Outcome.NOISY:
                style["markerfacecolor"] = "white"
            # Each runtime has a lane of its own: those that are as fast as each other do not hide each other.
            place = row + lanes[one.candidate]
            axes.plot((base or 1.0) / (one.median_s or 1.0), place, linestyle="", markersize=6, **style)
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", zorder=0)
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis, dense=True)
    axes.set_yticks(range(len(points)), [str(job.point) for job in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_ylabel("T, N, I, H", color=_INK)
    axes.set_xlabel("speed over the best peer's (hollow: noisy)", color=_INK)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(look), frameon=False, fontsize=9)
    return figure


def _sweep(results: Sequence[Result], letter: str) -> list[Point]:
    """Return the longest run of points of which only that size differs; empty with fewer than four."""
    found: dict[tuple[int, ...], list[Point]] = {}
    for point in dict.fromkeys(one.job.point for one in results):
        others = tuple(size for name, size in point._asdict().items() if name != letter)
        found.setdefault(others, []).append(point)
    longest = max(found.values(), key=len)
    return sorted(longest) if len(longest) > 3 else []


def _scaling(results: Sequence[Result], series: Sequence[Point], letter: str) -> Figure:
    """Time against one size, the others fixed."""
    figure, (axes,) = _figure(6.4, 4.2)
    sizes = [getattr(point, letter) for point in series]
    for candidate, style in _look(_candidates(results)).items():
        here = {one.job.point: one for one in results if one.candidate == candidate}
        found = [here[point] for point in series if point in here]
        across = [getattr(one.job.point, letter) for one in found]
        _points(axes, found, across, [1e3 * (one.median_s or 0.0) for one in found], style | {"markersize": 5})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _plain_numbers(axes.xaxis, _apart(sizes))
    _plain_numbers(axes.yaxis)
    fixed = ", ".join(f"{name} = {size}" for name, size in series[0]._asdict().items() if name != letter)
    axes.set_xlabel(f"{_LETTERS[letter]} ({fixed}; hollow: noisy)", color=_INK)
    axes.set_ylabel("ms a call", color=_INK)
    axes.grid(color="#e3e6ea", linewidth=0.7)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _apart(sizes: Sequence[int]) -> list[int]:
    """Those whose numbers have room on a logarithmic axis."""
    found: list[int] = []
    for size in sizes:
        if not found or size >= 1.5 * found[-1]:
            found.append(size)
    return found


_Cell = tuple[Job, float, float, bool]


def _cells(results: Sequence[Result], backend: str) -> Iterator[_Cell]:
    """Job, seconds of a step, ratio and whether it is noisy, of each point at which the backend and a peer have a time.

    Of the points that differ in N and H alone where the run has them all, else of every point.
    """
    for job, here in _by_point(_of(grids.MAP, results)).items():
        ours = next((one for one in here if (one.candidate.kind, one.candidate.title) == ("backend", backend)), None)
        peer = best_peer(here)
        if ours is not None and peer is not None and ours.median_s and peer.median_s:
            noisy = Outcome.NOISY in (ours.outcome, peer.outcome)
            yield job, ours.median_s / job.point.T, peer.median_s / ours.median_s, noisy


def _maps(cells: Sequence[_Cell]) -> Figure:
    """Time of a step and ratio, over rows and hidden units; where points share both, their geometric mean."""
    from matplotlib.colors import LogNorm

    rows, columns = (sorted({getattr(job.point, letter) for job, *_ in cells}) for letter in "NH")
    figure, axes = _figure(4.0 + 1.15 * len(columns), 2.0 + 0.42 * len(rows), 2)
    ratios = [ratio for _, _, ratio, _ in cells]
    noisy = {(job.point.N, job.point.H) for job, *_, marked in cells if marked}
    reach = max(2.0, *ratios, *(1 / ratio for ratio in ratios))
    shown: tuple[tuple[Axes, str, int, str, Any, Callable[[float], str]], ...] = (
        (axes[0], "time of a step, us", 1, "viridis_r", None, lambda value: digits(value * 1e6)),
        (axes[1], "best peer / ours", 2, "RdBu", LogNorm(1 / reach, reach), lambda value: f"{value:.2f}"),
    )
    for one, title, place, colours, norm, text in shown:
        values = np.full((len(rows), len(columns)), np.nan)
        for row, n in enumerate(rows):
            for column, h in enumerate(columns):
                here = [cell[place] for cell in cells if (n, h) == (cell[0].point.N, cell[0].point.H)]
                if here:
                    values[row, column] = np.exp(np.mean(np.log(np.array(here, float))))
        image = one.imshow(values, cmap=colours, norm=norm or LogNorm(), aspect="auto", origin="lower")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else "black"
                mark = "~" * ((rows[row], columns[column]) in noisy)
                one.text(column, row, mark + text(value), ha="center", va="center", fontsize=8, color=ink)
        one.set_xticks(range(len(columns)), [str(value) for value in columns])
        one.set_yticks(range(len(rows)), [str(value) for value in rows])
        one.set_xlabel(_LETTERS["H"], color=_INK)
        one.set_ylabel(_LETTERS["N"], color=_INK)
        one.set_title(f"{title}{'; ~ is noisy' * bool(noisy)}", fontsize=10, color=_INK)
    return figure


def _roofline(results: Sequence[Result], roof: Roof) -> Figure:
    """GFLOP/s against the operations for each byte that the products read, weights at every step.

    One slope for each working set that was copied: weights that stay in registers or the first cache are above all.
    """
    figure, (axes,) = _figure(8.6, 4.6)
    peak, fastest = roof.gflops, max(roof.copies.values())
    intensities = [one.job.flops / one.job.bytes for one in results]
    low, high = min(intensities) / 2, max(*intensities, 2 * peak / fastest) * 2
    across = np.geomspace(low, high, 200)
    label = f"multiply-adds in vectors: {peak:.0f} GFLOP/s"
    axes.plot([peak / fastest, high], [peak, peak], color=_INK, linewidth=2.5, zorder=1, label=label)
    for (size, speed), line in zip(roof.copies.items(), ("-", "--", ":", "-."), strict=False):
        shown = across[across <= peak / speed]
        label = f"copies within {binary(int(size))}: {speed:.0f} GB/s"
        axes.plot(shown, speed * shown, color=_INK, linewidth=1.5, linestyle=line, zorder=1, label=label)
    axes.axvline(peak / fastest, color="#c8cdd3", linewidth=0.8, zorder=0)
    for candidate, style in _look(_candidates(results)).items():
        here = [one for one in results if one.candidate == candidate]
        across_here = [one.job.flops / one.job.bytes for one in here]
        style |= {"linestyle": "", "markersize": 6, "alpha": 0.85}
        _points(axes, here, across_here, [one.gflops or 0.0 for one in here], style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("operations a byte, where the weights are read at every step (hollow: noisy)", color=_INK)
    axes.set_ylabel("GFLOP/s", color=_INK)
    axes.grid(color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def binary(size: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"


def _latency(results: Sequence[Result]) -> Figure:
    """For each point, the share of calls that took at most so long; the last hundredth is stretched."""
    points = _by_point(results)
    columns = 3
    figure, axes = _figure(2.4 + 2.8 * min(len(points), columns), 0.8 + 3.4 * -(-len(points) // columns), len(points))
    look = _look(_candidates(results))
    for place, (one, (job, here)) in enumerate(zip(axes, points.items(), strict=True)):
        for result in here:
            shares, times = _tail(result.quantiles)
            hollow = {"markerfacecolor": "white"} if result.outcome is Outcome.NOISY else {}
            one.plot(times, shares, **(look[result.candidate] | hollow | {"markersize": 4}))
        one.set_xscale("log")
        one.set_yscale("logit")
        ticks = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
        first = place % columns == 0
        one.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks] if first else [])
        one.set_ylim(0.008, 0.9993)
        one.yaxis.set_minor_locator(_nothing())
        _plain_numbers(one.xaxis)
        one.tick_params(axis="x", labelrotation=45)
        one.grid(color="#e3e6ea", linewidth=0.7)
        one.set_title(f"N = {job.point.N}, I = {job.point.I}, H = {job.point.H}", fontsize=10, color=_INK)
        one.set_xlabel("us a step (hollow: noisy)", color=_INK)
        if first:
            one.set_ylabel("share of calls that took at most so long", color=_INK)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _tail(quantiles: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Shares and microseconds of the quantiles that a logit axis can show."""
    pairs = sorted((float(share), 1e6 * time) for share, time in quantiles.items())
    inner = [pair for pair in pairs if 0.005 <= pair[0] <= 0.9995]
    return [share for share, _ in inner], [time for _, time in inner]
