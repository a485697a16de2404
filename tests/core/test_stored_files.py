"""Files of LSTMs, chains and models whose weights are stored in fewer bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lstmcore.chain import Chain, Merge, Reversed
from lstmcore.lstm import LSTM
from lstmcore.stored_weights import FORMATS, StoredMatrix
from lstmcore.training import Readout, SequenceModel

KINDS = ("lstm", "chain", "model")


def _made(kind: str, **options: Any) -> Any:
    options |= {"backend": "numpy"}
    if kind == "lstm":
        return LSTM(40, 64, 2, bidirectional=True, proj_size=33, seed=1, **options)
    if kind == "chain":
        first, second = LSTM(40, 64, bidirectional=True, seed=1, **options), LSTM(128, 30, seed=2, **options)
        return Chain([first, Merge("concat"), Reversed(second)])
    return SequenceModel(_made("lstm", **options), Readout(66, 3, activation="softmax", seed=0))


def _compressed(whole: Any, form: str) -> Any:
    return whole.compress(form) if isinstance(whole, SequenceModel) else whole.compressed(form)


def _lstm(made: Any) -> Any:
    return made.lstm if isinstance(made, SequenceModel) else made


def _load(kind: str, path: Path, **options: Any) -> Any:
    options = {"backend": "numpy"} | options
    return {"lstm": LSTM, "chain": Chain, "model": SequenceModel}[kind].load(path, **options)


def _result(made: Any) -> Any:
    x = np.random.default_rng(0).normal(size=(6, 3, 40)).astype(np.float32)
    return np.array(made.predict(list(x.swapaxes(0, 1)))) if isinstance(made, SequenceModel) else made(x)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_stored_weights_come_back_bit_for_bit(tmp_path: Path, kind: str, form: str) -> None:
    """The file holds the stored matrices themselves, in a half or a quarter of the bytes."""
    whole, path = _made(kind), tmp_path / "small"
    small = _compressed(whole, form)
    whole.save(tmp_path / "whole")
    small.save(path)
    found = _load(kind, path)
    assert _lstm(found).precision == _lstm(small).precision
    for name, array in _lstm(small).stored_parameters.items():
        other = _lstm(found).stored_parameters[name]
        if isinstance(array, StoredMatrix):
            assert other.format == form
            assert other.values.tobytes() == array.values.tobytes()
            assert array.scale is None or other.scale.tobytes() == array.scale.tobytes()
        else:
            assert other.tobytes() == array.tobytes()
    assert _result(found).tobytes() == _result(small).tobytes()
    assert path.stat().st_size < (tmp_path / "whole").stat().st_size * {"int8": 0.36, "int8a16": 0.36}.get(form, 0.58)
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_read_in_another_precision(tmp_path: Path, kind: str) -> None:
    """The matrices stay the same numbers in float64; 16 bits are refused."""
    small = _compressed(_made(kind), "int8")
    small.save(tmp_path / "small")
    wide = _load(kind, tmp_path / "small", dtype="float64")
    for name, array in _lstm(small).parameters.items():
        assert np.array_equal(_lstm(wide).parameters[name], array.astype(np.float64))
    if kind != "model":
        with pytest.raises(ValueError, match="small: weights: expected 'same', since float16 has 16 bits"):
            _load(kind, tmp_path / "small", dtype="float16")


def _changed(path: Path, change: Any) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as stream:
        header = json.loads(stream.metadata()["lstmcore"])
    change(tensors, header)
    save_file(tensors, path, metadata={"lstmcore": json.dumps(header)})


def _set(name: str, place: Any, value: Any) -> Any:
    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        tensors[name][place] = value

    return change


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("int8", lambda t, h: t.pop("weight_x_l0:scale"), "'weight_x_l0:scale': expected shape (256,); got none"),
        ("int8", _set("weight_x_l0:scale", 3, np.nan), "'weight_x_l0:scale': expected finite numbers; got NaN"),
        ("int8", _set("weight_x_l0:scale", 3, 0), "'weight_x_l0:scale': expected numbers above 0; got 0.0"),
        ("int8", _set("weight_x_l0", (3, 5), -128), "'weight_x_l0': expected -127 to 127; got -128"),
        ("float16", _set("weight_x_l0", (3, 5), np.inf), "'weight_x_l0': expected finite numbers; got NaN or infinity"),
        (
            "bfloat16",
            _set("weight_x_l0", (3, 5), 0x7F80),
            "'weight_x_l0': expected finite numbers; got NaN or infinity",
        ),
        ("int8", lambda t, h: t.update(weight_x_l0=t["weight_x_l0"].astype("f4")), "expected dtype int8; got float32"),
        ("int8", lambda t, h: h.pop("weights"), "expected dtype float32; got int8"),
        ("int8", lambda t, h: h.update(weights="int4"), "weights: expected one of same, bfloat16, float16, int8"),
        (
            "int8",
            lambda t, h: h.update(weights=["int8"]),
            "weights: expected the name of a format; got ['int8'], a list",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, form: str, change: Any, message: str) -> None:
    path = tmp_path / "small"
    _compressed(_made("lstm"), form).save(path)
    _changed(path, change)
    with pytest.raises(ValueError) as caught:
        LSTM.load(path, backend="numpy")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_matrices_with_scales_of_others_keep_them() -> None:
    """Stored matrices are taken as they are, also with scales that this library would not choose."""
    lstm = LSTM(3, 5, weights="int8", seed=0, backend="numpy")
    rng = np.random.default_rng(0)
    given = dict(lstm.stored_parameters)
    for name, matrix in lstm.stored_parameters.items():
        if isinstance(matrix, StoredMatrix):
            values = rng.integers(-127, 128, matrix.shape).astype(np.int8)
            given[name] = StoredMatrix("int8", values, rng.uniform(0.001, 0.1, len(values)).astype(np.float32))
    lstm.load_parameters(given)
    for name, value in given.items():
        if isinstance(value, StoredMatrix):
            assert np.array_equal(lstm.parameters[name], value.read())
    with pytest.raises(ValueError, match="expected the format of the weights, float16; got int8"):
        LSTM(3, 5, weights="float16", backend="numpy").load_parameters(given)
    with pytest.raises(ValueError, match=r"expected the format of the weights, same; got int8"):
        LSTM(3, 5, backend="numpy").load_parameters(given)
    del given["bias_l0"]
    with pytest.raises(ValueError, match="bias_l0 missing"):
        lstm.load_parameters(given)


def _int8(values: Any, scale: Any) -> StoredMatrix:
    return StoredMatrix("int8", values, scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: _int8(m.values, -m.scale), r"\['weight_x_l0'\].scale: expected numbers above 0"),
        (lambda m: _int8(m.values, None), r"\.scale: expected an array of float32 with ndim=1; got NoneType"),
        (lambda m: _int8(m.values, m.scale[:1]), r"\.scale: expected shape \(20,\); got \(1,\)"),
        (lambda m: _int8(m.values, m.scale.astype("f8")), r"\.scale: expected an array of float32 .* got float64"),
        (lambda m: _int8(np.full_like(m.values, -128), m.scale), "expected -127 to 127; got -128"),
        (lambda m: _int8(m.values.astype("f4"), m.scale), "expected an array of int8 with ndim=2; got float32"),
        (lambda m: _int8(m.values.tolist(), m.scale), "expected an array of int8 with ndim=2; got list"),
        (lambda m: _int8(m.values[:, :2], m.scale), r"expected shape \(20, 3\)"),
    ],
)
def test_a_wrong_stored_matrix_changes_nothing(change: Any, message: str) -> None:
    lstm = LSTM(3, 5, weights="int8", seed=0, backend="numpy")
    before = lstm(np.ones((4, 2, 3), np.float32))[0]
    given = lstm.stored_parameters | {"weight_x_l0": change(lstm.stored_parameters["weight_x_l0"])}
    with pytest.raises((TypeError, ValueError), match=message):
        lstm.load_parameters(given)
    assert lstm(np.ones((4, 2, 3), np.float32))[0].tobytes() == before.tobytes()


def test_a_stored_matrix_is_copied() -> None:
    """The caller's arrays stay writable, and later writes change neither parameters nor results."""
    lstm = LSTM(3, 5, weights="int8", seed=0, backend="numpy")
    matrix = lstm.stored_parameters["weight_x_l0"]
    assert isinstance(matrix, StoredMatrix)
    assert not matrix.values.flags.writeable
    values, scale = matrix.values.copy(), np.array(matrix.scale)
    lstm.load_parameters(lstm.stored_parameters | {"weight_x_l0": _int8(values[:], scale)})
    before = lstm.parameters["weight_x_l0"]
    values[:] = 1
    assert np.array_equal(lstm.parameters["weight_x_l0"], before)


def test_a_chain_is_changed_whole_or_not_at_all() -> None:
    chain = Chain([LSTM(3, 4, seed=1, backend="numpy"), LSTM(4, 4, seed=2, backend="numpy")]).compressed("float16")
    before = chain.parameters
    given = {name: np.zeros_like(value) for name, value in before.items()}
    given["1.weight_x_l0"][0, 0] = 1e6
    with pytest.raises(ValueError, match=r"parameters\['1.weight_x_l0'\]: expected numbers that float16 can hold"):
        chain.load_parameters(given)
    for name, value in chain.parameters.items():
        assert np.array_equal(value, before[name])
    chain.load_parameters(chain.stored_parameters)
    assert "float32 with float16 weights" in str(chain.explain()[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_file_of_another_kind_names_what_reads_it(tmp_path: Path, kind: str, other: str) -> None:
    path, readers = tmp_path / "file", {"lstm": "LSTM", "chain": "Chain", "model": "SequenceModel"}
    _made(kind).save(path)
    if kind == other:
        _load(other, path)
        return
    with pytest.raises(ValueError, match=rf"got 'lstmcore-{kind}'.*{readers[kind]}\.load"):
        _load(other, path)
