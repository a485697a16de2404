"""``lstmcore train``: from data to a model file."""

from __future__ import annotations

import json
import os
import shlex
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click
from rich.console import Console

from lstmcore.cli._command import Command, words_of
from lstmcore.cli._console import console
from lstmcore.cli._data import check_files, free_name, layout_options
from lstmcore.cli._ranks import agreed, joined_ranks, launch_command
from lstmcore.cli._runs import CLASSIFY, FORECAST, TEST_FRACTION, WINDOW, Run, held_out_report, make_run, make_trainer
from lstmcore.config import SHARED_SWITCHES, SWITCHES
from lstmcore.distributed import Engine
from lstmcore.distributed.launcher import STARTERS
from lstmcore.domains import Kind, Switch
from lstmcore.notices import Notice
from lstmcore.training.history import History
from lstmcore.training.model_card import count_of
from lstmcore.training.optimizers import OPTIMIZERS
from lstmcore.training.plots import check_picture, plot_history
from lstmcore.training.readout import DTYPES
from lstmcore.training.trainer import DivergedError, Trainer

F = TypeVar("F", bound=Callable[..., Any])
#: Defaults that help shows in words.
_SHOWN: Final = {"None": "never", "True": "both", "False": "forwards"}


def _both(text: str, name: str) -> str:
    """Return the help of an option whose default may depend on the kind of task."""
    classify, forecast = (_SHOWN.get(str(values[name]), values[name]) for values in (CLASSIFY, FORECAST))
    both = classify if classify == forecast else f"{classify} to classify, {forecast} to forecast"
    return f"{text}  [default: {both}]"


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
        click.option("--dropout", type=click.FloatRange(0, 1), default=0.0, help="Dropout rate between layers."),
        click.option("--num-layers", type=click.IntRange(1), default=1, show_default=True, help="Number of layers."),
    ):
        command = option(command)
    return command


@click.command("train", cls=Command)
@click.argument("data")
@click.option("--out", help="Model file (safetensors) to write  [default: a free name, after DATA].")
@click.option("--target", help="To forecast: the column, or several with commas between.")
@click.option("--features", help="Columns to read besides, with commas between  [default: to classify, all others].")
@click.option("--label", help="To classify: the column with the class of each sequence.")
@click.option("--id", help="To classify: the column that says which sequence a row belongs to.")
@click.option("--window", type=click.IntRange(1),
              help="To forecast: rows that the model reads  "
              f"[default: two seasons, one if two exceed {WINDOW}, or {WINDOW} without a season; "
              "half of the rows at most].")  # fmt: skip
@click.option("--horizon", type=click.IntRange(1),
              help=f"To forecast: rows ahead to forecast  [default: {FORECAST['horizon']}].")  # fmt: skip
@click.option("--season", type=click.IntRange(1),
              help="To forecast: rows in a season  [default: by the dates, or the window].")  # fmt: skip
@click.option("--test-rows", type=click.IntRange(1),
              help="To forecast: last rows of each series to keep for the test  [default: 104 for co2].")  # fmt: skip
@click.option("--test-fraction", type=click.FloatRange(0, 1, max_open=True),
              help=f"Fraction of your own data to keep for the test  [default: {TEST_FRACTION}].")  # fmt: skip
@click.option("--fill", type=click.Choice(("error", "linear", "previous")),
              help="What to do about missing values: stop, interpolate, or repeat the value before  [default: error].",
              )  # fmt: skip
@layout_options
@click.option("--hidden-size", type=click.IntRange(1), help=_both("Units of the LSTM.", "hidden_size"))
@click.option("--bidirectional/--unidirectional", default=None, help=_both("Directions to read in.", "bidirectional"))
@_switches
@click.option("--epochs", type=click.IntRange(1), help=_both("Passes over the training data.", "epochs"))
@click.option("--batch-size", type=click.IntRange(1), help=_both("Sequences in a batch.", "batch_size"))
@click.option("--optimizer", type=click.Choice(tuple(OPTIMIZERS)), help=_both("Optimizer.", "optimizer"))
@click.option("--lr", type=click.FloatRange(0, min_open=True), help=_both("Learning rate.", "lr"))
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Momentum of sgd  [default: 0.9].")
@click.option("--weight-decay", type=click.FloatRange(0), help=_both("Weight decay.", "weight_decay"))
@click.option(
    "--input-noise",
    type=click.FloatRange(0),
    help=_both("Standard deviation of the noise on the inputs.", "input_noise"),
)
@click.option(
    "--clip-norm",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Largest norm of the gradients; 0 for no limit.",
)
@click.option("--validation", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True,
              help="Fraction of the training data held out for validation.")  # fmt: skip
@click.option(
    "--patience",
    type=click.IntRange(0),
    help=_both("Stop after this many epochs without improvement; 0 for never.", "patience"),
)
@click.option(
    "--drift-threshold", type=click.FloatRange(0, min_open=True), help="Stop if the state drift is above this."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random numbers.")
@click.option("--backend", help="Backend to compute with  [default: the fastest].")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Floating-point type.")
@click.option("--plot", help="Picture of the learning curve to write (png, svg or pdf).")
@click.option("--checkpoint", help="Checkpoint to write after every epoch.")
@click.option("--resume", help="Checkpoint to continue from.")
@click.option("--ranks", type=click.IntRange(1), help="Processes of this machine that train together.")
@click.option("--engine", type=click.Choice(STARTERS), help="Of --ranks: MPI, or gloo of PyTorch  [default: mpi].")
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def train(
    data: str, out: str | None, as_json: bool, quiet: bool, plot: str | None, resume: str | None, **options: Any
) -> None:
    """Train an LSTM on DATA: japanese-vowels, co2, or a file of your own.

    To forecast, name the column with --target. The file is a CSV or Parquet file with a header row and one row per time
    step. Its times must ascend evenly: --sort sorts the rows, --fill adds missing ones, --series names the column that
    tells several series apart. No window reaches from one series into another.

    To classify sequences, name the column with the class (--label) and the one that tells the sequences apart (--id);
    there is one row per step here too. Or give a NumPy archive (.npz) with arrays X (N, T, I), y and, if the sequences
    are padded, lengths. A fifth of the sequences is kept for the test.

    \b
    Examples:
      lstmcore train japanese-vowels --out model.safetensors
      lstmcore train my.csv --target sales --window 52 --horizon 4
      lstmcore train my.csv --target load,heat --features wind,sun
      lstmcore train walks.csv --label gait --id walk
      lstmcore train co2 --fill linear --out co2.safetensors
      lstmcore train japanese-vowels --ranks 2
    """  # noqa: D301  (click keeps the lines below its mark)
    ranks, started_by, saved = options.pop("ranks") or 1, options.pop("engine"), _Saved(options["checkpoint"], resume)
    if started_by is not None and ranks == 1:
        raise ValueError(f"--engine: only with --ranks of 2 or more; got {started_by!r}")
    if ranks > 1:
        try:
            launch_command("train", ranks, started_by or STARTERS[0])
        except KeyboardInterrupt:
            raise click.exceptions.Exit(_tell_stop(saved)) from None
        return
    engine = joined_ranks()
    leads = engine is None or engine.rank == 0
    if not leads:
        quiet = True
        warnings.simplefilter("ignore", Notice)  # until the command ends; rank 0 shows it
    files = (out or free_name(data), plot, resume)
    run, trainer = agreed(engine, lambda: _prepare(data, files, options, (quiet or as_json, engine)))
    out = files[0]
    if not quiet:
        click.echo(f"lstmcore: the model goes to {click.format_filename(out)}", err=True)
    start = time.perf_counter()
    try:
        history = trainer.fit(run.inputs, run.targets, resume=resume)
    except DivergedError as error:
        raise (_kept(error, run, out) if leads else error) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(_tell_stop(saved)) from None
    seconds = time.perf_counter() - start
    if not leads:
        return
    run.model.save(out)
    if plot is not None:
        plot_history(history, plot, title=f"{data}: {run.settings['hidden_size']} hidden units")
    report = _report(run, history, {"data": data, "model": out, "seconds": round(seconds, 3)})
    if as_json:
        click.echo(json.dumps(report))
    elif not quiet:
        _print_summary(report, console())


def _prepare(
    data: str,
    files: tuple[str, str | None, str | None],
    options: Mapping[str, Any],
    how: tuple[bool, Engine | None],
) -> tuple[Run, Trainer]:
    """Return the run and its trainer, after a check of the `files`: of the model, the plot and the run to go on from.

    `how` has whether to show no progress, and the ranks, of which the first alone writes files.
    """
    (out, plot, resume), (quiet, engine) = files, how
    if engine is None or engine.rank == 0:
        outputs = {"--out": out, "--plot": plot, "--checkpoint": options["checkpoint"]}
        check_files(outputs, {"the data": data})
        check_files({"--out": out, "--plot": plot}, {"--resume": resume})  # a run may go on in its own checkpoint
    if plot is not None:
        try:
            check_picture(plot)
        except (ImportError, ValueError) as error:
            raise ValueError(f"--{error}") from None
    run = make_run(data, options)
    return run, make_trainer(run, quiet=quiet, distributed=engine)


def _kept(error: DivergedError, run: Run, out: str) -> ValueError:
    """Return the error of a run that diverged; after an epoch, the best model is written first."""
    if error.restored is None:
        return error
    run.model.save(out)
    return ValueError(f"{error} with a lower --lr or --clip-norm; wrote {click.format_filename(out)}")


class _Saved:
    """The file of a run's checkpoints, and whether it holds one of this run: it may be left from another.

    Parameters
    ----------
    path
        Its name; None for a run without.
    resume
        The file that the run goes on from, which may be the same; None for a run from the start.
    """

    def __init__(self, path: str | None, resume: str | None) -> None:
        self.path, self._before = path, _state_of(path)
        self._is_own = _state_of(resume) == self._before

    def holds_run(self) -> bool:
        now = _state_of(self.path)
        return now is not None and (self._is_own or now != self._before)


def _state_of(path: str | None) -> tuple[int, ...] | None:
    """Return what changes if a file is written or replaced; None if there is none."""
    try:
        found = None if path is None else os.stat(path)
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


def _tell_stop(saved: _Saved) -> int:
    """Print how to go on with a run that was stopped, and return the exit code."""
    if saved.path is None:
        told = "nothing was written: with --checkpoint FILE a stopped run can go on"
    elif not saved.holds_run():
        told = "nothing was written, since no epoch had ended: the same command starts again"
    else:
        words = words_of(click.get_current_context(), "--resume")
        told = f"go on with: lstmcore train {shlex.join(words)} --resume {shlex.quote(saved.path)}"
    click.echo(f"lstmcore: stopped; {told}", err=True)
    return 130  # as a shell has it after Ctrl-C


def _report(run: Run, history: History, report: dict[str, Any]) -> dict[str, Any]:
    report["history"] = history.to_dict()
    found = held_out_report(run)
    return report if found is None else {**report, "held_out": found}


def _print_summary(report: dict[str, Any], out: Console) -> None:
    history = report["history"]
    epochs, best = history["epochs"], history["best"]
    kept = epochs[(best or len(epochs)) - 1]
    ran = f"{count_of(len(epochs), 'epoch')} in {report['seconds']:.1f} s"
    text = f"{ran}, kept epoch {kept['number']}: loss {kept['loss']:.4f}"
    if kept["validation_loss"] is not None:
        text += f", validation loss {kept['validation_loss']:.4f}"
    if kept["validation_accuracy"] is not None:
        text += f", validation accuracy {kept['validation_accuracy']:.1%}"
    out.print(f"{text}, state drift {kept['drift']:.3g}", soft_wrap=True)
    if history["stopped"]:
        out.print(f"stopped early: {history['stopped']}", soft_wrap=True)
    held_out = report.get("held_out", [])
    if isinstance(held_out, dict):
        out.print(f"test data: accuracy {held_out['accuracy']:.1%} of {held_out['sequences']} sequences")
    else:
        for score in held_out:
            name = f"{score.get('target', '')} {score['name']}".strip()
            out.print(f"test data, {name}: RMSE {score['rmse']:.4g}, MAE {score['mae']:.4g}", soft_wrap=True)
    out.print(f"wrote {click.format_filename(report['model'])}", soft_wrap=True)
