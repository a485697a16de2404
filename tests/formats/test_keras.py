"""Weights from live layers, models and files of Keras, and back: the same numbers give the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lstmcore import LSTM, Chain, Merge, Reversed
from lstmcore.cli import main
from lstmcore.notices import Notice

pytest.importorskip("torch")
h5py = pytest.importorskip("h5py")
keras = pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:keras")

X = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)


def layer(units: int = 5, **arguments: Any) -> Any:
    return keras.layers.LSTM(units, **({"return_sequences": True, "bias_initializer": "glorot_normal"} | arguments))


def both(merge_mode: str | None = "concat", **arguments: Any) -> Any:
    return keras.layers.Bidirectional(layer(**arguments), merge_mode=merge_mode)


def sequential(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((None, 3)), *layers])


def outputs(model: Any, x: Any = X) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(model(x)))


def bits(one: Any, two: Any) -> None:
    assert one.spec == two.spec if isinstance(one, Chain) else one.stack == two.stack
    for name, value in one.parameters.items():
        assert value.tobytes() == two.parameters[name].tobytes()


FUNCTIONS = ("sigmoid", "tanh", "relu", "linear", "elu", "softsign", "softplus", "leaky_relu", "hard_sigmoid")

MODELS: dict[str, Any] = {
    "plain": lambda: [layer()],
    "no bias": lambda: [layer(use_bias=False)],
    "both": lambda: [both()],
    "stack": lambda: [layer(), keras.layers.Dropout(0.3), layer()],
    "dropout": lambda: [layer(recurrent_dropout=0.25, dropout=0.5, implementation=1)],
    **{name: (lambda name=name: [layer(recurrent_activation=name, activation="tanh")]) for name in FUNCTIONS},
    "cell": lambda: [layer(activation="softsign")],
    "sum": lambda: [both("sum"), layer(4)],
    "mul": lambda: [both("mul", use_bias=False)],
    "average": lambda: [both("ave"), both(), layer(2)],
    "masked": lambda: [keras.layers.Masking(), layer(), layer(3)],
}


@pytest.mark.parametrize("name", MODELS)
def test_models_layers_and_files(tmp_path: Path, name: str) -> None:
    model = sequential(*MODELS[name]())
    kind = Chain if name in ("sum", "mul", "average", "masked") else LSTM
    found = kind.from_keras(model, backend="numpy")
    assert found.batch_first
    np.testing.assert_allclose(found(X)[0], outputs(model), atol=2e-6)
    for suffix in (".keras", ".h5"):
        path = tmp_path / f"model{suffix}"
        model.save(path)
        bits(kind.from_keras(path, backend="numpy"), found)
    if name in ("plain", "no bias", "both", "stack"):
        model.save_weights(path := tmp_path / "model.weights.h5")
        with pytest.warns(Notice, match="a file of weights has no configuration"):
            bits(LSTM.from_keras(path, backend="numpy"), found)


def test_backwards_alone() -> None:
    """Its outputs have the order of x here, and the last state is the same."""
    model = sequential(layer(go_backwards=True))
    with pytest.warns(Notice, match=r"lstm\w*: y has the order of x; Keras gives the steps .* from the last"):
        found = Chain.from_keras(model, backend="numpy")
    np.testing.assert_allclose(found(X)[0][:, ::-1], outputs(model), atol=2e-6)
    model = sequential(layer(go_backwards=True, return_sequences=False))
    found = Chain.from_keras(model, backend="numpy")
    np.testing.assert_allclose(found.last_output(found(X)[1]), outputs(model), atol=2e-6)
    with pytest.raises(ValueError, match=r"go_backwards: expected False before or after another LSTM"):
        Chain.from_keras(sequential(layer(go_backwards=True), layer()))
    with pytest.raises(ValueError, match="expected layers of one LSTM; got reversed"):
        LSTM.from_keras(model)


def test_masks_are_lengths() -> None:
    """In both directions Keras gives 0 past the end of a row, and so do we."""
    lengths = np.array([6, 2, 4, 1])
    mask = np.arange(6) < lengths[:, None]
    for made in (layer(return_sequences=False), both()):
        model = sequential(made)
        model(X)
        wanted = np.asarray(keras.ops.convert_to_numpy(made(X, mask=keras.ops.convert_to_tensor(mask))))
        found = LSTM.from_keras(made, backend="numpy")
        y, state = found(X, lengths=lengths)
        got = y if wanted.ndim == 3 else found.last_output(state)
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_weights_go_back() -> None:
    for name in ("plain", "no bias", "both", "stack"):
        model, other = sequential(*MODELS[name]()), sequential(*MODELS[name]())
        found = LSTM.from_keras(model, backend="numpy")
        targets = [one for one in other.layers if type(one).__name__ != "Dropout"]
        for target, arrays in zip(targets, found.to_keras(), strict=True):
            target.set_weights(arrays)
        for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
            assert one.tobytes() == two.tobytes()
    chain = Chain([LSTM(3, 5, bidirectional=True, seed=0, backend="numpy"), Merge("sum")], batch_first=True)
    model = sequential(both("sum"))
    model.layers[0].set_weights(chain.to_keras()[0])
    np.testing.assert_allclose(chain(X)[0], outputs(model), atol=2e-6)


@pytest.mark.parametrize(
    "switches",
    [{"peephole": True}, {"proj_size": 2}, {"gate_activation": "relu"}, {"cell_clip": 1.0}, {"layer_norm": True}],
)
def test_switches_that_its_weights_lack_are_refused(switches: dict[str, Any]) -> None:
    (name,) = switches
    with pytest.raises(ValueError, match=f"{name}: expected .*, which the weights of Keras hold; got"):
        LSTM(3, 5, backend="numpy", **switches).to_keras()
    with pytest.raises(ValueError, match="expected none that is reversed alone"):
        Chain([Reversed(LSTM(3, 5, backend="numpy"))]).to_keras()


def legacy(path: Path, config: dict[str, Any] | None, arrays: dict[str, Any], version: str) -> Path:
    """Write a file as Keras 1 and 2 did, with one layer."""
    with h5py.File(path, "w") as file:
        weights = file
        if config is not None:
            one = {"class_name": "LSTM", "config": {"name": "lstm_1", **config}}
            inner = [one] if version[0] == "1" else {"name": "sequential", "layers": [one]}
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": inner}).encode()
            weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"lstm_1"]
        weights.attrs["keras_version"] = version.encode()
        group = weights.create_group("lstm_1")
        group.attrs["weight_names"] = [name.encode() for name in arrays]
        for name, array in arrays.items():
            group[name] = array
    return path


def test_files_of_keras_1_and_2(tmp_path: Path) -> None:
    """The hard sigmoid of that time has the slope 0.2; Keras 1 has three arrays for each gate."""
    made = layer(recurrent_activation=lambda z: keras.ops.clip(0.2 * z + 0.5, 0, 1))
    wanted = outputs(sequential(made))
    kernel, recurrent, bias = made.get_weights()
    config = {"units": 5, "activation": "tanh", "recurrent_activation": "hard_sigmoid", "use_bias": True}
    names = ("kernel:0", "recurrent_kernel:0", "bias:0")
    arrays = dict(zip((f"lstm_1/lstm_cell/{name}" for name in names), (kernel, recurrent, bias), strict=True))
    found = LSTM.from_keras(legacy(tmp_path / "two.h5", config, arrays, "2.2.4"), backend="numpy")
    np.testing.assert_allclose(found(X)[0], wanted, atol=2e-6)
    old = {
        f"lstm_1_{letter}_{gate}": np.split(array, 4, axis=-1)["ifco".index(gate)]
        for gate in "icfo"
        for letter, array in zip("WUb", (kernel, recurrent, bias), strict=True)
    }
    config = {"output_dim": 5, "activation": "tanh", "inner_activation": "hard_sigmoid"}
    bits(LSTM.from_keras(legacy(tmp_path / "one.h5", config, old, "1.2.2"), backend="numpy"), found)
    with pytest.warns(Notice, match="a file of weights has no configuration: tanh and sigmoid are taken"):
        plain = LSTM.from_keras(legacy(tmp_path / "weights.h5", None, arrays, "2.2.4"), backend="numpy")
    assert str(plain.stack.layers[0][0].gate_activation) == "sigmoid"


def test_what_is_no_lstm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    for layers, asked, message in (
        ([keras.layers.GRU(4)], None, "expected a layer LSTM; got a model with none"),
        ([layer(activation="gelu")], None, r"lstm\w*: activation: expected one of .*got 'gelu'"),
        ([layer(), keras.layers.Dense(5), layer()], None, r"layer: expected one of 'lstm\w*', 'lstm\w*', since they"),
        ([layer()], "other", r"layer: expected one of 'lstm\w*'; got 'other'"),
        ([keras.layers.Bidirectional(keras.layers.GRU(4))], None, "expected Bidirectional of an LSTM.* got one of GRU"),
    ):
        model = sequential(*layers)
        model.save(path)
        for source in (model, path):
            with pytest.raises(ValueError, match=message) as caught:
                LSTM.from_keras(source, asked)
            assert str(path) in str(caught.value) or source is model
    whole = path.read_bytes()
    sequential(layer()).save_weights(tmp_path / "w.weights.h5")
    weights = (tmp_path / "w.weights.h5").read_bytes()
    for content in (whole[: len(whole) // 2], b"hello, world", b"", weights[: len(weights) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model.keras: expected a file of Keras; got"):
            LSTM.from_keras(path)
    with pytest.raises(TypeError, match="from_keras: expected a layer, a model or the path of a file; got int"):
        LSTM.from_keras(3)
    wrong = {"lstm_1/kernel:0": np.zeros((3, 20), "f4"), "lstm_1/recurrent_kernel:0": np.zeros((4, 16), "f4")}
    with pytest.raises(ValueError, match=r"kernel: expected shape \(I, 16\); got \(3, 20\)"):
        LSTM.from_keras(legacy(tmp_path / "shape.h5", {"units": 4}, wrong, "2.1.0"))


def convert(*words: object) -> Any:
    done = CliRunner().invoke(main, ["convert", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_convert(tmp_path: Path) -> None:
    """Each file is run by Keras; the weights come back bit for bit."""
    path, own, back = (tmp_path / name for name in ("m.keras", "own.safetensors", "back.weights.h5"))
    model = sequential(both(), both())
    model.save(path)
    report = convert(path, own, "--verify")
    assert report["largest_difference"] < 2e-6 and report["verified"].startswith("keras ")
    assert convert(own, back, "--verify")["largest_difference"] < 2e-6
    other = sequential(both(), both())
    other.load_weights(back)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        assert one.tobytes() == two.tobytes()
    assert convert(back, tmp_path / "again.safetensors", "--verify")["largest_difference"] < 2e-6
    sequential(both("ave"), layer(2)).save(path)
    names = [row["name"] for row in convert("--list", path)["lstms"]]
    assert len(names) == 2 and names[1].startswith("lstm")
    assert convert(path, own, "--verify")["largest_difference"] < 2e-6
    assert convert(path, own, "--node", names[1], "--verify")["lstm"] == "LSTM 5 to 2; float32"


def test_the_command_verifies_a_file_of_keras_2(tmp_path: Path) -> None:
    """Its layers have an argument that Keras 3 refuses: files of a package showed it."""
    path = tmp_path / "old.h5"
    sequential(layer()).save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layers = [each for each in config["config"]["layers"] if each["class_name"] == "LSTM"]
        for each in layers:
            each["config"]["time_major"] = False
        file.attrs["model_config"] = json.dumps(config)
        own = file.attrs["model_config"]
    assert len(layers) == 1
    assert convert(path, tmp_path / "own.safetensors", "--verify")["largest_difference"] < 2e-6
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = own.replace('"time_major": false', '"time_major": true')
    with pytest.raises(ValueError, match=r"old\.h5: .*time_major: expected False"):
        LSTM.from_keras(path)
