"""The plug-in of the backend ``jax``. Its kernel is imported on first use."""

from __future__ import annotations

from importlib.util import find_spec

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.extras import installing
from lstmcore.hookspecs import BackendInfo, hookimpl


def _unavailable() -> str | None:
    """Return why the backend cannot run here, or None."""
    if find_spec("jax") is None:
        return f"JAX is not installed; install it with: {installing('jax')}"
    return None


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    return BackendInfo(
        "jax", __version__, "lax.scan compiled by XLA for the processor, as users of JAX write it", _unavailable
    )


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_jax.kernel import JaxBackend

    return JaxBackend()
