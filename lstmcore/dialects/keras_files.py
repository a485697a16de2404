"""Files of Keras: .keras, .weights.h5, and the .h5 of Keras 1 and 2; h5py reads and writes them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmcore.dialects.keras import LAYERS, KerasLayer, KerasModel, live_model, read_keras, to_keras
from lstmcore.dialects.layers import split_layers
from lstmcore.extras import installing
from lstmcore.files import check_regular, tell_damage, write_atomically
from lstmcore.layer_file import LayerFile
from lstmcore.notices import notify

Array: TypeAlias = npt.NDArray[Any]

#: Groups of the arrays of a layer in Keras 3's files.
_PARTS: Final = {"LSTM": ("cell",), "Bidirectional": ("forward_layer/cell", "backward_layer/cell")}

#: A file of a .keras archive unpacks to at most so many times its size there; weights hardly get smaller.
_UNPACKED: Final = 200


def read_keras_source(source: Any, layer: str | None = None) -> LayerFile:
    """Return the LSTM of a file, a live layer or a live model; see `Interchange.from_keras`."""
    if not isinstance(source, str | Path):
        return read_keras(live_model(source), layer)
    try:
        return read_keras(open_keras(Path(source)), layer)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{source}: {str(error).removeprefix(f'{source}: ')}") from error


def open_keras(path: Path) -> KerasModel:
    """Return the layers in a file.

    Raises
    ------
    ValueError
        A file of another kind, or a damaged one.
    OSError, ImportError
        The file cannot be read; h5py is not installed.
    """
    check_regular(path)
    h5py = _h5py(path)
    with tell_damage(path, "a file of Keras"):
        if zipfile.is_zipfile(path):
            return _read_archive(path, h5py)
        with h5py.File(path, "r") as file:
            _check_contents(file, h5py)
            return _read_legacy(file) if "layer_names" in _weights(file).attrs else _read_weights(file)


def _check_contents(file: Any, h5py: Any) -> None:
    """Raise ValueError if a file of HDF5 leads to other files, or has arrays that unpack to far more than its bytes."""
    groups, known = [("", file)], set[int]()
    while groups:
        place, group = groups.pop()
        for key in group:
            name = f"{place}/{key}"
            if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
                raise ValueError(f"{name}: expected data in the file itself; got a link to another file")
            found = group.get(key)
            if isinstance(found, h5py.Group):
                address = h5py.h5o.get_info(found.id).addr  # a group may hold itself
                if address not in known:
                    known.add(address)
                    groups.append((name, found))
            elif isinstance(found, h5py.Dataset):
                if found.external or found.is_virtual:
                    raise ValueError(f"{name}: expected numbers in the file itself; got those of another file")
                if found.nbytes > _UNPACKED * (found.id.get_storage_size() + 1024):
                    raise ValueError(
                        f"{name}: expected at most {_UNPACKED} times its size in the file; got {found.nbytes:,} bytes"
                    )


def _h5py(path: str | Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: needs h5py: {installing('keras')}") from None
    return h5py


def _read_archive(path: Path, h5py: Any) -> KerasModel:
    """Read a .keras file."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(_member(archive, "config.json"))
        version = json.loads(_member(archive, "metadata.json"))["keras_version"]
        stream = io.BytesIO(_member(archive, "model.weights.h5"))
    with h5py.File(stream, "r") as file:
        _check_contents(file, h5py)
        layers = list(_layers(file, "", config["config"]["layers"]))
    return KerasModel(layers, int(version.split(".")[0]), config["class_name"] == "Sequential")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of the archive, unless it unpacks to far more than any network: it may be made to fill memory."""
    info = archive.getinfo(name)
    if info.file_size > _UNPACKED * (info.compress_size + 1024):
        raise ValueError(
            f"{name}: expected at most {_UNPACKED} times its size in the file; got {info.file_size:,} bytes"
        )
    return archive.read(name)


def _layers(group: Any, prefix: str, configs: Any) -> Iterator[KerasLayer]:
    """Yield the layers of a model, and those of the models in it, with their arrays.

    The groups of the file have the names of classes, with a number from the second on.
    """
    counts: Counter[str] = Counter()
    for config in configs:
        kind, inner = config["class_name"], config["config"]
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", re.sub(r"\W+", "", kind)).lower()
        own = f"layers/{snake}" + f"_{counts[snake]}" * bool(counts[snake])
        counts[snake] += 1
        if isinstance(inner, dict) and isinstance(inner.get("layers"), list):
            yield from _layers(group[own], f"{prefix}{inner['name']}/", inner["layers"])
        else:
            arrays = _arrays(group[own], kind) if kind in LAYERS else ()
            yield KerasLayer(prefix + inner.get("name", kind), kind, inner, arrays)


def _arrays(group: Any, kind: str) -> list[Array]:
    return [
        np.asarray(group[part]["vars"][key]) for part in _PARTS[kind] for key in sorted(group[part]["vars"], key=int)
    ]


def _read_weights(file: Any) -> KerasModel:
    """Read a .weights.h5 file, which has no configuration."""
    names = sorted(
        file["layers"], key=lambda name: (re.sub(r"_\d+$", "", name), *map(int, re.findall(r"_(\d+)$", name)))
    )
    kinds = {"lstm": "LSTM", "bidirectional": "Bidirectional"}
    layers = [KerasLayer(name, kinds.get(re.sub(r"_\d+$", "", name), "other"), None) for name in names]
    found = [
        each._replace(arrays=_arrays(file["layers"][each.name], each.kind)) for each in layers if each.kind in LAYERS
    ]
    if found:
        merged = "merge_mode=concat, " * any(each.kind == "Bidirectional" for each in found)
        notify(f"a file of weights has no configuration: {merged}tanh and sigmoid are taken")
    return KerasModel(found, 3, len({each.kind for each in found}) == 1)


def _weights(file: Any) -> Any:
    return file.get("model_weights", file)


def _read_legacy(file: Any) -> KerasModel:
    """Read an .h5 file as Keras 1 and 2 wrote it, and Keras 3 does for that name."""
    weights, configs, sequential = _weights(file), dict[str, Mapping[str, Any]](), False
    if "model_config" in file.attrs:
        config = json.loads(_text(file.attrs["model_config"]))
        sequential = config["class_name"] == "Sequential"
        inner = config["config"]
        for each in inner if isinstance(inner, list) else inner["layers"]:
            configs[each["config"]["name"]] = each
    version = int(_text(weights.attrs.get("keras_version", file.attrs.get("keras_version", "1"))).split(".")[0])
    layers = []
    for name in map(_text, weights.attrs["layer_names"]):
        group = weights[name]
        words = [_text(word) for word in group.attrs["weight_names"]]
        arrays = [np.asarray(group[word]) for word in words]
        kind = configs[name]["class_name"] if name in configs else _kind(words, len(arrays))
        layers.append(KerasLayer(name, kind, configs[name]["config"] if name in configs else None, arrays))
    if not configs and any(each.kind in LAYERS for each in layers):
        notify("a file of weights has no configuration: tanh and sigmoid are taken")
    return KerasModel(layers, version, sequential or not configs)


def _kind(words: list[str], count: int) -> str:
    """Return the class of a layer whose configuration is unknown, by the names of its arrays."""
    if not any(re.search(r"recurrent_kernel|_U_i", word) for word in words) or not any(
        "lstm" in w.lower() for w in words
    ):
        return "Dropout" if count == 0 else "other"
    return "Bidirectional" if any("backward" in word for word in words) else "LSTM"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
