"""The record of a mutant, and the functions that make one from the naive backend."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Final, TypeVar

import numpy as np

from lstmcore import reference
from lstmcore.backend import Array, Backend, Masks, State
from lstmcore_conformance.oracle.naive import NaiveBackend, NaiveKernel


@dataclass(frozen=True, slots=True)
class Mutant:
    """A faulty backend.

    Attributes
    ----------
    id, fault
        A name, and a line that says what is wrong.
    caught_by
        The check that must catch it.
    precision
        The precision in which it is run.
    hides
        The kind of data that do not show the fault, or an empty text: ``"one step"``, ``"one row"``, ``"I = H"``,
        ``"zero state"`` or ``"equal weights"``.
    shown_by
        Words of the items that show it (`lstmcore_conformance.suite.selection`), or an empty text for any of the check:
        a check of many large cases is then not run as a whole.
    make
        Makes the backend.
    """

    id: str
    fault: str
    caught_by: str
    precision: str
    hides: str
    make: Callable[[], Backend]
    shown_by: str = ""

    @property
    def selection(self) -> str:
        """The expression for the items of its check that show it."""
        return f"{self.caught_by} and ({self.shown_by})" if self.shown_by else self.caught_by


#: What `fault` decorates.
_Made = TypeVar("_Made", bound=Callable[[], Backend] | type[NaiveKernel])

#: Every mutant by its id.
MUTANTS: Final[dict[str, Mutant]] = {}


def fault(
    id: str, what: str, caught_by: str, precision: str = "float32", hides: str = "", shown_by: str = ""
) -> Callable[[_Made], _Made]:
    """Register the decorated function, which makes a mutant, or the kernel of one.

    Parameters
    ----------
    id, what, caught_by, precision, hides, shown_by
        `Mutant.id`, `fault`, `caught_by`, `precision`, `hides` and `shown_by`.

    Raises
    ------
    ValueError
        The id is taken.
    """

    def register(made: _Made) -> _Made:
        if id in MUTANTS:
            raise ValueError(f"mutant {id!r}: the id is taken")
        make: Callable[[], Any] = partial(backend_of, made) if isinstance(made, type) else made
        MUTANTS[id] = Mutant(id, what, caught_by, precision, hides, make, shown_by)
        return made

    return register


def backend_of(kernel: type[NaiveKernel], base: type[NaiveBackend] = NaiveBackend) -> Backend:
    """Return the naive backend with another kernel."""
    backend = base()
    backend.kernel = kernel
    return backend


@lru_cache(maxsize=256)
def edited(*edits: tuple[str, str]) -> ModuleType:
    """Return the reference module with some of its text replaced: pairs of old and new text, in their order.

    Raises
    ------
    ValueError
        The reference does not have an old text exactly once: it has changed, and the mutant must follow.
    """
    source = inspect.getsource(reference)
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"mutant: expected this text once in the reference; got {source.count(old)} times: {old}")
        source = source.replace(old, new)
    module = ModuleType(reference.__name__)
    module.__file__ = reference.__file__
    module.__dict__["_tf32"] = _tf32
    exec(compile(source, f"<mutant of {reference.__name__}>", "exec"), module.__dict__)
    return module


def edit(id: str, what: str, old: str, new: str, caught_by: str, precision: str = "float32") -> None:
    """Register a mutant in which one text of the reference is replaced.

    Parameters
    ----------
    id, what, caught_by, precision
        `Mutant.id`, `fault`, `caught_by` and `precision`.
    old, new
        The text of the reference, which must have it exactly once, and its replacement.
    """

    @fault(id, what, caught_by, precision)
    def make() -> Backend:
        return backend_of(type("EditedKernel", (NaiveKernel,), {"equations": edited((old, new))}))


def _tf32(array: Array) -> Array:
    """Return `array` in float32 with the mantissa rounded to TF32's 10 bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return rounded.view(np.float32)


def edits(
    id: str, what: str, pairs: tuple[tuple[str, str], ...], caught_by: str, hides: str = "", precision: str = "float32"
) -> None:
    """Register a mutant in which several texts of the reference are replaced.

    Parameters
    ----------
    id, what, caught_by, hides, precision
        `Mutant.id`, `fault`, `caught_by`, `hides` and `precision`.
    pairs
        Old and new texts, replaced in their order.
    """

    @fault(id, what, caught_by, precision, hides)
    def make() -> Backend:
        return backend_of(type("EditedKernel", (NaiveKernel,), {"equations": edited(*pairs)}))


def preceded(text: str, lines: str) -> tuple[str, str]:
    """Return a pair for `edits` that puts `lines` before `text`."""
    return text, lines + text


def change_last_bits(y: Array, seed: int) -> None:
    """Change the last bit of half of the numbers of `y`, which `seed` chooses."""
    chosen = np.random.default_rng(seed).random(y.shape) < 0.5
    y[chosen] = np.nextafter(y, np.ones_like(y))[chosen]


def meeting() -> Callable[[], None]:
    """Return a function at which two threads meet in their first calls, as in a long product.

    The main thread passes, and so do later calls. A thread that stays alone goes on after a minute.
    """
    pair, called = threading.Barrier(2), threading.local()

    def meet() -> None:
        if threading.current_thread() is not threading.main_thread() and not hasattr(called, "once"):
            called.once = True
            with suppress(threading.BrokenBarrierError):
                pair.wait(timeout=60)

    return meet


class Hooked(NaiveKernel):
    """A kernel whose subclass changes the arguments or the results of a forward call."""

    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None) -> tuple[Any, ...]:
        """Return the arguments of the call.

        Parameters
        ----------
        weights, x, state, lengths, masks
            The arguments of the caller.
        """
        return weights, x, state, lengths, masks

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        """Return the results of the call.

        Parameters
        ----------
        y, last, tape
            The output, the final state and the tape of the naive evaluation.
        x, state
            The arguments of the caller.
        """
        return y, last, tape

    def _forward(
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None, **options: Any
    ) -> tuple[Array, State, Any]:
        arguments = self.before(weights, x, state, lengths, masks)
        return self.after(*super()._forward(*arguments, **options), x, state)
