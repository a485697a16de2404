"""What the commands share about data: names of data sets and paths of CSV files."""

from __future__ import annotations

from pathlib import Path

from lstmcore import datasets
from lstmcore.datasets import Classification, Series


def open_data(data: str, target: str | None) -> Classification | Series:
    """The data set of that name, or the column `target` of the CSV file at that path.

    Raises
    ------
    ValueError
        Neither a data set nor a file, or a CSV file without `target`.
    """
    if data in datasets.names():
        found = datasets.load(data)
        if target is not None and (isinstance(found, Classification) or found.column != target):
            column = "no column to choose" if isinstance(found, Classification) else f"the column {found.column!r}"
            raise ValueError(f"--target: {data} has {column}; got {target!r}")
        return found
    path = Path(data)
    if not path.exists():
        raise ValueError(
            f"data: expected one of {', '.join(datasets.names())} or a CSV file; got {data!r}, which is not there"
        )
    if target is None:
        raise ValueError(f"{data}: expected --target with the column to forecast; got none")
    return datasets.read_csv(path, target)


def check_folder(option: str, path: str | None) -> None:
    """Raise before long work where the file `path` could not be written after it."""
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise ValueError(f"{option}: expected a file in a folder that exists; got {path!r}")
    if path is not None and Path(path).is_dir():
        raise ValueError(f"{option}: expected a file; got the folder {path!r}")
