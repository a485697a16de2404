"""``lstmcore convert`` from and to the files of PyTorch and ONNX, each run by its own library."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lstmcore import LSTM, Chain, Merge, Reversed
from lstmcore.cli import _verify, main
from lstmcore.training import MeanSquaredError, Readout, SequenceModel, Standardizer

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["convert", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


def lstm(hidden_size: int = 5, **arguments: Any) -> LSTM:
    return LSTM(3, hidden_size, seed=1, backend="numpy", **arguments)


def test_around_the_formats(tmp_path: Path) -> None:
    """.pt, .onnx, safetensors of PyTorch and ours: the same bits after every step, and equal outputs."""
    module = torch.nn.LSTM(3, 5, 2, bidirectional=True)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.startswith("bias_hh"):
                value.zero_()
    names = ("first.pt", "second.onnx", "third.safetensors", "fourth.pth", "fifth.safetensors")
    files = [tmp_path / name for name in names]
    torch.save({"model": {f"encoder.{name}": value for name, value in module.state_dict().items()}}, files[0])
    for source, target in pairwise(files):
        more = ("--to", "torch") if target == files[-1] else ()
        report = json.loads(run(source, target, "--verify", "--json", *more))
        assert 0 <= report["largest_difference"] < 1e-6
        names = [_verify.runtime_of(report[end], "float32")[0] for end in ("from", "to")]
        assert report["verified"] == f"{names[0]} for IN, {names[1]} for OUT"
    original = LSTM.from_torch(module, backend="numpy")
    for found in (LSTM.from_onnx(files[1]), LSTM.load(files[2]), LSTM.from_torch(files[3]), LSTM.from_torch(files[4])):
        for name, value in original.parameters.items():
            assert found.parameters[name].tobytes() == value.tobytes()
    assert "largest difference of an output" in run(files[0], tmp_path / "six.onnx", "--verify")


def test_a_chain(tmp_path: Path) -> None:
    chain = Chain([lstm(bidirectional=True), Merge("average"), Reversed(LSTM(5, 4, seed=0, backend="numpy"))])
    path, out, back = (tmp_path / name for name in ("chain.safetensors", "chain.onnx", "back.safetensors"))
    chain.save(path)
    for source, target in ((path, out), (out, back)):
        assert json.loads(run(source, target, "--verify", "--json"))["largest_difference"] < 1e-6
    assert back.read_bytes() == path.read_bytes()
    report = json.loads(run("--list", out, "--json"))
    assert [row["name"] for row in report["lstms"]] == ["lstm.0_l0", "lstm.1_l0"]
    assert [row["lstm"] for row in report["lstms"]] == [
        "LSTM 3 to 5, both directions; float32",
        "reversed LSTM 5 to 4; float32",
    ]


@pytest.mark.parametrize("loss", [None, "gaussian", "quantile"])
@pytest.mark.parametrize("steps", ["last", "every", "mean"])
def test_a_whole_model(tmp_path: Path, steps: Any, loss: str | None) -> None:
    """With the forecast of its loss, which of quantiles that cross is the middle one."""
    scaling, targets = Standardizer(np.arange(3.0), np.arange(3.0) + 1), Standardizer(np.arange(6.0), np.ones(6))
    readout = Readout(5, 6, steps=steps, seed=0)
    model = SequenceModel(lstm(), readout, input_scaling=scaling, target_scaling=targets, loss=loss)
    path, out = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    model.save(path)
    report = json.loads(run(path, out, "--verify", "--json"))
    assert report["whole"] and report["largest_difference"] < 1e-6
    graph = onnx.load(out).graph
    assert [value.name for value in graph.input] == ["x", "lengths"]
    assert graph.output[0].type.tensor_type.shape.dim[-1].dim_value == {None: 6, "gaussian": 3, "quantile": 2}[loss]


def test_a_forecast_that_onnx_lacks_is_refused(tmp_path: Path) -> None:
    class Doubled(MeanSquaredError):
        name = "doubled"

        def point(self, outputs: Any) -> Any:
            return 2 * outputs

    model = SequenceModel(lstm(), Readout(5, 2), loss=Doubled())
    with pytest.raises(ValueError, match=r"loss: expected quantile, gaussian or one without .*; got doubled"):
        model.to_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
def test_weights_of_16_bits(tmp_path: Path, dtype: str) -> None:
    path, out = tmp_path / "half.pt", tmp_path / "half.onnx"
    torch.save(getattr(torch.nn.LSTM(3, 5), dtype)().state_dict(), path)
    assert 0 < json.loads(run(path, out, "--verify", "--json"))["largest_difference"] < 0.02


def test_float64_in_onnx_is_told(tmp_path: Path) -> None:
    """ONNX Runtime has no such kernel: what was written is read again and run here, and a source is not run."""
    path, out, back = tmp_path / "double.pt", tmp_path / "double.onnx", tmp_path / "back.safetensors"
    torch.save(torch.nn.LSTM(3, 5).double().state_dict(), path)
    report = json.loads(run(path, out, "--verify", "--json"))
    assert 0 <= report["largest_difference"] < 1e-14
    assert report["verified"].startswith("torch ")
    assert report["verified"].endswith("for OUT, since onnxruntime has no kernel of LSTM for float64")
    shown = run(out, back, "--verify")
    assert "verified: no: onnxruntime has no kernel of LSTM for float64" in shown and back.exists()
    model = SequenceModel(lstm(dtype="float64"), Readout(5, 2, seed=0, dtype="float64"))
    model.save(path)
    assert "verified: no: onnxruntime has no kernel" in run(path, tmp_path / "model.onnx", "--verify")


def test_a_wrong_conversion_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "own.safetensors", tmp_path / "out.onnx"
    lstm().save(path)
    monkeypatch.setattr(_verify, "run_target", lambda target, x: _verify.run_source(target, x[::-1]))
    monkeypatch.setattr(_verify, "run_source", lambda source, x: _verify._run_ours(source.content, x))
    shown = run(path, out, "--verify", code=2)
    assert "--verify: expected outputs that differ by at most 0.0001; got" in shown and not out.exists()


def test_a_source_without_its_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "in.pt", tmp_path / "out.safetensors"
    torch.save(torch.nn.LSTM(3, 5).state_dict(), path)
    monkeypatch.setattr(_verify, "find_spec", lambda name: None)
    assert "verified: no: torch is not installed" in run(path, out, "--verify")
    assert out.exists()


def test_code_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(torch.nn.LSTM(3, 5), path)
    shown = run(path, tmp_path / "out.safetensors", code=2)
    assert "module.pt: expected a file of tensors" in shown and shown.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [path]
