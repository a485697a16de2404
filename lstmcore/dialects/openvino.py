"""OpenVINO's operators LSTMSequence and LSTMCell: arrays in our terms and back, and the files (.xml, .bin) of a model.

Gates are stacked in the order f, i, c (our g), o. There is one bias, which is the sum of ONNX's two. The rest is ONNX's
operator, whose translation does the work. It has no peepholes and no coupled gates:
OpenVINO drops those of an ONNX model.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.dialects import onnx
from lstmcore.dialects.layers import PlacedLayer, join_layers, split_layers
from lstmcore.files import check_regular
from lstmcore.layer_file import LayerFile
from lstmcore.notices import notify
from lstmcore.precision import get_precision
from lstmcore.stored_weights import SAME, StoredMatrix, is_matrix, read_parameters
from lstmcore.validation import check_mapping

Array: TypeAlias = npt.NDArray[Any]

#: Type of a layer -> the numbers of its inputs W, R and B, and its names of attributes.
_KINDS: Final = {"LSTMSequence": (4, 5, 6), "LSTMCell": (3, 4, 5)}
#: OpenVINO's gates, and those of ONNX, in our letters.
_GATES: Final = "figo"
_ONNX_GATES: Final = "iofg"
_FUNCTIONS: Final = ("sigmoid", "tanh", "relu")
_DTYPES: Final = {"f32": "float32", "f16": "float16", "f64": "float64"}
_INTEGERS: Final = {"i32": "int32", "i64": "int64"}
#: Attributes that are read, and others with the values that change nothing.
_ATTRIBUTES: Final = ("direction", "hidden_size", "activations", "clip", "activations_alpha", "activations_beta")
_DEFAULTS: Final = {"input_forget": ("false", "0"), "weights_format": ("fico",)}
#: Bytes of the description of a model; the numbers are in another file.
_MOST_BYTES: Final = 2**26


class IRNode(NamedTuple):
    """An LSTM in a file: its name, its attributes and its arrays, what is told of it, or why it cannot be read."""

    name: str
    attributes: Mapping[str, str]
    arrays: Mapping[str, Array]
    problem: str = ""
    told: tuple[str, ...] = ()


def from_arrays(arrays: Mapping[str, Any], attributes: Mapping[str, str] | None = None) -> LayerFile:
    """Return one layer of OpenVINO in our terms.

    Parameters
    ----------
    arrays
        ``W`` (D, 4 H, I), ``R`` (D, 4 H, H) and ``B`` (D, 4 H); those of LSTMCell lack the first axis.
    attributes
        Those of the layer, as its XML has them: ``direction``, ``activations``, ``clip``. None takes the defaults. One
        that is not known, or that has a value that we have not, is refused.

    Raises
    ------
    TypeError, ValueError
        Other names, shapes, dtypes, an activation beside sigmoid, tanh and relu, numbers that are not finite.

    Examples
    --------
    >>> content = from_arrays({"W": np.zeros((1, 20, 3)), "R": np.zeros((1, 20, 5)), "B": np.zeros((1, 20))})
    >>> content.layers.hidden_size, content.batch_first
    (5, True)
    """
    check_mapping("arrays", arrays)
    if set(arrays) != {"W", "R", "B"}:
        raise ValueError(f"arrays: expected W, R, B; got {', '.join(sorted(map(str, arrays))) or 'none'}")
    given = _to_onnx({} if attributes is None else attributes)
    full = {name: np.asarray(array) for name, array in arrays.items()}
    if full["W"].ndim == 2:
        full = {name: array[None] for name, array in full.items()}
    half = {str(array.dtype) for array in full.values()} == {"float16"}
    full = {name: array.astype(np.float32) if half else array for name, array in full.items()}
    for name, array in full.items():
        if array.ndim < 2 or array.shape[1] % 4 or not array.size:
            raise ValueError(f"{name}: expected 4 H rows in each direction; got shape {np.shape(arrays[name])}")
    W, R, B = (_reordered(full[name], _GATES, _ONNX_GATES) for name in "WRB")
    found = onnx.directions(given, W, R, np.concatenate([B, np.zeros_like(B)], axis=1))
    configs, parameters = zip(*found, strict=True)
    if half:
        parameters = tuple(map(_in_float16, parameters))
    reverse = len(configs) == 1 and configs[0].reverse
    if reverse:
        configs = (replace(configs[0], reverse=False),)
    layer = PlacedLayer("reversed" if reverse else "lstm", configs, parameters)
    precision = get_precision(str(W.dtype)).with_weights("float16" if half else SAME)
    return join_layers([layer], precision, batch_first=True)


def to_arrays(content: LayerFile) -> tuple[dict[str, str], dict[str, Array]]:
    """Return the attributes and the arrays W, R and B of an LSTMSequence: the inverse of `from_arrays`.

    Raises
    ------
    ValueError
        More than one layer, or a switch that OpenVINO does not have, by name.

    Examples
    --------
    >>> from lstmcore import LSTM
    >>> attributes, arrays = to_arrays(LSTM(3, 5, bidirectional=True, seed=0).content)
    >>> attributes["direction"], arrays["W"].shape
    ('bidirectional', (2, 20, 3))
    """
    values = read_parameters(content.parameters, content.precision.storage)
    groups = list(split_layers(content._replace(parameters=values)))
    if len(groups) != 1 or len(groups[0]) != 1 or groups[0][0].kind == "merge":
        raise ValueError("layers: expected one layer, as an LSTMSequence is; got more")
    (layer,) = groups[0]
    reverse = layer.kind == "reversed"
    configs = [replace(each, recurrent_dropout=0.0, reverse=each.reverse or reverse) for each in layer.configs]
    for name in ("bias", "peephole", "coupling"):
        if any(
            getattr(each, name) != (wanted := {"bias": True, "peephole": False}.get(name, "none")) for each in configs
        ):
            raise ValueError(f"{name}: expected {wanted}, as OpenVINO has it; got {getattr(configs[0], name)}")
    given = onnx.attributes(*configs)
    functions = [name.lower() for name in given["activations"]]
    if functions[:3] * len(configs) != functions or not {*functions} <= {*_FUNCTIONS}:
        raise ValueError(f"activations: expected {', '.join(_FUNCTIONS)}, the same in both directions; got {functions}")
    each = onnx.tensors(*zip(configs, layer.parameters, strict=True))
    each["B"] = each["B"][:, : each["B"].shape[1] // 2]
    attributes = {"direction": given["direction"], "hidden_size": str(given["hidden_size"])}
    attributes |= {"activations": ", ".join(functions[:3]), "clip": repr(given.get("clip", 0.0))}
    return attributes, {name: _reordered(each[name], _ONNX_GATES, _GATES) for name in "WRB"}


def _reordered(array: Array, old: str, new: str) -> Array:
    """Return rows by gate (D, 4 H, ...) in another order of gates."""
    rows = dict(zip(old, np.split(array, 4, axis=1), strict=True))
    return np.concatenate([rows[gate] for gate in new], axis=1)


def _in_float16(parameters: Mapping[str, Array]) -> dict[str, Any]:
    return {
        name: StoredMatrix("float16", value.astype(np.float16)) if is_matrix(name) else value
        for name, value in parameters.items()
    }


def _to_onnx(attributes: Mapping[str, str]) -> dict[str, Any]:
    """Return attributes of ONNX's operator."""
    if not isinstance(attributes, Mapping) or not all(isinstance(text, str) for text in chain(*attributes.items())):
        raise TypeError(f"attributes: expected a mapping of names to texts; got {attributes!r:.80}")
    for name, text in attributes.items():
        if name not in _ATTRIBUTES and text.lower() not in _DEFAULTS.get(name, ()):
            wanted = f"expected {_DEFAULTS[name][0]}" if name in _DEFAULTS else "expected no such attribute"
            raise ValueError(f"{name:.40}: {wanted}; got {text!r:.40}")
    direction = attributes.get("direction", "forward").lower()
    functions = [word.strip() for word in attributes.get("activations", "sigmoid,tanh,tanh").lower().split(",")]
    if len(functions) != 3 or not {*functions} <= {*_FUNCTIONS}:
        raise ValueError(f"activations: expected three of {', '.join(_FUNCTIONS)}; got {', '.join(functions)}")
    try:
        clip = float(attributes.get("clip", "0") or "0")
    except ValueError:
        raise ValueError(f"clip: expected a number; got {attributes['clip']!r:.40}") from None
    given: dict[str, Any] = {"direction": direction, "activations": functions * (1 + (direction == "bidirectional"))}
    if clip and not math.isinf(clip):
        given["clip"] = clip
    if "hidden_size" in attributes:
        given["hidden_size"] = int(attributes["hidden_size"]) if _is_number(attributes["hidden_size"]) else -1
    return given


def _is_number(word: str) -> bool:
    """Return whether a text is a number as XML has it: digits of ASCII, and not too many."""
    return word.isascii() and word.isdecimal() and len(word) < 16


# Files ---------------------------------------------------------------------------------------------------------------


def open_openvino(path: str | Path) -> list[IRNode]:
    """Return the LSTMs of a model, whose numbers are in the file with the suffix .bin beside it.

    Raises
    ------
    ValueError
        A file of another kind, or a damaged one.
    OSError
        One of the files cannot be read.
    """
    path = Path(path)
    check_regular(path)
    root = _parse(path)
    layers = {each.get("id", ""): each for each in root.iterfind("layers/layer")}
    edges = {
        (each.get("to-layer"), each.get("to-port")): layers.get(each.get("from-layer", ""))
        for each in root.iterfind("edges/edge")
    }
    nodes = []
    for key, layer in layers.items():
        if (kind := layer.get("type")) in _KINDS:
            data = layer.find("data")
            name, attributes = layer.get("name", key), dict(data.attrib) if data is not None else {}
            try:
                arrays = _arrays(path, layer, edges, kind)
                nodes.append(IRNode(name, attributes, arrays, told=tuple(_told(path, layer, edges, kind))))
            except (TypeError, ValueError) as error:
                nodes.append(IRNode(name, attributes, {}, str(error)))
    return nodes


def _parse(path: Path) -> ElementTree.Element:
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path}: expected at most {_MOST_BYTES:,} bytes in the XML of OpenVINO; got {size:,}")
    try:
        text = path.read_bytes().decode("utf-8")  # another encoding could hide a document type
        if "<!DOCTYPE" in text:
            raise ValueError("a document type, which may define entities")
        root = ElementTree.fromstring(text)  # noqa: S314  (without a document type there are no entities)
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: expected the XML of OpenVINO; got a damaged one, or another kind: {error}") from None
    if root.tag != "net":
        raise ValueError(f"{path}: expected the XML of OpenVINO, <net>; got <{root.tag[:40]}>")
    return root


def _arrays(path: Path, layer: ElementTree.Element, edges: Any, kind: str) -> dict[str, Array]:
    """Return W, R and B of a layer."""
    ports = [port.get("id") for port in layer.iterfind("input/port")]
    if len(ports) != _KINDS[kind][-1] + 1:
        raise ValueError(f"expected {_KINDS[kind][-1] + 1} inputs of {kind}; got {len(ports)}")
    arrays = {}
    for name, number in zip("WRB", _KINDS[kind], strict=True):
        source = _source(layer, ports[number], edges)
        if source is None or source.get("type") != "Const":
            got = "none" if source is None else str(source.get("type"))
            raise ValueError(f"{name}: expected a constant of float32, float16 or float64; got {got:.40}")
        arrays[name] = _constant(path.with_suffix(".bin"), name, source)
    return arrays


def _source(layer: ElementTree.Element, port: str | None, edges: Any) -> ElementTree.Element | None:
    """Return the layer that an input comes from."""
    source: ElementTree.Element | None = edges.get((layer.get("id"), port))
    if source is not None and source.get("type") == "Convert":  # float16 constants are turned into float32
        source = edges.get((source.get("id"), next((p.get("id") for p in source.iterfind("input/port")), None)))
    return source


def _told(path: Path, layer: ElementTree.Element, edges: Any, kind: str) -> Iterator[str]:
    """Yield what a layer has as constants that no LSTM holds: a state that is not 0, lengths other than that of x."""
    ports = list(layer.iterfind("input/port"))
    sources = [_source(layer, port.get("id"), edges) for port in ports[: _KINDS[kind][0]]]
    constants = {
        number: source for number, source in enumerate(sources) if source is not None and source.get("type") == "Const"
    }
    states = {1: "initial_hidden_state", 2: "initial_cell_state"}
    numbers = path.with_suffix(".bin")
    if any(_constant(numbers, name, constants[number]).any() for number, name in states.items() if number in constants):
        yield "starts from a state that is not 0, which no LSTM holds: hand it over as state"
    if 3 in constants:
        lengths = _constant(numbers, "sequence_lengths", constants[3], _INTEGERS)
        sizes = [size.text or "" for size in ports[0].iterfind("dim")]
        if len(sizes) != 3 or not _is_number(sizes[1]) or (lengths != int(sizes[1])).any():
            yield "has constant sequence_lengths other than that of x, which no LSTM holds: hand them over as lengths"


def _constant(path: Path, name: str, layer: ElementTree.Element, dtypes: Mapping[str, str] = _DTYPES) -> Array:
    """Return the numbers of a constant."""
    data = layer.find("data")
    given = {} if data is None else data.attrib
    dtype = dtypes.get(given.get("element_type", ""))
    if dtype is None:
        raise TypeError(f"{name}: expected {_words(dtypes)}; got {given.get('element_type', 'no type'):.40}")
    words = [word.strip() for word in given.get("shape", "").split(",")]
    numbers = [given.get("offset", ""), given.get("size", ""), *words]
    if not all(map(_is_number, numbers)):
        raise ValueError(f"{name}: expected numbers for offset, size and shape; got {', '.join(numbers):.80}")
    offset, size, *shape = map(int, numbers)
    check_regular(path)
    if size != math.prod(shape) * np.dtype(dtype).itemsize or offset + size > path.stat().st_size:
        raise ValueError(
            f"{name}: expected {dtype} {tuple(shape)} within {path.name} of {path.stat().st_size} bytes; "
            f"got {size} bytes at {offset}"
        )
    with path.open("rb") as stream:
        stream.seek(offset)
        return np.frombuffer(stream.read(size), np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)


def _words(names: Mapping[str, str]) -> str:
    return " or ".join(", ".join(names).rsplit(", ", 1))


def read_openvino(path: str | Path, node: str | None = None) -> LayerFile:
    """Return an LSTM of a model in our terms.

    Parameters
    ----------
    path
        The file .xml; the numbers are in .bin beside it.
    node
        The name of a layer; None takes the only one.

    Raises
    ------
    TypeError, ValueError
        No such layer, several without a name, weights that are no constants, and what `from_arrays` refuses.
    OSError
        One of the files cannot be read.

    Examples
    --------
    ``openvino.save_model`` writes such files. This is a cell with its three constants, written by hand:

    >>> constant = '<layer id="{}" type="Const"><data element_type="f32" shape="{}" offset="{}" size="{}"/></layer>'
    >>> given = [(1, "8,1", 0, 32), (2, "8,2", 32, 64), (3, "8", 96, 32)]  # W, R and B of one input and two units
    >>> layers = "".join(constant.format(*each) for each in given)
    >>> ports = "".join(f'<port id="{number}"/>' for number in range(6))
    >>> layers += f'<layer id="0" name="cell" type="LSTMCell"><data hidden_size="2"/><input>{ports}</input></layer>'
    >>> edges = "".join(f'<edge from-layer="{n}" to-layer="0" to-port="{n + 2}"/>' for n in (1, 2, 3))
    >>> _ = Path("cell.xml").write_text(f"<net><layers>{layers}</layers><edges>{edges}</edges></net>")
    >>> _ = Path("cell.bin").write_bytes(np.arange(32, dtype=np.float32).tobytes())
    >>> content = read_openvino("cell.xml", node="cell")
    >>> content.layers.input_size, content.layers.hidden_size
    (1, 2)
    >>> content.parameters["weight_x_l0"].ravel().tolist()  # the order of gates there is f, i, g, o
    [2.0, 3.0, 0.0, 1.0, 4.0, 5.0, 6.0, 7.0]
    """
    try:
        found = chosen_node(path, node)
        if found.problem:
            raise ValueError(f"{found.name}: {found.problem}")
        for text in found.told:
            notify(f"{found.name}: {text}")
        return from_arrays(found.arrays, found.attributes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def chosen_node(path: str | Path, node: str | None) -> IRNode:
    """Return the layer of that name, or the only one; raise ValueError if there is none, or several."""
    nodes = open_openvino(path)
    chosen = [each for each in nodes if node in (None, each.name)]
    if not nodes:
        raise ValueError("expected an LSTMSequence or an LSTMCell; got a model with none")
    if len(chosen) != 1:
        names = ", ".join(sorted(repr(each.name) for each in nodes))
        raise ValueError(f"node: expected one of {names}; got {node!r}")
    return chosen[0]
