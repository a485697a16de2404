"""``lstmcore convert`` where neither PyTorch nor ONNX is needed: files of lstmcore, and safetensors of PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from lstmcore import LSTM, Chain, Merge
from lstmcore.cli import _verify, main
from lstmcore.training import Readout, SequenceModel


def run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["convert", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


def lstm(**arguments: Any) -> LSTM:
    return LSTM(3, 5, 2, bidirectional=True, seed=1, backend="numpy", **arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_there_and_back(tmp_path: Path, dtype: str) -> None:
    model, names = lstm(dtype=dtype), ("own", "torch", "again")
    own, other, again = (tmp_path / f"{name}.safetensors" for name in names)
    model.save(own)
    report = json.loads(run(own, other, "--to", "torch", "--prefix", "encoder.", "--json"))
    assert (report["from"], report["to"], report["verified"]) == ("lstmcore", "torch", None)
    assert report["lstm"] == f"LSTM 3 to 5, 2 layers, both directions; {dtype}"
    assert list(load_file(other)) == sorted(model.to_torch("encoder."))
    assert "again.safetensors: lstmcore, LSTM 3 to 5" in run(other, again)
    assert again.read_bytes() == own.read_bytes()
    verified = json.loads(run(own, again, "--verify", "--json"))
    assert verified["largest_difference"] == 0 and verified["verified"].startswith("lstmcore ")


def test_one_of_several(tmp_path: Path) -> None:
    """A prefix says which, and a list has them all, with what is none."""
    path, out = tmp_path / "torch.safetensors", tmp_path / "out.safetensors"
    first, second = lstm(), LSTM(2, 4, seed=2, backend="numpy")
    gru = {"gru.weight_ih_l0": np.zeros((12, 3), "f4"), "gru.weight_hh_l0": np.zeros((12, 4), "f4")}
    save_file({**first.to_torch("a."), **second.to_torch("b.c."), **gru}, path)
    assert "expected --prefix with one of 'a.', 'b.c.', 'gru.'; got none" in run(path, out, code=2)
    run(path, out, "--prefix", "b.c.")
    for name, value in LSTM.load(out, backend="numpy").parameters.items():
        assert value.tobytes() == second.parameters[name].tobytes()
    report = json.loads(run("--list", path, "--json"))
    assert [(row["name"], row["lstm"]) for row in report["lstms"]] == [
        ("a.", "LSTM 3 to 5, 2 layers, both directions; float32"),
        ("b.c.", "LSTM 2 to 4; float32"),
        ("gru.", None),
    ]
    assert "is it a GRU or an RNN?" in report["lstms"][2]["problem"]
    shown = run("--list", path)
    assert "b.c." in shown and "LSTM 2 to 4" in shown


def test_a_chain_and_a_model(tmp_path: Path) -> None:
    chain = Chain([lstm(), Merge("sum"), LSTM(5, 2, seed=0, backend="numpy", peephole=True)])
    path, out = tmp_path / "chain.safetensors", tmp_path / "out.safetensors"
    chain.save(path)
    run(path, out)
    assert out.read_bytes() == path.read_bytes()
    assert "torch: expected the layers of one LSTM; got lstm, merge, lstm" in run(path, out, "--to", "torch", code=2)
    shown = run("--list", path)
    assert "merge by sum; LSTM 5 to 2, peephole" in " ".join(shown.replace("│", " ").split())
    SequenceModel(lstm(), Readout(10, 2, seed=0)).save(path)
    done = CliRunner().invoke(main, ["convert", str(path), str(out)])
    assert done.exit_code == 0 and "warning" in done.stderr and "without its readout" in done.stderr
    assert LSTM.load(out, backend="numpy").stack == lstm().stack


def test_what_it_refuses(tmp_path: Path) -> None:  # long: one line for each mistake
    own, other, out = (tmp_path / f"{name}.safetensors" for name in ("own", "torch", "out"))
    lstm().save(own)
    save_file(lstm().to_torch("a."), other)
    nan = lstm().to_torch()
    nan["weight_ih_l0"][0, 0] = np.nan
    files = {
        "text.pt": b"hello, world", "empty.safetensors": b"", "half.safetensors": own.read_bytes()[:300],
        "text.onnx.txt": b"x", "zip.keras": b"PK\x03\x04 and more", "old.pt": b"\x80\x04 and more",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    save_file(nan, tmp_path / "nan.safetensors")
    save_file({"fc.weight": np.zeros(3, "f4")}, tmp_path / "fc.safetensors")
    before = sorted(tmp_path.iterdir())
    for words, message in (
        ((own,), "expected IN and OUT, or --list FILE"),
        ((), "expected IN and OUT, or --list FILE"),
        (("--list", own, own), "--list: expected no other file; got IN"),
        ((own, own), "OUT: expected a file of its own"),
        ((tmp_path / "none", out), "none: expected a file that is there"),
        ((tmp_path, out), "expected a file; got a folder"),
        ((own, tmp_path / "out.bin"), "out.bin: expected a name that ends with .safetensors, .pt, .pth, .onnx"),
        ((own, tmp_path / "no" / "out.onnx"), "OUT: expected a file in a folder that exists"),
        ((own, out, "--node", "x"), "--node: expected a file that has it; got one of lstmcore and one of lstmcore"),
        ((other, out, "--prefix", "b."), "torch.safetensors: prefix: expected one of 'a.'; got 'b.'"),
        ((tmp_path / "text.pt", out), "text.pt: expected a file of lstmcore, torch, onnx"),
        ((tmp_path / "text.onnx.txt", out), "text.onnx.txt: expected a file of lstmcore"),
        ((tmp_path / "empty.safetensors", out), "empty.safetensors: expected a file of lstmcore"),
        ((tmp_path / "half.safetensors", out), "half.safetensors: expected a whole safetensors file; got"),
        ((tmp_path / "zip.keras", out), "zip.keras: expected a whole zip file; got a damaged one"),
        ((tmp_path / "nan.safetensors", out), "nan.safetensors: parameters['weight_x_l0']: expected finite numbers"),
        ((tmp_path / "fc.safetensors", out), "fc.safetensors: prefix: expected that of an LSTM"),
        (("--list", tmp_path / "fc.safetensors"), "fc.safetensors: expected an LSTM; got a file of torch with none"),
        ((own, out, "--from", "torch"), "own.safetensors: prefix: expected that of an LSTM"),
        ((other, out, "--from", "lstmcore"), "torch.safetensors: expected a file of format 'lstmcore-lstm'; got None"),
    ):
        shown = run(*words, code=2)
        assert message in shown and shown.count("\n") == 1, shown
    assert sorted(tmp_path.iterdir()) == before


def test_a_switch_that_a_format_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    lstm(peephole=True).save(path)
    shown = run(path, tmp_path / "out.safetensors", "--to", "torch", code=2)
    assert "peephole: expected False, as torch.nn.LSTM has it; got True" in shown
    assert sorted(tmp_path.iterdir()) == [path]


def test_keras_without_the_library_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras can be installed and not start: the error says which variable names another library."""
    monkeypatch.setitem(sys.modules, "keras", None)
    source = _verify.Source(tmp_path / "model.keras", "keras", None, lstm().content)
    with pytest.raises(ImportError, match=r"^--verify: expected Keras and the library .*KERAS_BACKEND to jax or torch"):
        _verify.run_source(source, np.zeros((4, 2, 3), np.float32))
