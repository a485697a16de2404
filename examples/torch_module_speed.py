"""Time `lstmcore.torch.LSTM` beside ``torch.nn.LSTM``: plain rows, and rows of unequal lengths, which PyTorch packs.

``python examples/torch_module_speed.py [THREADS]``. Values are compared before anything is timed; calls alternate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstmcore.torch

#: H = I, N, T.
SIZES = ((16, 32, 100), (64, 32, 100), (128, 8, 300), (256, 1, 100), (128, 1, 1))
ROUNDS, SECONDS = 7, 0.05


def outputs(module: Any, x: Any, lengths: Any) -> Any:
    """Return y, with zeros past a row's end."""
    if lengths is None:
        return module(x)[0]
    if isinstance(module, lstmcore.torch.LSTM):
        return module(x, lengths=lengths)[0]
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return pad_packed_sequence(module(packed)[0], total_length=len(x))[0]


def timed(call: Callable[[], object]) -> float:
    """Return the time of a call in milliseconds, from as many as take `SECONDS`."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS or not count:
        call()
        count += 1
    return 1e3 * spent / count


def compare(hidden: int, rows: int, steps: int, *, ragged: bool, train: bool) -> str:
    """Return a line of the table."""
    torch.manual_seed(0)
    modules = [lstmcore.torch.LSTM(hidden, hidden), torch.nn.LSTM(hidden, hidden)]
    modules[1].load_state_dict(modules[0].state_dict())
    x, lengths = torch.randn(steps, rows, hidden), torch.randint(1, steps + 1, (rows,)) if ragged else None
    torch.testing.assert_close(*(outputs(module, x, lengths) for module in modules), rtol=1e-4, atol=1e-5)

    def call(module: Any) -> None:
        if not train:
            with torch.no_grad():
                outputs(module, x, lengths)
            return
        module.zero_grad()
        outputs(module, x, lengths).sum().backward()

    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for place, module in enumerate(modules):
            times[place].append(timed(lambda module=module: call(module)))  # type: ignore[misc]
    ours, theirs = map(statistics.median, times)
    kind = f"{'training' if train else 'inference'}, {'lengths' if ragged else 'plain'}"
    return f"{hidden:5} {rows:4} {steps:5}  {kind:20} {ours:9.3f} {theirs:9.3f} {theirs / ours:7.2f}"


@click.command(help=__doc__)
@click.argument("threads", type=click.IntRange(1), required=False)
def main(threads: int | None) -> None:
    """Print a table of milliseconds; the last column is PyTorch's time over ours."""
    torch.set_num_threads(threads or torch.get_num_threads())
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s) for PyTorch")
    print("    H    N     T  call                      ours   PyTorch   ratio")
    for size in SIZES:
        for ragged in (False, True):
            for train in (False, True):
                if not (ragged and size[2] == 1):
                    print(compare(*size, ragged=ragged, train=train), flush=True)


if __name__ == "__main__":
    main()
