"""The description of layers in the header of a file, and files of layers without a readout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore.config import StackConfig
from lstmcore.precision import Precision, get_precision, numpy_dtype
from lstmcore.scalars import choice, flag
from lstmcore.stored_weights import SAME, StoredMatrix, from_tensors, tensor_dtypes, tensor_shapes, to_tensors

Array = npt.NDArray[Any]

LSTM_FORMAT: Final = "lstmcore-lstm"
CHAIN_FORMAT: Final = "lstmcore-chain"
#: Kinds of layers of a chain: an LSTM, one that reads from the end, a merge of two directions.
KINDS: Final = ("lstm", "reversed", "merge")

#: Ways to merge the outputs of two directions.
MODES: Final = ("concat", "sum", "mul", "average")


class LayerSpec(NamedTuple):
    """One layer of a chain: `stack` is None for a merge, `mode` is None for the others."""

    kind: str
    stack: StackConfig | None
    mode: str | None


def layers_to_json(layers: Sequence[LayerSpec]) -> list[dict[str, Any]]:
    """Return the form of the layers for a header."""
    return [
        {"kind": kind, "mode": mode} if stack is None else {"kind": kind, "stack": stack.to_dict()}
        for kind, stack, mode in layers
    ]


def layers_from_json(values: Any) -> list[LayerSpec]:
    """Invert `layers_to_json`.

    Raises
    ------
    TypeError, ValueError
        Not what it returns; the message names the layer.
    """
    if not isinstance(values, list) or not values:
        raise ValueError(f"layers in the header: expected a list of layers; got {type(values).__name__}")
    layers = []
    for index, value in enumerate(values):
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind not in KINDS or set(value) != {"kind", "mode" if kind == "merge" else "stack"}:
            raise ValueError(
                f"layers[{index}] in the header: expected a layer of kind {', '.join(KINDS)}; got {value!r:.80}"
            )
        try:
            stack = None if kind == "merge" else stack_from_json(value["stack"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"layers[{index}]: {error}") from error
        mode = None if stack is not None else choice(f"layers[{index}] mode", value["mode"], MODES)
        layers.append(LayerSpec(kind, stack, mode))
    return layers


def layer_widths(layers: StackConfig | Sequence[LayerSpec]) -> tuple[int, int]:
    """Return the widths of x and of y of a stack or of the layers of a chain.

    Raises
    ------
    ValueError
        Layers that do not fit together; the message names the first.
    """
    if isinstance(layers, StackConfig):
        return layers.input_size, layers.num_directions * layers.output_size
    if all(layer.stack is None for layer in layers):
        raise ValueError("layers: expected at least one LSTM; got merges alone")
    first, width, directions = None, 0, 1
    for index, (kind, stack, mode) in enumerate(layers):
        if stack is None:
            if directions != 2:
                raise ValueError(
                    f"layers[{index}]: expected a merge right after an LSTM in both directions; got another place"
                )
            width, directions = (width if mode == "concat" else width // 2), 1
            continue
        if kind == "reversed" and stack.num_directions != 1:
            raise ValueError(f"layers[{index}]: expected an LSTM in one direction to reverse; got one in both")
        if first is not None and stack.input_size != width:
            raise ValueError(
                f"layers[{index}]: expected input_size={width}, the width before it; got {stack.input_size}"
            )
        first = stack.input_size if first is None else first
        width, directions = stack.num_directions * stack.output_size, stack.num_directions
    return first or 0, width


def stack_from_json(value: Any) -> StackConfig:
    """Return the stack of a header; raise TypeError or ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"stack in the header: expected a JSON object; got {type(value).__name__}")
    return StackConfig.from_dict(value)


def layer_shapes(layers: StackConfig | Sequence[LayerSpec]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the parameters of a stack, or of a chain, with the layer's place before each."""
    if isinstance(layers, StackConfig):
        return layers.parameter_shapes
    return {
        f"{index}.{name}": shape
        for index, layer in enumerate(layers)
        if layer.stack is not None
        for name, shape in layer.stack.parameter_shapes.items()
    }


def file_dtype(precision: Precision) -> str:
    """Return the dtype of the numbers in a file: that of storage, or float32, which holds 16 bits exactly."""
    return precision.storage if precision.storage in ("float32", "float64") else "float32"


class LayerFile(NamedTuple):
    """What a file of layers holds: `layers` is a stack or the layers of a chain.

    `parameters` have the storage dtype, or are matrices in the format of ``precision.weights``. `LSTM.content` and
    `LSTM.from_content` give and take it.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> content = LSTM(3, 5, seed=0).content
    >>> content.layers.hidden_size, content.batch_first, sorted(content.parameters)
    (5, False, ['bias_l0', 'weight_h_l0', 'weight_x_l0'])
    """

    layers: StackConfig | Sequence[LayerSpec]
    precision: Precision
    batch_first: bool
    parameters: Mapping[str, Array | StoredMatrix]

    def in_precision(self, precision: Precision) -> LayerFile:
        """Return the layers in another precision; stored matrices stay stored."""
        form = self.precision.weights
        values = in_dtype(self.parameters, numpy_dtype(precision.storage))
        return self._replace(precision=precision if form == SAME else precision.with_weights(form), parameters=values)


def write_layers(path: str | Path, content: LayerFile) -> None:
    """Write a stack or the layers of a chain, with their parameters.

    Raises
    ------
    lstmcore.files.UnwritableError, OSError
        A path that cannot be written.
    """
    from lstmcore.tensor_file import write_tensors

    layers, described = content.layers, dict[str, Any]()
    if isinstance(layers, StackConfig):
        kind, described["stack"] = LSTM_FORMAT, layers.to_dict()
    else:
        kind, described["layers"] = CHAIN_FORMAT, layers_to_json(layers)
    header = {**described, **precision_to_json(content.precision), "batch_first": content.batch_first}
    write_tensors(path, kind, to_tensors(in_dtype(content.parameters, file_dtype(content.precision))), header)


def precision_to_json(precision: Precision) -> dict[str, str]:
    """Return the entries of a header that name a precision, and the format of the weights unless it is the same."""
    weights = {} if precision.weights == SAME else {"weights": precision.weights}
    return {"dtype": precision.name, **weights}


def precision_from_json(header: Mapping[str, Any]) -> Precision:
    """Return the precision of a header with the entries of `precision_to_json`; raise ValueError for another one."""
    return get_precision(header["dtype"]).with_weights(header.get("weights", SAME))


def read_layers(path: str | Path, kind: str, dtype: Any) -> LayerFile:
    """Read what `write_layers` wrote, and make nothing that is larger than the file.

    Parameters
    ----------
    path
        The file.
    kind
        `LSTM_FORMAT` or `CHAIN_FORMAT`.
    dtype
        The precision to read it in; None takes that of the file.

    Raises
    ------
    ValueError
        A truncated or foreign file, a newer version, missing or unknown tensors, other shapes, numbers that are not
        finite; the message names the file.
    OSError
        The file cannot be read.
    """
    from lstmcore.tensor_file import check_tensors, read_tensors

    wanted = None if dtype is None else get_precision(dtype)
    tensors, header = read_tensors(path, kind)
    what = "stack" if kind == LSTM_FORMAT else "layers"
    try:
        if set(header) - {"weights"} != {what, "dtype", "batch_first"}:
            raise ValueError(f"the header: expected {what}, dtype, batch_first; got {', '.join(sorted(header))}")
        stored = precision_from_json(header)
        batch_first = flag("batch_first", header["batch_first"])
        layers: StackConfig | list[LayerSpec]
        layers = stack_from_json(header[what]) if what == "stack" else layers_from_json(header[what])
        layer_widths(layers)
        shapes, form = layer_shapes(layers), stored.weights
        check_tensors(tensors, tensor_shapes(shapes, form), file_dtype(stored), tensor_dtypes(shapes, form))
        parameters = from_tensors(tensors, form)
        precision = (wanted or stored).with_weights(form)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return LayerFile(layers, precision, batch_first, in_dtype(parameters, numpy_dtype(precision.storage)))


def in_dtype(parameters: Mapping[str, Array | StoredMatrix], dtype: npt.DTypeLike) -> dict[str, Array | StoredMatrix]:
    """Return the parameters in a dtype; a stored matrix stays. Numbers that are too large become infinite."""
    with np.errstate(over="ignore"):
        return {
            name: value if isinstance(value, StoredMatrix) else value.astype(dtype)
            for name, value in parameters.items()
        }
