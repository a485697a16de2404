"""How arrays go between the parent and a worker: safetensors files under names that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from lstmcore.backend import Masks, State, Tangents
from lstmcore_conformance.cases.case import Array, Data

_MASKS = "mask."
_PARAMETER = "parameter."


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write `arrays`."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def load_arrays(path: Path) -> dict[str, Array]:
    """Read what `save_arrays` wrote."""
    with suppress(ImportError):  # where it is installed, NumPy knows bfloat16 by it alone
        import_module("ml_dtypes")
    return dict(load_file(path))


def save_data(path: Path, data: Data) -> None:
    """Write what a call of one layer takes; states, dy and dstate have to be there."""
    if data.state is None or data.dstate is None or data.dy is None:
        raise ValueError("data: expected a state, dy and dstate; got a case without one of them")
    arrays = {
        "x": data.x,
        "state.h": data.state.h,
        "state.c": data.state.c,
        "dy": data.dy,
        "dstate.h": data.dstate.h,
        "dstate.c": data.dstate.c,
    }
    arrays |= {} if data.lengths is None else {"lengths": data.lengths}
    arrays |= {_PARAMETER + name: array for name, array in data.parameters.items()}
    if data.masks is not None:
        arrays |= {_MASKS + name: mask for name, mask in data.masks._asdict().items() if mask is not None}
    save_arrays(path, arrays)


def load_data(path: Path) -> Data:
    """Read what `save_data` wrote."""
    arrays = load_arrays(path)

    def named(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    masks = named(_MASKS)
    return Data(
        named(_PARAMETER),
        arrays["x"],
        State(arrays["state.h"], arrays["state.c"]),
        arrays.get("lengths"),
        Masks(**masks) if masks else None,
        arrays["dy"],
        State(arrays["dstate.h"], arrays["dstate.c"]),
        Tangents(),
    )
