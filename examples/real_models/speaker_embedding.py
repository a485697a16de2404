"""Compare voices with resemblyzer's network, without PyTorch.

``python speaker_embedding.py convert pretrained.pt voice.safetensors`` once, where PyTorch is installed. Then
``VoiceEncoder("voice.safetensors")(mels)`` gives an embedding of norm 1 for each row of mel spectrograms.
"""

from __future__ import annotations

from typing import Any

import click
import numpy as np
from safetensors.numpy import load_file, save_file

from lstmcore import LSTM
from lstmcore.layers import Linear


def convert(source: str, target: str) -> None:
    """Write the network of a checkpoint, which also holds an optimizer's state, as safetensors."""
    import torch

    tensors = torch.load(source, map_location="cpu", weights_only=True)["model_state"]
    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, target)


class VoiceEncoder:
    """Three LSTM layers, and a linear layer on the last state."""

    def __init__(self, path: str, *, backend: str | None = None) -> None:
        self.lstm = LSTM.from_torch(path, "lstm.", batch_first=True, backend=backend)
        self.linear = Linear(256, 256)
        self.linear.load_parameters(load_file(path), "linear.")

    def __call__(self, mels: Any) -> Any:
        """Return embeddings (N, 256) of mel spectrograms (N, frames, 40) in float32."""
        _, (h, _) = self.lstm(mels)
        embedding = np.maximum(self.linear(h[-1]), 0)
        return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)


@click.group(help=__doc__)
def main() -> None:
    """Hold the one command."""


main.command("convert")(click.argument("source")(click.argument("target")(convert)))

if __name__ == "__main__":
    main()
