"""`LSTM` from call to call: streaming, tapes, randomness, who owns which array, threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from lstm_stacks import STACKS, all_arrays, assert_close, make, make_stack, run_all
from lstmcore.backend import Masks, StackMasks, State
from lstmcore.lstm import LSTM
from lstmcore.masks import stack_masks
from lstmcore.precision import PRECISIONS
from lstmcore_reference.kernel import ReferenceBackend
from stacks import Array, NaiveBackend, StackCase, make_stack_case

# Streaming ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_streaming_is_the_same_computation(dtype: str) -> None:
    stack = make_stack(2, proj_size=2, peephole=True)
    case = make_stack_case(stack, steps=20, batch=2, dtype=dtype)
    backend = NaiveBackend()
    lstm = make(case, backend, dtype)
    packed = backend.packed
    whole, whole_last = lstm(case.x, case.state)
    state, parts = case.state, []
    for step in case.x:
        y, state = lstm(step[None], state)
        parts.append(y)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(state.h, whole_last.h)
    np.testing.assert_array_equal(state.c, whole_last.c)
    assert backend.packed == packed


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_streaming_on_numpy_in_parts_of_any_size(dtype: str, size: int) -> None:
    """Up to the order in which a matrix product adds, which may depend on its number of rows."""
    case = make_stack_case(make_stack(2, peephole=True, hidden_size=9), steps=20, batch=2, dtype=dtype)
    lstm = make(case, "numpy", dtype)
    whole, whole_last = lstm(case.x, case.state)
    state, parts = case.state, []
    for start in range(0, 20, size):
        y, state = lstm(case.x[start : start + size], state)
        parts.append(y)
    epsilon = PRECISIONS[dtype].epsilon
    assert_close(np.concatenate(parts), whole, epsilon=epsilon, terms=32)
    assert_close(state.c, whole_last.c, epsilon=epsilon, terms=32)


# Tapes ----------------------------------------------------------------------------------------------------------------


def test_a_tape_outlives_new_parameters_and_can_be_used_again(case: StackCase, backend: str) -> None:
    lstm = make(case, NaiveBackend() if backend == "reference" else backend)
    _, _, tape = lstm.record(case.x, case.state, case.lengths)
    first = lstm.backward(tape, case.dy, case.dstate)
    lstm.load_parameters(case.tparameters)
    again = lstm.backward(tape, case.dy, case.dstate)
    np.testing.assert_array_equal(first.x, again.x)
    for name in case.parameters:
        np.testing.assert_array_equal(first.parameters[name], again.parameters[name])


def test_changing_the_final_state_does_not_change_the_tape(case: StackCase, backend: str) -> None:
    lstm = make(case, NaiveBackend() if backend == "reference" else backend)
    _, last, tape = lstm.record(case.x, case.state, case.lengths)
    first = lstm.backward(tape, case.dy, case.dstate)
    last.h[...], last.c[...] = 7.0, 7.0
    again = lstm.backward(tape, case.dy, case.dstate)
    np.testing.assert_array_equal(first.parameters["weight_h_l0"], again.parameters["weight_h_l0"])
    np.testing.assert_array_equal(first.state.c, again.state.c)


def test_recorded_y_is_read_only(case: StackCase) -> None:
    y, _, _ = make(case).record(case.x)
    with pytest.raises(ValueError, match="read-only"):
        y[...] = 0


def test_recorded_masks_run_the_call_again(case: StackCase) -> None:
    lstm = make(case)
    y, last, tape = lstm.record(case.x, case.state)
    y2, last2, tape2 = lstm.record(case.x, case.state, masks=tape.masks)
    if tape.masks is not None:
        assert tape2.masks is tape.masks
        np.testing.assert_array_equal(y, y2)
        np.testing.assert_array_equal(last.c, last2.c)


@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_masks_may_change_after_the_call(backend: str) -> None:
    """A tape of a stack does not refer to the dropout masks that its caller gave (SPEC.md, S9.14)."""
    case = make_stack_case(make_stack(3, bidirectional=True, dropout=0.4))
    lstm = make(case, backend)
    masks = lstm.record(case.x, case.state)[2].masks
    assert masks is not None and len(masks.dropout) == 2
    tapes = [lstm.record(case.x, case.state, masks=masks)[2] for _ in range(2)]
    dy = np.ones((*case.x.shape[:2], lstm.output_width))
    before = lstm.backward(tapes[0], dy)
    for mask in masks.dropout:
        mask[...] = np.nan
    after = lstm.backward(tapes[1], dy)
    np.testing.assert_array_equal(after.x, before.x)
    for name, gradient in before.parameters.items():
        np.testing.assert_array_equal(after.parameters[name], gradient)


def test_no_masks_is_the_behaviour_of_a_call() -> None:
    case = make_stack_case(make_stack(**STACKS["everything"]))
    lstm = make(case)
    none = StackMasks((Masks(),) * 4)
    np.testing.assert_array_equal(lstm.record(case.x, case.state, masks=none)[0], lstm(case.x, case.state)[0])
    assert (lstm.record(case.x, case.state)[0] != lstm(case.x, case.state)[0]).any()


# Randomness -----------------------------------------------------------------------------------------------------------


def test_the_seed_and_the_step_fix_the_masks() -> None:
    def run(seed: int, step: int) -> Array:
        lstm = LSTM(3, 4, 2, dropout=0.5, dtype="float64", backend=ReferenceBackend(), seed=seed)
        lstm.load_parameters({name: np.ones(shape) for name, shape in lstm.stack.parameter_shapes.items()})
        lstm.step = step
        return lstm.record(np.ones((6, 2, 3)))[0]

    np.testing.assert_array_equal(run(4, 2), run(4, 2))
    assert (run(4, 2) != run(4, 3)).any()
    assert (run(4, 2) != run(5, 2)).any()


def test_the_step_counts_recorded_calls() -> None:
    lstm = LSTM(3, 4, 2, dropout=0.5, dtype="float64", backend=ReferenceBackend(), seed=0)
    x = np.ones((6, 2, 3))
    assert lstm.step == 0
    lstm(x)
    assert lstm.step == 0
    _, _, first = lstm.record(x)
    lstm.record(x, masks=first.masks)
    with pytest.raises(ValueError, match="x: expected shape"):
        lstm.record(x[0, 0])
    assert lstm.step == 2
    third = lstm.record(x)[0]
    lstm.step = 2
    np.testing.assert_array_equal(lstm.record(x)[0], third)


# Inputs and outputs ---------------------------------------------------------------------------------------------------


def test_inputs_are_unchanged_and_outputs_fresh(case: StackCase, backend: str) -> None:
    """Inputs are unchanged, read-only ones work, and outputs are fresh arrays."""
    inputs = all_arrays(case)
    before = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    lstm = make(case, backend)
    outputs = run_all(lstm, case)
    for array, old in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, old)
    for index, output in enumerate(outputs):
        others = [*inputs, *outputs[:index], *lstm.parameters.values()]
        assert not any(np.shares_memory(output, other) for other in others)


def test_non_contiguous_inputs(case: StackCase, backend: str) -> None:
    def spread(array: Array) -> Array:
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1] + 1), np.nan, array.dtype)
        wide[..., 1::2] = array
        return wide[..., 1::2]

    def pair(state: State) -> State:
        return State(spread(state.h), spread(state.c))

    strange = StackCase(
        case.stack,
        {name: spread(value) for name, value in case.parameters.items()},
        np.asfortranarray(case.x)[:, :, ::1],
        pair(case.state),
        np.repeat(case.lengths, 2)[::2],
        case.masks,
        spread(case.dy)[::-1][::-1],
        pair(case.dstate),
        spread(case.tx),
        pair(case.tstate),
        {name: spread(value) for name, value in case.tparameters.items()},
    )
    for found, expected in zip(
        run_all(make(strange, backend), strange), run_all(make(case, backend), case), strict=True
    ):
        assert_close(found, expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_out(case: StackCase, backend: str, batch_first: bool) -> None:
    lstm = make(case, backend, batch_first=batch_first)
    x = case.x.swapaxes(0, 1) if batch_first else case.x
    expected, _ = lstm(x, case.state, case.lengths)
    out = np.full(expected.shape, np.nan)
    y, _ = lstm(x, case.state, case.lengths, out=out)
    assert y is out
    np.testing.assert_array_equal(out, expected)
    wide = np.full((*expected.shape[:2], 2 * expected.shape[2]), np.nan)
    lstm(x, case.state, case.lengths, out=wide[:, :, 1::2])
    np.testing.assert_array_equal(wide[:, :, 1::2], expected)
    assert np.isnan(wide[:, :, ::2]).all()


def test_threads_give_the_same_bits(case: StackCase, backend: str) -> None:
    lstm = make(case, backend)
    expected = run_all(lstm, case)
    results: list[list[Array]] = []
    threads = [threading.Thread(target=lambda: results.append(run_all(lstm, case))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        for found, wanted in zip(result, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_threads_that_record_draw_different_masks() -> None:
    lstm = LSTM(3, 4, 2, dropout=0.5, dtype="float64", backend=ReferenceBackend(), seed=0)
    tapes: list[Any] = []

    def work() -> None:
        for _ in range(20):
            tapes.append(lstm.record(np.ones((2, 1, 3)))[2])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lstm.step == len(tapes) == 80
    drawn = [stack_masks(lstm.stack, lstm.precision, 2, 1, seed=0, step=step) for step in range(80)]
    wanted = sorted(masks.dropout[0].tobytes() for masks in drawn if masks is not None)
    assert sorted(tape.masks.dropout[0].tobytes() for tape in tapes) == wanted
