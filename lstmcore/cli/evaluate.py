"""``lstmcore evaluate``: errors of a model file on held-out data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from lstmcore import datasets
from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.cli._data import layout_options, open_data
from lstmcore.datasets import Classification, Layout, Series, Windows
from lstmcore.training.forecast import ForecastTask, errors, scores, trained_windows
from lstmcore.training.losses import CrossEntropy
from lstmcore.training.model import SequenceModel
from lstmcore.training.readout import DTYPES


@click.command("evaluate", cls=Command)
@click.argument("model")
@click.argument("data")
@click.option(
    "--test-rows", type=click.IntRange(1), help="Forecasting: the last rows to judge  [default: those held out]."
)
@click.option("--fill", type=click.Choice(("error", "linear", "previous")), help="Gaps  [default: as in training].")
@click.option("--only", help="Forecasting: the one series to judge  [default: all].")
@layout_options
@click.option("--backend", help="Backend that computes  [default: the fastest].")
@click.option("--dtype", type=click.Choice(DTYPES), help="Precision  [default: as trained, or float64 if refused].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(
    model: str, data: str, test_rows: int | None, backend: str | None, dtype: str | None, as_json: bool, **options: Any
) -> None:
    """Judge MODEL on the test part of DATA.

    A classifier gets its accuracy, loss and state drift. A forecast gets RMSE and MAE next to the seasonal-naive
    forecast and the last value, one forecast a held-out row, each from the real values before it. A CSV file is read
    as in training where --fill, --series, --time and --sort do not say otherwise.

    \b
    Examples:
      lstmcore evaluate model.safetensors japanese-vowels
      lstmcore evaluate model.safetensors japanese-vowels --backend reference --json
    """  # noqa: D301  (click keeps the lines below its mark)
    loaded = SequenceModel.load(model, backend=backend, dtype=dtype)
    dataset = load_for(loaded, model, data, options)
    if isinstance(dataset, Classification):
        if test_rows is not None:
            raise ValueError("--test-rows: only for forecasting; this data set has a test set of its own")
        report = classified(loaded, dataset)
    else:
        report = forecast(loaded, dataset, {"test_rows": test_rows, "fill": options["fill"]})
    ran = {"backend": loaded.lstm.backend.name, "dtype": loaded.readout.dtype}
    report = {"model": model, "data": data, **ran, **report}
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(report, console())


def load_for(
    loaded: SequenceModel, model: str, data: str, options: Mapping[str, Any]
) -> Classification | tuple[Series, ...]:
    """Return the data that a model can be judged on.

    Parameters
    ----------
    loaded, model
        The model and its file.
    data
        The argument of the command line.
    options
        ``only``, ``fill`` and those of `layout_options`; None takes the task's.

    Returns
    -------
    Classification or tuple
        The data set, or the series of the file, those that ``only`` names.

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
        task = _check_task(loaded)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{model}: {error}") from error
    if task is None:
        return _classification_for(loaded, model, data, options)
    changes = {name: options[name] for name in ("fill", "series", "time", "sort") if options[name] is not None}
    wanted = replace(task, **changes)
    opened = datasets.load(data) if data in datasets.names() else open_data(data, task.target, wanted.layout)
    if isinstance(opened, Classification):
        raise ValueError(f"{model}: expected a model to classify {data}; got one to forecast")
    panel = (opened,) if isinstance(opened, Series) else opened
    if panel[0].column != task.target:
        raise ValueError(
            f"{model}: expected a model to forecast {panel[0].column!r} of {data}; got one of {task.target!r}"
        )
    return panel if options["only"] is None else (_named(panel, options["only"]),)


def _classification_for(loaded: SequenceModel, model: str, data: str, options: Mapping[str, Any]) -> Classification:
    """Return the data set that a classifier can be judged on; raise ValueError for other data and options."""
    if given := next((name for name, value in options.items() if value is not None), None):
        raise ValueError(f"--{given}: only for forecasting; {model} is a model to classify")
    if data not in datasets.names() and Path(data).exists():
        raise ValueError(f"{model}: expected a model to forecast {data}; got one to classify")
    dataset = datasets.load(data) if data in datasets.names() else open_data(data, None, Layout())
    if not isinstance(dataset, Classification):
        raise ValueError(f"{model}: expected a model to forecast {data}; got one to classify")
    if dataset.input_size != loaded.lstm.input_size or list(dataset.classes) != loaded.task["classes"]:
        raise ValueError(f"{model}: expected a model of the classes and the width of {data}; got other ones")
    return dataset


def _named(panel: tuple[Series, ...], name: str) -> Series:
    """Return the series of that name; raise ValueError if there is none."""
    for series in panel:
        if series.id == name:
            return series
    names = ", ".join(series.id for series in panel[:10]) + ", ..." * (len(panel) > 10)
    expected = f"one of {names}" if panel[0].id else "--series with the column that names the series"
    raise ValueError(f"--only: expected {expected}; got {name!r}")


def _check_task(model: SequenceModel) -> ForecastTask | None:
    """Check that the task is one of this model; return a forecast's, None for a classifier."""
    sizes = {"input_size": model.lstm.input_size, "output_size": model.readout.output_size}
    if model.readout.steps != "last":
        raise ValueError(f"task: expected a readout at the last step; got {model.readout.steps!r}")
    if model.task["kind"] == "forecast":
        task = ForecastTask.from_dict(model.task)
        if sizes != (needed := {"input_size": 1, "output_size": task.horizon}):
            raise ValueError(f"task: expected a model with {needed} for horizon={task.horizon}; got {sizes}")
        return task
    classes = model.task.get("classes")
    if not isinstance(classes, list) or len(classes) != sizes["output_size"]:
        raise ValueError(f"task classes: expected a list of {sizes['output_size']}, one an output; got {classes!r}")
    if model.readout.activation not in ("softmax", "none"):
        raise ValueError(f"task: expected a readout with softmax or none; got {model.readout.activation!r}")
    return None


def classified(model: SequenceModel, data: Classification) -> dict[str, Any]:
    """Return accuracy, loss and drift on the test set, and the right answers by class."""
    result = model.evaluate(data.test.inputs, data.test.targets, CrossEntropy())
    answers = np.array([output.argmax() for output in model.predict(data.test.inputs)])
    by_class = {
        name: {
            "right": int((answers[data.test.targets == index] == index).sum()),
            "of": int((data.test.targets == index).sum()),
        }
        for index, name in enumerate(data.classes)
    }
    return {"kind": "classify", "sequences": len(data.test), **result._asdict(), "classes": by_class}


def forecast(model: SequenceModel, panel: tuple[Series, ...], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the errors of the model and of the naive forecasts, for the report.

    Parameters
    ----------
    model, panel
        The model, and the series with their held-out rows.
    changes
        Values of the task's fields; None takes the task's.
    """
    trained = ForecastTask.from_dict(model.task)
    task = replace(trained, **{name: value for name, value in changes.items() if value is not None})
    parts = [task.held_out(series) for series in panel]
    found = [errors(model, windows, task.season) for windows in parts]
    report = _judged(parts, found, task)
    history = min(int(windows.origins[0]) + 1 for windows in parts)
    if task.season > history:
        report["notes"].append(f"seasonal naive left out: a season has {task.season} rows, the history {history}")
    if seen := sum(trained_windows(task, windows) for windows in parts):
        report["notes"].append(
            f"{seen} of the {report['windows']} forecasts are of rows that the model was trained on (the last "
            f"{trained.test_rows} were held out): their errors are too low"
        )
    if panel[0].id:
        report["series"] = {
            windows.series.id: _judged([windows], [error], task) for windows, error in zip(parts, found, strict=True)
        }
    return {"kind": "forecast", **report}


def _judged(parts: list[Windows], found: list[dict[str, Any]], task: ForecastTask) -> dict[str, Any]:
    """Return the scores over some series, with the first and the last row that is forecast."""
    first, last = (pick(parts, key=key) for pick, key in ((min, _start), (max, _end)))
    return {
        "windows": sum(map(len, parts)),
        "from": first.series.labels[int(first.origins[0]) + 1],
        "to": last.series.labels[int(last.origins[-1]) + task.horizon],
        "scores": [asdict(score) for score in scores(found)],
        "notes": [],
    }


def _start(windows: Windows) -> float:
    return float(windows.series.times[windows.origins[0] + 1])


def _end(windows: Windows) -> float:
    return float(windows.series.times[windows.origins[-1] + windows.horizon])


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
    for name, judged in report.get("series", {}).items():
        listed = ", ".join(f"{score['name']} {score['rmse']:.4f}" for score in judged["scores"])
        out.print(f"{name}: {judged['windows']} forecasts, RMSE of {listed}", soft_wrap=True)
    for note in report["notes"]:
        out.print(note, soft_wrap=True)
    out.print(f"backend {report['backend']}, {report['dtype']}")
