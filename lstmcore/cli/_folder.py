"""A command on every file of a folder: the options, the files, the model in each worker, and the one message."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import click

from lstmcore import datasets
from lstmcore.cli._console import progress
from lstmcore.cli._model_data import task_of
from lstmcore.cli._workers import ENGINES, open_workers, run_tasks
from lstmcore.notices import notify
from lstmcore.training.classification import ClassifyTask
from lstmcore.training.forecast import ForecastTask
from lstmcore.training.model import SequenceModel

C = TypeVar("C", bound=Callable[..., Any])
R = TypeVar("R")
#: Files whose errors the message quotes.
_QUOTED: Final = 10


def jobs_options(command: C) -> C:
    """Add the options of a folder."""
    for option in (
        click.option("--engine", type=click.Choice(tuple(ENGINES)), help="Workers for --jobs  [default: joblib]."),
        click.option(
            "--jobs", type=click.IntRange(1), help="Of a folder: files at a time  [default: 1, without workers]."
        ),
    ):
        command = option(command)
    return command


class Loaded(NamedTuple):
    """A model with its task, and a digest of its files."""

    model: SequenceModel
    task: ClassifyTask | ForecastTask
    digest: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model by its file, as a worker gets it.

    Attributes
    ----------
    path, backend, dtype
        As on the command line; the path is absolute for workers of Dask.
    digest
        Of the files when the command began.
    """

    path: str
    backend: str | None
    dtype: str | None
    digest: str

    @classmethod
    def of(cls, path: str, backend: str | None, dtype: str | None) -> ModelFile:
        """Return the model as it is now; raise as `SequenceModel.load` and `task_of`."""
        _load.cache_clear()
        return cls(path, backend, dtype, _load(path, backend, dtype).digest)

    def for_workers(self, engine: str | None) -> ModelFile:
        """Return the model for the workers of an engine; those of Dask have working folders of their own."""
        return replace(self, path=os.path.abspath(self.path)) if engine == "dask" else self

    def load(self) -> Loaded:
        """Return the model with its task; a process reads it once.

        Raises
        ------
        ValueError
            The file has another model now.
        """
        loaded = _load(self.path, self.backend, self.dtype)
        if loaded.digest != self.digest:  # a worker of Dask may have read another one for another command
            _load.cache_clear()
            loaded = _load(self.path, self.backend, self.dtype)
        if loaded.digest != self.digest:
            raise ValueError(f"{self.path}: expected the model with which the command began; got another: run it again")
        return loaded


@lru_cache(maxsize=1)
def _load(path: str, backend: str | None, dtype: str | None) -> Loaded:
    place, digest = Path(path), hashlib.sha256()
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    model = SequenceModel.load(path, backend=backend, dtype=dtype)
    return Loaded(model, task_of(model, path), digest.hexdigest())


def is_folder(data: str, options: Mapping[str, Any]) -> bool:
    """Return whether `data` is a folder.

    Raises
    ------
    ValueError
        An option of folders, and `data` is none. An engine for one file at a time.
    """
    if data not in datasets.names() and Path(data).is_dir():
        if options["engine"] is not None and (options["jobs"] or 1) < 2:
            raise ValueError(f"--engine: only with --jobs of 2 or more; got {options['engine']!r}")
        return True
    for name in ("jobs", "engine"):
        if options[name] is not None:
            raise ValueError(f"--{name}: only for a folder of files; got {data!r}")
    return False


class FolderRun(Generic[R]):
    """One task for each file of a folder, and what becomes of them.

    Parameters
    ----------
    name
        Of the command, for the progress.
    files
        What `files_of` returned.
    options
        Those of `jobs_options`.
    """

    def __init__(self, name: str, files: Sequence[Path], options: Mapping[str, Any]) -> None:
        self.name, self.files = name, files
        self.jobs, self.engine = options["jobs"] or 1, options["engine"] or "joblib"
        self.failed: dict[int, str] = {}

    def results(self, task: Callable[[str], R]) -> Iterator[tuple[Path, R]]:
        """Yield each file with its result as soon as it is there; show the progress.

        Parameters
        ----------
        task
            A function of a path, which can be pickled.

        Raises
        ------
        UnavailableError
            A package of the engine is missing.
        """
        with open_workers(self.jobs, self.engine) as workers, progress(self.name, seconds=1.0) as show:
            paths = [str(file) if self.engine == "joblib" else os.path.abspath(file) for file in self.files]
            ends = run_tasks(task, paths, workers)
            for done, (number, outcome) in enumerate(ends, start=1):
                file = self.files[number]
                for notice in outcome.notices:
                    text = str(notice).removeprefix(paths[number]).lstrip(":, ")  # the file is named once
                    notify(f"{file}: {text}", kind=type(notice))
                if outcome.error is None:
                    yield file, cast(R, outcome.value)
                else:
                    self.failed[number] = outcome.error
                show(done, len(self.files), file.name)

    def fail(self, file: Path, error: Exception) -> None:
        """Count a file whose result could not be written; the others go on."""
        self.failed[self.files.index(file)] = str(error)

    def check(self, outputs: Mapping[Path, Path] | None = None) -> None:
        """Raise ValueError if files failed; the message names them.

        Parameters
        ----------
        outputs
            The file to write for each file, if there is one; the message names those that an earlier run left.
        """
        if not self.failed:
            return
        paths = [(outputs or {}).get(self.files[number]) for number in sorted(self.failed)]
        left = [str(path) for path in paths if path is not None and path.exists()]
        old = f"; still there from an earlier run: {', '.join(left[:_QUOTED])}" if left else ""
        old += f" and {len(left) - _QUOTED} more" if len(left) > _QUOTED else ""
        named = [(self.files[number].name, self.failed[number]) for number in sorted(self.failed)]
        texts = [text if name in text else f"{name}: {text}" for name, text in named]
        more = f"; and {len(texts) - _QUOTED} more" if len(texts) > _QUOTED else ""
        raise ValueError(
            f"{self.files[0].parent}: {len(texts)} of {len(self.files)} files failed, the others are done: "
            f"{'; '.join(texts[:_QUOTED])}{more}{old}"
        )


def files_of(folder: str) -> list[Path]:
    """Return the files of a folder by name, without those in folders below and those whose names begin with a dot.

    Raises
    ------
    ValueError
        There is none.
    """
    found = sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"data: expected a folder with files; got {folder!r}, which has none")
    return found
