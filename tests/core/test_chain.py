"""`Chain` against stacks, single LSTMs and finite differences: layers of other sizes, reversed ones, merges."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import Masks, StackMasks
from lstmcore.chain import Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.lstm import LSTM
from stacks import Array

T, N, I = 6, 4, 3
LENGTHS = np.array([6, 0, 4, 1])
MERGES = ("sum", "mul", "average", "concat")
RANDOM: dict[str, Any] = {"zoneout_hidden": 0.3, "zoneout_cell": 0.2, "recurrent_dropout": 0.25}


def lstm(width: int, hidden: int, seed: int, *, dtype: str = "float64", **switches: Any) -> LSTM:
    return LSTM(width, hidden, dtype=dtype, seed=seed, backend=switches.pop("backend", "numpy"), **switches)


def mixed(merge: Any = "mul", *, backend: str = "numpy", random: bool = False, **arguments: Any) -> Chain:
    """Another size in each layer, two layers in one LSTM, a lone reversed layer, a merge in the middle."""
    rates = RANDOM if random else {}
    layers = [
        lstm(I, 5, 1, backend=backend, peephole=True, **rates),
        Reversed(lstm(5, 7, 2, backend=backend, proj_size=2, **rates)),
        lstm(2, 4, 3, backend=backend, bidirectional=True, num_layers=2, dropout=0.4 if random else 0.0),
        Merge(merge),
        lstm(8 if merge == "concat" else 4, 3, 4, backend=backend, layer_norm=True),
        Reversed(lstm(3, 6, 5, backend=backend)),
    ]
    return Chain(layers, **arguments)


def normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape)


def states(chain: Chain, random: np.random.Generator, rows: tuple[int, ...] = (N,)) -> list[tuple[Array, Array]]:
    found = []
    for one in chain.lstms:
        entries = one.stack.num_layers * one.stack.num_directions
        sizes = (one.stack.output_size, one.stack.hidden_size)
        h, c = (normal(random, entries, *rows, size) for size in sizes)
        found.append((h, c))
    return found


def flat(state: Any) -> list[Array]:
    return [array for pair in state for array in pair]


def test_layers_of_one_size_are_a_stack() -> None:
    """All calls of a chain of single layers give the bits of the stack of the same layers."""
    random = np.random.default_rng(0)
    for bidirectional, switches in ((False, {}), (True, {"proj_size": 2}), (True, {"peephole": True})):
        directions = 2 if bidirectional else 1
        stack = lstm(I, 5, 1, num_layers=3, bidirectional=bidirectional, **switches)
        width = stack.output_width
        chain = Chain(
            [lstm(I if k == 0 else width, 5, 9 + k, bidirectional=bidirectional, **switches) for k in range(3)]
        )
        chain.load_parameters(
            {name: stack.parameters[name.partition(".")[2].replace("_l0", f"_l{name[0]}")] for name in chain.parameters}
        )
        x, dy = normal(random, T, N, I), normal(random, T, N, width)
        (h0, c0), dstate, tstate = (flat(states(Chain([one]), random)) for one in (stack, stack, stack))
        parts = [slice(directions * k, directions * (k + 1)) for k in range(3)]

        def apart(pair: Any, parts: Any = parts) -> list[tuple[Array, Array]]:
            return [(pair[0][part], pair[1][part]) for part in parts]

        tparameters = {name: normal(random, *value.shape) for name, value in chain.parameters.items()}
        renamed = {name.partition(".")[2].replace("_l0", f"_l{name[0]}"): v for name, v in tparameters.items()}
        y, last, tape = stack.record(x, (h0, c0), LENGTHS)
        found, finals, chain_tape = chain.record(x, apart((h0, c0)), LENGTHS)
        wanted = stack.backward(tape, dy, tuple(dstate))
        gradients = chain.backward(chain_tape, dy, apart(dstate))
        ty, tlast = stack.jvp(x, dy[..., :I], (h0, c0), tuple(tstate), renamed, LENGTHS)
        tfound, tfinals = chain.jvp(x, dy[..., :I], apart((h0, c0)), apart(tstate), tparameters, LENGTHS)
        pairs = [(found, y), (chain(x, apart((h0, c0)), LENGTHS)[0], stack(x, (h0, c0), LENGTHS)[0]), (tfound, ty)]
        pairs += [(gradients.x, wanted.x)]
        for one, other in ((finals, last), (gradients.state, wanted.state), (tfinals, tlast)):
            pairs += [(np.concatenate([pair[k] for pair in one]), other[k]) for k in (0, 1)]
        pairs += [
            (value, wanted.parameters[name.partition(".")[2].replace("_l0", f"_l{name[0]}")])
            for name, value in gradients.parameters.items()
        ]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("merge", MERGES)
def test_reversed_layers_and_merges_are_a_direction_and_its_halves(lengths: Any, merge: Any) -> None:
    random = np.random.default_rng(1)
    both = lstm(I, 5, 1, bidirectional=True, layer_norm=True)
    chain, alone = Chain([both, Merge(merge)]), lstm(I, 5, 2, layer_norm=True)
    alone.load_parameters({name: both.parameters[f"{name}_reverse"] for name in alone.parameters})
    x = normal(random, T, N, I)
    ((h0, c0),) = states(chain, random)
    y, (h, c) = both(x, (h0, c0), lengths)
    forward, reverse = y[..., :5], y[..., 5:]
    found, ((h_n, c_n),) = Chain([Reversed(alone)])(x, [(h0[1:], c0[1:])], lengths)
    np.testing.assert_allclose(found, reverse, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(h_n, h[1:], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(c_n, c[1:], rtol=1e-13, atol=1e-15)
    wanted = {
        "sum": forward + reverse, "mul": forward * reverse, "average": (forward + reverse) / 2, "concat": y,
    }[merge]  # fmt: skip
    merged, finals = chain(x, [(h0, c0)], lengths)
    np.testing.assert_array_equal(merged, wanted)
    ends = chain.last_output(finals)
    at_end = np.concatenate((h[0], h[1]), axis=1)
    np.testing.assert_array_equal(ends, Merge(merge)(at_end))
    if lengths is not None:
        assert all(not merged[length:, row].any() for row, length in enumerate(lengths))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("random_masks", [False, True])
def test_gradients_are_finite_differences(merge: Any, random_masks: bool) -> None:
    """Every gradient of every layer, in float64, with lengths, states and the masks of the recorded call."""
    chain = mixed(merge, random=random_masks)
    random = np.random.default_rng(2)
    x, state = normal(random, T, N, I), states(chain, random)
    y, last, tape = chain.record(x, state, LENGTHS)
    dy, dstate = normal(random, *y.shape), states(chain, random)
    gradients = chain.backward(tape, dy, dstate)
    parameters = {name: value.copy() for name, value in chain.parameters.items()}
    assert list(gradients.parameters) == list(parameters) == list(chain.parameter_shapes)

    def value() -> float:
        chain.load_parameters(parameters)
        masks = [StackMasks((Masks(),) * len(one.stack.configs)) if m is None else m
                 for one, m in zip(chain.lstms, tape.masks, strict=True)]  # fmt: skip
        found, finals, _ = chain.record(x, state, LENGTHS, masks=masks)
        return float((found * dy).sum() + sum((a * b).sum() for a, b in zip(flat(finals), flat(dstate), strict=True)))

    checked = [(x, gradients.x), *zip(flat(state), flat(gradients.state), strict=True)]
    checked += [(parameters[name], gradient) for name, gradient in gradients.parameters.items()]
    for array, gradient in checked:
        assert gradient.shape == array.shape
        kept, seen, direction = array.copy(), [], normal(random, *array.shape)  # all elements of one array at once
        for step in (1e-6, -1e-6):
            array[...] = kept + step * direction
            seen.append(value())
        array[...] = kept
        assert (gradient * direction).sum() == pytest.approx((seen[0] - seen[1]) / 2e-6, rel=1e-6, abs=2e-8)


@pytest.mark.parametrize(("backend", "merge"), [*(("numpy", merge) for merge in MERGES), ("reference", "mul")])
def test_backward_is_the_adjoint_of_jvp(backend: str, merge: Any) -> None:
    chain = mixed(merge, backend=backend, random=True)
    random = np.random.default_rng(3)
    x, tx, state, tstate = (
        normal(random, T, N, I),
        normal(random, T, N, I),
        states(chain, random),
        states(chain, random),
    )
    y, last, tape = chain.record(x, state, LENGTHS)
    dy, dstate = normal(random, *y.shape), states(chain, random)
    along = {name: normal(random, *value.shape) for name, value in chain.parameters.items()}
    ty, tlast = chain.jvp(x, tx, state, tstate, along, LENGTHS, tape.masks)
    gradients = chain.backward(tape, dy, dstate)
    left = (ty * dy).sum() + sum((a * b).sum() for a, b in zip(flat(tlast), flat(dstate), strict=True))
    right = (tx * gradients.x).sum() + sum(
        (a * b).sum() for a, b in zip(flat(tstate), flat(gradients.state), strict=True)
    )
    right += sum((along[name] * gradient).sum() for name, gradient in gradients.parameters.items())
    assert left == pytest.approx(right, rel=1e-11)


def test_what_is_left_out_is_zero() -> None:
    chain = mixed()
    random = np.random.default_rng(4)
    x, given = normal(random, T, N, I), states(chain, random)
    zeros = [(np.zeros_like(h), np.zeros_like(c)) for h, c in given]
    some = [None, given[1], None, None, given[4]]
    filled = [zero if one is None else one for one, zero in zip(some, zeros, strict=True)]
    y, last, tape = chain.record(x, some)
    wanted, finals, other = chain.record(x, filled)
    np.testing.assert_array_equal(y, wanted)
    for one, two in zip(flat(last), flat(finals), strict=True):
        np.testing.assert_array_equal(one, two)
    for dy, dstate, full in ((None, some, filled), (y, None, zeros)):
        found = chain.backward(tape, dy, dstate)
        expected = chain.backward(other, np.zeros_like(y) if dy is None else dy, full)
        every = [[one.x, *flat(one.state), *one.parameters.values()] for one in (found, expected)]
        for one, two in zip(*every, strict=True):
            np.testing.assert_array_equal(one, two)
    tangents = [chain.jvp(x, None, some, some), chain.jvp(x, 0 * x, filled, filled)]
    for one, two in zip(*([ty, *flat(tlast)] for ty, tlast in tangents), strict=True):
        np.testing.assert_array_equal(one, two)


def test_streaming_is_one_call() -> None:
    chain = Chain([lstm(I, 5, 1), lstm(5, 2, 2, num_layers=2), lstm(2, 7, 3, proj_size=3)])
    random = np.random.default_rng(5)
    x, state = normal(random, T, N, I), states(chain, random)
    whole, last = chain(x, state)
    parts, carried = [], state
    for start, stop in ((0, 1), (1, 4), (4, 4), (4, 6)):
        y, carried = chain(x[start:stop], carried)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12, atol=1e-14)
    for one, two in zip(flat(carried), flat(last), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-14)


def test_layouts_are_views_of_the_same_call() -> None:
    random = np.random.default_rng(6)
    chain, other = mixed(), mixed(batch_first=True)
    x, state, dy = normal(random, T, N, I), states(chain, random), normal(random, T, N, 6)
    y, last, tape = chain.record(x, state, LENGTHS)
    flipped, finals, other_tape = other.record(x.swapaxes(0, 1), state, LENGTHS)
    np.testing.assert_array_equal(flipped.swapaxes(0, 1), y)
    one, two = chain.backward(tape, dy), other.backward(other_tape, dy.swapaxes(0, 1))
    np.testing.assert_array_equal(two.x.swapaxes(0, 1), one.x)
    np.testing.assert_array_equal(other.jvp(x.swapaxes(0, 1), x.swapaxes(0, 1))[0].swapaxes(0, 1), chain.jvp(x, x)[0])
    out = np.full((N, T, 6), np.nan)
    again, _ = other(x.swapaxes(0, 1), state, LENGTHS, out=out)
    assert again is out and not y.flags.writeable
    np.testing.assert_array_equal(out.swapaxes(0, 1), y)
    alone = [(h[:, 0], c[:, 0]) for h, c in state]
    single, finals, single_tape = chain.record(x[:, 0], alone)
    assert single.shape == (T, 6) and finals[2][0].shape == (4, 4)
    np.testing.assert_allclose(single, chain(x[:, :1], [(h[:, :1], c[:, :1]) for h, c in state])[0][:, 0], rtol=1e-12)
    assert chain.backward(single_tape, dy[:, 0]).x.shape == (T, I)


def test_steps_seeds_and_copies() -> None:
    """The masks follow from the seeds and the step, as for an LSTM, and a copy is the same chain."""
    random = np.random.default_rng(7)
    chain, x = mixed(random=True), normal(random, T, N, I)
    first = chain.record(x)[0]
    assert chain.step == 1 and {one.step for one in chain.lstms} == {1}
    copies = [copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))]
    second, _, tape = chain.record(x)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(chain.record(x, masks=tape.masks)[0], second)
    for other in copies:
        np.testing.assert_array_equal(other.record(x)[0], second)
        with pytest.raises(ValueError, match=r"one that record.. of this chain returned; got one of another chain"):
            other.backward(tape)
    chain.step = 0
    np.testing.assert_array_equal(chain.record(x)[0], first)
    assert chain.seed == [1, 2, 3, 4, 5] and chain.backend.name == "numpy"
    assert [explanation.backend for explanation in chain.explain()] == ["numpy"] * 5
    wrong: Any = [None, StackMasks(())] + [None] * 3
    with pytest.raises(ValueError, match=r"masks.layers: expected 1"):
        chain.record(x, masks=wrong)
    assert {one.step for one in chain.lstms} == {1}


def test_parameters_are_all_loaded_or_none() -> None:
    chain, other = mixed(), mixed()
    random = np.random.default_rng(8)
    values = {name: normal(random, *value.shape) for name, value in chain.parameters.items()}
    chain.load_parameters(values)
    for name, value in values.items():
        np.testing.assert_array_equal(chain.parameters[name], value)
    x = normal(random, T, N, I)
    assert not np.allclose(chain(x)[0], other(x)[0])
    before = other.parameters
    last = list(values)[-1]
    for change, message in (
        ({last: values[last] * np.nan}, rf"parameters\['{last}'\]: expected finite numbers"),
        ({last: values[last][:1]}, rf"parameters\['{last}'\]: expected shape"),
        ({"3.bias": values[last]}, "unknown 3.bias"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_parameters(values | change)
    with pytest.raises(ValueError, match=rf"{last} missing"):
        other.load_parameters({name: value for name, value in values.items() if name != last})
    assert all(other.parameters[name] is value for name, value in before.items())


def one() -> LSTM:
    return lstm(I, 5, 1)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (list, "layers: expected a list of LSTM, Reversed and Merge"),
    "an LSTM": (one, "layers: expected a list of LSTM, Reversed and Merge"),
    "a number": (lambda: [one(), 3], r"layers\[1\]: expected an LSTM, Reversed or Merge; got int"),
    "merges": (lambda: [Merge("sum")], "layers: expected at least one LSTM; got merges alone"),
    "a merge of one direction": (lambda: [one(), Merge("sum")], r"layers\[1\]: expected a merge right after an LSTM"),
    "two merges": (
        lambda: [lstm(I, 5, 1, bidirectional=True), Merge("sum"), Merge("sum")],
        r"layers\[2\]: expected a merge right after",
    ),
    "a width": (lambda: [one(), lstm(4, 2, 1)], r"layers\[1\]: expected input_size=5, the width before it; got 4"),
    "batch first": (lambda: [one(), lstm(5, 2, 1, batch_first=True)], r"layers\[1\]: expected batch_first=False"),
    "a dtype": (lambda: [one(), lstm(5, 2, 1, dtype="float32")], r"layers\[1\]: expected dtype float64 .* float32"),
    "one LSTM twice": (lambda: [lstm(I, I, 1)] * 2, r"layers\[0\]: expected another LSTM for each layer"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_layers_that_do_not_fit(what: str) -> None:
    make, message = WRONG[what]
    with pytest.raises((TypeError, ValueError), match=message):
        Chain(make())


def test_arguments_of_calls() -> None:
    chain = mixed()
    x, state = np.zeros((T, N, I)), states(chain, np.random.default_rng(0))
    y, _, tape = chain.record(x)
    wrong: Any
    for wrong, message in (
        (lambda: chain(x[..., :2]), r"x: expected shape \(any, any, 3\) = \(T, N, I\); got \(6, 4, 2\)"),
        (lambda: chain(x.astype("f")), "x: expected dtype float64; got float32"),
        (lambda: chain(x, state[:4]), "state: expected a tuple of 5, one for each LSTM; got 4"),
        (lambda: chain(x, state[0][0]), "state: expected a tuple of 5, one for each LSTM; got ndarray"),
        (lambda: chain(x, [state[1], *state[1:]]), r"state\[0\].h: expected shape \(1, 4, 5\)"),
        (lambda: chain(x, lengths=[1, 2]), r"lengths: expected shape \(4,\)"),
        (lambda: chain(x[:, 0], lengths=[1]), "lengths: expected None for x of shape"),
        (lambda: chain(x, out=x), r"out: expected shape \(6, 4, 6\) = \(T, N, width\)"),
        (lambda: chain(x, out=[1.0]), "out: expected a NumPy array"),
        (lambda: chain.jvp(x, x[:2]), r"tx: expected shape \(6, 4, 3\)"),
        (lambda: chain.jvp(x, x, tparameters={"9.bias_l0": x}), "tparameters: unknown 9.bias_l0"),
        (lambda: chain.backward(tape, x), r"dy: expected shape \(6, 4, 6\) = \(T, N, width\)"),
        (lambda: chain.backward(tape, y, state[:1]), "dstate: expected a tuple of 5"),
        (lambda: chain.backward(y), "tape: expected what record.. returned last; got ndarray"),
        (lambda: Reversed(lstm(I, 5, 1, bidirectional=True)), "lstm: expected an LSTM in one direction to reverse"),
        (lambda: Reversed(chain), "lstm: expected an LSTM; got Chain"),
        (lambda: Merge("max"), "mode: expected one of 'concat', 'sum', 'mul', 'average'; got 'max'"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            wrong()
