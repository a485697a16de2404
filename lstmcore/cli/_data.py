"""Data sets and files that are named on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from lstmcore import datasets
from lstmcore.datasets import Classification, Layout, Series
from lstmcore.files import check_writable

F = TypeVar("F", bound=Callable[..., Any])


def layout_options(command: F) -> F:
    """Add the options that say how the rows of a CSV file are read: those of `Layout` that are not derived."""
    for option in (
        click.option("--sort", is_flag=True, default=None, help="CSV: sort the rows by time."),
        click.option("--time", help="CSV: column with the times, - for none  [default: the first with dates]."),
        click.option("--series", help="CSV: column that tells several series apart."),
    ):
        command = option(command)
    return command


def open_data(data: str, target: str | None, layout: Layout) -> Classification | tuple[Series, ...]:
    """Return the data set of that name, or the column `target` of the CSV file at that path.

    Parameters
    ----------
    data, target
        The arguments of the command line.
    layout
        How the rows of a file are read.

    Returns
    -------
    Classification or tuple
        The data set, or the series: one, or several where ``layout.series`` tells them apart.

    Raises
    ------
    ValueError
        Neither a data set nor a file, or a CSV file without `target`.
    """
    if data in datasets.names():
        dataset = datasets.load(data)
        if target is not None and (isinstance(dataset, Classification) or dataset.column != target):
            column = "no column to choose" if isinstance(dataset, Classification) else f"the column {dataset.column!r}"
            raise ValueError(f"--target: {data} has {column}; got {target!r}")
        for name in ("series", "time", "sort"):
            if getattr(layout, name):
                raise ValueError(f"--{name}: only for a CSV file; {data} is read as it stands")
        return dataset if isinstance(dataset, Classification) else (dataset,)
    path = Path(data)
    if not path.exists():
        raise ValueError(
            f"data: expected one of {', '.join(datasets.names())} or a CSV file; got {data!r}, which is not there"
        )
    if target is None:
        raise ValueError(f"{data}: expected --target with the column to forecast; got none")
    return datasets.read_panel(path, target, layout)


def free_name(data: str) -> str:
    """Return the name of a model file for `data` in the working directory that no file has."""
    stem = Path(data).stem
    names = (f"{stem}{number}.safetensors" for number in ("", *(f"-{k}" for k in range(2, 10_000))))
    return next(name for name in names if not os.path.lexists(name))


def check_files(outputs: Mapping[str, str | None], inputs: Mapping[str, str | None]) -> None:
    """Raise before long work if files could not be written after it, or would replace each other or an input.

    Parameters
    ----------
    outputs, inputs
        Option or argument -> path, None if it is not given.

    Raises
    ------
    ValueError
        The first of `outputs` that cannot be written.
    """
    taken = {Path(path).resolve(): name for name, path in inputs.items() if path is not None and Path(path).is_file()}
    for name, path in outputs.items():
        if path is None:
            continue
        target = check_writable(name, path)
        if target in taken:
            raise ValueError(f"{name}: expected a file of its own; got {path!r}, which is that of {taken[target]}")
        taken[target] = name
