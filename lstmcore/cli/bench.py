"""``lstmcore bench``: runtimes side by side, each timed only after its values passed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click
from click.core import ParameterSource
from rich.console import Console

from lstmcore import registry
from lstmcore.cli._command import Command
from lstmcore.cli._console import progress
from lstmcore.precision import PRECISIONS

if TYPE_CHECKING:
    from lstmcore_conformance.bench.jobs import Mode, Point
    from lstmcore_conformance.bench.results import Benchmark


#: Options that say nothing of what is measured.
SHOWING: Final = ("--json", "--html", "--pictures", "--report", "--compare", "--read")


@click.command("bench", cls=Command)
@click.argument("backends", nargs=-1)
@click.option(
    "--grid",
    type=click.Choice(("quick", "standard", "full")),
    default="standard",
    show_default=True,
    help="Sizes to time; full also varies T, N and H one by one.",
)
@click.option(
    "--threads", default="1,all", show_default=True, help="Numbers of threads, with commas between; all for every core."
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("float32",),
    show_default=True,
    type=click.Choice(tuple(PRECISIONS)),
    help="Precision to time; can be repeated.",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    default=("inference", "training"),
    show_default=True,
    type=click.Choice(("inference", "training", "streaming", "lengths")),
    help="What to time; can be repeated. lengths: inference and training on sequences of different lengths.",
)
@click.option("--variants", is_flag=True, help="Also time each switch next to the plain layer.")
@click.option("--startup", is_flag=True, help="Also time a new process up to its first result.")
@click.option(
    "--peers",
    default="auto",
    show_default=True,
    help="Libraries to compare with, with commas between; auto for the installed ones, or none.",
)
@click.option(
    "--point", "points", multiple=True, metavar="T,N,I,H", help="Size to time in place of the grid; can be repeated."
)
@click.option(
    "--rounds", type=click.IntRange(min=3), default=None, help="Measurements of each runtime  [default: 7, 15, 9]."
)
@click.option(
    "--calls", type=click.IntRange(min=1), default=10_000, show_default=True, help="Calls of a streaming measurement."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the order of measurements."
)
@click.option("--json", "path", metavar="FILE", help="Write the run as JSON, or - for standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write the run as one page that needs no network.")
@click.option("--pictures", "folder", metavar="FOLDER", help="Write the pictures as PNG and SVG.")
@click.option(
    "--report", "report", metavar="FOLDER", help="Write JSON, page and pictures into a folder, to publish it."
)
@click.option(
    "--compare", "old_path", metavar="OLD", help="JSON of an older run: report what got slower, beyond noise."
)
@click.option("--read", "read_path", metavar="FILE", help="Read the JSON of a run and measure nothing.")
def bench(  # noqa: PLR0913  (click hands every option over as a parameter)  # long: its parameters
    backends: tuple[str, ...],
    grid: str,
    threads: str,
    precisions: tuple[str, ...],
    modes: tuple[str, ...],
    variants: bool,
    startup: bool,
    peers: str,
    points: tuple[str, ...],
    rounds: int | None,
    calls: int,
    seed: int,
    path: str | None,
    html_path: str | None,
    folder: str | None,
    report: str | None,
    old_path: str | None,
    read_path: str | None,
) -> None:
    """Time BACKENDS (by default the fastest one installed) and PyTorch, ONNX Runtime and JAX.

    A runtime is timed only at sizes where its values are right. The exit code is 0 if every backend that was named
    has right values and, with --compare, none got slower beyond noise. It is 1 if not, and 2 if the command is wrong.

    \b
    Examples:
      lstmcore bench numba --grid quick
      lstmcore bench numba numpy --threads 1 --mode training --json run.json
      lstmcore bench numba --mode streaming --point 1,1,64,128
      lstmcore bench numba --mode lengths --point 100,16,64,128
      lstmcore bench numba --grid quick --compare run.json
      lstmcore bench --read run.json --html report.html --pictures pictures
    """  # noqa: D301  (click keeps the lines below its mark)
    from lstmcore_conformance.bench import comparing, machine
    from lstmcore_conformance.bench.jobs import MODES_OF_WORD
    from lstmcore_conformance.bench.results import Benchmark
    from lstmcore_conformance.bench.run import PLANS, Request, run

    outputs = Outputs(path, html_path, folder, report)
    outputs.check()
    old = None if old_path is None else Benchmark.load(old_path)
    if read_path is not None:
        if backends:
            raise ValueError(f"--read: expected no backends, since nothing is measured; got {', '.join(backends)}")
        if given := _given(SHOWING):
            raise ValueError(f"--read: expected nothing that says what to measure; got {', '.join(given)}")
        benchmark = Benchmark.load(read_path)
    else:
        plan = PLANS[grid] if rounds is None else replace(PLANS[grid], rounds=rounds)
        if old is not None:
            comparing.check(old, machine.describe(), plan.rounds)
        meant = {found.name: found for found in (registry.get_backend(name) for name in backends or (None,))}
        timed = tuple(mode for word in dict.fromkeys(modes) for mode in MODES_OF_WORD[word])
        request = Request(
            backends=tuple(meant),
            residents=tuple(name for name, found in meant.items() if found.capabilities().device != "cpu"),
            peers=_peers(peers, timed),
            grid=grid,
            modes=timed,
            threads=_threads(threads),
            precisions=tuple(dict.fromkeys(precisions)),
            variants=variants,
            startup=startup,
            points=tuple(map(_point, points)),
            plan=plan,
            calls=calls,
            seed=seed,
        )
        with progress("bench") as tell:
            benchmark = run(request, tell)
    outputs.write(benchmark)
    if _bad(benchmark) | _slower(benchmark, old, Console(stderr=path == "-")):
        sys.exit(1)


class Outputs(NamedTuple):
    """Where a run is written; None: not there."""

    json: str | None
    html: str | None
    pictures: str | None
    report: str | None

    def check(self) -> None:
        """Raise a ValueError or an ImportError if something of it could not be written."""
        from lstmcore.cli._data import check_files
        from lstmcore.training.plots import require_matplotlib
        from lstmcore_conformance.bench.folder import check_folder
        from lstmcore_conformance.render.templating import require_jinja2

        check_files({"--json": None if self.json == "-" else self.json, "--html": self.html}, {})
        for option, place in (("--pictures", self.pictures), ("--report", self.report)):
            if place is not None and (Path(place).is_file() or not Path(place).parent.is_dir()):
                raise ValueError(f"{option}: expected a folder, or a new one in a folder that exists; got {place!r}")
        if self.report is not None:
            check_folder("--report", Path(self.report))
        if self.html or self.pictures or self.report:
            require_matplotlib()
        if self.html or self.report:
            require_jinja2()

    def write(self, benchmark: Benchmark) -> None:
        """Write everything, and show the run unless its JSON goes to standard output."""
        from lstmcore.files import write_atomically
        from lstmcore_conformance.bench.summary import document
        from lstmcore_conformance.bench.terminal import show

        text = document(benchmark)
        if self.json == "-":
            click.echo(text, nl=False)
        else:
            show(benchmark, Console())
            if self.json is not None:
                write_atomically(self.json, text.encode())
        if self.html is not None:
            from lstmcore_conformance.render.benchmark_page import page

            write_atomically(self.html, page(benchmark).encode())
        if self.pictures is not None:
            from lstmcore_conformance.bench.folder import write_pictures

            write_pictures(benchmark, Path(self.pictures), ("png", "svg"))
        if self.report is not None:
            from lstmcore_conformance.bench.folder import write_folder

            write_folder(benchmark, Path(self.report))


def _bad(benchmark: Benchmark) -> bool:
    """Return whether a backend is wrong somewhere, or could not be started."""
    from lstmcore_conformance.bench.results import Outcome

    bad = (Outcome.WRONG, Outcome.ERROR, Outcome.THREADS)
    wrong = any(one.candidate.kind == "backend" and one.outcome in bad for one in benchmark.results)
    return wrong or any(one["kind"] == "backend" and "message" in one for one in benchmark.runtimes)


def _slower(benchmark: Benchmark, old: Benchmark | None, console: Console) -> bool:
    """Print what changed since the old run; return whether something got slower or has no time any more."""
    from lstmcore_conformance.bench import comparing

    if old is None:
        return False
    changes, lost = comparing.changes(benchmark, old), comparing.lost(benchmark, old)
    comparing.show(changes, lost, console)
    return bool(lost) or any(one.slower for one in changes)


def _given(besides: tuple[str, ...]) -> list[str]:
    """Return the options of this command line, but for these."""
    context = click.get_current_context()
    options = [one for one in context.command.params if isinstance(one, click.Option) and one.opts[0] not in besides]
    sources = ((one.opts[0], context.get_parameter_source(one.name or "")) for one in options)
    return [option for option, source in sources if source is ParameterSource.COMMANDLINE]


def _peers(text: str, modes: tuple[Mode, ...]) -> tuple[str, ...]:
    """Return the peers that are meant; auto are those that take part in one of the modes."""
    from lstmcore_conformance.bench.runtimes import PEERS, missing

    if text == "auto":
        known = {name for name, peer in PEERS.items() if peer.packages and set(modes) & set(peer.modes)}
        return tuple(name for name in PEERS if name in known and missing(name) is None)
    names = tuple(dict.fromkeys(filter(None, text.split(",")))) if text != "none" else ()
    for name in names:
        if name not in PEERS:
            raise ValueError(f"--peers: expected some of {', '.join(PEERS)}, or auto or none; got {name!r}")
        if package := missing(name):
            raise ImportError(f"--peers {name}: needs the package {package}: 'pip install {package}'")
    return names


def _threads(text: str) -> tuple[int, ...]:
    """Return the numbers of threads that are meant, each once."""
    from lstmcore_conformance.bench.machine import cores

    found = []
    for word in text.split(","):
        if word != "all" and not (word.isdecimal() and 1 <= int(word) <= cores()):
            raise ValueError(f"--threads: expected whole numbers from 1 to {cores()}, or all; got {word!r}")
        found.append(cores() if word == "all" else int(word))
    return tuple(dict.fromkeys(found))


def _point(text: str) -> Point:
    """Return the sizes that are meant."""
    from lstmcore_conformance.bench.jobs import parse_point

    try:
        return parse_point(text)
    except ValueError as error:
        raise ValueError(f"--point: {error}") from None
