"""Stacks that the tests of `LSTM` run, and the LSTM of a case."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore.backend import Backend
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.lstm import LSTM
from lstmcore_reference.kernel import ReferenceBackend
from stacks import Array, StackCase

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


def all_arrays(case: StackCase) -> list[Array]:
    masks = [mask for layer in case.masks.layers for mask in layer] + list(case.masks.dropout) if case.masks else []
    arrays = [case.x, *case.state, case.lengths, *masks, case.dy, *case.dstate, case.tx, *case.tstate]
    return [array for array in [*arrays, *case.tparameters.values()] if array is not None]


def run_all(lstm: LSTM, case: StackCase) -> list[Array]:
    y, last, tape = lstm.record(case.x, case.state, case.lengths, masks=case.masks)
    plain, plain_last = lstm(case.x, case.state, case.lengths)
    grads = lstm.backward(tape, case.dy, case.dstate)
    ty, tlast = lstm.jvp(case.x, case.tx, case.state, case.tstate, case.tparameters, case.lengths, case.masks)
    return [y, *last, plain, *plain_last, grads.x, *grads.state, *grads.parameters.values(), ty, *tlast]
