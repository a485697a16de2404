"""The file of a `SequenceModel`: its parts as tensors and a JSON header, and the parts from such a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.backend import UnsupportedError
from lstmcore.chain import Chain
from lstmcore.config import LSTMConfig, StackConfig, integer
from lstmcore.layer_file import (
    LayerSpec,
    in_dtype,
    layer_shapes,
    layer_widths,
    layers_from_json,
    layers_to_json,
    precision_from_json,
    precision_to_json,
)
from lstmcore.layers import AttentionPooling, Embedding
from lstmcore.lstm import LSTM
from lstmcore.precision import Precision, get_precision
from lstmcore.scalars import flag
from lstmcore.stored_weights import StoredMatrix, from_tensors, tensor_dtypes, tensor_shapes, to_tensors
from lstmcore.tensor_file import check_tensors, read_tensors, write_tensors
from lstmcore.training.losses import LOSSES, Loss, loss_from_json, loss_to_json
from lstmcore.training.readout import DTYPES, Readout
from lstmcore.training.scaling import Standardizer

Array = npt.NDArray[Any]

MODEL_FORMAT: Final = "lstmcore-model"
_READOUT: Final = ("hidden_size", "output_size", "activation", "x_size", "steps", "dtype")
#: The layers that a model may have below and above its LSTM, and the sizes that make each.
_ENDS: Final = {"embedding": ("entries", "output_size"), "pooling": ("input_size", "hidden_size")}
#: The standardisations of a `SequenceModel`.
SCALINGS: Final = ("input_scaling", "target_scaling")


class ModelParts(NamedTuple):
    """The parts of a `SequenceModel`; `scalings` has one entry for each of `SCALINGS`, `loss` is None for none."""

    lstm: LSTM | Chain
    readout: Readout
    scalings: Mapping[str, Standardizer | None]
    task: dict[str, Any]
    loss: Loss | None = None
    embedding: Embedding | None = None
    pooling: AttentionPooling | None = None

    @property
    def layers(self) -> dict[str, Any]:
        """All layers, by what precedes the names of their parameters and a point."""
        others = {"embedding": self.embedding, "pooling": self.pooling}
        named = {"lstm": self.lstm, "readout": self.readout, **others}
        return {name: layer for name, layer in named.items() if layer is not None}

    @property
    def ends(self) -> dict[str, dict[str, int]]:
        """The sizes of the embedding and the attention, of those that are there."""
        there = self.layers
        return {name: {size: getattr(there[name], size) for size in sizes}
                for name, sizes in _ENDS.items() if name in there}  # fmt: skip

    @property
    def parameters(self) -> dict[str, Array]:
        """All parameters, by the names of their layers."""
        return {f"{part}.{name}": value for part, layer in self.layers.items()
                for name, value in layer.parameters.items()}  # fmt: skip

    @property
    def tensors(self) -> dict[str, Array]:
        """All parameters as the tensors of a file."""
        stored = {f"lstm.{name}": value for name, value in self.lstm.stored_parameters.items()}
        return to_tensors(stored) | {n: value for n, value in self.parameters.items() if not n.startswith("lstm.")}


def write_model(parts: ModelParts, path: str | Path) -> None:
    """Write the file of a model. Raises as `lstmcore.training.save_model`. A loss of another class is left out."""
    tensors, header = parts.tensors | scaling_tensors(parts.scalings), model_header(parts)
    if parts.loss is not None and type(parts.loss) is LOSSES.get(parts.loss.name):
        header["loss"] = loss_to_json(parts.loss)
    _check_model(tensors, header)
    write_tensors(path, MODEL_FORMAT, tensors, header)


def read_model(path: str | Path, backend: str | None, dtype: str | None) -> ModelParts:
    """Read what `write_model` wrote. Parameters and errors are those of `lstmcore.training.load_model`."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {dtype!r}")
    if Path(path).is_dir():
        path = _in_folder(Path(path))
    tensors, header = read_tensors(path, MODEL_FORMAT)
    try:
        checked = _check_model(tensors, header)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if dtype is not None:
        return _assemble(checked, backend, dtype)
    try:
        return _assemble(checked, backend, checked.readout["dtype"])
    except UnsupportedError:
        if checked.readout["dtype"] != "float32":
            raise
        return _assemble(checked, backend, "float64")


def _in_folder(folder: Path) -> Path:
    """Return the model file of a folder that `save_folder` wrote, or that the hub gave back.

    Raises
    ------
    ValueError
        No such file.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{folder}: expected a model file, or a folder with model.safetensors; got neither")
    return path


def model_header(parts: ModelParts) -> dict[str, Any]:
    """Return the header of a model's file: all that makes a model of the same shape.

    Raises
    ------
    ValueError
        Layers with different switches, which the file's format cannot hold.
    """
    return {
        "lstm": _lstm_header(parts.lstm),
        "readout": parts.readout.to_dict(),
        **parts.ends,
        "task": json_types("task", parts.task),
    }


def _lstm_header(lstm: LSTM | Chain) -> dict[str, Any]:
    laid_out = {"batch_first": True} if lstm.batch_first else {}
    if isinstance(lstm, Chain):
        return {"layers": layers_to_json(lstm.spec), **precision_to_json(lstm.precision), **laid_out}
    stack = lstm.stack
    config, bidirectional = stack.layers[0][0], stack.num_directions == 2
    if stack != StackConfig.make(
        config, num_layers=stack.num_layers, bidirectional=bidirectional, dropout=stack.dropout
    ):
        raise ValueError("lstm: expected the same switches in every layer, which the file tells once; got others")
    return {
        "config": config.to_dict(),
        "num_layers": stack.num_layers,
        "bidirectional": bidirectional,
        "dropout": stack.dropout,
        **precision_to_json(lstm.precision),
        **laid_out,
    }


def scaling_tensors(scalings: Mapping[str, Standardizer | None]) -> dict[str, Array]:
    """Return the standardisation of inputs and targets, as tensors."""
    tensors: dict[str, Array] = {}
    for name, scaling in scalings.items():
        if scaling is not None:
            tensors |= {f"{name}.mean": scaling.mean, f"{name}.scale": scaling.scale}
    return tensors


def take_scalings(tensors: dict[str, Array], prefix: str = "") -> dict[str, Standardizer | None]:
    """Remove the standardisations of `scaling_tensors` from `tensors` and return them; `prefix` precedes each name.

    Raises
    ------
    ValueError
        One without the other of mean and scale, or numbers that standardise nothing.
    """
    scalings: dict[str, Standardizer | None] = {}
    for name in SCALINGS:
        mean, scale = (tensors.pop(f"{prefix}{name}.{part}", None) for part in ("mean", "scale"))
        if (mean is None) != (scale is None):
            raise ValueError(f"{name}: expected both mean and scale; got one of them")
        try:
            scalings[name] = None if mean is None or scale is None else Standardizer(mean, scale)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} {error}") from error
    return scalings


def check_widths(sizes: tuple[int, int], readout: Readout) -> None:
    """Raise ValueError unless `readout` reads what an LSTM of that input size and output width gives."""
    input_size, width = sizes
    if readout.hidden_size != width:
        raise ValueError(
            f"readout hidden_size: expected {width}, the width of the LSTM's output; got {readout.hidden_size}"
        )
    if readout.x_size not in (0, input_size):
        raise ValueError(f"readout x_size: expected 0 or input_size={input_size}; got {readout.x_size}")


def check_ends(
    sizes: tuple[int, int],
    ends: Mapping[str, Mapping[str, int]],
    readout: Readout,
    scalings: Mapping[str, Standardizer | None],
) -> None:
    """Raise ValueError unless an embedding and an attention of these sizes fit.

    Parameters
    ----------
    sizes
        The LSTM's input size and output width.
    ends
        As `ModelParts.ends`.
    readout, scalings
        Those of the model.
    """
    if "embedding" in ends:
        if (found := ends["embedding"]["output_size"]) != sizes[0]:
            raise ValueError(f"embedding output_size: expected {sizes[0]}, the LSTM's input_size; got {found}")
        if scalings["input_scaling"] is not None:
            raise ValueError("input_scaling: expected None with an embedding, which reads whole numbers; got one")
    if "pooling" in ends:
        if (found := ends["pooling"]["input_size"]) != sizes[1]:
            raise ValueError(f"pooling input_size: expected {sizes[1]}, the width of the LSTM's output; got {found}")
        if readout.steps == "mean":
            raise ValueError("readout steps: expected 'last' or 'every' with attention pooling; got 'mean'")


def json_types(name: str, value: Any) -> Any:
    """Return `value` as a JSON file would give it back.

    Raises
    ------
    TypeError, ValueError
        A value of a type that JSON does not have.
    """

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic | np.ndarray):
            return item.tolist()
        raise TypeError(f"got {type(item).__name__}")

    try:
        return json.loads(json.dumps(value, default=plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected texts, finite numbers, lists and mappings, as in JSON; {error}") from None


class _Checked(NamedTuple):
    """The contents of a model file, checked."""

    layers: StackConfig | list[LayerSpec]
    batch_first: bool
    precision: Precision
    readout: dict[str, Any]
    task: dict[str, Any]
    scalings: dict[str, Standardizer | None]
    parameters: dict[str, Array | StoredMatrix]
    loss: Loss | None
    ends: dict[str, dict[str, int]]


def _check_model(tensors: Mapping[str, Array], header: Mapping[str, Any]) -> _Checked:
    """Check a whole model file, and make nothing that is larger than it.

    Raises
    ------
    TypeError, ValueError
        The first thing that is wrong.
    """
    loss, ends = header.get("loss"), _read_ends(header)
    others = {key: value for key, value in header.items() if key not in ("loss", *_ENDS)}
    header = _object("", others, ("lstm", "readout", "task"))
    layers, spec = _read_lstm(header["lstm"], sum(name.startswith("lstm.") for name in tensors))
    readout = _object("readout", header["readout"], _READOUT)
    task = _object("task", header["task"])
    sizes = layer_widths(layers)
    width, outputs = (integer(f"readout {name}", readout[name], 1) for name in ("hidden_size", "output_size"))
    x_size, dtype = integer("readout x_size", readout["x_size"], 0), readout["dtype"]
    precision = precision_from_json(spec)
    if dtype not in DTYPES or precision.storage != dtype:
        raise ValueError(
            f"readout dtype: expected {' or '.join(DTYPES)}, as the LSTM's {spec['dtype']!r} stores; got {dtype!r}"
        )
    parameters = dict(tensors)
    scalings = take_scalings(parameters)
    for name, columns in zip(SCALINGS, (sizes[0], outputs), strict=True):
        scaling = scalings[name]
        if scaling is not None and scaling.mean.shape != (columns,):
            raise ValueError(f"{name}: expected mean and scale of shape ({columns},); got {scaling.mean.shape}")
    shapes, form = {f"lstm.{name}": shape for name, shape in layer_shapes(layers).items()}, precision.weights
    expected = tensor_shapes(shapes, form) | {"readout.weight": (outputs, width + x_size), "readout.bias": (outputs,)}
    expected |= _end_shapes(ends)
    check_tensors(parameters, expected, dtype, tensor_dtypes(shapes, form))
    made_readout = Readout(**readout, seed=0)
    check_widths(sizes, made_readout)
    check_ends(sizes, ends, made_readout, scalings)
    batch_first = flag("batch_first", spec.get("batch_first", False))
    made = None if loss is None else loss_from_json(loss)
    values = from_tensors(parameters, form)
    return _Checked(layers, batch_first, precision, readout, task, scalings, values, made, ends)


def _read_ends(header: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return the sizes of the layers of `_ENDS` that a header has; raise TypeError or ValueError for other things."""
    found = {}
    for name, sizes in _ENDS.items():
        if name in header:
            spec = _object(name, header[name], sizes)
            found[name] = {size: integer(f"{name} {size}", spec[size], 1) for size in sizes}
    return found


def _end_shapes(ends: Mapping[str, Mapping[str, int]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of an embedding and an attention of these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}
    if "embedding" in ends:
        shapes["embedding.weight"] = (ends["embedding"]["entries"], ends["embedding"]["output_size"])
    if "pooling" in ends:
        width, hidden = (ends["pooling"][size] for size in _ENDS["pooling"])
        shapes |= {f"pooling.{name}.weight": (hidden, width) for name in "WU"} | {"pooling.v.weight": (1, hidden)}
    return shapes


def _read_lstm(value: Any, tensors: int) -> tuple[StackConfig | list[LayerSpec], dict[str, Any]]:
    """Return the stack or the layers of a chain that `_lstm_header` described, and the whole description.

    A file of `tensors` tensors has no more layers than that.
    """
    optional = ("batch_first", "weights")
    known = {key: item for key, item in value.items() if key not in optional} if isinstance(value, dict) else value
    if isinstance(value, dict) and "layers" in value:
        return layers_from_json(_object("lstm", known, ("layers", "dtype"))["layers"]), value
    spec = _object("lstm", known, ("config", "num_layers", "bidirectional", "dropout", "dtype"))
    config = LSTMConfig.from_dict(_object("lstm config", spec["config"]))
    layers = integer("num_layers", spec["num_layers"], 1)
    if layers > tensors:
        raise ValueError(f"num_layers: expected at most {tensors}, as many as there are tensors; got {layers}")
    made = StackConfig.make(config, num_layers=layers, bidirectional=spec["bidirectional"], dropout=spec["dropout"])
    return made, value


def _object(what: str, value: Any, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return `value`, a JSON object that has these `keys` and no others; without `keys`, any."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} in the header: expected a JSON object; got {type(value).__name__}")
    where = f"{what} in the header" if what else "the header"
    for key in keys:
        if key not in value:
            raise ValueError(f"{key!r} missing in {what + ' in ' if what else ''}the header")
    if keys and (unknown := sorted(set(value) - set(keys))):
        raise ValueError(f"{where}: expected {', '.join(keys)}; got {unknown[0]!r}, which is unknown")
    return value


def _assemble(checked: _Checked, backend: str | None, dtype: str) -> ModelParts:
    """Return the parts in `dtype`, whatever the dtype in the file."""
    groups: dict[str, dict[str, Any]] = {"lstm": {}, "readout": {}, **{name: {} for name in checked.ends}}
    for key, value in in_dtype(checked.parameters, dtype).items():  # infinite numbers are refused
        part, _, name = key.partition(".")
        groups[part][name] = value
    precision = checked.precision
    if dtype != checked.readout["dtype"]:
        precision = get_precision(dtype).with_weights(precision.weights)
    arguments: dict[str, Any] = {"dtype": precision, "backend": backend, "seed": 0, "batch_first": checked.batch_first}
    lstm: LSTM | Chain
    if isinstance(checked.layers, StackConfig):
        lstm = LSTM.from_config(checked.layers, groups["lstm"], **arguments)
    else:
        lstm = Chain.from_spec(checked.layers, groups["lstm"], **arguments)
    readout = Readout(**(checked.readout | {"dtype": dtype}), seed=0)
    readout.load_parameters(groups["readout"])
    kinds: dict[str, Any] = {"embedding": Embedding, "pooling": AttentionPooling}
    ends = {name: kinds[name](**sizes, dtype=dtype, seed=0) for name, sizes in checked.ends.items()}
    for name, layer in ends.items():
        layer.load_parameters(groups[name])
    return ModelParts(lstm, readout, checked.scalings, checked.task, checked.loss, **ends)
