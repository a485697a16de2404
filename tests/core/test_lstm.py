"""`LSTM`: values, states, directions, lengths, streaming, masks, gradients; against the reference composed by hand."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmcore import reference, registry
from lstmcore.backend import Backend, Masks, StackMasks, State, UnsupportedError
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.lstm import LSTM
from lstmcore.masks import stack_masks
from lstmcore.precision import PRECISIONS
from lstmcore_reference.kernel import ReferenceBackend
from stacks import Array, NaiveBackend, StackCase, by_hand, make_stack_case
from strategies import lstm_configs

STACKS: dict[str, dict[str, Any]] = {
    "one": {},
    "two_directions": {"bidirectional": True},
    "three_layers": {"num_layers": 3},
    "two_by_two": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "dropout": {"num_layers": 3, "dropout": 0.4},
    "everything": {
        "num_layers": 2,
        "bidirectional": True,
        "proj_size": 2,
        "dropout": 0.3,
        "peephole": True,
        "layer_norm": True,
        "recurrent_dropout": 0.25,
        "zoneout_hidden": 0.2,
        "zoneout_cell": 0.3,
        "cell_clip": 0.8,
    },
    "coupled": {"num_layers": 2, "coupling": "input_from_forget", "recurrence": "cell", "bias": False},
}


def make_stack(num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0, **switches: Any) -> StackConfig:
    config = LSTMConfig(**({"input_size": 5, "hidden_size": 3} | switches))
    return StackConfig.make(config, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout)


def make(case: StackCase, backend: Backend | str | None = None, dtype: str = "float64", **arguments: Any) -> LSTM:
    return LSTM.from_config(
        case.stack, case.parameters, dtype=dtype, backend=backend or ReferenceBackend(), **arguments
    )


def assert_close(found: Array, expected: Array, *, epsilon: float = 2.0**-52, terms: int = 256) -> None:
    """Equal up to `terms` roundings of the largest number: a step is some 10 roundings, products have some 10 terms."""
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=terms * epsilon * scale)


@pytest.fixture(params=STACKS)
def case(request: pytest.FixtureRequest) -> StackCase:
    return make_stack_case(make_stack(**STACKS[request.param]), seed=len(request.param))


@pytest.fixture(params=["reference", "numpy"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
def test_adjoint_identity(
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


def _arrays(case: StackCase) -> list[Array]:
    masks = [mask for layer in case.masks.layers for mask in layer] + list(case.masks.dropout) if case.masks else []
    arrays = [case.x, *case.state, case.lengths, *masks, case.dy, *case.dstate, case.tx, *case.tstate]
    return [array for array in [*arrays, *case.tparameters.values()] if array is not None]


def _run(lstm: LSTM, case: StackCase) -> list[Array]:
    y, last, tape = lstm.record(case.x, case.state, case.lengths, masks=case.masks)
    plain, plain_last = lstm(case.x, case.state, case.lengths)
    grads = lstm.backward(tape, case.dy, case.dstate)
    ty, tlast = lstm.jvp(case.x, case.tx, case.state, case.tstate, case.tparameters, case.lengths, case.masks)
    return [y, *last, plain, *plain_last, grads.x, *grads.state, *grads.parameters.values(), ty, *tlast]


def test_inputs_are_unchanged_and_outputs_fresh(case: StackCase, backend: str) -> None:
    """Inputs are unchanged, read-only ones work, and outputs are fresh arrays."""
    inputs = _arrays(case)
    before = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    lstm = make(case, backend)
    outputs = _run(lstm, case)
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
    for found, expected in zip(_run(make(strange, backend), strange), _run(make(case, backend), case), strict=True):
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
    expected = _run(lstm, case)
    results: list[list[Array]] = []
    threads = [threading.Thread(target=lambda: results.append(_run(lstm, case))) for _ in range(4)]
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


# Devices, backends, receipts ------------------------------------------------------------------------------------------


def test_a_device_is_reached_through_to_device_and_to_host(case: StackCase) -> None:
    backend = NaiveBackend(device="somewhere")
    lstm = make(case, backend)
    moved = len(backend.moved)
    assert moved == len(case.parameters)
    results = _run(lstm, case)
    assert backend.moved[moved:].count("out") == len(results) + 3  # jvp also brings y and the state
    for found, expected in zip(results, _run(make(case, NaiveBackend()), case), strict=True):
        np.testing.assert_array_equal(found, expected)
    out = np.empty_like(case.dy)
    assert lstm(case.x, out=out)[0] is out
    np.testing.assert_array_equal(out, lstm(case.x)[0])


@pytest.mark.parametrize("what", ["lengths", "masks", "backward", "jvp"])
def test_what_a_backend_does_not_declare_is_refused(what: str) -> None:
    case = make_stack_case(make_stack(2, dropout=0.3))
    lstm = make(case, NaiveBackend(without=frozenset({what})))
    calls: dict[str, Any] = {
        "lengths": lambda: lstm(case.x, None, case.lengths),
        "masks": lambda: lstm.record(case.x),
        "backward": lambda: lstm.record(case.x),
        "jvp": lambda: lstm.jvp(case.x, None),
    }
    with pytest.raises(UnsupportedError, match=f"backend 'naive' has no {what}: left out for a test"):
        calls[what]()


def test_a_config_that_a_backend_does_not_declare_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'naive' refuses this LSTM: peephole: left out for a test"):
        LSTM(3, 4, peephole=True, backend=NaiveBackend(without=frozenset({"peephole"})))
    with pytest.raises(UnsupportedError, match="'reference' refuses this LSTM: float32"):
        LSTM(3, 4, backend=ReferenceBackend())


def test_strict_raises_where_a_call_would_take_a_slower_path() -> None:
    lstm = LSTM(3, 4, 2, backend=NaiveBackend(), strict=True)
    x = np.zeros((101, 2, 3), np.float32)
    lstm(x[:100])
    for call in (lambda: lstm(x), lambda: lstm.record(x), lambda: lstm.jvp(x, None)):
        with pytest.raises(UnsupportedError, match=r"strict: .*'naive' would run l0 .*: more than 100 steps"):
            call()
    assert lstm.step == 0
    LSTM(3, 4, backend=NaiveBackend())(x)


def test_the_backend_comes_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    named = LSTM(3, 4, dtype="float64", backend="reference")
    assert str(named.explain()).splitlines()[0] == "backend reference on cpu, float64: named"
    monkeypatch.setenv("LSTMCORE_BACKEND", "reference")
    default = LSTM(3, 4, dtype="float64")
    assert default.backend is named.backend
    assert "LSTMCORE_BACKEND" in str(default.explain())
    with pytest.raises(ValueError, match="did you mean 'reference'"):
        LSTM(3, 4, dtype="float64", backend="refrence")
    with pytest.raises(TypeError, match=r"^backend: expected a name, a Backend or None; got int"):
        LSTM(3, 4, backend=3)  # type: ignore[arg-type]  # the mistake under test


def test_strict_objects_to_a_faster_backend_that_could_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry.Selection(NaiveBackend(), "auto", {"far": "no such device", "fast": "no peephole"})

    def get_backend(name: str) -> Backend:
        if name == "far":
            raise registry.UnavailableError("no such device")
        if name == "broken":
            raise registry.PluginError("cannot be loaded")
        return NaiveBackend()

    monkeypatch.setattr(registry, "select", lambda stack, precision, name: found)
    monkeypatch.setattr(registry, "get_backend", get_backend)
    with pytest.raises(UnsupportedError, match=r"^strict: auto passes over the faster backend 'fast': no peephole$"):
        LSTM(3, 4, strict=True)
    assert "far was passed over: no such device; fast was passed over: no peephole" in str(LSTM(3, 4).explain())
    del found.skipped["fast"]
    LSTM(3, 4, strict=True)
    found.skipped["broken"] = "cannot be loaded"
    with pytest.raises(UnsupportedError, match="'broken': cannot be loaded"):
        LSTM(3, 4, strict=True)


def test_explain_names_the_backend_and_every_path() -> None:
    explanation = LSTM(3, 4, 2, bidirectional=True, backend=NaiveBackend()).explain(200, 1)
    text = str(explanation)
    assert text.splitlines()[0].startswith("backend naive on cpu, float32:")
    assert text.count("naive: for tests") == 4
    assert text.count("not the fastest path: more than 100 steps") == 4
    assert [suffix for suffix, _ in explanation.receipts] == ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]


def test_from_config_is_the_constructor() -> None:
    made = LSTM(5, 4, 2, bidirectional=True, dropout=0.2, peephole=True, backend=NaiveBackend(), seed=3)
    again = LSTM.from_config(StackConfig.from_dict(made.stack.to_dict()), backend=NaiveBackend(), seed=3)
    assert again.stack == made.stack
    for name, value in made.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)
    with pytest.raises(TypeError, match="stack: expected a StackConfig; got dict"):
        LSTM.from_config(made.stack.to_dict())  # type: ignore[arg-type]  # the mistake under test


def test_the_article_s_recurrence() -> None:
    """``recurrence="cell"``, as a user sees it: the gates read the cell, step for step."""
    case = make_stack_case(make_stack(recurrence="cell"), batch=2)
    y, (h_n, c_n) = make(case)(case.x, case.state)
    weight, recurrent, bias = (case.parameters[f"{name}_l0"] for name in ("weight_x", "weight_h", "bias"))

    def sigmoid(z: Array) -> Array:
        return 1 / (1 + np.exp(-z))

    c = case.state.c[0]
    for t, x in enumerate(case.x):
        i, f, g, o = np.split(x @ weight.T + c @ recurrent.T + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        assert_close(y[t], h)
    assert_close(c_n[0], c)
    assert_close(h_n[0], h)


def test_repr() -> None:
    lstm = LSTM(12, 100, bidirectional=True, backend=NaiveBackend())
    assert repr(lstm) == "LSTM(12, 100, bidirectional=True, dtype='float32', backend='naive')"


def test_reference_is_what_the_tests_compare_with() -> None:
    """One layer through `LSTM` and through the function of the reference: the same bits."""
    case = make_stack_case(make_stack())
    own = {name: case.parameters[f"{name}_l0"] for name in case.stack.configs[0].parameter_shapes}
    direct = reference.forward(case.stack.configs[0], own, case.x, State(case.state.h[0], case.state.c[0]))
    np.testing.assert_array_equal(make(case)(case.x, case.state)[0], direct.y)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda lstm: pickle.loads(pickle.dumps(lstm))])
def test_copies_compute_the_same_and_are_apart(copied: Callable[[LSTM], LSTM]) -> None:
    lstm = LSTM(3, 5, 2, dropout=0.3, bidirectional=True, batch_first=True, proj_size=2, seed=4, backend="numpy")
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    lstm.record(x)
    other = copied(lstm)
    assert (other.seed, other.step, repr(other)) == (4, 1, repr(lstm))
    assert str(other.explain()) == str(lstm.explain())
    assert other.backend is lstm.backend
    assert other._kernel is not lstm._kernel
    assert not other.parameters["bias_l0"].flags.writeable
    kept = lstm.parameters
    np.testing.assert_array_equal(lstm(x)[0], other(x)[0])
    np.testing.assert_array_equal(lstm.record(x)[0], other.record(x)[0])  # the same masks
    lstm.load_parameters({name: value + 1 for name, value in kept.items()})
    for name, value in other.parameters.items():
        np.testing.assert_array_equal(value, kept[name])
    with pytest.raises(ValueError, match="got one of another LSTM"):
        lstm.backward(other.record(x)[2])


def test_a_backend_of_ones_own_is_copied_as_it_is() -> None:
    lstm = LSTM(3, 5, seed=4, backend=NaiveBackend())
    other = copy.copy(lstm)
    assert other.backend is lstm.backend
    x = np.ones((2, 1, 3), np.float32)
    np.testing.assert_array_equal(copy.deepcopy(lstm)(x)[0], lstm(x)[0])
