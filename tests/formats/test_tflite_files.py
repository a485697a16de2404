"""Files of TFLite that are damaged, that have LSTMs of the same name, and that converters of others made.

The files of `converted` have random weights. onnx2tf 2.6.9 made one of an ONNX model of PyTorch (two layers, both
directions, N = 1). litert-converter 0.5.0 made the other of a `jax.lax.scan`; it does not move the body of a loop into
a graph of its own, as TFLite needs it, so that was done by hand in between.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lstmcore.cli import main
from lstmcore.dialects.tflite_reader import open_nodes, read_tflite

pytest.importorskip("tflite")

from tflite_models import SIZES, Built, Model, add_fused, one_graph

T, N, I, H = SIZES
CONVERTED = Path(__file__).parent / "converted"


@pytest.mark.parametrize(
    ("name", "layers"),
    [("loop_of_jax", "LSTM 3 to 5"), ("both_directions_of_onnx", "LSTM 3 to 5, 2 layers, both directions")],
)
def test_files_of_converters(tmp_path: Path, name: str, layers: str) -> None:
    """The whole model in LiteRT and its LSTMs here give the same outputs."""
    pytest.importorskip("ai_edge_litert")
    path, out = CONVERTED / f"{name}.tflite", tmp_path / "out.safetensors"
    done = CliRunner().invoke(main, ["convert", str(path), str(out), "--verify", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["largest_difference"] < 1e-6 and report["lstm"] == f"{layers}; float32"


def test_damaged_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read when the LSTM is, and may lie outside of the file."""
    path = tmp_path / "model.tflite"
    path.write_bytes(one_graph(lambda graph, x: add_fused(graph, x, I)))
    (node,) = open_nodes(path)
    node.operator.table.Pos = 2**30
    monkeypatch.setattr("lstmcore.dialects.tflite_reader.open_nodes", lambda path: [node])
    with pytest.raises(ValueError, match=r"model\.tflite: lstm: expected a whole operator; got a damaged file: "):
        read_tflite(path)


def test_names_of_several(tmp_path: Path) -> None:
    """A number that is added to a name that two LSTMs share makes no name of a third."""

    def build(graph: Built, x: int) -> int:
        for width, name in ((I, "a"), (H, "a"), (H, "a#2"), (H, "a")):
            x = add_fused(graph, x, width, name)
        return x

    path = tmp_path / "model.tflite"
    path.write_bytes(one_graph(build))
    assert [node.label for node in open_nodes(path)] == ["a", "a#3", "a#2", "a#4"]
    assert read_tflite(path, "a#2").layers.input_size == H


def test_parts_that_overlap(tmp_path: Path) -> None:
    """A few bytes may stand for any number of names and places: the reader gives up early."""
    model = Model()
    graph = model.graph()
    for _ in range(50):
        graph.tensor((T, N, I), name="x" * 5000)  # one string in the file
    content = model.content()
    assert len(content) < 50 * 5000 // 4
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.tflite: expected a whole TFLite model; .*: parts that overlap"):
        read_tflite(path)
