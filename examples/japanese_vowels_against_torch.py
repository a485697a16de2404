"""The Japanese Vowels run of the README, and the same model, data, batches and optimizer in PyTorch, in turn.

    python examples/japanese_vowels_against_torch.py [--epochs 60] [--repeats 3] [--threads 2]

Both train a bidirectional LSTM of 100 units and a linear layer on its final states, with AdamW, clipped gradients and
noise on the inputs, and look at the validation set after every epoch. PyTorch gets its packed sequences.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import click
import numpy as np


def ours(epochs: int) -> tuple[float, float]:
    """Seconds of the training, and the share of the test sequences that are recognised."""
    from lstmcore import LSTM
    from lstmcore.datasets import load
    from lstmcore.training import AdamW, Readout, SequenceModel, Trainer

    data = load("japanese-vowels")
    start = time.perf_counter()
    lstm = LSTM(12, 100, bidirectional=True, backend="numba", seed=0)
    model = SequenceModel(lstm, Readout(200, 9, activation="softmax", steps="last", seed=0))
    trainer = Trainer(model, optimizer=AdamW(0.003, weight_decay=0.1), epochs=epochs, input_noise=0.6, quiet=True)
    trainer.fit(data.train.inputs, data.train.targets)
    seconds = time.perf_counter() - start
    found = [scores.argmax() for scores in model.predict(data.test.inputs)]
    return seconds, float(np.mean(np.array(found) == data.test.targets))


def theirs(epochs: int, threads: int) -> tuple[float, float]:  # long: the loop as a user of PyTorch writes it
    """Train the same model with PyTorch, and return the seconds and the accuracy."""
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence

    from lstmcore.datasets import load
    from lstmcore.training import Standardizer, batches_by_length, pad, split

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = load("japanese-vowels")
    start = time.perf_counter()
    wanted = np.asarray(data.train.targets)
    fit, check = split(len(wanted), 0.1, seed=0, classes=wanted)
    scaling = Standardizer.fit(data.train.inputs[row] for row in fit)
    inputs = [scaling.apply(sequence, "float32") for sequence in data.train.inputs]
    lstm, readout = nn.LSTM(12, 100, bidirectional=True), nn.Linear(200, 9)
    parameters = [*lstm.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, 0.003, weight_decay=0.1)
    criterion = nn.CrossEntropyLoss()

    def scores(sequences: list[Any]) -> Any:
        x, lengths = pad(sequences)
        packed = pack_padded_sequence(torch.from_numpy(x), torch.from_numpy(lengths), enforce_sorted=False)
        _, (h, _) = lstm(packed)
        return readout(torch.cat((h[0], h[1]), dim=1))

    best, kept = float("inf"), []
    for epoch in range(1, epochs + 1):
        noise = np.random.default_rng(np.random.SeedSequence((0, epoch, 1)))
        for batch in batches_by_length([len(inputs[row]) for row in fit], 32, seed=0, epoch=epoch):
            rows = fit[batch]
            x = [inputs[row] + (0.6 * noise.standard_normal(inputs[row].shape)).astype(np.float32) for row in rows]
            optimizer.zero_grad()
            criterion(scores(x), torch.from_numpy(wanted[rows])).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        with torch.inference_mode():
            loss = float(criterion(scores([inputs[row] for row in check]), torch.from_numpy(wanted[check])))
        if loss < best:
            best, kept = loss, [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        found = scores([scaling.apply(sequence, "float32") for sequence in data.test.inputs]).argmax(dim=1).numpy()
    return seconds, float(np.mean(found == np.asarray(data.test.targets)))


@click.command(help=__doc__)
@click.option("--epochs", type=click.IntRange(1), default=60)
@click.option("--repeats", type=click.IntRange(1), default=3)
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count() or 1)
def main(epochs: int, repeats: int, threads: int) -> None:
    """Run both in turn and tell the medians and their ratio."""
    os.environ["LSTMCORE_NUM_THREADS"] = str(threads)
    ours(1), theirs(1, threads)  # what is compiled or set up once
    runs = [(ours(epochs), theirs(epochs, threads)) for _ in range(repeats)]
    own, other = ([run[k][0] for run in runs] for k in (0, 1))
    click.echo(f"lstmcore: {statistics.median(own):.2f} s, accuracy {runs[0][0][1]:.2%}")
    click.echo(f"PyTorch:  {statistics.median(other):.2f} s, accuracy {runs[0][1][1]:.2%}")
    click.echo(f"ratio:    {statistics.median(other) / statistics.median(own):.2f}")


if __name__ == "__main__":
    main()
