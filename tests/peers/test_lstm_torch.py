"""`LSTM` against ``torch.nn.LSTM``: outputs and every gradient over random configurations.

Configuration ``k`` is fixed by its number: ``pytest tests/peers/test_lstm_torch.py -k config17-`` runs one
again. PyTorch has two biases for each gate where there is one here: ours is their sum, and each of theirs has the
gradient of ours. It packs no rows without steps, so lengths start at 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import Backend
from lstmcore.lstm import LSTM
from stacks import Array, NaiveBackend

# PyTorch warns once that its fast path has no projection; its results are the same
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

CONFIGURATIONS = 240
#: Our name -> PyTorch's; ``bias`` is the sum of its two.
NAMES = {"weight_x": "weight_ih", "weight_h": "weight_hh", "bias": "bias_ih", "weight_proj": "weight_hr"}


@dataclass(frozen=True)
class Problem:
    """Arguments of both constructors, sizes, and the numbers of a call in float32, which both precisions hold."""

    arguments: dict[str, Any]
    steps: int
    batch: int | None
    lengths: Array | None
    state: tuple[Array, Array] | None
    x: Array
    dy: Array
    dstate: tuple[Array, Array]
    biases: dict[str, Array]

    def __str__(self) -> str:
        ragged = None if self.lengths is None else self.lengths.tolist()
        given = "given" if self.state else "zero"
        return f"{self.arguments}, T={self.steps}, N={self.batch}, lengths={ragged}, initial state {given}"


@lru_cache(maxsize=4)
def problem(number: int) -> Problem:
    """Return configuration `number`; the first ones vary directions, projection, bias, layout, lengths and state."""
    rng = np.random.default_rng((20261123, number))
    both, projected, unbiased, batch_first, ragged, stateless = (bool(number >> bit & 1) for bit in range(6))
    hidden = int(rng.integers(2, 24))
    arguments = {
        "input_size": int(rng.integers(1, 20)),
        "hidden_size": hidden,
        "num_layers": int(rng.integers(1, 4)),
        "bias": not unbiased,
        "batch_first": batch_first,
        "bidirectional": both,
        "proj_size": int(rng.integers(1, hidden)) if projected else 0,
    }
    steps = int(rng.integers(1, 30))
    batch = None if number % 17 == 16 else int(rng.integers(1, 7))  # None: one sequence without a batch axis
    lengths = rng.integers(1, steps + 1, batch) if ragged and batch is not None else None
    rows = () if batch is None else (batch,)
    layout = (*rows, steps) if batch_first and rows else (steps, *rows)
    entries, width = arguments["num_layers"] * (1 + both), arguments["proj_size"] or hidden

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    def state() -> tuple[Array, Array]:
        return normal(entries, *rows, width), normal(entries, *rows, hidden)

    suffixes = () if unbiased else ("", "_reverse")[: 1 + both]
    layers = range(arguments["num_layers"])
    biases = {f"bias_hh_l{layer}{suffix}": normal(4 * hidden) for layer in layers for suffix in suffixes}
    return Problem(
        arguments,
        steps,
        batch,
        lengths,
        None if stateless else state(),
        normal(*layout, arguments["input_size"]),
        normal(*layout, (1 + both) * width),
        state(),
        biases,
    )


@lru_cache(maxsize=4)
def parameters(number: int) -> dict[str, Array]:
    """Return our parameters in float32: U(-2 / sqrt(H), 2 / sqrt(H)), so that the gates leave their linear range."""
    drawn = LSTM(**problem(number).arguments, seed=number, backend=NaiveBackend()).parameters
    return {name: 2 * value for name, value in drawn.items()}


@lru_cache(maxsize=4)
def theirs(number: int, dtype: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return PyTorch's outputs, and its gradients under our names."""
    import torch

    given = problem(number)
    module = torch.nn.LSTM(**given.arguments).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(
                torch.tensor(given.biases[name] if name in given.biases else parameters(number)[_our_name(name)])
            )

    def tensor(array: Array) -> torch.Tensor:
        return torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=True)

    x = tensor(given.x)
    state = None if given.state is None else tuple(map(tensor, given.state))
    if given.lengths is None:
        y, last = module(x, state)
    else:
        rows_first = given.arguments["batch_first"]
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(given.lengths), batch_first=rows_first, enforce_sorted=False
        )
        packed_y, last = module(packed, state)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_y, batch_first=rows_first, total_length=given.steps)
    with torch.no_grad():
        incoming = [tensor(given.dy), *map(tensor, given.dstate)]
    torch.autograd.backward([y, *last], incoming)
    outputs = {"y": y, "h_n": last[0], "c_n": last[1]}
    gradients = {"x": x.grad}
    if state is not None:
        gradients |= {"h_0": state[0].grad, "c_0": state[1].grad}
    for name, value in module.named_parameters():
        gradients[_our_name(name)] = value.grad
    return _numpy(outputs), _numpy(gradients)


def _our_name(name: str) -> str:
    """Return our name of one of PyTorch's parameters; ``bias_hh``, which we have not, keeps its name."""
    base, _, suffix = name.rpartition("_l")
    return f"{next((ours for ours, torchs in NAMES.items() if torchs == base), base)}_l{suffix}"


def _numpy(tensors: Mapping[str, Any]) -> dict[str, Array]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def mine(number: int, backend: str | Backend, dtype: str) -> tuple[dict[str, Array], dict[str, Array]]:
    given = problem(number)
    lstm = LSTM(**given.arguments, dtype=dtype, backend=backend, seed=0)
    loaded = {name: value.astype(dtype) for name, value in parameters(number).items()}
    for name, value in given.biases.items():
        loaded[name.replace("bias_hh", "bias")] += value
    lstm.load_parameters(loaded)

    def pair(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[0].astype(dtype), state[1].astype(dtype)

    state = None if given.state is None else pair(given.state)
    x = given.x.astype(dtype)
    y, last, tape = lstm.record(x, state, given.lengths)
    plain, plain_last = lstm(x, state, given.lengths)
    found = lstm.backward(tape, given.dy.astype(dtype), pair(given.dstate))
    gradients = {"x": found.x, **found.parameters}
    gradients |= {name: found.parameters[name.replace("bias_hh", "bias")] for name in given.biases}
    if state is not None:
        gradients |= {"h_0": found.state.h, "c_0": found.state.c}
    outputs = {"y": y, "h_n": last.h, "c_n": last.c}
    outputs |= {"plain y": plain, "plain h_n": plain_last.h, "plain c_n": plain_last.c}
    return outputs, gradients


def errors(found: Mapping[str, Array], exact: Mapping[str, Array]) -> dict[str, float]:
    """Return the largest error of each array, relative to its largest number."""
    relative = {}
    for name, value in found.items():
        wanted = exact[name.removeprefix("plain ")]
        assert value.shape == wanted.shape, name
        assert np.isfinite(value).all(), name
        scale = float(np.abs(wanted).max())
        relative[name] = float(np.abs(value - wanted).max()) / scale if scale else float(value.any())
    return relative


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("number", range(CONFIGURATIONS), ids=lambda number: f"config{number}-")
def test_float64(backend: str, number: int) -> None:
    for found, exact in zip(mine(number, backend, "float64"), theirs(number, "float64"), strict=True):
        assert {name.removeprefix("plain ") for name in found} == exact.keys()
        for name, error in errors(found, exact).items():
            assert error <= 1e-10, f"{backend}, {name}: relative error {error:.3g}; {problem(number)}"


@pytest.mark.parametrize("backend", ["naive", "numpy"])
@pytest.mark.parametrize("number", range(CONFIGURATIONS), ids=lambda number: f"config{number}-")
def test_float32(backend: str, number: int) -> None:
    """Within the rule of the conformance suite: four times what another float32 evaluation loses, and two epsilons.

    That evaluation is PyTorch's own, and the right answer is PyTorch's in float64, on the same numbers. What it loses
    is taken over all outputs, or all gradients, since a single small array may come out exact by luck. Our bias is
    rounded once more, where the two are added: an error of half an epsilon of each, which both terms cover.
    """
    chosen = NaiveBackend() if backend == "naive" else backend
    everything = (mine(number, chosen, "float32"), theirs(number, "float32"), theirs(number, "float64"))
    for found, peer, exact in zip(*everything, strict=True):
        assert {name.removeprefix("plain ") for name in found} == exact.keys()
        budget = 4 * (max(errors(peer, exact).values()) + 2 * 2.0**-23)
        for name, error in errors(found, exact).items():
            assert error <= budget, (
                f"{backend}, {name}: relative error {error:.3g}, {error / budget:.2f} of the budget; {problem(number)}"
            )
