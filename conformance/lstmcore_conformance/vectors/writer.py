"""The writer of the golden vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from lstmcore.backend import Masks, StackMasks
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore_conformance.cases.case import Array, Case
from lstmcore_conformance.cases.quality import NAIVE, attempt_of
from lstmcore_conformance.vectors.catalogue import Vector, vectors
from lstmcore_conformance.vectors.index import write_compact, write_public


def pinned(vector: Vector, draws: Mapping[tuple[str, str], int]) -> Vector:
    """Return the vector with its draw fixed.

    `draws` maps precision and name to the number of the draw. A case without an entry takes its first good draw.
    """
    case = vector.case
    known = draws.get((case.precision, case.name))
    number = attempt_of(case.with_precision(NAIVE[case.precision])) if known is None else known
    return replace(vector, case=replace(case, draw=number))


class Tensor(NamedTuple):
    """One array of a case; an expected result has a budget."""

    role: str
    name: str
    array: Array
    budget: float | None = None


def tensors(vector: Vector) -> Iterator[Tensor]:
    """Yield the tensors of the case in the order of the index."""
    case, answer = vector.case, vector.answer(vector.case)
    data = answer.data
    yield Tensor("input", "x", data.x)
    if data.state is not None:
        yield Tensor("input", "h0", data.state.h)
        yield Tensor("input", "c0", data.state.c)
    if data.lengths is not None:
        yield Tensor("input", "lengths", data.lengths)
    for name, array in data.parameters.items():
        yield Tensor("parameter", name, array)
    yield from _masks(case, data.masks)
    if data.dy is not None:
        yield Tensor("cotangent", "dy", data.dy)
    if data.dstate is not None and case.dh:
        yield Tensor("cotangent", "dh_n", data.dstate.h)
    if data.dstate is not None and case.dc:
        yield Tensor("cotangent", "dc_n", data.dstate.c)
    for role, expectation in (("output", answer.outputs), ("gradient", answer.gradients)):
        for name, want in expectation.items():
            yield Tensor(role, name, np.asarray(want.value, np.float64), want.budget)


def _masks(case: Case, masks: Masks | StackMasks | None) -> Iterator[Tensor]:
    """Yield the masks of each layer, then those between layers."""
    layers = masks.layers if isinstance(masks, StackMasks) else (masks or Masks(),)
    suffixes = case.model.suffixes if isinstance(case.model, StackConfig) else ("",)
    for suffix, layer_masks in zip(suffixes, layers, strict=False):
        for name, mask in zip(Masks._fields, layer_masks, strict=True):
            if mask is not None:
                yield Tensor("mask", f"mask_{name}{suffix}", mask)
    if isinstance(masks, StackMasks):
        for layer, mask in enumerate(masks.dropout):
            yield Tensor("mask", f"mask_dropout_l{layer}", mask)


def switches_of(case: Case) -> dict[str, Any]:
    """Return all switches by name; a stack has `num_layers`, `bidirectional` and `dropout` too."""
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
    """Write one safetensors file for each precision, the compact index and the public ones.

    `pinned` says what `draws` are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[tuple[Case, list[Tensor]]]] = {}
    for vector in (pinned(vector, draws) for vector in vectors()):
        groups.setdefault(vector.case.precision, []).append((vector.case, list(tensors(vector))))
    usual = _plain(LSTMConfig(input_size=1, hidden_size=1))
    defaults = {name: value for name, value in usual.items() if name not in ("input_size", "hidden_size")}
    for precision, group in groups.items():
        path = folder / f"{precision}.safetensors"
        part = path.with_name(f"{path.name}.part")
        save_file(
            {f"{case.name}/{row.name}": np.ascontiguousarray(row.array) for case, rows in group for row in rows}, part
        )
        os.chmod(part, 0o644)
        os.replace(part, path)
    entries = [_entry(case, rows, defaults) for group in groups.values() for case, rows in group]
    write_compact(folder, defaults, entries)
    write_public(folder)


def _entry(case: Case, rows: Iterable[Tensor], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the case's entry in the index, with the switches that differ from the defaults."""
    return {
        "name": case.name,
        "precision": case.precision,
        "file": f"{case.precision}.safetensors",
        "steps": case.steps,
        "batch": case.batch,
        "draw": case.draw,
        "model": {
            key: value for key, value in switches_of(case).items() if key not in defaults or value != defaults[key]
        },
        "tensors": {
            row.name: {"role": row.role} | ({} if row.budget is None else {"budget": _short(row.budget)})
            for row in rows
        },
    }


def _short(budget: float) -> float:
    """Return the budget with four digits, rounded down."""
    shorter = float(f"{budget:.3e}")
    return shorter if shorter <= budget else float(f"{budget * (1 - 1e-3):.3e}")
