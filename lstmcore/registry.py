"""Finding backends: discovery through entry points, isolation of broken plug-ins, selection by name or ``auto``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Final

import pluggy

from lstmcore import hookspecs
from lstmcore.backend import Backend, Capabilities
from lstmcore.config import StackConfig
from lstmcore.hookspecs import GROUP, PROJECT, BackendInfo
from lstmcore.plugin_calls import (
    LOCK,
    PLUGINS_VARIABLE,
    PluginError,
    UnavailableError,
    call_plugin,
    format_error,
    format_value,
)
from lstmcore.precision import Precision
from lstmcore.suggestions import did_you_mean

__all__ = [
    "BACKEND_VARIABLE",
    "PLUGINS_VARIABLE",
    "BackendRecord",
    "PluginError",
    "Selection",
    "UnavailableError",
    "backends",
    "choose",
    "default_name",
    "get_backend",
    "name_or_backend",
    "select",
]

#: The default backend.
BACKEND_VARIABLE: Final = "LSTMCORE_BACKEND"


@dataclass(frozen=True, slots=True)
class BackendRecord:
    """A row of `backends`.

    Attributes
    ----------
    name, version, summary
        Names and versions; empty if the plug-in is broken.
    available
        Whether it can run here.
    reason
        Why not; empty if it can.
    device, capabilities
        None if it cannot run.
    """

    name: str
    available: bool
    reason: str = ""
    version: str = ""
    summary: str = ""
    device: str | None = None
    capabilities: Capabilities | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """A backend and why it was taken; `skipped` has the faster ones that are installed and were passed over."""

    backend: Backend
    reason: str
    skipped: dict[str, str] = field(default_factory=dict)


_lock: Final = LOCK  # the same as that of calls: two locks could be taken in two orders
_loaded: dict[EntryPoint, Backend] = {}
_described_points: dict[EntryPoint, BackendInfo] = {}


def backends() -> list[BackendRecord]:
    """Return all installed backends by name, with those that cannot run or are broken.

    Raises
    ------
    ValueError
        ``LSTMCORE_PLUGINS`` names a plug-in that is not installed.

    Examples
    --------
    >>> [record.name for record in backends() if record.name in ("numpy", "reference") and record.available]
    ['numpy', 'reference']
    """
    records = []
    points = _allowed()
    for name in sorted({point.name for point in points}):
        info = None
        try:
            point = _point(name, points)
            info = _described(name, _manager(point))
            if reason := _reason(info):
                records.append(BackendRecord(name, False, reason, info.version, info.summary))
                continue
            declared = _capabilities(_load(point))
        except (PluginError, UnavailableError) as error:
            version, summary = (info.version, info.summary) if info else ("", "")
            records.append(BackendRecord(name, False, format_error(error), version, summary))
            continue
        records.append(BackendRecord(name, True, "", info.version, info.summary, declared.device, declared))
    return [_printable(record) for record in records]


def _printable(record: BackendRecord) -> BackendRecord:
    r"""Return the record with escapes, such as ``\udc80``, for what UTF-8 has no bytes for in texts of a plug-in."""
    texts = {key: getattr(record, key) for key in ("reason", "version", "summary")}
    return replace(
        record, **{key: text.encode("utf-8", "backslashreplace").decode("utf-8") for key, text in texts.items()}
    )


def get_backend(name: str | None = None) -> Backend:
    """Return the backend of that name, the same object at every call; load no other plug-in.

    Parameters
    ----------
    name
        An installed backend, or ``"auto"``. None takes ``LSTMCORE_BACKEND``, else ``"auto"``.

    Raises
    ------
    ValueError
        Not installed; the message lists those that are, and the nearest.
    PluginError
        The plug-in is broken.
    UnavailableError
        It cannot run here.
    """
    if name is None:
        name = default_name()
        try:
            return get_backend(name)
        except (ValueError, PluginError, UnavailableError) as error:
            if name == "auto":
                raise
            raise type(error)(f"{BACKEND_VARIABLE}={name!r}: {error}") from error
    if name == "auto":
        return _auto(None, None).backend
    return _load(_point(name, _allowed()))


def _load(point: EntryPoint) -> Backend:
    """Return the backend of an entry point, the same object at every call."""
    with _lock.lock:
        if point not in _loaded:
            _loaded[point] = _make(point)
        return _loaded[point]


def select(stack: StackConfig, precision: Precision, name: str | None = None) -> Selection:
    """Return the backend for a stack: the named one, or for ``auto`` the one of highest priority that declares it.

    Raises
    ------
    ValueError, PluginError, UnavailableError
        As `get_backend`; with ``auto``, where no backend can be taken.
    """
    if name == "auto" or (name is None and default_name() == "auto"):
        return _auto(stack, precision)
    return Selection(get_backend(name), "named" if name is not None else f"named by {BACKEND_VARIABLE}")


def choose(backend: str | Backend | None, stack: StackConfig, precision: Precision) -> tuple[Backend, str, str | None]:
    """Return the backend of an LSTM, why it was chosen, and what `strict` objects to in that choice, or None.

    Parameters
    ----------
    backend
        A name, None for the default one, or the backend itself.
    stack, precision
        What it is to compute.

    Raises
    ------
    TypeError
        Neither a name nor a backend.
    ValueError, PluginError, UnavailableError
        As `select`.
    """
    if isinstance(backend, Backend):
        return backend, "given as an object", None
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend: expected a name, a Backend or None; got {type(backend).__name__}")
    selection = select(stack, precision, backend)
    passed = "".join(f"; {name} was passed over: {reason}" for name, reason in selection.skipped.items())
    faster = {name: reason for name, reason in selection.skipped.items() if not _cannot_run(name)}
    objection = "".join(f"; auto passes over the faster backend {name!r}: {faster[name]}" for name in faster)[2:]
    return selection.backend, selection.reason + passed, objection or None


def name_or_backend(backend: Backend) -> Backend | str:
    """Return the name under which `get_backend` gives this backend, or the backend if there is none."""
    try:
        known = get_backend(backend.name)
    except (ValueError, PluginError, UnavailableError):
        return backend
    return backend.name if known is backend else backend


def _cannot_run(name: str) -> bool:
    """Return whether a backend cannot run on this machine; one that is broken could."""
    try:
        get_backend(name)
    except UnavailableError:
        return True
    except PluginError:
        return False
    return False


def default_name() -> str:
    """Return ``LSTMCORE_BACKEND``, or ``auto`` if it is unset or empty."""
    return os.environ.get(BACKEND_VARIABLE, "").strip() or "auto"


def _auto(stack: StackConfig | None, precision: Precision | None) -> Selection:
    points, broken = _candidates()
    skipped: dict[str, str] = {}
    for point in points:
        try:
            backend = _load(point)
            refusal = _refusal(backend, stack, precision) if stack and precision else None
        except (PluginError, UnavailableError) as error:
            skipped[point.name] = str(error)
            continue
        if refusal is None:
            notes = "".join(f"; {name} has no known priority: {reason}" for name, reason in broken.items())
            return Selection(backend, f"auto: the fastest that is available and declares this LSTM{notes}", skipped)
        skipped[point.name] = refusal
    names = ", ".join(point.name for point in points)
    tried = "; ".join(f"{name}: {reason}" for name, reason in (skipped | broken).items())
    if PLUGINS_VARIABLE in os.environ and not tried:
        tried = f"{PLUGINS_VARIABLE}={os.environ[PLUGINS_VARIABLE]!r} leaves none to load: unset it"
    raise ValueError(
        f"backend: 'auto' found none of {names or 'the installed ones'} that can run this LSTM "
        f"({tried or 'none asks for it'})"
    )


def _refusal(backend: Backend, stack: StackConfig, precision: Precision) -> str | None:
    """Return why a backend refuses a layer of the stack, or None."""
    refusals = call_plugin(
        backend.name, "refusal failed", lambda: [backend.refusal(config, precision) for config in stack.configs]
    )
    for refusal in refusals:
        if refusal is not None and not isinstance(refusal, str):
            raise _wrong(backend.name, "refusal", "a text or None", refusal)
    return next(filter(None, refusals), None)


def _candidates() -> tuple[list[EntryPoint], dict[str, str]]:
    """Return the backends that ask for ``auto``, highest priority first, and the broken ones with their errors."""
    ranks: dict[EntryPoint, int] = {}
    broken: dict[str, str] = {}
    points = _allowed()
    for name in sorted({point.name for point in points}):
        try:
            point = _point(name, points)
            priority = _cached_info(point).priority
        except PluginError as error:
            broken[name] = str(error)
            continue
        if priority is not None:
            ranks[point] = priority
    return sorted(ranks, key=lambda point: (-ranks[point], point.name)), broken


def _allowed() -> list[EntryPoint]:
    """Return the entry points that ``LSTMCORE_PLUGINS`` lets through, without loading any."""
    points = list(dict.fromkeys(entry_points(group=GROUP)))
    wanted = os.environ.get(PLUGINS_VARIABLE)
    if wanted is None:
        return points
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    installed = {point.name for point in points}
    for name in names:
        if name not in installed:
            raise ValueError(f"{PLUGINS_VARIABLE}: {_unknown(name, installed)}")
    return [point for point in points if point.name in names]


def _point(name: str, points: Sequence[EntryPoint]) -> EntryPoint:
    """Return the one entry point of that name among `points`, which `_allowed` gave."""
    claims = [point for point in points if point.name == name]
    if not claims:
        limited = PLUGINS_VARIABLE in os.environ
        note = f" ({PLUGINS_VARIABLE}={os.environ[PLUGINS_VARIABLE]!r} limits what is loaded)" if limited else ""
        raise ValueError(f"backend: {_unknown(name, {point.name for point in points})}{note}")
    if len({point.value for point in claims}) > 1:
        each = " and ".join(f"{point.value!r} of {point.dist.name if point.dist else 'unknown'}" for point in claims)
        raise PluginError(f"backend {name!r}: two distributions claim this name, {each}: uninstall one of them")
    return claims[0]


def _unknown(name: str, installed: Iterable[str]) -> str:
    names = sorted(installed)
    listed = ", ".join(names) or "none (no plug-in is loaded)"
    return f"expected one of {listed}; got {name!r}{did_you_mean(name, names)}"


def _manager(point: EntryPoint) -> pluggy.PluginManager:
    """Return a plug-in manager with that plug-in alone, so that no other can answer for it."""
    name = point.name
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)

    def load() -> object:
        plugin = point.load()
        manager.register(plugin, name)
        manager.check_pending()
        return plugin

    plugin = call_plugin(name, f"the plug-in {point.value!r} cannot be loaded", load)
    if not isinstance(plugin, ModuleType):
        raise PluginError(f"backend {name!r}: expected {point.value!r} to be a module; got {type(plugin).__name__}")
    return manager


def _cached_info(point: EntryPoint) -> BackendInfo:
    """Return `_described`, remembered while the plug-in is the same: ``auto`` asks all plug-ins at every selection."""
    with _lock.lock:
        if point not in _described_points:
            _described_points[point] = _described(point.name, _manager(point))
        return _described_points[point]


def _described(name: str, manager: pluggy.PluginManager) -> BackendInfo:
    """Return the description of a plug-in, checked."""
    info = _call(name, manager, "lstmcore_backend_info")
    if not isinstance(info, BackendInfo):
        raise _wrong(name, "lstmcore_backend_info", "a BackendInfo", info)
    if not isinstance(info.name, str) or info.name != name:  # a plug-in may give an array, whose comparison is none
        raise _wrong(name, "lstmcore_backend_info", f"the name {name!r}", info.name)
    for key in ("version", "summary"):
        if not isinstance(value := getattr(info, key), str):
            raise _wrong(name, f"BackendInfo.{key}", "a text", value)
    if info.priority is not None and (isinstance(info.priority, bool) or not isinstance(info.priority, int)):
        raise _wrong(name, "BackendInfo.priority", "a whole number or None", info.priority)
    return info


def _reason(info: BackendInfo) -> str | None:
    """Return why the backend cannot run here, or None."""
    reason: object = call_plugin(info.name, "unavailable failed", info.unavailable)
    if reason is not None and not isinstance(reason, str):
        raise _wrong(info.name, "unavailable", "a text or None", reason)
    return reason or None


def _capabilities(backend: Backend) -> Capabilities:
    declared = call_plugin(backend.name, "capabilities failed", backend.capabilities)
    if not isinstance(declared, Capabilities):
        raise _wrong(backend.name, "capabilities", "Capabilities", declared)
    return declared


def _make(point: EntryPoint) -> Backend:
    name, manager = point.name, _manager(point)
    if reason := _reason(_described(name, manager)):
        raise UnavailableError(f"backend {name!r} cannot run here: {reason}")
    backend = _call(name, manager, "lstmcore_backend")
    if not isinstance(backend, Backend):
        raise _wrong(name, "lstmcore_backend", "a Backend", backend)
    own_name = call_plugin(name, "Backend.name failed", lambda: backend.name)
    if not isinstance(own_name, str) or own_name != name:
        raise _wrong(name, "lstmcore_backend", f"the name {name!r}", own_name)
    _capabilities(backend)
    return backend


def _wrong(name: str, what: str, expected: str, value: object) -> PluginError:
    """Return the error about a value that a plug-in gave."""
    return PluginError(f"backend {name!r}: {what}: expected {expected}; got {format_value(value)}")


def _call(name: str, manager: pluggy.PluginManager, hook: str) -> object:
    return call_plugin(name, f"{hook} failed", getattr(manager.hook, hook))
