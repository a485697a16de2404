"""T steps in one call and in several calls have the same bits, whatever the calls' numbers of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.backend import State
from lstmcore.config import LSTMConfig
from lstmcore.precision import numpy_dtype

#: Steps of each call, of 11 in all: single ones, and more than one microkernel has rows.
PIECES = [(1, 1, 8, 1), (7, 4), (2, 9)]
STEPS = 11

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "projection": {"proj_size": 9},
    "cell as recurrent input": {"recurrence": "cell", "coupling": "forget_from_input"},
    "peephole": {"peephole": True, "bias": False},
    "layer norm": {"layer_norm": True},
    "clips and zoneout": {"gate_clip": 0.5, "cell_clip": 0.3, "zoneout_hidden": 0.2, "zoneout_cell": 0.1},
}


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    return rng.normal(size=shape).astype(numpy_dtype(dtype))


def check(switches: dict[str, Any], *, batch: int, width: int, reverse: bool, dtype: str = "float32") -> None:
    """Compare y and the final state of a call of one layer in one direction with those of calls in pieces.

    A reversed direction begins with the last piece.
    """
    from lstmcore_numba.kernel import NumbaBackend

    config = LSTMConfig(input_size=width, hidden_size=21, reverse=reverse, **switches)
    kernel = NumbaBackend().compile(config, dtype)
    rng = np.random.default_rng(0)
    shapes = config.parameter_shapes
    weights = kernel.pack({name: numbers(rng, shape, dtype) / 4 for name, shape in shapes.items()})
    x = numbers(rng, (STEPS, batch, width), dtype)
    first = State(
        numbers(rng, (batch, config.output_size), dtype), rng.normal(size=(batch, 21)).astype(kernel.precision.compute)
    )
    whole = kernel.forward(weights, x, first)
    for pieces in PIECES:
        ends = np.cumsum(pieces)
        cuts = [slice(end - size, end) for end, size in zip(ends, pieces, strict=True)]
        state, y = first, np.empty_like(whole.y)
        for cut in reversed(cuts) if reverse else cuts:
            y[cut], state, _ = kernel.forward(weights, x[cut], state)
        for name, found, expected in (("y", y, whole.y), ("h", state.h, whole.state.h), ("c", state.c, whole.state.c)):
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} in pieces of {pieces}")


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", SWITCHES)
def test_pieces_have_the_bits_of_the_whole(name: str, reverse: bool) -> None:
    """With one row, and with as many as one microkernel takes."""
    for batch in (1, 4):
        check(SWITCHES[name], batch=batch, width=10, reverse=reverse)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 12])
def test_pieces_of_wide_inputs_have_the_bits_of_the_whole(batch: int) -> None:
    """K of the input projection is taken in two blocks, for any number of rows."""
    check({}, batch=batch, width=150, reverse=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pieces_of_short_numbers_have_the_bits_of_the_whole(dtype: str) -> None:
    check({}, batch=1, width=150, reverse=False, dtype=dtype)


def test_pieces_of_a_stack_have_the_bits_of_the_whole() -> None:
    """Layers of long calls run in a wavefront, layers of short ones in turn."""
    from lstmcore_numba.kernel import NumbaBackend
    from lstmcore_numba.tuning import Tuning

    backend = NumbaBackend(threads=2, tuning=Tuning(wavefront_work=1000, wavefront_lags=2))
    lstm = LSTM(10, 21, num_layers=2, backend=backend, seed=0)
    x = np.random.default_rng(0).normal(size=(40, 1, 10)).astype(np.float32)
    assert "wavefront" in str(lstm._kernel.receipts(40, 1)[0].path)
    whole, last = lstm(x)
    state, y = None, np.empty_like(whole)
    for begin, end in ((0, 1), (1, 21), (21, 40)):
        y[begin:end], state = lstm(x[begin:end], state)
    np.testing.assert_array_equal(y, whole)
    for found, expected in zip(state, last, strict=True):
        np.testing.assert_array_equal(found, expected)
