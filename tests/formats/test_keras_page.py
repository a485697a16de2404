"""docs/howto/from-keras.md: the blocks that the session docs cannot run, since it has no Keras."""

from __future__ import annotations

from pathlib import Path

import pytest

import doc_pages
from lstmcore import registry

pytest.importorskip("torch")
pytest.importorskip("keras")
pytest.importorskip("h5py")

PAGE = doc_pages.ROOT / "docs" / "howto" / "from-keras.md"
BLOCKS = [block for block in doc_pages.blocks(PAGE.read_text("utf-8")) if (block.reason or "").startswith("Keras")]

_START = """
import keras
import numpy as np
from lstmcore import LSTM

x = np.random.default_rng(0).standard_normal((4, 6, 3)).astype("float32")
def made(*layers):
    model = keras.Sequential([keras.Input((None, 3)), *layers])
    model.save("model.keras")
    return model
def answer(model):
    return keras.ops.convert_to_numpy(model(x))
"""
_ONE = "model = made(keras.layers.LSTM(7, return_sequences=True, bias_initializer='uniform', name='lstm'))\n"
_HEAD = """
biases = {'bias_initializer': 'uniform'}
model = made(keras.layers.LSTM(7, **biases), keras.layers.Dense(2, name='head', **biases))
"""
_APART = """
first, last = (keras.layers.LSTM(5, return_sequences=True, name=name) for name in ("lstm", "lstm_1"))
made(first, keras.layers.Dense(5), last)
"""
_INTO = """
lstm = LSTM(3, 7, num_layers=2, batch_first=True, seed=0, backend="numpy")
layers = [keras.layers.LSTM(7, return_sequences=True) for _ in range(2)]
model = made(*layers)
"""
#: Words of a block -> what is there before it, and what holds after it.
AROUND = {
    "LSTM.from_keras": (_ONE, "np.testing.assert_allclose(y, answer(model), atol=1e-6)"),
    "Chain.from_keras": (_ONE, "np.testing.assert_allclose(y, answer(model), atol=1e-6)"),
    "last_output": (_HEAD, "np.testing.assert_allclose(answers, answer(model), atol=1e-6)"),
    "lstmcore convert": (_APART, "assert LSTM.load('lstm.safetensors').stack.hidden_size == 5"),
    "set_weights": (_INTO, "np.testing.assert_allclose(lstm(x)[0], answer(model), atol=1e-6)"),
}


def test_each_block_is_here() -> None:
    assert len(BLOCKS) == len(AROUND)
    assert all(words in block.text for words, block in zip(AROUND, BLOCKS, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:keras")
@pytest.mark.parametrize("words", AROUND)
def test_the_blocks_run(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "numpy")
    block, (before, after) = BLOCKS[list(AROUND).index(words)], AROUND[words]
    parts = ((f"{_START}{before}", "python"), (block.text, block.language), (f"{after}\n", "python"))
    text = "\n".join(f"```{language}\n{code}```\n" for code, language in parts)
    assert doc_pages.run_page(f"{PAGE.name}:{block.line}", text, tmp_path) == 3
