"""What a file is that is not of the expected kind, by its first bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

#: First bytes of a file -> what it is.
_STARTS: Final = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x1f\x8b": "a file packed by gzip",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
    b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03"), "a pickle of Python"),
    **dict.fromkeys((b"\x80\x04\x95", b"\x80\x05\x95"), "a pickle of Python"),  # b"\x80\x05": UTF-16 in Armenian
}
#: The first name of an object, alone or in a list, perhaps below a byte order mark. A header of a CSV may have braces.
_JSON: Final = re.compile(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"(\\.|[^"\\])*"\s*:')
#: Bytes that `find_kind` looks at.
SAMPLE: Final = 4096


def find_kind(start: bytes) -> str:
    """Return what a file is by its first `SAMPLE` bytes, such as ``"a NumPy array"``; empty if that is not known.

    Examples
    --------
    >>> find_kind(b"PAR1...")
    'a Parquet file'
    >>> find_kind(b"date,sales"), find_kind(b"")
    ('', '')
    """
    if start.startswith(b"PK\x03\x04") and b".npy" in start[30:256]:  # the name of the first member
        return "a NumPy archive"
    for mark, kind in _STARTS.items():
        if start.startswith(mark):
            return kind
    if _JSON.match(start, 0, SAMPLE):
        return "JSON"
    # a number of eight bytes, of which the last four are 0 in all files, and the header
    return "a safetensors file, such as a model" if start[4:10] == b'\0\0\0\0{"' else ""


def describe_kind(path: str | Path) -> str:
    """Return what a file is, by `find_kind`, or whether it is empty, text, or other bytes."""
    with Path(path).open("rb") as stream:
        start = stream.read(SAMPLE)
    if not start:
        return "an empty file"
    is_text = b"\0" not in start and _decodes(start)
    return find_kind(start) or ("a text file" if is_text else "other bytes")


def _decodes(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end >= len(start)  # a character that the sample cuts off
    return True
