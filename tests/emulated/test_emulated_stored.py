"""Products with weights in fewer bytes on processors that this machine need not have; see `test_emulated`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emitted_tiles import target_of
from emulated_code import EMULATORS, Memory, add_dispatch, missing, run_emulated
from lstmcore.stored_weights import store

pytest.importorskip("numba", reason="numba is not installed")

#: K, no multiple of anything; numbers between rows.
K, SPACE = 23, 3


@pytest.fixture(params=EMULATORS)
def processor(request: pytest.FixtureRequest) -> str:
    """Each processor that can be emulated here."""
    name = str(request.param)
    if program := missing(name):
        pytest.skip(f"{program} is not installed")
    return name


def stored(form: str, cols: int, lanes: int) -> tuple[Any, Any, Any]:
    """Return weights in the order of a panel, their scales, and the matrix (K, columns) that they are."""
    drawn = np.random.default_rng(cols).normal(size=(cols * lanes, K)).astype(np.float32)
    matrix = store("w", drawn, "int8" if form == "pairs" else form)
    panel = matrix.values.T.reshape(K, cols, lanes)
    if form == "pairs":
        whole = np.concatenate([panel, np.zeros_like(panel[:1])])
        panel = np.stack([whole[::2], whole[1::2]], -1)
    if form == "bfloat16":
        words = np.stack([panel[:, :2], panel[:, -2:]], 1)  # vectors 0 and 1, and 2 and 3 if there are four
        words = np.stack([words[:, :, 0], words[:, :, 1]], -1).reshape(K, 2, 2 * lanes)
        panel = words if cols == 4 else np.concatenate([words[:, 0], panel[:, 2]], 1)
    scale = np.ones(cols * lanes, np.float32) if matrix.scale is None else matrix.scale
    return panel, scale, matrix.read(np.float64).T


def call(function: int, left: Any, panel: tuple[Any, Any], rows: int, size: int) -> tuple[Memory, int]:
    """Return a call of a product that replaces the result, and where the result is; both operands have scales."""
    (weights, scale), (a, row_scale) = panel, left
    memory = Memory(function, 14)
    c = np.full((rows, len(scale) + SPACE), 7, np.float32)
    places = [memory.add(np.ascontiguousarray(array)) for array in (a, weights, c, scale, row_scale)]
    words = (places[0], a.strides[0], 0, places[1], places[2], c.strides[0], 0, size, rows, 0, rows, 1, *places[3:])
    for place, word in enumerate(words):
        memory.set(8 * place, word, address=place in (0, 3, 4, 12, 13))
    return memory, places[2]


@pytest.mark.parametrize("form", ["bfloat16", "float16", "int8", "pairs"])
@pytest.mark.parametrize("cols", [3, 4])
def test_products_with_stored_weights(processor: str, form: str, cols: int, tmp_path: Path) -> None:
    """For every number of rows of a microkernel, against float64."""
    from llvmlite import ir

    from lstmcore_numba.gemm.stored_kernels import emit_kernel, stored_table

    target = target_of(processor)
    module, columns = ir.Module("stored"), cols * target.vector_bytes // 4
    emit_kernel(module, "multiply", form, cols, target)
    add_dispatch(module)
    weights, scale, matrix = stored(form, cols, columns // cols)
    calls = []
    for rows in range(1, stored_table(target, form).panels[cols - 1].rows + 1):
        rng = np.random.default_rng(rows)
        a: Any = rng.normal(size=(rows, K)).astype(np.float32)
        row_scale = rng.random(rows).astype(np.float32)
        left, size = (np.pad(a, ((0, 0), (0, SPACE))), row_scale), K
        if form == "pairs":
            integers = rng.integers(-32767, 32768, (rows, K)).astype(np.int16)
            left, size = (np.pad(integers, ((0, 0), (0, 1))), row_scale), (K + 1) // 2
            a = integers * row_scale.astype(np.float64)[:, None]
        calls.append((a, *call(0, left, (weights, scale), rows, size)))
    found = run_emulated(module, processor, [memory for _, memory, _ in calls], tmp_path)
    for (a, _, place), after in zip(calls, found, strict=True):
        c = np.frombuffer(after, np.float32, len(a) * (columns + SPACE), place).reshape(len(a), -1)
        bound = (K + 2) * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(matrix))
        assert (np.abs(c[:, :columns] - a.astype(np.float64) @ matrix) <= bound).all()
        assert (c[:, columns:] == 7).all()


def test_activations_are_rounded(processor: str, tmp_path: Path) -> None:
    """Each operation has one right result: the scale, the product with its inverse, and the nearest integer."""
    from llvmlite import ir

    from lstmcore_numba.gemm.stored_kernels import emit_kernel

    x = np.random.default_rng(0).normal(size=(3, K)).astype(np.float32)
    x[1], x[2, 5] = 0, np.nan
    module = ir.Module("stored")
    emit_kernel(module, "quantise", "pairs", 4, target_of(processor))
    add_dispatch(module)
    memory = Memory(0, 14)
    rounded = np.full((3, K + 1), 99, np.int16)
    a, c, flag, scale = (memory.add(array) for array in (x, rounded, np.zeros(1, np.int32), np.zeros(3, np.float32)))
    words = (a, x.strides[0], 0, 0, c, rounded.strides[0], 0, K, 3, 0, 3, 0, flag, scale)
    for place, word in enumerate(words):
        memory.set(8 * place, word, address=place in (0, 4, 12, 13))
    (after,) = run_emulated(module, processor, [memory], tmp_path)
    got = np.frombuffer(after, np.int16, rounded.size, c).reshape(rounded.shape)
    unit = np.abs(x[0]).max() / np.float32(32767)
    assert np.array_equal(got[0], np.rint(np.pad(x[0], (0, 1)) * (np.float32(1) / unit)))
    assert not got[1:].any()
    assert np.frombuffer(after, np.float32, 3, scale).tolist() == [unit, 1, 0]
    assert np.frombuffer(after, np.int32, 1, flag)[0] == 1
