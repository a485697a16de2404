"""Files of TFLite that are damaged, or have LSTMs of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstmcore.dialects.tflite_reader import open_nodes, read_tflite

pytest.importorskip("tflite")

from tflite_models import SIZES, Built, Model, add_fused, one_graph

T, N, I, H = SIZES


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
