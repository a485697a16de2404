"""Safetensors files: tensors, and one JSON text in the metadata. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lstmcore.config import check_version
from lstmcore.file_kinds import describe_kind
from lstmcore.files import check_regular, write_atomically

Array = npt.NDArray[Any]

FORMAT_VERSION: Final = 1
#: Dtypes of tensors, by safetensors' names; the last three hold matrices that are stored in fewer bytes.
DTYPES: Final = ("F32", "F64", "F16", "U16", "I8")
#: The one key of the metadata: safetensors writes several in no fixed order, and the same model gives the same bytes.
_KEY: Final = "lstmcore"

#: Format of a file -> what reads it.
_READERS: Final = {
    "lstmcore-model": "SequenceModel.load",
    "lstmcore-lstm": "LSTM.load",
    "lstmcore-chain": "Chain.load",
}
#: Format of a file that was expected where the other one of the two came -> what to do.
_CHECKPOINT_HINTS: Final = {
    "lstmcore-checkpoint": ": a run goes on from what 'lstmcore train --checkpoint' or Trainer(checkpoint=) wrote",
    "lstmcore-model": ": go on with 'lstmcore train --resume', or give the model that the run wrote",
}


def _hint(expected: str, written: object) -> str:
    """Return what to do with a file of another format than the expected one; empty if that is not known."""
    if {expected, written} == {"lstmcore-model", "lstmcore-checkpoint"}:
        return _CHECKPOINT_HINTS[expected]
    reader = _READERS.get(str(written))
    if reader is None or expected not in _READERS:
        return ""
    if expected == "lstmcore-model":
        return f": a readout is missing: SequenceModel({reader}(path), Readout(...)) makes a model"
    return f": read it with {reader}"


def write_tensors(path: str | Path, kind: str, tensors: Mapping[str, Array], header: Mapping[str, Any]) -> None:
    """Write tensors with `header` as JSON under a format name and the version of the format.

    Parameters
    ----------
    path
        The file to write.
    kind
        The name of the format.
    tensors
        Name -> array of a dtype of `DTYPES`.
    header
        Values of JSON types.

    Raises
    ------
    ValueError
        A path that cannot be written, or a value that JSON does not have.
    """
    text = json.dumps({"format": kind, "version": FORMAT_VERSION, **header}, allow_nan=False)
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_atomically(path, save(contiguous, metadata={_KEY: text}))


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what `write_tensors` wrote; return the tensors and the header.

    Raises
    ------
    ValueError
        A folder, a pipe or a device; a truncated or foreign file, another format, a newer version.
    OSError
        The file cannot be read.
    """
    with _opened(path) as stream:
        header = _parse_header(path, (stream.metadata() or {}).get(_KEY))
        if (written := header.pop("format", None)) != kind:
            raise ValueError(f"{path}: expected a file of format {kind!r}; got {written!r}{_hint(kind, written)}")
        check_version(f"{path}: format", header.pop("version", None), FORMAT_VERSION)
        for name in (names := list(stream.keys())):
            if (dtype := stream.get_slice(name).get_dtype()) not in DTYPES:
                raise ValueError(f"{path}: tensor {name!r}: expected dtype {' or '.join(DTYPES)}; got {dtype}")
        return {name: stream.get_tensor(name) for name in names}, header


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the header of a file that `write_tensors` wrote, with its format and version, and none of its tensors.

    Raises
    ------
    ValueError
        A folder, a pipe or a device; a truncated file, or one of another program.
    OSError
        The file cannot be read.
    """
    if (text := _header_text(path)) is None:
        raise ValueError(f"{path}: expected a file of lstmcore; got safetensors of another program")
    return _parse_header(path, text)


def file_format(path: str | Path) -> Any:
    """Return the name of the format of a safetensors file that `write_tensors` wrote; None for another file.

    Raises
    ------
    ValueError
        A folder, a pipe or a device; a truncated file.
    OSError
        The file cannot be read.
    """
    return _parse_header(path, _header_text(path)).get("format")


def _header_text(path: str | Path) -> str | None:
    """Return the header of a safetensors file as JSON; None if another program wrote it."""
    with _opened(path) as stream:
        text: str | None = (stream.metadata() or {}).get(_KEY)
    return text


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file; each error names it."""
    check_regular(path)
    with Path(path).open("rb"):
        pass  # safetensors reports a missing or unreadable file without its name
    try:
        with safe_open(path, framework="numpy") as stream:
            yield stream
    except SafetensorError as error:
        if not (kind := describe_kind(path)).startswith("a safetensors file"):
            raise ValueError(f"{path}: expected a whole safetensors file; got {kind}") from None
        raise ValueError(f"{path}: expected a whole safetensors file; got {str(error).splitlines()[0]}") from None


def _parse_header(path: str | Path, text: str | None) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        header = json.loads("{}" if text is None else text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path}: expected a JSON header; {problem}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: expected a JSON object as header; got {type(header).__name__}")
    return header


def check_tensors(
    tensors: Mapping[str, Array],
    expected: Mapping[str, tuple[int, ...]],
    dtype: str,
    others: Mapping[str, str] | None = None,
) -> None:
    """Raise unless `tensors` has the names and shapes of `expected`, the dtype, and finite numbers only.

    Parameters
    ----------
    tensors
        Name -> array.
    expected
        Name -> shape.
    dtype, others
        The dtype of all tensors but those of `others`, which have their own by name.

    Raises
    ------
    ValueError
        The message names the tensor.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"tensor {name!r}: expected shape {shape}; got none")
    for name, value in tensors.items():
        if name not in expected:
            raise ValueError(f"tensors: expected none but those that the header asks for; got {name!r}")
        if value.shape != expected[name]:
            raise ValueError(f"tensor {name!r}: expected shape {expected[name]}; got {value.shape}")
        if str(value.dtype) != (wanted := (others or {}).get(name, dtype)):
            raise ValueError(f"tensor {name!r}: expected dtype {wanted}; got {value.dtype}")
        if not np.isfinite(value).all():
            raise ValueError(f"tensor {name!r}: expected finite numbers; got NaN or infinity")
