"""The reference against the equations written a second time: Python floats, one row and one unit at a time.

Derivatives and frozen values cannot tell a wrong equation from a right one; this evaluation can. It is written from
SPEC.md alone and shares no code with the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from lstmcore import reference
from lstmcore.config import LSTMConfig
from lstmcore.registry import get_backend
from lstmcore_conformance.cases.switches import SWITCHES
from strategies import Case, make_case, switch_config

Vector = list[float]

FORMULAS: dict[str, Callable[[float, float, float], float]] = {
    "sigmoid": lambda z, a, b: 1 / (1 + math.exp(-z)),
    "tanh": lambda z, a, b: math.tanh(z),
    "relu": lambda z, a, b: z if z > 0 else 0.0,
    "identity": lambda z, a, b: z,
    "affine": lambda z, a, b: a * z + b,
    "leaky_relu": lambda z, a, b: z if z >= 0 else a * z,
    "thresholded_relu": lambda z, a, b: z if z > a else 0.0,
    "scaled_tanh": lambda z, a, b: a * math.tanh(b * z),
    "hard_sigmoid": lambda z, a, b: min(1.0, max(0.0, a * z + b)),
    "elu": lambda z, a, b: z if z >= 0 else a * (math.exp(z) - 1),
    "softsign": lambda z, a, b: z / (1 + abs(z)),
    "softplus": lambda z, a, b: math.log(1 + math.exp(z)),
}


def limited(v: float, bound: float | None) -> float:
    return v if bound is None else max(-bound, min(bound, v))


def dot(row: Sequence[float], v: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(row, v, strict=True))


def normalised(v: Vector, eps: float) -> Vector:
    mean = math.fsum(v) / len(v)
    variance = math.fsum((e - mean) ** 2 for e in v) / len(v)
    return [(e - mean) / math.sqrt(variance + eps) for e in v]


class RowMasks(NamedTuple):
    """The masks of one row: of the recurrent input, and of h and c at each of its valid steps."""

    recurrent: Vector
    hidden: list[Vector]
    cell: list[Vector]


def act(function: Any, v: float) -> float:
    return FORMULAS[function.name](v, function.alpha, function.beta)


def input_and_forget(config: LSTMConfig, pre: Callable[[str], float]) -> tuple[float, float]:
    """Return i and f of one cell from the pre-activations of its gates."""
    if config.coupling == "forget_from_input":
        i = act(config.gate_activation, pre("i"))
        return i, 1 - i
    if config.coupling == "input_from_forget":
        f = act(config.gate_activation, pre("f"))
        return 1 - f, f
    return act(config.gate_activation, pre("i")), act(config.gate_activation, pre("f"))


def one_row(  # long: the equations of one step, in their order
    config: LSTMConfig, p: dict[str, Any], x: list[Vector], state: tuple[Vector, Vector], masks: RowMasks
) -> tuple[list[Vector], Vector, Vector]:
    """Return y, h and c after all steps of one row; `x` holds its valid steps only."""
    h, c = state
    m_r, m_h, m_c = masks
    order = {"none": "ifgo", "forget_from_input": "igo", "input_from_forget": "fgo"}[config.coupling]
    peephole_order = order.replace("g", "")
    size = config.hidden_size

    y: list[Vector] = [[] for _ in x]
    for t in range(len(x) - 1, -1, -1) if config.reverse else range(len(x)):
        r = [m * v for m, v in zip(m_r, c if config.recurrence == "cell" else h, strict=True)]
        wx = [dot(row, x[t]) for row in p["weight_x"]]
        rh = [dot(row, r) for row in p["weight_h"]]
        if config.layer_norm:
            wx = [a * b for a, b in zip(p["norm_gain_x"], normalised(wx, config.layer_norm_eps), strict=True)]
            rh = [a * b for a, b in zip(p["norm_gain_h"], normalised(rh, config.layer_norm_eps), strict=True)]

        def pre(gate: str, j: int, cell: float, wx: Vector = wx, rh: Vector = rh) -> float:
            k = order.index(gate) * size + j
            z = wx[k] + rh[k]
            if config.bias:
                z += p["bias"][k]
            if config.peephole and gate != "g":
                z += p["peephole"][peephole_order.index(gate)][j] * cell
            return limited(z, config.gate_clip)

        new_c, out = [], []
        for j in range(size):
            i, f = input_and_forget(config, partial(pre, j=j, cell=c[j]))
            g = act(config.cell_activation, pre("g", j, 0.0))
            candidate = limited(f * c[j] + i * g, config.cell_clip)
            new_c.append(m_c[t][j] * c[j] + (1 - m_c[t][j]) * candidate)
            out.append(act(config.gate_activation, pre("o", j, new_c[j])))
        n = new_c
        if config.layer_norm:
            n = [gain * v for gain, v in zip(p["norm_gain_c"], normalised(new_c, config.layer_norm_eps), strict=True)]
            if config.bias:
                n = [v + shift for v, shift in zip(n, p["norm_bias_c"], strict=True)]
        q = [o * act(config.hidden_activation, v) for o, v in zip(out, n, strict=True)]
        if config.proj_size:
            q = [limited(dot(row, q), config.proj_clip) for row in p["weight_proj"]]
        h = [m * old + (1 - m) * new for m, old, new in zip(m_h[t], h, q, strict=True)]
        c, y[t] = new_c, h
    return y, h, c


def scalar_forward(case: Case) -> tuple[list[Any], list[Any], list[Any]]:
    """Return y (row by row, T steps), h and c of every row of `case`."""
    config, masks = case.config, case.masks
    p = {name: array.tolist() for name, array in case.parameters.items()}
    steps, batch = case.x.shape[:2]
    rows = []
    for n in range(batch):
        length = steps if case.lengths is None else int(case.lengths[n])
        m_r = [1.0] * config.recurrent_size
        m_h = [[config.zoneout_hidden] * config.output_size] * length
        m_c = [[config.zoneout_cell] * config.hidden_size] * length
        if masks is not None and masks.recurrent is not None:
            m_r = masks.recurrent[n].tolist()
        if masks is not None and masks.zoneout_hidden is not None:
            m_h = masks.zoneout_hidden[:length, n].tolist()
        if masks is not None and masks.zoneout_cell is not None:
            m_c = masks.zoneout_cell[:length, n].tolist()
        x, h, c = case.x[:length, n].tolist(), case.state.h[n].tolist(), case.state.c[n].tolist()
        y, h, c = one_row(config, p, x, (h, c), RowMasks(m_r, m_h, m_c))
        rows.append((y + [[0.0] * config.output_size] * (steps - length), h, c))
    ys, hs, cs = zip(*rows, strict=True)
    return list(ys), list(hs), list(cs)


def case_of(name: str, seed: int, masks: bool = True) -> Case:
    """Smaller data where gates may be unbounded: they let the cell grow to thousands, and its roundings with it."""
    return make_case(
        switch_config(name), steps=5, seed=seed, masks=masks, scale=0.6 if name.startswith("gate_activation") else 0.8
    )


def check(case: Case, y: Any, h: Any, c: Any) -> None:
    expected = scalar_forward(case)
    # A few dozen roundings a step, each passed on by factors near 1: far below 1e-12 of the values' size, 1.
    for got, want in zip((y.transpose(1, 0, 2), h, c), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masks", [False, True], ids=["rates", "masks"])
@pytest.mark.parametrize("name", SWITCHES)
def test_reference_is_the_equations(name: str, masks: bool) -> None:
    case = case_of(name, 3, masks)
    y, (h, c), _ = reference.forward(case.config, case.parameters, case.x, case.state, **case.call)
    check(case, y, h, c)


@pytest.mark.parametrize("name", SWITCHES)
def test_numpy_backend_is_the_equations(name: str) -> None:
    case = case_of(name, 4)
    kernel = get_backend("numpy").compile(case.config, "float64")
    y, (h, c), _ = kernel.forward(kernel.pack(case.parameters), case.x, case.state, **case.call)
    check(case, y, h, c)


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("gate_clip", {"gate_clip": None}),
        ("cell_clip", {"cell_clip": None}),
        ("proj_clip", {"proj_clip": None}),
        ("everything", {"gate_clip": None}),
        ("everything", {"cell_clip": None}),
        ("everything", {"proj_clip": None}),
        ("everything_coupled", {"layer_norm": False}),
    ],
)
def test_the_cases_reach_their_switch(name: str, off: dict[str, Any]) -> None:
    """A bound that no value reaches would test nothing."""
    case = case_of(name, 3)
    without = switch_config(name, **off)
    parameters = {key: case.parameters[key] for key in without.parameter_shapes}
    on = reference.forward(case.config, case.parameters, case.x, case.state, **case.call).y
    assert not np.allclose(on, reference.forward(without, parameters, case.x, case.state, **case.call).y)
