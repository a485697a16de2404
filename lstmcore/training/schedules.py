"""Learning rates that change during a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lstmcore.scalars import finite, integer
from lstmcore.training.history import Epoch


class Schedule(ABC):
    """A factor of the optimizer's learning rate, as a function of the place in the run and of the epochs before it.

    It keeps no state, so a resumed run has the same rates. Schedules are multiplied: ``WarmUp(2) * Cosine(50)``.

    Examples
    --------
    >>> class Halves(Schedule):
    ...     def factor(self, position, done):
    ...         return 0.5 ** int(position)
    ...     def to_dict(self):
    ...         return {"kind": "halves"}
    >>> (Halves() * WarmUp(4)).factor(1.0, [])
    0.125
    """

    @abstractmethod
    def factor(self, position: float, done: Sequence[Epoch]) -> float:
        """Return the factor of a batch.

        Parameters
        ----------
        position
            Epochs since the start, with the fraction of this one: 2.5 is the middle of the third epoch.
        done
            The epochs that are finished.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the schedule in JSON types; a resumed run must have the same."""

    def __mul__(self, other: Schedule) -> Schedule:
        return Product(self, other)


@dataclass(frozen=True, slots=True)
class Product(Schedule):
    """The product of two schedules; ``first * second`` makes it."""

    first: Schedule
    second: Schedule

    def factor(self, position: float, done: Sequence[Epoch]) -> float:
        """See `Schedule`."""
        return self.first.factor(position, done) * self.second.factor(position, done)

    def to_dict(self) -> dict[str, Any]:
        """See `Schedule`."""
        return {"kind": "product", "first": self.first.to_dict(), "second": self.second.to_dict()}


class _Described(Schedule):
    """A schedule that is told by its fields."""

    __slots__ = ()

    def _keep(self, **values: int | float) -> None:
        """Keep numbers of Python, which JSON has, in place of those that were given."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """See `Schedule`."""
        return {"kind": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]  # a dataclass


@dataclass(frozen=True, slots=True)
class StepDecay(_Described):
    """The rate times `gamma` after every `epochs` epochs.

    Examples
    --------
    >>> [StepDecay(10, 0.5).factor(position, []) for position in (0.0, 9.9, 10.0, 25.0)]
    [1.0, 1.0, 0.5, 0.25]
    """

    epochs: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self._keep(epochs=integer("StepDecay epochs", self.epochs, 1), gamma=_fraction("StepDecay gamma", self.gamma))

    def factor(self, position: float, done: Sequence[Epoch]) -> float:
        """See `Schedule`."""
        return float(self.gamma ** (position // self.epochs))


@dataclass(frozen=True, slots=True)
class Cosine(_Described):
    """The rate along half a cosine from 1 to `end` in `epochs` epochs, and `end` after them.

    Examples
    --------
    >>> [round(Cosine(10).factor(position, []), 3) for position in (0.0, 5.0, 10.0, 12.0)]
    [1.0, 0.5, 0.0, 0.0]
    """

    epochs: int
    end: float = 0.0

    def __post_init__(self) -> None:
        self._keep(epochs=integer("Cosine epochs", self.epochs, 1), end=_fraction("Cosine end", self.end))

    def factor(self, position: float, done: Sequence[Epoch]) -> float:
        """See `Schedule`."""
        turned = 0.5 * (1 + math.cos(math.pi * min(position / self.epochs, 1.0)))
        return self.end + (1 - self.end) * turned


@dataclass(frozen=True, slots=True)
class WarmUp(_Described):
    """The rate from `start` to 1 in a straight line over the first `epochs` epochs.

    Examples
    --------
    >>> [WarmUp(2, start=0.5).factor(position, []) for position in (0.0, 1.0, 2.0, 9.0)]
    [0.5, 0.75, 1.0, 1.0]
    """

    epochs: int
    start: float = 0.0

    def __post_init__(self) -> None:
        self._keep(epochs=integer("WarmUp epochs", self.epochs, 1), start=_fraction("WarmUp start", self.start))

    def factor(self, position: float, done: Sequence[Epoch]) -> float:
        """See `Schedule`."""
        return self.start + (1 - self.start) * min(position / self.epochs, 1.0)


@dataclass(frozen=True, slots=True)
class OnPlateau(_Described):
    """The rate times `gamma` whenever `epochs` epochs in a row have no lower loss than the best before them.

    The loss is that of the validation set, or that of the training without one.

    Examples
    --------
    >>> done = [Epoch(n, loss, None, None, None, 0.0, 1.0) for n, loss in enumerate((3.0, 1.0, 2.0, 2.0), 1)]
    >>> OnPlateau(2, 0.5).factor(4.0, done), OnPlateau(3, 0.5).factor(4.0, done)
    (0.5, 1.0)
    """

    epochs: int = 5
    gamma: float = 0.5

    def __post_init__(self) -> None:
        self._keep(epochs=integer("OnPlateau epochs", self.epochs, 1), gamma=_fraction("OnPlateau gamma", self.gamma))

    def factor(self, position: float, done: Sequence[Epoch]) -> float:
        """See `Schedule`."""
        factor, best, waited = 1.0, math.inf, 0
        for epoch in done:
            loss = epoch.loss if epoch.validation_loss is None else epoch.validation_loss
            best, waited = (loss, 0) if loss < best else (best, waited + 1)
            if waited == self.epochs:
                factor, waited = factor * self.gamma, 0
        return factor


def _fraction(name: str, value: object) -> float:
    if not 0 <= (number := finite(name, value)) <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1]; got {value!r}")
    return number
