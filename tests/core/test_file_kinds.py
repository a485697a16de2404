"""A file of another kind is named as what it is, wherever it is given."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.datasets import read_csv
from lstmcore.file_kinds import describe_kind
from lstmcore.notices import Finding
from lstmcore.training import load_model


def _archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, X=np.zeros((2, 3, 1)), y=np.arange(2))


def _array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a NumPy archive": _archive,
    "a NumPy array": _array,
    "a pickle of Python": lambda path: path.write_bytes(pickle.dumps({"sales": [1.0]})),
    "JSON": lambda path: path.write_text(json.dumps({"sales": {"0": 1.0}})),
    "a safetensors file, such as a model": lambda path: LSTM(1, 2, backend="numpy", seed=0).save(path),
    "a picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_other_files_as_data(kind: str, tmp_path: Path) -> None:
    """They were refused by their bytes or, JSON, by a message with the whole file as the name of a column."""
    WRITERS[kind](path := tmp_path / "file")
    with pytest.raises(ValueError, match=rf"file: expected a CSV file; got {kind}") as raised:
        read_csv(path, "sales")
    assert len(str(raised.value)) < 250 + len(str(path))


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if "safetensors" not in kind])
def test_other_files_as_models(kind: str, tmp_path: Path) -> None:
    """It was 'Error while deserializing header: header too large'."""
    WRITERS[kind](path := tmp_path / "file")
    for read in (LSTM.load, load_model):
        with pytest.raises(ValueError, match=rf"file: expected a whole safetensors file; got {kind}$"):
            read(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"year,sales\n2020,1\n", "a text file"),
        (b"year\n" + "\u00e9".encode() * 3000, "a text file"),  # the sample ends within a character
        (b"\x07\x00\xff\xfe" * 4, "other bytes"),
    ],
)
def test_texts_and_other_bytes(content: bytes, kind: str, tmp_path: Path) -> None:
    (path := tmp_path / "file").write_bytes(content)
    assert describe_kind(path) == kind
    with pytest.raises(ValueError, match=rf"expected a whole safetensors file; got {kind}$"):
        load_model(path)


@pytest.mark.parametrize("start", ["", "\ufeff", "\n "])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("content", [{"sales": {"0": 1.0}}, [{"sales": 1.0}, {"sales": 2.0}]], ids=["object", "list"])
def test_json_on_several_lines(content: object, indent: int | None, start: str, tmp_path: Path) -> None:
    """With an indent, as pandas and other programs write it, it was a CSV file whose one column is a brace."""
    (path := tmp_path / "my.csv").write_text(start + json.dumps(content, indent=indent), "utf-8")
    with pytest.raises(ValueError, match="expected a CSV file; got JSON: save the table as CSV"):
        read_csv(path, "sales")


@pytest.mark.parametrize("header", ['{"kW"},sales', "[{kW}],sales", '"{""kW"": 1}",sales', '{"kW,sales'])
def test_a_header_that_begins_like_json(header: str, tmp_path: Path) -> None:
    """It was refused as JSON, and was read before there was such a message."""
    (path := tmp_path / "my.csv").write_text(f"{header}\n" + "1,2\n" * 3)
    assert read_csv(path, "sales").values.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("header", ["abc,\u227b", "\u0580\u0578\u057a\u0565,abc"], ids=["a model", "a pickle"])
def test_a_table_in_utf16_is_no_other_file(header: str, tmp_path: Path) -> None:
    """A letter of its header has the bytes with which a model begins, or a pickle: an Armenian one."""
    (path := tmp_path / "my.csv").write_text(f"{header}\n" + "1,1\n" * 30, "utf-16-le")
    with pytest.warns(Finding, match="found utf-16-le text"):
        assert read_csv(path, "abc").values.tolist() == [1.0] * 30


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_any_protocol_is_one(protocol: int, tmp_path: Path) -> None:
    (path := tmp_path / "file").write_bytes(pickle.dumps({"sales": [1.0]}, protocol))
    assert describe_kind(path) == "a pickle of Python"


def test_a_header_in_braces_is_no_other_file(tmp_path: Path) -> None:
    """A name of a column may begin so, or be long."""
    (path := tmp_path / "my.csv").write_text("[kW] {sales},kWh\n" + "1,2\n" * 3)
    assert read_csv(path, "[kW] {sales}").values.tolist() == [1.0, 1.0, 1.0]
