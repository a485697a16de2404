"""Training on sequences of unequal length: lstmcore beside PyTorch's packed sequences and its padded ones, in turn.

    python examples/unequal_lengths_against_torch.py [--steps 1000] [--rounds 5] [--threads 1]

Lengths are drawn from 1 to T. Forward and backward of one layer are timed, after outputs and gradients were compared.
PyTorch's padded call computes the padding too and knows no lengths, so its final states are others.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

BATCH, INPUTS, HIDDEN = 32, 64, 128


def run_lstmcore(x: Any, lengths: Any, dy: Any) -> tuple[Any, Callable[[], Any]]:
    """Return the LSTM, and a function that returns the gradients."""
    from lstmcore import LSTM

    lstm = LSTM(INPUTS, HIDDEN, seed=0)

    def step() -> Any:
        _, _, tape = lstm.record(x, lengths=lengths)
        return lstm.backward(tape, dy)

    return lstm, step


def run_torch(lstm: Any, x: Any, lengths: Any, dy: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return functions that return PyTorch's gradients of x and the weights: packed, and padded without lengths."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    layer = torch.nn.LSTM(INPUTS, HIDDEN)
    names = ("weight_x_l0", "weight_h_l0", "bias_l0")
    with torch.no_grad():
        for target, name in zip((layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0), names, strict=True):
            target.copy_(torch.tensor(lstm.parameters[name]))
        layer.bias_hh_l0.zero_()
    inputs, incoming = torch.tensor(x, requires_grad=True), torch.tensor(dy)
    sizes = torch.tensor(lengths)
    wanted = (inputs, layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0)

    def packed() -> Any:
        y, _ = layer(pack_padded_sequence(inputs, sizes, enforce_sorted=False))
        y, _ = pad_packed_sequence(y, total_length=len(x))
        return torch.autograd.grad((y * incoming).sum(), wanted)

    def padded() -> Any:
        return torch.autograd.grad((layer(inputs)[0] * incoming).sum(), wanted)

    return packed, padded


def timed(step: Callable[[], Any]) -> float:
    """Return the seconds that a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--steps", type=click.IntRange(2), default=1000)
@click.option("--rounds", type=click.IntRange(1), default=5)
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count() or 1)
def main(steps: int, rounds: int, threads: int) -> None:
    """Compare values, then run the three in turn and tell the medians and their ratios."""
    os.environ["LSTMCORE_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    x = random.normal(size=(steps, BATCH, INPUTS)).astype(np.float32)
    lengths = random.integers(1, steps + 1, size=BATCH)
    dy = (
        random.normal(size=(steps, BATCH, HIDDEN)).astype(np.float32) * (np.arange(steps)[:, None] < lengths)[..., None]
    )
    lstm, ours = run_lstmcore(x, lengths, dy)
    packed, padded = run_torch(lstm, x, lengths, dy)
    gradients = ours()
    for own, other in zip((gradients.x, *gradients.parameters.values()), packed(), strict=True):
        np.testing.assert_allclose(own, other.numpy(), atol=1e-4 * np.abs(own).max())
    padded()
    rows = [[timed(step) for step in (ours, packed, padded)] for _ in range(rounds)]
    for name, place in (("lstmcore", 0), ("packed", 1), ("padded, no lengths", 2)):
        seconds = statistics.median(row[place] for row in rows)
        ratio = statistics.median(row[place] / row[0] for row in rows)
        click.echo(f"{name:20} {1e3 * seconds:9.1f} ms   {ratio:6.2f} times ours")


if __name__ == "__main__":
    main()
