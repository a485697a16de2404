"""How the text of a CSV file is written: its encoding, the separator of its cells, its decimal sign."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from lstmcore.file_kinds import find_kind

#: Characters of a row: a file without line ends is refused before it fills the memory.
LONGEST_ROW: Final = 1 << 20
#: Bytes at the beginning of a file that its encoding, separator and decimal sign are found from.
_SAMPLE: Final = 1 << 20
#: Rows of them that the separator and the decimal sign are found from.
_SAMPLE_ROWS: Final = 200
_SEPARATORS: Final = (",", ";", "\t", "|")
_NAMES: Final = {"\t": "tabs", " ": "spaces"}
#: Other kinds of files, as `find_kind` names them -> what to do.
_ADVICE: Final = {
    "a zip or Excel file": ": save the sheet as CSV",
    "a NumPy archive": ": it can hold sequences to classify, with a name that ends in .npz, and no series to forecast",
    "an old Excel file": ": save the sheet as CSV",
    "a file packed by gzip": ": unpack it",
    "a Parquet file": ": give it a name that ends in .parquet",
    "an SQLite database": ": export the table as CSV",
    "an HDF5 file": ": export the table as CSV",
    "a pickle of Python": ": save the table as CSV",
    "JSON": ": save the table as CSV",
    "a NumPy array": ": save a table as CSV with a header, or arrays X and y to classify as .npz",
    "a safetensors file, such as a model": ": the model comes first, then the data",
}
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMA_NUMBER: Final = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_POINT_NUMBER: Final = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
_THOUSANDS: Final = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


class TextFormat(NamedTuple):
    """How a CSV file is written, and `found`: what of it was found and may surprise, as a text."""

    encoding: str
    separator: str
    decimal: str
    first_row: int = 0  # lines before the header
    found: str = ""


class Given(NamedTuple):
    """What the user says about the text; None is found from the file."""

    separator: str | None
    decimal: str | None
    encoding: str | None


def check_given(given: Given) -> Given:
    r"""Return what is given, with ``tab`` and ``\t`` as the tab.

    Raises
    ------
    ValueError
        A separator of several characters, another decimal sign than a comma or a point, an unknown encoding.
    """
    separator = given.separator
    if separator is not None:
        separator = "\t" if separator in ("tab", "\\t") else separator
        if len(separator) != 1 or separator in '"\r\n' or separator.isalnum():
            raise ValueError(f"separator: expected one sign such as ';', or tab; got {given.separator!r}")
    if given.decimal not in (None, ".", ","):
        raise ValueError(f"decimal: expected '.' or ','; got {given.decimal!r}")
    if given.encoding is not None:
        try:
            "".encode(given.encoding)
            b"".decode(given.encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"encoding: expected the name of one, such as utf-8, utf-16 or cp1252; got {given.encoding!r}"
            ) from None
    return given._replace(separator=separator)


def find_format(path: Path, name: str, wanted: Sequence[str], given: Given) -> TextFormat:
    """Return how a CSV file is written.

    Parameters
    ----------
    path, name
        The file, and what messages call it.
    wanted
        Columns that the header must have.
    given
        What the user says.

    Raises
    ------
    ValueError
        A file that is no text, or text in an unknown encoding.
    """
    given = check_given(given)
    with path.open("rb") as stream:
        sample = stream.read(_SAMPLE)
    if kind := find_kind(sample):
        raise ValueError(f"{name}: expected a CSV file; got {kind}{_ADVICE.get(kind, '')}")
    encoding = given.encoding or _find_encoding(name, sample)
    if encoding.replace("_", "-").casefold() in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    text = io.TextIOWrapper(io.BytesIO(sample), encoding=encoding, errors="replace", newline="").read()
    lines = text.splitlines(keepends=True)[: _SAMPLE_ROWS + 2]
    announced = _announced(lines[0]) if lines else None
    lines = lines[1:] if announced else lines
    separator = given.separator or announced or _find_separator(lines, wanted)
    decimal = given.decimal or _find_decimal(lines, separator)
    parts = [
        f"{encoding} text" if given.encoding is None and encoding != "utf-8-sig" else "",
        f"{_NAMES.get(separator, repr(separator))} between cells" if not given.separator and separator != "," else "",
        "',' as the decimal sign" if given.decimal is None and decimal == "," else "",
    ]
    listed = ", ".join(part for part in parts if part)
    found = f"{name}: found {listed}; --encoding, --separator and --decimal say otherwise" if listed else ""
    return TextFormat(encoding, separator, decimal, 1 if announced else 0, found)


def _find_encoding(name: str, sample: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    even, odd = sample[:4096:2], sample[1:4096:2]
    for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if len(zeros) > 3 and zeros.count(0) > 0.7 * len(zeros) and others.count(0) < 0.1 * len(others):
            return encoding
    for encoding, taken in (("utf-8", "utf-8-sig"), ("cp1252", "cp1252")):
        try:
            codecs.getincrementaldecoder(encoding)().decode(sample)
        except UnicodeDecodeError:
            continue
        return taken
    raise ValueError(
        f"{name}: expected UTF-8 text; got other bytes: name the encoding with --encoding, or save it anew"
    )


def _announced(line: str) -> str | None:
    """Return the separator that a first line ``sep=;``, as Excel writes it, announces."""
    text = line.strip("\r\n").strip('"')
    return text[4] if len(text) == 5 and text[:4].casefold() == "sep=" else None


def _rows(lines: Sequence[str], separator: str) -> list[list[str]]:
    """Return the rows as far as they can be read."""
    rows: list[list[str]] = []
    try:
        for row in csv.reader(lines, delimiter=separator, strict=True):
            if row:
                rows.append([cell.strip() for cell in row])
    except csv.Error:
        pass  # the last row of a sample may be cut off; a wrong row is told when the whole file is read
    return rows[: _SAMPLE_ROWS + 1]


def _find_separator(lines: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the separator by which the header has the wanted columns, and each row as many cells as the header."""
    tables = {separator: rows for separator in _SEPARATORS if (rows := _rows(lines, separator))}
    fitting = [separator for separator, rows in tables.items() if set(wanted) <= set(rows[0])]
    even = [separator for separator in fitting if len({len(row) for row in tables[separator][:-1]}) <= 1]
    if even or fitting:
        return (even or fitting)[0]
    widths = {separator: len(rows[0]) for separator, rows in tables.items()}
    return "," if widths.get(",", 0) > 1 or not widths else max(widths, key=lambda separator: widths[separator])


def _find_decimal(lines: Sequence[str], separator: str) -> str:
    """Return a comma if there are numbers with one, none with a point, and it groups no thousands."""
    cells = [cell for row in _rows(lines, separator)[1:] for cell in row]
    numbers = [cell for cell in cells if _COMMA_NUMBER.fullmatch(cell)]
    grouped = separator != ";" and all(_THOUSANDS.fullmatch(cell) for cell in numbers)
    return "," if numbers and not grouped and not any(map(_POINT_NUMBER.fullmatch, cells)) else "."


@dataclass
class Lines:
    """The lines of a stream; a row of over `LONGEST_ROW` characters is an error."""

    name: str
    stream: TextIO
    number: int = 0
    taken: int = 0  # characters of the row so far

    def __iter__(self) -> Iterator[str]:
        while line := self.stream.readline(LONGEST_ROW + 1 - self.taken):
            self.taken += len(line)
            if self.taken > LONGEST_ROW:
                raise ValueError(
                    f"{self.name}, line {self.number + 1}: expected a row of at most {LONGEST_ROW} characters; got a "
                    "longer one: is it a text file with line ends, and is every quotation closed?"
                )
            self.number += 1
            yield line


def read_rows(path: Path, name: str, form: TextFormat) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with the numbers of their last lines, the header first; an empty line is ``[]``.

    Raises
    ------
    ValueError
        Bytes of another encoding, a row that is no CSV.
    """
    with path.open(newline="", encoding=form.encoding) as stream:
        lines = Lines(name, stream)
        source = iter(lines)
        for _ in range(form.first_row):
            next(source, None)
        lines.taken = 0
        reader = csv.reader(source, delimiter=form.separator, strict=True)
        try:
            for row in reader:
                lines.taken = 0
                yield reader.line_num + form.first_row, row
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, after line {lines.number}: expected {form.encoding} text; got {error.reason}: name the "
                "encoding with --encoding"
            ) from None
        except csv.Error as error:
            hint = ": is the separator another one (--separator)?" if "expected after" in str(error) else ""
            raise ValueError(f"{name}, line {reader.line_num + form.first_row}: expected CSV; {error}{hint}") from None
