"""``lstmcore train``: from data to a model file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final, NamedTuple, TypeVar

import click
import numpy as np
from rich.console import Console

from lstmcore.cli._command import Command
from lstmcore.cli._console import console
from lstmcore.cli._data import check_files, free_name, layout_options, open_data
from lstmcore.config import SHARED_SWITCHES, SWITCHES
from lstmcore.datasets import Classification, Layout, Series, Windows
from lstmcore.domains import Kind, Switch
from lstmcore.lstm import LSTM
from lstmcore.training.forecast import ForecastTask, errors, scores, training_set
from lstmcore.training.history import History
from lstmcore.training.model import SequenceModel
from lstmcore.training.optimizers import OPTIMIZERS, Optimizer
from lstmcore.training.plots import check_picture, plot_history
from lstmcore.training.readout import DTYPES, Readout
from lstmcore.training.trainer import DivergedError, Trainer

F = TypeVar("F", bound=Callable[..., Any])

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
    "window": 52,
    "horizon": 1,
    "fill": "error",
}
#: Rows held out of a series that ships with the package: the last two years.
_TEST_ROWS: Final = {"co2": 104}


def _both(text: str, name: str) -> str:
    """Return the help of an option whose default depends on the kind of task."""
    return f"{text}  [default: {CLASSIFY[name]} to classify, {FORECAST[name]} to forecast]"


def _option(switch: Switch) -> Callable[[F], F]:
    """Return the option of a switch: its name with hyphens, its domain, default and summary."""
    name, kind = f"--{switch.name.replace('_', '-')}", switch.domain.kind
    details: dict[str, Any] = {"default": switch.default, "help": switch.summary}
    if kind == "flag":
        flags = f"{name}/--no-{name.removeprefix('--')}" if switch.default else name
        return click.option(flags, is_flag=True, **details)
    if kind == "function":
        details["default"] = str(switch.default)
    types: dict[Kind, Any] = {
        "size": click.IntRange(0),
        "choice": click.Choice(switch.domain.choices),
        "number": click.FloatRange(0, min_open=True),
        "bound": click.FloatRange(0, min_open=True),
        "rate": click.FloatRange(0, 1),
        "function": str,
    }
    return click.option(name, type=types[kind], **details)


def _switches(command: F) -> F:
    """Add the options that are arguments of `LSTM`."""
    for name in reversed(SHARED_SWITCHES):
        command = _option(SWITCHES[name])(command)
    for option in (
        click.option("--dropout", type=click.FloatRange(0, 1), default=0.0, help="Rate between layers."),
        click.option("--num-layers", type=click.IntRange(1), default=1, show_default=True, help="Layers."),
    ):
        command = option(command)
    return command


@click.command("train", cls=Command)
@click.argument("data")
@click.option("--out", help="The model file (safetensors) to write  [default: a free name, from that of DATA].")
@click.option("--target", help="Forecasting: the column of the CSV file.")
@click.option(
    "--window", type=click.IntRange(1), help=f"Forecasting: rows that are read  [default: {FORECAST['window']}]."
)
@click.option(
    "--horizon", type=click.IntRange(1), help=f"Forecasting: rows that follow  [default: {FORECAST['horizon']}]."
)
@click.option("--season", type=click.IntRange(1), help="Forecasting: rows of a season  [default: the window].")
@click.option("--test-rows", type=click.IntRange(1), help="Forecasting: last rows to hold out  [default: 104 for co2].")
@click.option("--test-fraction", type=click.FloatRange(0, 1, True, True), help="The same as a share  [default: 0.2].")
@click.option("--fill", type=click.Choice(("error", "linear", "previous")),
              help=f"Forecasting: what to do about gaps  [default: {FORECAST['fill']}].")  # fmt: skip
@layout_options
@click.option("--hidden-size", type=click.IntRange(1), help=_both("Width of the cell.", "hidden_size"))
@click.option("--bidirectional/--unidirectional", default=None, help=_both("Both directions.", "bidirectional"))
@_switches
@click.option("--epochs", type=click.IntRange(1), help=_both("Rounds over the data.", "epochs"))
@click.option("--batch-size", type=click.IntRange(1), help=_both("Sequences a step.", "batch_size"))
@click.option("--optimizer", type=click.Choice(tuple(OPTIMIZERS)), help=_both("Rule.", "optimizer"))
@click.option("--lr", type=click.FloatRange(0, min_open=True), help=_both("Learning rate.", "lr"))
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="For sgd  [default: 0.9].")
@click.option("--weight-decay", type=click.FloatRange(0), help=_both("Weight decay.", "weight_decay"))
@click.option("--input-noise", type=click.FloatRange(0), help=_both("Noise on the inputs.", "input_noise"))
@click.option(
    "--clip-norm", type=click.FloatRange(0), default=1.0, show_default=True, help="Gradient norm; 0 for none."
)
@click.option("--validation", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True,
              help="Share of the training set that watches the run.")  # fmt: skip
@click.option(
    "--patience", type=click.IntRange(0), help=_both("Epochs without a better one; 0 for no end.", "patience")
)
@click.option("--drift-threshold", type=click.FloatRange(0, min_open=True), help="Stop above this state drift.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random.")
@click.option("--backend", help="Backend that computes  [default: the fastest].")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision.")
@click.option("--plot", help="Picture of the learning curve to write (png, svg, pdf).")
@click.option("--checkpoint", help="File to write after every epoch.")
@click.option("--resume", help="Checkpoint to go on from.")
@click.option("--quiet", is_flag=True, help="No progress bar, no line about the model's file, no summary.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def train(
    data: str, out: str | None, as_json: bool, quiet: bool, plot: str | None, resume: str | None, **options: Any
) -> None:
    """Train an LSTM on DATA: japanese-vowels, co2, or a CSV file of your own.

    A CSV file has a header row; --target names the column to forecast from its own past. Where a column has dates, they
    must ascend evenly: --sort sorts the rows, --fill puts missing rows in, --series names the column that tells several
    series apart. No window reaches from one series into another.

    \b
    Examples:
      lstmcore train japanese-vowels --out model.safetensors
      lstmcore train my.csv --target column --window 52 --horizon 1 --out forecast.safetensors
      lstmcore train co2 --fill linear --out co2.safetensors
    """  # noqa: D301  (click keeps the lines below its mark)
    out = out or free_name(data)
    outputs = {"--out": out, "--plot": plot, "--checkpoint": options["checkpoint"]}
    check_files(outputs, {"the data": data})
    check_files({"--out": out, "--plot": plot}, {"--resume": resume})  # a run may go on in its own checkpoint
    if plot is not None:
        try:
            check_picture(plot)
        except (ImportError, ValueError) as error:
            raise ValueError(f"--{error}") from None
    filled = (options["fill"] or FORECAST["fill"]) != "error"
    layout = Layout(options["series"], options["time"], bool(options["sort"]), filled)
    dataset = open_data(data, options["target"], layout)
    settings = {**(CLASSIFY if isinstance(dataset, Classification) else FORECAST)}
    settings |= {name: value for name, value in options.items() if value is not None}
    if isinstance(dataset, Classification):
        _refuse_forecasting(options)
        run = _classification(dataset, settings)
    else:
        run = _forecasting(data, dataset, {**settings, "layout": layout})
    patient = settings["validation"] or options["patience"]
    trainer = _trainer(run, {**settings, "patience": settings["patience"] if patient else None}, quiet or as_json)
    if not quiet:
        click.echo(f"lstmcore: the model goes to {click.format_filename(out)}", err=True)
    start = time.perf_counter()
    history = _fit(trainer, run, resume, out)
    seconds = time.perf_counter() - start
    run.model.save(out)
    if plot is not None:
        plot_history(history, plot, title=f"{data}: {settings['hidden_size']} hidden units")
    report: dict[str, Any] = {"data": data, "model": out, "seconds": round(seconds, 3), "history": history.to_dict()}
    if run.task is not None:
        found = [errors(run.model, windows, run.task.season) for windows in run.held_out]
        report["held_out"] = [asdict(score) for score in scores(found)]
    if as_json:
        click.echo(json.dumps(report))
    elif not quiet:
        _print_summary(report, console())


class _Run(NamedTuple):
    """A model and what it is trained on; the others are those of a forecast, `held_out` for each series."""

    model: SequenceModel
    inputs: Any
    targets: Any
    task: ForecastTask | None = None
    held_out: tuple[Windows, ...] = ()
    purge: int = 0


def _fit(trainer: Trainer, run: _Run, resume: str | None, out: str) -> History:
    """Train; if it diverges after an epoch, write the best model before the error."""
    try:
        return trainer.fit(run.inputs, run.targets, resume=resume)
    except DivergedError as error:
        if error.restored is None:
            raise
        run.model.save(out)
        raise ValueError(f"{error} with a lower --lr or --clip-norm; wrote {click.format_filename(out)}") from None


def _classification(dataset: Classification, settings: dict[str, Any]) -> _Run:
    about = {"kind": "classify", "data": dataset.name, "classes": list(dataset.classes)}
    model = _model((dataset.input_size, len(dataset.classes)), "softmax", settings, about)
    return _Run(model, dataset.train.inputs, dataset.train.targets)


def _forecasting(data: str, panel: tuple[Series, ...], settings: dict[str, Any]) -> _Run:
    task = _forecast_task(data, panel, settings)
    learned, held_out = training_set(task, panel), tuple(task.held_out(series) for series in panel)
    try:
        for windows in held_out:
            windows.seasonal_naive_forecast(task.season)  # the report needs it after the training
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    model = _model((1, task.horizon), "none", settings, task.to_dict())
    return _Run(model, learned.inputs, learned.targets, task, held_out, learned.purge)


def _trainer(run: _Run, settings: dict[str, Any], quiet: bool) -> Trainer:
    return Trainer(
        run.model,
        loss="mean-squared-error" if run.task else "cross-entropy",
        optimizer=_optimizer(settings),
        chronological=run.task is not None,
        purge=run.purge,
        standardize_targets=run.task is not None,
        clip_norm=settings["clip_norm"] or None,
        patience=settings["patience"] or None,
        drift_threshold=settings.get("drift_threshold"),
        checkpoint=settings.get("checkpoint"),
        quiet=quiet,
        **{name: settings[name] for name in ("epochs", "batch_size", "validation", "input_noise", "seed")},
    )


def _refuse_forecasting(options: dict[str, Any]) -> None:
    for name in ("window", "horizon", "season", "test_rows", "test_fraction"):
        if options[name] is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}: only for forecasting; this data set has a test set of its own"
            )
    if options["fill"] is not None:
        raise ValueError("--fill: only for forecasting; this data set has no gaps")


def _forecast_task(data: str, panel: tuple[Series, ...], settings: dict[str, Any]) -> ForecastTask:
    """Return the task; of each series the same number of rows is held out, by the shortest one."""
    if settings.get("test_rows") is not None and settings.get("test_fraction") is not None:
        raise ValueError("--test-rows, --test-fraction: expected one of the two; got both")
    shortest = min(map(len, panel))
    if settings.get("test_fraction") is not None:
        rows = max(1, round(settings["test_fraction"] * shortest))
    else:
        rows = settings.get("test_rows") or _TEST_ROWS.get(data) or max(1, round(0.2 * shortest))
    window, layout = settings["window"], settings["layout"]
    task = ForecastTask(
        target=panel[0].column,
        window=window,
        horizon=settings["horizon"],
        season=settings.get("season") or window,
        test_rows=rows,
        fill=settings["fill"],
        series=layout.series,
        time=layout.time,
        sort=layout.sort,
    )
    trained_to = {series.id: float(series.times[task.first_test_row(series) - 1]) for series in panel}
    return replace(task, trained_to=trained_to)


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


def _print_summary(report: dict[str, Any], out: Console) -> None:
    history = report["history"]
    epochs, best = history["epochs"], history["best"]
    kept = epochs[(best or len(epochs)) - 1]
    text = f"{len(epochs)} epochs in {report['seconds']:.1f} s, kept epoch {kept['number']}: loss {kept['loss']:.4f}"
    if kept["validation_loss"] is not None:
        text += f", validation loss {kept['validation_loss']:.4f}"
    if kept["validation_accuracy"] is not None:
        text += f", validation accuracy {kept['validation_accuracy']:.1%}"
    out.print(f"{text}, state drift {kept['drift']:.3g}", soft_wrap=True)
    if history["stopped"]:
        out.print(f"stopped early: {history['stopped']}", soft_wrap=True)
    for score in report.get("held_out", ()):
        out.print(f"held out, {score['name']}: RMSE {score['rmse']:.4g}, MAE {score['mae']:.4g}")
    if report["model"]:
        out.print(f"wrote {click.format_filename(report['model'])}", soft_wrap=True)
