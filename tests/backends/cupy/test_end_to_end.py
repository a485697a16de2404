"""Training from end to end, as the script for a GPU measures it, on the stand-in."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from emulation.gpu import Gpu, GpuArray
from lstmcore_conformance.bench import classifiers, end_to_end
from lstmcore_conformance.bench.classifiers import Arrays
from lstmcore_conformance.bench.end_to_end import Trained, train, trained
from lstmcore_conformance.bench.grids import STAND_IN, TrainingSize
from lstmcore_conformance.bench.timed_device import StandIn
from lstmcore_cupy.kernel import CupyBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SIZE = TrainingSize(8, 4, 3, 3)
DRAWN = TrainingSize(18, 9, 6, 3, steps=5)


class _Emulated(StandIn):
    """The stand-in for a GPU, on both paths. The host waits at the end of each measurement."""

    def __init__(self) -> None:
        self.gpu = Gpu()
        super().__init__(CupyBackend(self.gpu, persistent=False))
        self.paths = {"persistent": CupyBackend(self.gpu, persistent=True)}
        self.grid = replace(STAND_IN, precisions=("float32",), training=(SIZE, DRAWN))

    def to_device(self, array: np.ndarray, dtype: str) -> Any:
        return self.gpu.array_of(array.astype(dtype))

    def seconds(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def test_it_trains_with_arrays_of_both_places() -> None:
    """On both paths, and by the peer, here the equations: of each size the same losses."""
    runs = list(trained(_Emulated()))
    sides = [(path, "") for path in ("", "persistent")] + [("", "reference")]
    assert [(run.data, run.precision, run.path, run.peer, run.arrays) for run in runs] == [
        (size.name, "float32", *side, arrays)
        for size in (SIZE, DRAWN)
        for side in sides
        for arrays in ("host", "device")
    ]
    for run in runs:
        assert run.steps == 2
        assert len(run.losses) == 3
        assert run.losses[-1] < run.losses[0]
        assert run.step_s > 0
        same = next(one for one in runs if one.data == run.data)
        np.testing.assert_allclose(run.losses, same.losses, rtol=1e-4)


@pytest.mark.parametrize("arrays", ["host", "device"])
def test_a_step_of_the_device_copies_nothing_back(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lengths go there, each step; the loss comes back, each epoch. A step of the parameters is one kernel."""
    device, read = _Emulated(), classifiers.to_host
    counted: list[tuple[int, int, int]] = []
    moved: list[int] = []

    def to_host(array: Any) -> np.ndarray:
        counts = device.gpu.counts
        counted.append((counts.copies_in, counts.copies_out, counts.waits))
        moved.append(counts.launches.count("sgd"))
        assert isinstance(array, GpuArray) == (arrays == "device")
        found: np.ndarray = read(array)
        counts.clear()
        return found

    monkeypatch.setattr(classifiers, "to_host", to_host)
    train(device, "float32", arrays, SIZE)
    steps = 2
    assert moved == [steps if arrays == "device" else 0] * SIZE.epochs
    if arrays == "device":
        assert counted[1:] == [(steps, 0, 0)] * (SIZE.epochs - 1)
    else:
        assert all(copies_out > 10 * steps for _, copies_out, _ in counted)


def test_losses_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(device: Any, precision: str, arrays: Arrays, size: TrainingSize, *, peer: bool = False) -> Trained:
        last = 1.5 if arrays == "host" else 1.6
        return Trained(precision, "", arrays, 2, 1e-3, (2.0, last))

    monkeypatch.setattr(end_to_end, "train", wrong)
    told = r"float32, arrays of the device: a loss of 1\.6, and of 1\.5 in: float32, arrays of the host"
    with pytest.raises(ValueError, match=told):
        list(trained(_Emulated()))
    monkeypatch.setattr(end_to_end, "train", lambda *given, **more: replace(wrong(*given), losses=(2.0, 2.0)))
    with pytest.raises(ValueError, match="float32, arrays of the host: the loss does not fall"):
        list(trained(_Emulated()))
