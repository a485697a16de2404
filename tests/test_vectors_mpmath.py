"""The golden vectors against section 2 of SPEC.md at 50 digits; gradients by central differences along directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore_conformance.vectors import cases, tensors

mpmath = pytest.importorskip("mpmath")
mp = mpmath.mp.clone()
mp.dps = 50
CASES = {case.name: case for case in cases() if case.precision == "float64"}
EXACT = np.vectorize(mp.mpf, otypes=[object])
SIGMOID = np.vectorize(lambda z: 1 / (1 + mp.exp(-z)), otypes=[object])
TANH = np.vectorize(mp.tanh, otypes=[object])


def forward(config: Any, a: dict[str, Any]) -> dict[str, Any]:
    h, c, H = a["h0"], a["c0"], config.hidden_size
    steps = len(a["x"])
    y: list[Any] = [None] * steps
    p = a.get("peephole")
    for t in reversed(range(steps)) if config.reverse else range(steps):
        r = c if config.recurrence == "cell" else h
        z = a["x"][t] @ a["weight_x"].T + r @ a["weight_h"].T + a.get("bias", 0)
        z = [z[:, k : k + H] for k in range(0, z.shape[1], H)]
        first = [SIGMOID(zk + (p[k] * c if p is not None else 0)) for k, zk in enumerate(z[:-2])]
        if config.coupling == "forget_from_input":
            first.append(1 - first[0])
        if config.coupling == "input_from_forget":
            first.insert(0, 1 - first[0])
        i, f = first
        c = f * c + i * TANH(z[-2])
        h = SIGMOID(z[-1] + (p[-1] * c if p is not None else 0)) * TANH(c)
        if config.proj_size:
            h = h @ a["weight_proj"].T
        y[t] = h
    return {"y": np.array(y), "h_n": h, "c_n": c}


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "no_bias",
        "reverse",
        "proj_size",
        "peephole",
        "forget_from_input,peephole",
        "input_from_forget,peephole",
        "recurrence_cell,proj_size",
    ],
)
def test_they_are_right_at_50_digits(name: str) -> None:
    case = CASES[name]
    rows = {tensor: (role, EXACT(array), budget) for role, tensor, array, budget in tensors(case)}
    given = {tensor: array for tensor, (role, array, _) in rows.items() if role in ("input", "parameter")}
    for tensor, array in forward(case.config, given).items():
        assert np.abs(array - rows[tensor][1]).max() < 1e-15, tensor

    def scalar(values: dict[str, Any]) -> Any:
        return sum((rows[f"d{tensor}"][1] * array).sum() for tensor, array in forward(case.config, values).items())

    rng, step = np.random.default_rng(3), mp.mpf(10) ** -16
    for tensor, array in given.items():
        gradient = rows[{"x": "dx", "h0": "dh0", "c0": "dc0"}.get(tensor, f"d_{tensor}")][1]
        for _ in range(2):
            along = EXACT(rng.standard_normal(array.shape))
            up, down = (scalar(given | {tensor: array + sign * step * along}) for sign in (1, -1))
            assert abs((up - down) / (2 * step) - (gradient * along).sum()) < 1e-13, tensor
