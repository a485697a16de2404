"""``lstmcore predict``: classes or forecasts of a model, as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import click

from lstmcore.cli._command import Command
from lstmcore.cli._data import check_files, layout_options
from lstmcore.cli.evaluate import load_for
from lstmcore.datasets import Classification, Series, Windows
from lstmcore.files import write_atomically
from lstmcore.training.forecast import ForecastTask, forecasts
from lstmcore.training.model import SequenceModel
from lstmcore.training.readout import DTYPES


@click.command("predict", cls=Command)
@click.argument("model")
@click.argument("data")
@click.option("--out", help="File to write  [default: print].")
@click.option("--fill", type=click.Choice(("error", "linear", "previous")), help="Gaps  [default: as in training].")
@click.option("--only", help="Forecasting: the one series to forecast  [default: all].")
@layout_options
@click.option("--backend", help="Backend that computes  [default: the fastest].")
@click.option("--dtype", type=click.Choice(DTYPES), help="Precision  [default: as trained, or float64 if refused].")
@click.option("--json", "as_json", is_flag=True, help="JSON in place of CSV.")
def predict(
    model: str, data: str, out: str | None, backend: str | None, dtype: str | None, as_json: bool, **options: Any
) -> None:
    """Write the classes or the forecast of MODEL for DATA.

    A classifier gives the class and its probability for each test sequence. A forecast gives, for the last row of
    DATA and the window before it, the values of the rows that come next, under the name of the column; for each
    series, where the model was trained on several. A CSV file is read as in training where --fill, --series, --time
    and --sort do not say otherwise.

    \b
    Examples:
      lstmcore predict model.safetensors japanese-vowels --out answers.csv
      lstmcore predict forecast.safetensors my.csv --json
    """  # noqa: D301  (click keeps the lines below its mark)
    check_files({"--out": out}, {"the model": model, "the data": data})
    loaded = SequenceModel.load(model, backend=backend, dtype=dtype)
    dataset = load_for(loaded, model, data, options)
    if isinstance(dataset, Classification):
        rows = _answers(loaded, dataset)
    else:
        rows = [row for series in dataset for row in _next_rows(loaded, series, options["fill"])]
    text = json.dumps(rows) + "\n" if as_json else _csv(rows)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())


def _answers(model: SequenceModel, data: Classification) -> list[dict[str, Any]]:
    return [
        {
            "sequence": number,
            "class": data.classes[int(output.argmax())],
            "probability": float(output.max()),
            "actual": data.classes[int(target)],
        }
        for number, (output, target) in enumerate(zip(model.predict(data.test.inputs), data.test.targets, strict=True))
    ]


def _next_rows(model: SequenceModel, series: Series, fill: Any) -> list[dict[str, Any]]:
    task = ForecastTask.from_dict(model.task)
    windows = Windows.at_end(series.filled(fill or task.fill), task.window)
    values = forecasts(model, windows)[0]
    after = series.labels[-1]
    column = f"{task.target} (forecast)" if task.target in ("series", "after", "step") else task.target
    of = {"series": series.id} if series.id else {}
    return [{**of, "after": after, "step": step, column: float(value)} for step, value in enumerate(values, 1)]


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
