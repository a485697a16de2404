"""Data sets and files that are named on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lstmcore import datasets
from lstmcore.datasets import Classification, Series
from lstmcore.files import check_writable


def open_data(data: str, target: str | None) -> Classification | Series:
    """Return the data set of that name, or the column `target` of the CSV file at that path.

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
        return dataset
    path = Path(data)
    if not path.exists():
        raise ValueError(
            f"data: expected one of {', '.join(datasets.names())} or a CSV file; got {data!r}, which is not there"
        )
    if target is None:
        raise ValueError(f"{data}: expected --target with the column to forecast; got none")
    return datasets.read_csv(path, target)


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
