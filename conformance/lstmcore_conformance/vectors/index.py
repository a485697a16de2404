"""The index of the golden vectors: a compact file in the repository, and the two public files that a build makes of it.

``index.json.gz`` is in the repository and in every distribution. `write_public` makes ``index.json`` and ``index.txt``,
which docs/vectors.md describes, from it and from the headers of the safetensors files.
setup.py runs this module by its path, so it imports the standard library alone. In a checkout that is not installed,
``python conformance/lstmcore_conformance/vectors/index.py [FOLDER]`` writes the two files.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = "lstmcore-vectors"
VERSION: Final = 2
HERE: Final = Path(__file__).parent
COMPACT: Final = "index.json.gz"
#: The public files, made from the compact one.
PUBLIC: Final = ("index.json", "index.txt")
#: Bytes of an index, decompressed; a hundred times that of this package.
LARGEST: Final = 1 << 26


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of `folder`: the compact file, or ``index.json`` if the folder has only the public files.

    Raises
    ------
    ValueError
        The file is no index of golden vectors, or one of another version.
    """
    path = index_path(folder)
    index: Any = json.loads(read_content(path))
    if not isinstance(index, dict):
        raise ValueError(f"{path}: expected a JSON object; got {type(index).__name__}")
    if (index.get("schema"), index.get("version")) != (SCHEMA, VERSION):
        raise ValueError(f"{path}: expected {SCHEMA} {VERSION}; got {index.get('schema')} {index.get('version')}")
    return index


def index_path(folder: Path) -> Path:
    """Return the compact file of `folder`, or ``index.json`` if it has only the public files."""
    path = folder / COMPACT
    return path if path.exists() else folder / "index.json"


def read_content(path: Path) -> bytes:
    """Return the text of an index, decompressed.

    Raises
    ------
    ValueError
        A damaged file, or one that holds far more than an index.
    """
    with (gzip.open if path.name == COMPACT else open)(path, "rb") as file:
        try:
            content: bytes = file.read(LARGEST + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole file that gzip wrote; {error}") from None
    if len(content) > LARGEST:
        raise ValueError(f"{path}: expected at most {LARGEST} bytes; got more")
    return content


def write_compact(folder: Path, defaults: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the compact index: the text of ``index.json``, one case a line, compressed.

    Parameters
    ----------
    folder
        The folder of the safetensors files.
    defaults
        Switch -> its value where a case does not give it.
    entries
        The cases in their order; docs/vectors.md lists the fields.
    """
    rows = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    head = f'"schema":"{SCHEMA}","version":{VERSION},"defaults":{json.dumps(defaults)}'
    text = f'{{{head},"cases":[\n{rows}\n]}}\n'
    _save(folder / COMPACT, gzip.compress(text.encode(), mtime=0))


def write_public(folder: Path = HERE) -> None:
    """Write ``index.json`` and ``index.txt`` of a folder with the compact index and the safetensors files."""
    index = read_index(folder)
    _save(folder / "index.json", read_content(folder / COMPACT))
    _save(folder / "index.txt", "".join(f"{line}\n" for line in _lines(index, folder)).encode())


def _lines(index: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield the lines of ``index.txt``."""
    yield f"{SCHEMA} {VERSION}"
    for switch, value in index["defaults"].items():
        yield f"default {switch} {_word(value)}"
    headers = {file: _header(folder / file) for file in dict.fromkeys(entry["file"] for entry in index["cases"])}
    for entry in index["cases"]:
        yield f"case {entry['precision']} {entry['file']} {entry['steps']} {entry['batch']} {entry['name']}"
        for switch, value in entry["model"].items():
            yield f"model {switch} {_word(value)}"
        for tensor, row in entry["tensors"].items():
            place = headers[entry["file"]][f"{entry['name']}/{tensor}"]
            offset, shape = place["data_offsets"][0], place["shape"]
            sizes = " ".join(map(str, shape))
            yield f"{row['role']} {tensor} {place['dtype']} {offset} {row.get('budget', 0.0)!r} {len(shape)} {sizes}"
        yield "end"


def _word(value: Any) -> str:
    """Return a switch's value as one word: true is 1, false 0, None is none."""
    if isinstance(value, bool):
        return str(int(value))
    return "none" if value is None else str(value).replace(" ", "")


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: key -> dtype, shape and data_offsets."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
        return header


def _save(path: Path, content: bytes) -> None:
    """Write the file whole or not at all, and leave one with this content as it is: builds may run at the same time."""
    if path.exists() and path.read_bytes() == content:
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)


if __name__ == "__main__":
    write_public(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
