"""The GPU's side of the script for a GPU, run with PyTorch on the processor and NumPy in the device of CuPy.

What stands in for the device is as little as can be: where tensors live, events, and CuPy's memory. All the rest is
the code that runs on a GPU: data through DLPack, PyTorch's LSTM as peer and as the truth, errors, precisions.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lstmcore.registry import get_backend
from lstmcore_conformance.bench import cuda
from lstmcore_conformance.bench.classifiers import Arrays
from lstmcore_conformance.bench.device_points import compare
from lstmcore_conformance.bench.device_run import DeviceRun
from lstmcore_conformance.bench.end_to_end import batches_of, start_of, train, trained
from lstmcore_conformance.bench.grids import STAND_IN, TrainingSize
from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.bench.results import Outcome
from lstmcore_conformance.bench.timed_device import draw
from lstmcore_conformance.bench.timing import Deadline

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
TorchClassifier: Any = import_module("lstmcore_conformance.bench.torch_classifier").TorchClassifier


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
def device(monkeypatch: pytest.MonkeyPatch) -> cuda.CUDA:
    """Return the device, with the processor in its place."""
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
    monkeypatch.setattr(cuda.CUDA, "_with_graphs", lambda self, own: None)
    found = cuda.CUDA()
    found.grid = STAND_IN
    return found


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_both_sides_are_right_and_timed(device: cuda.CUDA, precision: str, mode: Any) -> None:
    job = Job(mode, Point(70, 3, 6, 6), precision)
    data = draw(job)
    found = compare(device, job, data, device.truth(job, data), np.random.default_rng(0))
    for side in (found.ours, found.peer):
        assert side.outcome in (Outcome.MEASURED, Outcome.NOISY), side
    assert found.ours.share is not None
    assert found.ours.share <= 1
    assert "TF32 off" in found.peer.how if precision == "float32" else "TF32 on" in found.peer.how


def test_the_truth_is_the_references(device: cuda.CUDA) -> None:
    from lstmcore_conformance.bench.timed_device import StandIn

    job = Job("training", Point(9, 3, 6, 6))
    data = draw(job)
    truth, other = device.truth(job, data), StandIn().truth(job, data)
    assert set(truth) == set(other)
    for name, want in other.items():
        np.testing.assert_allclose(truth[name].numpy(), want, rtol=0, atol=1e-13 * np.abs(want).max(), err_msg=name)


def test_bfloat16_goes_through_dlpack_by_its_bits(device: cuda.CUDA) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    job = Job("training", Point(9, 3, 6, 6), "bfloat16")
    given = draw(job)
    array = device.to_device(given.x, "bfloat16")
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.astype(np.float32), given.x)
    assert device.error(array, torch.from_numpy(given.x).double()) == 0.0
    peer = device.bind_peer(job, given).outputs()
    assert peer["y"].dtype == torch.bfloat16
    assert 0 < device.error(peer["y"], device.truth(job, given)["y"]) < 0.1


def test_inputs_are_shared_and_never_written_to(device: cuda.CUDA) -> None:
    job = Job("training", Point(9, 3, 6, 6))
    given = draw(job)
    before = given.x.copy()
    for one in (job, Job("inference", job.point)):
        device.bind_peer(one, given).outputs()
        device.bind(one, given).outputs()
    np.testing.assert_array_equal(given.x, before)
    assert device._large
    device.forget(given)
    assert not device._large


def test_a_device_that_is_lost_is_told(device: cuda.CUDA, monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize() -> None:
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    assert device.lost() is None
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert device.lost() == "the device is lost: RuntimeError: CUDA error: an illegal memory access"


def test_a_run_on_it(device: cuda.CUDA, tmp_path: Any) -> None:
    device_run = DeviceRun(device, "cuda", tmp_path, lambda text: None)
    values = device_run.run(["variants", "benchmark"], 3600.0, 1, None)
    assert values["device"]["errors"] == []
    assert len(values["device"]["points"]) == len(STAND_IN.all())
    assert values["machine"]["capability"] == "9.0"
    assert device_run.good
    device_run._benchmark(Deadline(-1))
    assert len(device_run.not_reached) == len(STAND_IN.all())


def peer_on_processor(device: cuda.CUDA) -> None:
    """Let PyTorch's classifier be on the processor."""
    device.peer_classifier = lambda precision, start, arrays: TorchClassifier(precision, start, arrays, "cpu")  # type: ignore[method-assign]


@pytest.mark.parametrize("size", STAND_IN.training, ids=lambda size: size.name)
@pytest.mark.parametrize("arrays", ["host", "device"])
def test_pytorch_trains_as_ours_does(device: cuda.CUDA, arrays: Arrays, size: TrainingSize) -> None:
    """From the same parameters by the same steps, with and without lengths that differ."""
    peer_on_processor(device)
    own, peer = (train(device, "float32", arrays, size, peer=peer) for peer in (False, True))
    assert own is not None
    assert peer is not None
    assert (own.peer, peer.peer, peer.data) == ("", "PyTorch", size.name)
    assert own.losses[-1] < own.losses[0]
    np.testing.assert_allclose(peer.losses, own.losses, rtol=1e-5)


def test_all_sides_of_a_training_agree(device: cuda.CUDA) -> None:
    peer_on_processor(device)
    runs = list(trained(device))
    sides = [(run.data, run.peer, run.arrays) for run in runs]
    names = [size.name for size in STAND_IN.training]
    assert sides == [
        (name, peer, arrays) for name in names for peer in ("", "PyTorch") for arrays in ("host", "device")
    ]


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("float32", False)])
def test_tf32_is_allowed_where_ours_has_it(precision: str, allowed: bool) -> None:
    size = STAND_IN.training[0]
    batches = batches_of(size)
    model = TorchClassifier(precision, start_of(size, batches), "device", "cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not allowed
    model.learn(model.take(batches)[0])
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True  # as PyTorch has them
