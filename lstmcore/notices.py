"""Warnings about what a user may not expect; the command line shows each in one line."""

from __future__ import annotations

import warnings


class Notice(UserWarning):
    """Something works, but perhaps not as its user thinks."""


class Finding(Notice):
    """Something that was found in the data and taken as it is; ``--quiet`` does not show it."""


def notify(text: str, stacklevel: int = 2, kind: type[Notice] = Notice) -> None:
    """Warn with `text`; `stacklevel` counts the frames above this one, as for `warnings.warn` itself."""
    warnings.warn(text, kind, stacklevel=stacklevel + 1)
