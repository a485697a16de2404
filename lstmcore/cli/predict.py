"""``lstmcore predict``: classes or forecasts of a model, as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import click
import numpy as np

from lstmcore.cli._command import Command
from lstmcore.cli._data import check_files, layout_options
from lstmcore.cli._model_data import panel_for, sequences_for, task_of
from lstmcore.datasets import Labelled, Series
from lstmcore.datasets.series import next_labels
from lstmcore.files import write_atomically
from lstmcore.training.classification import ClassifyTask
from lstmcore.training.forecast import ForecastTask, forecasts
from lstmcore.training.model import SequenceModel
from lstmcore.training.readout import DTYPES

#: Names of the columns of a forecast; a column to forecast of such a name is marked.
_OWN_NAMES = ("series", "after", "step", "time")


@click.command("predict", cls=Command)
@click.argument("model")
@click.argument("data")
@click.option("--out", help="File to write  [default: print].")
@click.option("--probabilities", is_flag=True, help="To classify: add a column with the probability of each class.")
@click.option("--fill", type=click.Choice(("error", "linear", "previous")),
              help="What to do about missing values  [default: as in training].")  # fmt: skip
@click.option("--only", help="To forecast: the one series to forecast  [default: all].")
@layout_options
@click.option("--backend", help="Backend to compute with  [default: the fastest].")
@click.option("--dtype", type=click.Choice(DTYPES),
              help="Floating-point type  [default: as trained, or float64 if the backend refuses it].")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write JSON in place of CSV.")
def predict(  # noqa: PLR0913  (one for each option that is not passed on)
    model: str,
    data: str,
    out: str | None,
    probabilities: bool,
    backend: str | None,
    dtype: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the classes or the forecast that MODEL gives for DATA.

    A classifier gives the class of each sequence and its probability; of a data set that ships, of each test sequence.
    A forecast gives the rows that follow the last one, with their times, for each series. A file is read as in training
    unless --fill, --series, --time, --sort, --separator, --decimal or --encoding say otherwise.

    \b
    Examples:
      lstmcore predict model.safetensors japanese-vowels --out answers.csv
      lstmcore predict forecast.safetensors my.csv --out forecast.csv
      lstmcore predict walks.safetensors new-walks.csv --probabilities
    """  # noqa: D301  (click keeps the lines below its mark)
    check_files({"--out": out}, {"the model": model, "the data": data})
    loaded = SequenceModel.load(model, backend=backend, dtype=dtype)
    task = task_of(loaded, model)
    if isinstance(task, ClassifyTask):
        sequences = sequences_for(loaded, task, (model, data), options)
        rows = _answers(loaded, task, sequences, probabilities)
    elif probabilities:
        raise ValueError(f"--probabilities: only for classifying; {model} is a model to forecast")
    else:
        panel = panel_for(task, model, data, options)
        rows = [row for columns in panel for row in _next_rows(loaded, task, columns, options["fill"])]
    text = json.dumps(rows) + "\n" if as_json else _csv(rows)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
        if not as_json:
            click.echo(f"wrote {click.format_filename(out)}, {len(rows)} rows")


def _answers(model: SequenceModel, task: ClassifyTask, data: Labelled, probabilities: bool) -> list[dict[str, Any]]:
    outputs = np.stack(model.predict(data.inputs))
    if model.readout.activation == "none":
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs = powers / powers.sum(axis=1, keepdims=True)
    rows: list[dict[str, Any]] = []
    for number, (name, output) in enumerate(zip(data.ids, outputs, strict=True)):
        row = {"sequence": name, "class": task.classes[int(output.argmax())], "probability": float(output.max())}
        if data.labels is not None:
            row["actual"] = data.labels[number]
        if probabilities:
            row |= {f"p({label})": float(value) for label, value in zip(task.classes, output, strict=True)}
        rows.append(row)
    return rows


def _next_rows(
    model: SequenceModel, task: ForecastTask, columns: tuple[Series, ...], fill: Any
) -> list[dict[str, Any]]:
    windows = replace(task, fill=fill or task.fill).at_end(*columns)
    values = forecasts(model, windows)[0]
    series = columns[0]
    of = {"series": series.id} if series.id else {}
    names = [f"{name} (forecast)" if name in _OWN_NAMES else name for name in task.targets]
    times = next_labels(series, task.horizon)
    rows = []
    for step in range(task.horizon):
        row = {**of, "after": series.labels[-1], "step": step + 1, **({"time": times[step]} if times else {})}
        rows.append(row | {name: float(value) for name, value in zip(names, values[:, step], strict=True)})
    return rows


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
