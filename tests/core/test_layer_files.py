"""Files of an `LSTM` and of a `Chain`: they come back bit for bit, and a damaged one is refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lstmcore.chain import Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.lstm import LSTM
from lstmcore.training import SequenceModel
from small_models import make, opened

KINDS = ("lstm", "chain")
HUGE = 10**12


def layers(kind: str, dtype: str = "float64", **arguments: Any) -> LSTM | Chain:
    shared: dict[str, Any] = {"dtype": dtype, "backend": "numpy"}
    if kind == "lstm":
        switches: dict[str, Any] = {"proj_size": 2, "peephole": True, "cell_clip": 0.7, "dropout": 0.3}
        switches["gate_activation"] = "hard_sigmoid(alpha=0.3)"
        return LSTM(3, 5, 2, bidirectional=True, seed=1, **switches, **shared, **arguments)
    first = LSTM(3, 5, bidirectional=True, layer_norm=True, seed=1, **shared)
    others = LSTM(5, 4, 2, seed=2, **shared), LSTM(4, 2, seed=3, **shared)
    return Chain([first, Merge("average"), Reversed(others[0]), others[1]], **arguments)


def load(kind: str, path: Path, **arguments: Any) -> LSTM | Chain:
    return (LSTM if kind == "lstm" else Chain).load(path, **({"backend": "numpy"} | arguments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_they_come_back_bit_for_bit(tmp_path: Path, kind: str, dtype: str, batch_first: bool) -> None:
    made, path = layers(kind, dtype, batch_first=batch_first), tmp_path / "layers.safetensors"
    made.save(path)
    found = load(kind, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["layers.safetensors"]
    assert (found.precision, found.batch_first) == (made.precision, batch_first)
    assert list(found.parameters) == list(made.parameters)
    for name, value in made.parameters.items():
        assert found.parameters[name].dtype == dtype
        np.testing.assert_array_equal(found.parameters[name], value)
    x = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(dtype)
    np.testing.assert_array_equal(found(x)[0], made(x)[0])
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_they_run_in_another_precision_and_on_another_backend(tmp_path: Path, kind: str) -> None:
    made, path = layers(kind, "float32"), tmp_path / "layers"
    made.save(path)
    found = load(kind, path, dtype="float64", backend="reference")
    assert (found.precision.name, found.backend.name) == ("float64", "reference")
    for name, value in made.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], value)
    big = layers(kind)
    big.load_parameters({name: np.full_like(value, 1e300) for name, value in big.parameters.items()})
    big.save(path)
    with pytest.raises(ValueError, match=r"layers: parameters\['.*'\]: expected finite numbers; got inf at"):
        load(kind, path, dtype="float32")


def header_of(kind: str) -> dict[str, Any]:
    """Changes of a header by their place, with the text of the error."""
    if kind == "lstm":
        return {
            "stack": ([], "stack in the header: expected a JSON object; got list"),
            "stack.layers": (3, "stack layers: expected a list of lists of layer configurations; got 3"),
            "stack.layers.0.0.hidden_size": (HUGE, "hidden_size and proj_size must be the same"),
            "stack.layers.1.0.input_size": (7, r"layers\[1\]\[1\].input_size: expected 7|expected 4, the width of"),
            "stack.dropout": (2.0, "dropout: expected a rate"),
            "stack.version": (99, "stack version: expected at most 1; got 99"),
        }
    return {
        "layers": ({}, "layers in the header: expected a list of layers; got dict"),
        "layers.0": (3, r"layers\[0\] in the header: expected a layer of kind lstm, reversed, merge; got 3"),
        "layers.0.kind": ("gru", r"layers\[0\] in the header: expected a layer of kind lstm, reversed, merge; got"),
        "layers.0.stack.layers.0.0.input_size": (HUGE, r"layers\[0\]: layers\[0\]\[1\].input_size: expected 1000"),
        "layers.1.mode": ("max", r"layers\[1\] mode: expected one of 'concat', 'sum'.*; got 'max'"),
        "layers.2.stack.layers.0.0.input_size": (9, r"layers\[2\]: expected input_size=5, the width before it; got 9"),
        "layers.2.kind": ("merge", r"layers\[2\] in the header: expected a layer of kind"),
        "layers.0.more": (1, r"layers\[0\] in the header: expected a layer of kind"),
    }


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind in KINDS for place in header_of(kind)])
def test_damaged_headers(tmp_path: Path, kind: str, place: str) -> None:
    path = tmp_path / "layers"
    layers(kind).save(path)
    tensors, header = opened(path)
    *parents, last = (int(word) if word.isdigit() else word for word in place.split("."))
    spot: Any = header
    for word in parents:
        spot = spot[word]
    value, message = header_of(kind)[place]
    spot[last] = value
    save_file(tensors, path, metadata={"lstmcore": json.dumps(header)})
    with pytest.raises(ValueError, match=rf"{path}: .*({message})") as caught:
        load(kind, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "layers"
    layers(kind).save(path)
    whole = path.read_bytes()
    tensors, header = opened(path)
    name = "weight_x_l0" if kind == "lstm" else "0.weight_x_l0"
    what = "stack" if kind == "lstm" else "layers"
    changes: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({name: tensors[name] * np.nan}, {}, rf"tensor '{name}': expected finite numbers; got NaN or infinity"),
        ({name: tensors[name][:1]}, {}, rf"tensor '{name}': expected shape \(.*\); got \(1, 3\)"),
        ({name: tensors[name].astype("f")}, {}, rf"tensor '{name}': expected dtype float64; got float32"),
        ({"extra": tensors[name]}, {}, "tensors: expected none but those that the header asks for; got 'extra'"),
        ({}, {"dtype": "int8"}, "dtype: expected one of float64.*; got 'int8'"),
        ({}, {"batch_first": 1}, "batch_first: expected True or False; got 1"),
        ({}, {"more": 1}, f"the header: expected {what}, dtype, batch_first; got .*more"),
        ({}, {"version": 2}, "format version: expected at most 1; got 2, written by a newer lstmcore"),
    ]
    for new, parts, message in changes:
        save_file(tensors | new, path, metadata={"lstmcore": json.dumps(header | parts)})
        with pytest.raises(ValueError, match=f"{path}: .*{message}|{path}: {message}"):
            load(kind, path)
    rest = {key: value for key, value in tensors.items() if key != name}
    save_file(rest, path, metadata={"lstmcore": json.dumps(header)})
    with pytest.raises(ValueError, match=rf"{path}: tensor '{name}': expected shape .*; got none"):
        load(kind, path)
    for keep in (0, 7, 300, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=f"{path}: expected a whole safetensors file; got"):
            load(kind, path)
    path.write_bytes(whole)
    for wrong in ({"dtype": "int8"}, {"backend": "nope"}):
        with pytest.raises(ValueError, match=r"expected one of|nope"):
            load(kind, path, **wrong)
    with pytest.raises(FileNotFoundError):
        load(kind, tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: expected a file; got a pipe or a device"):
        load(kind, tmp_path / "pipe")


def test_each_reader_names_the_other_format(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    layers("lstm").save(one)
    layers("chain").save(two)
    make().save(three)
    for call, path, message in (
        (LSTM.load, two, "expected a file of format 'lstmcore-lstm'; got 'lstmcore-chain': read it with Chain.load"),
        (Chain.load, one, "expected a file of format 'lstmcore-chain'; got 'lstmcore-lstm': read it with LSTM.load"),
        (LSTM.load, three, "expected a file of format 'lstmcore-lstm'; got 'lstmcore-model'"),
        (SequenceModel.load, one, "of format 'lstmcore-model'; got 'lstmcore-lstm': a readout is missing"),
        (SequenceModel.load, two, "got 'lstmcore-chain': a readout is missing"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{path}: .*{message}|{path}: {message}"):
            call(path)
