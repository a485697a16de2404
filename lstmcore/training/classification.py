"""Classifying sequences of one's own: what a model's file keeps of it, and which sequences it was trained on."""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from lstmcore.datasets.csvfile import Layout
from lstmcore.datasets.labelled import LabelLayout, Labelled, class_names
from lstmcore.datasets.sequences import Classification, Sequences
from lstmcore.datasets.series import Fill
from lstmcore.scalars import flag
from lstmcore.training.batches import split


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyTask:
    """A task to classify sequences; kept in the model's file.

    Attributes
    ----------
    data
        The name of a data set that ships, or of the file that the model was trained on.
    classes
        The names of the classes, in the order of the outputs.
    id, label, features, time, sort, fill, separator, decimal, encoding
        How a file is read, see `lstmcore.datasets.LabelLayout`; `id` is empty for an archive or a data set.
    trained_on
        Digests of the sequences that the model was trained on.

    Raises
    ------
    TypeError, ValueError
        A value of another type, or outside its domain.
    """

    data: str
    classes: tuple[str, ...]
    id: str = ""
    label: str = ""
    features: tuple[str, ...] = ()
    time: str | None = None
    sort: bool = False
    fill: Fill = "error"
    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    trained_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("classes", "features", "trained_on"):
            names = getattr(self, name)
            if not isinstance(names, tuple | list) or not all(isinstance(item, str) for item in names):
                raise TypeError(f"task {name}: expected a list of texts; got {names!r}")
            object.__setattr__(self, name, tuple(names))
        for name in ("data", "id", "label", "time", "separator", "decimal", "encoding"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name not in ("data", "id", "label"))):
                raise TypeError(f"task {name}: expected a text; got {value!r}")
        if self.fill not in get_args(Fill):
            raise ValueError(f"task fill: expected one of {', '.join(get_args(Fill))}; got {self.fill!r}")
        flag("task sort", self.sort)

    @property
    def layout(self) -> LabelLayout:
        """The columns of a file, with those that the model reads."""
        rows = Layout(None, self.time, self.sort, False, self.separator, self.decimal, self.encoding)
        return LabelLayout(self.id, self.label or None, self.features, rows, self.fill)

    def to_dict(self) -> dict[str, Any]:
        """Return the task in JSON types, without what is as its default."""
        defaults = {item.name: item.default for item in fields(self)}
        values = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        lists = {name: [*value] for name, value in values.items() if isinstance(value, tuple)}
        return {"kind": "classify", **values, **lists}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClassifyTask:
        """Return the task that `to_dict` described; one of a model that was made in Python may lack `data`.

        Raises
        ------
        TypeError, ValueError
            Not what `to_dict` gives.
        """
        known = {item.name for item in fields(cls)}
        needed = {item.name for item in fields(cls) if item.default is MISSING} - {"data"}
        if not {"kind", *needed} <= set(values) <= {"kind", *known}:
            raise ValueError(f"task: expected kind, {', '.join(sorted(known))}; got {', '.join(sorted(values))}")
        return cls(**{"data": "", **{name: value for name, value in values.items() if name != "kind"}})

    def numbers(self, data: Labelled) -> npt.NDArray[np.int64]:
        """Return the number of the class of each sequence.

        Raises
        ------
        ValueError
            A label that is none of the classes, or no labels.
        """
        if data.labels is None:
            missing = f": it has no column {self.label!r}" if self.label else ""
            raise ValueError(f"{data.name}: expected a label for each sequence; got none{missing}")
        places = {name: number for number, name in enumerate(self.classes)}
        for name, label in zip(data.ids, data.labels, strict=True):
            if label not in places:
                raise ValueError(
                    f"{data.name}, sequence {name!r}: expected one of the classes {', '.join(self.classes[:10])}"
                    f"{', ...' * (len(places) > 10)}; got {label!r}"
                )
        return np.array([places[label] for label in data.labels], np.int64)


def digests(data: Labelled) -> tuple[str, ...]:
    """Return what tells each sequence from others by its numbers, whatever its name."""
    return tuple(
        hashlib.blake2b(np.ascontiguousarray(x, np.float64).tobytes(), digest_size=8).hexdigest() for x in data.inputs
    )


def divide(data: Labelled, fraction: float, seed: int) -> tuple[Classification, tuple[str, ...]]:
    """Return the data with a fraction of each class held out, and the digests of the sequences to train on.

    Sequences with the same numbers as one to train on are not held out.

    Raises
    ------
    ValueError
        No labels, fewer than two classes.
    """
    if data.labels is None:
        raise ValueError(f"{data.name}: expected a label for each sequence; got none")
    classes = class_names(data.labels)
    if len(classes) < 2:
        raise ValueError(f"{data.name}: expected at least two classes; got {classes[0]!r} alone")
    task = ClassifyTask(data=data.name, classes=classes)
    numbers = task.numbers(data)
    try:
        rows = split(len(data), fraction, seed=seed, classes=numbers)[0]
    except ValueError:
        raise ValueError(
            f"--test-fraction: expected a fraction of {len(data)} sequences that leaves some on both sides; got "
            f"{fraction}: give more sequences, or 0 to test on none"
        ) from None
    marks = np.array(digests(data))
    is_train = np.isin(marks, marks[rows])
    whole = Sequences(data.inputs, numbers)
    train, test = whole.subset(np.flatnonzero(is_train)), whole.subset(np.flatnonzero(~is_train))
    return Classification(data.name, train, test, classes), tuple(sorted(set(marks[is_train].tolist())))


def held_out(task: ClassifyTask, data: Labelled) -> tuple[Classification, int]:
    """Return the sequences of labelled data that the model was not trained on, and how many it was trained on.

    If it was trained on all of them, all are returned.
    """
    numbers, marks = task.numbers(data), digests(data)
    known = np.isin(np.array(marks), np.array(task.trained_on or [""]))
    rows = np.flatnonzero(~known)
    whole = Sequences(data.inputs, numbers)
    test = whole.subset(rows) if rows.size else whole
    return Classification(data.name, whole.subset(np.flatnonzero(known)), test, task.classes), int(known.sum())
