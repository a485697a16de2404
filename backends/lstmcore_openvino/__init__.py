"""The plug-in of the backend ``openvino``. OpenVINO is imported with its kernel, on first use."""

from __future__ import annotations

from importlib.util import find_spec

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.extras import installing
from lstmcore.hookspecs import BackendInfo, hookimpl


def missing_package(**packages: str) -> str | None:
    """Return which of `packages`, module by module with a name for people, is not installed, or None."""
    for module, name in packages.items():
        if find_spec(module) is None:
            return f"{name} is not installed; install it with: {installing('openvino')}"
    return None


def _unavailable() -> str | None:
    """Return why the backend cannot run here, or None."""
    return missing_package(openvino="OpenVINO")


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    return BackendInfo(
        "openvino", __version__, "OpenVINO's operation LSTMSequence, on the processor; inference only", _unavailable
    )


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_openvino.kernel import OpenVinoBackend

    return OpenVinoBackend()
