"""Models and checkpoints as safetensors files: tensors, and one JSON text in the metadata. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lstmcore.backend import UnsupportedError
from lstmcore.config import LSTMConfig, check_version
from lstmcore.lstm import LSTM
from lstmcore.training.model import SequenceModel
from lstmcore.training.readout import Readout
from lstmcore.training.scaling import Standardizer

Array = npt.NDArray[Any]

FORMAT_VERSION: Final = 1
MODEL_FORMAT: Final = "lstmcore-model"
#: The one key of the metadata: safetensors writes several in no fixed order, and the same model gives the same bytes.
_KEY: Final = "lstmcore"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write `content` to a temporary file next to `path`, then rename it: the file is whole or it is not there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    with Path(path).open("rb"):
        pass  # safetensors reports a missing or unreadable file in words of its own
    try:
        with safe_open(path, framework="numpy") as stream:
            text = (stream.metadata() or {}).get(_KEY)
            header = json.loads("{}" if text is None else text)
            if not isinstance(header, dict):
                raise ValueError(f"{path}: expected a JSON object as header; got {type(header).__name__}")
            if (found := header.pop("format", None)) != kind:
                raise ValueError(f"{path}: expected a file of format {kind!r}; got {found!r}")
            check_version(f"{path}: format", header.pop("version", None), FORMAT_VERSION)
            return {name: stream.get_tensor(name) for name in stream.keys()}, header  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file; got {str(error).splitlines()[0]}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a JSON header; {error}") from None


def model_header(model: SequenceModel) -> dict[str, Any]:
    """What makes a model of the same shape, for JSON."""
    stack = model.lstm.stack
    return {
        "lstm": {
            "config": stack.layers[0][0].to_dict(),
            "num_layers": stack.num_layers,
            "bidirectional": stack.num_directions == 2,
            "dropout": stack.dropout,
            "dtype": model.lstm.precision.name,
        },
        "readout": model.readout.to_dict(),
        "task": model.task,
    }


def scaling_tensors(model: SequenceModel) -> dict[str, Array]:
    """The standardisation of inputs and targets, as tensors."""
    tensors: dict[str, Array] = {}
    for name in ("input_scaling", "target_scaling"):
        scaling = getattr(model, name)
        if scaling is not None:
            tensors |= {f"{name}.mean": scaling.mean, f"{name}.scale": scaling.scale}
    return tensors


def save_model(model: SequenceModel, path: str | Path) -> None:
    """Write a model: parameters, standardisation, configuration. Readable with any backend."""
    write_tensors(path, MODEL_FORMAT, model.parameters | scaling_tensors(model), model_header(model))


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
        the message names the file.
    OSError
        The file cannot be read.
    """
    tensors, header = read_tensors(path, MODEL_FORMAT)
    try:
        if dtype is not None:
            return build_model(tensors, header, backend, dtype)
        try:
            return build_model(tensors, header, backend, header["readout"]["dtype"])
        except UnsupportedError:
            if header["readout"]["dtype"] != "float32":
                raise
            return build_model(tensors, header, backend, "float64")
    except (KeyError, TypeError, ValueError) as error:
        text = f"{error} missing in the header" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {text}") from error


def build_model(
    tensors: Mapping[str, Array], header: Mapping[str, Any], backend: str | None, dtype: str
) -> SequenceModel:
    """A model in `dtype` from the tensors and the header of a file in a dtype of its own."""
    spec = header["lstm"]
    config = LSTMConfig.from_dict(spec["config"])
    switches = {name: value for name, value in config.to_dict().items() if name not in ("version", "reverse")}
    sizes = {name: spec[name] for name in ("num_layers", "bidirectional", "dropout")}
    stored = header["readout"]["dtype"]
    lstm = LSTM(**switches, **sizes, dtype=spec["dtype"] if dtype == stored else dtype, backend=backend, seed=0)
    scalings: dict[str, Standardizer | None] = {}
    rest = dict(tensors)
    for name in ("input_scaling", "target_scaling"):
        parts = [rest.pop(f"{name}.{part}", None) for part in ("mean", "scale")]
        if (parts[0] is None) != (parts[1] is None):
            raise ValueError(f"{name}: expected both mean and scale; got one of them")
        scalings[name] = None if parts[0] is None or parts[1] is None else Standardizer(parts[0], parts[1])
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ValueError(f"tensor {name!r}: expected finite numbers; got NaN or infinity")
    model = SequenceModel(
        lstm, Readout(**(header["readout"] | {"dtype": dtype}), seed=0), task=header["task"], **scalings
    )
    expected = {name: value.shape for name, value in model.parameters.items()}
    if missing := sorted(set(expected) - set(rest)):
        raise ValueError(f"tensor {missing[0]!r}: expected shape {expected[missing[0]]}; got none")
    for name, value in rest.items():
        if str(value.dtype) != stored:
            raise TypeError(f"tensor {name!r}: expected dtype {stored}; got {value.dtype}")
    model.load_parameters({name: value.astype(dtype) for name, value in rest.items()})
    return model
