"""Finding engines: that of this package, and those of plug-ins of the entry-point group ``lstmcore.engines``."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pluggy

from lstmcore.distributed import engine as hooks
from lstmcore.distributed import mpi
from lstmcore.distributed.engine import GROUP, Engine, EngineInfo
from lstmcore.hookspecs import PROJECT
from lstmcore.plugin_calls import PluginError, UnavailableError, call_plugin, format_value


def engines() -> list[EngineInfo]:
    """Return the installed engines by name, also those that cannot run here.

    Raises
    ------
    PluginError
        A plug-in that is broken; the message names it.

    Examples
    --------
    >>> [info.name for info in engines()]
    ['gloo', 'mpi']
    """
    found = {"mpi": _described("mpi", lambda: mpi)}
    for point in entry_points(group=GROUP):
        if point.name in found:
            raise PluginError(f"engine {point.name!r}: two plug-ins claim this name: uninstall one of them")
        found[point.name] = _described(point.name, point.load)
    return [found[name] for name in sorted(found)]


def get_engine(name: str) -> Engine:
    """Return the engine of that name, opened: the processes that were started together can call each other now.

    Parameters
    ----------
    name
        An installed engine, such as ``"mpi"``.

    Raises
    ------
    ValueError
        Not installed; the message lists those that are.
    PluginError
        The plug-in is broken.
    UnavailableError
        It cannot run here; the message says why and what to install.

    Examples
    --------
    >>> get_engine("carrier pigeon")
    Traceback (most recent call last):
    ValueError: engine: expected one of gloo, mpi; got 'carrier pigeon'
    """
    found = {info.name: info for info in engines()}
    if name not in found:
        raise ValueError(f"engine: expected one of {', '.join(found)}; got {name!r}")
    if reason := call_plugin(name, "unavailable failed", found[name].unavailable, kind="engine"):
        raise UnavailableError(f"engine {name!r} cannot run here: {reason}")
    opened = call_plugin(name, "open failed", found[name].open, kind="engine")
    if not isinstance(opened, Engine):
        raise PluginError(f"engine {name!r}: open: expected an Engine; got {format_value(opened)}")
    return opened


def _described(name: str, load: Any) -> EngineInfo:
    """Return the description of the plug-in that `load` returns, checked; no other plug-in can answer for it."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hooks)

    def describe() -> object:
        manager.register(load(), name)
        manager.check_pending()
        return manager.hook.lstmcore_engine_info()

    info = call_plugin(name, "the plug-in cannot be loaded", describe, kind="engine")
    if not isinstance(info, EngineInfo) or info.name != name:
        raise PluginError(
            f"engine {name!r}: lstmcore_engine_info: expected an EngineInfo of that name; got {format_value(info)}"
        )
    return info
