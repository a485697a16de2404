"""An NVIDIA GPU: CuPy for ours, PyTorch (cuDNN) as the peer, on one stream, timed by the device's own events."""

from __future__ import annotations

import ctypes
import gc
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Array, Backend
from lstmcore.registry import get_backend
from lstmcore_conformance.bench import micro
from lstmcore_conformance.bench.classifiers import Arrays, Classifier, Start
from lstmcore_conformance.bench.grids import GPU
from lstmcore_conformance.bench.jobs import Job
from lstmcore_conformance.bench.runtimes import Prepared
from lstmcore_conformance.bench.timed_device import Device, Named
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.cases.case import Data

#: What PyTorch is asked for in each precision; its 16-bit LSTMs need TF32 allowed for their fast path.
_DTYPES: Final = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16", "float16": "float16"}

#: Numbers of an array that is kept on the device between the calls that take it.
LARGE: Final = 2**20


def missing() -> str | None:
    """Return why there is no GPU that the run could use, or None."""
    found: dict[str, Any] = {}
    for name, package in (("cupy", "CuPy"), ("torch", "PyTorch")):
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            return f"{package} cannot be imported: {error}"
    try:
        backend, torch = importlib.import_module("lstmcore_cupy"), found["torch"]
        info, no_gpu = backend.lstmcore_backend_info(), backend.missing_gpu()
    except (ImportError, AttributeError) as error:
        return f"the backend cupy cannot be imported: {error}"
    if no_gpu is not None:
        return str(no_gpu)
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no usable NVIDIA GPU"
    reason = None if info.unavailable is None else info.unavailable()
    return None if reason is None else f"the backend cupy is not available: {reason}"


class CUDA(Device):
    """The first device."""

    name = "one NVIDIA GPU"
    peer = Candidate("peer", "torch", 1)

    def __init__(self) -> None:
        # Neither has types for what is used here.
        self.cupy: Any = importlib.import_module("cupy")
        self.torch: Any = importlib.import_module("torch")
        self.grid = GPU
        own = importlib.import_module("lstmcore_cupy").lstmcore_backend()
        self.backend, self.paths = self._backends(own)
        self.recorded = self._with_graphs(own)
        #: The arrays by their id, which is theirs for as long as they are kept here.
        self._large: dict[int, tuple[npt.NDArray[np.float32], Any]] = {}
        torch = self.torch
        torch.cuda.init()
        # One stream for both sides: neither waits for the other, and events of one time the work of either.
        self.stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        self.cupy.cuda.ExternalStream(self.stream.cuda_stream).use()

    @staticmethod
    def _backends(own: Any) -> tuple[Backend, dict[str, Backend]]:
        """Return the backend that goes step by step whatever its table says, and the persistent kernels."""
        make = type(own)
        return make(own.device, persistent=False), {"persistent": make(own.device, persistent=True)}

    @staticmethod
    def _with_graphs(own: Any) -> Backend:
        """Return the backend that goes step by step and records its loops over time as graphs."""
        make = type(own)
        found: Backend = make(own.device, persistent=False, graphs=True)
        return found

    def lost(self) -> str | None:
        """Return what the device's last error is, or None."""
        try:
            self.torch.cuda.synchronize()  # of the context that CuPy uses too
        except RuntimeError as error:
            return f"the device is lost: {type(error).__name__}: {' '.join(str(error).split())}"
        return None

    def facts(self) -> dict[str, Any]:
        """Return the device, its sizes, the driver and the versions."""
        runtime = self.cupy.cuda.runtime
        found, torch = runtime.getDeviceProperties(0), self.torch
        return {
            "processor": found["name"].decode(),
            "cores": found["multiProcessorCount"],
            "capability": f"{found['major']}.{found['minor']}",
            "memory_bytes": found["totalGlobalMem"],
            "l2_bytes": found["l2CacheSize"],
            "clock_khz": found.get("clockRate"),
            "driver": _driver() or str(runtime.driverGetVersion()),
            "cuda": str(runtime.runtimeGetVersion()),
            "versions": {
                "cupy": self.cupy.__version__,
                "numpy": np.__version__,
                "torch": torch.__version__,
                "cudnn": str(torch.backends.cudnn.version()),
            },
        }

    # Arrays -----------------------------------------------------------------------------------------------------------

    def _tensor(self, array: npt.NDArray[np.float32], dtype: str) -> Any:
        """Return a tensor on the device. What is large goes there once, and stays until it is forgotten."""
        if id(array) in self._large:
            tensor = self._large[id(array)][1]
        else:
            tensor = self.torch.from_numpy(np.require(array, requirements=("C", "W"))).cuda()
            if array.size > LARGE:
                self._large[id(array)] = array, tensor
        return tensor.to(getattr(self.torch, dtype)).detach()

    def to_device(self, array: npt.NDArray[np.float32], dtype: str) -> Array:
        """Return a CuPy array that shares the memory of a tensor."""
        tensor = self._tensor(array, dtype)
        if dtype == "bfloat16":  # the bits through DLPack: CuPy knows the type through ml_dtypes alone
            import ml_dtypes  # type: ignore[import-not-found,unused-ignore]  # optional

            return self.cupy.from_dlpack(tensor.view(self.torch.int16)).view(ml_dtypes.bfloat16)
        return self.cupy.from_dlpack(tensor)

    def _as_tensor(self, array: Any) -> Any:
        if isinstance(array, self.torch.Tensor):
            return array.detach()
        if str(array.dtype) == "bfloat16":
            return self.torch.from_dlpack(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_dlpack(array)

    def error(self, got: Any, want: Any) -> float:
        """Return the largest difference, found on the device; infinite if one has a NaN or another shape."""
        found = self._as_tensor(got)
        if found.shape != want.shape:
            return float("inf")
        if not want.numel():
            return 0.0
        largest = float((found.double() - want).abs().max())
        return float("inf") if np.isnan(largest) else largest

    def scale(self, want: Any) -> float:
        """Return the largest magnitude."""
        return float(want.abs().max()) if want.numel() else 0.0

    def forget(self, data: Data | None = None) -> None:
        """Give memory back that nobody uses; with `data`, also that of its copies on the device."""
        if data is not None:
            self._large.clear()
        gc.collect()
        self.torch.cuda.empty_cache()
        self.cupy.get_default_memory_pool().free_all_blocks()

    def refusal(self, precision: str) -> str | None:
        """Return why the backend is not run in that precision, or None."""
        if precision == "bfloat16":
            try:
                importlib.import_module("ml_dtypes")
            except ImportError:
                return "bfloat16: CuPy needs the package ml_dtypes for it, which is not installed"
        return super().refusal(precision)

    # The peer ---------------------------------------------------------------------------------------------------------

    def bind_peer(self, job: Job, data: Data) -> Prepared:
        """Return the call of PyTorch's LSTM, which cuDNN does."""
        return self._lstm(job, data, _DTYPES[job.precision], tf32=job.precision != "float32")

    def truth(self, job: Job, data: Data) -> Named:
        """Return what PyTorch's LSTM makes in float64."""
        return self._lstm(replace(job, mode="training"), data, "float64", tf32=False).outputs()

    def _lstm(self, job: Job, data: Data, dtype: str, *, tf32: bool) -> Prepared:
        torch = self.torch
        pytorch: Any = importlib.import_module("lstmcore_conformance.bench.runtimes.pytorch")

        def put(array: Any) -> Any:
            return self._tensor(array, dtype)

        def take(tensor: Any) -> Any:
            return tensor.detach()

        made = pytorch.bind(job, data, pytorch.Tensors(put, take, take, getattr(torch, dtype), "cuda"))

        def allowing(call: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                torch.backends.cudnn.allow_tf32 = tf32
                torch.backends.cuda.matmul.allow_tf32 = tf32
                return call()

            return run

        how = f"{made.how}, TF32 {'on' if tf32 else 'off'}"
        return Prepared(allowing(made.call), allowing(made.outputs), how, made.around)

    def peer_classifier(self, precision: str, start: Start, arrays: Arrays) -> Classifier:
        """Return PyTorch's."""
        found: Any = importlib.import_module("lstmcore_conformance.bench.torch_classifier")  # it imports PyTorch
        classifier: Classifier = found.TorchClassifier(precision, start, arrays, "cuda")
        return classifier

    # Time -------------------------------------------------------------------------------------------------------------

    def seconds(self, call: Callable[[], Any]) -> float:
        """Return the time between two events; what the host does counts where the device waits for it."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda.synchronize()
        start.record(self.stream)
        call()
        end.record(self.stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def micro(self) -> dict[str, float | str]:
        """Return what launches, barriers, broadcasts and products cost, in microseconds."""
        return micro.measured(self)

    def tensors(self) -> dict[str, float | str]:
        """Return the largest difference of `lstmcore.torch.LSTM` by precision, as a share of what it may be."""
        from lstmcore_conformance.bench import torch_tensors  # it imports PyTorch

        try:
            get_backend(self.backend.name)
        except ValueError as error:  # an nn.Module names its backend, which has to be installed
            return {"tensors": f"not tried: {error}"}
        return dict(torch_tensors.check("cuda", self.backend.name))


def _driver() -> str | None:
    """Return the driver's version as its own library tells it."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(80)
    if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, 80):
        return None
    return text.value.decode()
