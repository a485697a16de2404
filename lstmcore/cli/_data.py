"""Data sets and files that are named on the command line."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import click

from lstmcore import datasets
from lstmcore.datasets import Classification, LabelLayout, Labelled, Layout, Series
from lstmcore.datasets.csv_table import TIME_NAMES
from lstmcore.datasets.labelled import open_archive
from lstmcore.files import check_regular, check_writable
from lstmcore.suggestions import did_you_mean, shortened

F = TypeVar("F", bound=Callable[..., Any])
#: For each series of a file, one `Series` for each column.
Panel: TypeAlias = tuple[tuple[Series, ...], ...]

#: Options of `layout_options` that say how the text of a file is written, with what they are in `Layout`.
TEXT_OPTIONS = ("separator", "decimal", "encoding")
LAYOUT_OPTIONS = ("series", "time", "sort", *TEXT_OPTIONS)
_TIME_RULE = f"the first named {', '.join(sorted(TIME_NAMES))} if its cells are times, else the first with dates"


def layout_options(command: F) -> F:
    """Add the options that say how the rows of a file are read: those of `Layout` that are not derived."""
    for option in (
        click.option("--encoding", help="Encoding of a CSV file, such as cp1252  [default: found from the file]."),
        click.option("--decimal", help="Decimal sign of a CSV file, . or ,  [default: found from the file]."),
        click.option("--separator", help="Sign between the cells of a CSV file, or tab  [default: found]."),
        click.option("--sort", is_flag=True, default=None, help="Sort the rows of a file by time."),
        click.option("--time", help=f"Column with the times, or - for none  [default: {_TIME_RULE}]."),
        click.option("--series", help="Column that says which series a row belongs to."),
    ):
        command = option(command)
    return command


def column_names(text: str | None) -> tuple[str, ...]:
    """Return the names in a list with commas between; a name with a comma stands in double quotes.

    Examples
    --------
    >>> column_names('load,"heat, dry"')
    ('load', 'heat, dry')
    """
    if text is None:
        return ()
    return tuple(name.strip() for row in csv.reader([text], skipinitialspace=True) for name in row if name.strip())


def make_layout(options: Mapping[str, Any], fill: str) -> Layout:
    """Return how a file is read, given the options of `layout_options` and the treatment of gaps."""
    said = {name: options[name] for name in LAYOUT_OPTIONS if options[name] is not None}
    return Layout(**said, insert=fill != "error")


def check_there(data: str) -> None:
    """Raise ValueError unless `data` is the name of a data set or of a file."""
    if data not in datasets.names():
        if not Path(data).exists():
            raise ValueError(
                f"data: expected one of {', '.join(datasets.names())} or a CSV file; got {data!r}, which is not there"
                f"{did_you_mean(data, datasets.names())}"
            )
        check_regular(data)


def is_archive(data: str) -> bool:
    """Return whether a file is a NumPy archive, by its name."""
    return data not in datasets.names() and Path(data).suffix.casefold() == ".npz"


def open_panel(data: str, columns: tuple[str, ...], layout: Layout) -> Panel:
    """Return the columns of the data set of that name, or of the file at that path.

    Parameters
    ----------
    data
        The argument of the command line, which `check_there` has passed.
    columns
        The columns to read; of a data set that ships, none or its own one.
    layout
        How the rows of a file are read.

    Raises
    ------
    ValueError
        No series, no columns, options that are for a file alone.
    """
    if data not in datasets.names():
        if not columns:
            raise ValueError(
                f"{data}: expected --target with the column to forecast, or --label and --id with the columns of the "
                f"class and the sequence to classify; got none. It has {shortened(datasets.read_header(data, layout))}"
            )
        return datasets.read_columns(data, columns, layout)
    dataset = datasets.load(data)
    if isinstance(dataset, Classification):
        raise ValueError(f"{data}: expected a series to forecast; got sequences to classify")
    if columns and columns != (dataset.column,):
        raise ValueError(f"--target: {data} has the column {dataset.column!r} alone; got {', '.join(columns)!r}")
    refuse_for_own(data, layout._asdict())
    return ((dataset,),)


def refuse_for_own(data: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if an option is given that is for files of the user."""
    for name in LAYOUT_OPTIONS:
        if options[name]:
            raise ValueError(f"--{name}: only for a CSV file; {data} is read as it stands")


def open_labelled(data: str, layout: LabelLayout, part: str = "") -> Labelled:
    """Return the sequences of a file; of a NumPy archive the `part`, ``"train"`` or ``"test"``, if it is divided.

    Raises
    ------
    ValueError
        As the readers of `lstmcore.datasets`; options that such a file does not take.
    """
    if not is_archive(data):
        return datasets.read_labelled(data, layout, needs_label=part == "train")
    named = {"id": layout.id, "label": layout.label, "features": layout.features, **layout.rows._asdict()}
    for name in ("id", "label", "features", *LAYOUT_OPTIONS):
        if named[name]:
            raise ValueError(f"--{name}: only for a CSV file; {data} is a NumPy archive, whose arrays are X and y")
    return datasets.read_archive(data, part=part if part in archive_parts(data) else "")


def archive_parts(data: str) -> tuple[str, ...]:
    """Return the parts, of train and test, in which a NumPy archive is divided; none if it has an array X."""
    try:
        with open_archive(data) as archive:
            names = set(archive.files)
    except ValueError:
        return ()  # reading it tells what is wrong
    return () if "X" in names else tuple(part for part in ("train", "test") if f"X_{part}" in names)


def free_name(data: str, mark: str = "", ending: str = ".safetensors") -> str:
    """Return the name of a file for `data` in the working directory that no file has."""
    stem = f"{Path(data).stem}{mark}"
    names = (f"{stem}{number}{ending}" for number in ("", *(f"-{k}" for k in range(2, 10_000))))
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
