"""``lstmcore evaluate``: errors of a model file on held-out data."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from lstmcore import datasets
from lstmcore.cli._console import console
from lstmcore.cli._data import open_data
from lstmcore.datasets import Classification, Series
from lstmcore.training.forecast import ForecastTask, scores
from lstmcore.training.losses import CrossEntropy
from lstmcore.training.model import SequenceModel
from lstmcore.training.readout import DTYPES


@click.command("evaluate")
@click.argument("model")
@click.argument("data")
@click.option(
    "--test-rows", type=click.IntRange(1), help="Forecasting: the last rows to judge  [default: those held out]."
)
@click.option("--fill", type=click.Choice(("error", "linear", "previous")), help="Gaps  [default: as in training].")
@click.option("--backend", help="Backend that computes  [default: the fastest].")
@click.option("--dtype", type=click.Choice(DTYPES), help="Precision  [default: as trained, or float64 if refused].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(  # noqa: PLR0913  (one for each option)
    model: str, data: str, test_rows: int | None, fill: Any, backend: str | None, dtype: str | None, as_json: bool
) -> None:
    """Judge MODEL on the test part of DATA.

    A classifier gets its accuracy, loss and state drift. A forecast gets RMSE and MAE next to the seasonal-naive
    forecast and the last value, one forecast a held-out row, each from the real values before it.

    \b
    Examples:
      lstmcore evaluate model.safetensors japanese-vowels
      lstmcore evaluate model.safetensors japanese-vowels --backend reference --json
    """  # noqa: D301  (click keeps the lines below its mark)
    loaded = SequenceModel.load(model, backend=backend, dtype=dtype)
    dataset = load_for(loaded, model, data)
    if isinstance(dataset, Classification):
        if test_rows is not None or fill is not None:
            raise ValueError("--test-rows, --fill: only for forecasting; this data set has a test set of its own")
        report = classified(loaded, dataset)
    else:
        report = forecast(loaded, dataset, test_rows, fill)
    ran = {"backend": loaded.lstm.backend.name, "dtype": loaded.readout.dtype}
    report = {"model": model, "data": data, **ran, **report}
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(report, console())


def load_for(loaded: SequenceModel, model: str, data: str) -> Classification | Series:
    """Return the data that a model can be judged on.

    Raises
    ------
    ValueError
        The model is for another kind of data.
    """
    kind = loaded.task.get("kind")
    if kind not in ("classify", "forecast"):
        raise ValueError(
            f"{model}: expected a model whose task has the kind classify or forecast; got {kind!r}: train it with "
            "'lstmcore train', or save it with SequenceModel(..., task={'kind': 'classify', 'classes': [...]})"
        )
    try:
        target = _check_task(loaded)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{model}: {error}") from error
    if target is None and data not in datasets.names() and Path(data).exists():
        raise ValueError(f"{model}: expected a model to forecast {data}; got one to {kind}")
    dataset = datasets.load(data) if data in datasets.names() else open_data(data, target)
    wanted = "classify" if isinstance(dataset, Classification) else "forecast"
    if wanted != kind:
        raise ValueError(f"{model}: expected a model to {wanted} {data}; got one to {kind}")
    if isinstance(dataset, Series) and dataset.column != target:
        raise ValueError(f"{model}: expected a model to forecast {dataset.column!r} of {data}; got one of {target!r}")
    if isinstance(dataset, Classification) and (
        dataset.input_size != loaded.lstm.stack.input_size or list(dataset.classes) != loaded.task["classes"]
    ):
        raise ValueError(f"{model}: expected a model of the classes and the width of {data}; got other ones")
    return dataset


def _check_task(model: SequenceModel) -> str | None:
    """Check that the task is one of this model; return the column to forecast, None for a classifier."""
    sizes = {"input_size": model.lstm.stack.input_size, "output_size": model.readout.output_size}
    if model.readout.steps != "last":
        raise ValueError(f"task: expected a readout at the last step; got {model.readout.steps!r}")
    if model.task["kind"] == "forecast":
        task = ForecastTask.from_dict(model.task)
        if sizes != (needed := {"input_size": 1, "output_size": task.horizon}):
            raise ValueError(f"task: expected a model with {needed} for horizon={task.horizon}; got {sizes}")
        return task.target
    classes = model.task.get("classes")
    if not isinstance(classes, list) or len(classes) != sizes["output_size"]:
        raise ValueError(f"task classes: expected a list of {sizes['output_size']}, one an output; got {classes!r}")
    if model.readout.activation not in ("softmax", "none"):
        raise ValueError(f"task: expected a readout with softmax or none; got {model.readout.activation!r}")
    return None


def classified(model: SequenceModel, data: Classification) -> dict[str, Any]:
    """Return accuracy, loss and drift on the test set, and the right answers by class."""
    result = model.evaluate(model.scaled(data.test.inputs), data.test.targets, CrossEntropy())
    answers = np.array([output.argmax() for output in model.predict(data.test.inputs)])
    by_class = {
        name: {
            "right": int((answers[data.test.targets == index] == index).sum()),
            "of": int((data.test.targets == index).sum()),
        }
        for index, name in enumerate(data.classes)
    }
    return {"kind": "classify", "sequences": len(data.test), **result._asdict(), "classes": by_class}


def forecast(model: SequenceModel, series: Series, test_rows: int | None, fill: Any) -> dict[str, Any]:
    """Return the errors of the model and of the naive forecasts, for the report.

    Parameters
    ----------
    model, series
        The model, and the series with its held-out rows.
    test_rows, fill
        Those of the command line; None takes the task's.
    """
    task = ForecastTask.from_dict(model.task)
    changes = {"test_rows": test_rows, "fill": fill}
    task = replace(task, **{name: value for name, value in changes.items() if value is not None})
    windows = task.held_out(series)
    judged = scores(model, windows, task.season)
    history = int(windows.origins[0]) + 1
    notes = [f"seasonal naive left out: a season has {task.season} rows, the history {history}"]
    return {
        "kind": "forecast",
        "windows": len(windows),
        "from": series.labels[int(windows.origins[0]) + 1],
        "to": series.labels[int(windows.origins[-1]) + task.horizon],
        "scores": [asdict(score) for score in judged],
        "notes": notes if task.season > history else [],
    }


def _show(report: dict[str, Any], out: Console) -> None:
    if report["kind"] == "classify":
        table = Table(title=click.format_filename(f"{report['model']} on {report['data']}"))
        for column in ("class", "right", "of"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for name, counts in report["classes"].items():
            table.add_row(name, str(counts["right"]), str(counts["of"]))
        out.print(table)
        out.print(
            f"accuracy {report['accuracy']:.2%} of {report['sequences']} test sequences, loss {report['loss']:.4f}, "
            f"state drift {report['drift']:.3g}; backend {report['backend']}, {report['dtype']}",
            soft_wrap=True,
        )
        return
    table = Table(title=f"{report['windows']} forecasts, {report['from']} to {report['to']}")
    table.add_column("forecast")
    table.add_column("RMSE", justify="right")
    table.add_column("MAE", justify="right")
    for score in report["scores"]:
        table.add_row(score["name"], f"{score['rmse']:.4f}", f"{score['mae']:.4f}")
    out.print(table)
    for note in report["notes"]:
        out.print(note, soft_wrap=True)
    out.print(f"backend {report['backend']}, {report['dtype']}")
