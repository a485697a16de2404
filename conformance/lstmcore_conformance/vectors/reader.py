"""Reads the golden vectors, and verifies a backend with nothing but what the files say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from lstmcore.backend import Backend, Masks, StackMasks, State, Tangents
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.oracle.budgets import Expectation, Expected, dtype_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare

SCHEMA: Final = "lstmcore-vectors"
VERSION: Final = 2
HERE: Final = Path(__file__).parent

#: What `model` has of a stack, beside the switches of its layers.
_SHAPE: Final = ("num_layers", "bidirectional", "dropout")


@dataclass(frozen=True, slots=True)
class Entry:
    """A case of the index with its arrays: what to run, on what, and what is expected of it."""

    case: Case
    data: Data
    outputs: Expectation
    gradients: Expectation


def entries(precision: str, folder: Path = HERE) -> Iterator[Entry]:
    """The cases of the index in one precision.

    Raises
    ------
    ValueError
        The index is not one of these files, or of another version, or has no case in this precision.
    """
    index = _index(folder)
    known = sorted({entry["precision"] for entry in index["cases"]})
    if precision not in known:
        raise ValueError(f"precision: expected one of {', '.join(known)}, which the vectors have; got {precision!r}")
    arrays = load_file(folder / f"{precision}.safetensors")
    for entry in index["cases"]:
        if entry["precision"] == precision:
            entry["model"] = {**index["defaults"], **entry["model"]}
            yield _entry(entry, {name: arrays[f"{entry['name']}/{name}"] for name in entry["tensors"]})


def draws(folder: Path = HERE) -> dict[tuple[str, str], int]:
    """The number of the draw of each case, by precision and name."""
    return {(entry["precision"], entry["name"]): entry["draw"] for entry in _index(folder)["cases"]}


def _index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    if (index.get("schema"), index.get("version")) != (SCHEMA, VERSION):
        raise ValueError(
            f"{folder / 'index.json'}: expected {SCHEMA} {VERSION}; got {index.get('schema')} {index.get('version')}"
        )
    return index


def verify(backend: Backend, precision: str) -> Iterator[tuple[str, str]]:
    """Run `backend` on the vectors as they lie in the files.

    Yields
    ------
    tuple
        The name of each case in which an array is over its budget or a call fails, with a message. Cases and gradients
        that the backend does not declare are left out.
    """
    return verify_on(backend, entries(precision))


def verify_on(backend: Backend, chosen: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Do what `verify` does, on the cases that are given."""
    tested = BackendUnderTest(backend)
    for entry in chosen:
        if tested.refusal(entry.case) is not None:
            continue
        try:
            compare(tested.forward(entry.case, entry.data), entry.outputs)
            if "backward" in tested.declared.derivatives:
                compare(tested.gradients(entry.case, entry.data), entry.gradients)
        except Failure as failure:
            yield entry.case.name, str(failure)


def model_of(switches: Mapping[str, Any]) -> LSTMConfig | StackConfig:
    """The model with all switches that the index gives: its defaults, and what the field `model` of a case changes."""
    config = LSTMConfig(**{name: value for name, value in switches.items() if name not in _SHAPE})
    if "num_layers" not in switches:
        return config
    return StackConfig.make(config, **{name: switches[name] for name in _SHAPE})


def _entry(entry: Mapping[str, Any], found: Mapping[str, Array]) -> Entry:
    rows = entry["tensors"]
    masks = any(row["role"] == "mask" for row in rows.values())
    lengths = found.get("lengths")
    case = Case(
        name=entry["name"],
        model=model_of(entry["model"]),
        precision=entry["precision"],
        steps=entry["steps"],
        batch=entry["batch"],
        lengths=None if lengths is None else tuple(map(int, lengths)),
        masks=masks,
    )

    def expected(role: str) -> Expectation:
        return {
            name: Expected(found[name], row["budget"], dtype_of(name, case))
            for name, row in rows.items()
            if row["role"] == role
        }

    return Entry(case, _data(case, found), expected("output"), expected("gradient"))


def _data(case: Case, found: Mapping[str, Array]) -> Data:
    """The arguments of the calls from the arrays by name; of a pair of which one is left out, that one is zeros."""

    def state(h: str, c: str) -> State | None:
        if h not in found and c not in found:
            return None
        layers = () if case.stack is None else (len(case.configs),)
        widths = {h: case.configs[0].output_size, c: case.configs[0].hidden_size}
        dtypes = {h: case.policy.storage, c: case.policy.compute}
        return State(*(found.get(name, np.zeros((*layers, case.batch, widths[name]), dtypes[name])) for name in (h, c)))

    def masks(suffix: str) -> Masks:
        return Masks(*(found.get(f"mask_{name}{suffix}") for name in Masks._fields))

    given: Any = None
    if case.masks and case.stack is not None:
        dropout = (found.get(f"mask_dropout_l{layer}") for layer in range(case.stack.num_layers - 1))
        layers = tuple(masks(suffix) for suffix in case.stack.suffixes)
        given = StackMasks(layers, tuple(mask for mask in dropout if mask is not None))
    elif case.masks:
        given = masks("")
    return Data(
        {name: found[name] for name in case.model.parameter_shapes},
        found["x"],
        state("h0", "c0"),
        found.get("lengths"),
        given,
        found.get("dy"),
        state("dh_n", "dc_n"),
        Tangents(),
    )
