"""``lstmcore compress``: a model with weights in fewer bytes, and what it costs on data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.cli._data import check_files, layout_options
from lstmcore.cli._model_data import judged_sequences, panel_for, sequences_for, task_of
from lstmcore.registry import default_name
from lstmcore.stored_weights import FORMATS
from lstmcore.training.classification import ClassifyTask
from lstmcore.training.forecast import forecasts, scores
from lstmcore.training.losses import CrossEntropy
from lstmcore.training.model import SequenceModel


@click.command("compress", cls=Command)
@click.argument("model")
@click.option("--weights", type=click.Choice(tuple(FORMATS)), required=True, help="Format of the weight matrices.")
@click.option("--out", required=True, help="Model file (safetensors) to write.")
@click.option("--data", help="Data to measure the error on: what evaluate takes for this model.")
@click.option(
    "--fill",
    type=click.Choice(("error", "linear", "previous")),
    help="What to do about missing values  [default: as in training].",
)
@click.option("--only", help="To forecast: the one series to judge  [default: all].")
@layout_options
@click.option("--backend", help="Backend of the smaller model  [default: the fastest that has the format].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def compress(
    model: str, weights: str, out: str, data: str | None, backend: str | None, as_json: bool, **options: Any
) -> None:
    """Store the weight matrices of MODEL in fewer bytes, for inference.

    bfloat16 and float16 take half of the bytes of float32, int8 and int8a16 a quarter. int8a16 is the fastest: it also
    rounds what the weights are multiplied with to 16 bits. With --data, both models are measured on the test part of
    the data: their scores, the largest difference of an output, and how many predicted classes change.

    \b
    Examples:
      lstmcore compress model.safetensors --weights float16 --out small.safetensors --data japanese-vowels
      lstmcore compress forecast.safetensors --weights int8 --out small.safetensors
    """  # noqa: D301  (click keeps the lines below its mark)
    check_files({"--out": out}, {"the model": model, "the data": data})
    if data is None and (given := next((name for name, value in options.items() if value is not None), None)):
        raise ValueError(f"--{given}: only with --data, which was not given")
    whole = SequenceModel.load(model)
    small = whole.compress(weights, backend=backend or default_name())
    judged = {} if data is None else _judged(whole, small, model, data, options)
    small.save(out)
    sizes = {"before": Path(model).stat().st_size, "after": Path(out).stat().st_size}
    report = {"model": model, "out": out, "weights": weights, "backend": small.lstm.backend.name, "bytes": sizes}
    report |= judged
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(report, console())


def _judged(
    whole: SequenceModel, small: SequenceModel, name: str, data: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the scores of both models, the largest difference of an output, and the decisions that change."""
    task = task_of(whole, name)
    if isinstance(task, ClassifyTask):
        dataset, _ = judged_sequences(task, sequences_for(whole, task, (name, data), options))
        test = dataset.test
        judged = [model.evaluate(test.inputs, test.targets, CrossEntropy()) for model in (whole, small)]
        values = {key: [getattr(each, key) for each in judged] for key in ("accuracy", "loss")}
        outputs = [np.array(model.predict(test.inputs)) for model in (whole, small)]
        changed = int((outputs[0].argmax(axis=1) != outputs[1].argmax(axis=1)).sum())
        decisions = {"decisions": len(outputs[0]), "decisions_changed": changed}
    else:
        windows = [task.held_out(*columns) for columns in panel_for(task, name, data, options)]
        answers = [[forecasts(model, part) for part in windows] for model in (whole, small)]
        errors = [[{"model": got - part.actual} for got, part in zip(each, windows, strict=True)] for each in answers]
        values = {key: [scores(each, task.targets)[0][key] for each in errors] for key in ("rmse", "mae")}
        outputs = [np.concatenate(each) for each in answers]
        decisions = {}
    difference = float(np.abs(outputs[0] - outputs[1]).max())
    return {"data": data, "scores": values, "largest_difference": difference, **decisions}


def _show(report: dict[str, Any], out: Console) -> None:
    sizes = report["bytes"]
    name = click.format_filename(report["out"])
    out.print(
        f"{name}: {report['weights']} weights, {sizes['after']:,} bytes in place of {sizes['before']:,}", soft_wrap=True
    )
    if "scores" not in report:
        return
    table = Table(title=click.format_filename(f"{report['model']} on {report['data']}"))
    for heading in ("score", "before", "after"):
        table.add_column(heading, justify="left" if heading == "score" else "right", overflow="fold")
    for key, (before, after) in report["scores"].items():
        table.add_row(key, f"{before:.6g}", f"{after:.6g}")
    out.print(table)
    out.print(f"largest difference of an output {report['largest_difference']:.2g}")
    if "decisions" in report:
        out.print(f"{report['decisions_changed']} of {report['decisions']} decisions changed")
