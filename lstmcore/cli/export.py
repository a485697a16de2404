"""``lstmcore export``: a model as a folder for Hugging Face's hub."""

from __future__ import annotations

from typing import Any

import click

from lstmcore.cli._command import Command
from lstmcore.cli._data import layout_options
from lstmcore.cli._model_data import judged_sequences, panel_for, sequences_for, task_of
from lstmcore.cli.evaluate import classified, forecast
from lstmcore.training.classification import ClassifyTask
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_card import save_folder


@click.command("export", cls=Command)
@click.argument("model")
@click.option("--out", required=True, help="Folder to write, new or empty.")
@click.option("--title", help="Heading of the model card  [default: the name of the folder].")
@click.option("--data", help="Data whose scores go into the card: what evaluate takes for this model.")
@click.option("--fill", type=click.Choice(("error", "linear", "previous")),
              help="What to do about missing values  [default: as in training].")  # fmt: skip
@click.option("--only", help="To forecast: the one series to judge  [default: all].")
@layout_options
def export(model: str, out: str, title: str | None, data: str | None, **options: Any) -> None:
    """Write MODEL as a folder that Hugging Face's hub takes: weights, config.json and a model card.

    The other commands read the folder as they read the file.

    \b
    Examples:
      lstmcore export forecast.safetensors --out sales-forecast --data my.csv
      lstmcore predict sales-forecast my.csv
    """  # noqa: D301  (click keeps the lines below its mark)
    if data is None and (given := next((name for name, value in options.items() if value is not None), None)):
        raise ValueError(f"--{given}: only with --data, which was not given")
    loaded = SequenceModel.load(model)
    scores = [] if data is None else _scores(loaded, model, data, options)
    save_folder(loaded, out, title=title or "", scores=scores)
    click.echo(f"wrote {click.format_filename(out)}: upload it with 'hf upload USER/NAME {click.format_filename(out)}'")


def _scores(model: SequenceModel, name: str, data: str, options: dict[str, Any]) -> list[str]:
    """Return lines about how the model is on the test part of the data."""
    task = task_of(model, name)
    if isinstance(task, ClassifyTask):
        report = classified(model, *judged_sequences(task, sequences_for(model, task, (name, data), options)))
        lines = [f"accuracy {report['accuracy']:.2%} of {report['sequences']} test sequences"]
    else:
        report = forecast(model, panel_for(task, name, data, options), {"fill": options["fill"]})
        lines = [
            f"{score.get('target', task.target)}, {score['name']}: RMSE {score['rmse']:.4g}, MAE {score['mae']:.4g}"
            for score in report["scores"]
        ]
        lines.append(f"{report['windows']} forecasts, {report['from']} to {report['to']}")
    return lines + list(report["notes"])
