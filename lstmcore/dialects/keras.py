"""Keras's layers LSTM and Bidirectional: their configuration and arrays in our terms, and arrays for such layers.

Keras stacks the gates as we do, i, f, c (our g), o, and has matrices transposed. `keras_files` reads and writes files.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.config import Activation, LSTMConfig
from lstmcore.dialects.arrays import add_biases, check_floats
from lstmcore.dialects.layers import PlacedLayer, join_layers, split_layers
from lstmcore.layer_file import LayerFile
from lstmcore.notices import notify
from lstmcore.precision import get_precision
from lstmcore.stored_weights import read_parameters

Array: TypeAlias = npt.NDArray[Any]

LAYERS: Final = ("LSTM", "Bidirectional")
#: Layers between two LSTMs that change nothing in inference.
_IDLE: Final = frozenset(
    {
        "InputLayer",
        "Dropout",
        "SpatialDropout1D",
        "GaussianDropout",
        "GaussianNoise",
        "Masking",
        "ActivityRegularization",
    }
)
#: Keras's name of a function -> ours; hard_sigmoid has another slope since Keras 3.
_FUNCTIONS: Final = {
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
    "relu": Activation("relu"),
    "linear": Activation("identity"),
    "elu": Activation("elu", 1.0),
    "softsign": Activation("softsign"),
    "softplus": Activation("softplus"),
    "leaky_relu": Activation("leaky_relu", 0.2),
}
_SLOPES: Final = {1: 0.2, 2: 0.2, 3: 1 / 6}
_MERGES: Final = {"concat": None, None: None, "sum": "sum", "mul": "mul", "ave": "average"}
#: Gates in the order in which Keras 1 has three arrays for each.
_KERAS1: Final = "icfo"
#: The switches whose values the arrays of Keras hold, or that act in training alone.
_CARRIED: Final = frozenset({"input_size", "hidden_size", "bias", "reverse", "recurrent_dropout", "layer_norm_eps"})


class KerasLayer(NamedTuple):
    """A layer of a model: its name, its class, its configuration (None if unknown) and its arrays."""

    name: str
    kind: str
    config: Mapping[str, Any] | None
    arrays: Sequence[Array] = ()


class KerasModel(NamedTuple):
    """The layers of a model in their order.

    `version` is the major version of Keras, `sequential` whether each layer reads the one before.
    """

    layers: Sequence[KerasLayer]
    version: int
    sequential: bool


def read_keras(model: KerasModel, layer: str | None = None) -> LayerFile:
    """Return the LSTM of a model in our terms.

    Parameters
    ----------
    model
        The layers.
    layer
        The name of one. None takes all LSTMs of a sequential model that follow each other.

    Raises
    ------
    TypeError, ValueError
        No such layer, LSTMs that do not follow each other; a function, a shape or a dtype that is not one of an LSTM.
    """
    found = [each for each in model.layers if each.kind in LAYERS]
    if not found:
        raise ValueError("expected a layer LSTM; got a model with none")
    names = ", ".join(repr(each.name) for each in found)
    if layer is not None:
        chosen = [each for each in found if each.name == layer]
        if len(chosen) != 1:
            raise ValueError(f"layer: expected one of {names}; got {layer!r}")
    else:
        chosen = found
        first, last = model.layers.index(found[0]), model.layers.index(found[-1])
        between = [each.kind for each in model.layers[first:last] if each.kind not in (*LAYERS, *_IDLE)]
        if len(found) > 1 and (between or not model.sequential):
            raise ValueError(f"layer: expected one of {names}, since they are not one after another; got None")
    placed = [each for one in chosen for each in _placed(one, model.version, alone=len(chosen) == 1)]
    dtypes = {str(value.dtype) for each in placed for part in each.parameters for value in part.values()}
    if len(dtypes) > 1:
        raise ValueError(f"{chosen[0].name}: expected one dtype in all arrays; got {', '.join(sorted(dtypes))}")
    return join_layers(placed, get_precision(dtypes.pop()), batch_first=True)


def _placed(layer: KerasLayer, version: int, *, alone: bool) -> list[PlacedLayer]:
    """Return a layer, and the merge after it."""
    try:
        config = layer.config or {}
        if layer.kind == "LSTM":
            return [_one_direction(layer, config, version, alone=alone)]
        wrapped = _object(config, "layer")
        inner, kind = _object(wrapped, "config"), wrapped.get("class_name") if wrapped else "LSTM"
        told = kind if isinstance(kind, str) else reprlib.repr(kind)
        if kind != "LSTM" or inner.get("go_backwards"):
            raise ValueError(f"expected Bidirectional of an LSTM that goes forwards; got one of {told}")
        mode = config.get("merge_mode", "concat")
        if not isinstance(mode, str | None) or mode not in _MERGES:
            raise ValueError(f"merge_mode: expected one of {', '.join(map(str, _MERGES))}; got {reprlib.repr(mode)}")
        half = len(layer.arrays) // 2
        other = _object(_object(config, "backward_layer"), "config") or inner
        parts = [
            _direction(each, arrays, version, reverse=reverse)
            for each, arrays, reverse in ((inner, layer.arrays[:half], False), (other, layer.arrays[half:], True))
        ]
        configs, parameters = zip(*parts, strict=True)
        placed = [PlacedLayer("lstm", configs, parameters)]
        return placed if (merge := _MERGES[mode]) is None else [*placed, PlacedLayer("merge", mode=merge)]
    except (TypeError, ValueError) as error:
        raise type(error)(f"{layer.name}: {error}") from error


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of a configuration, which is empty if it is not there."""
    found = config.get(key) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{key}: expected an object of the configuration; got {reprlib.repr(found)}")
    return found


def _number(config: Mapping[str, Any], key: str, old: str, default: float) -> Any:
    """Return a number of a configuration, which Keras 1 calls `old`."""
    found = config.get(key, config.get(old, default))
    if isinstance(found, bool) or not isinstance(found, int | float | np.number):
        raise ValueError(f"{key}: expected a number in the configuration; got {reprlib.repr(found)}")
    return found


def _one_direction(layer: KerasLayer, config: Mapping[str, Any], version: int, *, alone: bool) -> PlacedLayer:
    made, parameters = _direction(config, layer.arrays, version, reverse=False)
    if not config.get("go_backwards"):
        return PlacedLayer("lstm", (made,), (parameters,))
    if not alone:
        raise ValueError(
            "go_backwards: expected False before or after another LSTM, since Keras turns the outputs round"
        )
    if config.get("return_sequences"):
        notify(f"{layer.name}: y has the order of x; Keras gives the steps of this layer from the last to the first")
    return PlacedLayer("reversed", (made,), (parameters,))


def _direction(
    config: Mapping[str, Any], arrays: Sequence[Array], version: int, *, reverse: bool
) -> tuple[LSTMConfig, dict[str, Array]]:
    """Return the configuration and the parameters of one direction."""
    if len(arrays) == 3 * len(_KERAS1):
        arrays = _from_keras1(arrays)
    for name, array in zip(("kernel", "recurrent_kernel", "bias"), arrays, strict=False):
        check_floats(name, array)
    if len(arrays) not in (2, 3):
        raise ValueError(f"expected the arrays kernel, recurrent_kernel and bias; got {len(arrays)}")
    kernel, recurrent, *bias = arrays
    hidden = recurrent.shape[0] if recurrent.ndim == 2 else 0
    if config.get("time_major"):  # of Keras 2
        raise ValueError("time_major: expected False, since x of a Keras layer has rows first here; got True")
    units = _number(config, "units", "output_dim", hidden)
    if not hidden or recurrent.shape != (units, 4 * units):
        told = f"{units or 'units'}"[:20]
        raise ValueError(f"recurrent_kernel: expected shape (H, 4 H) with H={told}; got {recurrent.shape}")
    if kernel.ndim != 2 or kernel.shape[1] != 4 * hidden or not kernel.shape[0]:
        raise ValueError(f"kernel: expected shape (I, {4 * hidden}); got {kernel.shape}")
    if bias and bias[0].shape not in ((4 * hidden,), (2, 4 * hidden)):
        raise ValueError(f"bias: expected shape ({4 * hidden},); got {bias[0].shape}")
    gates = config.get("recurrent_activation", config.get("inner_activation", "sigmoid"))
    function = _function("activation", config.get("activation", "tanh"), version)
    made = LSTMConfig(
        input_size=kernel.shape[0],
        hidden_size=hidden,
        bias=bool(bias),
        reverse=reverse,
        gate_activation=_function("recurrent_activation", gates, version),
        cell_activation=function,
        hidden_activation=function,
        recurrent_dropout=_number(config, "recurrent_dropout", "dropout_U", 0.0),
    )
    parameters = {"weight_x": np.ascontiguousarray(kernel.T), "weight_h": np.ascontiguousarray(recurrent.T)}
    if bias:
        parameters["bias"] = add_biases(*bias[0]) if bias[0].ndim == 2 else np.array(bias[0])
    return made, parameters


def _from_keras1(arrays: Sequence[Array]) -> list[Array]:
    """Return kernel, recurrent_kernel and bias of the twelve arrays of Keras 1."""
    each = {gate: arrays[3 * place : 3 * place + 3] for place, gate in enumerate(_KERAS1)}
    return [np.concatenate([each[gate][part] for gate in "ifco"], axis=-1) for part in range(3)]


def _function(name: str, value: Any, version: int) -> Activation:
    if value == "hard_sigmoid":
        return Activation("hard_sigmoid", _SLOPES.get(version, 1 / 6), 0.5)
    if value is None:
        return _FUNCTIONS["linear"]
    if not isinstance(value, str) or value not in _FUNCTIONS:
        known = ", ".join((*_FUNCTIONS, "hard_sigmoid"))
        raise ValueError(f"{name}: expected one of {known}; got {reprlib.repr(value)}")
    return _FUNCTIONS[value]


def live_model(source: Any) -> KerasModel:
    """Return the layers of a live layer or model of Keras.

    Raises
    ------
    TypeError
        Another object.
    """
    kind = type(source).__name__
    if kind not in LAYERS and not hasattr(source, "layers"):
        raise TypeError(f"from_keras: expected a layer, a model or the path of a file; got {kind}")
    layers = [
        KerasLayer(each.name, type(each).__name__, each.get_config(), [np.asarray(w) for w in each.get_weights()])
        for each in ([source] if kind in LAYERS else source.layers)
    ]
    return KerasModel(layers, _live_version(source), kind == "Sequential" or kind in LAYERS)


def _live_version(source: Any) -> int:
    import sys

    for part in type(source).__mro__:
        version = getattr(sys.modules.get(part.__module__.split(".")[0]), "__version__", None)
        if part.__module__.split(".")[0] in ("keras", "tf_keras") and isinstance(version, str):
            return int(version.split(".")[0])
    return 3


def to_keras(content: LayerFile) -> list[list[Array]]:
    """Return the arrays of each layer of Keras: kernel, recurrent_kernel and bias, twice where it is Bidirectional.

    Raises
    ------
    ValueError
        A switch that the arrays of Keras do not hold, by name; a reversed layer.
    """
    storage = content.precision.storage
    parameters = read_parameters(content.parameters, storage)
    made = []
    for layers in split_layers(content._replace(parameters=parameters)):
        for layer in layers:
            if layer.kind == "reversed":
                raise ValueError("layers: expected none that is reversed alone, since Keras turns its outputs round")
            for config in layer.configs:
                _check_carried(config)
            if layer.configs:
                made.append([array for part in layer.parameters for array in _keras_arrays(part)])
    return made


def _check_carried(config: LSTMConfig) -> None:
    for item in fields(LSTMConfig):
        value = getattr(config, item.name)
        if item.init and item.name not in _CARRIED and value != item.default:
            raise ValueError(f"{item.name}: expected {item.default}, which the weights of Keras hold; got {value}")


def _keras_arrays(part: Mapping[str, Any]) -> list[Array]:
    matrices = [np.ascontiguousarray(part[name].T) for name in ("weight_x", "weight_h")]
    return [*matrices, np.array(part["bias"])] if "bias" in part else matrices
