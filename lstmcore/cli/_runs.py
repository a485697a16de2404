"""A model and what it is trained on, given the settings of ``lstmcore train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore import datasets
from lstmcore.cli._data import (
    Panel,
    archive_parts,
    check_there,
    column_names,
    is_archive,
    make_layout,
    open_labelled,
    open_panel,
    refuse_for_own,
)
from lstmcore.cli._forecast_room import Asked, check_room
from lstmcore.config import SHARED_SWITCHES
from lstmcore.datasets import Classification, LabelLayout, Sequences
from lstmcore.datasets.series import steps_of
from lstmcore.datasets.time_formats import TIME_FORMATS
from lstmcore.distributed import Engine
from lstmcore.lstm import LSTM
from lstmcore.notices import Finding, notify
from lstmcore.training.classification import ClassifyTask, divide
from lstmcore.training.forecast import ForecastTask, errors, scores, training_set
from lstmcore.training.forecast_windows import ForecastWindows
from lstmcore.training.model import SequenceModel
from lstmcore.training.optimizers import OPTIMIZERS, Optimizer
from lstmcore.training.readout import Readout
from lstmcore.training.trainer import Trainer

#: Defaults of options, by kind of task. Validation inside the training sets chose them.
CLASSIFY: Final[dict[str, Any]] = {
    "hidden_size": 100,
    "bidirectional": True,
    "epochs": 60,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 0.003,
    "weight_decay": 0.1,
    "input_noise": 0.6,
    "patience": None,
    "fill": "error",
}
FORECAST: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "bidirectional": False,
    "epochs": 40,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 0.003,
    "weight_decay": 0.01,
    "input_noise": 0.0,
    "patience": 10,
    "horizon": 1,
    "fill": "error",
}
#: Rows that a model to forecast reads by default where no season is known; else it reads so many seasons, or one if
#: they are longer. docs/benchmarks/forecasts.md has what was tried.
WINDOW: Final = 52
_SEASONS: Final = 2
#: Rows held out of a series that ships with the package: the last two years.
_TEST_ROWS: Final = {"co2": 104}
#: Share of the rows or sequences of a file that is held out.
TEST_FRACTION: Final = 0.2
_FORECASTING: Final = ("target", "window", "horizon", "season", "test_rows", "series")
_CLASSIFYING: Final = ("id", "label")


class Run(NamedTuple):
    """A model and what it is trained on: inputs, targets, and windows to leave out before those that validate.

    `windows` has those of the test rows of each series to forecast, `held_out` the test sequences of a classifier.
    """

    model: SequenceModel
    inputs: Any
    targets: Any
    task: ForecastTask | ClassifyTask
    settings: dict[str, Any]
    windows: tuple[ForecastWindows, ...] = ()
    held_out: Sequences | None = None
    purge: int = 0


def make_run(data: str, options: Mapping[str, Any]) -> Run:
    """Return the run that the options of ``lstmcore train`` ask for; those that are None get their defaults.

    Raises
    ------
    TypeError, ValueError
        Data that cannot be read, options that do not fit each other or the data.
    """
    check_there(data)
    own = datasets.load(data) if data in datasets.names() else None
    classify = isinstance(own, Classification) or is_archive(data) or any(options[name] for name in _CLASSIFYING)
    _refuse_other_kind(data, options, classify)
    settings = {**(CLASSIFY if classify else FORECAST)}
    settings |= {name: value for name, value in options.items() if value is not None}
    if not settings["validation"] and options["patience"] is None:
        settings["patience"] = None  # nothing is held out to be patient with
    if not classify:
        return _forecasting(data, options, settings)
    if isinstance(own, Classification):
        refuse_for_own(data, options)
        for name in ("features", "id", "label", "test_fraction", "fill"):
            if options[name] is not None:
                raise ValueError(f"--{name.replace('_', '-')}: only for a file of your own; {data} needs none")
        return _classification(own, settings, ClassifyTask(data=data, classes=own.classes))
    return _own_classification(data, options, settings)


#: Options of a forecast -> what names the same to classify.
_INSTEAD: Final = {
    "target": ": --label names the column with the class",
    "series": ": --id names the column that tells the sequences apart",
}


def _refuse_other_kind(data: str, options: Mapping[str, Any], classify: bool) -> None:
    for name in _FORECASTING if classify else _CLASSIFYING:
        if options[name] is not None:
            kind = "forecasting" if classify else "classifying"
            hint = _INSTEAD.get(name, "") if classify else ""
            raise ValueError(f"--{name.replace('_', '-')}: only for {kind}; got it with {_what(data, classify)}{hint}")


def _what(data: str, classify: bool) -> str:
    return f"{data}, whose sequences are classified" if classify else f"{data}, which is forecast"


def _classification(dataset: Classification, settings: dict[str, Any], task: ClassifyTask) -> Run:
    model = _model((dataset.input_size, len(dataset.classes)), "softmax", settings, task.to_dict())
    return Run(model, dataset.train.inputs, dataset.train.targets, task, settings)


def _own_classification(data: str, options: Mapping[str, Any], settings: dict[str, Any]) -> Run:
    """Return a run on a file of the user: its own test part is held out, or a fraction of each class."""
    layout = _label_layout(data, options, settings["fill"])
    labelled = open_labelled(data, layout, "train")
    divided = is_archive(data) and "test" in archive_parts(data)
    if divided and options["test_fraction"] is not None:
        raise ValueError(f"--test-fraction: only for data without a test part; {data} has X_test")
    fraction = 0.0 if divided else settings.get("test_fraction", TEST_FRACTION)
    dataset, trained_on = divide(labelled, fraction, settings["seed"])
    task = ClassifyTask(
        data=Path(data).name,
        classes=dataset.classes,
        id=layout.id,
        label=layout.label or "",
        features=labelled.features,
        time=layout.rows.time,
        sort=layout.rows.sort,
        fill=settings["fill"],
        trained_on=trained_on,
        **{name: getattr(layout.rows, name) for name in ("separator", "decimal", "encoding")},
    )
    run = _classification(dataset, settings, task)
    if not divided:
        return run._replace(held_out=dataset.test)
    test = open_labelled(data, layout, "test")
    return run._replace(held_out=Sequences(test.inputs, task.numbers(test)))


def _label_layout(data: str, options: Mapping[str, Any], fill: Any) -> LabelLayout:
    if not is_archive(data):
        for name, what in (("id", "tells the sequences apart"), ("label", "names the class")):
            if options[name] is None:
                raise ValueError(f"--{name}: expected the column that {what}; got none")
    rows = make_layout(options, "error")
    return LabelLayout(options["id"] or "", options["label"], column_names(options["features"]), rows, fill)


def _forecasting(data: str, options: Mapping[str, Any], settings: dict[str, Any]) -> Run:
    targets, features = column_names(options["target"]), column_names(options["features"])
    layout = make_layout(options, settings["fill"])
    if both := next((name for name in features if name in targets), None):
        raise ValueError(f"--features: expected columns besides those of --target; got {both!r}, whose past is read")
    panel = open_panel(data, (*targets, *features), layout)
    rows, window, season = _plan_forecast(data, panel, options, settings)
    columns = [series.column for series in panel[0]]
    task = ForecastTask(
        target=columns[0],
        window=window,
        horizon=settings["horizon"],
        season=season or window,
        test_rows=rows,
        fill=settings["fill"],
        other_targets=targets[1:],
        features=features,
        **{name: getattr(layout, name) for name in ("series", "time", "sort", "separator", "decimal", "encoding")},
    )
    ends = {parts[0].id: float(parts[0].times[task.first_test_row(parts[0]) - 1]) for parts in panel}
    task = replace(task, trained_to=ends)
    learned, held_out = training_set(task, panel), tuple(task.held_out(*parts) for parts in panel)
    try:
        for windows in held_out:
            windows.seasonal_naive_forecast(task.season)  # the report needs it after the training
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    model = _model((len(columns), len(task.targets) * task.horizon), "none", settings, task.to_dict())
    return Run(model, learned.inputs, learned.targets, task, settings, held_out, purge=learned.purge)


def _plan_forecast(
    data: str, panel: Panel, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[int, int, int | None]:
    """Return the test rows, the rows that the model reads, and those of a season, None if none is known.

    Raises
    ------
    ValueError
        Too few rows; the message says what would do.
    """
    usual = _usual_season(panel)

    def sizes(shortest: int, horizon: int) -> tuple[int, int, int | None]:
        rows = _test_rows(data, shortest, {**settings, "horizon": horizon})
        season = settings.get("season") or (usual if usual is not None and usual <= shortest - rows else None)
        return rows, settings.get("window") or _usual_window(season, shortest - rows, horizon), season

    lengths = [len(parts[0]) for parts in panel]
    gaps = any(series.gaps.any() for columns in panel for series in columns)
    if not gaps or settings["fill"] != "error":  # else the gap is the error
        check_room(data, lengths, Asked(settings["horizon"], settings["validation"], options["window"], gaps), sizes)
    rows, window, season = sizes(min(lengths), settings["horizon"])
    if season is None:
        notify(
            f"--season: none is known for {data}: its seasonal-naive forecast repeats the values one window "
            f"({window} rows) before; give --season if there is one",
            kind=Finding,
        )
    return rows, window, season


def _usual_season(panel: Panel) -> int | None:
    """Return the rows in a season, by the times of the first series; None if none is usual or it has no dates."""
    series = panel[0][0]
    if not series.form or not TIME_FORMATS[series.form].are_dates:
        return None
    return steps_of(series).season


def _usual_window(season: int | None, learned: int, horizon: int) -> int:
    """Return the rows that a model reads: two seasons, or one that is longer, and at most half of the training rows.

    Where the horizon is long, some windows must remain to learn from.
    """
    wanted = WINDOW
    if season is not None and season > 1:
        wanted = _SEASONS * season if _SEASONS * season <= WINDOW else season
    return max(1, min(wanted, learned // 2, 2 * (learned - horizon) // 3))


def _test_rows(data: str, shortest: int, settings: Mapping[str, Any]) -> int:
    """Return how many rows of each series are held out: the same number of each, by the shortest one."""
    if settings.get("test_rows") is not None and settings.get("test_fraction") is not None:
        raise ValueError("--test-rows, --test-fraction: expected one of the two; got both")
    rows: int | None = settings.get("test_rows")
    fraction: float | None = settings.get("test_fraction")
    if fraction is not None:
        if fraction == 0:
            raise ValueError("--test-fraction: expected a number above 0 to forecast; got 0")
        return max(1, round(float(fraction) * shortest))
    enough = min(settings["horizon"], shortest // 3)  # for one forecast
    return rows or _TEST_ROWS.get(data) or max(1, enough, round(TEST_FRACTION * shortest))


def make_trainer(run: Run, *, quiet: bool, distributed: Engine | None = None) -> Trainer:
    """Return the trainer of a run, without a progress bar if `quiet`, of this rank of several if `distributed`."""
    settings, forecasting = run.settings, isinstance(run.task, ForecastTask)
    return Trainer(
        run.model,
        loss="mean-squared-error" if forecasting else "cross-entropy",
        optimizer=_optimizer(settings),
        chronological=forecasting,
        purge=run.purge,
        standardize_targets=forecasting,
        clip_norm=settings["clip_norm"] or None,
        patience=settings["patience"] or None,
        drift_threshold=settings.get("drift_threshold"),
        checkpoint=settings.get("checkpoint"),
        quiet=quiet,
        distributed=distributed,
        **{name: settings[name] for name in ("epochs", "batch_size", "validation", "input_noise", "seed")},
    )


def held_out_report(run: Run) -> list[dict[str, Any]] | dict[str, Any] | None:
    """Return the errors of a trained model on what was held out; None if nothing was."""
    if isinstance(run.task, ForecastTask):
        return scores([errors(run.model, part, run.task.season) for part in run.windows], run.task.targets)
    if run.held_out is None or not len(run.held_out):
        return None
    found = run.model.evaluate(run.held_out.inputs, run.held_out.targets)
    return {"sequences": len(run.held_out), "accuracy": found.accuracy, "loss": found.loss}


def _model(sizes: tuple[int, int], activation: Any, settings: dict[str, Any], task: dict[str, Any]) -> SequenceModel:
    """Return a new model with `sizes` (inputs, outputs) and the readout's `activation`."""
    width, outputs = sizes
    names = ("num_layers", "bidirectional", "dropout", *SHARED_SWITCHES, "dtype", "seed", "backend")
    arguments: dict[str, Any] = {name: settings.get(name) for name in names}
    lstm = LSTM(width, settings["hidden_size"], **arguments)
    seed = int(np.random.SeedSequence((settings["seed"], 2)).generate_state(1)[0])
    readout = Readout(lstm.output_width, outputs, activation=activation, dtype=settings["dtype"], seed=seed)
    return SequenceModel(lstm, readout, task=task)


def _optimizer(settings: dict[str, Any]) -> Optimizer:
    rule = OPTIMIZERS[settings["optimizer"]]
    arguments = {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
    if rule.name == "sgd":
        arguments["momentum"] = settings.get("momentum", 0.9)
    elif settings.get("momentum") is not None:
        raise ValueError(f"--momentum: only for sgd; got --optimizer {rule.name}")
    return rule(**arguments)
