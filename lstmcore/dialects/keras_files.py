"""Files of Keras: .keras, .weights.h5, and the .h5 of Keras 1 and 2; h5py reads and writes them."""

from __future__ import annotations

import io
import json
import os
import re
import reprlib
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy.typing as npt

from lstmcore.dialects.hdf5_file import Hdf5File, open_hdf5
from lstmcore.dialects.keras import LAYERS, KerasLayer, KerasModel, live_model, read_keras, to_keras
from lstmcore.dialects.layers import split_layers
from lstmcore.extras import installing
from lstmcore.files import check_regular, tell_damage, write_atomically
from lstmcore.layer_file import LayerFile
from lstmcore.notices import notify
from lstmcore.unpacking import RATIO, ZIP_FAULTS, UnpackBudget, zip_faults_told

Array: TypeAlias = npt.NDArray[Any]
V = TypeVar("V")

#: Groups of the arrays of a layer in Keras 3's files.
_PARTS: Final = {"LSTM": ("cell",), "Bidirectional": ("forward_layer/cell", "backward_layer/cell")}

#: Arrays of a layer of Keras 1 in both directions, the most of any.
_MOST_ARRAYS: Final = 24
#: Models in models, each in the next.
_MOST_LEVELS: Final = 64
#: Characters of the name of a layer, with those of the models around it.
_MOST_NAME: Final = 1024
#: Bytes of a text of an archive.
_MOST_TEXT: Final = 64 << 20
#: Bytes of memory that a byte of JSON takes at most: a list in a list has two characters and about 100 bytes.
_JSON_BYTES: Final = 50
#: Kind of a value of JSON -> its name in messages.
_KINDS: Final[Mapping[type, str]] = {str: "a text", dict: "an object", list: "a list"}


def read_keras_source(source: Any, layer: str | None = None) -> LayerFile:
    """Return the LSTM of a file, a live layer or a live model; see `Interchange.from_keras`."""
    if not isinstance(source, str | Path):
        return read_keras(live_model(source), layer)
    model = open_keras(Path(source))
    try:
        return read_keras(model, layer)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{source}: {error}") from error


def open_keras(path: Path) -> KerasModel:
    """Return the layers in a file.

    Raises
    ------
    ValueError
        A file of another kind, or a damaged one; the environment asks for a limit that is no number.
    OSError, ImportError
        The file cannot be read; h5py is not installed.
    """
    check_regular(path)
    _h5py(path)
    budget = UnpackBudget(os.stat(path).st_size)
    with tell_damage(path, "a file of Keras", ZIP_FAULTS):
        if zipfile.is_zipfile(path):
            return _read_archive(path, budget)
        with open_hdf5(path) as opened, path.open("rb") as raw:
            file = Hdf5File(opened, raw, budget)
            weights = file.group(opened, "model_weights") if "model_weights" in file.names(opened) else opened
            return _read_legacy(file, weights) if file.has_texts(weights, "layer_names") else _read_weights(file)


def _h5py(path: str | Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: needs h5py: {installing('keras')}") from None
    return h5py


def _read_archive(path: Path, budget: UnpackBudget) -> KerasModel:
    """Read a .keras file."""
    with zip_faults_told():
        archive = zipfile.ZipFile(path)
    with archive:
        config = _parsed(_small_member(archive, "config.json", budget))
        version = _field(_parsed(_small_member(archive, "metadata.json", budget)), "keras_version", str)
        info = _entry(archive, "model.weights.h5")
        inner = budget.open(info.filename, info.file_size, info.compress_size)
        with zip_faults_told():
            stream = io.BytesIO(archive.read(info))
    with open_hdf5(stream) as opened:
        file = Hdf5File(opened, stream, inner)
        layers = list(_layers(file, opened, "", _field(_field(config, "config", dict), "layers", list)))
    return KerasModel(layers, _major(version), _field(config, "class_name", str) == "Sequential")


def _major(version: str) -> int:
    first = version.split(".")[0]
    if not first.isdecimal() or len(first) > 9:
        raise ValueError(f"keras_version: expected a version such as 3.1.0; got {reprlib.repr(version)}")
    return int(first)


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(name)
    except KeyError:
        raise ValueError(f"expected the file {name} in the archive; got none") from None


def _small_member(archive: zipfile.ZipFile, name: str, budget: UnpackBudget) -> bytes:
    """Return a text of the archive; one that unpacks to far more than its bytes is no description of a model."""
    info = _entry(archive, name)
    if info.file_size > RATIO * (info.compress_size + 1024):
        raise ValueError(
            f"{name}: expected at most {RATIO} times its size in the file; got {info.file_size:,} bytes: if you trust "
            "the file, pack the archive again without compression"
        )
    if info.file_size > _MOST_TEXT:
        raise ValueError(f"{name}: expected at most {_MOST_TEXT:,} bytes; got {info.file_size:,}")
    budget.take(name, _JSON_BYTES * info.file_size, info.compress_size, "values of JSON")
    with zip_faults_told():
        return archive.read(info)


def _parsed(text: str | bytes) -> Any:
    """Return the value of a text of JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"expected JSON of some levels; got more: {error}") from error


def _field(holder: Any, key: str, kind: type[V]) -> V:
    """Return a value of JSON, which may be anything."""
    found = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(found, kind):
        raise ValueError(f"expected {_KINDS[kind]} {key!r} in the configuration; got {reprlib.repr(found)}")
    return found


def _layers(file: Hdf5File, parent: Any, prefix: str, configs: Any, levels: int = 0) -> Iterator[KerasLayer]:
    """Yield the layers of a model, and those of the models in it, with their arrays.

    The groups of the file have the names of classes, with a number from the second on.
    """
    counts: Counter[str] = Counter()
    if levels > _MOST_LEVELS:
        raise ValueError(f"layers: expected models in models, at most {_MOST_LEVELS} levels deep; got more")
    for config in configs:
        kind, inner = _field(config, "class_name", str), _field(config, "config", dict)
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", re.sub(r"\W+", "", kind)).lower()
        own = f"layers/{snake}" + f"_{counts[snake]}" * bool(counts[snake])
        counts[snake] += 1
        if isinstance(inner.get("layers"), list):
            name = _layer_name(prefix, _field(inner, "name", str))
            yield from _layers(file, file.group(parent, own), f"{name}/", inner["layers"], levels + 1)
        else:
            arrays = _arrays(file, file.group(parent, own), kind) if kind in LAYERS else ()
            name = _layer_name(prefix, _field({"name": kind} | inner, "name", str))
            yield KerasLayer(name, kind, inner, arrays)


def _layer_name(prefix: str, own: str) -> str:
    """Return the name of a layer in models; each layer of a model has the name of the model again."""
    if len(prefix) + len(own) > _MOST_NAME:
        raise ValueError(
            f"name: expected at most {_MOST_NAME:,} characters, with the models around the layer; got "
            f"{len(prefix) + len(own):,}: {reprlib.repr(prefix + own)}"
        )
    return prefix + own


def _arrays(file: Hdf5File, layer: Any, kind: str) -> list[Array]:
    """Return the arrays of an LSTM or of both of its directions."""
    found = []
    for part in _PARTS[kind]:
        group = file.group(layer, f"{part}/vars")
        keys = sorted(_checked_names(group.name, file.names(group)), key=int)
        found += [file.array(group, key) for key in keys]
    return found


def _checked_names(name: str, names: list[str]) -> list[str]:
    """Return the names of a layer's arrays; a file may give one array any number of names."""
    if len(names) > _MOST_ARRAYS:
        raise ValueError(f"{name}: expected the arrays of an LSTM, at most {_MOST_ARRAYS}; got {len(names)}")
    return names


def _read_weights(file: Hdf5File) -> KerasModel:
    """Read a .weights.h5 file, which has no configuration."""
    group = file.group(file.root, "layers")
    names = sorted(
        file.names(group), key=lambda name: (re.sub(r"_\d+$", "", name), *map(int, re.findall(r"_(\d+)$", name)))
    )
    kinds = {"lstm": "LSTM", "bidirectional": "Bidirectional"}
    layers = [KerasLayer(name, kinds.get(re.sub(r"_\d+$", "", name), "other"), None) for name in names]
    found = [
        each._replace(arrays=_arrays(file, file.group(group, each.name), each.kind))
        for each in layers
        if each.kind in LAYERS
    ]
    if found:
        merged = "merge_mode=concat, " * any(each.kind == "Bidirectional" for each in found)
        notify(f"a file of weights has no configuration: {merged}tanh and sigmoid are taken")
    return KerasModel(found, 3, len({each.kind for each in found}) == 1)


def _read_legacy(file: Hdf5File, weights: Any) -> KerasModel:
    """Read an .h5 file as Keras 1 and 2 wrote it, and Keras 3 does for that name; arrays of other layers stay there."""
    configs, sequential = _legacy_configs(file)
    version = file.text(weights, "keras_version") or file.text(file.root, "keras_version") or "1"
    names, layers = file.texts(weights, "layer_names"), []
    if len(set(names)) < len(names):
        raise ValueError("layer_names: expected names that differ; got one twice")
    for name in names:
        config = configs.get(name)
        kind = "" if config is None else _field(config, "class_name", str)
        arrays: list[Array] = []
        if not kind or kind in LAYERS:
            group = file.group(weights, name)
            words = file.texts(group, "weight_names")
            kind = kind or _kind(words)
            if kind in LAYERS:
                arrays = [file.array(group, word) for word in _checked_names(name, words)]
        layers.append(KerasLayer(name, kind, None if config is None else _field(config, "config", dict), arrays))
    if not configs and any(each.kind in LAYERS for each in layers):
        notify("a file of weights has no configuration: tanh and sigmoid are taken")
    return KerasModel(layers, _major(version), sequential or not configs)


def _legacy_configs(file: Hdf5File) -> tuple[dict[str, Mapping[str, Any]], bool]:
    """Return the configuration of each layer by its name, and whether each layer reads the one before."""
    text = file.text(file.root, "model_config")
    if text is None:
        return {}, False
    config = _parsed(text)
    inner = config.get("config") if isinstance(config, dict) else None
    configs = inner if isinstance(inner, list) else _field(inner, "layers", list)
    by_name: dict[str, Mapping[str, Any]] = {
        _field(_field(each, "config", dict), "name", str): each for each in configs
    }
    return by_name, _field(config, "class_name", str) == "Sequential"


def _kind(words: list[str]) -> str:
    """Return the class of a layer whose configuration is unknown, by the names of its arrays."""
    if not any(re.search(r"recurrent_kernel|_U_i", word) for word in words) or not any(
        "lstm" in w.lower() for w in words
    ):
        return "Dropout" if not words else "other"
    return "Bidirectional" if any("backward" in word for word in words) else "LSTM"


def write_weights(path: str | Path, content: LayerFile) -> None:
    """Write a .weights.h5 file for a Sequential of these layers, each LSTM or Bidirectional.

    Raises
    ------
    ValueError
        A switch that the weights of Keras do not hold; a merge, which they do not hold either.
    ImportError
        h5py is not installed.
    """
    h5py, stream, counts = _h5py(path), io.BytesIO(), Counter[str]()
    each = to_keras(content)
    if modes := [one.mode for one in chain.from_iterable(split_layers(content)) if one.mode not in (None, "concat")]:
        raise ValueError(f"layers: expected no merge, which a file of weights does not hold; got {modes[0]}")
    if not path_is_weights(path):
        raise ValueError(
            f"{path}: expected a name that ends with .weights.h5, as Keras asks for; got {Path(path).name!r}"
        )
    with h5py.File(stream, "w") as file:
        for arrays in each:
            kind = "Bidirectional" if len(arrays) > 3 else "LSTM"
            name = kind.lower() + f"_{counts[kind]}" * bool(counts[kind])
            counts[kind] += 1
            half = len(arrays) // len(_PARTS[kind])
            for place, part in enumerate(_PARTS[kind]):
                group = file.create_group(f"layers/{name}/{part}/vars")
                for number, array in enumerate(arrays[half * place : half * (place + 1)]):
                    group[str(number)] = array
    write_atomically(path, stream.getvalue())


def path_is_weights(path: str | Path) -> bool:
    """Return whether Keras takes a file of that name for one of weights."""
    return str(path).endswith(".weights.h5")
