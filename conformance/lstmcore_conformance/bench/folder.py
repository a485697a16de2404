"""A run as a folder to publish: its JSON, the page, the pictures as PNG, and what code hosts show of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lstmcore.files import write_atomically
from lstmcore_conformance.bench.pictures import file_name, pictures, rendered
from lstmcore_conformance.bench.results import Benchmark
from lstmcore_conformance.bench.summary import document
from lstmcore_conformance.bench.tables import verdicts
from lstmcore_conformance.render.benchmark_page import page
from lstmcore_conformance.render.templating import render

#: The first line of a README.md that was written here.
_TITLE: Final = "# A run of `lstmcore bench`"


def check_folder(name: str, folder: Path) -> None:
    """Raise a `ValueError`, which begins with `name`, where `write_folder` would replace what it has not written."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    page = folder / "README.md"
    if not page.exists():
        raise ValueError(f"{name}: expected a folder of its own; got {str(folder)!r}, which has files of others")
    if not page.read_text("utf-8", errors="replace").startswith(_TITLE):
        raise ValueError(f"{name}: expected a folder of its own; got {str(folder)!r}, which has another README.md")


def write_folder(benchmark: Benchmark, folder: Path) -> None:
    """Write run.json, report.html, README.md and pictures/; the folder is made where it is not there.

    Pictures of an older run go.

    Raises
    ------
    ValueError
        As `check_folder`.
    """
    check_folder("folder", folder)
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "run.json", document(benchmark).encode())
    write_atomically(folder / "report.html", page(benchmark).encode())
    shown = write_pictures(benchmark, folder / "pictures", ("png",))
    for old in (folder / "pictures").glob("*.png"):
        if old.stem not in {name for name, _ in shown}:
            old.unlink()
    write_atomically(folder / "README.md", _readme(benchmark, shown).encode())


def write_pictures(benchmark: Benchmark, folder: Path, kinds: Iterable[str]) -> list[tuple[str, str]]:
    """Write every picture in those kinds, "png" and "svg"; name and title of each."""
    folder.mkdir(exist_ok=True)
    shown = []
    for name, title, figure in pictures(benchmark):
        for kind in kinds:
            write_atomically(folder / f"{file_name(name)}.{kind}", rendered(figure, kind))
        shown.append((file_name(name), title))
    return shown


def _readme(benchmark: Benchmark, shown: Iterable[tuple[str, str]]) -> str:
    """Return the page of the folder in Markdown, which shows the pictures of these names and titles."""
    machine = benchmark.machine
    return render(
        "run.md",
        date=benchmark.started[:10],
        processor=machine["processor"],
        cores=machine["cores"],
        load=f"{machine['load']:.2f}",
        grid=benchmark.grid,
        seed=benchmark.settings.get("seed", ""),
        tables=verdicts(benchmark),
        pictures=shown,
    )
