"""The CUDA sources as one text, after the macros of a configuration and a precision."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

from lstmcore.config import SWITCHES, Activation, LSTMConfig
from lstmcore.domains import Kind
from lstmcore.precision import Precision

_STORAGE: Final = {"float64": 0, "float32": 1, "bfloat16": 2, "float16": 3}
_WEIGHTS: Final = {"bfloat16": 1, "float16": 2, "int8": 3}
_INCLUDE: Final = re.compile(r'#include "([\w.]+)"')

#: Switches without a macro: the call's arguments tell bias, direction and dropout; `_macros` numbers the gates' rows.
_NO_MACRO: Final = ("bias", "reverse", "recurrent_dropout", "peephole", "coupling")
_MACRO_SWITCHES: Final = {name: switch for name, switch in SWITCHES.items() if name not in _NO_MACRO}
_MACRO_NAMES: Final = {"proj_size": "PROJECTION"}


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
    sources = "".join(map(source, ("rows.cu", "lstm.cu", "product.cu", "masks.cu", "updates.cu")))
    body = re.search(rf"struct {struct} {{\n(.*?)^}};", sources, re.DOTALL | re.MULTILINE)
    if body is None:
        raise ValueError(f"struct: expected one of the sources; got {struct!r}")
    names = re.findall(r"^ {4}[A-Za-z ]+\*? (\w+);", body[1], re.MULTILINE)
    return {name: place for place, name in enumerate(names)}


@cache
def numbers(config: LSTMConfig) -> dict[str, float]:
    """Return the switches that are numbers, fields of ``struct Call``: one program serves all their values."""
    values: dict[str, float] = {}
    for name, switch in _MACRO_SWITCHES.items():
        value = getattr(config, name)
        if isinstance(value, Activation):
            role = name.removesuffix("_activation")
            values |= {f"{role}_alpha": value.alpha or 0.0, f"{role}_beta": value.beta or 0.0}
        elif switch.domain.kind in ("number", "rate", "bound"):
            values[name] = value or 0.0
    return values


def _macros(config: LSTMConfig, precision: Precision) -> dict[str, str | int]:
    gates, peepholes = config.gates, config.peephole_gates
    values: dict[str, str | int] = {
        "STORAGE": _STORAGE[precision.storage],
        "GATES": len(gates),
        "PEEPHOLE": int(config.peephole),
    }
    values |= _switch_macros(config, "flag", "size", "choice", "rate")
    for gate in "ifgo":
        values[f"{gate.upper()}_GATE"] = gates.index(gate) if gate in gates else -1
        values[f"{gate.upper()}_PEEPHOLE"] = peepholes.index(gate) if gate in peepholes else -1
    return values | _switch_macros(config, "bound", "function")


def _switch_macros(config: LSTMConfig, *kinds: Kind) -> dict[str, str | int]:
    """Return the macros of the switches of these kinds; a new switch needs no line here."""
    values: dict[str, str | int] = {}
    for name, switch in _MACRO_SWITCHES.items():
        kind, value = switch.domain.kind, getattr(config, name)
        if kind not in kinds:
            continue
        if kind == "function":
            role = name.removesuffix("_activation")
            parameters = f"a.{role}_alpha.value, a.{role}_beta.value"
            values[f"{role.upper()}_VALUE(z)"] = f"{value.name}_value(z, {parameters})"
            values[f"{role.upper()}_SLOPE(z, y)"] = f"{value.name}_slope(z, y, {parameters})"
        elif kind == "choice":
            others = (other for other in switch.domain.choices if other != switch.default)
            values |= {f"{name}_{other}".upper(): int(value == other) for other in others}
        else:
            macro = name.upper() if kind == "flag" else f"HAS_{name.upper()}"
            values[_MACRO_NAMES.get(name, macro)] = int(value != switch.default)
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


@cache
def product_program(precision: Precision) -> str:
    """Return the CUDA C++ of the products with weights in the format of `precision`."""
    macros: dict[str, str | int] = {"STORAGE": _STORAGE[precision.storage], "WEIGHTS": _WEIGHTS[precision.weights]}
    return _defined(macros) + source("product.cu")


@cache
def mask_program(dtype: str) -> str:
    """Return the CUDA C++ of the kernel that draws masks of the compute format `dtype`."""
    return _defined({"STORAGE": _STORAGE[dtype]}) + source("masks.cu")


def update_program(storage: str) -> str:
    """Return the CUDA C++ of the steps of optimizers in a storage format."""
    return _defined({"STORAGE": _STORAGE[storage], "UPDATES": 1}) + source("updates.cu")


def _defined(macros: dict[str, str | int]) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in macros.items())
