"""LSTMs of TFLite models: the same outputs as LiteRT's, the very numbers of the file, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lstmcore import LSTM, Chain
from lstmcore.cli import main
from lstmcore.dialects.tflite_reader import read_tflite

tflite = pytest.importorskip("tflite")

from tflite_models import (  # noqa: E402  (after the check)
    SIZES,
    Built,
    add_both,
    add_fused,
    add_loop,
    numbers,
    one_graph,
    reverse,
    turn,
)

T, N, I, H = SIZES
X = numbers(9, T, N, I)

FUSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "peephole": {"peephole": True},
    "coupled": {"coupled": True},
    "coupled with peephole": {"coupled": True, "peephole": True},
    "projection": {"proj": 4},
    "clips": {"proj": 4, "ProjClip": 0.1, "CellClip": 0.3, "proj_bias": 0.0},
    "relu": {"FusedActivationFunction": 1},
    "float16": {"kind": "float16", "peephole": True, "proj": 4},
    "int8": {"kind": "int8"},
    "int8 with all": {"kind": "int8", "peephole": True, "proj": 4, "coupled": True},
}
LOOPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gates": {"gates": "RELU"},
    "cell": {"cell": "LOGISTIC"},
    "bias in the product": {"fused_bias": True},
    "two biases": {"fused_bias": True, "two_biases": True},
    "matrix as a variable": {"hoisted": True},
    "float16": {"kind": "float16"},
    "float16 as a variable": {"kind": "float16", "hoisted": True},
    "int8": {"kind": "int8"},
    "slices": {"sliced": True},
}


def merged(graph: Built, x: int, code: str, **given: Any) -> int:
    """Add the operator in both directions, whose outputs an operator merges."""
    return graph.add(
        code, add_both(graph, x, I, MergeOutputs=False, **given), (T, N, H), options=f"{code.title()}Options"
    )


def half_first(graph: Built, x: int, *, merged: bool) -> int:
    """Add the operator between changes of layout, with x from the end: its second direction then goes forward."""
    rows = turn(graph, reverse(graph, x, (T, N, I), 0), (N, T, I))
    (y, *back) = add_both(graph, rows, I, time_major=False, proj=4, MergeOutputs=merged)
    if back:
        y = graph.add("CONCATENATION", [y, *back], (N, T, 8), options="ConcatenationOptions", Axis=2)
    return reverse(graph, turn(graph, y, (T, N, 8)), (T, N, 8), 0)


#: The operator in both directions: what the test adds to it, and what it is in our terms.
BOTH: dict[str, Callable[[Built, int], int]] = {
    **{
        name: (lambda graph, x, given=given: add_both(graph, x, I, **given)[0])
        for name, given in FUSED.items()
        if "int8" not in name
    },
    "sum": lambda graph, x: merged(graph, x, "ADD"),
    "mul": lambda graph, x: merged(graph, x, "MUL", peephole=True),
    "two": lambda graph, x: add_both(graph, add_both(graph, x, I)[0], 2 * H, "second", 5)[0],
    "and one": lambda graph, x: add_fused(graph, add_both(graph, x, I)[0], 2 * H, "second", 5),
    "behind one": lambda graph, x: add_both(graph, add_fused(graph, x, I), H, "second", 5)[0],
    "behind a sum": lambda graph, x: add_both(graph, merged(graph, x, "ADD"), H, "second", 5)[0],
}


def run_model(content: bytes, x: Any = X) -> Any:
    """Return what LiteRT gives."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def read(folder: Path, content: bytes, node: str | None = None) -> Chain:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return Chain.from_tflite(path, node, backend="numpy")


def compare(folder: Path, content: bytes, atol: float = 1e-6, x: Any = X) -> Chain:
    """Hold the outputs of a model against LiteRT's, and return the chain."""
    chain = read(folder, content)
    np.testing.assert_allclose(chain(x)[0], run_model(content, x), atol=atol)
    return chain


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_operator(tmp_path: Path, name: str) -> None:
    """LiteRT rounds activations to int8 where the weights are of int8; `test_stored_weights` has their numbers."""
    atol = 0.01 if "int8" in name else 1e-6
    compare(tmp_path, one_graph(lambda graph, x: add_fused(graph, x, I, **FUSED[name])), atol)


@pytest.mark.parametrize("name", BOTH)
def test_both_directions(tmp_path: Path, name: str) -> None:
    compare(tmp_path, one_graph(BOTH[name]))


def test_both_directions_of_stored_weights(tmp_path: Path) -> None:
    """LiteRT rounds activations to int8; the int8 matrices are those of the file."""
    kept: list[Built] = []

    def build(graph: Built, x: int) -> int:
        kept.append(graph)
        return add_both(graph, x, I, kind="int8")[0]

    chain = compare(tmp_path, one_graph(build), atol=0.02)
    stored = [each for each in kept[0].tensors if each[2] == "int8" and each[1][1] == I]
    for suffix, four in (("", stored[:4]), ("_reverse", stored[4:])):
        value = read_tflite(tmp_path / "model.tflite").parameters[f"weight_x_l0{suffix}"]
        assert value.values.tobytes() == b"".join(each[3] for each in four)  # type: ignore[union-attr]
    assert chain.output_width == 2 * H


@pytest.mark.parametrize("merged", [False, True])
def test_both_directions_of_a_reversed_x(tmp_path: Path, merged: bool) -> None:
    """The direction that reads x from its end is the second of ours, whichever it is in the file.

    LiteRT runs two outputs: with one and batch first it takes the width of both directions for that of a row of the
    state (seen in 2.3.0), and reads past the state from the second row on.
    """
    path = tmp_path / "model.tflite"
    path.write_bytes(one_graph(partial(half_first, merged=merged)))
    lstm = LSTM.from_tflite(path, backend="numpy")
    y = lstm(X)[0]
    expected = run_model(one_graph(partial(half_first, merged=False)))
    np.testing.assert_allclose(np.roll(y, 4, axis=2), expected, atol=1e-6)
    assert y.shape == (T, N, 8)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop(tmp_path: Path, name: str) -> None:
    atol = 0.01 if "int8" in name else 1e-6
    compare(tmp_path, one_graph(lambda graph, x: add_loop(graph, x, I, **LOOPS[name])[0]), atol)


@pytest.mark.parametrize("add", [add_fused, add_loop])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_stored_weights(tmp_path: Path, kind: str, add: Any) -> None:
    """Every matrix is what the file has, bit for bit, in the format in which it has it."""
    kept: list[Built] = []

    def build(graph: Built, x: int) -> Any:
        kept.append(graph)
        made = add(graph, x, I, kind=kind)
        return made if add is add_fused else made[0]

    path = tmp_path / "model.tflite"
    path.write_bytes(one_graph(build))
    found = read_tflite(path)
    assert found.precision.weights == {"float32": "same"}.get(kind, kind)
    graph = kept[0] if add is add_fused else kept[0].model.graphs[1]
    stored = [each for each in graph.tensors if each[3] is not None and each[2] == kind and len(each[1]) == 2]
    wanted = {width: b"".join(each[3] for each in stored if each[1][1] == width) for width in (I, H)}
    for name, width in (("weight_x_l0", I), ("weight_h_l0", H)):
        value = found.parameters[name]
        assert (value if kind == "float32" else value.values).tobytes() == wanted[width]
        if kind == "int8":
            assert (value.scale == np.float32(0.01)).all()


def both(graph: Built, x: int, mode: str, add: Any = add_fused, **given: Any) -> int:
    """Add two directions and a merge; x and y are (T, N, width)."""
    width = given.pop("width", I)
    one = add(graph, x, width, "forward", 1, **given)
    two = add(graph, reverse(graph, x, (T, N, width), 0), width, "backward", 2, **given)
    each = [made if add is add_fused else made[0] for made in (one, two)]
    back, shape = reverse(graph, each[1], (T, N, H), 0), (T, N, H)
    if mode == "concat":
        return graph.add("CONCATENATION", [each[0], back], (T, N, 2 * H), options="ConcatenationOptions", Axis=2)
    y = graph.add(
        "MUL" if mode == "mul" else "ADD", [each[0], back], shape, options=f"{'Mul' if mode == 'mul' else 'Add'}Options"
    )
    half = graph.constant(np.array(0.5, np.float32))
    return graph.add("MUL", [y, half], shape, options="MulOptions") if mode == "average" else y


def keras_layout(graph: Built, x: int) -> int:
    """Add a loop from the last step to the first in a model (N, T, width), as Keras has it."""
    turned = reverse(graph, turn(graph, x, (T, N, I)), (T, N, I), 0)
    return turn(graph, add_loop(graph, turned, I)[0], (N, T, H))


STACKS: dict[str, Callable[[Built, int], int]] = {
    "two": lambda graph, x: add_fused(graph, add_fused(graph, x, I), H, "second", 3),
    "two loops": lambda graph, x: add_loop(graph, add_loop(graph, x, I)[0], H, "second", 3)[0],
    "layout between": lambda graph, x: turn(
        graph,
        add_fused(graph, turn(graph, add_fused(graph, x, I), (N, T, H)), H, "second", time_major=False),
        (T, N, H),
    ),
    **{mode: (lambda graph, x, mode=mode: both(graph, x, mode)) for mode in ("concat", "sum", "mul", "average")},
    "loops": lambda graph, x: both(graph, x, "average", add_loop),
    "both twice": lambda graph, x: both(graph, both(graph, x, "concat"), "concat", width=2 * H),
    "sum and one": lambda graph, x: add_fused(graph, both(graph, x, "sum"), H, "last", 5, proj=2),
}


@pytest.mark.parametrize("name", STACKS)
def test_several(tmp_path: Path, name: str) -> None:
    compare(tmp_path, one_graph(STACKS[name]))


def test_a_reversed_loop(tmp_path: Path) -> None:
    """Such a layer of Keras gives its outputs in the order in which it made them."""
    content, x = one_graph(keras_layout, batch_first=True), np.ascontiguousarray(X.swapaxes(0, 1))
    with pytest.warns(UserWarning, match="y has the order of x"):
        chain = read(tmp_path, content)
    assert chain.batch_first and chain.spec[0].kind == "reversed"
    np.testing.assert_allclose(chain(x)[0][:, ::-1], run_model(content, x), atol=1e-6)


def second(graph: Built, x: int) -> int:
    y = of_any_length(graph, x, limit_of=x)
    graph.tensors[y] = (graph.tensors[y][0], (-1, N, H), *graph.tensors[y][2:])
    return add_loop(graph, y, H, "second", 3, limit_of=x)[0]


@pytest.mark.parametrize("build", [lambda graph, x: of_any_length(graph, x, limit_of=x), second])
def test_a_loop_over_any_length(tmp_path: Path, build: Callable[[Built, int], int]) -> None:
    """The limit is the length of x, as the graph finds it in a run, or that of what the first loop reads."""
    wanted = add_loop if build is not second else STACKS["two loops"]
    fixed = one_graph(lambda graph, x: wanted(graph, x, I)[0] if wanted is add_loop else wanted(graph, x))
    np.testing.assert_array_equal(read(tmp_path, one_graph(build))(X)[0], read(tmp_path, fixed)(X)[0])


@pytest.mark.parametrize("state", [0.0, 0.7])
def test_a_loop_that_starts_elsewhere(tmp_path: Path, state: float, recwarn: pytest.WarningsRecorder) -> None:
    content = one_graph(lambda graph, x: add_loop(graph, x, I, state=state)[0])
    chain = read(tmp_path, content)
    told = [str(each.message) for each in recwarn]
    assert told == (
        ["while: starts from a state that is not 0, which no LSTM holds: hand it over as state"] * (state > 0)
    )
    start = np.full((1, N, H), state, np.float32)
    np.testing.assert_allclose(chain(X, [(start, start)])[0], run_model(content), atol=1e-6)


def test_the_last_outputs_merged(tmp_path: Path) -> None:
    """Keras with return_sequences=False gives only the last h of each direction."""

    def build(graph: Built, x: int) -> int:
        forward, backward = add_loop(graph, x, I, "a", 1), add_loop(graph, reverse(graph, x, (T, N, I), 0), I, "b", 2)
        return graph.add("MUL", [forward[1], backward[1]], (N, H), options="MulOptions")

    chain = read(tmp_path, content := one_graph(build))
    assert chain.spec[1].mode == "mul"
    ((h, _),) = (chain(X)[1],) if len(chain(X)[1]) == 2 else chain(X)[1]
    np.testing.assert_allclose(h[0] * h[1], run_model(content), atol=1e-6)


def test_one_of_several(tmp_path: Path) -> None:
    def build(graph: Built, x: int) -> int:
        one, two = add_fused(graph, x, I, "a"), add_fused(graph, x, I, "b", 2)
        return graph.add("ADD", [one, two], (T, N, H), options="AddOptions")

    content = one_graph(build)
    with pytest.raises(
        ValueError, match=r"model\.tflite: node: expected one of 'a', 'b', since they are not one after"
    ):
        read(tmp_path, content)
    with pytest.raises(ValueError, match=r"node: expected one of 'a', 'b'; got 'c'"):
        read(tmp_path, content, "c")
    total = sum(read(tmp_path, content, name)(X)[0] for name in "ab")
    np.testing.assert_allclose(total, run_model(content), atol=1e-6)


def other_body(graph: Built, x: int) -> int:
    """Change the body of a loop, so that it is no LSTM: what it reads in the next step as h is c."""
    y = add_loop(graph, x, I)[0]
    body = graph.model.graphs[1]
    body.outputs = [*body.outputs[:3], body.outputs[4], body.outputs[3], *body.outputs[5:]]
    return y


def quantised(graph: Built, x: int) -> int:
    graph.tensors[x] = (*graph.tensors[x][:2], "int8", None, [0.1], False)
    return add_fused(graph, x, I)


def other_shape(graph: Built, x: int) -> int:
    y = add_fused(graph, x, I)
    graph.operators[-1][1][14] = graph.constant(np.zeros(H + 1, np.float32))
    return y


def computed(graph: Built, x: int) -> int:
    y = add_fused(graph, x, I)
    inputs = graph.operators[-1][1]
    inputs[6] = graph.add("TANH", [graph.constant(numbers(0, H, H))], (H, H))
    return y


def no_number(graph: Built, x: int) -> int:
    y = add_fused(graph, x, I)
    graph.operators[-1][1][13] = graph.constant(np.full(H, np.nan, np.float32))
    return y


def no_number_in_both(graph: Built, x: int) -> int:
    (y,) = add_both(graph, x, I)
    graph.operators[-1][1][17 + 13] = graph.constant(np.full(H, np.nan, np.float32))
    return y


def huge(graph: Built, x: int) -> int:
    graph.tensors[x] = ("x", (2**20, 2**10, I), *graph.tensors[x][2:])
    return add_loop(graph, x, I)[0]


def huge_fused(graph: Built, x: int) -> int:
    graph.tensors[x] = ("x", (2**31 - 1,) * 3, *graph.tensors[x][2:])
    return add_fused(graph, x, I)


def of_any_length(graph: Built, x: int, **given: Any) -> int:
    graph.tensors[x] = ("x", (-1, N, I), *graph.tensors[x][2:])
    return add_loop(graph, x, I, **given)[0]


def without_inputs(graph: Built, code: str, inputs: list[int], y: int) -> int:
    """Leave out what operators of a kind read."""
    graph.operators = [(each[0], inputs if each[0] == code else each[1], *each[2:]) for each in graph.operators]
    return y


def turned(graph: Built, x: int) -> int:
    return add_fused(graph, turn(graph, x, (N, T, I)), I, time_major=False)


REFUSED: dict[str, tuple[Callable[[Built, int], int], str]] = {
    "layer_norm": (lambda graph, x: add_fused(graph, x, I, layer_norm=True), "lstm: layer_norm: expected none"),
    "relu6": (
        lambda graph, x: add_fused(graph, x, I, FusedActivationFunction=3),
        "activation: expected relu or tanh; got",
    ),
    "none": (
        lambda graph, x: add_fused(graph, x, I, FusedActivationFunction=0),
        "activation: expected relu or tanh; got",
    ),
    "projection": (lambda graph, x: add_fused(graph, x, I, proj=4, proj_bias=0.5), "projection bias: expected zeros"),
    "wide": (lambda graph, x: add_fused(graph, x, I, proj=6), "proj_size: expected 0 or a value below hidden_size=5"),
    "diagonal": (lambda graph, x: add_fused(graph, x, I, DiagonalRecurrentTensors=True), "diagonal_recurrent_tensors"),
    "quantised": (quantised, "x: expected float32; got int8"),
    "shape": (other_shape, r"expected shape \(5,\) in ''; got \(6,\)"),
    "computed": (computed, "expected a constant of the model"),
    "nan": (no_number, "expected finite numbers; got NaN"),
    "body": (other_body, "expected a loop whose body is a step of an LSTM of Keras"),
    "huge": (huge, "expected a result of less than"),
    "start": (lambda graph, x: add_loop(graph, x, I, start=1)[0], "expected a loop that counts from 0"),
    "limit": (
        lambda graph, x: add_loop(graph, x, I, limit=3)[0],
        "expected a loop over the 7 steps of x; got one with",
    ),
    "free limit": (
        lambda graph, x: of_any_length(graph, x, limit=7),
        "expected a loop over each step of x; got one with",
    ),
    "limit of a free axis": (lambda graph, x: of_any_length(graph, x, limit=3), "expected a loop over each step of x"),
    "no stored weights": (
        lambda graph, x: without_inputs(graph, "DEQUANTIZE", [], add_fused(graph, x, I, kind="float16")),
        "lstm: expected an input of the operator DEQUANTIZE; got none",
    ),
    "nothing to turn": (
        lambda graph, x: without_inputs(graph, "TRANSPOSE", [], turned(graph, x)),
        "expected an input of the operator TRANSPOSE; got none",
    ),
    "an input left out": (
        lambda graph, x: without_inputs(graph, "TRANSPOSE", [-1, 1], turned(graph, x)),
        "expected an input of the operator TRANSPOSE; got none",
    ),
    "second x": (lambda graph, x: add_both(graph, x, I, second_x=x)[0], "lstm: auxiliary input: expected none"),
    "nan in both": (no_number_in_both, "expected finite numbers; got NaN"),
    "activation of both": (
        lambda graph, x: add_both(graph, x, I, FusedActivationFunction=0)[0],
        "activation: expected relu or tanh; got",
    ),
    "huge x": (huge_fused, "expected a result of less than"),
    "none at all": (lambda graph, x: graph.add("TANH", [x], (T, N, I)), "expected an LSTM; got a model with none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=r"model\.tflite: .*" + message):
        read(tmp_path, one_graph(build))


@pytest.mark.filterwarnings("ignore:.*starts from a state")
def test_damaged_files(tmp_path: Path) -> None:
    """Each cut and each changed word gives an LSTM or one line that names the file; nothing is left waiting."""
    content, rng = one_graph(STACKS["loops"]), np.random.default_rng(0)
    cases = [content[:end] for end in (0, 4, 7, 8, 12, *range(40, len(content), len(content) // 40))]
    for _ in range(300):
        changed, place = bytearray(content), int(rng.integers(len(content) - 4))
        changed[place : place + 4] = rng.choice([bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", rng.bytes(4)])
        cases.append(bytes(changed))
    told = []
    for case in cases:
        try:
            read(tmp_path, case)
        except (TypeError, ValueError) as error:
            told.append(str(error))
    assert len(told) > 40
    assert [text for text in told if "model.tflite: " not in text or "\n" in text] == []


def run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["convert", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output if code else done.stdout


@pytest.mark.parametrize("name", ["plain", "clips", "sum", "two", "behind one"])
def test_the_command_with_both_directions(tmp_path: Path, name: str) -> None:
    """One name is both directions of an LSTM."""
    pytest.importorskip("ai_edge_litert")
    path, out = tmp_path / "model.tflite", tmp_path / "out.safetensors"
    path.write_bytes(one_graph(BOTH[name]))
    assert json.loads(run(path, out, "--verify", "--json"))["largest_difference"] < 1e-6
    rows = json.loads(run("--list", path, "--json"))["lstms"]
    assert len(rows) == 1 + (name in ("two", "behind one")) and "both directions" in rows[-1]["lstm"], rows
    report = json.loads(run(path, out, "--node", rows[-1]["name"], "--verify", "--json"))
    assert report["largest_difference"] < 1e-6 and report["lstm"] == rows[-1]["lstm"]


@pytest.mark.parametrize("name", ["two", "average", "sum and one"])
def test_the_command(tmp_path: Path, name: str) -> None:
    pytest.importorskip("ai_edge_litert")
    path, out = tmp_path / "model.tflite", tmp_path / "out.safetensors"
    path.write_bytes(one_graph(STACKS[name]))
    report = json.loads(run(path, out, "--verify", "--json"))
    assert report["from"] == "tflite" and report["largest_difference"] < 1e-6
    assert report["verified"].startswith("ai_edge_litert ") and " for IN, lstmcore " in report["verified"]
    labels = [row["name"] for row in json.loads(run("--list", path, "--json"))["lstms"]]
    assert labels == {"two": ["lstm", "second"], "average": ["forward", "backward"]}.get(
        name, ["forward", "backward", "last"]
    )
    run(path, out, "--node", labels[0], "--verify")
    assert LSTM.load(out, backend="numpy").input_size == I


def test_the_command_with_the_last_output(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    path, out = tmp_path / "model.tflite", tmp_path / "out.safetensors"

    path.write_bytes(one_graph(lambda graph, x: add_loop(graph, x, I, last=True)[1]))
    assert json.loads(run(path, out, "--verify", "--json"))["largest_difference"] < 1e-6


def test_the_command_refuses(tmp_path: Path) -> None:
    path, out = tmp_path / "model.tflite", tmp_path / "out.safetensors"
    path.write_bytes(one_graph(STACKS["two"])[:2000])
    shown = run(path, out, code=2)
    assert "model.tflite: expected a whole TFLite model; got a damaged one" in shown and shown.count("\n") == 1
    assert not out.exists()
    assert "--to: expected one of lstmcore, torch, onnx, keras; got" in run(path, out, "--to", "tflite", code=2)
