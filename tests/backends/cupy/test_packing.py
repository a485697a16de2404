"""Packed parameters on the stand-in: one launch copies all of them, bit by bit."""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from emulation.gpu import Gpu
from lstmcore import LSTM
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import get_precision, numpy_dtype
from lstmcore.training import Adam, Readout, SequenceModel, Trainer
from lstmcore.training.learning import Learner
from lstmcore_cupy import packing, program_source
from lstmcore_cupy.kernel import CupyBackend

pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

GPU = Gpu()
BACKEND = CupyBackend(GPU)
SMALL = StackConfig.make(
    LSTMConfig(input_size=2, hidden_size=3, peephole=True, proj_size=2), num_layers=2, bidirectional=True
)
#: More arrays than a launch takes, and one that several blocks share.
LARGE = StackConfig.make(LSTMConfig(input_size=130, hidden_size=9, layer_norm=True), num_layers=19)
DTYPES = ("float32", "float64", "bfloat16", "float16")


def drawn(stack: StackConfig, dtype: str, seed: int = 0) -> dict[str, Any]:
    """Return parameters of the host, of which some are -0.0."""
    random = np.random.default_rng(seed)
    found = {name: random.standard_normal(shape) for name, shape in stack.parameter_shapes.items()}
    for value in found.values():
        value.flat[-1] = -0.0
    return {name: value.astype(numpy_dtype(dtype)) for name, value in found.items()}


def on_gpu(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: GPU.array_of(value) for name, value in arrays.items()}


def packed_arrays(weights: Any, stack: StackConfig) -> dict[str, Any]:
    """Return the arrays of a stack's weights by their full names."""
    pairs = zip(weights, stack.suffixes, strict=True)
    return {name + suffix: array for each, suffix in pairs for name, array in each.parameters.items()}


def same_bits(found: Any, wanted: Any) -> bool:
    own = found.get()
    return own.dtype == wanted.dtype and own.shape == wanted.shape and own.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stack", "launches"), [(SMALL, 1), (LARGE, 2)], ids=["small", "large"])
def test_all_parameters_are_packed_by_one_launch(stack: StackConfig, launches: int, dtype: str) -> None:
    """A launch takes so many arrays. The weights have the compute dtype, the copies the bits that were given."""
    given, policy = drawn(stack, dtype), get_precision(dtype)
    kernel = BACKEND.compile_stack(stack, dtype)
    assert len(given) > packing._PARAMETERS or stack is SMALL
    arrays = on_gpu(given)
    GPU.counts.clear()
    weights, copies = kernel.pack_copies(arrays)
    assert GPU.counts.launches == ["pack"] * launches
    assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits, GPU.counts.memsets) == (0, 0, 0, 0)
    for array in arrays.values():
        array.fill(7)  # what is changed later reaches nothing
    packed = packed_arrays(weights, stack)
    assert list(copies) == list(given)
    for name, value in given.items():
        assert same_bits(copies[name], value), name
        assert same_bits(packed[name], value.astype(policy.compute)), name
        assert np.shares_memory(copies[name]._own, packed[name]._own) == (policy.compute == policy.storage)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_arrays_are_apart_and_aligned(dtype: str) -> None:
    """Products get operands that are aligned as those of fresh memory, 512 bytes."""
    weights, copies = BACKEND.compile_stack(LARGE, dtype).pack_copies(on_gpu(drawn(LARGE, dtype)))
    for arrays in (packed_arrays(weights, LARGE), copies):
        places = [(array.data.ptr, array.nbytes) for array in arrays.values()]
        first = min(place for place, _ in places)
        assert not any((place - first) % 512 for place, _ in places)
        ordered = sorted(places)
        assert all(place + size <= after for (place, size), (after, _) in pairwise(ordered))


def test_arrays_that_are_not_in_order_are_packed_too() -> None:
    given = drawn(SMALL, "float32")
    strided = {name: GPU.array_of(value.T.copy()).T for name, value in given.items()}
    weights, copies = BACKEND.compile_stack(SMALL, "float32").pack_copies(strided)
    for name, value in given.items():
        assert same_bits(copies[name], value)
    assert all(same_bits(array, given[name]) for name, array in packed_arrays(weights, SMALL).items())


def test_arrays_of_the_host_are_packed_by_one_launch() -> None:
    given = drawn(SMALL, "float32")
    kernel = BACKEND.compile_stack(SMALL, "float32")
    GPU.counts.clear()
    weights = kernel.pack(given)
    assert GPU.counts.launches == ["pack"]
    assert GPU.counts.copies_in == len(given)
    assert all(same_bits(array, given[name]) for name, array in packed_arrays(weights, SMALL).items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_is_one_launch_and_keeps_what_was_taken(dtype: str) -> None:
    """Of an LSTM: its parameters are copies, and those that were taken before keep their values."""
    lstm = LSTM(2, 3, bidirectional=True, dtype=dtype, backend=BACKEND, seed=0)
    before, after = (drawn(lstm.stack, dtype, seed) for seed in (1, 2))
    lstm.load_parameters(on_gpu(before))
    taken, given = lstm.parameters, on_gpu(after)
    GPU.counts.clear()
    lstm.load_parameters(given)
    assert GPU.counts.launches == ["pack"]
    for array in given.values():
        array.fill(7)
    assert list(lstm.parameters) == list(after)
    for name, value in after.items():
        assert same_bits(lstm.parameters[name], value)
        assert same_bits(taken[name], before[name])


@pytest.mark.parametrize("layers", [1, 2])
def test_new_parameters_of_a_training_are_few_launches(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step's gradients: clipping 2, Adam 1, weights 1, copies of the readout 2, and the sum of norms 1."""
    counted, step = list[list[str]](), Learner._step

    def told(self: Learner, *arguments: Any) -> Any:
        GPU.counts.clear()
        norm = step(self, *arguments)
        counted.append(list(GPU.counts.launches))
        return norm

    monkeypatch.setattr(Learner, "_step", told)
    lstm = LSTM(2, 5, num_layers=layers, bidirectional=layers > 1, backend=BACKEND, seed=1)
    model = SequenceModel(lstm, Readout.of(lstm, 3, activation="softmax", seed=2))
    inputs, targets = [np.full((4, 2), 0.1 * row) for row in range(9)], [np.array(row % 3) for row in range(9)]
    options: dict[str, Any] = {"optimizer": Adam(0.01), "epochs": 1, "batch_size": 3, "validation": 0.0}
    Trainer(model, device="cuda", quiet=True, **options).fit(inputs, targets)
    assert len(counted) == 3  # the first steps make the moments
    assert len(counted[-1]) <= 7
    assert counted[-1].count("pack") == 1


def test_the_argument_is_one_that_every_gpu_takes() -> None:
    """Before CUDA 12.1 the arguments of a kernel have 4096 bytes; the number of arrays is that of the source."""
    assert f"#define PARAMETERS {packing._PARAMETERS}  " in program_source.source("rows.cu")
    item = len(program_source.fields("Parameter"))
    assert 8 * (len(program_source.fields("Packing")) + item * packing._PARAMETERS) <= 4096
