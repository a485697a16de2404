"""Add the vowel signs to Arabic text with arabic-diacritizer's network, without PyTorch.

``python diacritics.py convert bilstm_best.pt diacritics.safetensors`` once, where PyTorch is installed; then
``python diacritics.py diacritics.safetensors TEXT``.
"""

from __future__ import annotations

from typing import Any
from unicodedata import normalize

import click
import numpy as np
from safetensors.numpy import load_file, save_file

from lstmcore import LSTM
from lstmcore.layers import AttentionPooling, Embedding, Linear

LETTERS = "ءآأؤإئابةتثجحخدذرزسشصضطظعغـفقكلمنهوي .,،؛:؟!()-\"'\n"
FATHA, DAMMA, KASRA, SUKUN, SHADDA, *TANWIN = tuple("\u064e\u064f\u0650\u0652\u0651\u064b\u064c\u064d")
VOWELS = [FATHA, DAMMA, KASRA]
SIGNS = ["", *VOWELS, SUKUN, SHADDA, *TANWIN, *(SHADDA + sign for sign in (*VOWELS, *TANWIN))]
UNKNOWN, FIRST = 1, 4


def convert(source: str, target: str) -> None:
    """Write the tensors of a state_dict, which was saved on a GPU, as safetensors."""
    import torch

    tensors = torch.load(source, map_location="cpu", weights_only=True)
    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, target)


class Diacritizer:
    """An embedding of letters, three bidirectional LSTM layers, attention over the text, a linear layer."""

    def __init__(self, path: str, *, backend: str | None = None) -> None:
        tensors = load_file(path)
        self.numbers = {letter: number for number, letter in enumerate(LETTERS, FIRST)}
        self.embedding, self.attention = Embedding(FIRST + len(LETTERS), 128), AttentionPooling(512)
        self.linear = Linear(512, len(SIGNS))
        layers = {"embedding.": self.embedding, "attention.": self.attention, "classifier.": self.linear}
        for prefix, layer in layers.items():
            layer.load_parameters(tensors, prefix)
        self.lstm = LSTM.from_torch(path, "lstm.", backend=backend)

    def scores(self, text: str) -> Any:
        """Return (letters, signs) for a text without signs."""
        numbers = np.array([[self.numbers.get(letter, UNKNOWN)] for letter in text])
        return self.linear(self.attention(self.lstm(self.embedding(numbers))[0]))[:, 0]

    def __call__(self, text: str) -> str:
        """Return the text with signs; those that it has are replaced."""
        plain = "".join(letter for letter in normalize("NFKC", text) if not "\u064b" <= letter <= "\u0652")
        signs = self.scores(plain).argmax(axis=1)
        return normalize("NFKC", "".join(letter + SIGNS[sign] for letter, sign in zip(plain, signs, strict=True)))


@click.command(help=__doc__)
@click.argument("words", nargs=-1, required=True)
def main(words: tuple[str, ...]) -> None:
    """Convert the network, or use it."""
    if words[0] == "convert":
        convert(*words[1:])
    else:
        click.echo(Diacritizer(words[0])(words[1]))


if __name__ == "__main__":
    main()
