"""DataFrames and Series of pandas, polars and other libraries as arrays, by narwhals, which is an extra."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.extras import installing

Array = npt.NDArray[Any]

#: Top-level packages whose tables narwhals reads; none of them is imported here.
_LIBRARIES: Final = frozenset(("pandas", "polars", "pyarrow", "modin", "cudf", "narwhals"))


def is_frame(value: object) -> bool:
    """Return whether `value` is a DataFrame or a Series of a library that narwhals reads."""
    return type(value).__module__.partition(".")[0] in _LIBRARIES


def open_frame(name: str, value: Any) -> Any:
    """Return the table or the column as narwhals shows it.

    Parameters
    ----------
    name
        That of the argument, for messages.
    value
        A DataFrame or a Series.

    Raises
    ------
    ImportError
        narwhals is not installed.
    TypeError
        No table in memory.
    """
    try:
        import narwhals
    except ImportError as error:
        raise ImportError(
            f"{name}: expected an array, or narwhals for a {type(value).__name__} of "
            f"{type(value).__module__.partition('.')[0]}; it is not installed: {installing('frames')}"
        ) from error
    try:
        return narwhals.from_native(value, eager_only=True, allow_series=True)
    except TypeError:
        kind = type(value)
        raise TypeError(
            f"{name}: expected a DataFrame or a Series in memory; got {kind.__module__}.{kind.__qualname__}"
        ) from None


def shared_columns(name: str, values: Iterable[Any]) -> list[Any] | None:
    """Return the column names of the DataFrames in `values`, or None without any.

    Parameters
    ----------
    name
        That of the argument, for messages.
    values
        DataFrames, and other objects, which are passed over.

    Raises
    ------
    ImportError, TypeError
        As `open_frame`.
    ValueError
        Two DataFrames have other columns, or the same in another order.
    """
    shared: list[Any] | None = None
    for index, value in enumerate(values):
        opened = open_frame(f"{name}[{index}]", value) if is_frame(value) else None
        if opened is None or not hasattr(opened, "columns"):
            continue
        columns = list(opened.columns)
        if shared is not None and columns != shared:
            raise ValueError(f"{name}[{index}]: expected the columns of the first DataFrame, {shared}; got {columns}")
        shared = columns
    return shared


def plain(name: str, value: Any) -> Any:
    """Return a DataFrame (rows, columns) or a Series (rows,) as an array, and anything else as it is.

    Parameters
    ----------
    name
        That of the argument, for messages.
    value
        The argument.

    Raises
    ------
    ImportError, TypeError
        As `open_frame`.
    """
    return np.asarray(open_frame(name, value).to_numpy()) if is_frame(value) else value
