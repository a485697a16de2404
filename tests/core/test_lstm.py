"""`LSTM`: values, states, directions, lengths, masks, gradients; against the reference composed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_stacks import assert_close, make, make_stack
from lstmcore.backend import Masks, StackMasks, State
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.lstm import LSTM
from lstmcore.masks import stack_masks
from lstmcore.precision import PRECISIONS
from lstmcore_reference.kernel import ReferenceBackend
from stacks import Array, NaiveBackend, StackCase, by_hand, make_stack_case
from strategies import lstm_configs

# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("given_state", [False, True])
def test_call_is_the_reference_composed(case: StackCase, backend: str, ragged: bool, given_state: bool) -> None:
    lengths, state = case.lengths if ragged else None, case.state if given_state else None
    y, (h_n, c_n) = make(case, backend)(case.x, state, lengths)
    expected = by_hand(case.stack, case.parameters, case.x, state, lengths)
    for found, wanted in ((y, expected.y), (h_n, expected.state.h), (c_n, expected.state.c)):
        assert_close(found, wanted)


def test_record_is_the_reference_composed_with_the_drawn_masks(case: StackCase, backend: str) -> None:
    lstm = make(case, backend, seed=11)
    lstm.step = 5
    y, (h_n, c_n), tape = lstm.record(case.x, case.state, case.lengths)
    masks = stack_masks(case.stack, PRECISIONS["float64"], 4, 3, seed=11, step=5)
    assert (masks is None) == (tape.masks is None)
    expected = by_hand(case.stack, case.parameters, case.x, case.state, case.lengths, masks)
    for found, wanted in ((y, expected.y), (h_n, expected.state.h), (c_n, expected.state.c)):
        assert_close(found, wanted)


def test_every_gradient_by_complex_step(case: StackCase, backend: str) -> None:
    lstm = make(case, backend, seed=3)
    _, _, tape = lstm.record(case.x, case.state, case.lengths)
    grads = lstm.backward(tape, case.dy, case.dstate)

    def scalar(x: Array, state: State, parameters: dict[str, Array]) -> Any:
        y, last, _ = by_hand(case.stack, parameters, x, state, case.lengths, tape.masks)
        return (case.dy * y).sum() + (case.dstate.h * last.h).sum() + (case.dstate.c * last.c).sum()

    def derivative(array: Array, run: Any) -> Array:
        found = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            moved = array.astype(np.complex128)
            moved[index] += 1e-30j
            found[index] = run(moved).imag / 1e-30
        return found

    x, state, parameters = case.x, case.state, case.parameters
    assert_close(grads.x, derivative(x, lambda moved: scalar(moved, state, parameters)))
    assert_close(grads.state.h, derivative(state.h, lambda moved: scalar(x, State(moved, state.c), parameters)))
    assert_close(grads.state.c, derivative(state.c, lambda moved: scalar(x, State(state.h, moved), parameters)))
    assert list(grads.parameters) == list(case.stack.parameter_shapes)
    rng = np.random.default_rng(0)
    for name, value in parameters.items():  # a derivative along a random direction sees every element
        along = rng.standard_normal(value.shape)
        moved = parameters | {name: value + 1e-30j * along}
        assert_close((grads.parameters[name] * along).sum(), np.array(scalar(x, state, moved).imag / 1e-30))


@settings(max_examples=30)
@given(
    lstm_configs(),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_adjoint_identity(  # noqa: PLR0913  (one for each strategy)
    config: LSTMConfig, num_layers: int, both: bool, dropout: float, steps: int, batch: int, seed: int
) -> None:
    switches = {name: value for name, value in config.to_dict().items() if name not in ("version", "reverse")}
    case = make_stack_case(make_stack(num_layers, both, dropout, **switches), steps=steps, batch=batch, seed=seed)
    lstm = make(case)
    _, _, tape = lstm.record(case.x, case.state, case.lengths, masks=case.masks)
    grads = lstm.backward(tape, case.dy, case.dstate)
    ty, (th, tc) = lstm.jvp(case.x, case.tx, case.state, case.tstate, case.tparameters, case.lengths, masks=case.masks)
    pairs = [(case.dy, ty), (case.dstate.h, th), (case.dstate.c, tc)]
    forward = [(a * b).sum() for a, b in pairs]
    pairs = [(grads.x, case.tx), (grads.state.h, case.tstate.h), (grads.state.c, case.tstate.c)]
    pairs += [(grads.parameters[name], case.tparameters[name]) for name in case.parameters]
    backward = [(a * b).sum() for a, b in pairs]
    scale = max(1.0, *np.abs(forward), *(float(np.abs(a * b).sum()) for a, b in pairs))
    # a layer norm divides by deviations down to sqrt(eps) = 0.003, once a layer and product
    assert abs(sum(forward) - sum(backward)) <= 2.0**-52 * 1e6 * scale


def test_backward_without_dy_or_dstate_takes_zeros(case: StackCase) -> None:
    lstm = make(case)
    _, _, tape = lstm.record(case.x, case.state, case.lengths)
    zeros = State(np.zeros_like(case.dstate.h), np.zeros_like(case.dstate.c))
    for left, right in (
        (lstm.backward(tape, case.dy), lstm.backward(tape, case.dy, zeros)),
        (lstm.backward(tape, None, case.dstate), lstm.backward(tape, np.zeros_like(case.dy), case.dstate)),
    ):
        np.testing.assert_array_equal(left.x, right.x)
        for name in case.parameters:
            np.testing.assert_array_equal(left.parameters[name], right.parameters[name])
    nothing = lstm.backward(tape)
    assert not nothing.x.any()
    assert not any(value.any() for value in nothing.parameters.values())


def test_jvp_tangents_left_out_are_zero(case: StackCase) -> None:
    lstm = make(case)
    name = "weight_h_l0"
    some, _ = lstm.jvp(case.x, None, case.state, tparameters={name: case.tparameters[name]})
    zeros = {key: np.zeros_like(value) for key, value in case.parameters.items()}
    full = zeros | {name: case.tparameters[name]}
    none = State(np.zeros_like(case.state.h), np.zeros_like(case.state.c))
    every, _ = lstm.jvp(case.x, np.zeros_like(case.x), case.state, none, full)
    np.testing.assert_array_equal(some, every)
    assert some.any()


# Precisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_dtypes_of_everything(dtype: str) -> None:
    stack = make_stack(2, True, 0.3, proj_size=2, zoneout_cell=0.2)
    case = make_stack_case(stack, dtype=dtype)
    lstm = make(case, NaiveBackend(), dtype)
    storage, compute = PRECISIONS[dtype].storage, PRECISIONS[dtype].compute
    y, (h_n, c_n), tape = lstm.record(case.x, case.state, case.lengths)
    grads = lstm.backward(tape, case.dy, case.dstate)
    ty, (th, tc) = lstm.jvp(case.x, case.tx, case.state, case.tstate, case.tparameters, masks=case.masks)
    stored = [y, h_n, grads.x, grads.state.h, ty, th, *grads.parameters.values(), *lstm.parameters.values()]
    assert {str(array.dtype) for array in stored} == {storage}
    assert {str(array.dtype) for array in (c_n, grads.state.c, tc)} == {compute}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_low_precision_is_near_the_reference(dtype: str) -> None:
    case = make_stack_case(make_stack(2, True, 0.3), dtype=dtype)
    y, (h_n, c_n), _ = make(case, NaiveBackend(), dtype).record(case.x, case.state, masks=case.masks)
    exact = {name: value.astype(np.float64) for name, value in case.parameters.items()}
    state = State(case.state.h.astype(np.float64), case.state.c.astype(np.float64))
    expected = by_hand(case.stack, exact, case.x.astype(np.float64), state, None, case.masks)
    for found, wanted in ((y, expected.y), (h_n, expected.state.h), (c_n, expected.state.c)):
        assert_close(found, wanted, epsilon=PRECISIONS[dtype].epsilon, terms=32)


@pytest.mark.parametrize("dtype", [np.float32, np.dtype("float32"), "float32", PRECISIONS["float32"]])
def test_dtype_is_a_name_a_numpy_dtype_or_a_precision(dtype: Any) -> None:
    assert LSTM(3, 4, dtype=dtype, backend=NaiveBackend()).precision is PRECISIONS["float32"]


# Layouts --------------------------------------------------------------------------------------------------------------


def test_batch_first_swaps_x_and_y_only(case: StackCase, backend: str) -> None:
    lstm, swapped = make(case, backend, seed=1), make(case, backend, seed=1, batch_first=True)
    turned = case.x.swapaxes(0, 1).copy()
    y, state, tape = lstm.record(case.x, case.state, case.lengths)
    y2, state2, tape2 = swapped.record(turned, case.state, case.lengths)
    assert_close(y2.swapaxes(0, 1), y)
    assert_close(state2.h, state.h)
    assert_close(state2.c, state.c)
    grads = lstm.backward(tape, case.dy, case.dstate)
    grads2 = swapped.backward(tape2, case.dy.swapaxes(0, 1).copy(), case.dstate)
    assert_close(grads2.x.swapaxes(0, 1), grads.x)
    assert_close(grads2.state.h, grads.state.h)
    for name in case.parameters:
        assert_close(grads2.parameters[name], grads.parameters[name])
    ty, _ = lstm.jvp(case.x, case.tx, case.state, case.tstate, case.tparameters)
    ty2, _ = swapped.jvp(turned, case.tx.swapaxes(0, 1), case.state, case.tstate, case.tparameters)
    assert_close(ty2.swapaxes(0, 1), ty)


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_without_a_batch_axis(case: StackCase, batch_first: bool) -> None:
    lstm = make(case, batch_first=batch_first)
    batched = make(case)

    def row(state: State) -> State:
        return State(state.h[:, 1], state.c[:, 1])

    def rows(state: State) -> State:
        return State(state.h[:, 1:2], state.c[:, 1:2])

    masks = stack_masks(case.stack, PRECISIONS["float64"], 4, 1, seed=0, step=0)
    out = np.empty_like(case.dy[:, 1])
    y, last = lstm(case.x[:, 1], row(case.state), out=out)
    expected, expected_last = batched(case.x[:, 1:2], rows(case.state))
    assert y is out
    np.testing.assert_array_equal(y, expected[:, 0])
    np.testing.assert_array_equal(last.h, expected_last.h[:, 0])
    np.testing.assert_array_equal(last.c, expected_last.c[:, 0])
    y, last, tape = lstm.record(case.x[:, 1], row(case.state), masks=masks)
    _, _, batched_tape = batched.record(case.x[:, 1:2], rows(case.state), masks=masks)
    grads = lstm.backward(tape, case.dy[:, 1], row(case.dstate))
    batched_grads = batched.backward(batched_tape, case.dy[:, 1:2], rows(case.dstate))
    assert grads.x.shape == (4, 5)
    np.testing.assert_array_equal(grads.x, batched_grads.x[:, 0])
    np.testing.assert_array_equal(grads.state.c, batched_grads.state.c[:, 0])
    ty, tlast = lstm.jvp(case.x[:, 1], case.tx[:, 1], row(case.state), row(case.tstate), case.tparameters)
    batched_ty, _ = batched.jvp(case.x[:, 1:2], case.tx[:, 1:2], rows(case.state), rows(case.tstate), case.tparameters)
    np.testing.assert_array_equal(ty, batched_ty[:, 0])
    assert tlast.c.shape == last.c.shape


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0), (1, 1)])
def test_empty_and_smallest_sizes(steps: int, batch: int, case: StackCase, backend: str) -> None:
    small = make_stack_case(case.stack, steps=steps, batch=batch)
    lstm = make(small, backend)
    y, last, tape = lstm.record(small.x, small.state, small.lengths)
    grads = lstm.backward(tape, small.dy, small.dstate)
    ty, _ = lstm.jvp(small.x, small.tx, small.state, small.tstate, small.tparameters, small.lengths)
    assert y.shape == ty.shape == small.dy.shape
    assert grads.x.shape == small.x.shape
    assert last.h.shape == small.state.h.shape
    if not steps:
        np.testing.assert_array_equal(last.h, small.state.h)
        np.testing.assert_array_equal(grads.state.c, small.dstate.c)


# Lengths, directions, rows --------------------------------------------------------------------------------------------


def test_rows_do_not_influence_each_other(case: StackCase, backend: str) -> None:
    order = np.array([2, 0, 1])
    lstm = make(case, backend)

    def rows(state: State) -> State:
        return State(state.h[:, order], state.c[:, order])

    y, last = lstm(case.x, case.state, case.lengths)
    permuted, permuted_last = lstm(case.x[:, order], rows(case.state), case.lengths[order])
    assert_close(permuted, y[:, order])
    assert_close(permuted_last.c, last.c[:, order])


def test_each_row_is_as_if_alone_and_cut_to_its_length(case: StackCase, backend: str) -> None:
    lstm = make(case, backend)
    lengths = np.array([3, 0, 2])
    y, last = lstm(case.x, case.state, lengths)
    for row, length in enumerate(lengths):
        alone = State(case.state.h[:, row], case.state.c[:, row])
        expected, expected_last = lstm(case.x[:length, row], alone)
        assert_close(y[:length, row], expected)
        assert not y[length:, row].any()
        assert_close(last.h[:, row], expected_last.h)
        assert_close(last.c[:, row], expected_last.c)


def test_a_row_of_no_steps_keeps_its_state(case: StackCase, backend: str) -> None:
    lstm = make(case, backend)
    _, last, tape = lstm.record(case.x, case.state, case.lengths)
    np.testing.assert_array_equal(last.h[:, 0], case.state.h[:, 0])
    np.testing.assert_array_equal(last.c[:, 0], case.state.c[:, 0])
    grads = lstm.backward(tape, case.dy, case.dstate)
    np.testing.assert_array_equal(grads.state.h[:, 0], case.dstate.h[:, 0])
    assert not grads.x[:, 0].any()


def test_reversed_is_forward_on_the_reversed_row() -> None:
    """The reversed direction is the forward one on the reversed row."""
    case = make_stack_case(make_stack(1, True))
    both = make(case)
    y, last = both(case.x, case.state, case.lengths)
    one = StackConfig.make(case.stack.layers[0][0])
    renamed = {name: case.parameters[f"{name}_reverse"] for name in one.parameter_shapes}
    single = LSTM.from_config(one, renamed, dtype="float64", backend=ReferenceBackend())
    for row, length in enumerate(case.lengths):
        state = State(case.state.h[1:, row], case.state.c[1:, row])
        expected, expected_last = single(case.x[:length, row][::-1], state)
        assert_close(y[:length, row, 3:], expected[::-1])
        assert_close(last.h[1:, row], expected_last.h)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_padding_has_no_influence(case: StackCase, backend: str, poison: float) -> None:
    lstm = make(case, backend)
    padding = np.arange(4)[:, None] >= case.lengths
    x, dy, tx = case.x.copy(), case.dy.copy(), case.tx.copy()
    for array in (x, dy, tx):
        array[padding] = poison
    masks = case.masks
    if masks is not None:

        def poisoned(mask: Array | None) -> Array | None:
            if mask is None or mask.ndim < 3:
                return mask
            return np.where(padding[:, :, None], poison, mask)

        layers = tuple(Masks(*map(poisoned, layer)) for layer in masks.layers)
        masks = StackMasks(layers, tuple(poisoned(mask) for mask in masks.dropout))
    y, last, tape = lstm.record(case.x, case.state, case.lengths, masks=case.masks)
    y2, last2, tape2 = lstm.record(x, case.state, case.lengths, masks=masks)
    grads, grads2 = lstm.backward(tape, case.dy, case.dstate), lstm.backward(tape2, dy, case.dstate)
    ty, tlast = lstm.jvp(x, tx, case.state, case.tstate, case.tparameters, case.lengths, masks)
    ty2, tlast2 = lstm.jvp(case.x, case.tx, case.state, case.tstate, case.tparameters, case.lengths, case.masks)
    pairs = [(y, y2), (last.h, last2.h), (last.c, last2.c), (grads.x, grads2.x), (ty, ty2), (tlast.c, tlast2.c)]
    pairs += [(grads.state.c, grads2.state.c)]
    pairs += [(grads.parameters[name], grads2.parameters[name]) for name in case.parameters]
    for left, right in pairs:
        np.testing.assert_array_equal(left, right)
    assert not y[padding].any()
    assert not grads.x[padding].any()


@pytest.mark.parametrize("kind", [list, tuple, np.int8, np.uint64, np.int32])
def test_lengths_of_any_whole_number_type(kind: Any) -> None:
    case = make_stack_case(make_stack())
    lengths = kind(case.lengths.tolist()) if kind in (list, tuple) else case.lengths.astype(kind)
    np.testing.assert_array_equal(make(case)(case.x, None, lengths)[0], make(case)(case.x, None, case.lengths)[0])
