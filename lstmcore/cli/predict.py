"""``lstmcore predict``: classes or forecasts of a model, as CSV or JSON, for a file or each file of a folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from lstmcore.cli._command import Command
from lstmcore.cli._data import check_files, layout_options
from lstmcore.cli._folder import FolderRun, ModelFile, files_of, is_folder, jobs_options
from lstmcore.cli._model_data import panel_for, sequences_for
from lstmcore.datasets import Labelled, Series
from lstmcore.datasets.series import next_labels
from lstmcore.files import UnwritableError, write_atomically
from lstmcore.training.classification import ClassifyTask
from lstmcore.training.forecast import ForecastTask, forecasts
from lstmcore.training.model import SequenceModel
from lstmcore.training.readout import DTYPES

#: Names of the columns of a forecast; a column to forecast of such a name is marked.
_OWN_NAMES = ("series", "after", "step", "time")
#: Ending of what is written, without and with --json.
_ENDINGS = (".csv", ".json")
#: Endings of files that are not written: others, such as .txt, say nothing.
_TABLES = (".xlsx", ".xls", ".ods", ".parquet", ".feather")
_OTHERS = (".npz", ".npy", ".pkl", ".pickle", ".h5", ".hdf5", ".safetensors", ".gz", ".bz2", ".xz", ".zst", ".zip")


@click.command("predict", cls=Command)
@click.argument("model")
@click.argument("data")
@click.option("--out", help="File to write, or folder for a folder  [default: print].")
@click.option("--probabilities", is_flag=True, help="To classify: add a column with the probability of each class.")
@click.option("--fill", type=click.Choice(("error", "linear", "previous")),
              help="What to do about missing values  [default: as in training].")  # fmt: skip
@click.option("--only", help="To forecast: the one series to forecast  [default: all].")
@layout_options
@jobs_options
@click.option("--backend", help="Backend to compute with  [default: the fastest].")
@click.option("--dtype", type=click.Choice(DTYPES),
              help="Floating-point type  [default: as trained, or float64 if the backend refuses it].")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write JSON in place of CSV.")
def predict(
    model: str,
    data: str,
    out: str | None,
    backend: str | None,
    dtype: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the classes or the forecast that MODEL gives for DATA.

    A classifier gives the class of each sequence and its probability; of a data set that ships, of each test sequence.
    A forecast gives the rows that follow the last one, with their times, for each series. A file is read as in training
    unless --fill, --series, --time, --sort, --separator, --decimal or --encoding say otherwise.

    Where DATA is a folder, each of its files has a file of the same stem in the folder --out. Those below it are left
    out. A file that fails is tried once more; the message names those that fail twice, when all others are done, and
    what is still there for them from an earlier run.

    \b
    Examples:
      lstmcore predict model.safetensors japanese-vowels --out answers.csv
      lstmcore predict forecast.safetensors my.csv --out forecast.csv
      lstmcore predict walks.safetensors new-walks.csv --probabilities
      lstmcore predict forecast.safetensors shops --out forecasts --jobs 4
    """  # noqa: D301  (click keeps the lines below its mark)
    predicted = partial(predict_file, as_json=as_json, options=options)
    if is_folder(data, options):
        file, files = ModelFile.of(model, backend, dtype), files_of(data)
        outputs = _outputs(files, out, ".json" if as_json else ".csv", {"the model": model})
        run: FolderRun[bytes] = FolderRun("predict", files, options)
        for source, content in run.results(partial(predicted, file.for_workers(options["engine"]))):
            try:
                outputs[source].parent.mkdir(exist_ok=True)
                write_atomically(outputs[source], content)
            except OSError as error:
                run.fail(source, error)
        run.check(outputs)
        return
    check_files({"--out": out}, {"the model": model, "the data": data})
    _check_ending(out, as_json)
    content = predicted(ModelFile.of(model, backend, dtype), data)
    if out is None:
        click.echo(content, nl=False)
    else:
        write_atomically(out, content)
        if not as_json:
            rows = sum(1 for _ in csv.reader(io.StringIO(content.decode(), newline=""))) - 1
            click.echo(f"wrote {click.format_filename(out)}, {rows} rows")


def _check_ending(out: str | None, as_json: bool) -> None:
    """Raise ValueError for the name of a file of another kind than the one that is written."""
    ending = "" if out is None else Path(out).suffix.casefold()
    if ending in (*_TABLES, *_OTHERS) or (ending in _ENDINGS and ending != _ENDINGS[as_json]):
        hint = {".json": ": choose --json for JSON", ".csv": ": leave --json out for CSV"}.get(ending, "")
        raise ValueError(f"--out: expected a name that ends in {_ENDINGS[as_json]}; got {out!r}{hint}")


def predict_file(file: ModelFile, data: str, *, as_json: bool, options: Mapping[str, Any]) -> bytes:
    """Return the predictions for one file, or for one data set that ships, as CSV or JSON.

    Parameters
    ----------
    file, data
        The model, and the data as on the command line.
    as_json
        Whether to return JSON.
    options
        Those of the command that say how the data are read, and ``probabilities``.
    """
    loaded, task, _ = file.load()
    if isinstance(task, ClassifyTask):
        sequences = sequences_for(loaded, task, (file.path, data), options)
        rows = _answers(loaded, task, sequences, options["probabilities"])
    elif options["probabilities"]:
        raise ValueError(f"--probabilities: only for classifying; {file.path} is a model to forecast")
    else:
        panel = panel_for(task, file.path, data, options)
        rows = [row for columns in panel for row in _next_rows(loaded, task, columns, options["fill"])]
    return (json.dumps(rows) + "\n" if as_json else _csv(rows)).encode()


def _outputs(files: Sequence[Path], out: str | None, ending: str, inputs: Mapping[str, str]) -> dict[Path, Path]:
    """Return the file to write for each file; raise unless all can be written, and replace nothing that is read."""
    folder, sources = files[0].parent, {str(path): str(path) for path in files}
    if out is None:
        raise UnwritableError("--out", f"expected a folder for the predictions of each file of {folder}; got none", "")
    target = Path(out)
    if (target.exists() and not target.is_dir()) or not target.parent.is_dir():
        raise UnwritableError("--out", f"expected a folder, or a new one in a folder that exists; got {out!r}", out)
    if not os.access(target if target.exists() else target.parent, os.W_OK | os.X_OK):
        raise UnwritableError("--out", f"expected a folder that you may write to; got {out!r}", out)
    if target.exists() and target.samefile(folder):
        raise UnwritableError("--out", f"expected another folder than that of the data; got {out!r}", out)
    outputs = {path: target / f"{path.stem}{ending}" for path in files}
    sources_of: dict[Path, Path] = {}
    for source, path in outputs.items():
        if (other := sources_of.setdefault(path, source)) != source:
            both = f"{other.name} and {source.name}"
            raise ValueError(f"{folder}: expected files of different stems; got {both}: both would give {path.name}")
    if target.exists():
        check_files({f"--out {path.name}": str(path) for path in outputs.values()}, {**inputs, **sources})
    return outputs


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
