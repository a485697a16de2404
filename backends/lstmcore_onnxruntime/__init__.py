"""The plug-in of the backend ``onnxruntime``. ONNX Runtime is imported with its kernel, on first use."""

from __future__ import annotations

from importlib.util import find_spec

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.extras import installing
from lstmcore.hookspecs import BackendInfo, hookimpl


def unavailable() -> str | None:
    """Return why the backend cannot run here, or None."""
    for module, name in (("onnxruntime", "ONNX Runtime"), ("onnx", "ONNX, which writes its models,")):
        if find_spec(module) is None:
            return f"{name} is not installed; install it with: {installing('onnxruntime')}"
    return None


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    return BackendInfo(
        "onnxruntime", __version__, "ONNX Runtime's LSTM operator, on the processor; inference only", unavailable
    )


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_onnxruntime.kernel import OnnxRuntimeBackend

    return OnnxRuntimeBackend()
