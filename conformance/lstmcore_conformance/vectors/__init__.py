"""Golden vectors: inputs, right answers and how far off each may be, for those who do not write Python.

docs/vectors.md describes the files. ``python -m lstmcore_conformance.vectors`` writes them anew.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file, save_file

from lstmcore.backend import Backend, Capabilities, Masks, StackMasks, State, Tangents
from lstmcore.config import FEATURES, StackConfig
from lstmcore_conformance import budgets
from lstmcore_conformance.cases import Array, Case, Data
from lstmcore_conformance.checking import Scope
from lstmcore_conformance.checks.stacks import STACKS
from lstmcore_conformance.checks.values import combination_cases
from lstmcore_conformance.subject import Failure, Subject, compare
from lstmcore_conformance.switches import SWITCHES, config_of

SCHEMA: Final = "lstmcore-vectors"
VERSION: Final = 1
HERE: Final = Path(__file__).parent
PRECISIONS: Final = ("float64", "float32", "float16")
#: Cases of switches that are there in float16 as well.
HALF: Final = ("plain", "proj_size", "reverse", "peephole", "layer_norm", "everything")


def cases() -> Iterator[Case]:
    """Every case, in the order of the index."""
    for precision in PRECISIONS:
        for name, changes in SWITCHES.items():
            if precision != "float16" or name in HALF:
                case = Case(name=name, model=config_of(changes), precision=precision)
                yield case
                config = case.config
                if config.recurrent_dropout or config.zoneout_hidden or config.zoneout_cell:
                    yield replace(case, name=f"{name},masks", masks=True)
        if precision == "float16":
            continue
        plain = Case(name="plain", model=config_of({}), precision=precision)
        yield replace(plain, name="no_state", state=False)
        yield replace(plain, name="T=1", steps=1)
        yield replace(plain, name="T=17,N=2", steps=17, batch=2)
        for name in ("plain", "reverse", "everything", "everything_coupled"):
            changed = replace(plain, model=config_of(SWITCHES[name]), masks=name.startswith("everything"))
            yield replace(changed, name=f"{name},lengths", lengths=(2, 0, 4))
        scope = Scope(Capabilities(device="cpu", precisions=frozenset({precision}), features=FEATURES), (precision,))
        yield from combination_cases(scope)
        for name, (switches, shape, masks) in STACKS.items():
            if name not in ("L=1", "L=4"):
                stack = StackConfig.make(config_of(switches), **shape)
                yield Case(
                    name=name,
                    model=stack,
                    precision=precision,
                    masks=masks,
                    lengths=(2, 0, 4) if "D=2" in name else None,
                )


def tensors(case: Case) -> Iterator[tuple[str, str, Array, float | None]]:
    """Role, name, array and, for what is expected, the budget."""
    data = case.data
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
        for name, mask in zip(("recurrent", "zoneout_hidden", "zoneout_cell"), masks, strict=True):
            if mask is not None:
                yield "mask", f"mask_{name}{suffix}", mask, None
    if isinstance(data.masks, StackMasks):
        for layer, mask in enumerate(data.masks.dropout):
            yield "mask", f"mask_dropout_l{layer}", mask, None
    if data.dy is not None:
        yield "cotangent", "dy", data.dy, None
    if data.dstate is not None:
        yield "cotangent", "dh_n", data.dstate.h, None
        yield "cotangent", "dc_n", data.dstate.c, None
    for role, expectation in (("output", budgets.forward(case)), ("gradient", budgets.gradients(case))):
        for name, want in expectation.items():
            yield role, name, np.asarray(want.value, np.float64), want.budget


def switches_of(case: Case) -> dict[str, Any]:
    """All switches by name, those of a stack beside those of its layers."""
    if isinstance(case.model, StackConfig):
        stack = case.model
        shape = {"num_layers": stack.num_layers, "bidirectional": stack.num_directions == 2, "dropout": stack.dropout}
        return _plain(stack.configs[0]) | shape
    return _plain(case.config)


def _plain(config: Any) -> dict[str, Any]:
    return {
        name: value if value is None or isinstance(value, bool | int | float | str) else str(getattr(config, name))
        for name, value in asdict(config).items()
        if name != "parameter_shapes"
    }


def write(folder: Path) -> None:
    """Write one safetensors file for each precision, index.json and index.txt, byte for byte the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[Case, list[tuple[str, str, Array, float | None]]]]] = {}
    for case in cases():
        found.setdefault(case.precision, []).append((case, list(tensors(case))))
    entries, lines = [], [f"{SCHEMA} {VERSION}"]
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
            model = switches_of(case)
            entry: dict[str, Any] = {
                "name": case.name,
                "precision": precision,
                "file": file,
                "steps": case.steps,
                "batch": case.batch,
                "lengths": None if case.lengths is None else list(case.lengths),
                "model": model,
                "tensors": {},
            }
            lines += [f"case {precision} {file} {case.steps} {case.batch} {case.name}"]
            lines += [f"model {key} {_word(value)}" for key, value in model.items()]
            for role, name, array, budget in rows:
                key = f"{case.name}/{name}"
                kind, start = offsets[key]["dtype"], offsets[key]["data_offsets"][0]
                row = {"role": role, "key": key, "dtype": kind, "shape": list(array.shape)}
                entry["tensors"][name] = row | ({} if budget is None else {"budget": budget})
                shape = " ".join(map(str, array.shape))
                lines.append(f"{role} {name} {kind} {start} {budget or 0.0!r} {array.ndim} {shape}")
            lines.append("end")
            entries.append(entry)
    rows_of = ",\n".join(json.dumps(entry) for entry in entries)
    _save(folder / "index.json", f'{{"schema": "{SCHEMA}", "version": {VERSION}, "cases": [\n{rows_of}\n]}}\n')
    _save(folder / "index.txt", "\n".join(lines) + "\n")


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


def verify(backend: Backend, precision: str) -> list[tuple[str, str]]:
    """Run `backend` on the vectors as they lie in the files.

    Returns
    -------
    list
        The name of each case in which an array is over its budget or a call fails, with a message. Cases that the
        backend does not declare are left out.
    """
    subject, bad = Subject(backend), []
    files = load_file(HERE / f"{precision}.safetensors")
    index = json.loads((HERE / "index.json").read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in index["cases"] if entry["precision"] == precision}
    for case in cases():
        if case.precision != precision or subject.refusal(case) is not None:
            continue
        rows = entries[case.name]["tensors"]
        found = {name: files[row["key"]] for name, row in rows.items()}
        data = _data(case, found)
        wanted = {
            role: {
                name: budgets.Expected(found[name], row["budget"], budgets.dtype_of(name, case))
                for name, row in rows.items()
                if row["role"] == role
            }
            for role in ("output", "gradient")
        }
        try:
            compare(subject.forward(case, data), wanted["output"])
            compare(subject.gradients(case, data), wanted["gradient"])
        except Failure as failure:
            bad.append((case.name, str(failure)))
    return bad


def _data(case: Case, found: dict[str, Array]) -> Data:
    """The arguments of a case from its arrays by name."""

    def state(h: str, c: str) -> State | None:
        return State(found[h], found[c]) if h in found else None

    def masks(suffix: str) -> Masks:
        return Masks(*(found.get(f"mask_{name}{suffix}") for name in ("recurrent", "zoneout_hidden", "zoneout_cell")))

    given: Any = None
    if isinstance(case.model, StackConfig) and case.masks:
        dropout = (found.get(f"mask_dropout_l{layer}") for layer in range(case.model.num_layers - 1))
        layers = tuple(masks(suffix) for suffix in case.model.suffixes)
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
