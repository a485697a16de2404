"""The reference on draws over all configurations, and the properties that need no oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from lstmcore import reference
from lstmcore.backend import Forward, Gradients, Masks, State, Tangents
from lstmcore.config import Activation, LSTMConfig
from lstmcore.precision import PRECISIONS
from lstmcore.registry import get_backend
from lstmcore_conformance.cases.switches import SWITCHES
from strategies import Array, Case, cases, make_case, switch_config, with_switches

STEP = 1e-30
TOLERANCE = 1e-10  # a few thousand roundings of 2e-16, relative to the largest term
HELD = SWITCHES.keys() - {name for name in SWITCHES if "_activation=" in name}

drawn = settings(max_examples=60)
every_switch = pytest.mark.parametrize("name", sorted(HELD))


def run(case: Case) -> Forward:
    return reference.forward(case.config, case.parameters, case.x, case.state, **case.call)


def gradients(case: Case) -> Gradients:
    return reference.backward(case.config, run(case).tape, case.dy, case.dstate)


def scalar(case: Case, forward: Forward) -> Array:
    """The scalar that `gradients` is of, also for complex values."""
    return np.asarray(
        (case.dy * forward.y).sum() + (case.dstate.h * forward.state.h).sum() + (case.dstate.c * forward.state.c).sum()
    )


def close(got: Any, expected: Any, message: str = "") -> None:
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=message)


def rows(case: Case, index: Any) -> Case:
    """The rows of `case` at `index`."""
    masks = case.masks
    if masks is not None:
        recurrent, hidden, cell = masks
        masks = Masks(
            None if recurrent is None else recurrent[index],
            None if hidden is None else hidden[:, index],
            None if cell is None else cell[:, index],
        )
    return replace(
        case,
        x=case.x[:, index],
        state=State(*(a[index] for a in case.state)),
        lengths=None if case.lengths is None else case.lengths[index],
        masks=masks,
        dy=case.dy[:, index],
        dstate=State(*(a[index] for a in case.dstate)),
    )


def padding(case: Case) -> Array:
    assert case.lengths is not None
    return np.arange(len(case.x))[:, None] >= case.lengths


# Derivatives ----------------------------------------------------------------------------------------------------------


@drawn
@given(cases())
def test_jvp_is_the_complex_step(case: Case) -> None:
    v = case.tangents
    assert v.x is not None
    assert v.state is not None
    assert v.parameters is not None
    _, tangent = reference.jvp(case.config, case.parameters, case.x, case.state, v, **case.call)
    moved = reference.forward(
        case.config,
        {name: a + 1j * STEP * v.parameters[name] for name, a in case.parameters.items()},
        case.x + 1j * STEP * v.x,
        State(*(a + 1j * STEP * b for a, b in zip(case.state, v.state, strict=True))),
        **case.call,
    )
    for got, expected in zip((tangent.y, *tangent.state), (moved.y, *moved.state), strict=True):
        close(got, expected.imag / STEP)


@drawn
@given(cases())
def test_backward_is_the_adjoint_of_jvp(case: Case) -> None:
    v, grads = case.tangents, gradients(case)
    assert v.state is not None
    assert v.parameters is not None
    _, tangent = reference.jvp(case.config, case.parameters, case.x, case.state, v, **case.call)
    pairs = [(grads.x, v.x), *zip(grads.state, v.state, strict=True)]
    pairs += [(grads.parameters[name], v.parameters[name]) for name in case.parameters]
    terms = np.concatenate([(a * b).ravel() for a, b in pairs])
    assert abs(float(scalar(case, tangent)) - terms.sum()) <= TOLERANCE * max(1.0, np.abs(terms).sum())


@pytest.mark.parametrize("name", SWITCHES)
def test_every_gradient_element_is_its_complex_step(name: str) -> None:
    """Every element of x, h0, c0 and each parameter on its own: an error in one gradient cannot hide in a sum."""
    case = make_case(switch_config(name), steps=3, seed=5)
    grads = gradients(case)
    inputs = {"x": case.x, "h0": case.state.h, "c0": case.state.c, **case.parameters}
    found = {"x": grads.x, "h0": grads.state.h, "c0": grads.state.c, **grads.parameters}
    for key, array in inputs.items():
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            bumped = array.astype(complex)
            bumped[index] += 1j * STEP
            with_bump = {**inputs, key: bumped}
            moved = reference.forward(
                case.config,
                {k: with_bump[k] for k in case.parameters},
                with_bump["x"],
                State(with_bump["h0"], with_bump["c0"]),
                **case.call,
            )
            numeric[index] = scalar(case, moved).imag / STEP
        close(found[key], numeric, key)


@pytest.mark.parametrize(
    "name", ["plain", "proj_size", "input_from_forget,peephole", "layer_norm", "recurrence_cell,proj_size"]
)
def test_gradients_are_central_differences(name: str) -> None:
    """A second way, through real arithmetic only. The error of a step e is O(e^2) + O(eps / e): 1e-8 is ample."""
    case, e = make_case(switch_config(name), steps=3, seed=6), 1e-5
    grads = gradients(case)
    for key, array in case.parameters.items():
        direction = np.cos(np.arange(array.size)).reshape(array.shape)
        high, low = (
            scalar(case, run(replace(case, parameters={**case.parameters, key: array + s * e * direction})))
            for s in (1, -1)
        )
        assert (high - low) / (2 * e) == pytest.approx((grads.parameters[key] * direction).sum(), rel=1e-7, abs=1e-8)


@every_switch
def test_backward_is_linear_and_none_is_zero(name: str) -> None:
    case = make_case(switch_config(name), seed=7)
    tape = run(case).tape
    both = reference.backward(case.config, tape, case.dy, case.dstate)
    one = reference.backward(case.config, tape, case.dy, None)
    two = reference.backward(case.config, tape, None, case.dstate)
    close(both.x, one.x + two.x)
    for key in case.parameters:
        close(both.parameters[key], one.parameters[key] + two.parameters[key], key)
    none = reference.backward(case.config, tape)
    assert not any(np.any(a) for a in (none.x, *none.state, *none.parameters.values()))
    zero = reference.jvp(case.config, case.parameters, case.x, case.state, Tangents(), **case.call)[1]
    assert not np.any(zero.y)


# Properties -----------------------------------------------------------------------------------------------------------


@every_switch
def test_reversed_direction_is_reversed_input(name: str) -> None:
    config = switch_config(name)
    case = make_case(config, steps=5, seed=8)
    assert case.lengths is not None
    other = with_switches(config, reverse=not config.reverse)

    def turned(array: Array | None) -> Array | None:
        if array is None:
            return None
        result = array.copy()
        for n, length in enumerate(case.lengths if case.lengths is not None else ()):
            result[:length, n] = array[:length, n][::-1]
        return result

    assert case.masks is not None
    masks = Masks(case.masks.recurrent, turned(case.masks.zoneout_hidden), turned(case.masks.zoneout_cell))
    x, dy = turned(case.x), turned(case.dy)
    assert x is not None
    assert dy is not None
    mirror = replace(case, config=other, x=x, dy=dy, masks=masks)
    forward, mirrored = run(case), run(mirror)
    np.testing.assert_array_equal(forward.y, turned(mirrored.y))
    np.testing.assert_array_equal(forward.state.c, mirrored.state.c)
    close(gradients(case).x, turned(gradients(mirror).x))


@drawn
@given(cases(max_batch=4))
def test_rows_do_not_influence_each_other(case: Case) -> None:
    whole, grads = run(case), gradients(case)
    parts = [rows(case, [n]) for n in reversed(range(case.x.shape[1]))]
    for n, part in zip(reversed(range(case.x.shape[1])), parts, strict=True):
        alone = run(part)
        close(alone.y[:, 0], whole.y[:, n])
        close(alone.state.h[0], whole.state.h[n])
        close(alone.state.c[0], whole.state.c[n])
    for key, total in grads.parameters.items():
        close(sum((gradients(part).parameters[key] for part in parts), np.zeros_like(total)), total, key)


@every_switch
def test_padding_may_hold_anything(name: str) -> None:
    case = make_case(switch_config(name), steps=5, seed=9)
    assert case.masks is not None
    past = padding(case)

    def spoiled(array: Array | None, content: float) -> Array | None:
        return None if array is None else np.where(past[..., None], content, array)

    clean, clean_grads = run(case), gradients(case)
    for content in (np.nan, np.inf, -np.inf):
        x, dy = spoiled(case.x, content), spoiled(case.dy, content)
        assert x is not None
        assert dy is not None
        hidden, cell = (spoiled(a, content) for a in (case.masks.zoneout_hidden, case.masks.zoneout_cell))
        bad = replace(case, x=x, dy=dy, masks=Masks(case.masks.recurrent, hidden, cell))
        found, grads = run(bad), gradients(bad)
        np.testing.assert_array_equal(found.y, clean.y)
        np.testing.assert_array_equal(found.state.h, clean.state.h)
        np.testing.assert_array_equal(found.state.c, clean.state.c)
        np.testing.assert_array_equal(grads.x, clean_grads.x)
        assert not np.any(grads.x[past])
        for key, expected in clean_grads.parameters.items():
            np.testing.assert_array_equal(grads.parameters[key], expected, err_msg=key)
        tangents = case.tangents._replace(x=spoiled(case.tangents.x, content))
        arguments = (case.config, case.parameters, case.x, case.state)
        expected_jvp = reference.jvp(*arguments, case.tangents, **case.call)[1]
        np.testing.assert_array_equal(reference.jvp(*arguments, tangents, **case.call)[1].y, expected_jvp.y)


@every_switch
@pytest.mark.parametrize("content", [np.nan, np.inf])
def test_row_of_length_zero_keeps_its_state(name: str, content: float) -> None:
    """Whatever its state is: it passes through and reaches no other row and no parameter."""
    case = make_case(switch_config(name), seed=10)
    assert case.lengths is not None
    assert case.lengths[0] == 0
    h, c = (a.copy() for a in case.state)
    h[0] = c[0] = content
    bad = replace(case, state=State(h, c))
    clean, found, clean_grads, grads = run(case), run(bad), gradients(case), gradients(bad)
    assert not np.any(found.y[:, 0])
    np.testing.assert_array_equal(found.state.h[0], h[0])
    np.testing.assert_array_equal(found.state.c[0], c[0])
    np.testing.assert_array_equal(found.y, clean.y)
    np.testing.assert_array_equal(grads.state.h[0], case.dstate.h[0])
    np.testing.assert_array_equal(grads.state.c[0], case.dstate.c[0])
    for key, expected in clean_grads.parameters.items():
        np.testing.assert_array_equal(grads.parameters[key], expected, err_msg=key)


@every_switch
@pytest.mark.parametrize("at", [0, 2, 5])
def test_split_and_resume(name: str, at: int) -> None:
    case = make_case(switch_config(name), steps=5, seed=11, lengths=False)
    masks, state, y = case.masks, case.state, np.zeros_like(case.dy)
    assert masks is not None
    parts = [slice(0, at), slice(at, 5)]
    for part in reversed(parts) if case.config.reverse else parts:
        hidden, cell = (None if a is None else a[part] for a in masks[1:])
        y[part], state, _ = reference.forward(
            case.config, case.parameters, case.x[part], state, masks=Masks(masks.recurrent, hidden, cell)
        )
    whole = run(case)
    np.testing.assert_array_equal(y, whole.y)
    np.testing.assert_array_equal(state.h, whole.state.h)
    np.testing.assert_array_equal(state.c, whole.state.c)


@every_switch
@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0), (1, 1)])
def test_empty_sizes(name: str, steps: int, batch: int) -> None:
    case = make_case(switch_config(name), steps=steps, batch=batch)
    found, grads = run(case), gradients(case)
    assert found.y.shape == (steps, batch, case.config.output_size)
    assert grads.x.shape == case.x.shape
    assert {key: a.shape for key, a in grads.parameters.items()} == case.config.parameter_shapes
    if steps == 0:
        np.testing.assert_array_equal(found.state.c, case.state.c)
        np.testing.assert_array_equal(grads.state.c, case.dstate.c)
        assert not any(np.any(a) for a in grads.parameters.values())


@every_switch
def test_inputs_are_not_written_to(name: str) -> None:
    case = make_case(switch_config(name), seed=12)
    arrays = [case.x, case.dy, *case.state, *case.dstate, *case.parameters.values()]
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    found = run(case)
    first, second = (reference.backward(case.config, found.tape, case.dy, case.dstate) for _ in range(2))
    np.testing.assert_array_equal(first.x, second.x)
    for a, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, copy)
        assert not any(np.shares_memory(a, out) for out in (found.y, *found.state, first.x, *first.state))


def test_one_hidden_unit_with_layer_norm() -> None:
    """LN of a single number is 0: the output is the shift's, whatever the cell holds."""
    case = make_case(LSTMConfig(input_size=2, hidden_size=1, layer_norm=True), lengths=False)
    step = run(case).tape.steps[0][1]
    np.testing.assert_array_equal(step.c_out, np.broadcast_to(case.parameters["norm_bias_c"], step.c_out.shape))
    assert np.isfinite(gradients(case).x).all()


# Numbers --------------------------------------------------------------------------------------------------------------


@every_switch
@pytest.mark.parametrize("size", [1e4, -1e4, 1e150])  # the squares of a layer norm overflow from 1e154 on
def test_saturation_without_nan_or_warning(name: str, size: float) -> None:
    case = make_case(switch_config(name), seed=13)
    case = replace(case, x=case.x * size)
    found, grads = run(case), gradients(case)
    assert np.isfinite(found.y).all()
    assert np.isfinite(grads.x).all()
    assert all(np.isfinite(a).all() for a in grads.parameters.values())


def test_infinite_preactivations_saturate() -> None:
    case = make_case(LSTMConfig(input_size=1, hidden_size=2), lengths=False)
    inf = replace(case, x=np.full_like(case.x, np.inf))
    far = replace(case, x=np.full_like(case.x, 1e6))
    np.testing.assert_array_equal(run(inf).y, run(far).y)


def rounded_to_bfloat16(value: float) -> float:
    """Nearest number with 8 significant bits, ties to even, by exact arithmetic on Python floats."""
    if value == 0.0:
        return value
    mantissa, exponent = np.frexp(value)
    return float(np.ldexp(round(float(mantissa) * 256), int(exponent) - 8))


@pytest.mark.parametrize("name", ["plain", "proj_size", "zoneout_hidden", "layer_norm"])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_h_is_rounded_to_the_storage_dtype(name: str, precision: str) -> None:
    case = make_case(switch_config(name), seed=14)
    y, state, tape = reference.forward(
        case.config, case.parameters, case.x, case.state, **case.call, precision=precision
    )
    assert (y.dtype, state.h.dtype, state.c.dtype) == ("float32",) * 3
    if precision == "bfloat16":
        expected = np.vectorize(rounded_to_bfloat16)(y)
    else:
        expected = y.astype(PRECISIONS[precision].storage).astype("float64")
    np.testing.assert_array_equal(y, expected)
    wide = reference.forward(case.config, case.parameters, case.x, case.state, **case.call).y
    assert 0 < np.abs(y - wide).max() < 16 * PRECISIONS[precision].epsilon
    grads = reference.backward(case.config, tape, case.dy, case.dstate)
    assert {a.dtype for a in (grads.x, *grads.state, *grads.parameters.values())} == {np.dtype("float32")}


def test_bfloat16_ties_go_to_even() -> None:
    policy = PRECISIONS["bfloat16"]
    h = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 0.0, np.inf, np.nan], "float32")
    stored = reference._stored(h, policy)
    np.testing.assert_array_equal(stored, np.array([1, 1 + 2.0**-6, -1, 0, np.inf, np.nan], "float32"))


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_the_derivative_of_a_clip_at_nan_is_0(backend: str) -> None:
    """f c + i g is NaN where c is: c stays NaN, and the gradient ends at the clip. One step, and only dc comes in."""
    results = {}
    for bound in (None, 0.3):
        config = LSTMConfig(input_size=2, hidden_size=3, cell_clip=bound, hidden_activation=Activation("identity"))
        case = make_case(config, steps=1, batch=2, lengths=False)
        case.state.c[0, 1] = np.nan
        kernel = get_backend(backend).compile(config, "float64")
        weights = kernel.pack(case.parameters)
        done = kernel.forward(weights, case.x, case.state, record=True)
        assert np.isnan(done.state.c).tolist() == [[False, True, False], [False, False, False]]
        results[bound] = kernel.backward(weights, done.tape, None, case.dstate._replace(h=0 * case.dstate.h)).state.c
    assert np.isfinite(results[None]).all()
    assert results[None][0, 1] != 0
    assert results[0.3][0, 1] == 0
