"""Labelled sequences of different lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences with one target each.

    Attributes
    ----------
    inputs
        One array (T, I) a sequence; T differs from sequence to sequence.
    targets
        (count,) class numbers, or (count, K) values.

    Examples
    --------
    >>> sequences = Sequences((np.ones((3, 2)), np.ones((5, 2))), np.array([0, 1]))
    >>> len(sequences), len(sequences.subset(np.array([1])).inputs[0])
    (2, 5)
    """

    inputs: tuple[Array, ...]
    targets: Array

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"targets: expected {len(self.inputs)}, one a sequence; got {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, indices: npt.NDArray[np.intp]) -> Sequences:
        """Return the sequences with these numbers, in this order."""
        return Sequences(tuple(self.inputs[index] for index in indices), self.targets[indices])


@dataclass(frozen=True, slots=True)
class Classification:
    """A classification task with its fixed training and test sets; targets index `classes`.

    Examples
    --------
    >>> part = Sequences((np.ones((3, 2)),), np.array([0]))
    >>> Classification("mine", train=part, test=part, classes=("a", "b")).input_size
    2
    """

    name: str
    train: Sequences
    test: Sequences
    classes: tuple[str, ...]

    @property
    def input_size(self) -> int:
        """I: the width of a step."""
        return int(self.train.inputs[0].shape[1])
