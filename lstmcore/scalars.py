"""Checks of single values: numbers, flags, choices and versions. Each error names the argument."""

from __future__ import annotations

import math
import operator


def check_version(what: str, version: object, newest: int) -> None:
    """Raise ValueError unless `version` is a version of `what` that this lstmcore can read."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{what} version: expected a whole number from 1 to {newest}; got {version!r}")
    if version > newest:
        raise ValueError(
            f"{what} version: expected at most {newest}; got {version}, written by a newer lstmcore: upgrade with "
            "'pip install -U lstmcore'"
        )


def rate(name: str, value: object, *, one_allowed: bool = False) -> float:
    """Check a dropout or zoneout rate and return it as a float."""
    number = finite(name, value)
    if not (0.0 <= number < 1.0 or (one_allowed and number == 1.0)):
        raise ValueError(f"{name}: expected a rate in [0, 1{']' if one_allowed else ')'}; got {value!r}")
    return number


def integer(name: str, value: object, minimum: int) -> int:
    """Check a whole number of any type that can be an index and return it as an int."""
    number = _index(name, value)
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}; got {number}")
    return number


def unsigned(name: str, value: object, bits: int) -> int:
    """Check a whole number from 0 to ``2**bits - 1`` and return it as an int."""
    number = _index(name, value)
    if not 0 <= number < 2**bits:
        raise ValueError(f"{name}: expected 0 to 2**{bits} - 1; got {number}")
    return number


def _index(name: str, value: object) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # the check is this call
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number; got {value!r}")
    return number


def finite(name: str, value: object) -> float:
    """Check a number of any type and return it as a finite float."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number; got {value!r}")
    try:
        number = float(value.__float__())
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number; got one that no float64 can hold") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number; got {number}")
    return number


def positive(name: str, value: object, *, none_allowed: bool = False) -> float | None:
    """Check a number > 0 and return it as a float; None passes if `none_allowed`."""
    if value is None and none_allowed:
        return None
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a number > 0{', or None for none' * none_allowed}; got {number}")
    return number


def flag(name: str, value: object) -> bool:
    """Check a bool and return it."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False; got {value!r}")
    return value


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Check a text and return it, one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}; got {value!r}")
    return value
