"""The conformance suite on a GPU; skipped without one."""

from __future__ import annotations

import numpy as np
import pytest

import lstmcore_cupy
from lstmcore import LSTM
from lstmcore.backend import Backend
from lstmcore.config import LSTMConfig
from lstmcore.masks import BatchRows, MaskDraw, draw_on_host
from lstmcore.registry import get_backend
from lstmcore.training import SGD, Adam, AdamW, Readout, SequenceModel, Trainer
from lstmcore_conformance.suite.runner import run

pytestmark = pytest.mark.skipif(
    lstmcore_cupy._unavailable() is not None, reason="compiled and emulated, not run on a GPU"
)


@pytest.fixture
def backend() -> Backend:
    return get_backend("cupy")


def test_it_conforms(backend: Backend) -> None:
    report = run(backend)
    assert report.conforms, report.verdict


def test_the_persistent_kernel_conforms() -> None:
    from lstmcore_cupy.cuda_device import cuda_device
    from lstmcore_cupy.kernel import CupyBackend

    report = run(CupyBackend(cuda_device(0), persistent=True))
    assert report.conforms, report.verdict


def test_loops_as_graphs_conform() -> None:
    from lstmcore_cupy.cuda_device import cuda_device
    from lstmcore_cupy.kernel import CupyBackend

    report = run(CupyBackend(cuda_device(0), persistent=False, graphs=True))
    assert report.conforms, report.verdict


def test_a_graph_gives_the_same_bits_again_and_again() -> None:
    """Each call frees its arrays: if the pool gives the next one the same places, a graph runs."""
    import cupy

    from lstmcore_cupy.cuda_device import cuda_device
    from lstmcore_cupy.kernel import CupyBackend

    lstm = LSTM(5, 64, backend=CupyBackend(cuda_device(0), persistent=False, graphs=True), seed=0)
    wanted = None
    x = cupy.asarray(np.random.default_rng(0).standard_normal((32, 8, 5)).astype("float32"))
    for _ in range(6):
        y, _, tape = lstm.record(x)
        own = [cupy.asnumpy(array) for array in (y, *lstm.backward(tape, y).parameters.values())]
        del y, tape
        wanted = own if wanted is None else wanted
        for found, value in zip(own, wanted, strict=True):
            np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("rule", [SGD, Adam, AdamW])
def test_a_step_has_the_bits_of_the_host(rule: type[SGD] | type[Adam], backend: Backend) -> None:
    import cupy

    host, device, rng = rule(0.1), rule(0.1), np.random.default_rng(0)
    device.use_backend(backend)
    own = {name: rng.standard_normal(shape).astype("float32") for name, shape in (("w", (700, 300)), ("b", (5,)))}
    moved = {name: cupy.asarray(value) for name, value in own.items()}
    for _ in range(4):
        gradients = {name: rng.standard_normal(value.shape).astype("float32") for name, value in own.items()}
        own = host.step(own, gradients)
        moved = device.step(moved, {name: cupy.asarray(value) for name, value in gradients.items()})
        for name, value in own.items():
            np.testing.assert_array_equal(cupy.asnumpy(moved[name]), value)
    assert device.explain() == "one kernel of backend 'cupy'"


def test_arrays_of_the_gpu_go_in_and_come_out_and_are_not_copied(backend: Backend) -> None:
    import cupy

    config = LSTMConfig(input_size=5, hidden_size=7)
    kernel = backend.compile(config, "float32")
    rng = np.random.default_rng(0)
    host = {name: rng.standard_normal(shape).astype("float32") for name, shape in config.parameter_shapes.items()}
    x = rng.standard_normal((4, 3, 5)).astype("float32")
    out, on_gpu = cupy.empty((4, 3, 7), cupy.float32), cupy.asarray(x)
    weights = kernel.pack({name: cupy.asarray(array) for name, array in host.items()})
    y, state, _ = kernel.forward(weights, on_gpu, out=out)
    assert y is out
    assert isinstance(state.c, cupy.ndarray)
    assert backend.to_device(on_gpu).data.ptr == on_gpu.data.ptr
    np.testing.assert_array_equal(cupy.asnumpy(out), kernel.forward(kernel.pack(host), x).y)


def test_it_runs_on_the_current_stream(backend: Backend) -> None:
    import cupy

    config = LSTMConfig(input_size=5, hidden_size=7)
    kernel = backend.compile(config, "float32")
    weights = kernel.pack({name: np.ones(shape, "float32") for name, shape in config.parameter_shapes.items()})
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        y = kernel.forward(weights, cupy.ones((64, 8, 5), cupy.float32)).y
        event = stream.record()
        event.synchronize()
    assert np.isfinite(cupy.asnumpy(y)).all()


@pytest.mark.parametrize("rows", [None, BatchRows(np.array([1, 4, 5]), 8)], ids=["whole", "rows"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_have_the_bits_of_the_host(backend: Backend, dtype: str, rows: BatchRows | None) -> None:
    import cupy

    draw = MaskDraw(2**40 + 3, 7, 9, (65, 3, 257), dtype, 0.375, (0.0, 1.6), rows)
    found = backend.draw_mask(draw, cupy.zeros(1))
    np.testing.assert_array_equal(cupy.asnumpy(found), draw_on_host(draw))


def test_uploads_beside_work_that_takes_longer(backend: Backend) -> None:
    """Many batches ahead of a stream that is busy: each is right, and no buffer was written to too early."""
    import cupy

    uploader, busy, sums = backend.uploader(), cupy.ones((4096, 4096), cupy.float32), []
    values = [np.full((1 << 20,), number, np.float32) for number in range(24)]
    take = uploader.start([values[0]])
    for following in [*values[1:], values[0]]:
        begun = uploader.start([following])
        for _ in range(4):
            busy = busy @ busy / 4096
        (array,) = take()
        sums.append(array.sum(dtype=cupy.float64))
        take = begun
    uploader.close()
    assert [float(total) for total in sums] == [float(value.sum(dtype=np.float64)) for value in values]


def test_a_training_with_inputs_on_the_gpu_or_sent(backend: Backend) -> None:
    """The bits are the same, also with dropout."""
    rng, models = np.random.default_rng(0), []
    inputs = [rng.standard_normal((length, 6)) for length in rng.integers(3, 90, 60)]
    targets = [int(x.mean() > 0) for x in inputs]
    for most in (0, 1 << 30):
        lstm = LSTM(6, 40, 2, dropout=0.2, backend=backend, seed=1)
        model = SequenceModel(lstm, Readout.of(lstm, 2, activation="softmax", seed=2))
        Trainer(model, device="cuda", resident_bytes=most, epochs=3, batch_size=8, quiet=True).fit(inputs, targets)
        models.append(model)
    for name, value in models[0].parameters.items():
        np.testing.assert_array_equal(models[1].parameters[name], value)
