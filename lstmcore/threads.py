"""The number of threads that the user asks for."""

from __future__ import annotations

import os
from typing import Final

THREADS_VARIABLE: Final = "LSTMCORE_NUM_THREADS"


def asked_threads() -> int | None:
    """Return the number in ``LSTMCORE_NUM_THREADS``, or None if it is not set.

    Raises
    ------
    ValueError
        The variable is not a whole number of at least 1.
    """
    asked = os.environ.get(THREADS_VARIABLE)
    if asked is None:
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"{THREADS_VARIABLE}: expected a whole number of at least 1; got {asked!r}")
    return int(asked)
