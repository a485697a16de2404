"""The code of a plug-in for tests of discovery; the fixture `install` of conftest.py installs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: `install(name, code=None, *, module="", reason=None)` makes a distribution and returns its module.
Install = Callable[..., str]

GOOD: Final = """
from lstmcore.hookspecs import BackendInfo, hookimpl
from lstmcore_reference.kernel import ReferenceBackend

class Own(ReferenceBackend):
    name = {name!r}

@hookimpl
def lstmcore_backend_info():
    return BackendInfo({name!r}, "1", "a test", lambda: {reason!r})

@hookimpl
def lstmcore_backend():
    return Own()
"""


def good(name: str, reason: str | None = None) -> str:
    """Return the code of a plug-in of that name; with `reason`, one that cannot run here."""
    return GOOD.format(name=name, reason=reason)
