"""Weights under PyTorch's names, without PyTorch: arrays and safetensors files, there and back."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lstmcore.lstm import LSTM

SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2},
    {"bidirectional": True, "bias": False},
    {"num_layers": 3, "bidirectional": True, "proj_size": 2},
    {"hidden_size": 1},
)


def lstm(dtype: str = "float32", **arguments: Any) -> LSTM:
    return LSTM(**({"input_size": 3, "hidden_size": 5} | arguments), dtype=dtype, seed=1, backend="numpy")


def read(source: Any, *arguments: Any, **options: Any) -> LSTM:
    return LSTM.from_torch(source, *arguments, backend="numpy", **options)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("arguments", SHAPES)
def test_there_and_back_is_bit_for_bit(tmp_path: Path, arguments: dict[str, Any], dtype: str) -> None:
    made = lstm(dtype, **arguments)
    if "bias_l0" in made.parameters:
        signed = np.array(made.parameters["bias_l0"])
        signed[:2] = (-0.0, 0.0)
        made.load_parameters(made.parameters | {"bias_l0": signed})
    path, prefix = tmp_path / "torch.safetensors", "encoder.lstm."
    values = made.to_torch(prefix)
    save_file({**values, "encoder.fc.weight": np.zeros(3), "other.weight_ih_l0": np.zeros((4, 1))}, path)
    for source in (values, str(path), path):
        found = read(source, prefix)
        assert found.stack == made.stack and found.precision == made.precision
        assert list(found.parameters) == list(made.parameters)
        for name, value in made.parameters.items():
            assert found.parameters[name].tobytes() == value.tobytes(), name
    assert list(values) == list(found.to_torch(prefix))
    for name, value in found.to_torch(prefix).items():
        assert value.tobytes() == values[name].tobytes()
    wider = read(values, prefix, dtype="float64", batch_first=True)
    assert wider.precision.name == "float64" and wider.batch_first


def test_the_names_and_the_order_are_those_of_pytorch() -> None:
    """As in the text of ``torch.nn.LSTM``; the two biases add."""
    made = lstm(num_layers=2, bidirectional=True, proj_size=2)
    values = made.to_torch()
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    assert list(values) == [f"{p}_l{k}{end}" for k in (0, 1) for end in ("", "_reverse") for p in parts]
    assert values["weight_ih_l1"].shape == (20, 4) and values["weight_hh_l1_reverse"].shape == (20, 2)
    values["bias_hh_l1_reverse"] = np.arange(20, dtype=np.float32)
    added = values["bias_ih_l1_reverse"] + values["bias_hh_l1_reverse"]
    np.testing.assert_array_equal(read(values).parameters["bias_l1_reverse"], added)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"peephole": True}, "peephole: expected False, as torch.nn.LSTM has it; got True"),
        ({"coupling": "forget_from_input"}, "coupling: expected none, as torch.nn.LSTM has it; got forget_from_input"),
        ({"cell_clip": 1.0}, "cell_clip: expected None"),
        ({"gate_activation": "relu"}, "gate_activation: expected sigmoid"),
        ({"recurrence": "cell"}, "recurrence: expected hidden"),
        ({"layer_norm": True}, "layer_norm: expected False"),
        ({"zoneout_cell": 0.1}, "zoneout_cell: expected 0.0"),
        ({"recurrent_dropout": 0.1}, "recurrent_dropout: expected 0.0"),
    ],
)
def test_switches_that_pytorch_lacks_are_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lstm(**switches).to_torch()


def test_what_is_no_lstm_is_refused(tmp_path: Path) -> None:  # long: one line for each mistake
    values = lstm(num_layers=2).to_torch("a.")
    f32 = np.float32
    gru = {"weight_ih_l0": np.zeros((12, 3), f32), "weight_hh_l0": np.zeros((12, 4), f32)}
    for source, prefix, message in (
        (values, "", "prefix: expected one of 'a.'; got ''"),
        ({"fc.weight": np.zeros(3)}, "", "prefix: expected that of an LSTM, which has weight_ih_l0; got ''"),
        (gru, "", r"weight_hh_l0: expected shape \(4 H, H\) of an LSTM; got \(12, 4\): is it a GRU or an RNN"),
        ({k: v for k, v in values.items() if "hh_l1" not in k}, "a.", "a.weight_hh_l1: expected shape .*; got none"),
        (dict(list(values.items())[:4]) | {"a.bias_ih_l7": np.zeros(20, f32)}, "a.", "expected tensors of every"),
        (values | {"a.weight_ih_l1": np.zeros((20, 9), f32)}, "a.", r"a.weight_ih_l1: expected shape \(20, 5\)"),
        (values | {"a.weight_hr_l1": np.zeros((2, 5), f32)}, "a.", "a.weight_hr_l1: expected shape none; got"),
        (values | {"a.bias_hh_l0": np.zeros(20)}, "a.", "expected one dtype in all tensors; got float32, float64"),
        (values | {"a.bias_hh_l0": np.full(20, np.nan, f32)}, "a.", r"'bias_l0'\]: expected finite numbers"),
        (values | {"a.bias_hh_l0": np.zeros(20, int)}, "a.", "bias_hh_l0: expected floating-point numbers; got int64"),
        (values | {"a.bias_hh_l0": [0.0] * 20}, "a.", "a.bias_hh_l0: expected a tensor or an array; got list"),
        ({"weight_ih_l0": np.zeros(3, f32)}, "", "weight_hh_l0: expected a matrix; got none"),
        (values | {3: np.zeros(2)}, "a.", "state_dict: expected names that are texts; got 3"),
        (values | {"a.bias_hh_l0": np.zeros(20, "c8")}, "a.", "bias_hh_l0: expected floating-point .*; got complex64"),
        (values | {"a.bias_hh_l0": np.zeros(20, ">f4")}, "a.", "bias_hh_l0: expected the byte order of .*; got >f4"),
        (values, None, "prefix: expected a text, '' for none; got NoneType"),
        (3, "", "from_torch: expected a state_dict, a module or the path of a file; got int"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message) as caught:
            read(source, prefix)
        assert "\n" not in str(caught.value)
    path = tmp_path / "file"
    save_file(values, path)
    whole = path.read_bytes()
    for content, message in (
        (whole[:200], "file: expected a whole safetensors file; got"),
        (whole[:-1], "file: expected a whole safetensors file; got"),
        (b"hello, world", "file: expected a safetensors, .pt or .pth file; got another kind"),
        (b"", "file: expected a safetensors, .pt or .pth file; got another kind"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(path, "a.")
    save_file({name: value.astype(np.int8) for name, value in values.items()}, path)
    with pytest.raises(ValueError, match=r"file: a.\w+: expected F64, F32, F16; got I8"):
        read(path, "a.")
    with pytest.raises(ValueError, match="expected a file; got a folder"):
        read(tmp_path, "a.")


@pytest.mark.parametrize(
    "error",
    [
        EOFError(),
        OSError(22, "Invalid argument"),
        KeyError(58),
        TypeError("set_() received"),
        AttributeError("dtype"),
        ValueError("Unknown endianness type"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        RuntimeError("zip"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_pytorch_raises_for_a_damaged_file_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(path: Path, **_: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load))
    (tmp_path / "damaged.pt").write_bytes(b"PK and the rest")
    with pytest.raises(ValueError, match=r"damaged\.pt: expected a file of tensors") as told:
        LSTM.from_torch(tmp_path / "damaged.pt", backend="numpy")
    assert told.value.__cause__ is error


def test_numbers_that_are_not_finite_are_told_with_the_file(tmp_path: Path) -> None:
    """Of a file, its name comes first; of arrays there is none."""
    values = dict(LSTM(2, 3, seed=0, backend="numpy").to_torch())
    values["weight_hh_l0"] = np.full_like(values["weight_hh_l0"], np.nan)
    path = tmp_path / "weights.safetensors"
    save_file(values, path)
    told = r"parameters\['weight_h_l0'\]: expected finite numbers; got nan"
    with pytest.raises(ValueError, match=f"^{path}: {told}"):
        LSTM.from_torch(path, backend="numpy")
    with pytest.raises(ValueError, match=f"^{told}"):
        LSTM.from_torch(values, backend="numpy")


def test_load_parameters_names_the_reader() -> None:
    made = lstm()
    for prefix in ("", "encoder."):
        with pytest.raises(ValueError, match=r"unknown .*: these are torch's names: LSTM.from_torch reads them"):
            made.load_parameters(made.to_torch(prefix))
    for name, hint in (
        ("lstm_cell/kernel:0", "Keras's names: LSTM.from_keras"),
        ("layers/lstm/recurrent_kernel", "Keras's names: LSTM.from_keras"),
        ("R", "ONNX's names: LSTM.from_onnx"),
    ):
        with pytest.raises(ValueError, match=f"unknown {name}.*: these are {hint} reads them"):
            made.load_parameters({name: np.zeros(3)})
    with pytest.raises(ValueError, match=r"unknown other; expected weight_x_l0, weight_h_l0, bias_l0$"):
        made.load_parameters({"other": np.zeros(3)})
