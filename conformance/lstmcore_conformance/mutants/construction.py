"""What a mutant is, and how one is made of the naive backend."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

import numpy as np

from lstmcore import reference
from lstmcore.backend import (
    Array,
    Backend,
    Masks,
    State,
)
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel


@dataclass(frozen=True, slots=True)
class Mutant:
    """A faulty backend.

    Attributes
    ----------
    id, fault
        A name, and what is wrong.
    caught_by
        The check that must catch it.
    precision
        The precision in which it is run.
    hides
        Data on which it cannot be seen, if there are such: ``"one step"``, ``"one row"``, ``"I = H"``,
        ``"zero state"`` or ``"equal weights"``.
    make
        Makes the backend.
    """

    id: str
    fault: str
    caught_by: str
    precision: str
    hides: str
    make: Callable[[], Backend]


#: Every mutant by its id.
MUTANTS: Final[dict[str, Mutant]] = {}


def fault(
    id: str, what: str, caught_by: str, precision: str = "float32", hides: str = ""
) -> Callable[[Callable[[], Backend]], Callable[[], Backend]]:
    """Register the function that makes a mutant.

    Raises
    ------
    ValueError
        The id is taken.
    """

    def register(make: Callable[[], Backend]) -> Callable[[], Backend]:
        if id in MUTANTS:
            raise ValueError(f"mutant {id!r}: the id is taken")
        MUTANTS[id] = Mutant(id, what, caught_by, precision, hides, make)
        return make

    return register


def backend_of(kernel: type[NaiveKernel], base: type[NaiveBackend] = NaiveBackend) -> Backend:
    """The naive backend with another kernel."""
    backend = base()
    backend.kernel = kernel
    return backend


@lru_cache(maxsize=256)
def edited(*edits: tuple[str, str]) -> ModuleType:
    """The reference with some of its text replaced.

    Raises
    ------
    ValueError
        A text that is not there exactly once: the reference has changed, and the mutant must follow.
    """
    source = inspect.getsource(reference)
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(
                f"mutant: expected the reference to have this text once, it is there {source.count(old)} times: {old}"
            )
        source = source.replace(old, new)
    module = ModuleType(reference.__name__)
    module.__file__ = reference.__file__
    module.__dict__["_tf32"] = _tf32
    exec(compile(source, f"<mutant of {reference.__name__}>", "exec"), module.__dict__)
    return module


def edit(id: str, what: str, old: str, new: str, caught_by: str, precision: str = "float32") -> None:
    """Register a mutant in which `old` in the text of the reference is `new`."""

    @fault(id, what, caught_by, precision)
    def make() -> Backend:
        return backend_of(type("EditedKernel", (NaiveKernel,), {"equations": edited((old, new))}))


def _tf32(array: Array) -> Array:
    """`array` in float32 with the mantissa rounded to TF32's 10 bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return rounded.view(np.float32)


def edits(id: str, what: str, pairs: tuple[tuple[str, str], ...], caught_by: str, hides: str = "") -> None:
    """Register a mutant in which several texts of the reference are replaced; see `Mutant` for `hides`."""

    @fault(id, what, caught_by, hides=hides)
    def make() -> Backend:
        return backend_of(type("EditedKernel", (NaiveKernel,), {"equations": edited(*pairs)}))


class Hooked(NaiveKernel):
    """A kernel that lets a mutant change what goes in and what comes out of the private methods."""

    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None) -> tuple[Any, ...]:
        return weights, x, state, lengths, masks

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        return y, last, tape

    def _forward(
        self,
        weights: Any,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Any]:
        given = self.before(weights, x, state, lengths, masks)
        y, last, tape = super()._forward(*given, record=record, out=out)
        return self.after(y, last, tape, x, state)
