"""Find speech in a recording with silero-vad's network, frame by frame, without PyTorch and ONNX Runtime.

``python voice_activity.py convert silero_vad.jit vad.safetensors`` once, with PyTorch; then call `segments`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import click
import numpy as np
from safetensors.numpy import load_file, save_file

from lstmcore import LSTM
from lstmcore.layers import Conv1d

RATE, FRAME, CONTEXT = 16000, 512, 64


def convert(source: str, target: str) -> None:
    """Write the 16 kHz network of silero's TorchScript file as safetensors."""
    import torch

    tensors = torch.jit.load(source, map_location="cpu").state_dict()
    mine = {name.removeprefix("_model."): tensor for name, tensor in tensors.items() if name.startswith("_model.")}
    save_file({name + "_l0" * (".rnn." in name): tensor.numpy() for name, tensor in mine.items()}, target)


class VoiceActivity:
    """The probability of speech in each frame of 512 samples at 16 kHz; the state goes from frame to frame."""

    def __init__(self, path: str, *, backend: str | None = None) -> None:
        tensors = load_file(path)
        self.stft = Conv1d(1, 258, 256, stride=128, bias=False)
        self.stft.load_parameters({"weight": tensors["stft.forward_basis_buffer"]})
        sizes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        self.encoder = [Conv1d(width, outputs, 3, stride=stride, padding=1) for width, outputs, stride in sizes]
        for index, layer in enumerate(self.encoder):
            layer.load_parameters(tensors, f"encoder.{index}.reparam_conv.")
        self.lstm = LSTM.from_torch(path, "decoder.rnn.", backend=backend)
        self.decoder = Conv1d(128, 1, 1)
        self.decoder.load_parameters(tensors, "decoder.decoder.2.")
        self.state: Any = None
        self.samples = np.zeros((CONTEXT + FRAME + CONTEXT, 1, 1), np.float32)

    def __call__(self, frame: Any) -> float:
        """Return the probability of speech in the next frame, 512 float32 numbers in -1 to 1."""
        samples, end = self.samples[:, 0, 0], CONTEXT + FRAME
        samples[:CONTEXT] = samples[FRAME:end]
        samples[CONTEXT:end] = frame
        samples[end:] = samples[end - 2 : end - 2 - CONTEXT : -1]  # reflected
        parts = self.stft(self.samples)
        x = np.sqrt(parts[:, :, :129] ** 2 + parts[:, :, 129:] ** 2)
        for layer in self.encoder:
            x = np.maximum(layer(x), 0)
        y, self.state = self.lstm(x, self.state)
        return 1 / (1 + float(np.exp(-self.decoder(np.maximum(y, 0))[0, 0, 0])))


def segments(probabilities: Iterable[float], samples: int) -> list[tuple[int, int]]:
    """Return (first, last) samples of speech: ``segments(map(VoiceActivity(path), frames), count of samples)``."""
    found, start, silence = [], -1, 0
    for at, probability in ((FRAME * index, value) for index, value in enumerate(probabilities)):
        if probability >= 0.5:
            start, silence = at if start < 0 else start, 0
        elif probability < 0.35 and start >= 0:
            silence = silence or at
            if at - silence >= RATE // 10:
                found.append((start, silence))
                start, silence = -1, 0
    found = [part for part in (*found, (start, samples)) if part[0] >= 0 and part[1] - part[0] > RATE // 4]
    pads = [min(480, (second[0] - first[1]) // 2) for first, second in pairwise(found)]
    around = zip(found, [480, *pads], [*pads, 480], strict=False)
    return [(max(0, first - before), min(samples, last + after)) for (first, last), before, after in around]


@click.group(help=__doc__)
def main() -> None:
    """Hold the one command."""


main.command("convert")(click.argument("source")(click.argument("target")(convert)))

if __name__ == "__main__":
    main()
