"""The formats of ``lstmcore convert``: how each is told, read, listed and written."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from safetensors import SafetensorError, safe_open

from lstmcore.config import StackConfig
from lstmcore.dialects import keras, keras_files, onnx_reader, onnx_writer, openvino, tflite_reader, torch
from lstmcore.dialects.layers import checked_file
from lstmcore.files import check_regular, tell_damage
from lstmcore.layer_file import CHAIN_FORMAT, LSTM_FORMAT, LayerFile, LayerSpec, read_layers, write_layers
from lstmcore.notices import notify
from lstmcore.tensor_file import file_format
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_file import MODEL_FORMAT
from lstmcore.unpacking import ZIP_FAULTS, zip_faults_told


class Entry(NamedTuple):
    """An LSTM in a file: its name there, and its layers, or why they cannot be read."""

    name: str
    content: LayerFile | None
    problem: str = ""


class Format(NamedTuple):
    """A format; `select` is the option that says which LSTM of a file, and `read` and `write` take its value.

    `suffixes` are those of files that are written: none for a format that is only read.
    """

    name: str
    suffixes: tuple[str, ...]
    select: str
    read: Callable[[Path, str | None], LayerFile]
    names: Callable[[Path], list[str]]
    write: Callable[[Path, LayerFile, str | None], None]


def _read_own(path: Path, which: str | None) -> LayerFile:
    kind = file_format(path)
    if kind != MODEL_FORMAT:
        return read_layers(path, CHAIN_FORMAT if kind == CHAIN_FORMAT else LSTM_FORMAT, None)
    notify(f"{path}: the LSTM of this model is taken alone, without its readout; --to onnx takes the whole model")
    return SequenceModel.load(path).lstm.content


def only_prefix(path: Path) -> str:
    """Return the prefix of the only LSTM in a file of PyTorch; raise ValueError for a file with several."""
    found = torch.prefixes(path)
    if len(found) > 1:
        raise ValueError(f"{path}: expected --prefix with one of {', '.join(map(repr, found))}; got none")
    return found[0] if found else ""


def _read_torch(path: Path, which: str | None) -> LayerFile:
    found = torch.read_torch(path, only_prefix(path) if which is None else which)
    try:
        return checked_file(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _no_writer(path: Path, content: LayerFile, which: str | None) -> None:
    """Refuse a format that is only read; the command line does not get here."""
    raise ValueError(f"{path}: expected a format of {', '.join(WRITTEN)}; got one that is only read")


FORMATS: Final = (
    Format(
        "lstmcore",
        (".safetensors",),
        "",
        _read_own,
        lambda path: [""],
        lambda path, content, which: write_layers(path, content),
    ),
    Format(
        "torch",
        (".pt", ".pth", ".safetensors"),
        "prefix",
        _read_torch,
        torch.prefixes,
        lambda path, content, which: torch.write_torch(path, content, which or ""),
    ),
    Format(
        "onnx",
        (".onnx",),
        "node",
        onnx_reader.read_onnx,
        lambda path: [found.label for found in onnx_reader.open_model(path)],
        lambda path, content, which: onnx_writer.write_layers_to_onnx(path, content),
    ),
    Format(
        "keras",
        (".weights.h5",),
        "node",
        keras_files.read_keras_source,
        lambda path: [layer.name for layer in keras_files.open_keras(path).layers if layer.kind in keras.LAYERS],
        lambda path, content, which: keras_files.write_weights(path, content),
    ),
    Format(
        "tflite",
        (),
        "node",
        tflite_reader.read_tflite,
        lambda path: [found.label for found in tflite_reader.open_nodes(path)],
        _no_writer,
    ),
    Format(
        "openvino",
        (),
        "node",
        openvino.read_openvino,
        lambda path: [found.name for found in openvino.open_openvino(path)],
        _no_writer,
    ),
)
NAMES: Final = tuple(entry.name for entry in FORMATS)
#: Names of the formats that are written too.
WRITTEN: Final = tuple(entry.name for entry in FORMATS if entry.suffixes)


def by_name(name: str) -> Format:
    """Return the format of a name of `NAMES`."""
    return next(entry for entry in FORMATS if entry.name == name)


def format_of_source(path: Path) -> Format:
    """Return the format of a file that is there, by what it holds.

    Raises
    ------
    ValueError
        A folder, a pipe or a device; a file of no format.
    OSError
        The file cannot be read.
    """
    check_regular(path)
    with path.open("rb") as stream:
        start = stream.read(9)
    if start[4:8] == b"TFL3":
        return by_name("tflite")
    if start[:5] == b"<?xml" or start[:4] == b"<net":
        return by_name("openvino")
    if start[:4] == b"\x89HDF" or (start[:2] == b"PK" and "config.json" in _members(path)):
        return by_name("keras")
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return by_name("torch")
    if start[8:9] == b"{":
        try:
            with safe_open(path, framework="numpy") as file:
                return by_name("lstmcore" if "lstmcore" in (file.metadata() or {}) else "torch")
        except SafetensorError as error:
            raise ValueError(f"{path}: expected a whole safetensors file; got {str(error).splitlines()[0]}") from None
    if path.suffix == ".onnx":
        return by_name("onnx")
    raise ValueError(f"{path}: expected a file of {', '.join(NAMES)}; got another kind, or a damaged one: see --from")


def _members(path: Path) -> list[str]:
    with tell_damage(path, "a whole zip file", ZIP_FAULTS), zip_faults_told(), zipfile.ZipFile(path) as archive:
        return archive.namelist()


def format_of_target(path: Path) -> Format:
    """Return the format of a file to write, by its name; raise ValueError for a name of none."""
    for entry in FORMATS:
        if path.name.endswith(entry.suffixes):
            return entry
    suffixes = dict.fromkeys(suffix for entry in FORMATS for suffix in entry.suffixes)
    raise ValueError(f"{path}: expected a name that ends with {', '.join(suffixes)}, or --to; got {path.name!r}")


def entries(path: Path, kind: Format) -> Iterator[Entry]:
    """Yield the LSTMs in a file."""
    for name in kind.names(path):
        try:
            yield Entry(name, kind.read(path, name or None if kind.select != "prefix" else name))
        except (TypeError, ValueError) as error:
            yield Entry(name, None, str(error).removeprefix(f"{path}: "))


def describe(content: LayerFile) -> str:
    """Return one line on the layers."""
    layers = [LayerSpec("lstm", content.layers, None)] if isinstance(content.layers, StackConfig) else content.layers
    words = [
        f"merge by {layer.mode}"
        if layer.stack is None
        else "reversed " * (layer.kind == "reversed") + _describe_stack(layer.stack)
        for layer in layers
    ]
    return f"{'; '.join(words)}; {content.precision.label}"


def _describe_stack(stack: StackConfig) -> str:
    config = stack.layers[0][0]
    words = [f"LSTM {config.input_size} to {config.hidden_size}"]
    if stack.num_layers > 1:
        words.append(f"{stack.num_layers} layers")
    if stack.num_directions == 2:
        words.append("both directions")
    switches = {name for each in stack.configs for name in each.features - {"reverse"}}
    return ", ".join((*words, *sorted(switches)))
