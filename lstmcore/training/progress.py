"""Progress of a run: a bar on a terminal, a line for each epoch in a log, nothing if quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lstmcore.training.history import Epoch


@contextmanager
def shown_progress(total: int, done: int, quiet: bool) -> Iterator[Callable[[Epoch], None]]:
    """Yield a function that shows an epoch on standard error.

    Parameters
    ----------
    total, done
        Epochs of the whole run, and those that are finished already.
    quiet
        Show nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda epoch: None
    elif console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        ) as bar:
            task = bar.add_task("training", total=total, completed=done, numbers="")
            yield lambda epoch: bar.update(task, advance=1, numbers=_numbers(epoch))
    else:
        yield lambda epoch: print(f"epoch {epoch.number}/{total}  {_numbers(epoch)}", file=console.file)


def _numbers(epoch: Epoch) -> str:
    text = f"loss {epoch.loss:.4f}"
    if epoch.validation_loss is not None:
        text += f"  validation {epoch.validation_loss:.4f}"
    if epoch.validation_accuracy is not None:
        text += f"  accuracy {epoch.validation_accuracy:.1%}"
    text += "".join(f"  {name} {value:.4g}" for name, value in epoch.metrics.items())
    return text + f"  drift {epoch.drift:.2f}"
