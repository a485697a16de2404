"""The plug-in of the backend ``cupy``. Its kernel is imported on first use."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from lstmcore import __version__
from lstmcore.backend import Backend
from lstmcore.extras import installing
from lstmcore.hookspecs import BackendInfo, hookimpl

#: Compute capability of the oldest GPUs that the kernels compile for. Their tensor cores have TF32.
OLDEST: Final = 80


def _unavailable() -> str | None:
    """Return why the backend cannot run here, or None."""
    spec = find_spec("cupy")
    if spec is None or spec.origin is None:  # without an origin it is only a folder of that name
        return f"CuPy is not installed; install it with: {installing('cupy')}"
    if (reason := missing_gpu()) is not None:
        return reason
    import cupy

    architecture = int(cupy.cuda.Device(0).compute_capability)
    return None if architecture >= OLDEST else f"GPU 0 is of sm_{architecture}; sm_{OLDEST} or newer is needed"


def missing_gpu() -> str | None:
    """Return why CuPy, which is installed, can use no GPU, or None."""
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no usable NVIDIA GPU: {error}"
    return None if count else "CuPy finds no NVIDIA GPU"


@hookimpl
def lstmcore_backend_info() -> BackendInfo:
    """Return name, version, summary and priority of the backend."""
    summary = "CUDA kernels made for this LSTM, on an NVIDIA GPU"
    return BackendInfo("cupy", __version__, summary, unavailable=_unavailable, priority=300)


@hookimpl
def lstmcore_backend() -> Backend:
    """Return the backend on GPU 0."""
    from lstmcore_cupy.cuda_device import cuda_device
    from lstmcore_cupy.kernel import CupyBackend

    return CupyBackend(cuda_device(0))
