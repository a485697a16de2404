"""The data that a model can be judged on, or can say something about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lstmcore import datasets
from lstmcore.cli._data import LAYOUT_OPTIONS, Panel, check_there, is_archive, open_labelled, open_panel, refuse_for_own
from lstmcore.datasets import Classification, Labelled
from lstmcore.training.classification import ClassifyTask, held_out
from lstmcore.training.forecast import ForecastTask
from lstmcore.training.model import SequenceModel


class Judged(NamedTuple):
    """Sequences to judge a classifier on, and how many of the file it was trained on."""

    data: Classification
    trained: int = 0


def task_of(loaded: SequenceModel, model: str) -> ClassifyTask | ForecastTask:
    """Return the task of a model, after a check that it is one of this model.

    Raises
    ------
    ValueError
        A model without a task, or with one of another model; the message names the file `model`.
    """
    kind = loaded.task.get("kind")
    if kind not in ("classify", "forecast"):
        raise ValueError(
            f"{model}: expected a model whose task has the kind classify or forecast; got {kind!r}: train it with "
            "'lstmcore train', or save it with SequenceModel(..., task={'kind': 'classify', 'classes': [...]})"
        )
    try:
        return _forecast_task(loaded) if kind == "forecast" else _classify_task(loaded)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{model}: {error}") from error


def _forecast_task(model: SequenceModel) -> ForecastTask:
    task, sizes = ForecastTask.from_dict(model.task), _sizes(model)
    needed = {"input_size": len(task.columns), "output_size": len(task.targets) * task.horizon}
    if sizes != needed:
        raise ValueError(f"task: expected a model with {needed} for horizon={task.horizon}; got {sizes}")
    return task


def _classify_task(model: SequenceModel) -> ClassifyTask:
    outputs, classes = _sizes(model)["output_size"], model.task.get("classes")
    if not isinstance(classes, list) or len(classes) != outputs:
        raise ValueError(f"task classes: expected a list of {outputs}, one an output; got {classes!r}")
    if model.readout.activation not in ("softmax", "none"):
        raise ValueError(f"task: expected a readout with softmax or none; got {model.readout.activation!r}")
    return ClassifyTask.from_dict(model.task)


def _sizes(model: SequenceModel) -> dict[str, int]:
    if model.readout.steps != "last":
        raise ValueError(f"task: expected a readout at the last step; got {model.readout.steps!r}")
    if model.embedding is not None:
        raise ValueError("task: expected a model of real numbers; got one with an embedding: use SequenceModel.predict")
    return {"input_size": model.lstm.input_size, "output_size": model.readout.output_size}


def panel_for(task: ForecastTask, model: str, data: str, options: Mapping[str, Any]) -> Panel:
    """Return the series of a file, those that ``only`` names, with the columns of the task.

    Parameters
    ----------
    task, model
        The task of the model, and its file.
    data
        The argument of the command line.
    options
        ``only``, ``fill`` and those of `layout_options`; None takes the task's.

    Raises
    ------
    ValueError
        The model is for other data.
    """
    check_there(data)
    changes = {name: options[name] for name in ("fill", *LAYOUT_OPTIONS) if options[name] is not None}
    wanted = replace(task, **changes)
    if data in datasets.names():
        opened = datasets.load(data)
        if isinstance(opened, Classification):
            raise ValueError(f"{model}: expected a model to classify {data}; got one to forecast")
        if task.columns != (opened.column,):
            raise ValueError(
                f"{model}: expected a model to forecast {opened.column!r} of {data}; got one of "
                f"{', '.join(map(repr, task.columns))}"
            )
    panel = open_panel(data, wanted.columns, wanted.layout)
    return panel if options["only"] is None else _named(panel, options["only"])


def _named(panel: Panel, name: str) -> Panel:
    """Return the series of that name; raise ValueError if there is none."""
    for columns in panel:
        if columns[0].id == name:
            return (columns,)
    names = ", ".join(columns[0].id for columns in panel[:10]) + ", ..." * (len(panel) > 10)
    expected = f"one of {names}" if panel[0][0].id else "--series with the column that names the series"
    raise ValueError(f"--only: expected {expected}; got {name!r}")


def sequences_for(
    loaded: SequenceModel, task: ClassifyTask, names: tuple[str, str], options: Mapping[str, Any]
) -> Labelled:
    """Return the sequences that a classifier can say something about: of a data set that ships, its test part.

    Parameters
    ----------
    loaded, task
        The model and its task.
    names
        The file of the model, and the data, as on the command line.
    options
        As for `panel_for`.

    Raises
    ------
    ValueError
        The model is for other data.
    """
    model, data = names
    for name in ("only", "series"):
        if options[name] is not None:
            raise ValueError(f"--{name}: only for forecasting; {model} is a model to classify")
    check_there(data)
    if data in datasets.names():
        return _own_sequences(loaded, task, names, options)
    changes = {name: options[name] for name in ("fill", *LAYOUT_OPTIONS) if options[name] is not None}
    wanted = replace(task, **changes)
    if not wanted.id and not is_archive(data):
        raise ValueError(
            f"{model}: expected {task.data}, which the model was trained on, or another NumPy archive; got {data}"
        )
    found = open_labelled(data, wanted.layout, "test")
    if found.input_size != loaded.lstm.input_size:
        raise ValueError(
            f"{data}: expected {loaded.lstm.input_size} numbers a step for {model}; got {found.input_size}"
        )
    return found


def _own_sequences(
    loaded: SequenceModel, task: ClassifyTask, names: tuple[str, str], options: Mapping[str, Any]
) -> Labelled:
    model, data = names
    dataset = datasets.load(data)
    if not isinstance(dataset, Classification):
        raise ValueError(f"{model}: expected a model to forecast {data}; got one to classify")
    refuse_for_own(data, options)
    if options["fill"] is not None:
        raise ValueError(f"--fill: only for a file of your own; {data} has no gaps")
    if dataset.input_size != loaded.lstm.input_size or dataset.classes != task.classes:
        raise ValueError(f"{model}: expected a model of the classes and the width of {data}; got other ones")
    labels = tuple(dataset.classes[number] for number in dataset.test.targets)
    ids = tuple(map(str, range(len(dataset.test))))
    return Labelled(data, dataset.test.inputs, ids, labels)


def judged_sequences(task: ClassifyTask, data: Labelled) -> Judged:
    """Return the labelled sequences that a classifier was not trained on; all, if it was trained on all of them."""
    dataset, trained = held_out(task, data)
    return Judged(dataset, trained)
