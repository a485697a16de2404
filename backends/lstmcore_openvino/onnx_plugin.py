"""The plug-in of the backend ``openvino-onnx``. OpenVINO and ONNX are imported with its kernel, on first use."""

from __future__ import annotations

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.hookspecs import BackendInfo, hookimpl
from lstmcore_openvino import missing_package


def _unavailable() -> str | None:
    """Return why the backend cannot run here, or None."""
    return missing_package(openvino="OpenVINO", onnx="ONNX, which writes its models,")


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version and summary of the backend."""
    summary = "OpenVINO's reading of ONNX's LSTM, as it is; some results are wrong, see docs/peers-openvino.md"
    return BackendInfo("openvino-onnx", __version__, summary, _unavailable)


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend."""
    from lstmcore_openvino.onnx_kernel import OpenVinoOnnxBackend

    return OpenVinoOnnxBackend()
