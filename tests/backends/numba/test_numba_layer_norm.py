"""Layer norm in the Numba backend: single rows, compared with long double. The conformance suite tests whole calls.

Tolerances are in epsilons of the largest number: one for each rounding, or for each term of a sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

#: Blocks, rows, gates, and lanes of the last block that count, where a vector has `lanes`.
SHAPES = [(1, 1, 4, 1), (1, 3, 1, 3), (2, 5, 3, 2), (3, 7, 4, None), (4, 2, 2, 1)]
DTYPES = ["float32", "float64"]
EPS = 1e-5


def _rows(shape: tuple[int, int, int, int | None], dtype: str, seed: int) -> tuple[Any, int, Any]:
    """Return numbers (B, N, G, lanes) with 0 as padding, the tail of the last block, and the mask of real numbers."""
    from lstmcore_numba.gemm.vector import VECTOR_BYTES

    blocks, rows, gates, tail = shape
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    tail = lanes if tail is None else tail
    a = np.random.default_rng(seed).normal(0.7, 2.0, size=(blocks, rows, gates, lanes)).astype(dtype)
    counts = np.ones(a.shape, bool)
    counts[-1, :, :, tail:] = False
    return np.where(counts, a, 0).astype(dtype), tail, counts


def _normal(a: Any, counts: Any) -> tuple[Any, Any]:
    """Return the normalised rows and their standard deviations."""
    wide = a.astype(np.longdouble)
    centred = np.where(counts, wide - wide.mean(axis=(0, 2, 3), where=counts, keepdims=True), 0)
    deviation = np.sqrt((centred**2).mean(axis=(0, 2, 3), where=counts, keepdims=True) + EPS)
    return centred / deviation, deviation


def _derivative(a: Any, d: Any, counts: Any) -> Any:
    """Return the derivative of `_normal` at `a` along `d`, by the chain rule over mean, centred row and deviation."""
    wide, d = a.astype(np.longdouble), d.astype(np.longdouble)
    axes = (0, 2, 3)
    centred = np.where(counts, wide - wide.mean(axis=axes, where=counts, keepdims=True), 0)
    dcentred = np.where(counts, d - d.mean(axis=axes, where=counts, keepdims=True), 0)
    deviation = np.sqrt((centred**2).mean(axis=axes, where=counts, keepdims=True) + EPS)
    ddeviation = (centred * dcentred).mean(axis=axes, where=counts, keepdims=True) / deviation
    return dcentred / deviation - centred * ddeviation / deviation**2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_normalised(shape: tuple[int, int, int, int | None], dtype: str) -> None:
    from lstmcore_numba.layer_norm import normalise

    a, tail, counts = _rows(shape, dtype, 0)
    want, deviation = _normal(a, counts)
    got, divisor = a.copy(), np.full(shape[1], np.nan, dtype)
    first = min(1, shape[1] - 1)
    normalise(got, divisor, int(counts[:, 0].sum()), tail, EPS, first, shape[1])
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(
        got[:, first:], want[:, first:], rtol=0, atol=8 * eps * float(np.abs(want).max(initial=1))
    )
    np.testing.assert_allclose(divisor[first:], deviation.ravel()[first:], rtol=8 * eps)
    assert not got[~counts].any()
    np.testing.assert_array_equal(got[:, :first], a[:, :first])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_padding_of_cells_does_not_matter(dtype: str) -> None:
    from lstmcore_numba.layer_norm import normalise_cells

    a, tail, counts = _rows((3, 4, 1, 2), dtype, 1)
    want, _ = _normal(a, counts)
    c = np.where(counts, a, np.nan)[:, :, 0].swapaxes(0, 1).reshape(4, -1)
    got = np.empty_like(a)
    normalise_cells(np.ascontiguousarray(c), got, np.empty(4, dtype), int(counts[:, 0].sum()), tail, EPS, 0, 4)
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(dtype).eps * float(np.abs(want).max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_derivative_of_a_normalised_row(shape: tuple[int, int, int, int | None], dtype: str) -> None:
    from lstmcore_numba.layer_norm import norm_backward, normalise

    a, tail, counts = _rows(shape, dtype, 2)
    d, _, _ = _rows(shape, dtype, 3)
    gain, _, _ = _rows((shape[0], 1, shape[2], shape[3]), dtype, 4)
    norm, divisor, out = a.copy(), np.empty(shape[1], dtype), np.full_like(d, np.nan)
    count = int(counts[:, 0].sum())
    normalise(norm, divisor, count, tail, EPS, 0, shape[1])
    norm_backward(norm, divisor, np.ascontiguousarray(gain[:, 0]), d, out, count, 0, shape[1])
    want = _derivative(a, d * gain, counts)
    scale = float(np.abs(d * gain).max() / divisor.min())
    np.testing.assert_allclose(out, want, rtol=0, atol=16 * np.finfo(dtype).eps * max(scale, 1e-3))
    assert not out[~counts].any()
    ones = np.ones((1, shape[2], a.shape[3]), dtype)
    norm_backward(norm, divisor, ones, d, d, count, 0, shape[1])  # in place, the same gain for all blocks
    again, _, _ = _rows(shape, dtype, 3)
    want = _derivative(a, again, counts)
    np.testing.assert_allclose(
        d, want, rtol=0, atol=16 * np.finfo(dtype).eps * float(np.abs(again).max() / divisor.min())
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_gains_are_sums_over_rows_and_steps(dtype: str) -> None:
    from lstmcore_numba.runtime.thread_pool import CALLER_ALONE
    from lstmcore_numba.time_loop import cell_gradients, gain_gradients

    d, norm_x, norm_h = (
        np.stack([_rows((2, 3, 4, 5), dtype, 10 * part + step)[0] for step in range(6)]) for part in range(3)
    )
    of_x, of_h, of_bias = (np.full(d.shape[1:2] + d.shape[3:], np.nan, dtype) for _ in range(3))
    gain_gradients(CALLER_ALONE, d, norm_x, norm_h, of_x, of_h, of_bias)
    tolerance = 40 * np.finfo(dtype).eps * float(np.abs(d).max() * np.abs(norm_x).max())
    for got, other in ((of_x, norm_x), (of_h, norm_h), (of_bias, np.ones_like(d))):
        want = (d.astype(np.longdouble) * other).sum(axis=(0, 2))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)

    norm = np.ascontiguousarray(norm_x[:, :, :, :1])
    cells = np.ascontiguousarray(d[:, :, :, 0].swapaxes(1, 2)).reshape(6, 3, -1)
    of_gain, of_shift = np.full((2, 2, d.shape[4]), np.nan, dtype)
    cell_gradients(CALLER_ALONE, cells, norm, of_gain, of_shift)
    wide = d[:, :, :, 0].astype(np.longdouble)
    np.testing.assert_allclose(of_gain, (wide * norm[:, :, :, 0]).sum(axis=(0, 2)), rtol=0, atol=tolerance)
    np.testing.assert_allclose(of_shift, wide.sum(axis=(0, 2)), rtol=0, atol=tolerance)
