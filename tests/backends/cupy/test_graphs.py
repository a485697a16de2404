"""Loops over time as CUDA graphs, on the stand-in: what is recorded and when; results are those of launches."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from emulation import EmulatedDevice
from emulation.gpu import CupyOnHost, Gpu, GpuArray
from lstmcore import LSTM
from lstmcore.training import Adam, Readout, SequenceModel, Trainer
from lstmcore_cupy import cuda_device, tuning
from lstmcore_cupy.cublas_request import gemm_request
from lstmcore_cupy.graphs import Graphs
from lstmcore_cupy.kernel import CupyBackend
from lstmcore_cupy.recorded_products import RecordedProducts, loaded_cublas

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

T, N, I, H = 6, 3, 2, 5


class PooledCupy(CupyOnHost):
    """CuPy whose memory is given in the same order from `restart` on, as a pool gives it in a loop of training."""

    def __init__(self) -> None:
        super().__init__()
        self._memory, self._used = np.zeros(64 << 20, np.uint8), 0

    def restart(self, place: int = 0) -> int:
        """Take all memory from `place` on as free; return where it began before."""
        before, self._used = self._used, place
        return before

    def _place(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.nbytes == tuning.GRAPH_WORKSPACE:  # a graph keeps it, so it is nowhere between
            return array
        start = self._used
        self._used += -(-array.nbytes // 256) * 256
        own = self._memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        own[...] = array
        return own

    def empty(self, shape: Any, dtype: Any = np.float64, *, device: Any = None) -> GpuArray:
        made = super().empty(shape, dtype, device=device)
        return GpuArray(self._place(made._own), self, made._number)

    def zeros(self, shape: Any, dtype: Any = np.float64, *, device: Any = None) -> GpuArray:
        made = super().zeros(shape, dtype, device=device)
        return GpuArray(self._place(made._own), self, made._number)

    def asarray(self, values: Any, dtype: Any = None, *, device: Any = None, copy: bool | None = None) -> GpuArray:
        made = super().asarray(values, dtype, device=device, copy=copy)
        return made if isinstance(values, GpuArray) else GpuArray(self._place(made._own), self, made._number)

    def _wrapped(self, name: str, made: Any, own: list[npt.NDArray[Any]], number: int) -> Any:
        found = super()._wrapped(name, made, own, number)
        if not isinstance(found, GpuArray) or any(np.shares_memory(found._own, value) for value in own):
            return found
        return GpuArray(self._place(found._own), self, number)


class Run:
    """An LSTM with graphs on a GPU whose memory has the same places in every call, and the same LSTM without."""

    def __init__(self, *, persistent: bool = False, graphs: bool = True, **options: Any) -> None:
        self.gpu, options = Gpu(cupy=PooledCupy()), {"seed": 0, **options}
        self.lstm = LSTM(I, H, backend=CupyBackend(self.gpu, persistent=persistent, graphs=graphs), **options)
        self.plain = LSTM(I, H, backend=CupyBackend(Gpu(), persistent=persistent), **options)
        self.start = self.gpu.cupy.restart(0) or 0
        self.gpu.cupy.restart(self.start)

    def call(self, seed: int, steps: int = T, *, record: bool = True, lengths: Any = None) -> list[str]:
        """Compare a call and its gradients on drawn numbers; return the launches of the LSTM with graphs."""
        random = np.random.default_rng(seed)
        x = random.standard_normal((steps, N, I)).astype(self.lstm.precision.storage)
        results = []
        self.gpu.cupy.restart(self.start)
        for lstm in (self.lstm, self.plain):
            gpu: Any = lstm.backend.device  # type: ignore[attr-defined]
            gpu.counts.clear()
            here = gpu.cupy.asarray(x)
            lstm.step = seed
            if record:
                y, state, tape = lstm.record(here, lengths=lengths)
                gradients = lstm.backward(tape, y)
                arrays = [y, *state, gradients.x, *gradients.state, *gradients.parameters.values()]
            else:
                y, state = lstm(here, lengths=lengths)
                arrays = [y, *state]
            launches = list(gpu.counts.launches)
            results.append(([array._own.copy() for array in arrays], launches))
        (own, launches), (wanted, _) = results
        for found, value in zip(own, wanted, strict=True):
            np.testing.assert_array_equal(found, value)
        return launches


def test_the_second_call_is_recorded_and_later_ones_start_the_graph() -> None:
    run = Run()
    recorder = run.gpu.cupy.recorder
    first = run.call(1)
    assert "graph" not in first and first.count("forward_cell") == first.count("backward_cell") == T
    assert recorder.graphs == 0
    own: Any = run.gpu._recorded_products
    assert own.used == [(0, tuning.GRAPH_WORKSPACE)] * 2  # a rehearsal of each pass, on the current stream
    for seed, graphs in ((2, 2), (3, 2), (4, 2)):
        launches = run.call(seed)
        assert launches.count("graph") == 2
        assert not {"forward_cell", "backward_cell", "backward_last"} & set(launches)
        assert len(launches) == len(first) - (4 * T + 1) + 2  # two launches a step and pass, and the last one
        assert recorder.graphs == graphs


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"layer_norm": True}, {}),
        ({"proj_size": 3, "peephole": True}, {}),
        ({"num_layers": 2, "bidirectional": True}, {}),
        ({"bidirectional": True}, {"lengths": [T, 2, 4]}),
        ({"recurrent_dropout": 0.3, "zoneout_cell": 0.2}, {}),
        ({"dtype": "float64"}, {"record": False}),
        ({"weights": "int8"}, {"record": False}),
        ({"num_layers": 2}, {"record": False}),
    ],
    ids=str,
)
def test_results_have_the_bits_of_launches(options: dict[str, Any], call: dict[str, Any]) -> None:
    """Of other numbers in the same places too: a graph reads them when it runs."""
    run = Run(**options)
    for seed in range(1, 5):
        launches = run.call(seed, **call)
    passes = 1 if call.get("record") is False else 2
    layers = run.lstm.stack.num_layers * run.lstm.stack.num_directions
    assert launches.count("graph") == passes * layers
    assert run.gpu.cupy.recorder.graphs == passes * layers


def test_a_long_call_has_a_graph_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ``W x`` of some steps: each part begins at another step."""
    monkeypatch.setattr(tuning, "FORWARD_BUFFER", 2 * N * 4 * H)
    run = Run()
    for seed in (1, 2, 3):
        launches = run.call(seed, record=False)
    assert launches.count("graph") == run.gpu.cupy.recorder.graphs == T // 2


def test_a_graph_runs_on_the_stream_of_its_record_alone() -> None:
    """Its workspace is memory of that stream: once it is forgotten, another call there may get it at once."""
    run = Run()
    recorder = run.gpu.cupy.recorder
    for seed in (1, 2, 3):
        run.call(seed)
    assert recorder.graphs == 2
    stream = run.gpu.cupy.cuda.Stream()
    for seed, graphs, found in ((4, 2, 0), (5, 4, 2), (6, 4, 2)):
        with stream:
            assert run.call(seed).count("graph") == found
        assert recorder.graphs == graphs
    assert run.call(7).count("graph") == 2
    assert recorder.graphs == 4


def test_other_sizes_are_recorded_anew() -> None:
    run = Run()
    recorder = run.gpu.cupy.recorder
    for steps, graphs in ((T, 0), (T, 2), (T + 1, 2), (T + 1, 4), (T, 4), (T + 1, 4)):
        launches = run.call(steps, steps)
        assert recorder.graphs == graphs
    assert launches.count("graph") == 2


def test_arrays_in_other_places_are_recorded_anew() -> None:
    """Memory that moved by some bytes, and other weights."""
    run = Run()
    recorder = run.gpu.cupy.recorder
    run.call(1)
    run.call(2)
    assert recorder.graphs == 2
    run.start += 4096
    assert "graph" not in run.call(3)
    run.start -= 4096
    assert run.call(4).count("graph") == 2
    run.gpu.cupy.restart(run.start)
    for lstm in (run.lstm, run.plain):
        gpu: Any = lstm.backend.device  # type: ignore[attr-defined]
        shapes = {name: value.shape for name, value in lstm.parameters.items()}
        arrays = {name: gpu.cupy.asarray(np.full(shape, 0.1, np.float32)) for name, shape in shapes.items()}
        lstm.load_parameters(arrays)
    run.start = run.gpu.cupy.restart(0)
    for number, graphs in enumerate((2, 4, 4)):
        run.call(5 + number)
        assert recorder.graphs == graphs


@pytest.mark.parametrize(
    ("options", "record"),
    [({"proj_size": 3}, True), ({"layer_norm": True}, True), ({"weights": "int8"}, False)],
    ids=str,
)
def test_a_key_has_the_places_of_all_weights(
    options: dict[str, Any], record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of those that are no field of the struct: operands of products alone."""
    run, keys = Run(**options), list[Any]()

    def listen(self: Graphs, device: Any, key: Any, work: Callable[[], None]) -> None:
        keys.append(key)
        work()

    monkeypatch.setattr(Graphs, "run", listen)
    run.call(1, record=record)
    assert [key[0] for key in keys] == ["forward", "backward"][: 1 + record]
    parameters = run.lstm._weights[0].parameters.values()
    arrays = [array for each in parameters for array in (getattr(each, "values", each), getattr(each, "scale", None))]
    wanted = {array.data.ptr for array in arrays if array is not None}
    assert len(wanted) > 2
    for key in keys:
        assert wanted <= set(_numbers(key))


def _numbers(key: Any) -> Iterator[int]:
    for each in key:
        if isinstance(each, tuple):
            yield from _numbers(each)
        elif isinstance(each, bytes):
            yield from np.frombuffer(each, np.int64).tolist()
        elif isinstance(each, int):
            yield each


def test_only_the_last_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "GRAPHS", 2)
    run = Run()
    recorder = run.gpu.cupy.recorder
    for _ in range(2):
        run.call(1, record=False)
    for steps in (T + 1, T + 2):
        run.call(1, steps, record=False)
    assert recorder.graphs == 1
    assert "graph" not in run.call(1, record=False)  # forgotten, and rehearsed again


def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    run = Run(graphs=False)
    for seed in range(3):
        assert "graph" not in run.call(seed)
    assert run.gpu.cupy.recorder.graphs == 0


def test_receipts_tell_of_graphs() -> None:
    plain, recorded = (
        LSTM(I, H, backend=CupyBackend(Gpu(), persistent=False, graphs=graphs)).explain(T, N).receipts[0][1]
        for graphs in (False, True)
    )
    assert plain.path == "a product and a kernel a step"
    assert recorded.path == f"{plain.path}, as a CUDA graph from the second call on"
    with pytest.raises(TypeError, match="graphs: expected True or False; got 1"):
        CupyBackend(Gpu(), graphs=1)  # type: ignore[arg-type]  # that is the test


def test_the_persistent_kernels_are_one_launch_as_before() -> None:
    run = Run(persistent=True)
    for seed in range(3):
        assert {"forward_persistent", "backward_persistent"} <= set(run.call(seed))
    assert run.gpu.cupy.recorder.graphs == 0


def test_a_training_is_the_same_with_graphs() -> None:
    """Whichever places the memory has: those that come again are recorded, others are not."""
    random = np.random.default_rng(3)
    inputs = [random.standard_normal((length, I)) for length in (5, 5, 5, 4, 4, 4)]
    targets = random.integers(0, 3, 6)
    kept = []
    for graphs in (False, True):
        lstm = LSTM(I, H, backend=CupyBackend(Gpu(), persistent=False, graphs=graphs), seed=0)
        model = SequenceModel(lstm, Readout.of(lstm, 3, activation="softmax", seed=1))
        trainer = Trainer(model, optimizer=Adam(0.01), epochs=4, batch_size=3, validation=0, device="cuda", quiet=True)
        kept.append((trainer.fit(inputs, targets).to_dict(), model.parameters))
    assert kept[0][0] == kept[1][0]
    for name, value in kept[0][1].items():
        np.testing.assert_array_equal(kept[1][1][name], value)


def test_a_record_that_fails_ends() -> None:
    """The error is that of the work, and the stream records no more."""
    gpu, graphs = Gpu(), Graphs()

    def allocates() -> None:
        gpu.empty((3,), np.dtype(np.float32))

    graphs.run(gpu, "key", allocates)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="allocation: cudaErrorStreamCaptureUnsupported"):
            graphs.run(gpu, "key", allocates)
        assert not gpu.cupy.recorder.active
    allocates()


def test_products_by_cupy_cannot_be_recorded() -> None:
    """The stand-in refuses them as CuPy does, so a loop that records has its own."""
    gpu = Gpu()
    a, b, out = (gpu.array_of(np.ones((2, 2), np.float32)) for _ in range(3))
    stream = gpu.cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="calling cuBLAS API during stream capture is currently unsupp"):
            gpu.matmul(a, b, out, compute="ieee")
        stream.end_capture()
    start = gpu.capture(lambda: gpu.matmul(a, b, out, compute="ieee"))
    assert (out.get() == 1).all()
    start()
    assert (out.get() == 2).all()
    stream, size = gpu._recorded_products.used[-1]  # type: ignore[union-attr]
    assert stream and size == tuning.GRAPH_WORKSPACE


def test_a_device_that_records_nothing_says_so() -> None:
    device, graphs = EmulatedDevice(), Graphs()
    graphs.run(device, 1, lambda: None)
    with pytest.raises(RuntimeError, match="emulated: records no launches"):
        graphs.run(device, 1, lambda: None)


# cuBLAS without CuPy --------------------------------------------------------------------------------------------------

_CUBLAS = """
static long long seen[3];
static int order;
extern "C" long long seen_at(int place) { return seen[place]; }
extern "C" int cublasSetStream_v2(void* handle, void* stream) {
    seen[0] = (long long)stream;
    order = 1;
    return (long long)handle == 7 ? 0 : 1;
}
extern "C" int cublasSetWorkspace_v2(void* handle, void* workspace, unsigned long size) {
    seen[1] = (long long)workspace;
    seen[2] = (long long)size;
    return order == 1 ? 0 : 14;
}
template <class T>
static void multiply(int ta, int tb, int m, int n, int k, const T* alpha, const T* a, int lda, const T* b, int ldb,
                     const T* beta, T* c, int ldc) {
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) {
            T sum = 0;
            for (int p = 0; p < k; ++p)
                sum += (ta ? a[p + i * lda] : a[i + p * lda]) * (tb ? b[j + p * ldb] : b[p + j * ldb]);
            c[i + j * ldc] = *alpha * sum + (*beta ? *beta * c[i + j * ldc] : 0);
        }
}
extern "C" int cublasGemmEx(void* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int at,
                            int lda, const void* b, int bt, int ldb, const void* beta, void* c, int ct, int ldc,
                            int compute, int algorithm) {
    if ((long long)handle != 7 || at != bt || bt != ct || algorithm != -1) return 7;
    if (at == 0 && (compute == 68 || compute == 77))
        multiply(ta, tb, m, n, k, (const float*)alpha, (const float*)a, lda, (const float*)b, ldb, (const float*)beta,
                 (float*)c, ldc);
    else if (at == 1 && compute == 70)
        multiply(ta, tb, m, n, k, (const double*)alpha, (const double*)a, lda, (const double*)b, ldb,
                 (const double*)beta, (double*)c, ldc);
    else
        return 15;
    return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cuBLAS on the processor, by its manual."""
    file = tmp_path_factory.mktemp("cublas") / "libcublas.so.12"
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(file)]
    subprocess.run(command, input=_CUBLAS, text=True, check=True)
    return file


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("transpose", [(False, False), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize(("dtype", "compute"), [("float32", "ieee"), ("float32", "tf32"), ("float64", "ieee")])
def test_products_reach_cublas_as_its_manual_says(
    library: Path,
    dtype: str,
    compute: Any,
    transpose: tuple[bool, bool],
    accumulate: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Handle, sizes, addresses and types of the 19 arguments, with no CuPy between."""
    names = {"CUBLAS_OP_N": 0, "CUBLAS_OP_T": 1, "CUBLAS_GEMM_DEFAULT": -1}
    names |= {"CUBLAS_COMPUTE_32F": 68, "CUBLAS_COMPUTE_64F": 70, "CUBLAS_COMPUTE_32F_FAST_TF32": 77}
    import cupy_backends.cuda.libs

    cublas = SimpleNamespace(gemmEx=lambda *_: pytest.fail("CuPy's"), **names)
    monkeypatch.setitem(vars(cupy_backends.cuda.libs), "cublas", cublas)
    gemm_request.cache_clear()
    device = cuda_device.CudaDevice.__new__(cuda_device.CudaDevice)
    device._bound = threading.local()
    device._bound.products = own = RecordedProducts(ctypes.CDLL(str(library)), 7)
    own.use(11, 22, 33)
    assert [ctypes.CDLL(str(library)).seen_at(place) for place in range(3)] == [11, 22, 33]
    random, (m, k, n) = np.random.default_rng(0), (3, 5, 7)
    a, b, out = (random.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (m, n)))
    wanted = a @ b + (out if accumulate else 0)
    given = [np.ascontiguousarray(matrix.T if turn else matrix) for matrix, turn in zip((a, b), transpose, strict=True)]
    matrices = [
        SimpleNamespace(shape=matrix.shape, dtype=matrix.dtype, data=SimpleNamespace(ptr=matrix.ctypes.data))
        for matrix in (*given, out)
    ]
    device.matmul(*matrices, compute=compute, transpose=transpose, accumulate=accumulate)
    np.testing.assert_allclose(out, wanted, rtol=1e-5)
    gemm_request.cache_clear()


def test_what_cublas_refuses_is_an_error(library: Path) -> None:
    with pytest.raises(RuntimeError, match="cublasSetStream_v2: cuBLAS's status 1"):
        RecordedProducts(ctypes.CDLL(str(library)), 8).use(1, 2, 3)
    with pytest.raises(RuntimeError, match="cublasGemmEx: cuBLAS's status 7"):
        RecordedProducts(ctypes.CDLL(str(library)), 8).gemm(8, *[0] * 18)


def test_the_loaded_cublas_is_found(library: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    line = "7f0000000000-7f0000001000 r-xp 00000000 08:01 12                  "
    maps.write_text(f"{line} {library}\n{line} {library}\n{line} /usr/lib/libc.so.6\n{line}\n")
    assert loaded_cublas(maps)._name == str(library)
    two = f"{line} /a/libcublas.so.12\n{line} /b/libcublas.so.12\n"
    for text, found in (("", "none"), (two, r"\['/a/lib.*', '/b/lib")):
        maps.write_text(text)
        with pytest.raises(RuntimeError, match=rf"expected one libcublas.so in .*; got {found}.*: use graphs=False"):
            loaded_cublas(maps)
    with pytest.raises(RuntimeError, match="got none"):
        loaded_cublas(tmp_path / "missing")


def test_threads_record_one_at_a_time() -> None:
    """The handle has one stream at a time; a product of a thread that records nothing goes by CuPy's."""
    gpu, entered, leave = Gpu(), threading.Event(), threading.Event()
    order: list[str] = []

    def slow() -> None:
        entered.set()
        leave.wait(10)
        order.append("first")

    def in_thread(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=lambda: gpu.rehearse(work))
        thread.start()
        return thread

    first = in_thread(slow)
    assert entered.wait(10)
    second = in_thread(lambda: order.append("second"))
    assert getattr(gpu._bound, "products", None) is None
    leave.set()
    first.join()
    second.join()
    assert order == ["first", "second"]
