"""``lstmcore convert``: weights from one library to another."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from lstmcore.cli import _formats, _verify
from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.cli._data import check_files
from lstmcore.files import write_atomically
from lstmcore.tensor_file import file_format
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_file import MODEL_FORMAT

#: The largest difference that is taken for rounding, and that of a source whose runtime rounds activations to int8.
_MOST: Final = {"same": 1e-4, "int8": 0.2}
#: Storage -> the largest difference where one of two libraries rounds h to 16 bits.
_MOST_OF_16_BITS: Final = {"float16": 0.005, "bfloat16": 0.04}


@click.command("convert", cls=Command)
@click.argument("source", metavar="IN", required=False)
@click.argument("out", metavar="OUT", required=False)
@click.option("--from", "source_format", type=click.Choice(_formats.NAMES), help="Format of IN  [default: told by it].")
@click.option(
    "--to", "target_format", type=click.Choice(_formats.WRITTEN), help="Format of OUT  [default: by its name]."
)
@click.option("--node", help="The LSTM to take: a node of ONNX, TFLite or OpenVINO, a layer of Keras.")
@click.option("--prefix", help="What precedes the names of the LSTM in a file of PyTorch.")
@click.option("--verify", is_flag=True, help="Run IN and OUT on random input and print the largest difference.")
@click.option("--list", "listed", metavar="FILE", help="Show the LSTMs in FILE, and convert nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def convert(source: str | None, out: str | None, listed: str | None, **options: Any) -> None:
    """Bring the weights of an LSTM from the file IN to the file OUT.

    IN is a file of lstmcore, PyTorch (.pt, .pth, .safetensors), ONNX, Keras, TFLite or OpenVINO (.xml). OUT is one of
    lstmcore (.safetensors), PyTorch (.pt, .pth, or .safetensors with --to torch), ONNX or Keras (.weights.h5). A model
    that lstmcore trained becomes a whole ONNX model.

    \b
    Examples:
      lstmcore convert --list model.onnx
      lstmcore convert model.onnx lstm.safetensors --verify
      lstmcore convert encoder.pt encoder.onnx --prefix encoder.lstm.
    """  # noqa: D301  (click keeps the lines below its mark)
    if listed is not None:
        if given := [name for name, value in (("IN", source), ("OUT", out)) if value is not None]:
            raise ValueError(f"--list: expected no other file; got {given[0]}")
        _list(Path(listed), options)
        return
    if source is None or out is None:
        raise ValueError("expected IN and OUT, or --list FILE: see lstmcore convert --help")
    check_files({"OUT": out}, {"IN": source})
    report = _convert(Path(source), Path(out), options)
    if options["as_json"]:
        click.echo(json.dumps(report))
    else:
        _show(report)


def _source_format(path: Path, options: dict[str, Any]) -> _formats.Format:
    name = options["source_format"]
    return _formats.format_of_source(path) if name is None else _formats.by_name(name)


def _convert(source: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write OUT and return the report."""
    kind, name = _source_format(source, options), options["target_format"]
    target = _formats.format_of_target(out) if name is None else _formats.by_name(name)
    for option in ("node", "prefix"):
        if options[option] is not None and option not in (kind.select, target.select):
            raise ValueError(
                f"--{option}: expected a file that has it; got one of {kind.name} and one of {target.name}"
            )
    report: dict[str, Any] = {"in": str(source), "out": str(out), "from": kind.name, "to": target.name}
    whole = kind.name == "lstmcore" and target.name == "onnx" and file_format(source) == MODEL_FORMAT
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / out.name
        if whole:
            model = SequenceModel.load(source)
            model.to_onnx(made)
            content = model.lstm.content
        else:
            which = options.get(kind.select)
            if kind.select == "prefix" and which is None:
                which = _formats.only_prefix(source)
            content = kind.read(source, which)
            target.write(made, content, options["prefix"])
        report |= {"lstm": _formats.describe(content), "whole": whole, "largest_difference": None, "verified": None}
        if options["verify"]:
            report |= _compare(
                SequenceModel.load(source) if whole else _verify.Source(source, kind.name, which, content),
                _verify.Source(made, target.name, options["prefix"], content),
            )
        write_atomically(out, made.read_bytes())
    return report


def _compare(source: SequenceModel | _verify.Source, made: _verify.Source) -> dict[str, Any]:
    """Return the largest difference of an output, and what ran IN and OUT, with versions."""
    whole, precision = isinstance(source, SequenceModel), made.content.precision
    target, problem = _verify.runtime_of(made.format, precision.storage)
    if isinstance(source, SequenceModel):
        runtime, missing = _verify.runtime_of("lstmcore", precision.storage)[0], problem
    else:
        runtime, missing = _verify.runtime_of(source.format, precision.storage)
    if missing:
        return {"verified": f"no: {missing}"}
    runs = f"{runtime} for IN, {target} for OUT"
    if isinstance(source, SequenceModel):
        found = _verify.largest_model_difference(source, made.path)
    else:
        if problem:  # what was written is read again, and run here
            made = made._replace(content=_formats.by_name(made.format).read(made.path, made.which))
            runs = f"{runtime} for IN, {_verify.runtime_of('lstmcore', '')[0]} for OUT, since {problem}"
        found = _verify.largest_difference(source, made)
    weights = "same" if whole else precision.weights
    rounded = 0.0 if whole else _MOST_OF_16_BITS.get(precision.storage, 0.0)
    if not found <= (most := max(_MOST.get(weights, _MOST["same"]), rounded)):
        raise ValueError(
            f"--verify: expected outputs that differ by at most {most:g}; got {found:.3g}: nothing is written"
        )
    return {"largest_difference": found, "verified": runs}


def _show(report: dict[str, Any]) -> None:
    out = console()
    what = "a whole model" if report["whole"] else report["lstm"]
    out.print(f"{click.format_filename(report['out'])}: {report['to']}, {what}", soft_wrap=True)
    if report["largest_difference"] is not None:
        difference = f"{report['largest_difference']:.2g}"
        out.print(f"largest difference of an output {difference}, by {report['verified']}", soft_wrap=True)
    elif report["verified"] is not None:
        out.print(f"verified: {report['verified']}", soft_wrap=True)


def _list(path: Path, options: dict[str, Any]) -> None:
    kind = _source_format(path, options)
    rows = list(_formats.entries(path, kind))
    if options["as_json"]:
        found = [
            {"name": row.name, "lstm": row.content and _formats.describe(row.content), "problem": row.problem}
            for row in rows
        ]
        click.echo(json.dumps({"file": str(path), "format": kind.name, "lstms": found}))
        return
    if not rows:
        raise ValueError(f"{path}: expected an LSTM; got a file of {kind.name} with none")
    table = Table(title=click.format_filename(f"{path}: {kind.name}"))
    for heading in (f"--{kind.select}" if kind.select else "file", "LSTM"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.name or "''", _formats.describe(row.content) if row.content else f"no: {row.problem}")
    console().print(table)
