"""``lstmcore plot``: a picture of a forecast with its history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from lstmcore.cli._command import Command
from lstmcore.cli._data import check_files, free_name, layout_options
from lstmcore.cli._model_data import panel_for, task_of
from lstmcore.training.classification import ClassifyTask
from lstmcore.training.forecast_plot import MOST_PANELS, forecast_pictures, plot_forecast
from lstmcore.training.model import SequenceModel
from lstmcore.training.plots import check_picture


@click.command("plot", cls=Command)
@click.argument("model")
@click.argument("data")
@click.option("--out", help="Picture to write (png, svg or pdf)  [default: a free name, after DATA].")
@click.option("--rows", type=click.IntRange(2), help="Rows of history to draw  [default: the test rows or a window].")
@click.option("--fill", type=click.Choice(("error", "linear", "previous")),
              help="What to do about missing values  [default: as in training].")  # fmt: skip
@click.option("--only", help="The one series to draw  [default: the first ones].")
@layout_options
@click.option("--backend", help="Backend to compute with  [default: the fastest].")
def plot(model: str, data: str, out: str | None, rows: int | None, backend: str | None, **options: Any) -> None:
    """Draw the forecast that MODEL gives for DATA, after its history.

    The picture shows the measured rows, the forecasts of the test rows, each from the rows before it, and the forecast
    of the rows that follow the last one. The band around it holds 80 % of the errors on the test rows.

    \b
    Example:
      lstmcore plot forecast.safetensors my.csv --out forecast.png
    """  # noqa: D301  (click keeps the lines below its mark)
    out = out or free_name(data, "-forecast", ".png")
    check_files({"--out": out}, {"the model": model, "the data": data})
    check_picture(out, "--out")
    loaded = SequenceModel.load(model, backend=backend)
    task = task_of(loaded, model)
    if isinstance(task, ClassifyTask):
        raise ValueError(f"{model}: expected a model to forecast; got one to classify")
    panel = panel_for(task, model, data, options)
    wanted = replace(task, fill=options["fill"] or task.fill)
    pictures = [picture for columns in panel for picture in forecast_pictures(loaded, wanted, columns, rows)]
    plot_forecast(pictures[:MOST_PANELS], out, title=f"{data}: forecast of {task.horizon} rows")
    left = len(pictures) - MOST_PANELS
    more = f"; {left} more panels are left out: choose a series with --only" if left > 0 else ""
    click.echo(f"wrote {click.format_filename(out)}{more}")
