"""Writes the files of the golden vectors."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lstmcore.backend import Masks, StackMasks
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore_conformance.cases.case import NAIVE, Array, Case, attempt_of
from lstmcore_conformance.vectors.catalogue import Vector, vectors
from lstmcore_conformance.vectors.reader import SCHEMA, VERSION


def pinned(vector: Vector, draws: Mapping[tuple[str, str], int]) -> Vector:
    """The vector on the draw that `draws` has for its precision and name, else on the first that is good enough."""
    case = vector.case
    known = draws.get((case.precision, case.name))
    found = attempt_of(case.with_precision(NAIVE[case.precision])) if known is None else known
    return replace(vector, case=replace(case, draw=found))


def tensors(vector: Vector) -> Iterator[tuple[str, str, Array, float | None]]:
    """Role, name, array and, for what is expected, the budget."""
    case, answer = vector.case, vector.answer(vector.case)
    data = answer.data
    yield "input", "x", data.x, None
    if data.state is not None:
        yield "input", "h0", data.state.h, None
        yield "input", "c0", data.state.c, None
    if data.lengths is not None:
        yield "input", "lengths", data.lengths, None
    for name, array in data.parameters.items():
        yield "parameter", name, array, None
    layers = data.masks.layers if isinstance(data.masks, StackMasks) else (data.masks or Masks(),)
    suffixes = case.model.suffixes if isinstance(case.model, StackConfig) else ("",)
    for suffix, masks in zip(suffixes, layers, strict=False):
        for name, mask in zip(Masks._fields, masks, strict=True):
            if mask is not None:
                yield "mask", f"mask_{name}{suffix}", mask, None
    if isinstance(data.masks, StackMasks):
        for layer, mask in enumerate(data.masks.dropout):
            yield "mask", f"mask_dropout_l{layer}", mask, None
    if data.dy is not None:
        yield "cotangent", "dy", data.dy, None
    if data.dstate is not None and case.dh:
        yield "cotangent", "dh_n", data.dstate.h, None
    if data.dstate is not None and case.dc:
        yield "cotangent", "dc_n", data.dstate.c, None
    for role, expectation in (("output", answer.outputs), ("gradient", answer.gradients)):
        for name, want in expectation.items():
            yield role, name, np.asarray(want.value, np.float64), want.budget


def switches_of(case: Case) -> dict[str, Any]:
    """All switches by name, those of a stack beside those of its layers (`num_layers` and the like)."""
    if isinstance(case.model, StackConfig):
        stack = case.model
        shape = {"num_layers": stack.num_layers, "bidirectional": stack.num_directions == 2, "dropout": stack.dropout}
        return _plain(stack.configs[0]) | shape
    return _plain(case.config)


def _plain(config: LSTMConfig) -> dict[str, Any]:
    return {
        name: value if value is None or isinstance(value, bool | int | float | str) else str(getattr(config, name))
        for name, value in asdict(config).items()
        if name != "parameter_shapes"
    }


def write(folder: Path, draws: Mapping[tuple[str, str], int]) -> None:
    """Write one safetensors file for each precision, index.json and index.txt; `pinned` says what `draws` are."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[Case, list[tuple[str, str, Array, float | None]]]]] = {}
    for vector in (pinned(vector, draws) for vector in vectors()):
        found.setdefault(vector.case.precision, []).append((vector.case, list(tensors(vector))))
    usual = _plain(LSTMConfig(input_size=1, hidden_size=1))
    defaults = {name: value for name, value in usual.items() if name not in ("input_size", "hidden_size")}
    entries, lines = [], [f"{SCHEMA} {VERSION}", *(f"default {key} {_word(value)}" for key, value in defaults.items())]
    for precision, group in found.items():
        file = f"{precision}.safetensors"
        arrays = {
            f"{case.name}/{name}": np.ascontiguousarray(array) for case, rows in group for _, name, array, _ in rows
        }
        save_file(arrays, folder / f"{file}.part")
        os.chmod(folder / f"{file}.part", 0o644)
        os.replace(folder / f"{file}.part", folder / file)
        offsets = _header(folder / file)
        for case, rows in group:
            model = {
                key: value for key, value in switches_of(case).items() if key not in defaults or value != defaults[key]
            }
            entry: dict[str, Any] = {
                "name": case.name,
                "precision": precision,
                "file": file,
                "steps": case.steps,
                "batch": case.batch,
                "draw": case.draw,
                "model": model,
                "tensors": {},
            }
            lines += [f"case {precision} {file} {case.steps} {case.batch} {case.name}"]
            lines += [f"model {key} {_word(value)}" for key, value in model.items()]
            for role, name, array, exact in rows:
                kind, start = (offsets[f"{case.name}/{name}"][key] for key in ("dtype", "data_offsets"))
                budget = None if exact is None else _short(exact)
                entry["tensors"][name] = {"role": role} | ({} if budget is None else {"budget": budget})
                shape = " ".join(map(str, array.shape))
                lines.append(f"{role} {name} {kind} {start[0]} {budget or 0.0!r} {array.ndim} {shape}")
            lines.append("end")
            entries.append(entry)
    rows_of = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    head = f'"schema":"{SCHEMA}","version":{VERSION},"defaults":{json.dumps(defaults)}'
    _save(folder / "index.json", f'{{{head},"cases":[\n{rows_of}\n]}}\n')
    _save(folder / "index.txt", "\n".join(lines) + "\n")


def _short(budget: float) -> float:
    """The budget with four digits, rounded down."""
    shorter = float(f"{budget:.3e}")
    return shorter if shorter <= budget else float(f"{budget * (1 - 1e-3):.3e}")


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "none" if value is None else str(value).replace(" ", "")


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
        return found


def _save(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)
