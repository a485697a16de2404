"""Infinite numbers in x: the padding of vectors, where they meet weights of 0, reaches no result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM

#: Odd, so that no vector is full; the projection is padded too.
HIDDEN = 7

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "projection": {"proj_size": 3},
    "projection of whole vectors": {"hidden_size": 19, "proj_size": 16},
    "peephole": {"peephole": True, "coupling": "input_from_forget"},
    "cell as recurrent input": {"recurrence": "cell"},
    "layer norm": {"layer_norm": True, "proj_size": 3},
    "clips and zoneout": {"gate_clip": 2.0, "cell_clip": 1.0, "zoneout_hidden": 0.2, "zoneout_cell": 0.1},
    "activations": {"gate_activation": "hard_sigmoid", "cell_activation": "softsign", "hidden_activation": "elu"},
}


def results(backend: str, x: Any, switches: dict[str, Any]) -> dict[str, Any]:
    """Return every result of a forward, a backward and a JVP pass."""
    options = {"hidden_size": HIDDEN, **switches}
    lstm = LSTM(5, backend=backend, seed=0, **options)
    with np.errstate(all="ignore"):
        y, (h, c), tape = lstm.record(x)
        gradients = lstm.backward(tape, np.ones_like(y))
        ty, (th, tc) = lstm.jvp(x, np.ones_like(x))
    named = {"y": y, "h": h, "c": c, "ty": ty, "th": th, "tc": tc, "dx": gradients.x}
    return named | {"dh": gradients.state[0], "dc": gradients.state[1], **gradients.parameters}


@pytest.mark.parametrize("name", SWITCHES)
def test_an_infinity_reaches_what_it_reaches_in_numpy(name: str) -> None:
    """What is not finite, and how, is the same as in the NumPy backend; the other values are for the suite."""
    x = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
    x[1, 0, 2] = np.inf
    ours, expected = (results(backend, x, SWITCHES[name]) for backend in ("numba", "numpy"))
    for key, value in expected.items():
        np.testing.assert_array_equal(np.isnan(ours[key]), np.isnan(value), err_msg=key)
        np.testing.assert_array_equal(np.isinf(ours[key]), np.isinf(value), err_msg=key)


def test_a_peephole_without_a_tangent_does_not_move() -> None:
    """A parameter whose tangent is left out does not move, even where the cell that its peephole reads is infinite.

    The cell overflows in the only step, so that the gate o alone reads it. The gate is closed to changes there.
    """
    jvps = []
    for backend in ("numba", "numpy"):
        lstm = LSTM(2, HIDDEN, peephole=True, cell_activation="relu", backend=backend, seed=0)
        parameters = {name: np.zeros_like(array) for name, array in lstm.parameters.items()}
        parameters["bias_l0"][2 * HIDDEN : 3 * HIDDEN] = 3e38  # g
        parameters["peephole_l0"][...] = 0.5
        lstm.load_parameters(parameters)
        x, h, c = (
            np.full(shape, value, np.float32)
            for shape, value in (((1, 1, 2), 1), ((1, 1, HIDDEN), 0), ((1, 1, HIDDEN), 3e38))
        )
        with np.errstate(all="ignore"):
            assert np.isinf(lstm(x, (h, c))[1][1]).all()
            ty, (th, tc) = lstm.jvp(x, np.ones_like(x), state=(h, c))
        jvps.append((ty, th, tc))
    for ours, expected in zip(*jvps, strict=True):
        np.testing.assert_array_equal(expected, 0)
        np.testing.assert_array_equal(ours, expected)


#: The last ones are multiplied on AMX, and as pairs of bfloat16, where the processor has these.
PADDED: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer norm": {"layer_norm": True},
    "projection, both directions": {"proj_size": 3, "bidirectional": True},
    "AMX": {"hidden_size": 160, "input_size": 50},
    "pairs": {"dtype": "bfloat16", "input_size": 6},
}


@pytest.mark.parametrize("name", PADDED)
def test_x_past_the_end_of_a_row_reaches_nothing(name: str) -> None:
    """NaN and infinity there give the bits that 0 gives, forward and in gradients, and x is not written to."""
    options = {"input_size": 5, "hidden_size": HIDDEN, **PADDED[name]}
    lstm = LSTM(**options, backend="numba", seed=0)
    x = np.random.default_rng(0).normal(size=(5, 33, lstm.input_size)).astype(lstm.parameters["bias_l0"].dtype)
    lengths = np.arange(33) % 6
    past = np.arange(5)[:, None] >= lengths
    results = []
    for value in (0, np.nan, np.inf):
        x[past] = value
        given = x.copy()
        y, state = lstm(given, lengths=lengths)
        recorded, last, tape = lstm.record(given, lengths=lengths)
        gradients = lstm.backward(tape, np.ones_like(y))
        results.append([y, *state, recorded, *last, gradients.x, *gradients.parameters.values()])
        assert given.tobytes() == x.tobytes()
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(one, other)
    assert np.isfinite(results[0][0].astype(np.float32)).all()
