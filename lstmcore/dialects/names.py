"""Names of parameters in other libraries, for hints in errors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

#: A pattern of the last part of a name, after a dot or a slash; the library; what reads its weights.
_NAMES: Final = (
    (r"(weight|bias)_(ih|hh|hr)_l\d+(_reverse)?", "torch", "LSTM.from_torch"),
    (r"(recurrent_)?kernel(:0)?", "Keras", "LSTM.from_keras"),
    (r"W|R", "ONNX", "LSTM.from_onnx"),
)


def reader_of(names: Iterable[object]) -> str | None:
    """Return a hint about the library that has one of `names`, or None.

    Examples
    --------
    >>> reader_of(["encoder.weight_ih_l0"])
    "these are torch's names: LSTM.from_torch reads them"
    """
    for name in names:
        for pattern, library, reader in _NAMES:
            if isinstance(name, str) and re.fullmatch(pattern, re.split(r"[./]", name)[-1]):
                return f"these are {library}'s names: {reader} reads them"
    return None
