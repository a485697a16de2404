"""SECURITY.md is true: what the code never does, by its syntax trees, and what hostile files come to."""

from __future__ import annotations

import ast
import io
import json
import re
import struct
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.datasets import read_archive
from lstmcore.files import write_atomically
from lstmcore.training import SequenceModel
from small_models import data, make, trainer

ROOT = Path(__file__).parents[2]
FOLDERS = ("lstmcore", "backends")

#: Modules that run code of a file, start programs, open connections or unpack archives.
MODULES: Final = frozenset(
    (
        *(
            "pickle",
            "_pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib",
            "marshal",
            "shelve",
            "jsonpickle",
            "copyreg",
        ),
        *("subprocess", "multiprocessing", "pty", "popen2", "commands", "code", "codeop", "runpy"),
        *("socket", "ssl", "urllib", "http", "ftplib", "smtplib", "telnetlib", "xmlrpc", "asyncio", "socketserver"),
        *("requests", "httpx", "aiohttp", "urllib3", "webbrowser"),
        *("zipfile", "tarfile", "zipimport", "yaml", "xml"),
    )
)
#: Functions by name, and methods of any object by theirs.
CALLS: Final = frozenset(("eval", "exec", "compile", "__import__", "breakpoint", "input"))
METHODS: Final = frozenset(
    (
        *("system", "popen", "fork", "forkpty", "startfile", "posix_spawn", "posix_spawnp", "import_module"),
        *("extractall", "unpack_archive", "exec_module", "load_module"),
        *(f"exec{kind}" for kind in ("l", "le", "lp", "v", "ve", "vp", "vpe", "lpe")),
        *(f"spawn{kind}" for kind in ("l", "le", "lp", "v", "ve", "vp", "vpe", "lpe")),
    )
)
#: (file, what) -> why it may be there. What is not there any more must be taken off.
ALLOWED: Final[Mapping[tuple[str, str], str]] = {
    ("lstmcore/cli/_formats.py", "zipfile"): "the names in an archive, to tell a .keras file; nothing is unpacked",
    ("lstmcore/unpacking.py", "zipfile"): "the class of an error; nothing is opened",
    ("lstmcore/dialects/keras_files.py", "zipfile"): "three files of a .keras archive, into memory, of a bounded size",
    ("lstmcore/dialects/openvino.py", "xml"): "the description of a model, without a document type or entities",
    ("lstmcore/distributed/launcher.py", "subprocess"): "mpiexec and this interpreter, as a list of words, no shell",
    ("lstmcore/cli/_workers.py", "joblib"): "workers of this machine or of the user's cluster; it reads no file",
    ("lstmcore/cli/__init__.py", ".import_module"): "a command, by a name of the list in that file",
}


def found_in(source: str) -> Iterator[str]:
    """Yield what a source has of the lists above, and readers of pickles that are not told to refuse them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names if (name := alias.name.partition(".")[0]) in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if (name := (node.module or "").partition(".")[0]) in MODULES:
                yield name
            yield from (f".{alias.name}" for alias in node.names if alias.name in METHODS)
        elif isinstance(node, ast.Call):
            keywords = {word.arg: word.value for word in node.keywords}
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield node.func.id
            if isinstance(node.func, ast.Attribute):
                yield from _method(node.func, keywords)
            if isinstance(shell := keywords.get("shell"), ast.Constant) and shell.value:
                yield "shell=True"


def _method(function: ast.Attribute, keywords: Mapping[str | None, ast.expr]) -> Iterator[str]:
    """Yield what a call of a method is, if it is forbidden."""
    if function.attr in METHODS:
        yield f".{function.attr}"
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    for name, method, word, safe in (("torch", "load", "weights_only", True), ("np", "load", "allow_pickle", False)):
        if (owner, function.attr) == (name, method):
            value = keywords.get(word)
            if not (isinstance(value, ast.Constant) and value.value is safe):
                yield f"{name}.{method} without {word}={safe}"


def test_no_code_of_files_no_network_and_no_shell() -> None:
    """A new entry of `ALLOWED` needs a reason, and a line in SECURITY.md if a user should know of it."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = {(path.relative_to(ROOT).as_posix(), what) for path in files for what in found_in(path.read_text("utf-8"))}
    assert found == set(ALLOWED)
    assert all(ALLOWED.values())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("from urllib.request import urlopen", ["urllib"]),
        ("import http.client, os", ["http"]),
        ("def f():\n    from subprocess import run", ["subprocess"]),
        ("eval('1')", ["eval"]),
        ("os.system('ls')", [".system"]),
        ("from os import execv", [".execv"]),
        ("run(x, shell=True)", ["shell=True"]),
        ("archive.extractall(folder)", [".extractall"]),
        ("torch.load(path)", ["torch.load without weights_only=True"]),
        ("torch.load(path, weights_only=False)", ["torch.load without weights_only=True"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path, allow_pickle=x)", ["np.load without allow_pickle=False"]),
        ("np.load(path, allow_pickle=False)", []),
        ("backend.compile(config)\nre.compile('x')\nfrom lstmcore.http import x", []),
    ],
)
def test_each_of_them_is_found(source: str, expected: list[str]) -> None:
    assert list(found_in(source)) == expected


def test_the_rules_of_bandit_are_on() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert not [code for code in lint["ignore"] if code.startswith("S") and not code.startswith("SIM")]
    for pattern, codes in lint["per-file-ignores"].items():
        if pattern.startswith(FOLDERS):
            assert not [code for code in codes if code == "S" or code.startswith(("S1", "S2", "S3", "S4", "S5", "S6"))]


def test_the_lock_has_every_base_dependency_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    locked = re.findall(r"^([\w.-]+)==(\S+)[^\n]*((?:\n +--hash=sha256:[0-9a-f]{64}[ \\]*)*)",
                        (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)  # fmt: skip
    assert all(hashes for _, _, hashes in locked)
    wanted = {re.split(r"[<>=]", text)[0] for text in project["dependencies"]}
    assert wanted <= {name for name, _, _ in locked}


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(**changes: object) -> bytes:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return json.dumps({"w": one, "__metadata__": {"lstmcore": '{"format": "lstmcore-lstm", "version": 1}'}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        safetensors(b"{}", 2**63),
        safetensors(b"{}", 101_000_000),
        safetensors(b"{" * 5000),
        safetensors(b'{"a":' * 5000),
        safetensors(tensor(shape=[2**40, 2**40]), None, bytes(8)),
        safetensors(tensor(shape=[-2]), None, bytes(8)),
        safetensors(tensor(data_offsets=[0, 2**50]), None, bytes(8)),
        safetensors(tensor(data_offsets=[8, 0]), None, bytes(8)),
        safetensors(tensor(dtype="X9"), None, bytes(8)),
        safetensors(tensor(), None, bytes(4)),
        safetensors(tensor(), None, bytes(8) + b"more"),
        safetensors(json.dumps({"__metadata__": {"lstmcore": "[" * 100_000}}).encode()),
        safetensors(json.dumps({"__metadata__": {"lstmcore": '{"format": NaN}'}}).encode()),
        safetensors(json.dumps({"__metadata__": {"lstmcore": 3}}).encode()),
    ],
    ids=range(16),
)
def test_a_hostile_header_is_a_value_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(content)
    for load in (LSTM.load, SequenceModel.load):
        with pytest.raises(ValueError, match=r"hostile: "):
            load(path)


def npy(header: str, data: bytes = b"") -> bytes:
    """Return a file of one array as NumPy writes it, with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def test_an_archive_that_would_fill_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the zip says, and by what the array in it says, before anything is unpacked; padding may be packed."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, X=np.zeros((2, 1 << 18, 1)))
    assert len(read_archive(path)) == 2
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("X.npy", "w") as stream:
        stream.write(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (300, 131072, 1), }\n", b""))
        for _ in range(300):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    told = r"bomb\.npz: .*X: expected at most 256 MiB in arrays over 200 times .* LSTMCORE_MAX_UNPACKED_MIB to 301"
    monkeypatch.setenv("LSTMCORE_MAX_UNPACKED_MIB", "256")
    with pytest.raises(ValueError, match=told):
        read_archive(path)
    for shape in ("(1099511627776, 4, 4)", "(-1, 8, 1)", "(4, 4, 4)"):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("X.npy", npy(header, bytes(64)))
        with pytest.raises(ValueError, match=r"bomb\.npz: .*X: expected .* bytes, those of float64 .*; got "):
            read_archive(path)


def test_paths_in_an_archive_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with zipfile.ZipFile("walks.npz", "w") as archive:
        for name in ("../X.npy", "/tmp/lstmcore-planted/X.npy", "X.npy"):
            stream = io.BytesIO()
            np.save(stream, np.ones((3, 2, 1)))
            archive.writestr(name, stream.getvalue())
    assert len(read_archive("walks.npz")) == 3
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "walks.npz"]
    assert not Path("/tmp/lstmcore-planted").exists()


def test_links_in_a_folder_of_checkpoints(tmp_path: Path) -> None:
    """A run goes on in the file that a link leads to; a link that leads nowhere, or in a circle, is told."""
    inputs, targets = data()
    kept = tmp_path / "elsewhere"
    trainer(make(), epochs=1, checkpoint=kept).fit(inputs, targets)
    link = tmp_path / "run"
    link.symlink_to(kept)
    trainer(make(), epochs=2, checkpoint=link).fit(inputs, targets, resume=link)
    assert link.is_symlink() and not kept.is_symlink()
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(ValueError, match=r"^checkpoint: expected a file that can be written; got "):
        trainer(make(), checkpoint=link)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "run"]


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """Neither at a temporary name nor by the removal of leftovers; a link in the place of the file is."""
    kept, path = tmp_path / "kept", tmp_path / "model"
    kept.write_bytes(b"kept")
    lstm = LSTM(2, 3, seed=0, backend="numpy")
    lstm.save(path)
    for number in range(4):
        (tmp_path / f".lstmcore-{number}-00000000.tmp").symlink_to(kept)
    lstm.save(path)
    assert kept.read_bytes() == b"kept"
    (tmp_path / "link").symlink_to(path)
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert path.read_bytes() == b"new"
    np.testing.assert_equal(len(list(tmp_path.iterdir())), 7)
