"""The plug-in of the backend ``torch-int8``. PyTorch is imported with its kernel, on first use."""

from __future__ import annotations

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl
from lstmcore_torch import unavailable


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    summary = "PyTorch's dynamic int8 LSTM, as it is; rows change each other, see docs/peers.md"
    return BackendInfo("torch-int8", __version__, summary, unavailable=unavailable)


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_torch.int8_kernel import DynamicInt8Backend

    return DynamicInt8Backend()
