"""An NVIDIA GPU: CuPy for ours, PyTorch (cuDNN) as the peer, on one stream, timed by the device's own events."""

from __future__ import annotations

import ctypes
import gc
import importlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.backend import Array, Backend, State
from lstmcore_conformance.gpu import micro
from lstmcore_conformance.gpu.places import Given, Named, Place, Ready
from lstmcore_conformance.gpu.plan import GPU, Mode

#: What PyTorch is asked for in each precision; its 16-bit LSTMs need TF32 allowed for their fast path.
_DTYPES: Final = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16", "float16": "float16"}

#: Numbers of an array that is kept on the device between the calls that take it.
LARGE: Final = 2**20


def missing() -> str | None:
    """Why there is no GPU that the run could use, or None."""
    found: dict[str, Any] = {}
    for name, package in (("cupy", "CuPy"), ("torch", "PyTorch")):
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            return f"{package} cannot be imported: {error}"
    cupy, torch = found["cupy"], found["torch"]
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no usable NVIDIA GPU: {error}"
    if not count:
        return "CuPy finds no NVIDIA GPU"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no usable NVIDIA GPU"
    try:
        info = importlib.import_module("lstmcore_cupy").lstmcore_backend_info()
    except (ImportError, AttributeError) as error:
        return f"the backend cupy cannot be imported: {error}"
    reason = None if info.unavailable is None else info.unavailable()
    return None if reason is None else f"the backend cupy is not available: {reason}"


class CUDA(Place):
    """The first device."""

    name = "one NVIDIA GPU"
    peer_name = "torch.nn.LSTM (cuDNN)"

    def __init__(self) -> None:
        # Neither has types for what is used here.
        self.cupy: Any = importlib.import_module("cupy")
        self.torch: Any = importlib.import_module("torch")
        self.grid = GPU
        self.backend, self.paths = self._backends(importlib.import_module("lstmcore_cupy").lstmcore_backend())
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
        """The backend that goes step by step whatever its table says, and the persistent kernels."""
        make = type(own)
        return make(own.device, persistent=False), {"persistent": make(own.device, persistent=True)}

    def lost(self) -> str | None:
        try:
            self.torch.cuda.synchronize()  # of the context that CuPy uses too
        except RuntimeError as error:
            return f"the device is lost: {type(error).__name__}: {' '.join(str(error).split())}"
        return None

    def facts(self) -> dict[str, Any]:
        runtime = self.cupy.cuda.runtime
        found, torch = runtime.getDeviceProperties(0), self.torch
        return {
            "device": found["name"].decode(),
            "capability": f"{found['major']}.{found['minor']}",
            "multiprocessors": found["multiProcessorCount"],
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
        """A tensor on the device. What is large goes there once, and stays until it is forgotten."""
        if id(array) in self._large:
            tensor = self._large[id(array)][1]
        else:
            tensor = self.torch.from_numpy(np.ascontiguousarray(array)).cuda()
            if array.size > LARGE:
                self._large[id(array)] = array, tensor
        return tensor.to(getattr(self.torch, dtype)).detach()

    def to_place(self, array: npt.NDArray[np.float32], dtype: str) -> Array:
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
        found = self._as_tensor(got)
        if found.shape != want.shape:
            return float("inf")
        if not want.numel():
            return 0.0
        largest = float((found.double() - want).abs().max())
        return float("inf") if np.isnan(largest) else largest

    def scale(self, want: Any) -> float:
        return float(want.abs().max()) if want.numel() else 0.0

    def forget(self, given: Given | None = None) -> None:
        if given is not None:
            self._large.clear()
        gc.collect()
        self.torch.cuda.empty_cache()
        self.cupy.get_default_memory_pool().free_all_blocks()

    def refusal(self, precision: str) -> str | None:
        if precision == "bfloat16":
            try:
                importlib.import_module("ml_dtypes")
            except ImportError:
                return "bfloat16: CuPy needs the package ml_dtypes for it, which is not installed"
        return super().refusal(precision)

    # The peer ---------------------------------------------------------------------------------------------------------

    def peer(self, given: Given, precision: str, mode: Mode) -> Ready:
        return self._lstm(given, _DTYPES[precision], mode, tf32=precision != "float32")

    def truth(self, given: Given) -> Named:
        found = self._lstm(given, "float64", "training", tf32=False).outputs()
        return {name: array.detach() for name, array in found.items()}

    def _lstm(self, given: Given, dtype: str, mode: Mode, *, tf32: bool) -> Ready:
        torch = self.torch
        config, kind = given.config, getattr(torch, dtype)
        lstm = torch.nn.LSTM(config.input_size, config.hidden_size, dtype=kind, device="cuda")
        names = {"weight_x": "weight_ih_l0", "weight_h": "weight_hh_l0", "bias": "bias_ih_l0"}
        with torch.no_grad():
            for ours, theirs in names.items():
                getattr(lstm, theirs).copy_(self._tensor(given.parameters[ours], dtype))
            # Its second bias, which it adds to the first, is 0 and has no gradient.
            torch.nn.init.zeros_(lstm.bias_hh_l0).requires_grad_(False)
        lstm.flatten_parameters()
        x, dy = self._tensor(given.x, dtype), self._tensor(given.dy, dtype)

        def pair(state: State) -> tuple[Any, Any]:
            return self._tensor(state.h, dtype)[None], self._tensor(state.c, dtype)[None]

        state, dstate = pair(given.state), pair(given.dstate)

        def allowed() -> None:
            torch.backends.cudnn.allow_tf32 = tf32
            torch.backends.cuda.matmul.allow_tf32 = tf32

        def inference() -> Any:
            allowed()
            with torch.inference_mode():
                return lstm(x, state)

        inputs: list[Any] = []
        if mode == "training":
            x.requires_grad_()
            inputs = [x, *(part.requires_grad_() for part in state), *(getattr(lstm, name) for name in names.values())]

        def training() -> Any:
            allowed()
            y, last = lstm(x, state)
            return (y, last), torch.autograd.grad((y, *last), inputs, (dy, *dstate))

        def outputs() -> Named:
            if mode == "inference":
                y, (h, c) = inference()
                return {"y": y, "h_n": h[0], "c_n": c[0]}
            (y, (h, c)), (dx, dh, dc, *rest) = training()
            named = {"y": y, "h_n": h[0], "c_n": c[0], "dx": dx, "dh0": dh[0], "dc0": dc[0]}
            return named | {f"d_{name}": array for name, array in zip(names, rest, strict=True)}

        how = "torch.nn.LSTM" + (", autograd.grad" if mode == "training" else ", inference_mode")
        return Ready(inference if mode == "inference" else training, outputs, f"{how}, TF32 {'on' if tf32 else 'off'}")

    # Time -------------------------------------------------------------------------------------------------------------

    def seconds(self, call: Callable[[], Any]) -> float:
        """Between two events around the call; what the host does meanwhile counts where the device waits for it."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda.synchronize()
        start.record(self.stream)
        call()
        end.record(self.stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def micro(self) -> dict[str, float | str]:
        return micro.measured(self)


def _driver() -> str | None:
    """The driver's version as its own library tells it."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(80)
    if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, 80):
        return None
    return text.value.decode()
