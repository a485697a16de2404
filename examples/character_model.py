"""Learn to write like a Python module: the next character from all before it, by truncated backpropagation.

Install it by ``pip install .`` and run ``python examples/character_model.py``.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from typing import Any

import click
import numpy as np

from lstmcore import LSTM
from lstmcore.layers import Embedding
from lstmcore.training import Adam, Readout, SequenceModel, Trainer

#: Characters of a sequence, and of the part that a gradient goes back through.
LENGTH, PART = 240, 40
#: Numbers that stand for a character.
WIDTH = 24


@click.command(help=__doc__)
def main() -> None:
    """Train on the source of `textwrap`, and let the model write some of its own."""
    text = inspect.getsource(textwrap)
    characters = sorted(set(text))
    codes = np.array([characters.index(character) for character in text])
    starts = range(0, len(codes) - LENGTH, LENGTH)
    inputs = [codes[start : start + LENGTH] for start in starts]
    targets = [codes[start + 1 : start + 1 + LENGTH] for start in starts]

    lstm, embedding = LSTM(WIDTH, 96, seed=0), Embedding(len(characters), WIDTH, seed=0)
    readout = Readout.of(lstm, len(characters), steps="every", activation="softmax", seed=0)
    model = SequenceModel(lstm, readout, embedding=embedding)
    trainer = Trainer(model, optimizer=Adam(0.01), epochs=15, batch_size=16, truncate=PART, seed=0, quiet=True)
    history = trainer.fit(inputs, targets)
    shares = np.bincount(codes) / len(codes)
    by_frequency = float(-(shares * np.log2(shares)).sum())
    bits = (history.epochs[(history.best or 1) - 1].validation_loss or math.inf) / math.log(2)
    click.echo(f"bits a character on held-out text: {bits:.2f}; by frequency alone {by_frequency:.2f}")
    click.echo(write(model, embedding, characters, "    def ", 300))
    if bits > 0.75 * by_frequency:
        raise SystemExit(f"expected far fewer than {by_frequency:.2f} bits a character; got {bits:.2f}")


def write(model: SequenceModel, embedding: Embedding, characters: list[str], begin: str, count: int) -> str:
    """Return `begin` and `count` characters after it, each drawn by the model's probabilities, with the state kept."""
    random = np.random.default_rng(0)
    text: str = begin
    state: Any = None
    codes = [characters.index(character) for character in begin]
    for _ in range(count):
        y, state = model.lstm(embedding(np.array(codes)[:, None]), state)
        shares = model.readout(y[-1, 0]).astype(np.float64)
        drawn = random.choice(len(characters), p=shares / shares.sum())
        text += characters[drawn]
        codes = [drawn]
    return text


if __name__ == "__main__":
    main()
