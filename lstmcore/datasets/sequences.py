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
    """A classification task with its fixed training and test sets; targets index `classes`."""

    name: str
    train: Sequences
    test: Sequences
    classes: tuple[str, ...]

    @property
    def input_size(self) -> int:
        """I: the width of a step."""
        return int(self.train.inputs[0].shape[1])
