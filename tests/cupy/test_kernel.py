"""What is particular to the kernels' side: where calls run, how sums are taken, what receipts say."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from emulation import EmulatedDevice

from lstmcore.config import LSTMConfig
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.gpu.cuda import CUDA
from lstmcore_cupy.calls import Programs
from lstmcore_cupy.device import Device
from lstmcore_cupy.kernel import CupyBackend

pytestmark = [pytest.mark.cupy, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

CONFIG = LSTMConfig(input_size=2, hidden_size=3)


class _Marked(np.ndarray):  # type: ignore[type-arg]  # NumPy's stubs want a shape
    """An array of another device."""


class _Two(EmulatedDevice):
    """A device beside which there is another one, where marked arrays are."""

    def __init__(self, name: str, other: Device | None = None) -> None:
        super().__init__()
        self.name, self.other = name, other

    def home(self, array: Any) -> Device:
        return self.other if self.other is not None and isinstance(array, _Marked) else self


def _parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype("float32") for name, shape in CONFIG.parameter_shapes.items()}


def test_weights_are_where_their_parameters_are_and_x_has_to_be_there() -> None:
    other = _Two("emulated:1")
    kernel = CupyBackend(_Two("emulated:0", other)).compile(CONFIG, "float32")
    x = np.ones((2, 1, 2), "float32")
    here = kernel.pack(_parameters())
    there = kernel.pack({name: array.view(_Marked) for name, array in _parameters().items()})
    assert (here.programs.device.name, there.programs.device.name) == ("emulated:0", "emulated:1")
    kernel.forward(here, x)
    with pytest.raises(
        ValueError, match="x: expected an array on emulated:0, where the weights are; got one on emulated:1"
    ):
        kernel.forward(here, x.view(_Marked))


def test_receipts_name_the_path_and_strict_takes_it() -> None:
    backend = CupyBackend(EmulatedDevice())
    found = backend.compile(CONFIG, "bfloat16").receipt(4, 2)
    assert (found.backend, found.device, found.precision) == ("cupy", "emulated", "bfloat16")
    assert found.path == "a product and a kernel a step"
    assert found.fallback is None


def test_the_script_for_a_gpu_also_runs_the_persistent_kernels() -> None:
    place = CUDA.__new__(CUDA)
    place.backend = CupyBackend(EmulatedDevice())
    place.paths = place._paths()
    chosen = place.on("persistent").backend
    assert isinstance(chosen, CupyBackend)
    assert chosen.persistent
    assert chosen.device is place.backend.device
    paths = [one.compile(CONFIG, "float32").receipt(4, 2).path for one in (place.backend, chosen)]
    assert paths == ["a product and a kernel a step", "all steps in one launch"]


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 5000])
def test_sums_are_taken_in_parts(rows: int) -> None:
    programs = Programs(EmulatedDevice(), CONFIG, PRECISIONS["float32"])
    rng = np.random.default_rng(rows)
    a, b = (1 + rng.random((rows, 2, 5), dtype=np.float32) for _ in range(2))
    wide = a.astype(np.float64)
    for found, want in (
        (programs.sums(a, width=5), wide),
        (programs.sums(a, b, width=5), wide * b),
        (programs.sums(a, b, width=5, b_backwards=True), wide * b[::-1]),
    ):
        np.testing.assert_allclose(found, want.sum(axis=(0, 1)), rtol=64 * 2.0**-24)
    ends = np.array([rows, rows // 2])
    found = programs.sums(a, width=3, ends=ends)
    np.testing.assert_allclose(
        found, sum(wide[:end, n, :3].sum(axis=0) for n, end in enumerate(ends)), rtol=64 * 2.0**-24
    )
