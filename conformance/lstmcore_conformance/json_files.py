"""Reading of JSON files from outside: strict parsing, and a check by a schema of the package."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from lstmcore.extras import installing
from lstmcore.files import check_regular

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

#: Value of the field ``schema`` of a file -> the file of its schema in this package.
SCHEMAS: Final[Mapping[str, str]] = {
    "lstmcore-conformance": "report.schema.json",
    "lstmcore-benchmark": "bench/benchmark.schema.json",
    "lstmcore-scoreboard": "scoreboard.schema.json",
    "lstmcore-vectors": "vectors.schema.json",
}
#: No number of these files is beyond it; larger whole numbers have no float64.
_LARGEST: Final = 2**63
#: Characters of a message that may show a whole file.
_SHOWN: Final = 200


def read_object(path: str | Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises
    ------
    ValueError
        A folder or a device, no JSON, another value than an object, nesting too deep, or a number that is not finite.
    OSError
        The file cannot be read.
    """
    check_regular(path)
    return parse_object(path, Path(path).read_bytes())


def parse_object(path: str | Path, content: bytes) -> dict[str, Any]:
    """Return the JSON object of a text; `path` is for messages. Raises ValueError as `read_object`."""
    try:
        values = json.loads(content, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"{path}: expected JSON; it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON; {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object; got {type(values).__name__}")
    return values


def check_schema(path: str | Path, values: Mapping[str, Any], schema: str) -> None:
    """Raise unless `values` fit a schema of this package.

    Parameters
    ----------
    path
        The file that they come from, for messages.
    values
        The JSON object of the file.
    schema
        A name of `SCHEMAS`.

    Raises
    ------
    ValueError
        The message names the file and the place in it.
    ImportError
        jsonschema is not installed.
    """
    validator = _validator(SCHEMAS[schema])
    if validator.is_valid(values):
        return
    from jsonschema.exceptions import best_match

    error = best_match(validator.iter_errors(values))
    place = error.json_path.removeprefix("$").removeprefix(".") or "the whole"
    told = error.message if len(error.message) <= _SHOWN else f"{error.message[:_SHOWN]}..."
    raise ValueError(f"{path}: {place}: expected what {SCHEMAS[schema]} says; {told}")


@cache
def _validator(file: str) -> Validator:
    """Return the validator of a schema of this package."""
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "jsonschema":
            raise
        raise ImportError(
            "reading of reports, runs and vectors: needs jsonschema, which is not installed: "
            f"{installing('conformance')}"
        ) from None
    text = resources.files(__package__ or "").joinpath(file).read_text("utf-8")
    return Draft202012Validator(json.loads(text))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is beyond what float64 holds")
    return number


def _whole(text: str) -> int:
    number = int(text)
    if abs(number) > _LARGEST:
        raise ValueError(f"{text[:20]}... is beyond {_LARGEST}")
    return number
