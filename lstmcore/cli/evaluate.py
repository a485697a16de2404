"""``lstmcore evaluate``: errors of a model file on held-out data, of a file or each file of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.cli._data import Panel, layout_options
from lstmcore.cli._folder import FolderRun, ModelFile, files_of, is_folder, jobs_options
from lstmcore.cli._model_data import judged_sequences, panel_for, sequences_for
from lstmcore.datasets import Classification
from lstmcore.training.classification import ClassifyTask
from lstmcore.training.forecast import ForecastTask, errors, scores, trained_windows
from lstmcore.training.forecast_windows import ForecastWindows
from lstmcore.training.losses import CrossEntropy
from lstmcore.training.model import SequenceModel
from lstmcore.training.readout import DTYPES


@click.command("evaluate", cls=Command)
@click.argument("model")
@click.argument("data")
@click.option(
    "--test-rows",
    type=click.IntRange(1),
    help="To forecast: last rows to judge  [default: those held out in training].",
)
@click.option(
    "--fill",
    type=click.Choice(("error", "linear", "previous")),
    help="What to do about missing values  [default: as in training].",
)
@click.option("--only", help="To forecast: the one series to judge  [default: all].")
@layout_options
@jobs_options
@click.option("--backend", help="Backend to compute with  [default: the fastest].")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Floating-point type  [default: as trained, or float64 if the backend refuses it].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(model: str, data: str, backend: str | None, dtype: str | None, as_json: bool, **options: Any) -> None:
    """Measure the errors of MODEL on the test part of DATA.

    For a classifier: accuracy, loss and state drift on the sequences that it was not trained on. For a forecast: RMSE
    and MAE on the test rows, next to those of the seasonal-naive and the last-value forecast. Each forecast is made
    from the measured rows before it. A file is read as in training unless --fill, --series, --time, --sort,
    --separator, --decimal or --encoding say otherwise.

    Where DATA is a folder, each of its files is judged, in the order of their names. A file that fails is tried once
    more; the message names those that fail twice, when all others are done.

    \b
    Examples:
      lstmcore evaluate model.safetensors japanese-vowels
      lstmcore evaluate forecast.safetensors my.csv --json
      lstmcore evaluate forecast.safetensors shops --jobs 4
    """  # noqa: D301  (click keeps the lines below its mark)
    file = ModelFile.of(model, backend, dtype)
    if not is_folder(data, options):
        report = evaluate_file(file, data, options=options)
        if as_json:
            click.echo(json.dumps(report))
        else:
            _show(report, console())
        return
    run: FolderRun[dict[str, Any]] = FolderRun("evaluate", files_of(data), options)
    reports = dict(run.results(partial(evaluate_file, file.for_workers(options["engine"]), options=options)))
    # in the names of the command line: workers of Dask have absolute ones
    found = [reports[path] | {"model": model, "data": str(path)} for path in sorted(reports)]
    if as_json:
        click.echo(json.dumps(found))
    else:
        for report in found:
            console().print(report["data"], soft_wrap=True)
            _show(report, console())
    run.check()


def evaluate_file(file: ModelFile, data: str, *, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report on one file, or on one data set that ships.

    Parameters
    ----------
    file, data
        The model, and the data as on the command line.
    options
        ``test_rows``, and those that say how the data are read.
    """
    loaded, task, _ = file.load()
    if isinstance(task, ClassifyTask):
        if options["test_rows"] is not None:
            raise ValueError(f"--test-rows: only for forecasting; {file.path} is a model to classify")
        judged = judged_sequences(task, sequences_for(loaded, task, (file.path, data), options))
        report = classified(loaded, *judged)
    else:
        panel = panel_for(task, file.path, data, options)
        report = forecast(loaded, panel, {name: options[name] for name in ("test_rows", "fill")})
    ran = {"backend": loaded.lstm.backend.name, "dtype": loaded.readout.dtype}
    return {"model": file.path, "data": data, **ran, **report}


def classified(model: SequenceModel, data: Classification, trained: int = 0) -> dict[str, Any]:
    """Return accuracy, loss and drift on the test set, and the right answers by class.

    Parameters
    ----------
    model, data
        The model, and the sequences to judge it on.
    trained
        How many sequences of the file the model was trained on.
    """
    notes = []
    if trained and data.test.inputs[0] is data.train.inputs[0]:
        notes.append(f"the model was trained on all {trained} sequences: its errors on others are larger")
    elif trained:
        notes.append(f"{trained} more sequences, which the model was trained on, are left out")
    result = model.evaluate(data.test.inputs, data.test.targets, CrossEntropy())
    answers = np.array([output.argmax() for output in model.predict(data.test.inputs)])
    by_class = {
        name: {
            "right": int((answers[data.test.targets == index] == index).sum()),
            "of": int((data.test.targets == index).sum()),
        }
        for index, name in enumerate(data.classes)
    }
    return {"kind": "classify", "sequences": len(data.test), **result._asdict(), "classes": by_class, "notes": notes}


def forecast(model: SequenceModel, panel: Panel, changes: Mapping[str, Any]) -> dict[str, Any]:
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
    parts = [task.held_out(*columns) for columns in panel]
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
    if panel[0][0].id:
        report["series"] = {
            windows.series.id: _judged([windows], [error], task) for windows, error in zip(parts, found, strict=True)
        }
    return {"kind": "forecast", **report}


def _judged(parts: list[ForecastWindows], found: list[dict[str, Any]], task: ForecastTask) -> dict[str, Any]:
    """Return the scores over some series, with the first and the last row that is forecast."""
    first, last = (pick(parts, key=key) for pick, key in ((min, _start), (max, _end)))
    return {
        "windows": sum(map(len, parts)),
        "from": first.series.labels[int(first.origins[0]) + 1],
        "to": last.series.labels[int(last.origins[-1]) + task.horizon],
        "scores": scores(found, task.targets),
        "notes": [],
    }


def _start(windows: ForecastWindows) -> float:
    return float(windows.series.times[windows.origins[0] + 1])


def _end(windows: ForecastWindows) -> float:
    return float(windows.series.times[windows.origins[-1] + windows.horizon])


def _show(report: dict[str, Any], out: Console) -> None:
    if report["kind"] == "classify":
        table = Table(title=click.format_filename(f"{report['model']} on {report['data']}"))
        for column in ("class", "right", "of"):
            table.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
        for name, counts in report["classes"].items():
            table.add_row(name, str(counts["right"]), str(counts["of"]))
        out.print(table)
        out.print(
            f"accuracy {report['accuracy']:.2%} of {report['sequences']} test sequences, loss {report['loss']:.4f}, "
            f"state drift {report['drift']:.3g}; backend {report['backend']}, {report['dtype']}",
            soft_wrap=True,
        )
        for note in report["notes"]:
            out.print(note, soft_wrap=True)
        return
    several = "target" in report["scores"][0]
    table = Table(title=f"{report['windows']} forecasts, {report['from']} to {report['to']}")
    for heading in ("column",) * several + ("forecast",):
        table.add_column(heading, overflow="fold")
    for heading in ("RMSE", "MAE"):
        table.add_column(heading, justify="right")
    for score in report["scores"]:
        of = (score["target"],) if several else ()
        table.add_row(*of, score["name"], f"{score['rmse']:.4g}", f"{score['mae']:.4g}")
    out.print(table)
    for name, judged in report.get("series", {}).items():
        named = [(f"{score.get('target', '')} {score['name']}".strip(), score["rmse"]) for score in judged["scores"]]
        listed = ", ".join(f"{way} {rmse:.4g}" for way, rmse in named)
        out.print(f"{name}: {judged['windows']} forecasts, RMSE of {listed}", soft_wrap=True)
    for note in report["notes"]:
        out.print(note, soft_wrap=True)
    out.print(f"backend {report['backend']}, {report['dtype']}")
