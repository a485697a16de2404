"""Models and checkpoints as safetensors files: tensors, and one JSON text in the metadata. No pickle."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lstmcore.backend import UnsupportedError
from lstmcore.config import LSTMConfig, StackConfig, check_version, integer
from lstmcore.files import write_atomically
from lstmcore.lstm import LSTM
from lstmcore.precision import get_precision
from lstmcore.training.model import SequenceModel, check_widths, json_types
from lstmcore.training.readout import DTYPES, Readout
from lstmcore.training.scaling import Standardizer

Array = npt.NDArray[Any]

FORMAT_VERSION: Final = 1
MODEL_FORMAT: Final = "lstmcore-model"
#: The one key of the metadata: safetensors writes several in no fixed order, and the same model gives the same bytes.
_KEY: Final = "lstmcore"
_READOUT: Final = ("hidden_size", "output_size", "activation", "x_size", "steps", "dtype")
#: The standardisations of a `SequenceModel`.
SCALINGS: Final = ("input_scaling", "target_scaling")


def write_tensors(path: str | Path, kind: str, tensors: Mapping[str, Array], header: Mapping[str, Any]) -> None:
    """Write tensors with `header` as JSON under a format name and the version of the format."""
    text = json.dumps({"format": kind, "version": FORMAT_VERSION, **header}, allow_nan=False)
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_atomically(path, save(contiguous, metadata={_KEY: text}))


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The inverse of `write_tensors`.

    Raises
    ------
    ValueError
        A truncated or foreign file, another format, a newer version.
    OSError
        The file cannot be read.
    """
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: expected a file; got a pipe or a device")
    with Path(path).open("rb"):
        pass  # safetensors reports a missing or unreadable file in words of its own
    try:
        with safe_open(path, framework="numpy") as stream:
            header = _parsed(path, (stream.metadata() or {}).get(_KEY))
            if (found := header.pop("format", None)) != kind:
                raise ValueError(f"{path}: expected a file of format {kind!r}; got {found!r}")
            check_version(f"{path}: format", header.pop("version", None), FORMAT_VERSION)
            for name in (names := list(stream.keys())):
                if (dtype := stream.get_slice(name).get_dtype()) not in ("F32", "F64"):
                    raise ValueError(f"{path}: tensor {name!r}: expected dtype float32 or float64; got {dtype}")
            return {name: stream.get_tensor(name) for name in names}, header
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file; got {str(error).splitlines()[0]}") from None


def _parsed(path: str | Path, text: str | None) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        header = json.loads("{}" if text is None else text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path}: expected a JSON header; {problem}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: expected a JSON object as header; got {type(header).__name__}")
    return header


def check_tensors(tensors: Mapping[str, Array], expected: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    """Raise unless `tensors` has the names and shapes of `expected`, `dtype`, and finite numbers only.

    Raises
    ------
    ValueError
        The message names the tensor.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"tensor {name!r}: expected shape {shape}; got none")
    for name, value in tensors.items():
        if name not in expected:
            raise ValueError(f"tensors: expected none but those that the header asks for; got {name!r}")
        if value.shape != expected[name]:
            raise ValueError(f"tensor {name!r}: expected shape {expected[name]}; got {value.shape}")
        if str(value.dtype) != dtype:
            raise ValueError(f"tensor {name!r}: expected dtype {dtype}; got {value.dtype}")
        if not np.isfinite(value).all():
            raise ValueError(f"tensor {name!r}: expected finite numbers; got NaN or infinity")


def take_scalings(tensors: dict[str, Array], prefix: str = "") -> dict[str, Standardizer | None]:
    """Take the standardisations that `scaling_tensors` made out of `tensors`, under their names after `prefix`.

    Raises
    ------
    ValueError
        One without the other of mean and scale, or numbers that standardise nothing.
    """
    found: dict[str, Standardizer | None] = {}
    for name in SCALINGS:
        mean, scale = (tensors.pop(f"{prefix}{name}.{part}", None) for part in ("mean", "scale"))
        if (mean is None) != (scale is None):
            raise ValueError(f"{name}: expected both mean and scale; got one of them")
        try:
            found[name] = None if mean is None or scale is None else Standardizer(mean, scale)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} {error}") from error
    return found


def model_header(model: SequenceModel) -> dict[str, Any]:
    """What makes a model of the same shape, for JSON.

    Raises
    ------
    ValueError
        Layers with different switches, which the file's format cannot tell.
    """
    stack = model.lstm.stack
    config, bidirectional = stack.layers[0][0], stack.num_directions == 2
    if stack != StackConfig.make(
        config, num_layers=stack.num_layers, bidirectional=bidirectional, dropout=stack.dropout
    ):
        raise ValueError("lstm: expected the same switches in every layer, which the file tells once; got others")
    return {
        "lstm": {
            "config": config.to_dict(),
            "num_layers": stack.num_layers,
            "bidirectional": bidirectional,
            "dropout": stack.dropout,
            "dtype": model.lstm.precision.name,
        },
        "readout": model.readout.to_dict(),
        "task": json_types("task", model.task),
    }


def scaling_tensors(model: SequenceModel) -> dict[str, Array]:
    """The standardisation of inputs and targets, as tensors."""
    tensors: dict[str, Array] = {}
    for name in SCALINGS:
        scaling = getattr(model, name)
        if scaling is not None:
            tensors |= {f"{name}.mean": scaling.mean, f"{name}.scale": scaling.scale}
    return tensors


def save_model(model: SequenceModel, path: str | Path) -> None:
    """Write a model: parameters, standardisation, configuration. Readable with any backend.

    Raises
    ------
    ValueError, TypeError
        A model that `load_model` would refuse, or a path that cannot be written.
    """
    tensors, header = model.parameters | scaling_tensors(model), model_header(model)
    _parts(tensors, header)
    write_tensors(path, MODEL_FORMAT, tensors, header)


def load_model(path: str | Path, *, backend: str | None = None, dtype: str | None = None) -> SequenceModel:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    backend
        The backend that runs it; None selects one as `LSTM` does.
    dtype
        Precision to run it in. None takes the file's, or float64 where the backend refuses a float32 model, as the
        reference does: that changes no weight. ``model.readout.dtype`` tells which.

    Raises
    ------
    ValueError
        A truncated or foreign file, a newer version, missing or unknown tensors, wrong shapes, NaN in the weights;
        the message names the file. A `backend` or `dtype` that is not there or does not run this model.
    OSError
        The file cannot be read.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {dtype!r}")
    tensors, header = read_tensors(path, MODEL_FORMAT)
    try:
        parts = _parts(tensors, header)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if dtype is not None:
        return _assemble(parts, backend, dtype)
    try:
        return _assemble(parts, backend, parts.readout["dtype"])
    except UnsupportedError:
        if parts.readout["dtype"] != "float32":
            raise
        return _assemble(parts, backend, "float64")


class _Parts(NamedTuple):
    """A model file, checked."""

    stack: StackConfig
    precision: str
    readout: dict[str, Any]
    task: dict[str, Any]
    scalings: dict[str, Standardizer | None]
    parameters: dict[str, Array]


def _parts(tensors: Mapping[str, Array], header: Mapping[str, Any]) -> _Parts:
    """Check a whole model file, and make nothing that is larger than it.

    Raises
    ------
    TypeError, ValueError
        The first thing that is wrong.
    """
    header = _object("", header, ("lstm", "readout", "task"))
    spec = _object("lstm", header["lstm"], ("config", "num_layers", "bidirectional", "dropout", "dtype"))
    readout = _object("readout", header["readout"], _READOUT)
    task = _object("task", header["task"])
    config = LSTMConfig.from_dict(_object("lstm config", spec["config"]))
    layers = integer("num_layers", spec["num_layers"], 1)
    held = sum(name.startswith("lstm.") for name in tensors)
    if layers > held:
        raise ValueError(f"num_layers: expected at most {held}, as many as there are tensors; got {layers}")
    stack = StackConfig.make(config, num_layers=layers, bidirectional=spec["bidirectional"], dropout=spec["dropout"])
    width, outputs = (integer(f"readout {name}", readout[name], 1) for name in ("hidden_size", "output_size"))
    x_size, dtype = integer("readout x_size", readout["x_size"], 0), readout["dtype"]
    if dtype not in DTYPES or get_precision(spec["dtype"]).storage != dtype:
        raise ValueError(
            f"readout dtype: expected {' or '.join(DTYPES)}, as the LSTM's {spec['dtype']!r} stores; got {dtype!r}"
        )
    parameters = dict(tensors)
    scalings = take_scalings(parameters)
    for name, columns in zip(SCALINGS, (stack.input_size, outputs), strict=True):
        scaling = scalings[name]
        if scaling is not None and scaling.mean.shape != (columns,):
            raise ValueError(f"{name}: expected mean and scale of shape ({columns},); got {scaling.mean.shape}")
    expected = {f"lstm.{name}": shape for name, shape in stack.parameter_shapes.items()}
    expected |= {"readout.weight": (outputs, width + x_size), "readout.bias": (outputs,)}
    check_tensors(parameters, expected, dtype)
    check_widths(stack, Readout(**readout, seed=0))
    return _Parts(stack, spec["dtype"], readout, task, scalings, parameters)


def _object(what: str, value: Any, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """`value`, a JSON object with just these `keys` (any, where there are none)."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} in the header: expected a JSON object; got {type(value).__name__}")
    where = f"{what} in the header" if what else "the header"
    for key in keys:
        if key not in value:
            raise ValueError(f"{key!r} missing in {what + ' in ' if what else ''}the header")
    if keys and (unknown := sorted(set(value) - set(keys))):
        raise ValueError(f"{where}: expected {', '.join(keys)}; got {unknown[0]!r}, which is unknown")
    return value


def _assemble(parts: _Parts, backend: str | None, dtype: str) -> SequenceModel:
    """The model in `dtype`, from parts in a dtype of their own."""
    groups: dict[str, dict[str, Array]] = {"lstm": {}, "readout": {}}
    for key, value in parts.parameters.items():
        part, _, name = key.partition(".")
        with np.errstate(over="ignore"):  # what float32 cannot hold is told as not finite
            groups[part][name] = value.astype(dtype)
    precision = parts.precision if dtype == parts.readout["dtype"] else dtype
    lstm = LSTM.from_config(parts.stack, groups["lstm"], dtype=precision, backend=backend, seed=0)
    readout = Readout(**(parts.readout | {"dtype": dtype}), seed=0)
    readout.load_parameters(groups["readout"])
    return SequenceModel(lstm, readout, task=parts.task, **parts.scalings)
