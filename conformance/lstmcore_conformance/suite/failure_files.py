"""A failing call as files: its arrays, and a script that makes the call again without the suite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np

from lstmcore.backend import Masks, StackMasks, State, Tangents
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.files import write_atomically
from lstmcore.stored_weights import SAME
from lstmcore_conformance.cases.case import Array, Case, Data
from lstmcore_conformance.suite.backend_under_test import BackendUnderTest, Failure
from lstmcore_conformance.suite.target import find_attribute, is_called

#: Characters of an id in the name of a file; its checksum follows.
_STEM: Final = 80

_SCRIPT: Final = '''"""{title}

{message}

Made by the conformance suite of lstmcore. Run it in the folder in which the suite ran: it makes the call again.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from lstmcore.backend import Masks, StackMasks, State, Tangents
from lstmcore.config import Activation, LSTMConfig, StackConfig
from lstmcore.precision import get_precision

sys.path.insert(0, "")  # a module of this folder
{imports}

saved = load_file(Path(__file__).with_suffix(".safetensors"))
{views}backend = {backend}
a = {{name: backend.to_device(array) for name, array in saved.items()}}
kernel = backend.{compile}({model}, {precision})
weights = kernel.pack({parameters})
{call}
for name, array in got.items():
    array, expected = np.asarray(backend.to_host(array), np.float64), saved.get("expected." + name)
    if expected is None or expected.shape != array.shape:
        print(name, array.shape, "the check does not compare this array as it is")
    else:
        print(name, array.shape, "largest error", np.abs(array - expected).max(initial=0), "budget", {budgets}[name])
'''
_OUTPUTS: Final = 'got = {{"y": done.y, "h_n": done.state.h, "c_n": done.state.c}}'
_CALLS: Final = {
    "forward": "done = kernel.forward(weights, {x}, {state}, lengths={lengths}, masks={masks}, record={record})\n"
    + _OUTPUTS,
    "backward": "\nfound = kernel.backward(weights, done.tape, {dy}, {dstate})\n"
    'got |= {{"dx": found.x, "dh0": found.state.h, "dc0": found.state.c}}\n'
    'got |= {{"d_" + name: gradient for name, gradient in found.parameters.items()}}',
    "jvp": "done, moved = kernel.jvp(weights, {x}, {state}, {tangents}, lengths={lengths}, masks={masks})\n"
    + _OUTPUTS
    + '\ngot |= {{"ty": moved.y, "th_n": moved.state.h, "tc_n": moved.state.c}}',
}


def save_failure(folder: str | Path, tested: BackendUnderTest, id: str, failure: Failure) -> Path | None:
    """Write the last call of a failing item: ``NAME.safetensors``, and ``NAME.py`` that makes the call again.

    The arrays are the inputs, ``got.NAME`` and ``expected.NAME`` in float64. bfloat16 is stored as its 16 bits.

    Parameters
    ----------
    folder
        It is made if it is not there.
    tested
        The backend, which knows its last call.
    id
        That of the item.
    failure
        What the check raised.

    Returns
    -------
    Path or None
        The script; None if the item failed before its first call.
    """
    from safetensors.numpy import save  # a run that saves nothing needs no package beyond NumPy and pluggy

    if tested.last is None:
        return None
    kind, case, on_device = tested.last
    data = on_device.map(lambda array: np.array(tested.backend.to_host(array)))
    inputs: dict[str, Array] = {}
    call = _call(kind, data, inputs)
    parameters = expression(data.parameters, "parameters", inputs)
    bfloat16 = [name for name, array in inputs.items() if array.dtype.name == "bfloat16"]
    name = _file_name(id)
    script = _SCRIPT.format(
        title=f"{id} on {tested.command_name}.",
        message=_in_docstring(str(failure)),
        imports=_imports(tested.command_name, bfloat16=bool(bfloat16)),
        views="".join(f'saved["{name}"] = saved["{name}"].view(ml_dtypes.bfloat16)\n' for name in bfloat16),
        backend=_made(tested.command_name),
        compile="compile_stack" if isinstance(case.model, StackConfig) else "compile",
        model=format_config(case.model),
        precision=_format_precision(case),
        parameters=parameters,
        call=call,
        budgets={name: expected.budget for name, (_, expected) in failure.arrays.items()},
    )
    arrays = {name: array.view(np.uint16) if name in bfloat16 else array for name, array in inputs.items()}
    for name_of_array, (array, expected) in failure.arrays.items():
        arrays[f"got.{name_of_array}"] = array.astype(np.float64)
        arrays[f"expected.{name_of_array}"] = np.asarray(expected.value, np.float64)
    path = Path(folder) / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".safetensors"), save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    write_atomically(path, script.encode())
    return path


def _file_name(id: str) -> str:
    """Return the id in characters that every file system has, with a checksum: two ids have two names."""
    stem = re.sub(r"[^\w.=-]+", "_", id)[:_STEM].strip("._")
    return f"{stem}-{crc32(id.encode()):08x}"


def _call(kind: str, data: Data, inputs: dict[str, Array]) -> str:
    """Return Python that makes a call of that kind, and put the arrays that it reads into `inputs`."""
    text = _CALLS["jvp"] if kind == "jvp" else _CALLS["forward"] + (_CALLS["backward"] if kind == "backward" else "")
    values = {
        "x": data.x,
        "state": data.state,
        "lengths": data.lengths,
        "masks": data.masks,
        "dy": data.dy,
        "dstate": data.dstate,
        "tangents": data.tangents,
    }
    words = {name: expression(value, name, inputs) for name, value in values.items() if f"{{{name}}}" in text}
    words["lengths"] = words["lengths"].replace("a[", "saved[")  # they stay on the host
    return text.format(**words, record=kind in ("backward", "recorded forward"))


def _format_precision(case: Case) -> str:
    weights = "" if case.weights == SAME else f".with_weights({case.weights!r})"
    return f"get_precision({case.precision!r}){weights}"


def _in_docstring(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")


def _imports(name: str, *, bfloat16: bool) -> str:
    """Return the import of the backend, and of ml_dtypes where arrays are bfloat16."""
    module, colon, attribute = name.partition(":")
    own = (
        f"from {module} import {attribute.partition('.')[0]}" if colon else "from lstmcore.registry import get_backend"
    )
    return "import ml_dtypes\n" * bfloat16 + own


def _made(name: str) -> str:
    """Return the expression of the backend, which `load_target` has loaded."""
    attribute = name.partition(":")[2]
    return attribute + "()" * is_called(find_attribute(name)) if attribute else f"get_backend({name!r})"


def expression(value: Any, name: str, arrays: dict[str, Array]) -> str:
    """Return Python that makes `value` from arrays in ``a``.

    The arrays go into `arrays`, under `name` or names that begin with it.
    """
    if value is None:
        return "None"

    def inner(key: object, item: Any) -> str:
        return expression(item, f"{name}.{key}", arrays)

    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {inner(key, item)}" for key, item in value.items()) + "}"
    if isinstance(value, State | Masks | StackMasks | Tangents):
        given = [(field, item) for field, item in zip(value._fields, value, strict=True) if item is not None]
        return f"{type(value).__name__}({', '.join(f'{field}={inner(field, item)}' for field, item in given)})"
    if isinstance(value, tuple):
        return "(" + "".join(f"{inner(place, item)}, " for place, item in enumerate(value)) + ")"
    arrays[name] = value
    return f'a["{name}"]'


def format_config(model: LSTMConfig | StackConfig) -> str:
    """Return Python that makes a configuration; of one layer what differs from the defaults."""
    if isinstance(model, StackConfig):
        layers = ("(" + "".join(f"{format_config(config)}, " for config in layer) + "), " for layer in model.layers)
        return f"StackConfig(layers=({''.join(layers)}), dropout={model.dropout!r})"
    default = LSTMConfig(input_size=model.input_size, hidden_size=model.hidden_size)
    names = [field.name for field in fields(model) if field.init]
    sizes = ("input_size", "hidden_size")
    changed = [name for name in names if name in sizes or getattr(model, name) != getattr(default, name)]
    return f"LSTMConfig({', '.join(f'{name}={getattr(model, name)!r}' for name in changed)})"
