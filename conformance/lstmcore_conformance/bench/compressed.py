"""Weights in fewer bytes, beside the dynamic int8 of ONNX Runtime and PyTorch: speed, bytes and error on one page.

``python -m lstmcore_conformance.bench.compressed --out FOLDER`` times all candidates in turn, in one process. An error
is the difference of y from the float64 reference with the weights before they were rounded. Each candidate is also
asked whether a large row changes another row, and a large step an earlier one.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np

from lstmcore import LSTM, reference
from lstmcore.backend import Tangents
from lstmcore.files import write_atomically
from lstmcore.stored_weights import FORMATS, SAME
from lstmcore.threads import THREADS_VARIABLE
from lstmcore_conformance.bench import machine
from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.cases.case import Array, Data

#: Sizes of the goals: one row, then a few.
POINTS: Final = (
    Point(60, 1, 100, 200),
    Point(60, 1, 300, 400),
    Point(60, 1, 512, 512),
    Point(20, 1, 512, 1024),
    Point(40, 4, 128, 256),
    Point(40, 16, 128, 256),
)
#: Sizes (steps and rows, units) at which a large row and a large step are tried, the smallest first.
PROBES: Final = ((2, 1), (2, 2), (2, 4), (3, 8), (4, 64))
#: How many times as large the row or the step is made.
FACTOR: Final = 2.0**10
#: Pause before each turn in seconds: what ran before has put its threads to sleep.
PAUSE: Final = 0.002

Forward = Callable[[Array], Array]


class Built(NamedTuple):
    """An LSTM of a candidate: its forward call (x to y), the bytes of its parameters, and the path that it takes."""

    forward: Forward
    size: int
    path: str


Build = Callable[[LSTM], Built]


@dataclass(slots=True)
class Row:
    """One candidate at one point.

    Attributes
    ----------
    seconds
        The least time of a call of each round.
    size
        Bytes of the parameters.
    largest, rms
        Error of y, at most and in the mean of squares.
    """

    candidate: str
    point: tuple[int, ...]
    path: str
    size: int
    largest: float
    rms: float
    seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The least time of a call."""
        return min(self.seconds)


def candidates(backend: str, threads: int) -> Iterator[tuple[str, Build]]:
    """Yield the name of each candidate that can run here, and what builds it; those in float32 have it in the name."""
    for form in (SAME, *FORMATS):
        yield f"{backend} {'float32' if form == SAME else form}", partial(_ours, backend=backend, form=form)
    if find_spec("onnxruntime") and find_spec("onnx"):
        yield "onnxruntime float32", lambda lstm: _onnx(lstm, threads, None)
        yield "onnxruntime dynamic int8", lambda lstm: _onnx(lstm, threads, {})
        settings = {"per_channel": True, "reduce_range": True}
        yield "onnxruntime dynamic int8, a channel", lambda lstm: _onnx(lstm, threads, settings)
    if find_spec("torch"):
        yield "torch float32", lambda lstm: _torch(lstm, threads, quantised=False)
        yield "torch dynamic int8", lambda lstm: _torch(lstm, threads, quantised=True)


def _ours(lstm: LSTM, backend: str, form: str) -> Built:
    made = LSTM.from_config(lstm.stack, lstm.parameters, backend=backend, weights=form)
    size = sum(array.nbytes for array in made.stored_parameters.values())
    return Built(lambda x: made(x)[0], size, made.explain(steps=60, batch=1).receipts[0][1].path)


def _onnx(lstm: LSTM, threads: int, settings: Mapping[str, Any] | None) -> Built:
    """Return a session of one LSTM node; quantised by `settings` unless they are None."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from lstmcore_conformance.bench.runtimes.onnx_runtime import model

    sizes = lstm.stack.layers[0][0]
    job = Job("inference", Point(1, 1, sizes.input_size, sizes.hidden_size))
    parameters = {name.removesuffix("_l0"): array for name, array in lstm.parameters.items()}
    x = np.zeros((1, 1, sizes.input_size), np.float32)
    made = model(job, Data(parameters, x, None, None, None, None, None, Tangents()))
    for value in (*made.graph.input, *made.graph.output):  # any number of steps and rows
        for place, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_value == 1 and place < len(value.type.tensor_type.shape.dim) - 1:
                size.dim_param = f"{value.name}{place}"
    content = made.SerializeToString()
    if settings is not None:
        with tempfile.TemporaryDirectory() as folder:
            source, target = (str(Path(folder) / name) for name in ("source.onnx", "target.onnx"))
            onnx.save(made, source)
            quantize_dynamic(source, target, weight_type=QuantType.QInt8, **settings)
            content = Path(target).read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(x: Array) -> Array:
        zeros = np.zeros((1, x.shape[1], sizes.hidden_size), np.float32)
        y: Array = session.run(["Y"], {"X": x, "h": zeros, "c": zeros})[0][:, 0]
        return y

    return Built(forward, len(content), "operator DynamicQuantizeLSTM" if settings is not None else "operator LSTM")


def _torch(lstm: LSTM, threads: int, *, quantised: bool) -> Built:
    """Return ``torch.nn.LSTM``, in dynamic int8 if `quantised`."""
    import torch

    torch.set_num_threads(threads)
    sizes = lstm.stack.layers[0][0]
    made: Any = torch.nn.LSTM(sizes.input_size, sizes.hidden_size)
    made.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in lstm.to_torch().items()})
    if quantised:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch moves its quantisation to another package, which has no LSTM
            whole = torch.nn.Sequential(made)
            made = torch.ao.quantization.quantize_dynamic(whole, {torch.nn.LSTM}, dtype=torch.qint8)[0]
    stored = io.BytesIO()
    torch.save(made.state_dict(), stored)

    def forward(x: Array) -> Array:
        with torch.inference_mode():
            y: Array = made(torch.from_numpy(x))[0].numpy()
        return y

    return Built(forward, stored.getbuffer().nbytes, "quantize_dynamic, qint8" if quantised else "torch.nn.LSTM")


def disturbed(build: Build) -> dict[str, str]:
    """Return what a large row and a large step change of a candidate, each at the smallest size that shows it."""
    found: dict[str, str] = {}
    for count, units in PROBES:
        lstm = LSTM(units, units, seed=3, backend="numpy")
        forward = build(lstm).forward
        x = np.random.default_rng(count).normal(size=(count, count, units)).astype(np.float32)
        rows, steps, quiet = x.copy(), x.copy(), np.array(forward(x))
        rows[:, -1] *= np.float32(FACTOR)
        steps[-1] *= np.float32(FACTOR)
        changes = {
            "another row": np.abs(forward(rows)[:, :-1] - quiet[:, :-1]).max(),
            "an earlier step": np.abs(forward(steps)[:-1] - quiet[:-1]).max(),
        }
        for what, change in changes.items():
            if change > 2.0**-12 and what not in found:
                found[what] = f"by {change:.2g} at T = N = {count}, I = H = {units}"
    return found


def measure(backend: str, points: tuple[Point, ...], threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the machine, the rows of all candidates at all points, and what large rows and steps change.

    Parameters
    ----------
    backend
        The backend whose formats are measured.
    points, threads
        Sizes, and threads of each candidate.
    rounds, seconds
        Turns of each candidate at a point, and the least time of a turn.
    """
    known = dict(candidates(backend, threads))
    rows: list[Row] = []
    for point in points:
        lstm = LSTM(point.I, point.H, seed=1, backend="numpy")
        x = np.random.default_rng(2).normal(size=(point.T, point.N, point.I)).astype(np.float32)
        parameters = {name.removesuffix("_l0"): array for name, array in lstm.parameters.items()}
        exact = reference.forward(lstm.stack.layers[0][0], parameters, x)[0]
        built = {name: build(lstm) for name, build in known.items()}
        here = []
        for name, one in built.items():
            error = np.asarray(one.forward(x), np.float64) - exact
            largest, rms = float(np.abs(error).max()), float(np.sqrt(np.mean(error**2)))
            here.append(Row(name, tuple(point), one.path, one.size, largest, rms))
        for index in range(rounds):
            for row in here[index % len(here) :] + here[: index % len(here)]:
                time.sleep(PAUSE)
                row.seconds.append(_least_time(built[row.candidate].forward, x, seconds))
        rows += here
    changed = {name: disturbed(build) for name, build in known.items()}
    described = machine.describe() | {"commit": machine.commit()}
    return {"machine": described, "threads": threads, "rows": [asdict(row) for row in rows], "changed": changed}


def _least_time(forward: Forward, x: Array, seconds: float) -> float:
    """Return the least time of a call, of as many as take `seconds`, and of two at least."""
    forward(x)
    least, end, count = np.inf, time.perf_counter() + seconds, 0
    while count < 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        forward(x)
        least, count = min(least, time.perf_counter() - begin), count + 1
    return float(least)


def page(run: Mapping[str, Any]) -> str:
    """Return the page of a run in Markdown; ``compressed.svg`` is its picture."""
    lines = [
        "# Weights in fewer bytes",
        "",
        f"{run['machine']['processor']}, threads: {run['threads']}, commit {run['machine']['commit']}.",
        "Speed is over the fastest float32 peer at the same size: the least time of each, taken in turn.",
        "",
        "![Speed against error](compressed.svg)",
    ]
    for point, rows in _by_point(run).items():
        best = _fastest_peer(rows)
        lines += ["", f"## T, N, I, H = {', '.join(map(str, point))}", ""]
        lines += ["| candidate | ms | speed | bytes | largest error | rms error |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row.candidate} | {1e3 * row.best:.3f} | {best / row.best:.2f} | {row.size:,} | {row.largest:.1e} | "
            f"{row.rms:.1e} |"
            for row in rows
        ]
    lines += ["", "## What a large row and a large step change", ""]
    lines += [
        f"A row, or the last step, is made {FACTOR:,.0f} times as large. Nothing else may change.",
        "",
    ]
    lines += ["| candidate | another row | an earlier step |", "|---|---|---|"]
    lines += [
        f"| {name} | {changed.get('another row', 'nothing')} | {changed.get('an earlier step', 'nothing')} |"
        for name, changed in run["changed"].items()
    ]
    return "\n".join(lines) + "\n"


def _by_point(run: Mapping[str, Any]) -> dict[tuple[int, ...], list[Row]]:
    found: dict[tuple[int, ...], list[Row]] = {}
    for values in run["rows"]:
        row = Row(**values | {"point": tuple(values["point"])})
        found.setdefault(row.point, []).append(row)
    return found


def _fastest_peer(rows: list[Row]) -> float:
    """Return the least time of a peer in float32; ours if there is no peer."""
    float32 = [row for row in rows if row.candidate.endswith(" float32")]
    peers = [row for row in float32 if row.candidate.split()[0] in ("torch", "onnxruntime")]
    return min(row.best for row in peers or float32)


def picture(run: Mapping[str, Any]) -> bytes:
    """Return the picture of a run as SVG: speed over the fastest float32 peer against the rms error."""
    from matplotlib.figure import Figure

    points = _by_point(run)
    figure = Figure(figsize=(11, 3.6 * -(-len(points) // 3)), layout="constrained")
    names = list(dict.fromkeys(row.candidate for rows in points.values() for row in rows))
    for place, (point, rows) in enumerate(points.items(), 1):
        axes, best = figure.add_subplot(-(-len(points) // 3), 3, place), _fastest_peer(rows)
        for row in rows:
            number = names.index(row.candidate)
            axes.plot(
                row.rms, best / row.best, "os^Dv<>Xp*h"[number % 11], color=f"C{number % 10}", label=row.candidate
            )
        axes.set(xscale="log", xlabel="rms error of y", ylabel="speed over the fastest float32 peer")
        axes.set_title("T, N, I, H = " + ", ".join(map(str, point)), fontsize=9)
    if points:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _point(text: str) -> Point:
    try:
        steps, batch, inputs, hidden = map(int, text.split(","))
    except ValueError:
        raise click.BadParameter(f"expected T,N,I,H; got {text!r}") from None
    return Point(steps, batch, inputs, hidden)


@click.command()
@click.option("--backend", default="numba", show_default=True, help="Whose formats are measured.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--point", "points", multiple=True, metavar="T,N,I,H", help="A size in place of the goals' sizes.")
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--seconds", type=float, default=0.05, show_default=True, help="Of a turn.")
@click.option("--out", "folder", required=True, metavar="FOLDER", help="Where the page, its picture and the JSON go.")
def main(backend: str, threads: int, points: tuple[str, ...], rounds: int, seconds: float, folder: str) -> None:
    """Measure weights in fewer bytes beside dynamic int8 of ONNX Runtime and PyTorch."""
    os.environ[THREADS_VARIABLE] = str(threads)  # the backend reads it at every call
    run = measure(backend, tuple(map(_point, points)) or POINTS, threads, rounds, seconds)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = {"compressed.json": json.dumps(run).encode(), "compressed.md": page(run).encode()}
    if find_spec("matplotlib"):
        files["compressed.svg"] = picture(run)
    for name, content in files.items():
        write_atomically(target / name, content)
    click.echo(page(run))


if __name__ == "__main__":
    main()
