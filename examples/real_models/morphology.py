"""Tag the letters of Uzbek words with uzmorph-nn's network, without PyTorch.

``python morphology.py convert morph_bilstm.pth morphology.safetensors`` once, where PyTorch is installed; then
``python morphology.py morphology.safetensors char_vocab.json tag_vocab.json WORD ...``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors.numpy import load_file, save_file

from lstmcore import LSTM
from lstmcore.layers import Embedding, Linear

STEPS = 30


def convert(source: str, target: str) -> None:
    """Write the tensors of a state_dict as safetensors."""
    import torch

    tensors = torch.load(source, map_location="cpu", weights_only=True)
    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, target)


class Tagger:
    """An embedding of letters, two bidirectional LSTM layers, a linear layer."""

    def __init__(self, path: str, letters: str, tags: str, *, backend: str | None = None) -> None:
        tensors = load_file(path)
        self.letters = json.loads(Path(letters).read_text("utf-8"))
        self.tags = {number: tag for tag, number in json.loads(Path(tags).read_text("utf-8")).items()}
        self.embedding, self.linear = Embedding(len(self.letters), 64), Linear(128, len(self.tags))
        self.embedding.load_parameters(tensors, "char_embeddings.")
        self.linear.load_parameters(tensors, "hidden2tag.")
        self.lstm = LSTM.from_torch(path, "lstm.", batch_first=True, backend=backend)

    def scores(self, words: Sequence[str]) -> Any:
        """Return (N, 30, tags): the network reads padding too, as its authors run it."""
        unknown, padding = self.letters["UNK"], self.letters["PAD"]
        rows = [[self.letters.get(letter, unknown) for letter in word[:STEPS]] for word in words]
        numbers = np.array([row + [padding] * (STEPS - len(row)) for row in rows])
        return self.linear(self.lstm(self.embedding(numbers))[0])

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        """Return a tag for each letter of each word."""
        best = self.scores(words).argmax(axis=-1)
        return [[self.tags[number] for number in row[: len(word)]] for row, word in zip(best, words, strict=True)]


@click.command(help=__doc__)
@click.argument("words", nargs=-1, required=True)
def main(words: tuple[str, ...]) -> None:
    """Convert the network, or use it."""
    if words[0] == "convert":
        convert(*words[1:])
    else:
        for word, tags in zip(words[3:], Tagger(*words[:3])(words[3:]), strict=True):
            click.echo(" ".join((word, *tags)))


if __name__ == "__main__":
    main()
