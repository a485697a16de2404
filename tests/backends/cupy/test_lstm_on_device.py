"""`LSTM` and `Chain` with arrays of a GPU: where results are, their bits, and what a call costs."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emulation.gpu import CupyOnHost, Gpu, GpuArray
from lstmcore import LSTM, Chain, Merge, Reversed
from lstmcore.backend import Masks, StackMasks
from lstmcore_cupy import cuda_device
from lstmcore_cupy.kernel import CupyBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

T, N, I, H = 7, 3, 2, 5
#: Two layers in both directions with each kind of mask that needs no other program than a plain LSTM.
DEEP: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dropout": 0.3, "recurrent_dropout": 0.25}
GPU = Gpu()
BACKENDS = {"steps": CupyBackend(GPU, persistent=False), "persistent": CupyBackend(GPU, persistent=True)}


def _flat(made: Any) -> Iterator[Any]:
    """Yield the arrays in results of any depth."""
    if isinstance(made, dict):
        made = tuple(made.values())
    if isinstance(made, tuple | list):
        for each in made:
            yield from _flat(each)
    elif hasattr(made, "shape"):
        yield made


def _moved(value: Any, gpu: Gpu = GPU) -> Any:
    """Return arrays of any depth on a GPU, not counted."""
    if isinstance(value, np.ndarray):
        return gpu.array_of(value)
    if isinstance(value, dict):
        return {name: _moved(each, gpu) for name, each in value.items()}
    if isinstance(value, tuple | list):
        moved = (_moved(each, gpu) for each in value)
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    return value


def _drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _state(lstm: LSTM, rows: int = N) -> tuple[np.ndarray, np.ndarray]:
    entries = lstm.stack.num_layers * lstm.stack.num_directions
    return _drawn(entries, rows, lstm.stack.output_size), _drawn(entries, rows, H) / 2


def _lengths() -> list[int]:
    return [T, 0, 3]


def _passes(lstm: LSTM, move: Callable[[Any], Any]) -> list[Any]:
    """Return what each call makes of arrays that `move` puts where they belong."""
    x, state = move(_drawn(T, N, I)), move(_state(lstm))
    lstm.step = 4
    y, last = lstm(x, state, _lengths())
    recorded, final, tape = lstm.record(x, state, _lengths())
    gradients = lstm.backward(tape, move(_drawn(T, N, lstm.output_width)), final)
    tangents = {"bias_l0": _drawn(4 * H), "weight_h_l0": _drawn(4 * H, lstm.stack.output_size)}
    moved = lstm.value_and_jvp(x, move(_drawn(T, N, I)), state, final, move(tangents), _lengths(), tape.masks)
    return [y, last, recorded, final, gradients, tape.masks or (), moved]


@pytest.mark.parametrize("path", BACKENDS)
@pytest.mark.parametrize("options", [{}, DEEP], ids=["plain", "deep"])
def test_arrays_of_a_gpu_give_the_bits_of_numpy(options: dict[str, Any], path: str) -> None:
    """All results are on the GPU, nothing is copied to the host, and the host waits for nothing."""
    lstm = LSTM(I, H, backend=BACKENDS[path], seed=3, **options)
    want = [*_flat(_passes(lstm, lambda array: array))]
    _passes(lstm, _moved)  # loads
    GPU.counts.clear()
    found = [*_flat(_passes(lstm, _moved))]
    assert (GPU.counts.copies_out, GPU.counts.waits) == (0, 0)
    assert len(found) == len(want) > 12
    for one, other in zip(found, want, strict=True):
        assert isinstance(one, GpuArray)
        assert isinstance(other, np.ndarray)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one.get(), other)
    numpy = LSTM(I, H, backend="numpy", seed=3, **options)
    for one, other in zip(found, _flat(_passes(numpy, lambda array: array)), strict=True):
        np.testing.assert_allclose(one.get(), other, rtol=0, atol=400 * 2.0**-24 * max(1, np.abs(other).max()))


def test_calls_run_on_the_gpu_of_their_arrays() -> None:
    """CuPy makes arrays and computes on the current GPU, which may be another one."""
    cupy = CupyOnHost()
    second = Gpu(1, cupy)
    lstm = LSTM(I, H, backend=CupyBackend(second), seed=3, **DEEP)
    want = [*_flat(_passes(lstm, lambda array: array))]
    lstm.load_parameters(_moved(lstm.parameters, second))
    assert cupy.current == 0
    assert {array.device.id for array in lstm.parameters.values()} == {1}
    for one, other in zip(_flat(_passes(lstm, lambda array: _moved(array, second))), want, strict=True):
        assert one.device.id == 1
        np.testing.assert_array_equal(one.get(), other)


def test_calls_run_on_the_stream_of_another_library() -> None:
    cupy = CupyOnHost()
    second = Gpu(1, cupy)
    backend = CupyBackend(second)
    lstm = LSTM(I, H, backend=backend, seed=3)
    x = second.array_of(_drawn(T, N, I))
    lstm(x)
    second.counts.clear()
    with backend.on_stream(1, 1234):
        assert cupy.current == 1
        lstm(x)
    assert second.counts.streams == {"stream at 1234 of GPU 1"}
    assert cupy.current == 0
    with LSTM(I, H, backend="numpy").backend.on_stream(0, 1234):
        pass


@pytest.mark.parametrize("shape", [(T, I), (0, N, I), (T, 0, I), (1, 1, I)], ids=str)
def test_layouts_and_sizes(shape: tuple[int, ...]) -> None:
    for batch_first in (False, True):
        lstm = LSTM(I, H, backend=BACKENDS["steps"], seed=3, batch_first=batch_first)
        x = _drawn(*(shape[:-1][::-1] if batch_first else shape[:-1]), I)
        want, found = ([*_flat(lstm.record(each)[:2])] for each in (x, _moved(x)))
        for one, other in zip(found, want, strict=True):
            np.testing.assert_array_equal(one.get(), other)


def test_streaming_is_one_call() -> None:
    lstm = LSTM(I, H, backend=BACKENDS["steps"], seed=3)
    x, state, parts = _moved(_drawn(T, N, I)), None, []
    whole, last = lstm(x)
    GPU.counts.clear()
    for t in range(T):
        y, state = lstm(x[t : t + 1], state)
        parts.append(y)
    assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits) == (0, 0, 0)
    np.testing.assert_array_equal(np.concatenate([part.get() for part in parts]), whole.get())
    assert state is not None
    for one, other in zip(state, last, strict=True):
        np.testing.assert_array_equal(one.get(), other.get())


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
def test_out_is_written_where_it_is(options: dict[str, Any]) -> None:
    lstm = LSTM(I, H, backend=BACKENDS["steps"], seed=3, **options)
    x = _moved(_drawn(T, N, I))
    want, _ = lstm(x)
    room = GPU.array_of(np.full((T, N, 2 * lstm.output_width), np.nan, np.float32))
    for out in (GPU.empty(want.shape, want.dtype), room[:, :, ::2]):
        y, _ = lstm(x, out=out)
        assert y is out
        np.testing.assert_array_equal(out.get(), want.get())
    assert np.isnan(room.get()[:, :, 1::2]).all()


def test_out_must_not_overlap_an_input() -> None:
    lstm = LSTM(H, H, backend=BACKENDS["steps"], seed=3)
    memory = GPU.array_of(np.zeros((T, N, 2 * H), np.float32))
    x = memory[:, :, ::2]
    lstm(x, out=memory[:, :, 1::2])  # in between
    message = "out: expected memory of its own; it overlaps an input, which must not be written to"
    for out in (x, memory[:, :, :H], memory[:, :, 4 : 4 + H]):
        with pytest.raises(ValueError, match=message):
            lstm(x, out=out)


#: Launches that are a product, a sum or a copy of arrays that leave the call, or enter it: y, x and states.
WHOLE = ("matmul", "sum_rows", "widen", "setitem", "copy", "stack")


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_training_step_keeps_to_its_launches(layers: int, directions: int) -> None:
    """Of each layer and direction: 2 T + 12 launches a pass step by step, and 2 beside the large products."""
    for path, most in (("steps", 2 * T + 12), ("persistent", 2)):
        lstm = LSTM(I, H, layers, bidirectional=directions == 2, backend=BACKENDS[path], seed=3)
        x = _moved(_drawn(T, N, I))
        dy = lstm.record(x)[0]
        GPU.counts.clear()
        _, _, tape = lstm.record(x, lengths=_lengths())
        launches = [Counter(GPU.counts.launches)]
        assert GPU.counts.copies_in == 1  # the lengths
        GPU.counts.launches.clear()
        lstm.backward(tape, dy)
        launches.append(Counter(GPU.counts.launches))
        assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits) == (1, 0, 0)
        for each in launches:
            counted = each if path == "steps" else {name: n for name, n in each.items() if name not in WHOLE}
            assert sum(counted.values()) <= most * layers * directions, each
        if path == "persistent":
            # Both directions are one launch.
            assert launches[0] >= Counter(begin=layers * directions, forward_persistent=layers)
            assert sum(launches[1][name] for name in launches[1] if name not in WHOLE) <= 2 * layers
            assert launches[0]["matmul"] == layers * directions
            assert launches[1]["matmul"] == 3 * layers * directions


def test_parameters_stay_on_the_gpu(tmp_path: Path) -> None:
    backend = BACKENDS["steps"]
    lstm, other = (LSTM(I, H, backend=backend, seed=seed) for seed in (3, 4))
    assert all(isinstance(array, np.ndarray) for array in lstm.parameters.values())
    given = _moved(lstm.parameters)
    GPU.counts.clear()
    other.load_parameters(given)
    assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits) == (0, 0, 0)
    given["bias_l0"][...] = 7  # copied before
    x = _drawn(T, N, I)
    want, _ = lstm(x)
    for array in (x, _moved(x)):
        np.testing.assert_array_equal(GPU.host(other(array)[0]), want)
    for name, array in lstm.parameters.items():
        assert isinstance(other.parameters[name], GpuArray)
        np.testing.assert_array_equal(other.parameters[name].get(), array)
        np.testing.assert_array_equal(copy.deepcopy(other.parameters[name]).get(), array)
    for name, array in lstm.to_torch().items():
        np.testing.assert_array_equal(other.to_torch()[name], array)
    other.save(tmp_path / "weights.safetensors")
    again = LSTM.load(tmp_path / "weights.safetensors", backend="numpy")
    for name, array in lstm.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], array)
    small = other.compressed("bfloat16")
    np.testing.assert_array_equal(small(x)[0], lstm.compressed("bfloat16")(x)[0])
    small.load_parameters(other.parameters)  # rounded on the host
    np.testing.assert_array_equal(small(x)[0], lstm.compressed("bfloat16")(x)[0])


def test_the_final_outputs_of_rows() -> None:
    lstm = LSTM(I, H, backend=BACKENDS["steps"], seed=3, bidirectional=True)
    x, gradient = _drawn(T, N, I), _drawn(N, 2 * H)
    _, host = lstm(x)
    GPU.counts.clear()
    _, last = lstm(_moved(x))
    found = lstm.last_output(last), *lstm.last_output_gradient(last, _moved(gradient))
    assert (GPU.counts.copies_out, GPU.counts.waits) == (0, 0)
    want = lstm.last_output(host), *lstm.last_output_gradient(host, gradient)
    for one, other in zip(found, want, strict=True):
        np.testing.assert_array_equal(one.get(), other)


def _chain(backend: Any) -> Chain:
    first = LSTM(I, H, bidirectional=True, backend=backend, seed=1)
    return Chain([first, Merge("mul"), Reversed(LSTM(H, 4, backend=backend, seed=2))], batch_first=True)


def _chain_passes(chain: Chain, move: Callable[[Any], Any]) -> list[Any]:
    x = move(_drawn(N, T, I))
    y, last = chain(x, lengths=_lengths())
    recorded, final, tape = chain.record(x, None, _lengths())
    gradients = chain.backward(tape, move(_drawn(N, T, 4)), final)
    feature = chain.last_output(final)
    tangents = chain.jvp(x, None, None, final, move({"2.bias_l0": _drawn(16)}), _lengths())
    gradient = [each or () for each in chain.last_output_gradient(final, feature)]
    return [y, last, recorded, final, gradients, feature, gradient, tangents]


def test_a_chain_of_two_backends_refuses_parameters_of_a_gpu() -> None:
    """Whichever LSTM cannot take them, all keep the arrays that they had."""
    for backends in ((BACKENDS["steps"], "numpy"), ("numpy", BACKENDS["steps"])):
        chain = Chain([LSTM(I, H, backend=backends[0], seed=1), LSTM(H, 4, backend=backends[1], seed=2)])
        before = dict(chain.parameters)
        with pytest.raises(TypeError, match=r"^parameters\['\d\.weight_x_l0'\]: expected a NumPy array"):
            chain.load_parameters(_moved({name: value * 2 for name, value in before.items()}))
        for name, value in before.items():
            assert chain.parameters[name] is value


def test_a_chain_stays_on_the_gpu(tmp_path: Path) -> None:
    chain = _chain(BACKENDS["steps"])
    want = [*_flat(_chain_passes(chain, lambda array: array))]
    GPU.counts.clear()
    found = [*_flat(_chain_passes(chain, _moved))]
    assert (GPU.counts.copies_out, GPU.counts.waits) == (0, 0)
    for one, other in zip(found, want, strict=True):
        assert isinstance(one, GpuArray)
        np.testing.assert_array_equal(one.get(), other)
    chain.load_parameters(_moved(chain.parameters))
    assert all(isinstance(array, GpuArray) for array in chain.parameters.values())
    chain.save(tmp_path / "chain.safetensors")
    again = Chain.load(tmp_path / "chain.safetensors", backend="numpy")
    for name, array in again.parameters.items():
        np.testing.assert_array_equal(chain.parameters[name].get(), array)
    out = GPU.empty((N, T, 4), np.dtype(np.float32))
    y, _ = chain(_moved(_drawn(N, T, I)), lengths=_lengths(), out=out)
    assert y is out
    np.testing.assert_array_equal(out.get(), want[0])


# Arrays in two places -------------------------------------------------------------------------------------------------


class _Tensor:
    """An array of another library on a GPU, known by DLPack."""

    def __init__(self, own: np.ndarray, number: int = 0) -> None:
        self._own, self.number = own, number

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number


_Tensor.__module__ = "torch"
_Jax = type("Jax", (_Tensor,), {"__module__": "jaxlib"})


def test_arrays_of_another_library_are_taken_by_dlpack() -> None:
    lstm = LSTM(I, H, backend=BACKENDS["steps"], seed=3)
    x, dy, state = _drawn(T, N, I), _drawn(T, N, H), _state(lstm)
    want, _, tape = lstm.record(x, state)
    gradients = lstm.backward(tape, dy)
    GPU.counts.clear()
    found, last, tape = lstm.record(_Tensor(x), (_Tensor(state[0]), _moved(state[1])))
    made = lstm.backward(tape, _Tensor(dy))
    lstm(_Tensor(x), last)  # CuPy's state of a call with a tensor
    assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits) == (0, 0, 0)
    np.testing.assert_array_equal(found.get(), want)
    for one, other in zip(_flat(made), _flat(gradients), strict=True):
        np.testing.assert_array_equal(one.get(), other)


def _mixed() -> dict[str, tuple[Callable[[LSTM], Any], type[Exception], str]]:
    """Name of a mistake -> the call, and its error."""
    x, dy, state = _drawn(T, N, I), _drawn(T, N, H), (_drawn(1, N, H), _drawn(1, N, H))
    gx, gdy, gstate = _moved(x), _moved(dy), _moved(state)
    far = GpuArray(state[0], GPU.cupy, 1)
    bias, gbias = {"bias_l0": _drawn(4 * H)}, _moved({"bias_l0": _drawn(4 * H)})
    masks = StackMasks((Masks(recurrent=np.ones((N, H), np.float32)),))
    on = "expected an array on cuda:0, where x is; got"
    copied = "copy {0} to cuda:0, or x to the host"
    host = "expected a NumPy array{1}; got emulation.gpu.GpuArray of a device: copy {0} to the host, or x, which is on"
    return {
        "h of the host": (
            lambda lstm: lstm(gx, (state[0], gstate[1])),
            TypeError,
            f"state.h: {on} a NumPy array: {copied.format('state.h')}",
        ),
        "c of another GPU": (
            lambda lstm: lstm(gx, (gstate[0], far)),
            ValueError,
            f"state.c: {on} one on cuda:1: copy state.c to cuda:0, or x to cuda:1",
        ),
        "h of a third library": (
            lambda lstm: lstm(_Tensor(x), (_Jax(state[0]), gstate[1])),
            TypeError,
            "state.h: expected an array of torch, as x is, or of emulation; got one of jaxlib: convert state.h or x",
        ),
        "out of the host": (
            lambda lstm: lstm(gx, out=dy.copy()),
            TypeError,
            f"out: {on} a NumPy array: {copied.format('out')}",
        ),
        "dy of the host": (lambda lstm: lstm.backward(lstm.record(gx)[2], dy), TypeError, f"dy: {on} a NumPy"),
        "masks of the host": (
            lambda lstm: lstm.record(gx, masks=masks),
            TypeError,
            f"masks.layers\\[0\\].recurrent: {on} a NumPy array: copy masks",
        ),
        "tx of the host": (lambda lstm: lstm.jvp(gx, x), TypeError, f"tx: {on} a NumPy array: copy tx"),
        "tparameters of the host": (
            lambda lstm: lstm.jvp(gx, gx, tparameters=bias),
            TypeError,
            f"tparameters\\['bias_l0'\\]: {on} a NumPy array",
        ),
        "x of the host, h": (
            lambda lstm: lstm(x, gstate),
            TypeError,
            "state.h: " + host.format("state.h", " of float32"),
        ),
        "x of the host, out": (lambda lstm: lstm(x, out=gdy), TypeError, "out: " + host.format("out", ", as x is")),
        "x of the host, dy": (
            lambda lstm: lstm.backward(lstm.record(x)[2], gdy),
            TypeError,
            "dy: " + host.format("dy", " of float32"),
        ),
        "x of the host, masks": (
            lambda lstm: lstm.record(x, masks=_moved(masks)),
            TypeError,
            "masks.layers\\[0\\].recurrent: " + host.format("masks.layers\\[0\\].recurrent", ", as x is"),
        ),
        "x of the host, tparameters": (
            lambda lstm: lstm.jvp(x, x, tparameters=gbias),
            TypeError,
            "tparameters\\['bias_l0'\\]: expected a NumPy array, as x is",
        ),
        "lengths of a GPU": (
            lambda lstm: lstm(gx, None, GPU.array_of(_lengths())),
            TypeError,
            "lengths: expected whole numbers on the host, which are checked without waiting for a device; got emul",
        ),
        "parameters of two places": (
            lambda lstm: lstm.load_parameters(lstm.parameters | gbias),
            TypeError,
            "parameters\\['bias_l0'\\]: expected a NumPy array, as parameters\\['weight_x_l0'\\] is; got emulation",
        ),
        "one parameter of the host": (
            lambda lstm: lstm.load_parameters(_moved(lstm.parameters) | bias),
            TypeError,
            "parameters\\['bias_l0'\\]: expected an array on cuda:0, where parameters\\['weight_x_l0'\\] is; got a",
        ),
        "a dtype": (lambda lstm: lstm(_moved(x.astype(float))), TypeError, "x: expected dtype float32; got float64"),
        "a shape": (lambda lstm: lstm(_moved(x[:, :, :1])), ValueError, "x: expected shape"),
        "a list": (lambda lstm: lstm(x.tolist()), TypeError, "x: expected a NumPy array of float32; got builtins.list"),
    }


@pytest.mark.parametrize("mistake", _mixed())
def test_arrays_in_two_places_are_an_error(mistake: str) -> None:
    """The message names both arguments and the way out, before anything is computed."""
    call, error, message = _mixed()[mistake]
    lstm = LSTM(I, H, backend=BACKENDS["steps"], seed=3, recurrent_dropout=0.5 if "masks" in mistake else 0.0)
    with pytest.raises(error, match=message):
        call(lstm)


def test_weights_on_another_gpu_than_x(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "cuda_device", lambda number: SimpleNamespace(name=f"cuda:{number}"))
    lstm = LSTM(I, H, backend=BACKENDS["steps"], seed=3)
    with pytest.raises(ValueError, match="x: expected an array on cuda:0, where the weights are; got one on cuda:1"):
        lstm(GpuArray(_drawn(T, N, I), GPU.cupy, 1))


def test_a_backend_of_the_processor_takes_no_array_of_a_gpu() -> None:
    """It copies nothing by itself."""
    lstm, x = LSTM(I, H, backend="numpy", seed=3), _drawn(T, N, I)
    y, state, tape = lstm.record(x)
    GPU.counts.clear()
    for call, name in (
        (lambda: lstm(_moved(x)), "x: expected a NumPy array, which backend 'numpy' computes with; got emulation.gpu"),
        (lambda: lstm(x, _moved(state)), "state.h: expected a NumPy array of float32; got emulation.gpu.GpuArray of a"),
        (lambda: lstm.backward(tape, _moved(y)), "dy: expected a NumPy array of float32; got emulation.gpu.GpuArray"),
        (lambda: lstm.load_parameters(_moved(lstm.parameters)), "parameters\\['weight_x_l0'\\]: expected a NumPy arr"),
        (lambda: _chain("numpy")(_moved(_drawn(N, T, I))), "x: expected a NumPy array, which backend 'numpy' computes"),
    ):
        with pytest.raises(TypeError, match=name):
            call()
    assert GPU.counts.copies_out == 0
