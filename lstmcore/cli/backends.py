"""``lstmcore backends``: the installed backends, which of them can run here, and their capabilities."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.table import Table

from lstmcore import registry
from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.config import FEATURES
from lstmcore.registry import BackendRecord


@click.command("backends", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backends(as_json: bool) -> None:
    """List the installed backends.

    One that is broken or cannot run here is listed with the reason.

    \b
    Example:
      lstmcore backends --json
    """  # noqa: D301  (click keeps the lines below its mark)
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
