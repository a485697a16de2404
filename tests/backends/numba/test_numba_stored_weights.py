"""Products that read weights in fewer bytes: bits, exact integer sums, rows that are not finite, threads, receipts."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from emitted_tiles import target_of
from lstmcore import LSTM
from lstmcore.config import LSTMConfig
from lstmcore.stored_weights import FORMATS, INT8A16, store

#: T, N, I, H: one row, few rows, a K of several exact sums, and more rows than are streamed.
SIZES = [(9, 1, 7, 37), (1, 1, 40, 24), (12, 3, 33, 65), (5, 2, 1050, 9), (4, 9, 5, 20)]


def _backend(**changes: Any) -> Any:
    """Return the backend with one thread, which streams the weights of a few rows however small they are."""
    from lstmcore_numba.kernel import NumbaBackend
    from lstmcore_numba.tuning import Tuning

    threads = changes.pop("threads", 1)
    return NumbaBackend(threads, tuning=Tuning(**{"l2_weight_bytes": 0} | changes))


def _pair(form: str, size: tuple[int, int, int, int], **switches: Any) -> tuple[Any, Any, Any]:
    """Return an LSTM with stored weights, the float32 LSTM of the same numbers, and an input."""
    steps, batch, inputs, hidden = size
    small = LSTM(inputs, hidden, seed=3, weights=form, backend=_backend(), **switches)
    whole = LSTM.from_config(small.stack, small.parameters, backend=_backend())
    x = np.random.default_rng(1).normal(size=(steps, batch, inputs)).astype(np.float32)
    return small, whole, x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["bfloat16", "float16"])
def test_sixteen_bits_are_the_same_numbers(form: str, size: tuple[int, int, int, int]) -> None:
    """Widening is exact, so that only the order of a sum may differ: with one and two rows it does not."""
    small, whole, x = _pair(form, size)
    for _ in range(2):  # the second call is a replay
        got, expected = small(x)[0], whole(x)[0]
        assert np.array_equal(got, expected) if size[1] <= 2 else np.allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["bfloat16", "float16"])
def test_three_gates_are_the_same_numbers(form: str) -> None:
    """The last of three vectors of weights has no neighbour."""
    small, whole, x = _pair(form, (9, 2, 7, 37), coupling="forget_from_input")
    assert np.array_equal(small(x)[0], whole(x)[0])


@pytest.mark.parametrize("form", FORMATS)
def test_calls_of_one_step_have_the_same_bits(form: str) -> None:
    small, _, x = _pair(form, (11, 1, 30, 37), num_layers=2)
    y, (h, c) = small(x)
    state, parts = None, []
    for begin, end in ((0, 1), (1, 3), (3, 6), (6, 11)):
        part, state = small(x[begin:end], state)
        parts.append(part)
    assert np.concatenate(parts).tobytes() == y.tobytes()
    assert state is not None
    assert (state[0].tobytes(), state[1].tobytes()) == (h.tobytes(), c.tobytes())


@pytest.mark.parametrize("form", ["float16", INT8A16])
def test_threads_do_not_change_bits(form: str) -> None:
    """Threads share units, and every thread rounds all of h."""
    small, _, x = _pair(form, (30, 2, 40, 130))
    both = LSTM.from_config(small.stack, small.stored_parameters, weights=form, backend=_backend(threads=2))
    assert both(x)[0].tobytes() == small(x)[0].tobytes()


@pytest.mark.parametrize(
    "switches",
    [
        {"proj_size": 7},
        {"layer_norm": True},
        {"recurrence": "cell"},
        {"coupling": "forget_from_input"},
        {"bidirectional": True, "num_layers": 2},
    ],
)
def test_int8a16_is_near_to_its_weights_in_float32(switches: dict[str, Any]) -> None:
    small, whole, x = _pair(INT8A16, (8, 3, 20, 33), **switches)
    lengths = np.array([8, 3, 0])
    difference = np.abs(small(x, lengths=lengths)[0] - whole(x, lengths=lengths)[0]).max()
    assert 0 < difference < 2e-4


def _kernel(what: str, form: str, cols: int) -> Any:
    from lstmcore_numba.gemm.stored_kernels import compile_kernel
    from lstmcore_numba.gemm.stored_panel import KernelArguments

    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(KernelArguments._fields))
    step = compile_kernel(what, form, cols)
    return kind(step.address), step


@pytest.mark.parametrize("form", ["pairs", "quads"])
@pytest.mark.parametrize("processor", ["nehalem", "haswell", "alderlake", "skylake-avx512", "znver4"])
def test_integer_sums_are_exact(processor: str, form: str) -> None:
    """Sums up to the largest, of either sign and of several shapes of microkernels, are rounded to float32 once."""
    product = IntegerProduct.on(processor, form)
    largest = 512 if form == "pairs" else 1030
    for rows, k_size in itertools.product(range(1, product.table.panels[3].rows + 1), (1, 9, 66, largest)):
        rng = np.random.default_rng([rows, k_size])
        weights = rng.integers(-127, 128, (k_size, product.columns)).astype(np.int8)
        activations = rng.integers(-32767, 32768, (rows, k_size)).astype(np.int16)
        weights[:, :2], weights[:, 2], activations[0] = 127, -127, 32767 if rows % 2 else -32767
        exact = activations.astype(np.int64) @ weights.astype(np.int64)
        expected = exact.astype(np.float32) * np.float32(2.0**-12)
        assert np.array_equal(product(activations, weights), expected), (rows, k_size)


@dataclass
class IntegerProduct:
    """The product of a panel of 4 vectors for a processor, with all scales of columns 2^-9 and of rows 2^-3."""

    form: str
    columns: int
    table: Any
    step: Any

    @classmethod
    def on(cls, processor: str, form: str) -> IntegerProduct:
        """Return the product for a processor, or skip the test if this one has not its instructions."""
        import llvmlite.binding as llvm
        from llvmlite import ir

        from lstmcore_numba.codegen.step_compiler import compile_module
        from lstmcore_numba.gemm.stored_emitters import multiplies_bytes
        from lstmcore_numba.gemm.stored_kernels import emit_kernel, stored_table

        target, host = target_of(processor), llvm.get_host_cpu_features()
        if not llvm.get_process_triple().startswith("x86_64") or not all(
            host.get(name.lstrip("+")) for name in filter(None, target.features.split(","))
        ):
            pytest.skip(f"this processor does not run code for {processor}")
        if form == "quads" and not multiplies_bytes(target):
            pytest.skip(f"{processor} has no products of bytes")
        module = ir.Module("product")
        module.triple = llvm.get_process_triple()
        emit_kernel(module, "multiply", form, 4, target)
        return cls(form, target.vector_bytes, stored_table(target, form), compile_module(module, "multiply", target))

    def __call__(self, activations: Any, weights: Any) -> Any:
        """Return the product of int16 (rows, K) and int8 (K, columns)."""
        group = 2 if self.form == "pairs" else 4
        (rows, k_size), groups = activations.shape, -(-weights.shape[0] // group)
        whole = np.zeros((groups * group, self.columns), np.int8)
        whole[:k_size] = weights
        b = np.ascontiguousarray(whole.reshape(groups, group, self.columns).transpose(0, 2, 1))
        a = np.zeros((rows, groups * group), np.int16)
        a[:, :k_size] = activations
        scale = np.full(2 * self.columns, 2.0**-9, np.float32)
        if self.form == "quads":
            octets = (a.astype(np.int32) + 2**15).astype(np.uint16).reshape(rows, groups, 4)
            a = np.stack([octets & 255, octets >> 8], 2).astype(np.uint8)
            scale[self.columns :].view(np.int32)[:] = -128 * weights.sum(0, dtype=np.int32)
        c, row_scale = np.full((rows, self.columns + 3), 7, np.float32), np.full(rows, 2.0**-3, np.float32)
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 14)
        kind(self.step.address)(
            *(a.ctypes.data, a.strides[0], 0, b.ctypes.data, c.ctypes.data, c.strides[0], 0, groups),
            *(rows, 0, rows, 1, scale.ctypes.data, row_scale.ctypes.data),
        )
        assert (c[:, self.columns :] == 7).all()
        return c[:, : self.columns]


def test_rows_that_are_not_finite_are_multiplied_in_float32() -> None:
    """They are those of float32, and all other rows have the bits that they have without them."""
    small, whole, x = _pair(INT8A16, (5, 4, 19, 33))
    clean = small(x)[0]
    x[1, 2, 3], x[3, 0, 18] = np.inf, np.nan
    got, expected = small(x)[0], whole(x)[0]
    assert got[:, [1, 3]].tobytes() == clean[:, [1, 3]].tobytes()
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.nanmax(np.abs(got - expected)) < 1e-4


def test_a_k_beyond_exact_sums_of_bytes_is_multiplied_in_pairs() -> None:
    """All weights and inputs are the largest of their rows: 66,400 products of 127 and 255 are more than 2^31."""
    small, whole, x = _pair(INT8A16, (1, 2, 66_400, 3))
    small.load_parameters({name: np.full_like(array, 1e-4) for name, array in small.parameters.items()})
    whole.load_parameters(small.parameters)
    x[:, 0], x[:, 1] = 0.1, -0.1
    assert np.abs(small(x)[0] - whole(x)[0]).max() < 1e-4


def test_rows_of_zeros_and_of_tiny_numbers() -> None:
    small, whole, x = _pair(INT8A16, (3, 3, 9, 20))
    x[:, 0], x[:, 1] = 0, np.float32(1e-38)
    assert np.abs(small(x)[0] - whole(x)[0]).max() < 1e-4


def test_large_batches_of_sixteen_bits_are_multiplied_as_float32() -> None:
    small, whole, x = _pair("bfloat16", (3, 40, 64, 200))
    assert small(x)[0].tobytes() == whole(x)[0].tobytes()


@pytest.mark.parametrize(
    ("form", "batch", "told"),
    [
        ("float16", 1, "widened when they are loaded: a step reads 131,072 bytes"),
        ("float16", 9, "widened when they are packed: a step reads 262,144 bytes"),
        ("int8", 1, "widened when they are loaded: a step reads 67,584 bytes"),
        (INT8A16, 9, "int8a16 weights times int16 activations: a step reads 67,584 bytes"),
    ],
)
def test_a_receipt_tells_the_bytes_of_a_step(form: str, batch: int, told: str) -> None:
    """Those of int8 are weights and scales; products of bytes also read an int32 for each column."""
    from lstmcore_numba.codegen.compile_target import compile_target
    from lstmcore_numba.gemm.stored_emitters import multiplies_bytes

    if form == INT8A16 and multiplies_bytes(compile_target()):
        told = told.replace("67,584", "69,632")
    lstm = LSTM(16, 128, weights=form, seed=0, backend="numba")
    assert told in lstm.explain(steps=5, batch=batch).receipts[0][1].path


@pytest.mark.parametrize("form", ["pairs", "quads"])
def test_a_row_of_float32_is_multiplied_in_every_order_of_weights(form: str) -> None:
    """The sum of small whole numbers is exact, and is added to what is there."""
    from lstmcore_numba.packing import Layout
    from lstmcore_numba.stored_packing import _pack_values

    layout, rng = Layout(LSTMConfig(input_size=3, hidden_size=5), np.dtype(np.float32)), np.random.default_rng(3)
    weights, row = rng.integers(-127, 128, (20, 11)).astype(np.int8), rng.integers(-99, 100, 11).astype(np.float32)
    packed, scale = _pack_values(layout, weights, form), layout.pad_gates(np.arange(1, 21, dtype=np.float32))
    result = np.ones((4, layout.lanes), np.float32)
    exact, _keep = _kernel("exact", form, 4)
    addresses = (row.ctypes.data, 0, 0, packed.ctypes.data, result.ctypes.data, 0, 0, 11, 1, 0, 1, 0)
    exact(*addresses, scale.ctypes.data, 0)
    assert np.array_equal(result[:, :5].reshape(-1), 1 + (weights @ row) * np.arange(1, 21))


@pytest.mark.parametrize("form", ["pairs", "quads"])
@pytest.mark.parametrize("k_size", [1, 15, 16, 17, 40])
def test_rounded_activations_are_the_nearest(k_size: int, form: str) -> None:
    quantise, _keep = _kernel("quantise", form, 4)
    x = np.random.default_rng(k_size).normal(size=(3, k_size)).astype(np.float32)
    x[1], x[2, k_size // 2] = 0, -np.inf
    group = 2 if form == "pairs" else 4
    width = -(-k_size // group) * group
    integers, scales = np.full((3, width), 99, np.int16), np.full(3, 9, np.float32)
    flag = np.zeros(1, np.int32)
    x_row, row = x.strides[0], integers.strides[0]
    places = (integers.ctypes.data, row, 0, k_size, 3, 0, 3, 0, flag.ctypes.data, scales.ctypes.data)
    quantise(x.ctypes.data, x_row, 0, 0, *places)
    if form == "quads":
        low, high = np.moveaxis(integers.view(np.uint8).reshape(3, -1, 2, 4).astype(np.int64), 2, 0)
        integers = (256 * high + low - 2**15).reshape(3, width)
    assert scales[0] == np.abs(x[0]).max() / np.float32(32767)
    assert np.abs(integers[0]).max() == 32767
    assert (np.abs(integers[0, :k_size] * np.float64(scales[0]) - x[0]) <= 0.501 * scales[0]).all()
    assert (integers[1:] == 0).all()
    assert (integers[:, k_size:] == 0).all()
    assert (scales[1], scales[2], flag[0]) == (1, 0, 1)


def test_a_stored_matrix_is_packed_as_it_is() -> None:
    """A file's int8 matrix may have a scale that no rounding gives; its numbers are read, not rounded again."""
    lstm = LSTM(3, 5, weights=INT8A16, seed=0, backend=_backend())
    matrix = store("w", np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32), INT8A16)
    changed = dict(lstm.stored_parameters) | {"weight_h_l0": matrix}
    lstm.load_parameters(changed)
    assert np.array_equal(lstm.parameters["weight_h_l0"], matrix.read())
