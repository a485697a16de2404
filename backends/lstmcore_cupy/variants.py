"""How a configuration and a precision become the macros of the CUDA sources, and the sources as one text."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

from lstmcore.config import Activation, LSTMConfig
from lstmcore.precision import Precision

#: In the order in which they need each other.
_FILES: Final = ("storage.cuh", "activations.cuh", "call.cuh", "block.cuh", "lstm.cu")
_STORAGE: Final = {"float64": 0, "float32": 1, "bfloat16": 2, "float16": 3}

Macros = tuple[tuple[str, str], ...]


@cache
def _text(name: str) -> str:
    return files(__package__).joinpath("cuda", name).read_text("utf-8")


@cache
def source() -> str:
    """All files as one text, so that a compiler needs no path and a cache sees every change."""
    parts = []
    for name in _FILES:
        lines = _text(name).splitlines()
        kept = ["" if line.startswith(('#include "', "#pragma once")) else line for line in lines]
        parts.append("\n".join([f'#line 1 "{name}"', *kept]))
    return "\n".join(parts) + "\n"


@cache
def call_fields() -> tuple[str, ...]:
    """The fields of ``struct Call`` in their order; each has 8 bytes."""
    return tuple(re.findall(r"^ {4}(?:const )?(?:real|stored|long long)\*? (\w+);", _text("call.cuh"), re.MULTILINE))


@cache
def macros(config: LSTMConfig, precision: Precision) -> Macros:
    """Name -> value of every macro. Sizes are arguments: one program serves all of them."""
    gates, peepholes = config.gates, config.peephole_gates
    values: dict[str, str | int] = {
        "STORAGE": _STORAGE[precision.storage],
        "GATES": len(gates),
        "REVERSE": int(config.reverse),
        "PEEPHOLE": int(config.peephole),
        "PROJECTION": int(bool(config.proj_size)),
        "RECURRENCE_CELL": int(config.recurrence == "cell"),
        "LAYER_NORM": int(config.layer_norm),
        "LAYER_NORM_EPS": repr(config.layer_norm_eps),
        "HAS_ZONEOUT_HIDDEN": int(config.zoneout_hidden > 0),
        "HAS_ZONEOUT_CELL": int(config.zoneout_cell > 0),
        "ZONEOUT_HIDDEN": repr(config.zoneout_hidden),
        "ZONEOUT_CELL": repr(config.zoneout_cell),
    }
    for gate in "ifgo":
        values[f"{gate.upper()}_GATE"] = gates.index(gate) if gate in gates else -1
        values[f"{gate.upper()}_PEEPHOLE"] = peepholes.index(gate) if gate in peepholes else -1
    for name in ("gate_clip", "cell_clip", "proj_clip"):
        bound = getattr(config, name)
        if bound is not None:
            values[name.upper()] = repr(bound)
    for role in ("gate", "cell", "hidden"):
        function: Activation = getattr(config, f"{role}_activation")
        parameters = f"(real){function.alpha or 0.0!r}, (real){function.beta or 0.0!r}"
        values[f"{role.upper()}_VALUE(z)"] = f"{function.name}_value(z, {parameters})"
        values[f"{role.upper()}_SLOPE(z, y)"] = f"{function.name}_slope(z, y, {parameters})"
    return tuple((name, str(value)) for name, value in values.items())


def program(config: LSTMConfig, precision: Precision) -> str:
    """The CUDA C++ of a configuration: its macros, then the sources."""
    head = "".join(f"#define {name} {value}\n" for name, value in macros(config, precision))
    return head + source()
