"""What files of Keras may take of memory and time, and whose fault an error is: the file's, the user's or ours."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.datasets import read_archive
from lstmcore.dialects.keras_files import write_weights
from lstmcore.notices import Notice
from lstmcore.unpacking import LIMIT_VARIABLE

h5py = pytest.importorskip("h5py")
PLACE = "layers/lstm/cell/vars/0"
LAYER: dict[str, Any] = {"name": "lstm", "units": 5}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "whole.weights.h5"
    write_weights(path, LSTM(3, 5, seed=0, backend="numpy").content)
    return path


def configuration(*layers: dict[str, Any], kind: str = "LSTM") -> bytes:
    """Return the JSON of a sequential model."""
    found = [{"class_name": kind, "config": layer} for layer in layers]
    return json.dumps({"class_name": "Sequential", "config": {"layers": found}}).encode()


def archive_of(weights: Path, config: bytes, way: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a .keras file with these weights."""
    path = weights.with_name("model.keras")
    with zipfile.ZipFile(path, "w", way, compresslevel=9) as archive:
        archive.writestr("metadata.json", b'{"keras_version": "3.9.0"}')
        archive.writestr("config.json", config)
        archive.write(weights, "model.weights.h5")
    return path


def legacy(path: Path, config: bytes | None = None) -> Path:
    """Write the layer as Keras 2 does."""
    names = ["lstm/kernel:0", "lstm/recurrent_kernel:0", "lstm/bias:0"]
    with h5py.File(path, "w") as file:
        if config is not None:
            file.attrs["model_config"] = config
        file.attrs["layer_names"] = [b"lstm"]
        group = file.create_group("lstm")
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in zip(names, LSTM(3, 5, seed=0, backend="numpy").to_keras()[0], strict=True):
            group[name] = array
    return path


def test_a_packed_file_in_a_packed_file(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 150 times their size, of which 20 times fewer bytes are in the archive: 3,000 times in all."""
    monkeypatch.setenv(LIMIT_VARIABLE, "16")
    piece, rows = zlib.compress(bytes(4096), 9), 5000
    with h5py.File(weights, "r+") as file:
        del file[PLACE]
        matrix = file.create_dataset(PLACE, (rows, 1024), "f4", chunks=(1, 1024), compression="gzip")
        for row in range(rows):
            matrix.id.write_direct_chunk((row, 0), piece)
        assert matrix.nbytes < 200 * matrix.id.get_storage_size()
    path = archive_of(weights, configuration(LAYER))
    with pytest.raises(ValueError, match=f"^{path}: .*/{PLACE}: expected at most 16 MiB in arrays over 200 times"):
        LSTM.from_keras(path)


@pytest.mark.parametrize("way", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_honest_archive_counts_as_nothing(weights: Path, way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    lstm = LSTM(3, 5, seed=0, backend="numpy")
    found = LSTM.from_keras(archive_of(weights, configuration(LAYER), way), backend="numpy")
    for name, array in lstm.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)


def test_a_large_configuration_beside_many_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 2 MB is a text in the same heaps as 62 names, and no name may be as long."""
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    others = [{"name": f"dense_{number}", "words": "a" * 35_000} for number in range(61)]
    config = configuration(LAYER, *others).replace(b'"LSTM", "config": {"name": "d', b'"Dense", "config": {"name": "d')
    path = legacy(tmp_path / "old.h5", config)
    with h5py.File(path, "r+") as file:
        names = ["lstm", *(layer["name"] for layer in others)]
        file.attrs.create("layer_names", names, dtype=h5py.string_dtype())
        for name in names[1:]:
            file.create_group(name)
    assert len(config) > 2_000_000
    wanted, found = LSTM(3, 5, seed=0, backend="numpy").parameters, LSTM.from_keras(path, backend="numpy").parameters
    np.testing.assert_array_equal(found["weight_h_l0"], wanted["weight_h_l0"])


def test_one_list_of_many_layers(tmp_path: Path) -> None:
    """300 layers are one group with 1,000 names: these were read 300 times."""
    path = tmp_path / "old.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["layer_names"] = np.array([f"{number}".encode() for number in range(300)])
        file.create_group("0").attrs["weight_names"] = np.array([b"kernel"] * 1000)
        for number in range(1, 300):
            file[str(number)] = file["0"]
    with pytest.raises(
        ValueError, match=f"^{path}: .*weight_names: expected at most 262,144 names in one file; got 262,600"
    ):
        LSTM.from_keras(path)


def test_one_long_text_in_the_lists_of_many_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each list has 100 times the bytes of the file; what was read before counts."""
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    path, count, length = tmp_path / "old.h5", 100, 100_003
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"0", b"1", b"2", b"3"]
        group = file.create_group("0")
        group.attrs.create("weight_names", ["a" * length, *map(str, range(1, count))], dtype=h5py.string_dtype())
        for number in "123":
            file[number] = group
    content = path.read_bytes()
    at = content.index(struct.pack("<I", length))
    path.write_bytes(content[:at] + content[at : at + 16] * count + content[at + 16 * count :])
    with pytest.raises(ValueError, match=f"^{path}: .*/[0-3]: weight_names: expected at most 1 MiB in lists of texts"):
        LSTM.from_keras(path)


def test_json_that_would_fill_memory(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of empty lists takes 22 times its text, and the text may be packed 199 times."""
    monkeypatch.setenv(LIMIT_VARIABLE, "16")
    lists = ",".join(["[]"] * 500_000)
    noise = np.random.default_rng(0).bytes(5000).hex()
    path = archive_of(weights, configuration(LAYER)[:-1] + f', "x": [{lists}], "y": "{noise}"}}'.encode())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("config.json")
    assert 100 * info.compress_size < info.file_size < 200 * info.compress_size
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^{path}: .*config.json: expected at most 16 MiB in values of JSON"):
            LSTM.from_keras(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_text_that_is_too_long(weights: Path) -> None:
    path = archive_of(weights, configuration(LAYER).ljust((64 << 20) + 1), zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=f"^{path}: .*config.json: expected at most 67,108,864 bytes; got 67,108,865"):
        LSTM.from_keras(path)


def in_models(weights: Path, names: list[str], others: int) -> Path:
    """Write an archive with a model in each model, by a group that holds itself, and some layers in the last."""
    with h5py.File(weights, "r+") as file:
        file["layers/functional"] = file["/"]
    layers: list[dict[str, Any]] = [{"class_name": "LSTM", "config": LAYER}]
    layers += [{"class_name": "Dense", "config": {}}] * others
    for name in names:
        layers = [{"class_name": "Functional", "config": {"name": name, "layers": layers}}]
    return archive_of(weights, json.dumps(layers[0]).encode(), zipfile.ZIP_STORED)


def test_the_name_of_a_model_in_each_of_its_layers(weights: Path) -> None:
    """200 KB were 300 MB of names: a model with a long name and 3,000 layers."""
    path = in_models(weights, ["n" * 100_000, "model"], 3000)
    with pytest.raises(ValueError, match=f"^{path}: .*name: expected at most 1,024 characters, .* got 100,000: 'nnn"):
        LSTM.from_keras(path)
    path = in_models(remade(weights), ["n" * 512, "m" * 512, "model"], 1)
    with pytest.raises(ValueError, match=f"^{path}: .*name: expected at most 1,024 characters, .* got 1,025: 'mmm"):
        LSTM.from_keras(path)


def test_models_in_models(weights: Path) -> None:
    """JSON of many levels is a RecursionError, of json or of the reader, by the version of Python."""
    path = in_models(weights, ["m"] * 65, 0)
    assert LSTM.from_keras(path, f"{'m/' * 64}lstm").parameters["bias_l0"].shape == (20,)
    path = in_models(remade(weights), ["m"] * 66, 0)
    with pytest.raises(ValueError, match=f"^{path}: .*layers: expected models in models, at most 64 levels deep"):
        LSTM.from_keras(path)


def remade(weights: Path) -> Path:
    """Write the weights again without the group that holds itself."""
    with h5py.File(weights, "r+") as file:
        del file["layers/functional"]
    return weights


@pytest.mark.parametrize("dtype", ["i4", "u8", "?", "c8", ">f4", "S4", "V2"])
def test_numbers_of_another_kind(weights: Path, dtype: str) -> None:
    with h5py.File(weights, "r+") as file:
        del file[PLACE]
        file.create_dataset(PLACE, (3, 20), dtype)
    with pytest.raises(ValueError, match=f"^{weights}: .*/{PLACE}: expected floating-point numbers in this machine's"):
        LSTM.from_keras(weights)


@pytest.mark.parametrize("key", ["units", "recurrent_dropout"])
@pytest.mark.parametrize("value", [None, [1], {}, "x", True])
def test_a_configuration_without_a_number(weights: Path, key: str, value: Any) -> None:
    path = archive_of(weights, configuration(LAYER | {key: value}))
    with pytest.raises(ValueError, match=f"^{path}: lstm: {key}: expected a number in the configuration; got "):
        LSTM.from_keras(path)


@pytest.mark.parametrize("version", ["", "new", "\u00b2.0", "9" * 5000])
def test_a_version_that_is_no_number(weights: Path, version: str) -> None:
    path = legacy(weights, configuration(LAYER))
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = version + ".1"
    with pytest.raises(ValueError, match=f"^{path}: .*keras_version: expected a version such as 3.1.0; got '"):
        LSTM.from_keras(path)


@pytest.mark.parametrize("mode", [[1], {}])
def test_a_merge_that_is_no_text(weights: Path, mode: Any) -> None:
    with h5py.File(weights, "r+") as file:
        for part in ("forward_layer", "backward_layer"):
            file[f"layers/bidirectional/{part}/cell"] = file["layers/lstm/cell"]
    path = archive_of(weights, configuration({"name": "a", "merge_mode": mode}, kind="Bidirectional"))
    with pytest.raises(ValueError, match=f"^{path}: a: merge_mode: expected one of concat, "):
        LSTM.from_keras(path)


def test_two_dtypes_in_one_layer(weights: Path) -> None:
    with h5py.File(weights, "r+") as file:
        del file[PLACE]
        file.create_dataset(PLACE, (3, 20), "f8")
    with (
        pytest.warns(Notice),
        pytest.raises(ValueError, match=f"^{weights}: lstm: expected one dtype in all arrays; got float32, float64"),
    ):
        LSTM.from_keras(weights)


@pytest.mark.filterwarnings("ignore::lstmcore.notices.Notice")
@pytest.mark.parametrize("form", ["archive", "weights", "legacy", "npz"])
@pytest.mark.parametrize("place", ["unpacking.UnpackBudget.take", "dialects.keras_files.KerasLayer"])
def test_mistakes_of_ours(weights: Path, form: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyError, a TypeError or a RuntimeError of our own was told as a damaged file, since h5py has such errors."""
    read: Callable[[Path], Any] = LSTM.from_keras
    path = weights
    if form == "npz":
        read, path = read_archive, weights.with_name("whole.npz")
        np.savez(path, X=np.ones((2, 3, 1)))
        place = "unpacking.UnpackBudget.take"
    elif form != "weights":
        path = legacy(weights) if form == "legacy" else archive_of(weights, configuration(LAYER))
    for kind in (KeyError, TypeError, RuntimeError, NotImplementedError, RecursionError, AttributeError, IndexError):

        def broken(*arguments: Any, kind: type[Exception] = kind, **named: Any) -> Any:
            raise kind("ours")

        with monkeypatch.context() as patch:
            patch.setattr(f"lstmcore.{place}", broken)
            with pytest.raises(kind, match=r"^'?ours'?$"):
                read(path)


@pytest.mark.parametrize("form", ["archive", "weights", "legacy", "npz"])
def test_a_wrong_variable_is_not_the_fault_of_a_file(weights: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "1 GiB")
    told = f"^{LIMIT_VARIABLE}: expected a whole number of MiB; got '1 GiB'$"
    if form == "npz":
        np.savez(weights.with_name("whole.npz"), X=np.ones((2, 3, 1)))
        with pytest.raises(ValueError, match=told):
            read_archive(weights.with_name("whole.npz"))
        return
    path = {"archive": archive_of(weights, configuration(LAYER)), "weights": weights}.get(form)
    with pytest.raises(ValueError, match=told):
        LSTM.from_keras(legacy(weights) if path is None else path)
