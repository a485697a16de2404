"""What ``lstmcore conform`` tests: a registered backend, or one that a module holds."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from operator import attrgetter
from typing import Any

from lstmcore.backend import Backend
from lstmcore.plugin_calls import call_plugin
from lstmcore.registry import get_backend


def load_target(name: str) -> Backend:
    """Return the backend of that name, or the one that ``MODULE:ATTRIBUTE`` names.

    The attribute is a backend, or a class or function that makes one without arguments. Modules of the current folder
    are found too, as by ``python -m``.

    Parameters
    ----------
    name
        For example ``"numpy"``, ``"mykernel:MyBackend"`` or ``"package.module:make"``.

    Raises
    ------
    PluginError
        The module cannot be imported or has no such attribute, or what it names raises.
    TypeError
        What it names is no backend and makes none.
    ValueError
        There is no backend of that name, or a side of the colon is empty.
    """
    if ":" not in name:
        return get_backend(name)
    found = find_attribute(name)
    if is_called(found):
        found = call_plugin(name, "cannot be made without arguments", found)
    if not isinstance(found, Backend):
        raise TypeError(f"{name}: expected a Backend, or what makes one; got {type(found).__name__}")
    return found


def is_called(found: Any) -> bool:
    """Return whether what a name leads to makes a backend, and is none."""
    return not isinstance(found, Backend) and callable(found)


def find_attribute(name: str) -> Any:
    """Return what ``MODULE:ATTRIBUTE`` names; errors as of `load_target`."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"NAME: expected MODULE:ATTRIBUTE, such as mykernel:MyBackend; got {name!r}")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    return call_plugin(name, "cannot be imported", lambda: attrgetter(attribute)(import_module(module)))
