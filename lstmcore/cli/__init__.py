"""The command ``lstmcore``. A sub-command is imported when it is run, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from lstmcore.notices import Finding, Notice
from lstmcore.plugin_calls import slow_calls_told
from lstmcore.ranks import DistributedError, launched_rank, tell_launcher
from lstmcore.registry import PluginError, UnavailableError

#: Sub-command, in the module of its name -> its line in ``lstmcore --help``.
COMMANDS: Final[Mapping[str, str]] = {
    "backends": "List the installed backends.",
    "conform": "Check a backend against the specification.",
    "bench": "Time backends next to PyTorch, ONNX Runtime and JAX.",
    "train": "Train an LSTM to forecast or to classify.",
    "evaluate": "Measure the errors of a model on test data.",
    "predict": "Write the forecast or the classes that a model gives.",
    "plot": "Draw a forecast with its history.",
    "info": "Describe a model file.",
    "convert": "Bring weights from and to PyTorch, ONNX and Keras.",
    "compress": "Store a model's weights in fewer bytes, and measure the error.",
    "export": "Write a model as a folder for Hugging Face's hub.",
}

#: Errors that a mistake of the user raises; any other is a defect and shows its traceback.
MISTAKES: Final = (
    ValueError,
    TypeError,
    OSError,
    PluginError,
    UnavailableError,
    DistributedError,
    ImportError,
    MemoryError,
)


class Commands(click.Group):
    """A group that loads commands by name and prints their errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = f"{__name__}.{cmd_name}"
        command = getattr(importlib.import_module(module), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{cmd_name}: expected a click command; got {type(command).__name__}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them, which takes as long as all the rest."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the options of ``lstmcore`` itself; a mistake is one line, as in `invoke`."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _as_one_line(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a mistake is one line and exit code 2, with a traceback under ``LSTMCORE_DEBUG=1``.

        A notice is one line too, and so is an error that click finds.
        """
        try:
            with warnings.catch_warnings(), slow_calls_told():
                warnings.simplefilter("always", Notice)
                warnings.showwarning = _shown(warnings.showwarning)
                return super().invoke(ctx)
        except click.UsageError as error:
            if isinstance(error, click.exceptions.NoArgsIsHelpError):
                raise
            if _told_by_rank_0(ctx, error):
                ctx.exit(2)
            raise _as_one_line(error) from None
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the reader has gone; nothing is left to flush to
            ctx.exit(1)
        except MISTAKES as error:
            if os.environ.get("LSTMCORE_DEBUG", "") not in ("", "0"):
                raise
            text = " ".join(str(error).split())
            if isinstance(error, FileNotFoundError) and error.filename is not None:
                text = f"{error.filename}: expected a file that is there; there is none of that name"
            elif isinstance(error, MemoryError):
                text = f"out of memory{': ' * bool(text)}{text}: choose a smaller model, batch, window or precision"
            if not _told_by_rank_0(ctx, error):
                tell_launcher(text)
                click.echo(f"lstmcore: error: {text}", err=True)
            ctx.exit(2)


def _told_by_rank_0(ctx: click.Context, error: Exception) -> bool:
    """Return whether rank 0 of a distributed training shows this error too; without an engine no rank knows."""
    alone = isinstance(error, PluginError | UnavailableError)
    return ctx.invoked_subcommand == "train" and bool(launched_rank()) and not alone


def _as_one_line(error: click.UsageError) -> click.ClickException:
    """Return an error of click as one line; its words are loaded only if there is one."""
    from lstmcore.cli._errors import as_one_line

    return as_one_line(error)


def _shown(others: Callable[..., None]) -> Callable[..., None]:
    """Return a function that shows a notice in one line, and by `others` any other warning.

    What was found in the data is left out under ``--quiet``.
    """

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Finding) and click.get_current_context().params.get("quiet"):
            return
        if issubclass(category, Notice):
            click.echo(f"lstmcore: warning: {' '.join(str(message).split())}", err=True)
        else:
            others(message, category, *where, **more)

    return show


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lstmcore", prog_name="lstmcore")
def main() -> None:
    """LSTM networks without a deep-learning framework.

    \b
    Example:
      lstmcore train japanese-vowels --out model.safetensors
      lstmcore evaluate model.safetensors japanese-vowels
    """  # noqa: D301  (click keeps the lines below its mark)
