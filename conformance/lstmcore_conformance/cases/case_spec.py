"""The description of a case: a model, a precision, sizes, and the arguments of the call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Self

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import Precision, get_precision
from lstmcore.stored_weights import SAME


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSpec:
    """A case without its data. Equal cases have equal data; the precision changes only their rounding.

    Attributes
    ----------
    name
        The special property of the case. The id is made from it and the precision, the seed from it alone.
    model
        One layer in one direction, or a stack.
    lengths
        None for T everywhere.
    masks
        The random masks of the call: False for none, True for all that have a rate, or the name of the only one.
    state
        Whether the call has an initial state.
    scale
        The factor of x and the initial state.
    shifts
        Parameter, gate (an empty text for all) and the number that is added to its elements; of one layer alone.
    dy, dh, dc
        Which of y, the final h and the final c the differentiated scalar uses.
    weights
        The format of the weight matrices.
    repeated
        What every array repeats, a key of `drawing.REPEATED`: its rows are equal, for example. Empty for nothing.
    draw
        The number of the draw; None for the first that is good enough, which may differ from machine to machine.
    """

    name: str
    model: LSTMConfig | StackConfig
    precision: str
    steps: int = 4
    batch: int = 3
    lengths: tuple[int, ...] | None = None
    masks: bool | str = False
    state: bool = True
    scale: float = 1.0
    shifts: tuple[tuple[str, str, float], ...] = ()
    dy: bool = True
    dh: bool = True
    dc: bool = True
    weights: str = SAME
    repeated: str = ""
    draw: int | None = None

    @property
    def id(self) -> str:
        """The id, unique within a check."""
        return f"{self.precision}-{self.name}"

    @property
    def policy(self) -> Precision:
        """The precision policy."""
        return get_precision(self.precision).with_weights(self.weights)

    @property
    def stack(self) -> StackConfig | None:
        """The model if it is a stack, else None."""
        return self.model if isinstance(self.model, StackConfig) else None

    @property
    def config(self) -> LSTMConfig:
        """The model if it is one layer in one direction.

        Raises
        ------
        TypeError
            The model is a stack.
        """
        if isinstance(self.model, StackConfig):
            raise TypeError(f"case {self.id}: expected one layer in one direction; got a stack")
        return self.model

    @property
    def configs(self) -> tuple[LSTMConfig, ...]:
        """The configurations of all layers and directions."""
        return self.model.configs if isinstance(self.model, StackConfig) else (self.model,)

    @property
    def work(self) -> int:
        """The multiply-adds of the matrix products of one forward pass."""
        weights = sum(prod(shape) for shape in self.model.parameter_shapes.values() if len(shape) > 1)
        return self.steps * self.batch * weights

    @property
    def features(self) -> frozenset[str]:
        """The features that a backend must declare to run the case."""
        used = frozenset().union(*(config.features for config in self.configs))
        given = {
            "lengths": self.lengths is not None,
            "masks": self.masks,
            f"weights:{self.weights}": self.weights != SAME,
        }
        return used | {name for name, value in given.items() if value}

    def with_precision(self, precision: str) -> Self:
        """Return the same case in another precision."""
        return replace(self, precision=precision)
