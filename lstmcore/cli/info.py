"""``lstmcore info``: what is in a file of this package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.cli._formats import describe
from lstmcore.layer_file import CHAIN_FORMAT, LSTM_FORMAT, LayerFile, layer_shapes, layer_widths, read_layers
from lstmcore.tensor_file import read_header
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_card import WEIGHTS, count_of, describe_model
from lstmcore.training.model_file import MODEL_FORMAT


@click.command("info", cls=Command)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print the header of the file as JSON.")
def info(file: str, as_json: bool) -> None:
    """Describe FILE: a model, its task and its layers; or a checkpoint, an LSTM or a chain.

    \b
    Example:
      lstmcore info model.safetensors
    """  # noqa: D301  (click keeps the lines below its mark)
    path = Path(file) / WEIGHTS if Path(file).is_dir() else Path(file)
    header = read_header(path)
    if as_json:
        click.echo(json.dumps(header))
        return
    lines = {"file": f"{path.stat().st_size:,} bytes, format {header.get('format')} {header.get('version')}"}
    kind = str(header.get("format"))
    if kind == MODEL_FORMAT:
        lines |= describe_model(SequenceModel.load(path))
    elif kind in (LSTM_FORMAT, CHAIN_FORMAT):
        lines |= _describe_weights(read_layers(path, kind, None))
    else:
        lines |= _describe(header)
    table = Table(title=click.format_filename(file), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in lines.items():
        table.add_row(name, text)
    console().print(table)


def _describe_weights(content: LayerFile) -> dict[str, str]:
    """Return what layers without a readout read, give and hold."""
    width, outputs = layer_widths(content.layers)
    count = sum(math.prod(shape) for shape in layer_shapes(content.layers).values())
    return {
        "task": "none: the weights of layers alone, without a readout",
        "reads": f"sequences of {count_of(width, 'number')} a step",
        "gives": f"{count_of(outputs, 'number')} at every step",
        "layers": describe(content),
        "parameters": f"{count:,} in {content.precision.label}",
        "first axis": "rows, then steps" if content.batch_first else "steps, then rows",
    }


def _describe(header: dict[str, Any]) -> dict[str, str]:
    """Return what is known of a file that has neither a model nor layers: of a checkpoint its epochs."""
    history = header.get("history")
    if isinstance(history, dict) and isinstance(history.get("epochs"), list):
        best = "none" if history.get("best") is None else str(history["best"])
        settings = header.get("settings")
        known = settings if isinstance(settings, dict) else {}
        return {
            "checkpoint": f"epochs done: {len(history['epochs'])}, the best is {best}",
            "settings": ", ".join(f"{name}={value}" for name, value in known.items()),
        }
    return {name: json.dumps(value) for name, value in header.items() if name not in ("format", "version")}
