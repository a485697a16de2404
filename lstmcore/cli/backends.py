"""``lstmcore backends``: the installed backends, which of them can run here, and their capabilities."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table

from lstmcore import registry
from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.config import FEATURES
from lstmcore.plugin_calls import descriptor_to_stderr
from lstmcore.precision import PRECISIONS
from lstmcore.registry import BackendRecord

#: Of the table, and those whose cells may be wrapped between words.
_HEADINGS: Final = ("name", "runs", "version", "device", "precisions", "switches", "derivatives")
_WRAPPED: Final = ("precisions", "derivatives")


@click.command("backends", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--warm", metavar="NAME", help="Compile now what the first calls of this backend would compile.")
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    default="float32",
    show_default=True,
    help="Precision of --warm.",
)
def backends(as_json: bool, warm: str | None, precision: str) -> None:
    """List the installed backends, or compile the code of one in advance.

    A backend that is broken or cannot run here is listed with the reason.

    \b
    Examples:
      lstmcore backends --json
      lstmcore backends --warm numba
    """  # noqa: D301  (click keeps the lines below its mark)
    if warm is not None:
        if as_json:
            raise click.UsageError("--warm: expected no --json with it")
        _warm(warm, precision)
        return
    with descriptor_to_stderr():
        records = registry.backends()
    if as_json:
        click.echo(json.dumps([_plain(record) for record in records], indent=2))
        return
    out = console()
    _print_declared(records, out)
    out.print()
    for record in records:
        note = record.summary if record.available else record.reason
        out.print(f"{record.name}: {note}", soft_wrap=True)


def _print_declared(records: Sequence[BackendRecord], out: Console) -> None:
    """Print a table, or a paragraph for each backend where the table would break words."""
    rows = [
        (record.name, "yes" if record.available else "no", record.version, *_declared(record)) for record in records
    ]
    lines = [_HEADINGS, *rows]
    widths = [
        max(
            len(word) for line in lines for word in (line[place].split() if name in _WRAPPED else [line[place]]) or [""]
        )
        for place, name in enumerate(_HEADINGS)
    ]
    # rich narrows columns that wrap to one width, whatever their words are
    shared = max(width for width, name in zip(widths, _HEADINGS, strict=True) if name in _WRAPPED)
    needed = sum(shared if name in _WRAPPED else width for width, name in zip(widths, _HEADINGS, strict=True))
    if needed + 2 * (len(widths) - 1) <= out.width:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        for name in _HEADINGS:
            table.add_column(name, no_wrap=name not in _WRAPPED)
        for row in rows:
            table.add_row(*row)
        out.print(table)
        return
    for name, runs, *details in rows:
        said = [f"{heading}: {cell}" for heading, cell in zip(_HEADINGS[2:], details, strict=True) if cell]
        out.print(f"{name}: {'runs' if runs == 'yes' else 'does not run'} here; {'; '.join(said)}")


def _warm(name: str, precision: str) -> None:
    """Compile ahead, and print what that was and how long it took."""
    start = time.monotonic()
    compiled = registry.get_backend(name).warm(precision)
    if compiled:
        click.echo(f"{name}: compiled in {time.monotonic() - start:.1f} s for {precision}: {compiled}")
    else:
        click.echo(f"{name}: has nothing to compile ahead")


def _declared(record: BackendRecord) -> tuple[str, str, str, str]:
    declared = record.capabilities
    if declared is None:
        return "", "", "", ""
    lacking = sorted(FEATURES - declared.features)
    switches = "all" if not lacking else f"{len(declared.features)} of {len(FEATURES)}"
    return declared.device, ", ".join(sorted(declared.precisions)), switches, ", ".join(sorted(declared.derivatives))


def _plain(record: BackendRecord) -> dict[str, Any]:
    declared = record.capabilities
    return {
        "name": record.name,
        "available": record.available,
        "reason": record.reason,
        "version": record.version,
        "summary": record.summary,
        "device": record.device,
        "capabilities": None
        if declared is None
        else {
            "precisions": sorted(declared.precisions),
            "features": sorted(declared.features),
            "derivatives": sorted(declared.derivatives),
            "reasons": dict(declared.reasons),
        },
    }
