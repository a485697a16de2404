"""The plug-in of the backend ``torch``. PyTorch is imported with its kernel, on first use."""

from __future__ import annotations

from importlib.util import find_spec

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.extras import installing
from lstmcore.hookspecs import BackendInfo, hookimpl


def unavailable() -> str | None:
    """Return why the backend cannot run here, or None."""
    if find_spec("torch") is None:
        return f"PyTorch is not installed; install it with: {installing('torch')}"
    return None


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    return BackendInfo("torch", __version__, "PyTorch's own LSTM, on the processor", unavailable=unavailable)


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_torch.kernel import TorchBackend

    return TorchBackend()
