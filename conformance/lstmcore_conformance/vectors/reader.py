"""The reader of the golden vectors, and the verdict on a backend from the files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lstmcore.backend import Backend, Masks, StackMasks, State, Tangents
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.files import check_regular
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.json_files import check_schema, parse_object
from lstmcore_conformance.oracle.budgets import Expectation, Expected, dtype_of
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure, compare
from lstmcore_conformance.vectors.index import HERE, SCHEMA, VERSION, index_path, read_content

#: The entries of `model` that only a stack has.
_SHAPE: Final = ("num_layers", "bidirectional", "dropout")


@dataclass(frozen=True, slots=True)
class Entry:
    """A case of the index with its arguments and its expected results."""

    case: Case
    data: Data
    outputs: Expectation
    gradients: Expectation


def entries(precision: str, folder: Path = HERE) -> Iterator[Entry]:
    """Yield the cases of the index in one precision, with their arrays.

    Raises
    ------
    ValueError
        A file is damaged, of another version, or does not fit vectors.schema.json; no case in this precision.
    ImportError
        jsonschema is not installed.
    """
    index = _read_index(folder)
    known = sorted({entry["precision"] for entry in index["cases"]})
    if precision not in known:
        raise ValueError(f"precision: expected one of {', '.join(known)}, which the vectors have; got {precision!r}")
    file = folder / f"{precision}.safetensors"
    arrays = _read_arrays(file)
    for entry in index["cases"]:
        if entry["precision"] == precision:
            keys = {name: f"{entry['name']}/{name}" for name in entry["tensors"]}
            if missing := next((key for key in keys.values() if key not in arrays), None):
                raise ValueError(f"{file}: expected the tensor {missing!r}, which the index has; got none")
            entry["model"] = {**index["defaults"], **entry["model"]}
            try:
                yield _entry(entry, {name: arrays[key] for name, key in keys.items()})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{index_path(folder)}: case {entry['name']!r}: {error}") from error


def draws(folder: Path = HERE) -> dict[tuple[str, str], int]:
    """Return the number of the draw of each case, by precision and name. Raises ValueError as `entries`."""
    return {(entry["precision"], entry["name"]): entry["draw"] for entry in _read_index(folder)["cases"]}


def _read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a folder, checked by its schema."""
    path = index_path(folder)
    content = read_content(path)
    index = parse_object(path, content)
    if (index.get("schema"), index.get("version")) != (SCHEMA, VERSION):
        raise ValueError(f"{path}: expected {SCHEMA} {VERSION}; got {index.get('schema')} {index.get('version')}")
    if (digest := sha256(content).digest()) not in _FITTING:
        check_schema(path, index, SCHEMA)
        _FITTING.add(digest)
    return index


#: Digests of indexes that fit the schema: a check takes a second, and a process reads the same index many times.
_FITTING: Final[set[bytes]] = set()


def _read_arrays(file: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file; a damaged one is a ValueError."""
    check_regular(file)
    try:
        arrays: dict[str, Array] = load_file(file)
    except (SafetensorError, KeyError) as error:  # a dtype that NumPy lacks is a KeyError
        raise ValueError(f"{file}: expected a whole safetensors file with dtypes of NumPy; got {error}") from None
    return arrays


def verify(backend: Backend, precision: str) -> Iterator[tuple[str, str]]:
    """Run `backend` on the vectors, and yield the name and a message for each case that fails.

    A case fails if an array is over its budget or a call raises. Cases and gradients that the backend does not declare
    are left out.
    """
    return verify_on(backend, entries(precision))


def verify_on(backend: Backend, chosen: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Run `backend` on the chosen cases, and yield what `verify` yields."""
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
    """Return the model with these switches: the defaults of the index, changed by the field `model` of a case."""
    config = LSTMConfig(**{name: value for name, value in switches.items() if name not in _SHAPE})
    if "num_layers" not in switches:
        return config
    return StackConfig.make(config, **{name: switches[name] for name in _SHAPE})


def _entry(entry: Mapping[str, Any], arrays: Mapping[str, Array]) -> Entry:
    rows = entry["tensors"]
    masks = any(row["role"] == "mask" for row in rows.values())
    lengths = arrays.get("lengths")
    case = Case(
        name=entry["name"],
        model=model_of(entry["model"]),
        precision=entry["precision"],
        steps=entry["steps"],
        batch=entry["batch"],
        lengths=None if lengths is None else tuple(map(int, lengths)),
        masks=masks,
    )

    wanted = {**case.model.parameter_shapes, "x": (case.steps, case.batch, case.configs[0].input_size)}
    for name, shape in wanted.items():
        if name not in arrays or arrays[name].shape != shape:
            raise ValueError(f"{name}: expected shape {shape}; got {arrays[name].shape if name in arrays else 'none'}")

    def expected(role: str) -> Expectation:
        return {
            name: Expected(arrays[name], row["budget"], dtype_of(name, case))
            for name, row in rows.items()
            if row["role"] == role
        }

    return Entry(case, _data(case, arrays), expected("output"), expected("gradient"))


def _data(case: Case, arrays: Mapping[str, Array]) -> Data:
    """Return the arguments of the calls. If one array of a state is left out, it is zeros."""

    def state(h: str, c: str) -> State | None:
        if h not in arrays and c not in arrays:
            return None
        layers = () if case.stack is None else (len(case.configs),)
        widths = {h: case.configs[0].output_size, c: case.configs[0].hidden_size}
        dtypes = {h: case.policy.storage, c: case.policy.compute}
        return State(
            *(arrays.get(name, np.zeros((*layers, case.batch, widths[name]), dtypes[name])) for name in (h, c))
        )

    def masks(suffix: str) -> Masks:
        return Masks(*(arrays.get(f"mask_{name}{suffix}") for name in Masks._fields))

    call_masks: Any = None
    if case.masks and case.stack is not None:
        dropout = (arrays.get(f"mask_dropout_l{layer}") for layer in range(case.stack.num_layers - 1))
        layers = tuple(masks(suffix) for suffix in case.stack.suffixes)
        call_masks = StackMasks(layers, tuple(mask for mask in dropout if mask is not None))
    elif case.masks:
        call_masks = masks("")
    return Data(
        {name: arrays[name] for name in case.model.parameter_shapes},
        arrays["x"],
        state("h0", "c0"),
        arrays.get("lengths"),
        call_masks,
        arrays.get("dy"),
        state("dh_n", "dc_n"),
        Tangents(),
    )
