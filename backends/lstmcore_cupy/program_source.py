"""The CUDA sources as one text, after the macros of a configuration and a precision."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

from lstmcore.config import Activation, LSTMConfig
from lstmcore.precision import Precision

_STORAGE: Final = {"float64": 0, "float32": 1, "bfloat16": 2, "float16": 3}
_INCLUDE: Final = re.compile(r'#include "([\w.]+)"')
_ROLES: Final = ("gate", "cell", "hidden")


@cache
def _text(name: str) -> str:
    return files(__package__).joinpath("cuda", name).read_text("utf-8")


@cache
def source(name: str) -> str:
    """Return a file and those that it includes as one text.

    So a compiler needs no path, and a cache sees every change.
    """
    done: set[str] = set()

    def lines(name: str) -> list[str]:
        if name in done:
            return []
        done.add(name)
        text = [f'#line 1 "{name}"']
        for number, line in enumerate(_text(name).splitlines(), 1):
            if include := _INCLUDE.match(line):
                text += [*lines(include[1]), f'#line {number + 1} "{name}"']
            elif line != "#pragma once":
                text.append(line)
            else:
                text.append("")
        return text

    return "\n".join(lines(name)) + "\n"


@cache
def fields(struct: str) -> dict[str, int]:
    """Return field -> index of a struct of the sources; all fields have 8 bytes."""
    body = re.search(rf"struct {struct} {{\n(.*?)^}};", source("rows.cu") + source("lstm.cu"), re.DOTALL | re.MULTILINE)
    if body is None:
        raise ValueError(f"struct: expected one of the sources; got {struct!r}")
    names = re.findall(r"^ {4}(?:const )?(?:real|stored|long long|Number)\*? (\w+);", body[1], re.MULTILINE)
    return {name: place for place, name in enumerate(names)}


@cache
def numbers(config: LSTMConfig) -> dict[str, float]:
    """The switches that are numbers, which are fields of ``struct Call``: one program serves all their values."""
    found = {name: getattr(config, name) for name in ("layer_norm_eps", "zoneout_hidden", "zoneout_cell")}
    found |= {name: getattr(config, name) or 0.0 for name in ("gate_clip", "cell_clip", "proj_clip")}
    for role in _ROLES:
        function: Activation = getattr(config, f"{role}_activation")
        found |= {f"{role}_alpha": function.alpha or 0.0, f"{role}_beta": function.beta or 0.0}
    return found


def _macros(config: LSTMConfig, precision: Precision) -> dict[str, str | int]:
    gates, peepholes = config.gates, config.peephole_gates
    values: dict[str, str | int] = {
        "STORAGE": _STORAGE[precision.storage],
        "GATES": len(gates),
        "PEEPHOLE": int(config.peephole),
        "PROJECTION": int(bool(config.proj_size)),
        "RECURRENCE_CELL": int(config.recurrence == "cell"),
        "LAYER_NORM": int(config.layer_norm),
        "HAS_ZONEOUT_HIDDEN": int(config.zoneout_hidden > 0),
        "HAS_ZONEOUT_CELL": int(config.zoneout_cell > 0),
    }
    for gate in "ifgo":
        values[f"{gate.upper()}_GATE"] = gates.index(gate) if gate in gates else -1
        values[f"{gate.upper()}_PEEPHOLE"] = peepholes.index(gate) if gate in peepholes else -1
    for name in ("gate_clip", "cell_clip", "proj_clip"):
        values[f"HAS_{name.upper()}"] = int(getattr(config, name) is not None)
    for role in _ROLES:
        function = getattr(config, f"{role}_activation").name
        given = f"a.{role}_alpha.value, a.{role}_beta.value"
        values[f"{role.upper()}_VALUE(z)"] = f"{function}_value(z, {given})"
        values[f"{role.upper()}_SLOPE(z, y)"] = f"{function}_slope(z, y, {given})"
    return values


@cache
def program(config: LSTMConfig, precision: Precision) -> str:
    """Return the CUDA C++ of a configuration: its macros, then the sources.

    Sizes and numbers are arguments of the kernels.
    """
    return _defined(_macros(config, precision)) + source("lstm.cu")


@cache
def rows_program(precision: Precision) -> str:
    """Return the CUDA C++ of the kernels that do not depend on the configuration."""
    return _defined({"STORAGE": _STORAGE[precision.storage]}) + source("rows.cu")


def _defined(macros: dict[str, str | int]) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in macros.items())
