"""Sequences that are loaded a batch at a time, for data larger than memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lstmcore.frames import is_frame
from lstmcore.scalars import integer
from lstmcore.training.digests import add_array, digest_of
from lstmcore.training.entries import IGNORED
from lstmcore.training.losses import Loss
from lstmcore.training.network import Examples
from lstmcore.training.readout import Readout
from lstmcore.training.scaling import Standardizer, merge_standardizers, scale_targets
from lstmcore.training.weights import ClassWeight, class_table

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.intp]


class SequenceSource(Protocol):
    """Sequences that are loaded one by one, with their targets: ``source[index]`` is ``(x, y)``.

    x and y are what `Trainer.fit` takes of one sequence. If the source has an attribute `lengths`, T of each sequence,
    `predict` and `evaluate` load each once; without it they load each once more before, to learn its length.

    Examples
    --------
    >>> class Files:
    ...     def __len__(self):
    ...         return 3
    ...     def __getitem__(self, index):
    ...         return np.full((index + 2, 1), 0.5), index % 2  # np.load of a file, for example
    >>> source: SequenceSource = Files()
    >>> source[1][0].shape
    (3, 1)
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class _Model(Protocol):
    """What is needed of a `SequenceModel`."""

    readout: Readout
    target_scaling: Standardizer | None

    def check_inputs(self, inputs: Any) -> Sequence[Array]: ...

    def check_targets(self, targets: Any, inputs: Sequence[Array], loss: Loss) -> list[Array]: ...

    def scaled(self, inputs: Sequence[Array]) -> list[Array]: ...

    @property
    def classes(self) -> list[str]: ...


def is_source(value: object) -> bool:
    """Return whether `value` may be a `SequenceSource`: it has a length and items, and is no array, list or table."""
    if isinstance(value, list | tuple | str | bytes | Mapping) or is_frame(value):
        return False
    known = hasattr(value, "__array__") or hasattr(value, "columns")
    return not known and hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _named(name: str, index: int, work: Callable[[], Any]) -> Any:
    """Return what `work` returns; an error about the first sequence gets the name of the one with that number."""
    try:
        return work()
    except (TypeError, ValueError) as error:
        text = str(error).replace("inputs[0]", f"{name}[{index}], x").replace("targets[0]", f"{name}[{index}], y")
        raise (TypeError if isinstance(error, TypeError) else ValueError)(text) from None


class Loader:
    """Loads checked sequences of a source, and learns their lengths.

    Parameters
    ----------
    model
        The model that reads the sequences.
    source
        A `SequenceSource`; for `load_input` alone its items may be x in place of (x, y).
    name
        What messages call it.

    Raises
    ------
    TypeError, ValueError
        No source, an empty one, `lengths` that are no whole numbers or of another count.
    """

    def __init__(self, model: _Model, source: Any, name: str) -> None:
        if not is_source(source):
            raise TypeError(
                f"{name}: expected targets too, or an object whose items are (x, y), with a length; got "
                f"{type(source).__name__} alone"
            )
        self.model, self.source, self.name, self.count = model, source, name, len(source)
        if not self.count:
            raise ValueError(f"{name}: expected at least one sequence; got none")
        self._given: list[int] | None = None
        if (given := getattr(source, "lengths", None)) is not None:
            if not isinstance(given, Sequence | np.ndarray):
                raise TypeError(f"{name}.lengths: expected a list of whole numbers; got {type(given).__name__}")
            if len(given) != self.count:
                raise ValueError(f"{name}.lengths: expected {self.count}, one a sequence; got {len(given)}")
            self._given = [integer(f"{name}.lengths[{index}]", one, 0) for index, one in enumerate(given)]

    def lengths(self) -> list[int]:
        """Return T of each sequence: as the source says, or by loading each."""
        if self._given is None:
            self._given = [len(self.load_input(index)) for index in range(self.count)]
        return self._given

    def expect(self, lengths: list[int]) -> None:
        """Hold T of each sequence against what a first pass has found, from now on."""
        self._given = lengths

    def load_input(self, index: int) -> Array:
        """Return x of one sequence, checked; an item may be x alone."""
        item = self.source[index]
        return self._checked(index, self._pair(index, item)[0] if isinstance(item, tuple) else item)

    def _pair(self, index: int, item: Any) -> tuple[Any, Any]:
        if not isinstance(item, tuple) or len(item) != 2:
            got = f"a tuple of {len(item)}" if isinstance(item, tuple) else type(item).__name__
            raise TypeError(f"{self.name}[{index}]: expected a tuple (x, y), a sequence and its target; got {got}")
        return item

    def load(self, index: int, loss: Loss) -> tuple[Array, Array]:
        """Return x and y of one sequence, checked.

        Raises
        ------
        TypeError, ValueError
            An item that is not (x, y), or that does not fit the model or the loss; the message names it.
        """
        given, target = self._pair(index, self.source[index])
        x = self._checked(index, given)
        (y,) = _named(self.name, index, lambda: self.model.check_targets([target], [x], loss))
        return x, y

    def scaled(self, index: int, x: Array) -> Array:
        """Return x as the model reads it."""
        found: list[Array] = _named(self.name, index, lambda: self.model.scaled([x]))
        return found[0]

    def _checked(self, index: int, x: Any) -> Array:
        found: Array = _named(self.name, index, lambda: self.model.check_inputs([x]))[0]
        if self._given is not None and len(found) != self._given[index]:
            raise ValueError(
                f"{self.name}[{index}]: expected {self._given[index]} steps, as its lengths or the first pass say; got "
                f"{len(found)}: give the same numbers each time"
            )
        return found


class Scan(NamedTuple):
    """What one pass over a source finds, in memory of some numbers a sequence.

    Attributes
    ----------
    lengths, digest
        T of each sequence, and a digest of all numbers.
    classes
        The class of each sequence; None if it has one at every step, or values.
    counts
        (count, K) how many entries of each class each sequence has; None for values.
    inputs, targets
        The standardisation of each sequence, and how many rows it is of; None if it is not asked for.
    """

    lengths: list[int]
    digest: str
    classes: Array | None
    counts: Array | None
    inputs: list[tuple[Standardizer, int]] | None
    targets: list[tuple[Standardizer, int]] | None


def scan(loader: Loader, loss: Loss, *, inputs: bool, targets: bool) -> Scan:
    """Load each sequence once, check it, and return what was found.

    Parameters
    ----------
    loader, loss
        The source, and the loss of the run.
    inputs, targets
        Whether their standardisations are asked for.

    Raises
    ------
    TypeError, ValueError
        As `Loader.load`.
    """
    digest, outputs = hashlib.sha256(), loader.model.readout.output_size
    lengths, classes, counts = list[int](), list[int](), list[Array]()
    of_inputs, of_targets = list[tuple[Standardizer, int]](), list[tuple[Standardizer, int]]()
    for index in range(loader.count):
        x, y = loader.load(index, loss)
        lengths.append(len(x))
        for array in (x, y):
            add_array(digest, array)
        if loss.of_linear:
            counts.append(np.bincount(y[y != IGNORED].reshape(-1), minlength=outputs))
            if not y.ndim:
                classes.append(int(y))
        for wanted, array, found in ((inputs, x, of_inputs), (targets, np.atleast_2d(y), of_targets)):
            if wanted and len(array):
                found.append((Standardizer.fit([array]), len(array)))
            elif wanted:
                found.append((Standardizer(np.zeros(array.shape[1]), np.zeros(array.shape[1])), 0))
    return Scan(
        lengths,
        digest.hexdigest(),
        np.array(classes) if classes else None,
        np.array(counts) if loss.of_linear else None,
        of_inputs if inputs else None,
        of_targets if targets else None,
    )


@dataclass(frozen=True)
class StreamedExamples:
    """Examples of a source that are loaded, scaled and weighted when a batch takes them.

    Attributes
    ----------
    loader, loss
        The source, and the loss of the run.
    rows
        The numbers of the examples in the source.
    all_lengths
        T of all sequences of the source.
    raw
        Whether targets stay in their units.
    table
        The weight of each class, or None for 1.
    """

    loader: Loader
    loss: Loss
    rows: Rows
    all_lengths: list[int]
    raw: bool = False
    table: Array | None = None

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """T of each example."""
        return [self.all_lengths[row] for row in self.rows]

    def take(self, rows: Rows) -> Examples:
        """Load the examples with these numbers, in this order."""
        pairs = [self._load(int(self.rows[row])) for row in rows]
        inputs, targets = ([pair[place] for pair in pairs] for place in (0, 1))
        if self.table is None:
            return Examples(inputs, targets)
        return Examples(inputs, targets, [self.table[np.where(y == IGNORED, 0, y)] for y in targets])

    def _load(self, index: int) -> tuple[Array, Array]:
        loader, loss = self.loader, self.loss
        x, y = loader.load(index, loss)
        x = loader.scaled(index, x)
        if self.raw or loss.of_linear:
            return x, y
        model = loader.model
        width = loss.target_size(model.readout.output_size)
        scaling = None if model.target_scaling is None else model.target_scaling.first(width)
        return x, _named(loader.name, index, lambda: scale_targets([y], model.readout.dtype, scaling))[0]


class StreamedSets(NamedTuple):
    """The sets of a run on sources, as `Sets`; `found` are the digests, `scan` is that of the first source."""

    fit: StreamedExamples
    held_out: StreamedExamples
    found: dict[str, str]
    scan: Scan

    def digests(self) -> dict[str, str]:
        """Return digests of all numbers."""
        return self.found

    def input_scaling(self) -> Standardizer:
        """Return the standardisation of the inputs of the training part."""
        return self._merged(self.scan.inputs, "inputs")

    def target_scaling(self, loss: Loss) -> Standardizer:
        """Return the standardisation of the readout's outputs."""
        return loss.scaling_of_outputs(self._merged(self.scan.targets, "targets"))

    def _merged(self, parts: list[tuple[Standardizer, int]] | None, what: str) -> Standardizer:
        if parts is None:
            raise ValueError(f"{what}: expected their standardisations to be asked for; got none")
        return merge_standardizers([parts[row] for row in self.fit.rows])


class StreamPlan(NamedTuple):
    """How sets are made of sources: the split, the weights of classes, and the standardisations to find."""

    divide: Callable[[int, Array | None], tuple[Rows, Rows]]
    class_weight: ClassWeight | None
    inputs: bool
    targets: bool


def stream_sets(model: _Model, loss: Loss, source: Any, given: Any, plan: StreamPlan) -> StreamedSets:
    """Return the sets of a run on a source; `given` is a source that watches it, or None for a part of the first.

    Raises
    ------
    TypeError, ValueError
        As `Loader` and `Loader.load`; no entry of a part counts.
    """
    loader = Loader(model, source, "data")
    seen = scan(loader, loss, inputs=plan.inputs, targets=plan.targets)
    loader.expect(seen.lengths)
    digests = {"data_sha256": seen.digest}
    if given is None:
        rows = plan.divide(loader.count, seen.classes)
        fit, held_out = (StreamedExamples(loader, loss, part, seen.lengths) for part in rows)
        watched = seen
    else:
        other = Loader(model, given, "validation_data")
        watched = scan(other, loss, inputs=False, targets=False)
        other.expect(watched.lengths)
        digests["validation_sha256"] = watched.digest
        fit = StreamedExamples(loader, loss, np.arange(loader.count), seen.lengths)
        held_out = StreamedExamples(other, loss, np.arange(other.count), watched.lengths)
    if seen.counts is not None and watched.counts is not None:
        parts = {"training": seen.counts[fit.rows], "validation": watched.counts[held_out.rows]}
        table = _check_counts(parts, plan.class_weight, model)
        if table is not None:
            digests["weights_sha256"] = digest_of([table])
        fit, held_out = replace(fit, table=table), replace(held_out, table=table)
    return StreamedSets(fit, held_out, digests, seen)


def _check_counts(parts: Mapping[str, Array], weight: ClassWeight | None, model: _Model) -> Array | None:
    """Return the weights of the classes, of mean 1 in the training part; raise ValueError if no entry of one counts."""
    counts = parts["training"].sum(axis=0)
    table = None if weight is None else class_table(weight, counts, model.classes, model.readout.output_size)
    for name, part in parts.items():
        own = part.sum(axis=0)
        if len(part) and not (own if table is None else own * table).any():
            raise ValueError(f"data: expected a class with a weight above 0 in the {name} part; got none")
    return table if table is None else table * counts.sum() / (table * counts).sum()


def open_examples(model: _Model, source: Any, loss: Loss) -> StreamedExamples:
    """Return all examples of a source with raw targets, to judge."""
    loader = Loader(model, source, "data")
    return StreamedExamples(loader, loss, np.arange(loader.count), loader.lengths(), raw=True)


def open_inputs(model: _Model, source: Any) -> tuple[list[int], Callable[[Rows], list[Array]]]:
    """Return T of each sequence of a source, and a function that loads and scales those with some numbers."""
    loader = Loader(model, source, "inputs")

    def load(rows: Rows) -> list[Array]:
        return [loader.scaled(int(row), loader.load_input(int(row))) for row in rows]

    return loader.lengths(), load
