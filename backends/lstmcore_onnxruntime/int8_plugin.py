"""The plug-in of the backend ``onnxruntime-int8``. ONNX Runtime is imported with its kernel, on first use."""

from __future__ import annotations

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl
from lstmcore_onnxruntime import unavailable


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    summary = "ONNX Runtime's dynamic int8, as it is; rows change each other, see docs/peers-onnxruntime.md"
    return BackendInfo("onnxruntime-int8", __version__, summary, unavailable)


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_onnxruntime.int8_kernel import DynamicInt8Backend

    return DynamicInt8Backend()
