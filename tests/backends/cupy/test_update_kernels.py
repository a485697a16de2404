"""Steps of optimizers and clipping in kernels, on the stand-in: the bits of the host, and how many launches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emulation import EmulatedDevice, Order
from emulation.gpu import Gpu, GpuArray
from lstmcore.training import SGD, Adam, AdamW, Optimizer, clip_by_global_norm, global_norm
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest
from lstmcore_conformance.suite.report import Outcome
from lstmcore_conformance.suite.runner import items, run_item
from lstmcore_cupy import program_source, tuning, updates
from lstmcore_cupy.kernel import CupyBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

GPU = Gpu()
BACKEND = CupyBackend(GPU)
SHAPES = {"w": (5, 3), "b": (5,), "large": (13, 100), "one": (), "none": (0, 4)}
RULES: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(0.1, weight_decay=0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: Adam(0.1),
    "adam with decay": lambda: Adam(0.1, beta1=0.8, eps=1e-3, weight_decay=0.1),
    "adamw": lambda: AdamW(0.1, weight_decay=0.3),
}


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two blocks share a large array, so that a thread has several of its numbers."""
    monkeypatch.setattr(tuning, "ARRAY_BLOCKS", 2)


def random_arrays(dtype: str, seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Any]:
    """Return drawn numbers, of which some are -0.0: the first moment of such a gradient is it, and not 0.0."""
    random = np.random.default_rng(seed)
    found = {name: np.asarray(random.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
    found[next(iter(found))][:1] *= np.array(-0.0, dtype)
    return found


def on_gpu(arrays: Mapping[str, Any], gpu: Gpu = GPU) -> dict[str, GpuArray]:
    return {name: gpu.array_of(value) for name, value in arrays.items()}


def assert_bits(found: Mapping[str, GpuArray], wanted: Mapping[str, Any]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        own = found[name].get()
        np.testing.assert_array_equal(own, value, strict=True)
        assert own.tobytes() == value.tobytes(), name  # the signs of zeros


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_has_the_bits_of_the_host(rule: str, dtype: str) -> None:
    """Several steps with a schedule; the moments go to the host and into a new optimizer on the way."""
    host, device = RULES[rule](), RULES[rule]()
    device.use_backend(BACKEND)
    own = random_arrays(dtype, 0)
    moved: Mapping[str, Any] = on_gpu(own)
    for step in range(5):
        host.settings["lr"] = device.settings["lr"] = 0.1 / (1 + step)
        gradients = random_arrays(dtype, step + 1)
        before = {name: value.get() for name, value in moved.items()}
        given, moved = moved, device.step(moved, on_gpu(gradients))
        own = host.step(own, gradients)
        assert_bits(moved, own)
        assert_bits(given, before)
        assert_bits(device.state(), host.state())
        if step == 2:
            kept = on_gpu({name: value.get() for name, value in device.state().items()})
            device = RULES[rule]()
            device.use_backend(BACKEND)
            device.load_state(3, kept, moved)
    assert device.explain() == "one kernel of backend 'cupy'"


@pytest.mark.parametrize(("count", "launches"), [(1, 1), (30, 1), (updates._ARRAYS, 1), (updates._ARRAYS + 1, 2)])
def test_a_step_is_one_launch_and_clipping_two(count: int, launches: int) -> None:
    """A launch takes so many arrays; nothing is copied, and the host does not wait."""
    shapes = {f"p{index}": (index % 4, 3) for index in range(count)}
    parameters, gradients = (on_gpu(random_arrays("float32", seed, shapes)) for seed in (0, 1))
    rule = Adam()
    rule.use_backend(BACKEND)
    for _ in range(2):  # the second step arranges the moments that the first one has made
        rule.step(parameters, gradients)
    GPU.counts.clear()
    rule.step(parameters, gradients)
    assert GPU.counts.launches == ["adam"] * launches
    GPU.counts.clear()
    clip_by_global_norm(gradients, 1.0, backend=BACKEND)
    assert GPU.counts.launches == ["squares"] * launches + ["clip"] * launches
    GPU.counts.clear()
    global_norm(gradients, backend=BACKEND)
    assert GPU.counts.launches == ["squares"] * launches + ["root_of_squares"]
    counts = GPU.counts
    assert (counts.copies_in, counts.copies_out, counts.waits, counts.memsets) == (0, 0, 0, 0)


@pytest.mark.parametrize("count", [5, updates._ARRAYS + 7])
def test_many_arrays_keep_their_places(count: int) -> None:
    shapes = {f"p{index}": (index % 4, 3) for index in range(count)}
    parameters, gradients = (random_arrays("float32", seed, shapes) for seed in (0, 1))
    host, device = AdamW(0.1), AdamW(0.1)
    device.use_backend(BACKEND)
    assert_bits(device.step(on_gpu(parameters), on_gpu(gradients)), host.step(parameters, gradients))
    assert_bits(device.state(), host.state())
    norm = global_norm(gradients)
    found, told = clip_by_global_norm(on_gpu(gradients), norm / 3, backend=BACKEND)
    assert told.get() == pytest.approx(norm, rel=1e-14)  # type: ignore[attr-defined]
    for name, value in clip_by_global_norm(gradients, norm / 3)[0].items():
        np.testing.assert_array_max_ulp(found[name].get(), value, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_is_that_of_the_host(dtype: str) -> None:
    """The norm, and so the factor in float64, may differ by the order of its sum."""
    gradients = random_arrays(dtype, 3)
    norm = global_norm(gradients)
    device = on_gpu(gradients)
    assert global_norm(device, backend=BACKEND).get() == pytest.approx(norm, rel=1e-14)
    for bound in (0.5 * norm, 0.99 * norm):
        found, told = clip_by_global_norm(device, bound, backend=BACKEND)
        assert told.get() == pytest.approx(norm, rel=1e-14)  # type: ignore[attr-defined]
        for name, value in clip_by_global_norm(gradients, bound)[0].items():
            np.testing.assert_allclose(found[name].get(), value, rtol=1e-14 if dtype == "float64" else 2.0**-23)
            assert found[name].shape == value.shape
    assert_bits(clip_by_global_norm(device, 2 * norm, backend=BACKEND)[0], gradients)
    assert_bits(device, gradients)
    for wild in (np.inf, -np.inf, np.nan):
        wrong = gradients | {"b": gradients["b"] * wild}
        found, told = clip_by_global_norm(on_gpu(wrong), 1.0, backend=BACKEND)
        assert not np.isfinite(told.get())  # type: ignore[attr-defined]
        np.testing.assert_array_equal(found["w"].get(), gradients["w"])


def test_squares_that_float32_cannot_hold() -> None:
    """Sums are float64: float32 ends at 3e38, and loses what is below a part in 2^24."""
    huge = {"w": np.full(300, 1e30, np.float32)}
    assert global_norm(on_gpu(huge), backend=BACKEND).get() == pytest.approx(1e30 * 300**0.5, rel=1e-7)
    small = {"w": np.r_[np.float32(1), np.full(3000, 1e-4, np.float32)]}
    assert global_norm(on_gpu(small), backend=BACKEND).get() == pytest.approx(global_norm(small), rel=1e-14)


@pytest.mark.parametrize("order", ["descending", "mixed"])
def test_the_order_of_threads_changes_no_bit(order: Order) -> None:
    """A missing barrier would show: a block's sums, and the sum of all blocks that each one makes again."""
    gpu, gradients = Gpu(order=order), random_arrays("float32", 5)
    (own, norm), (other, told) = (
        clip_by_global_norm(on_gpu(gradients, device), 1.0, backend=CupyBackend(device)) for device in (GPU, gpu)
    )
    assert norm.get() == told.get()  # type: ignore[attr-defined]
    assert_bits(other, {name: value.get() for name, value in own.items()})


def test_arrays_that_are_not_in_order_are_copied() -> None:
    parameters, gradients = (random_arrays("float32", seed, {"w": (6, 8), "v": (3, 4)}) for seed in (0, 1))
    strided = {name: GPU.array_of(value.T.copy()).T for name, value in gradients.items()}
    halves = {name: GPU.array_of(np.repeat(value, 2, axis=1))[:, ::2] for name, value in parameters.items()}
    host, device = Adam(0.1), Adam(0.1)
    device.use_backend(BACKEND)
    assert_bits(device.step(halves, strided), host.step(parameters, gradients))
    assert global_norm(strided, backend=BACKEND).get() == pytest.approx(global_norm(gradients), rel=1e-14)


def test_other_dtypes_are_computed_by_operations() -> None:
    """The optimizer says so, and the results are those of the host."""
    for own, other, why in (
        ("float16", "float16", "the kernels compute in float32 and float64; not float16"),
        ("float64", "float32", "arrays of several dtypes, float32, float64"),
    ):
        parameters, gradients = random_arrays(own, 0), random_arrays(other, 1)
        host, device = SGD(0.1), SGD(0.1)
        device.use_backend(BACKEND)
        assert device.explain() == "no step yet"
        assert_bits(device.step(on_gpu(parameters), on_gpu(gradients)), host.step(parameters, gradients))
        assert device.explain() == f"operations of the arrays' library: {why}"


class Signs:
    """A mixin with a rule of its own."""

    def _update(self, xp: Any, value: Any, gradient: Any, moments: Any) -> None:
        value -= 0.5 * xp.sign(gradient)


class SignSGD(Signs, SGD):
    """A rule whose `_update` is that of the mixin."""


class Noted(SGD):
    """SGD with a setting that it does not use."""

    def __init__(self, lr: float) -> None:
        super().__init__(lr, momentum=0.9)
        self.settings["mine"] = 1.0


@pytest.mark.parametrize(("kind", "path"), [(SignSGD, "operations of the arrays' "), (Noted, "one kernel of backend")])
def test_rules_of_others_have_the_bits_of_the_host(kind: type[SGD], path: str) -> None:
    parameters, gradients = (random_arrays("float32", seed) for seed in (0, 1))
    host, device = kind(0.1), kind(0.1)
    device.use_backend(BACKEND)
    assert_bits(device.step(on_gpu(parameters), on_gpu(gradients)), host.step(parameters, gradients))
    assert device.explain().startswith(path)


def test_arrays_of_the_host_need_no_kernel() -> None:
    device, arrays = EmulatedDevice(), {"w": np.ones(3, np.float32)}
    rule = Adam()
    rule.use_backend(CupyBackend(device))
    rule.step(arrays, arrays)
    assert rule.explain() == "operations of the arrays' library: arrays of the host"
    assert not device._programs


def test_a_formula_that_is_not_written_is_refused() -> None:
    found = BACKEND.updates()
    assert found.refusal("lion", "float32") == "the kernels have sgd and adam; not lion"
    assert found.refusal("adam", "float64") is found.refusal(None, "float32") is None


def test_the_argument_is_one_that_every_gpu_takes() -> None:
    """Before CUDA 12.1 the arguments of a kernel have 4096 bytes; the number of arrays is that of the source."""
    assert f"#define ARRAYS {updates._ARRAYS}  " in program_source.source("updates.cu")
    words = len(program_source.fields("Update")) + updates._ITEM * updates._ARRAYS
    assert len(program_source.fields("Item")) == updates._ITEM
    assert 8 * words <= 4096


@pytest.mark.parametrize(
    ("old", "new", "shown_by"),
    [
        ("u.correction.value + u.eps.value", "u.correction.value", "steps and adam"),
        ("g + times(u.momentum.value, m) : m", "m : m", "steps and nesterov"),
        ("u.initial.value != 0 ? g :", "u.initial.value > 1 ? g :", "steps and initial"),
        ("const long long place = item.start + e;", "const long long place = e;", "steps and sgd"),
        ("finite && norm > bound ?", "finite ?", "clip"),
        ("finite && norm > bound ?", "norm > bound ?", "clip"),
        ("sum += a.squares[k];", "sum += a.squares[0];", "clip"),
    ],
)
def test_the_suite_catches_planted_faults(old: str, new: str, shown_by: str) -> None:
    """In the kernels, by `updates.steps` or `updates.clip`."""
    assert old in program_source.source("updates.cu")
    tested = BackendUnderTest(CupyBackend(Gpu(edit=lambda text: text.replace(old, new))))
    found = [
        run_item(tested, item)
        for item in items(tested, ["float32"], f"updates.{shown_by}")
        if item.case and "many" not in item.id
    ]
    assert Outcome.FAILED in {report.outcome for report in found}


_SANITIZED = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np
from emulation import EmulatedDevice
from lstmcore.training import Adam, SGD
from lstmcore_cupy.updates import CupyUpdates

edit = (lambda text: text.replace(*{fault!r})) if {fault!r} else None
kernels = CupyUpdates(EmulatedDevice(sanitize=True, edit=edit))
for dtype in ("float32", "float64"):
    given = [np.ones(shape, dtype) for shape in ((13, 100), (5,), (), (0, 4), *[(3,)] * 97)]
    size = sum(array.size for array in given)
    for formula, count in ((SGD(momentum=0.9)._formula(1), 1), (SGD()._formula(2), 0), (Adam()._formula(3), 2)):
        kernels.move(formula, given, given, [np.zeros(size, dtype) for _ in range(count)])
    assert np.isclose(kernels.norm(given), size**0.5) and kernels.clip(given, 1.0)[0].size == size
print("ran")
"""


@pytest.mark.slow  # a process that compiles with sanitizers
@pytest.mark.parametrize(
    "fault",
    [
        None,
        ("FOR_UNITS(e, item.size) {", "FOR_UNITS(e, item.size + 1) {"),
        ("a.update.first_part + ", "a.update.parts + "),
    ],
    ids=["none", "an array", "sums"],
)
def test_sanitizers_find_only_planted_faults(fault: tuple[str, str] | None) -> None:
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {**os.environ, "LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    code = _SANITIZED.format(folder=str(Path(__file__).parent), fault=fault)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if fault is None:
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr[-3000:]
    else:
        assert fault[0] in program_source.source("updates.cu")
        assert done.returncode and "heap-buffer-overflow" in done.stderr
