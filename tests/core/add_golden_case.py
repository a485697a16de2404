"""Add a case to golden.safetensors, for example ``python tests/core/add_golden_case.py two_clips '{"cell_clip": 2}'``.

The cases that are there stay as they are: they are what the reference once gave.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lstmcore.config import LSTMConfig
from lstmcore.files import write_atomically

sys.path.append(str(Path(__file__).parents[1] / "helpers"))  # as pytest does

from test_reference import GOLDEN, H, I, _data, golden_cases, golden_configs, golden_results


def add(name: str, switches: dict[str, Any]) -> None:
    """Add the case `name` of one layer with `switches`.

    Raises
    ------
    ValueError
        The name is taken.
    """
    configs, cases = golden_configs(), golden_cases()
    if name in configs:
        raise ValueError(f"name: expected a new one; got {name!r}, whose values are frozen")
    config = LSTMConfig(input_size=I, hidden_size=H, **switches)
    parameters, x, state, _ = _data(config, np.random.default_rng([11, len(configs)]))
    inputs = {"x": x, "h0": state.h, "c0": state.c} | {f"parameter.{key}": array for key, array in parameters.items()}
    cases[name] = inputs | golden_results(config, inputs)
    arrays = {f"{case}/{key}": array for case, frozen in cases.items() for key, array in frozen.items()}
    texts = {case: json.dumps(config.to_dict()) for case, config in (configs | {name: config}).items()}
    write_atomically(GOLDEN, save(arrays, metadata=texts))


if __name__ == "__main__":
    add(sys.argv[1], json.loads(sys.argv[2]))
