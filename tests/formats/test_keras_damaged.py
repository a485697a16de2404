"""Files of Keras that are damaged, lead to other files, or would fill memory: a ValueError that names the file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.dialects.keras_files import write_weights

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
        (no_bytes, f"/{PLACE}: expected at most 200 times its size in the file; got 274,877,906,944 bytes"),
        (packed_zeros, f"/{PLACE}: expected at most 200 times its size in the file; got 67,108,864 bytes"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["h5", "keras"])
def test_what_is_not_in_the_file(weights: Path, change: Callable[[Any, Path], None], told: str, packed: bool) -> None:
    """A model from elsewhere read any file of the user as its weights."""
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
