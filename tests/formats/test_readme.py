"""README.md: the lines that take weights from other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import doc_pages
from lstmcore import LSTM

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
pytest.importorskip("onnx")
pytest.importorskip("h5py")
pytest.importorskip("tflite")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:keras")
def test_the_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads a file that its library wrote, or that this one wrote for it."""
    monkeypatch.chdir(tmp_path)
    lines = next(
        block.text
        for block in doc_pages.blocks((doc_pages.ROOT / "README.md").read_text("utf-8"))
        if "from_torch" in block.text
    )
    module = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 5)})})
    torch.save(module.state_dict(), "encoder.pt")
    LSTM(3, 6, seed=0).to_onnx("model.onnx")
    keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(7)]).save("model.keras")
    from tflite_models import add_fused, one_graph

    Path("model.tflite").write_bytes(one_graph(lambda graph, x: add_fused(graph, x, 3, hidden=8)))
    found = []
    for line in lines.splitlines():
        namespace = {"LSTM": LSTM}
        exec(line, namespace)
        found.append(namespace["lstm"])
    assert [one.stack.hidden_size for one in found] == [5, 6, 7, 8]
    theirs = module["encoder"]["lstm"].weight_ih_l0.detach().numpy()
    np.testing.assert_array_equal(found[0].parameters["weight_x_l0"], theirs)
