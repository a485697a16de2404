"""``lstmcore backends``: the installed backends, which of them can run here, and their capabilities."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.table import Table

from lstmcore import registry
from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.config import FEATURES
from lstmcore.plugin_calls import descriptor_to_stderr
from lstmcore.precision import PRECISIONS
from lstmcore.registry import BackendRecord


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
    table = Table(title="Backends")
    for heading in ("name", "runs here", "version", "device", "precisions", "switches", "derivatives"):
        table.add_column(heading, overflow="fold")
    for record in records:
        table.add_row(record.name, "yes" if record.available else "no", record.version, *_declared(record))
    out = console()
    out.print(table)
    for record in records:
        note = record.summary if record.available else record.reason
        out.print(f"{record.name}: {note}", soft_wrap=True)


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
