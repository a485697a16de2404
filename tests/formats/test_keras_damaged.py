"""Files of Keras that are damaged, lead to other files, or would fill memory: a ValueError that names the file."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM, Chain
from lstmcore.dialects.keras_files import write_weights
from lstmcore.notices import Notice
from lstmcore.unpacking import LIMIT_VARIABLE

h5py = pytest.importorskip("h5py")
PLACE = "layers/lstm/cell/vars/0"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "whole.weights.h5"
    write_weights(path, LSTM(3, 5, seed=0, backend="numpy").content)
    return path


def external_numbers(file: Any, secret: Path) -> None:
    """Put the bytes of another file in the place of a matrix."""
    file.create_dataset(PLACE, (3, 20), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def external_link(file: Any, secret: Path) -> None:
    file[PLACE] = h5py.ExternalLink(str(secret), "numbers")


def virtual_numbers(file: Any, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 20), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "numbers", (3, 20))
    file.create_virtual_dataset(PLACE, layout)


def soft_link(file: Any, secret: Path) -> None:
    """A link to a group with a link to another file."""
    file["elsewhere"] = h5py.ExternalLink(str(secret), "/")
    file[PLACE] = h5py.SoftLink("/elsewhere/numbers")


def no_bytes(file: Any, secret: Path) -> None:
    """A matrix of which the file has no byte."""
    file.create_dataset(PLACE, (1 << 20, 1 << 16), "f4")


def packed_zeros(file: Any, secret: Path) -> None:
    file.create_dataset(PLACE, data=np.zeros((1 << 12, 1 << 12), "f4"), compression="gzip")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (external_numbers, f"/{PLACE}: expected numbers in the file itself; got those of another file"),
        (virtual_numbers, f"/{PLACE}: expected numbers in the file itself; got those of another file"),
        (external_link, f"/{PLACE}: expected data in the file itself; got a link to another file"),
        (soft_link, "/elsewhere: expected data in the file itself; got a link to another file"),
        (no_bytes, f"/{PLACE}: expected at most 16 MiB in arrays over 200 times their size"),
        (packed_zeros, f"/{PLACE}: expected at most 16 MiB in arrays over 200 times their size"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["h5", "keras"])
def test_what_is_not_in_the_file(
    weights: Path, change: Callable[[Any, Path], None], told: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model from elsewhere read any file of the user as its weights."""
    monkeypatch.setenv(LIMIT_VARIABLE, "16")
    secret = weights.with_name("secret")
    with h5py.File(secret, "w") as file:
        file["numbers"] = np.ones((3, 20), "f4")
    with h5py.File(weights, "r+") as file:
        del file[PLACE]
        change(file, secret)
    path = archive_of(weights) if packed else weights
    with pytest.raises(ValueError, match=f"^{path}: .*{told}"):
        LSTM.from_keras(path)


def archive_of(weights: Path, config: bytes | None = None, way: int = zipfile.ZIP_STORED) -> Path:
    """Write a .keras file with these weights."""
    layers = [{"class_name": "LSTM", "config": {"name": "a", "units": 5}}]
    text = json.dumps({"class_name": "Sequential", "config": {"layers": layers}}).encode()
    path = weights.with_name("model.keras")
    with zipfile.ZipFile(path, "w", way) as archive:
        archive.writestr("metadata.json", b'{"keras_version": "3.9.0"}')
        archive.writestr("config.json", text if config is None else config)
        archive.write(weights, "model.weights.h5")
    return path


def test_a_group_that_holds_itself_is_read(weights: Path) -> None:
    wanted = LSTM.from_keras(archive_of(weights), backend="numpy")
    with h5py.File(weights, "r+") as file:
        file["layers/again"] = file["layers"]
    found = LSTM.from_keras(archive_of(weights), backend="numpy")
    for name, array in wanted.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)


@pytest.mark.parametrize(
    "config",
    [b"", b"{", b"[" * 100_000, b"[]", b"3", b'{"config": 3}', b'{"config": {"layers": [3]}}', b"\xff", b"null"],
)
def test_a_damaged_configuration(weights: Path, config: bytes) -> None:
    path = archive_of(weights, config)
    with pytest.raises(ValueError, match=f"^{path}: expected a file of Keras; "):
        LSTM.from_keras(path)


def test_a_configuration_that_would_fill_memory(weights: Path) -> None:
    path = archive_of(weights, b" " * (1 << 24), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=f"^{path}: .*config.json: expected at most 200 times its size in the file"):
        LSTM.from_keras(path)


@pytest.mark.filterwarnings("ignore::lstmcore.notices.Notice")  # of what is read whole
def test_a_damaged_file_at_every_place(weights: Path) -> None:
    """zip and HDF5 raise BadZipFile, RuntimeError, KeyError and OSError."""
    whole, refused = archive_of(weights).read_bytes(), 0
    for path in (weights, weights.with_name("damaged.keras")):
        content = weights.read_bytes() if path == weights else whole
        for place in range(0, len(content), max(len(content) // 150, 1)):
            path.write_bytes(content[:place] + bytes(8) + content[place + 8 :])
            refusal = ""
            try:
                LSTM.from_keras(path, backend="numpy")
            except (ValueError, TypeError) as error:
                refusal = str(error)
            assert not refusal or str(path) in refusal
            refused += bool(refusal)
    assert refused > 50


def test_paths_in_an_archive_write_nothing(weights: Path) -> None:
    path = archive_of(weights)
    stream = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("../../planted", b"x")
        archive.writestr("/planted", b"x")
    path.write_bytes(stream.getvalue())
    LSTM.from_keras(path, backend="numpy")
    assert sorted(found.name for found in path.parent.iterdir()) == ["model.keras", "whole.weights.h5"]
    assert not any(folder.joinpath("planted").exists() for folder in path.parents)


def one_array_many_times(file: Any, mib: int = 4) -> None:
    """Give one packed array of 4 MiB, which is all zeros but for some, the names of the matrices of 60 layers."""
    numbers = np.zeros((mib << 8, 1024), "f4")
    numbers[::4, ::4] = np.random.default_rng(0).standard_normal(numbers[::4, ::4].shape)
    del file["layers"]
    shared = file.create_dataset("shared", data=numbers, compression="gzip")
    for number in range(60):
        for key in "012":
            file[f"layers/lstm{f'_{number}' * bool(number)}/cell/vars/{key}"] = shared


def many_headers(file: Any) -> None:
    """As above, by a second group of each layer."""
    one_array_many_times(file)
    group = file["layers/lstm/cell"]
    for number in range(1, 60):
        del file[f"layers/lstm_{number}/cell"]
        file[f"layers/lstm_{number}/cell"] = group


def soft_names(file: Any) -> None:
    """As above, by links that are paths."""
    one_array_many_times(file)
    for number in range(60):
        for key in "012":
            place = f"layers/lstm{f'_{number}' * bool(number)}/cell/vars/{key}"
            del file[place]
            file[place] = h5py.SoftLink("/shared")


@pytest.mark.parametrize("change", [one_array_many_times, many_headers, soft_names])
@pytest.mark.parametrize("packed", [False, True], ids=["h5", "keras"])
def test_one_array_named_many_times(
    weights: Path, change: Callable[[Any], None], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """180 names were read as 180 arrays: 720 MiB of a file of 2 MB. What is read counts, from the second name on."""
    monkeypatch.setenv(LIMIT_VARIABLE, "16")
    with h5py.File(weights, "r+") as file:
        change(file)
    layers = [{"class_name": "LSTM", "config": {"name": f"lstm_{number}", "units": 256}} for number in range(60)]
    config = json.dumps({"class_name": "Sequential", "config": {"layers": layers}}).encode()
    path = archive_of(weights, config) if packed else weights
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=f"^{path}: .*/vars/.: expected at most 16 MiB in arrays .* more than once"
        ):
            Chain.from_keras(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_long_list_of_names_by_keras_2(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"lstm"]
        group = file.create_group("lstm")
        group.attrs["weight_names"] = [b"kernel"] * 25 + [b"lstm/recurrent_kernel"]
    with pytest.raises(ValueError, match=f"^{path}: .*expected the arrays of an LSTM, at most 24; got 26"):
        LSTM.from_keras(path)


def test_one_text_named_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 names that are one text of 1 MiB, in a file of 1 MiB: a list has places of texts, and they may be one."""
    path, count, length = tmp_path / "old.h5", 1000, (1 << 20) + 3
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a" * length, *map(str, range(1, count))]
    content = path.read_bytes()
    at = content.index(struct.pack("<I", length))
    path.write_bytes(content[:at] + content[at : at + 16] * count + content[at + 16 * count :])
    with h5py.File(path) as file:
        assert {len(name) for name in file.attrs["layer_names"]} == {length}
    monkeypatch.setenv(LIMIT_VARIABLE, "64")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^{path}: .*/: layer_names: expected at most 64 MiB"):
            LSTM.from_keras(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rest", [0, 8, 184, 1 << 40])
def test_texts_that_do_not_fill_their_heap(tmp_path: Path, rest: int) -> None:
    """HDF5 takes the size of what is free for the way to the next text: h5py 3.16 read on forever, or crashed."""
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"], file.attrs["model_config"] = [b"lstm"], b"{}"
    content = path.read_bytes()
    at = content.index(b"GCOL")
    free = at + 16
    while content[free : free + 2] != b"\0\0":  # number 0 is what is free
        free += 16 + -(-struct.unpack_from("<Q", content, free + 8)[0] // 8) * 8
    path.write_bytes(content[: free + 8] + struct.pack("<Q", rest) + content[free + 16 :])
    with pytest.raises(ValueError, match=f"^{path}: .*expected texts that fill their heap at byte {at}; got a damaged"):
        LSTM.from_keras(path)


def test_names_of_a_large_file(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras 2 writes names as such texts; a file of 4 MiB with 60 of them is far from the limit of 1 MiB."""
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    lstm, path = LSTM(3, 5, seed=0, backend="numpy"), weights.with_name("old.h5")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"lstm", *(f"dense_{number}".encode() for number in range(60))]
        file["large"] = np.ones(1 << 20, "f4")
        for number in range(60):
            file.create_group(f"dense_{number}").attrs["weight_names"] = [b"kernel", b"bias"]
        group, names = file.create_group("lstm"), ["lstm/kernel:0", "lstm/recurrent_kernel:0", "lstm/bias:0"]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in zip(names, lstm.to_keras()[0], strict=True):
            group[name] = array
    with pytest.warns(Notice, match="a file of weights has no configuration"):
        found = LSTM.from_keras(path, backend="numpy")
    for name, array in lstm.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)


@pytest.mark.parametrize("kind", [h5py.vlen_dtype(np.uint8), np.dtype("i4"), h5py.ref_dtype])
def test_names_of_another_kind_are_not_read(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py 3.16 crashes at some; so they are refused by their type, for a list and for one text."""
    path = tmp_path / "old.h5"
    for name, shape in (("layer_names", (2,)), ("keras_version", ())):
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [b"lstm"]
            if name in file.attrs:
                del file.attrs[name]
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
            h5py.h5a.create(file.id, name.encode(), h5py.h5t.py_create(kind, logical=True), space)
        with monkeypatch.context() as patch:
            patch.setattr(h5py.AttributeManager, "__getitem__", unread(name))
            with pytest.raises(ValueError, match=f"^{path}: .*/: {name}: expected .*text"):
                LSTM.from_keras(path)


def unread(name: str) -> Callable[[Any, str], Any]:
    """Return a reader of attributes that must not meet one name."""
    read = h5py.AttributeManager.__getitem__

    def read_others(self: Any, key: str) -> Any:
        assert key != name
        return read(self, key)

    return read_others


def test_a_layer_named_twice_by_keras_2(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"lstm", b"lstm"]
    with pytest.raises(ValueError, match=f"^{path}: .*layer_names: expected names that differ"):
        LSTM.from_keras(path)


def test_names_that_are_no_text(weights: Path) -> None:
    """h5py gives the bytes of a name that is no UTF-8."""
    content = weights.read_bytes()
    for old, new in ((b"lstm\0", b"ls\xffm\0"), (b"layers\0", b"lay\xffrs\0")):
        assert old in content
        weights.write_bytes(content.replace(old, new))
        with pytest.raises(ValueError, match=f"^{weights}: expected a file of Keras; "):
            LSTM.from_keras(weights)


def test_a_group_with_too_many_arrays(weights: Path) -> None:
    with h5py.File(weights, "r+") as file:
        group = file["layers/lstm/cell/vars"]
        for number in range(3, 30):
            group[str(number)] = group["0"]
    with pytest.raises(ValueError, match=f"^{weights}: .*vars: expected the arrays of an LSTM, at most 24; got 30"):
        LSTM.from_keras(weights)


def test_a_piece_that_is_larger_than_its_array(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 unpacks a whole piece, of which the array may be a corner."""
    monkeypatch.setenv(LIMIT_VARIABLE, "16")
    with h5py.File(weights, "r+") as file:
        del file[PLACE]
        file.create_dataset(
            PLACE, data=np.zeros((3, 20), "f4"), maxshape=(None, None), chunks=(1 << 11, 1 << 11), compression="gzip"
        )
    with pytest.raises(ValueError, match=f"^{weights}: .*/{PLACE}: expected at most 16 MiB .* got 16,777,472 bytes"):
        LSTM.from_keras(weights)


def test_texts_in_the_place_of_numbers(weights: Path) -> None:
    with h5py.File(weights, "r+") as file:
        del file[PLACE]
        file.create_dataset(PLACE, data=["a" * 1000] * 60, dtype=h5py.string_dtype())
    with pytest.raises(ValueError, match=f"^{weights}: .*/{PLACE}: expected numbers; got texts"):
        LSTM.from_keras(weights)


def test_numbers_that_are_not_finite(weights: Path) -> None:
    with h5py.File(weights, "r+") as file:
        file[PLACE][0, 0] = np.nan
    path = archive_of(weights)
    with pytest.raises(ValueError, match=f"^{path}: .*expected finite numbers; got NaN"):
        LSTM.from_keras(path, backend="numpy")


def test_honest_files_with_zeros(weights: Path) -> None:
    """The state of an optimizer is not read; a data set without a byte is zeros, as HDF5 says."""
    wanted = LSTM.from_keras(archive_of(weights), backend="numpy")
    with h5py.File(weights, "r+") as file:
        file.create_dataset("optimizer/vars/1", data=np.zeros((1 << 12, 1 << 12), "f4"), compression="gzip")
        file.create_dataset("optimizer/vars/2", (1 << 20, 1 << 16), "f4")
        file.create_dataset("optimizer/vars/3", data=h5py.Empty("f4"))
        shape = file["layers/lstm/cell/vars/2"].shape
        del file["layers/lstm/cell/vars/2"]
        file.create_dataset("layers/lstm/cell/vars/2", shape, "f4")
    found = LSTM.from_keras(archive_of(weights), backend="numpy")
    assert not found.parameters["bias_l0"].any()
    for name in ("weight_x_l0", "weight_h_l0"):
        np.testing.assert_array_equal(found.parameters[name], wanted.parameters[name])


def test_names_that_keras_2_divides(tmp_path: Path) -> None:
    """HDF5 keeps at most 64 KB in an attribute: layer_names0, layer_names1 and so on."""
    lstm, path = LSTM(3, 5, seed=0, backend="numpy"), tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.2.4"
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"dense"], [b"lstm"]
        file.create_group("dense").attrs["weight_names"] = []
        group, names = file.create_group("lstm"), ("lstm/kernel:0", "lstm/recurrent_kernel:0", "lstm/bias:0")
        group.attrs["weight_names0"] = [name.encode() for name in names]
        for name, array in zip(names, lstm.to_keras()[0], strict=True):
            group[name] = array
    with pytest.warns(Notice, match="a file of weights has no configuration"):
        found = LSTM.from_keras(path, backend="numpy")
    for name, array in lstm.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)


def test_no_other_file_is_opened(weights: Path) -> None:
    """A path within the file leads through a link to another one, here a pipe, which never answers."""
    pipe = weights.with_name("pipe")
    os.mkfifo(pipe)
    with h5py.File(weights, "r+") as file:
        file["zzz/elsewhere"] = h5py.ExternalLink(str(pipe), "/")
        file["a"] = h5py.SoftLink("/zzz/elsewhere/numbers")
        del file[PLACE]
        file[PLACE] = h5py.SoftLink("/zzz/elsewhere/numbers")
    code = "import sys; from lstmcore import LSTM; LSTM.from_keras(sys.argv[1])"
    words = [sys.executable, "-c", code, str(weights)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert f"{weights}: expected a file of Keras; /zzz/elsewhere: expected data in the file itself" in done.stderr


@pytest.mark.parametrize(
    "config",
    [
        {"layer": 3, "name": "a"},
        {"layer": {"class_name": "LSTM", "config": "ab"}, "name": "a"},
        {"backward_layer": [1], "name": "a"},
        {"name": 3},
    ],
)
def test_a_configuration_of_other_kinds(weights: Path, config: dict[str, Any]) -> None:
    with h5py.File(weights, "r+") as file:
        for part in ("forward_layer", "backward_layer"):
            file[f"layers/bidirectional/{part}/cell"] = file["layers/lstm/cell"]
    layers = [{"class_name": "Bidirectional", "config": config}]
    path = archive_of(weights, json.dumps({"class_name": "Sequential", "config": {"layers": layers}}).encode())
    with pytest.raises(ValueError, match=f"^{path}: "):
        LSTM.from_keras(path)


@pytest.mark.parametrize(
    ("place", "faults"),
    [
        ("h5py.Dataset.__array__", (KeyError, TypeError, RuntimeError, OSError, ValueError)),
        ("h5py.Group.get", (KeyError, TypeError, RuntimeError, OSError, ValueError)),
        ("lstmcore.dialects.keras_files.json.loads", (RecursionError, ValueError)),
        ("zipfile.ZipFile.read", (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)),
    ],
)
def test_errors_of_a_file_and_mistakes_of_ours(
    weights: Path, monkeypatch: pytest.MonkeyPatch, place: str, faults: tuple[type[Exception], ...]
) -> None:
    """An AttributeError or a NameError is a mistake of this library, and was told as a damaged file."""
    path = archive_of(weights)
    kinds = (*faults, AttributeError, NameError, IndexError, AssertionError, TypeError, KeyError, MemoryError)
    for kind in kinds:

        def broken(*arguments: Any, kind: type[Exception] = kind, **named: Any) -> Any:
            raise kind("broken")

        with monkeypatch.context() as patch:
            patch.setattr(place, broken)
            if kind in faults:
                with pytest.raises(ValueError, match=f"^{path}: expected a file of Keras; .*broken"):
                    LSTM.from_keras(path)
            else:
                with pytest.raises(kind, match="broken") as caught:
                    LSTM.from_keras(path)
                assert str(path) not in str(caught.value) or kind is TypeError
