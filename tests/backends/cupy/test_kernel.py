"""The backend's kernels: devices of calls, sums, receipts, and the table of measurements."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from emulation import EmulatedDevice
from lstmcore import LSTM
from lstmcore import stack as stacks
from lstmcore.backend import Receipt, Tangents, UnsupportedError
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.bench.cuda import CUDA
from lstmcore_conformance.bench.device_points import Compared
from lstmcore_conformance.bench.goals import table_of
from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.bench.results import Outcome, Result
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.cases.case import Case
from lstmcore_conformance.oracle import budgets
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, compare
from lstmcore_cupy import tuning
from lstmcore_cupy.device import Device
from lstmcore_cupy.kernel import CupyBackend
from lstmcore_cupy.launch import Programs

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

CONFIG = LSTMConfig(input_size=2, hidden_size=3)


class _Marked(np.ndarray):  # type: ignore[type-arg]  # NumPy's stubs want a shape
    """An array of another device."""


class _Two(EmulatedDevice):
    """One of two devices; marked arrays are on the other one."""

    def __init__(self, name: str, other: Device | None = None) -> None:
        super().__init__()
        self.name, self.other = name, other

    def home(self, array: Any) -> Device:
        return self.other if self.other is not None and isinstance(array, _Marked) else self


def _parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape).astype("float32") for name, shape in CONFIG.parameter_shapes.items()}


def test_weights_and_x_share_a_device() -> None:
    """Weights are on the device of their parameters, and x has to be there too."""
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


def test_what_layers_share_is_made_on_the_weights_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy makes arrays and computes on the current device, which may be another one when a stack is called."""
    current: list[str] = []
    seen: list[list[str]] = []

    class Second(EmulatedDevice):
        name = "emulated:1"

        @contextmanager
        def active(self) -> Iterator[None]:  # type: ignore[override]  # a context manager all the same
            current.append(self.name)
            yield
            current.pop()

    for name in ("namespace_of", "_times"):
        own = getattr(stacks, name)
        monkeypatch.setattr(stacks, name, lambda *given, own=own: (seen.append([*current]), own(*given))[1])
    case = Case(
        name="two",
        model=StackConfig.make(CONFIG, num_layers=2, bidirectional=True, dropout=0.3),
        precision="float32",
        masks=True,
    )
    tested = BackendUnderTest(CupyBackend(Second()))
    for call, expected in (
        (BackendUnderTest.forward, budgets.forward),
        (BackendUnderTest.gradients, budgets.gradients),
    ):
        compare(call(tested, case), expected(case))
    tested.tangents(case)
    assert len(seen) > 10
    assert all("emulated:1" in names for names in seen)
    assert not current


def test_receipts_name_the_path_and_strict_takes_it() -> None:
    backend = CupyBackend(EmulatedDevice())
    found = backend.compile(CONFIG, "bfloat16").receipt(4, 2)
    assert (found.backend, found.device, found.precision) == ("cupy", "emulated", "bfloat16")
    assert found.path == "a product and a kernel a step"
    assert found.fallback is None
    for mode in ("inference", "training"):
        assert f"which path is faster in {mode} in bfloat16 has not been measured on emulated" in found.reason


def test_bfloat16_needs_a_numpy_that_cupy_knows_it_with(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = CupyBackend(EmulatedDevice()).capabilities()
    assert "bfloat16" in declared.precisions
    monkeypatch.setattr(np, "__version__", "2.1.1")
    declared = CupyBackend(EmulatedDevice()).capabilities()
    assert "bfloat16" not in declared.precisions
    assert declared.missing("bfloat16") == "bfloat16: CuPy has bfloat16 with NumPy 2.1.2 or newer; this one is 2.1.1"


def test_a_table_of_measurements_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """It decides by the mode of a call, and by the nearest sizes of the same GPU and precision."""
    table = (
        tuning.Point("emulated", "float32", "inference", 1, 4, False),
        tuning.Point("emulated", "float32", "inference", 32, 4, False),
        tuning.Point("emulated", "float32", "inference", 32, 64, True),
        tuning.Point("emulated", "float32", "training", 32, 64, True),
        tuning.Point("emulated", "float16", "inference", 1, 4, True),
        tuning.Point("another", "bfloat16", "inference", 1, 4, True),
    )
    monkeypatch.setattr(tuning, "points", lambda: table)
    device, two, one = EmulatedDevice(), "a product and a kernel a step", "all steps in one launch"
    backend = CupyBackend(device)

    def receipt(precision: str, batch: int, **changes: Any) -> Receipt:
        return backend.compile(LSTMConfig(**{"input_size": 2, "hidden_size": 48} | changes), precision).receipt(
            4, batch
        )

    both = receipt("float32", 20)
    assert (both.path, both.fallback) == (one, None)
    assert "the persistent kernels were faster in training in float32 at N=32, H=64 on emulated" in both.reason
    mixed = receipt("float32", 20, hidden_size=5)
    assert (mixed.path, mixed.fallback) == (f"inference {two}, training {one}", None)
    slower = "the persistent kernels were wrong, or not faster beyond noise, in inference in float32 at N=32, H=4"
    assert f"{slower} on emulated" in mixed.reason
    assert "the persistent kernels were faster in training in float32 at N=32, H=64 on emulated" in mixed.reason
    half = receipt("float16", 1)
    assert half.path == f"inference {one}, training {two}"
    assert "which path is faster in training in float16 has not been measured on emulated" in half.reason
    assert receipt("bfloat16", 1).path == two


def test_one_row_of_the_table_decides_a_whole_recorded_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward were timed together with the same kernels, so both run them, and jvp's forward too."""
    config = LSTMConfig(input_size=2, hidden_size=5)
    case = Case(name="mixed", model=config, precision="float32", batch=20)

    def launched(call: str, *, inference: bool) -> set[str]:
        table = [
            tuning.Point("emulated", "float32", mode, 20, 5, mode == "inference" if inference else mode == "training")
            for mode in ("inference", "training")
        ]
        monkeypatch.setattr(tuning, "points", lambda: tuple(table))
        device = EmulatedDevice()
        getattr(BackendUnderTest(CupyBackend(device)), call)(case)
        names = [kernel for program in device._programs.values() for kernel in program.launches]
        return {name for name in names if name.endswith(("_cell", "_persistent"))}

    assert launched("gradients", inference=False) == {"forward_persistent", "backward_persistent"}
    assert launched("gradients", inference=True) == {"forward_cell", "backward_cell"}
    assert launched("tangents", inference=False) == {"forward_persistent", "tangent_cell"}
    assert launched("tangents", inference=True) == {"forward_cell", "tangent_cell"}
    kernel = CupyBackend(EmulatedDevice()).compile(config, "float32")
    assert kernel.receipt(4, 20).path == "inference all steps in one launch, training a product and a kernel a step"


def test_strict_takes_what_only_a_table_would_have_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `persistent=True` is refused if the persistent kernels cannot run."""
    table = [tuning.Point("emulated", "float32", mode, 20, 5, True) for mode in ("inference", "training")]
    monkeypatch.setattr(tuning, "points", lambda: tuple(table))

    class Small(EmulatedDevice):
        shared_bytes = 1 << 10

    for device, switches, reason in (
        (EmulatedDevice(), {"layer_norm": True}, "the persistent kernels have no layer norm"),
        (EmulatedDevice(), {"proj_size": 3}, "the persistent kernels have no projection"),
        (Small(), {}, "forward_persistent needs"),
    ):
        own, x = CupyBackend(device), np.zeros((4, 20, 2), "float32")
        options: dict[str, Any] = {"dtype": "float32", "strict": True} | switches
        found = own.compile(LSTMConfig(input_size=2, hidden_size=41, **switches), "float32").receipt(4, 20)
        assert (found.path, found.fallback) == ("a product and a kernel a step", None)
        assert reason in found.reason
        LSTM(2, 41, backend=own, **options)(x)
        with pytest.raises(UnsupportedError, match=reason):
            LSTM(2, 41, backend=CupyBackend(device, persistent=True), **options)(x)


def test_the_table_has_what_the_script_for_a_gpu_measures() -> None:
    made = table_of([_compared([2.0], [1.0]), _compared([1.0], [2.0])], "one GPU")
    assert [tuning.Point(**row) for row in made] == [
        tuning.Point("one GPU", "tf32", "training", 16, 64, True),
        tuning.Point("one GPU", "tf32", "training", 16, 64, False),
    ]
    assert all(isinstance(point, tuning.Point) for point in tuning.points())


@pytest.mark.parametrize(
    ("outcome", "own", "persistent", "row"),
    [
        ("does not conform", [1.0] * 5, [], [False]),
        ("error", [], [], [False]),
        ("unsupported", [1.0] * 5, [], []),
        ("measured", [1.0], [0.99], [False]),
        ("measured", [1.0], [0.97], [True]),
        ("noisy", [1.0, 1.0, 1.0, 1.0, 1.0], [0.5, 1.1, 0.9, 1.2, 0.9], [False]),
        ("measured", [1.0, 1.1, 1.2, 1.0, 1.0], [0.99, 1.09, 1.19, 0.99, 0.99], [True]),
    ],
)
def test_the_table_takes_only_what_is_surely_faster(
    outcome: str, own: list[float], persistent: list[float], row: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size where the persistent kernels are faster does not decide for a size where they were worse."""
    far = _compared([2.0], [1.0], n=256)
    made = table_of([_compared(own, persistent, outcome), far], "one GPU")
    assert [one["persistent"] for one in made] == [*row, True]
    monkeypatch.setattr(tuning, "points", lambda: tuple(tuning.Point(**one) for one in made))
    assert tuning.decide("one GPU", "tf32", "training", 16, 64)[0] == (row != [False])


def _compared(own: list[float], persistent: list[float], outcome: str = "measured", n: int = 16) -> Compared:
    def side(times: list[float], outcome: str = "measured") -> Result:
        job, candidate = Job("training", Point(512, n, 64, 64), "tf32"), Candidate("backend", "cupy", 1)
        median = float(np.median(times)) if times else None
        return Result(job, candidate, Outcome(outcome), median_s=median, rounds=tuple(times))

    return Compared(side(own), side([], "error"), {"persistent": side(persistent, outcome)})


def test_the_script_for_a_gpu_also_runs_the_persistent_kernels() -> None:
    own = CupyBackend(EmulatedDevice())
    plain, paths = CUDA._backends(own)
    persistent = paths["persistent"]
    assert isinstance(plain, CupyBackend)
    assert isinstance(persistent, CupyBackend)
    assert plain.device is persistent.device is own.device
    path_names = [backend.compile(CONFIG, "float32").receipt(4, 2).path for backend in (plain, persistent)]
    assert path_names == ["a product and a kernel a step", "all steps in one launch"]


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


def test_every_pass_waits_for_the_weights() -> None:
    """One stream may pack while another one calls."""
    waited: list[str] = []

    class Device(EmulatedDevice):
        def started(self) -> Callable[[], None]:
            return lambda: waited.append("weights")

    config = LSTMConfig(input_size=2, hidden_size=3)
    kernel = CupyBackend(Device()).compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    x = np.ones((2, 1, 2), "float32")
    done = kernel.forward(weights, x, record=True)
    assert len(waited) == 1
    kernel.backward(weights, done.tape, done.y)
    assert len(waited) == 2
    kernel.jvp(weights, x, None, Tangents(x=x))
    assert len(waited) == 3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_large_products_of_16_bits_are_two_of_tf32(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients lose 2^-21 of their terms at most, as float32 would, and run on tensor cores."""
    asked: list[str] = []
    matmul = EmulatedDevice.matmul

    def listening(self: EmulatedDevice, *operands: Any, **options: Any) -> None:
        asked.append(options["compute"])
        matmul(self, *operands, **options)

    monkeypatch.setattr(EmulatedDevice, "matmul", listening)
    monkeypatch.setattr(tuning, "MATMUL_ROWS", 16)
    programs = Programs(EmulatedDevice(), LSTMConfig(input_size=2, hidden_size=3), PRECISIONS[precision])
    rng = np.random.default_rng(2)
    dz = (rng.standard_normal((5, 7, 12)) * 10.0 ** rng.integers(-3, 3, (5, 7, 12))).astype("float32")
    x = rng.standard_normal((5, 7, 4)).astype(programs.storage).astype("float32")
    weight = rng.standard_normal((12, 4)).astype(programs.storage).astype("float32")
    rows, columns, weights = (array.astype("float64") for array in (dz.reshape(-1, 12), x.reshape(-1, 4), weight))
    halves = ["tf32"] * 6  # two for each of the three parts of 35 rows
    found = programs.outer(dz, x, stored=True)
    assert asked == halves
    assert (np.abs(found - rows.T @ columns) <= 2.0**-21 * (np.abs(rows).T @ np.abs(columns))).all()
    found = programs.matmul_by_rows(dz, weight).reshape(-1, 4)
    assert asked == halves * 2
    assert (np.abs(found - rows @ weights) <= 2.0**-21 * (np.abs(rows) @ np.abs(weights))).all()
    asked.clear()
    programs.outer(dz, x)
    assert set(asked) == {"ieee"}


def test_infinite_gradients_stay_infinite_in_two_products() -> None:
    programs = Programs(EmulatedDevice(), LSTMConfig(input_size=2, hidden_size=3), PRECISIONS["bfloat16"])
    dz = np.array([[np.inf, 1.0], [2.0, np.nan]], np.float32)
    with np.errstate(invalid="ignore"):
        found = programs.matmul_by_rows(dz, np.array([[1.0, 2.0], [0.0, 1.0]], np.float32))
    np.testing.assert_array_equal(found, [[np.inf, np.inf], [np.nan, np.nan]])
