"""Numbers in the cells of a table: gaps, and what to do about a cell that is neither."""

from __future__ import annotations

import math
import re
from typing import Final

#: Cells without a value, in small letters.
GAPS: Final = frozenset(
    {"", "na", "n/a", "nan", "null", "none", "#n/a", "#na", "<na>", "#n/a n/a", "-nan", "1.#qnan", "-1.#ind", "nat"}
)
#: Cells that stand for a gap where people say so, and for something else elsewhere.
_PLACEHOLDERS: Final = frozenset({".", "-", "--", "?", "*", "x", "missing", "unknown", "n.a.", "k.a.", "nil"})
#: The largest number that is read: the squares of such numbers, and their sums, are float64s too.
_LARGEST: Final = 1e150
_ERRORS: Final = frozenset({"#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!"})
_GROUPED: Final = re.compile(r"[+-]?\d[\d.,'\s\u2019]*")
_UNIT: Final = re.compile(r"[^\d\s.,+-]{1,4}\s?[+-]?[\d.,]+|[+-]?[\d.,]+\s?[^\d\s.,]{1,4}")


def read_number(where: str, text: str, decimal: str = ".") -> float:
    """Return the number in a cell, or NaN for a gap.

    Parameters
    ----------
    where
        The file, the line and the column, for messages.
    text
        The cell.
    decimal
        The decimal sign, ``"."`` or ``","``.

    Raises
    ------
    ValueError
        No finite number up to 1e150 in size; the message says what to do, where it knows.
    """
    text = text.strip()
    plain = text if decimal == "." else _with_point(text)
    try:
        number = float("" if "_" in plain else plain)  # float() takes 1_000 as Python does
    except ValueError:
        if text.casefold() in GAPS:
            return math.nan
        raise ValueError(f"{where}: expected a number; got {text[:40]!r}{_hint(text, decimal)}") from None
    if math.isnan(number):
        return number
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number; got {text[:40]!r}")
    if abs(number) > _LARGEST:
        raise ValueError(
            f"{where}: expected a number of at most {_LARGEST:g} in size; got {text[:40]!r}: scale the column"
        )
    return number


def _with_point(text: str) -> str:
    """Return a number with a decimal comma as Python writes it; a point in it makes it none."""
    return "" if "." in text and text.casefold() not in GAPS else text.replace(",", ".")


def _hint(text: str, decimal: str) -> str:
    """Return what to do about a cell that is no number."""
    small = text.casefold()
    if small in _ERRORS:
        return ": an error of a spreadsheet: mend its formula, or empty the cell and choose --fill"
    if small in _PLACEHOLDERS:
        return ": if it stands for a missing value, empty the cell and choose --fill"
    if "\u2212" in text or text.startswith(("\u2013", "\u2014")):
        return ": its minus sign is not the one of the keyboard: replace it by '-'"
    if text.startswith("(") and text.endswith(")"):
        return ": write a negative number with '-', not in brackets"
    if decimal == "," and "." in text:
        return ": the decimal sign is ',', so take '.' out of the numbers, or choose --decimal ."
    if decimal == "." and re.fullmatch(r"[+-]?\d*,\d+", text):
        return ": choose --decimal , if ',' is its decimal sign; take ',' out of the numbers if it groups thousands"
    if _GROUPED.fullmatch(text):
        return ": take the signs that group thousands out of the numbers"
    if _UNIT.fullmatch(text):
        return ": take the unit out of the numbers"
    if text[:1].isalpha() and len(text) > 1:
        return (
            ": mend the cell, or, if the column holds words, read others when you train: --features; a class: --label"
        )
    return ""
