"""Calls of a plug-in's code: errors get the plug-in's name, output goes to standard error, commands tell slow calls."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, Final, TextIO, cast

from lstmcore.locks import ForkSafeLock

#: The plug-ins that may be loaded: names with commas between them, empty for none.
PLUGINS_VARIABLE: Final = "LSTMCORE_PLUGINS"

#: Seconds after which a command tells on standard error that a call has not returned.
SLOW_S = 5.0
_telling = False

#: One plug-in runs at a time: each call replaces and restores `sys.stdout`.
LOCK: Final = ForkSafeLock(threading.RLock)


class PluginError(RuntimeError):
    """A plug-in is broken: it cannot be loaded, its hooks fail, or two distributions claim its name."""


class UnavailableError(RuntimeError):
    """The backend is installed and cannot run here; the message says why and what to install."""


def call_plugin(name: str, failure: str, call: Callable[[], Any], *, kind: str = "backend") -> Any:
    """Return the result of a plug-in's function; whatever it raises becomes a `PluginError` with the plug-in's name.

    Parameters
    ----------
    name
        The name of the plug-in.
    failure
        The beginning of the message if it raises, for example ``"lstmcore_backend failed"``.
    call
        The function.
    kind
        Of the plug-in, for the message.

    Raises
    ------
    PluginError
        `call` raised anything but KeyboardInterrupt; `SystemExit` and MemoryError too.
    """
    try:
        with LOCK.lock, _own_output_to_stderr(), _told_if_slow(name, kind):
            return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plug-in may fail in any way, and must not take the others down
        raise PluginError(f"{kind} {name!r}: {failure}: {format_error(error)}") from error


def format_error(error: BaseException) -> str:
    """Return an error in one line, also one whose own text cannot be made."""
    try:
        text = " ".join(str(error).split())
    except Exception as second:
        text = f"its text cannot be made ({type(second).__name__})"
    if isinstance(error, PluginError | UnavailableError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def format_value(value: object) -> str:
    """Return the start of a value's repr, or its type if it has none."""
    try:
        return f"{value!r:.200}"
    except Exception:
        return f"a value of type {type(value).__name__}, which has no text"


class _OwnOutputAside:
    """A standard output whose text from the thread that made it goes to standard error."""

    def __init__(self, others: TextIO) -> None:
        self._others, self._owner = others, threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        own = sys.stderr is not None and threading.get_ident() == self._owner
        return getattr(sys.stderr if own else self._others, name)


@contextmanager
def _own_output_to_stderr() -> Iterator[None]:
    """Send what this thread prints to standard error: a plug-in's text would spoil JSON on standard output."""
    if sys.stdout is None or isinstance(sys.stdout, _OwnOutputAside):
        yield
    else:
        with redirect_stdout(cast(TextIO, _OwnOutputAside(sys.stdout))):
            yield


@contextmanager
def descriptor_to_stderr() -> Iterator[None]:
    """Send to standard error what this process, its libraries and its children write to descriptor 1 meanwhile.

    For a command only: it holds for all threads.
    """
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def slow_calls_told() -> Iterator[None]:
    """Tell slow calls in this block: for commands, whose standard error is for a person to read."""
    global _telling
    _telling = True
    try:
        yield
    finally:
        _telling = False


@contextmanager
def _told_if_slow(name: str, kind: str) -> Iterator[None]:
    """Write a line to standard error if the block takes longer than `SLOW_S`, in a command."""
    if not _telling:
        yield
        return

    way_out = f" ({PLUGINS_VARIABLE} names the plug-ins that may be loaded)" if kind == "backend" else ""

    def tell() -> None:
        if sys.stderr is not None:
            sys.stderr.write(
                f"lstmcore: the plug-in of {kind} {name!r} has not answered for {SLOW_S:g} s; still waiting{way_out}\n"
            )

    timer = threading.Timer(SLOW_S, tell)
    timer.daemon = True
    with suppress(RuntimeError):  # no thread can start, as while the interpreter ends: the call goes on without
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
