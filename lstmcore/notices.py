"""Warnings about what a user may not expect; the command line shows each in one line."""

from __future__ import annotations

import warnings


class Notice(UserWarning):
    """Something works, but perhaps not as its user thinks."""


def notify(text: str, stacklevel: int = 2) -> None:
    """Warn with `text`; `stacklevel` counts the frames above this one, as for `warnings.warn` itself."""
    warnings.warn(text, Notice, stacklevel=stacklevel + 1)
