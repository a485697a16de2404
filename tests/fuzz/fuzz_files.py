"""Readers of files: models, layers, other libraries' formats, data and text, each damaged."""

from __future__ import annotations

import functools
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from fuzz_source import ODD, Source, refused, refused_by_name, scratch
from safetensors.numpy import save

from lstmcore import LSTM, Chain
from lstmcore.config import LSTMConfig
from lstmcore.datasets import (
    LabelLayout,
    Layout,
    Windows,
    read_archive,
    read_columns,
    read_header,
    read_labelled,
    read_panel,
)
from lstmcore.dialects.openvino import read_openvino, to_arrays
from lstmcore.training import Readout, SequenceModel, Trainer


@functools.cache
def _files() -> dict[str, bytes]:
    """Return a whole file of each kind."""
    lstm = LSTM(2, 3, seed=0, backend="numpy", num_layers=2)
    chain = Chain([LSTM(2, 3, seed=0, backend="numpy"), LSTM(3, 2, seed=1, backend="numpy")])
    model = SequenceModel(LSTM(2, 3, seed=0, backend="numpy"), Readout(3, 2, seed=0))
    savers = {"lstm": lstm.save, "chain": chain.save, "model": model.save}
    contents = {name: _saved_to(save_to, name) for name, save_to in savers.items()}
    path = scratch("checkpoint")
    Trainer(model, loss="cross-entropy", epochs=1, checkpoint=path, quiet=True).fit(*_data())
    contents["checkpoint"] = Path(path).read_bytes()
    contents["torch"] = save(dict(lstm.to_torch()))
    return contents


def _data() -> tuple[list[Any], Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal((3, 2)) for _ in range(6)], np.arange(6) % 2


def loaders(source: Source) -> None:
    """Read a damaged file of a model, of layers, of a checkpoint or of PyTorch's names."""
    kind = source.pick(("lstm", "chain", "model", "checkpoint", "torch"))
    path = Path(scratch("damaged"))
    path.write_bytes(source.changed(_files()[kind]))
    if kind == "checkpoint":
        model = SequenceModel(LSTM(2, 3, seed=0, backend="numpy"), Readout(3, 2, seed=0))
        refused(lambda: Trainer(model, loss="cross-entropy", epochs=1, quiet=True).fit(*_data(), resume=path))
    else:
        reader = {"lstm": LSTM.load, "chain": Chain.load, "model": SequenceModel.load, "torch": LSTM.from_torch}[kind]
        named: dict[str, Any] = {"backend": "numpy"}
        refused_by_name(
            lambda: reader(path, **named), "damaged", (ValueError, TypeError) if kind == "torch" else (ValueError,)
        )


CSV: Final = b"shop,date,y\na,2024-01-01,1.5\na,2024-01-02,\na,2024-01-04,-3e2\nb,2024-01-01,7\nb,2024-01-02,8\n"


def csv(source: Source) -> None:
    """Read a damaged CSV file, fill it and cut it."""
    path = Path(scratch("damaged.csv"))
    path.write_bytes(source.changed(CSV))
    layout = Layout(
        source.pick(("shop", None)), source.pick(("date", None)), bool(source.below(2)), bool(source.below(2))
    )
    for series in refused(lambda: read_panel(path, "y", layout)) or ():
        filled = refused(lambda series=series: series.filled(source.pick(("linear", "previous", "error"))))
        if filled is not None:
            windows = refused(lambda filled=filled: Windows.cut(filled, 1 + source.below(2), 1))
            assert windows is None or np.isfinite(windows.inputs).all()


@functools.cache
def _texts() -> dict[str, bytes]:
    root = Path(__file__).parents[2]
    board = json.loads((root / "docs" / "scoreboard.json").read_bytes())
    board["reports"] = board["reports"][:1]
    run = json.loads((root / "docs" / "benchmarks" / "standard" / "run.json").read_bytes())
    run["results"], run["summary"], run["variants"] = [], [], []
    vectors = {"schema": "lstmcore-vectors", "version": 2, "defaults": {"bias": True}, "cases": []}
    return {name: json.dumps(value).encode() for name, value in (("board", board), ("run", run), ("index", vectors))}


def texts(source: Source) -> None:
    """Read a damaged scoreboard, run, index of vectors or list of expected failures."""
    from lstmcore_conformance.bench.results import Benchmark
    from lstmcore_conformance.scoreboard import load
    from lstmcore_conformance.suite import expected_failures
    from lstmcore_conformance.vectors.reader import draws

    kind = source.pick(("board", "run", "index", "toml"))
    path = Path(scratch("index.json"))
    sample = b'"forward.values" = "too slow"\n[other]\nx = 1\n' if kind == "toml" else _texts()[kind]
    path.write_bytes(source.changed(sample))
    if kind == "board":
        refused(lambda: load([path]))
    elif kind == "run":
        refused(lambda: Benchmark.load(path))
    elif kind == "index":
        refused(lambda: draws(path.parent))
    else:
        refused(lambda: expected_failures.load(path))


def onnx(source: Source) -> None:
    """Read the operator of a damaged ONNX model."""
    import onnx as package
    from google.protobuf.message import DecodeError

    from lstmcore.dialects.onnx import attributes_of, directions
    from lstmcore.dialects.onnx_writer import operator_model

    config = LSTMConfig(input_size=3, hidden_size=5)
    parameters = {name: np.ones(shape, np.float32) for name, shape in config.parameter_shapes.items()}
    sample = operator_model(config, parameters).SerializeToString()
    try:
        model = package.load_from_string(source.changed(sample))
    except DecodeError:
        return
    weights = [source.array(shape) for shape in ((1, 20, 3), (1, 20, 5), (1, 40))]
    if all(isinstance(array, np.ndarray) and array.ndim == 3 - (place == 2) for place, array in enumerate(weights)):
        for node in model.graph.node:
            given = refused(lambda node=node: attributes_of(node))
            if given is not None:
                refused(lambda given=given: directions(given, *weights))


@functools.cache
def _lite(loop: bool) -> bytes:
    from tflite_models import add_fused, add_loop, one_graph

    return one_graph(lambda graph, x: add_loop(graph, x, 3)[0] if loop else add_fused(graph, x, 3, peephole=True))


def tflite(source: Source) -> None:
    """Read a damaged TFLite model."""
    path = Path(scratch("damaged"))
    path.write_bytes(source.changed(_lite(bool(source.below(2)))))
    refused_by_name(lambda: Chain.from_tflite(path, backend="numpy"), "damaged", (ValueError, TypeError))


def _saved_to(save_to: Callable[[str], Any], name: str) -> bytes:
    path = scratch(name)
    save_to(path)
    return Path(path).read_bytes()


@functools.cache
def _layers() -> tuple[LSTM, LSTM, Chain]:
    """Return LSTMs in one direction and in both, and a chain of the two."""
    one, two = (LSTM(2, 3, seed=0, backend="numpy", bidirectional=both) for both in (False, True))
    return one, two, Chain([two, LSTM(6, 2, seed=1, backend="numpy")])


def onnx_files(source: Source) -> None:
    """Read a damaged ONNX file."""
    path = Path(scratch("damaged.onnx"))
    place = source.below(3)
    path.write_bytes(source.changed(_onnx_file(place)))
    reader = Chain.from_onnx if place == 2 else LSTM.from_onnx
    refused_by_name(lambda: reader(path, backend="numpy"), "damaged", (ValueError, TypeError))


@functools.cache
def _onnx_file(place: int) -> bytes:
    return _saved_to(_layers()[place].to_onnx, "whole.onnx")


def keras(source: Source) -> None:
    """Read a damaged file of Keras: .keras, .weights.h5 and the .h5 of Keras 2; or one with another JSON inside."""
    kind = source.pick(("archive", "member", "weights", "legacy"))
    path = Path(scratch("damaged.keras" if kind in ("archive", "member") else "damaged.h5"))
    if kind == "member":
        path.write_bytes(_keras_archive(source.changed(KERAS_CONFIG), source.pick((8, 0, 12, 14))))
    else:
        path.write_bytes(source.changed(_keras_file(kind)))
    refused_by_name(lambda: Chain.from_keras(path, backend="numpy"), "damaged", (ValueError, TypeError, OSError))


KERAS_CONFIG: Final = json.dumps(
    {"class_name": "Sequential", "config": {"layers": [{"class_name": "LSTM", "config": {"name": "a", "units": 3}}]}}
).encode()


def _keras_archive(config: bytes, compression: int) -> bytes:
    """Return a .keras file with a configuration."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", b'{"keras_version": "3.9.0"}')
        archive.writestr("model.weights.h5", _keras_file("weights"))
    return stream.getvalue()


@functools.cache
def _keras_file(kind: str) -> bytes:
    import h5py

    from lstmcore.dialects.keras_files import write_weights

    if kind == "archive":
        return _keras_archive(KERAS_CONFIG, zipfile.ZIP_STORED)
    lstm = _layers()[0]
    if kind == "weights":
        return _saved_to(lambda path: write_weights(path, lstm.content), "whole.weights.h5")
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.attrs["model_config"] = KERAS_CONFIG
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"], weights.attrs["keras_version"] = [b"a"], b"2.2.4"
        group = weights.create_group("a")
        names = [f"a/lstm_cell/{name}" for name in ("kernel:0", "recurrent_kernel:0", "bias:0")]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in zip(names, lstm.to_keras()[0], strict=True):
            group[name] = array
    return stream.getvalue()


_LAYER: Final = '<layer id="{0}" name="{1}" type="{2}"><data {3}/>{4}</layer>'


@functools.cache
def _openvino() -> tuple[bytes, bytes]:
    """Return the XML and the numbers of a model with one LSTMSequence."""
    attributes, arrays = to_arrays(LSTM(2, 3, seed=0, backend="numpy").content)
    values = {"h": np.zeros((1, 1, 3), np.float32), "c": np.zeros((1, 1, 3), np.float32)}
    values |= {"lengths": np.full(1, 4, np.int32), **arrays}
    layers, edges, numbers = [_LAYER.format(0, "x", "Parameter", 'shape="1,4,2" element_type="f32"', "")], [], b""
    for place, (name, array) in enumerate(values.items(), 1):
        shape = ", ".join(map(str, array.shape))
        kind = "i32" if name == "lengths" else "f32"
        given = f'element_type="{kind}" shape="{shape}" offset="{len(numbers)}" size="{array.nbytes}"'
        layers.append(_LAYER.format(place, name, "Const", given, '<output><port id="0"/></output>'))
        edges.append(f'<edge from-layer="{place}" from-port="0" to-layer="9" to-port="{place}"/>')
        numbers += array.tobytes()
    ports = '<port id="0"><dim>1</dim><dim>4</dim><dim>2</dim></port>' + "".join(
        f'<port id="{k}"/>' for k in range(1, 7)
    )
    given = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    layers.append(_LAYER.format(9, "lstm", "LSTMSequence", given, f"<input>{ports}</input>"))
    text = f'<?xml version="1.0"?><net name="m" version="11"><layers>{"".join(layers)}</layers><edges>'
    return f"{text}{''.join(edges)}</edges></net>".encode(), numbers


def openvino(source: Source) -> None:
    """Read a damaged model of OpenVINO."""
    text, numbers = _openvino()
    path = Path(scratch("damaged.xml"))
    path.write_bytes(source.changed(text) if source.below(4) else text)
    path.with_suffix(".bin").write_bytes(numbers if source.below(4) else source.changed(numbers))
    content = refused_by_name(lambda: read_openvino(path), "damaged", (ValueError, TypeError))
    if content is not None:
        refused(lambda: Chain.from_content(content, backend="numpy"))


@functools.cache
def _torch_file() -> bytes:
    from lstmcore.dialects.torch import write_torch

    return _saved_to(lambda path: write_torch(path, _layers()[1].content, "rnn."), "whole.pt")


def torch_files(source: Source) -> None:
    """Read a damaged file of PyTorch."""
    path = Path(scratch("damaged.pt"))
    path.write_bytes(source.changed(_torch_file()))
    refused_by_name(lambda: LSTM.from_torch(path, "rnn.", backend="numpy"), "damaged", (ValueError, TypeError))


WALKS: Final = b"walk;t;x;z;gait\n1;0;0,5;1;slow\n1;1;0,7;2;slow\n2;0;3,5;;fast\n2;1;-3;1e2;fast\n"
_ARRAYS: Final = {
    "X": np.ones((4, 3, 2)),
    "y": np.array(["slow", "fast", "slow", "é"]),
    "lengths": np.array([3, 2, 1, 3]),
}


@functools.cache
def _archive(packed: bool) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **_ARRAYS)
    return stream.getvalue()


def labelled(source: Source) -> None:
    """Read labelled sequences from a damaged CSV file or a damaged archive, and columns by odd names."""
    if source.below(2):
        path = Path(scratch("damaged.npz"))
        if source.below(3):
            path.write_bytes(source.changed(_archive(bool(source.below(2)))))
        else:
            arrays = {
                name: source.often(array, (source.array((4, 3)), np.ones(4)), 3) for name, array in _ARRAYS.items()
            }
            refused(lambda: np.savez(path, **{name: array for name, array in arrays.items() if source.below(8)}))
        refused_by_name(lambda: read_archive(path, part=source.often("", ("train", "x"))), "damaged")
        return
    path = Path(scratch("damaged.csv"))
    path.write_bytes(source.changed(WALKS))
    how = (source.pick((None, ";", "tab", "::")), source.pick((None, ",", ".", "")))
    encoding = source.pick((None, "cp1252", "utf-8", "utf-16", "no"))
    rows = Layout(None, source.pick(("t", None, "-")), bool(source.below(2)), False, *how, encoding)
    layout = LabelLayout(
        "walk", source.pick(("gait", None)), source.pick(((), ("x",))), rows, source.pick(("error", "linear"))
    )
    refused_by_name(lambda: read_labelled(path, layout, needs_label=bool(source.below(2))), "", (ValueError, TypeError))
    header = refused(lambda: read_header(path, rows))
    if header:
        refused(lambda: read_columns(path, source.often(["x", "z"], (list(header), *ODD)), rows))


def reports(source: Source) -> None:
    """Read a damaged report, a packed index of vectors, vectors themselves."""
    from lstmcore_conformance.suite.changes import read_report
    from lstmcore_conformance.vectors.index import COMPACT
    from lstmcore_conformance.vectors.reader import draws, entries

    kind = source.pick(("report", "packed", "vectors"))
    folder = Path(scratch("damaged"))
    folder.with_suffix(".d").mkdir(exist_ok=True)
    folder = folder.with_suffix(".d")
    sample = _vectors()
    path = folder / {"report": "report.json", "packed": COMPACT, "vectors": "float64.safetensors"}[kind]
    for name in ("index.json", COMPACT):
        (folder / name).unlink(missing_ok=True)
    if kind == "report":
        path.write_bytes(source.changed(_report()))
        refused_by_name(lambda: read_report(path), "damaged")
    elif kind == "packed":
        path.write_bytes(source.changed(gzip.compress(sample["index"])) if source.below(2)
                         else gzip.compress(source.changed(sample["index"])))  # fmt: skip
        refused_by_name(lambda: draws(folder), "damaged")
    else:
        (folder / "index.json").write_bytes(sample["index"])
        path.write_bytes(source.changed(sample["arrays"]))
        refused_by_name(lambda: list(entries("float64", folder)), "damaged")


@functools.cache
def _report() -> bytes:
    from lstmcore.registry import get_backend
    from lstmcore_conformance import run

    found = run(get_backend("reference"), select="forward.no_state", precisions=["float64"]).to_dict()
    found |= {name: dict(list(found[name].items())[:2]) for name in ("undeclared", "versions")}
    return json.dumps(found).encode()


@functools.cache
def _vectors() -> Mapping[str, bytes]:
    """Return one case of the golden vectors: its index and its arrays."""
    from safetensors.numpy import load_file

    from lstmcore_conformance.vectors import HERE
    from lstmcore_conformance.vectors.index import read_index

    index = read_index(HERE)
    case = next(case for case in index["cases"] if case["precision"] == "float64")
    arrays = load_file(HERE / "float64.safetensors")
    kept = {f"{case['name']}/{name}": arrays[f"{case['name']}/{name}"] for name in case["tensors"]}
    return {"index": json.dumps(index | {"cases": [case]}).encode(), "arrays": save(kept)}
