"""The GPU's side of the script for a GPU, run with PyTorch on the processor and NumPy in the place of CuPy.

What stands in for the device is as little as can be: where tensors live, events, and CuPy's memory. All the rest is
the code that runs on a GPU: data through DLPack, PyTorch's LSTM as peer and as the truth, errors, precisions.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lstmcore.registry import get_backend
from lstmcore_conformance.gpu import cuda
from lstmcore_conformance.gpu.places import draw
from lstmcore_conformance.gpu.plan import STAND_IN, Deadline, Point
from lstmcore_conformance.gpu.session import Session
from lstmcore_conformance.gpu.timing import compare

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


class Event:
    """The host's clock as an event."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self, stream: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> cuda.CUDA:
    """The place, its device replaced."""
    fake: Any = ModuleType("cupy")
    fake.__version__ = "0"
    fake.from_dlpack = np.from_dlpack
    properties = {"name": b"none", "major": 9, "minor": 0, "multiProcessorCount": 4, "totalGlobalMem": 1}
    runtime = SimpleNamespace(
        getDeviceProperties=lambda index: properties | {"l2CacheSize": 1},
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
    )
    stream = SimpleNamespace(use=lambda: None)
    fake.cuda = SimpleNamespace(runtime=runtime, ExternalStream=lambda pointer: stream)
    fake.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    backend: Any = ModuleType("lstmcore_cupy")
    backend.lstmcore_backend = lambda: get_backend("numpy")
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "lstmcore_cupy", backend)
    for name, value in {
        "init": lambda: None,
        "Stream": lambda: SimpleNamespace(cuda_stream=0),
        "set_stream": lambda stream: None,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    lstm = torch.nn.LSTM
    monkeypatch.setattr(torch.nn, "LSTM", lambda *sizes, device, **more: lstm(*sizes, **more))
    monkeypatch.setattr(cuda, "LARGE", 50)
    monkeypatch.setattr(cuda.CUDA, "_backends", lambda self, own: (own, {}))
    found = cuda.CUDA()
    found.grid = STAND_IN
    return found


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_both_sides_are_right_and_timed(place: cuda.CUDA, precision: str, mode: Any) -> None:
    point = Point(precision, mode, 70, 3, 6)
    given = draw(point)
    found = compare(place, STAND_IN, point, given, place.truth(given), np.random.default_rng(0))
    for side in (found.ours, found.peer):
        assert side.outcome in ("measured", "noisy"), side
    assert found.ours.share is not None
    assert found.ours.share <= 1
    assert "TF32 off" in found.peer.how if precision == "float32" else "TF32 on" in found.peer.how


def test_the_truth_is_the_references(place: cuda.CUDA) -> None:
    from lstmcore_conformance.gpu.places import StandIn

    given = draw(Point("float32", "training", 9, 3, 6))
    truth, other = place.truth(given), StandIn().truth(given)
    assert set(truth) == set(other)
    for name, want in other.items():
        np.testing.assert_allclose(truth[name].numpy(), want, rtol=0, atol=1e-13 * np.abs(want).max(), err_msg=name)


def test_bfloat16_goes_through_dlpack_by_its_bits(place: cuda.CUDA) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    given = draw(Point("bfloat16", "training", 9, 3, 6))
    array = place.to_place(given.x, "bfloat16")
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.astype(np.float32), given.x)
    assert place.error(array, torch.from_numpy(given.x).double()) == 0.0
    peer = place.peer(given, "bfloat16", "training").outputs()
    assert peer["y"].dtype == torch.bfloat16
    assert 0 < place.error(peer["y"], place.truth(given)["y"]) < 0.1


def test_inputs_are_shared_and_never_written_to(place: cuda.CUDA) -> None:
    given = draw(Point("float32", "training", 9, 3, 6))
    before = given.x.copy()
    for mode in ("training", "inference"):
        place.peer(given, "float32", mode).outputs()  # type: ignore[arg-type]  # a literal in a loop
        place.ours(given, "float32", mode).outputs()  # type: ignore[arg-type]  # as above
    np.testing.assert_array_equal(given.x, before)
    assert place._large
    place.forget(given)
    assert not place._large


def test_a_device_that_is_lost_is_told(place: cuda.CUDA, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    assert place.lost() is None
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert place.lost() == "the device is lost: RuntimeError: CUDA error: an illegal memory access"


def test_a_session_of_it(place: cuda.CUDA, tmp_path: Any) -> None:
    session = Session(place, "cuda", tmp_path, lambda text: None)
    values = session.run(["variants", "benchmark"], 3600.0, 1, None)
    assert values["errors"] == []
    assert len(values["points"]) == len(STAND_IN.all())
    assert values["facts"]["capability"] == "9.0"
    assert session.good
    session._benchmark(Deadline(-1))
    assert len(session.not_reached) == len(STAND_IN.all())
