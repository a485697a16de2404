"""The NumPy and Numba backends beside the tutorials' listing and PyTorch; results are compared before any timing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tutorial

from lstmcore import LSTM

#: T, N, I, H
GRID = [
    (100, 1, 64, 128),
    (50, 16, 64, 128),
    (50, 16, 128, 256),
    (50, 32, 256, 512),
    (50, 64, 64, 64),
    (100, 64, 128, 128),
    (50, 64, 256, 256),
]


def _pair(shape: tuple[int, int, int, int], who: str) -> tuple[LSTM, Any]:
    steps, batch, width, hidden = shape
    lstm = LSTM(width, hidden, backend=who if who in ("numpy", "numba") else "numpy", seed=0)
    return lstm, np.random.default_rng(1).normal(size=(steps, batch, width)).astype(np.float32)


def _torch(lstm: LSTM, width: int, hidden: int) -> Any:
    torch = pytest.importorskip("torch")
    order = {"weight_ih_l0": "weight_x_l0", "weight_hh_l0": "weight_h_l0", "bias_ih_l0": "bias_l0"}
    peer = torch.nn.LSTM(width, hidden)
    with torch.no_grad():
        for theirs, ours in order.items():
            getattr(peer, theirs).copy_(torch.tensor(lstm.parameters[ours]))
        peer.bias_hh_l0.zero_()
    return torch, peer


@pytest.mark.parametrize("who", ["tutorial", "numpy", "numba"])
@pytest.mark.benchmark(group="tutorial, T=50 N=16 I=64 H=128")
def test_tutorial(benchmark: Any, who: str) -> None:
    lstm, x = _pair((50, 16, 64, 128), who)
    np.testing.assert_allclose(lstm(x)[0], tutorial.forward(lstm.parameters, x), rtol=0, atol=2e-5)
    benchmark(tutorial.forward, lstm.parameters, x) if who == "tutorial" else benchmark(lstm, x)


@pytest.mark.parametrize("who", ["torch", "numpy", "numba"])
@pytest.mark.parametrize("shape", GRID, ids=str)
def test_inference(benchmark: Any, shape: tuple[int, int, int, int], who: str) -> None:
    benchmark.group = f"inference {shape}"
    lstm, x = _pair(shape, who)
    torch, peer = _torch(lstm, shape[2], shape[3])
    with torch.inference_mode():
        given = torch.tensor(x)
        np.testing.assert_allclose(lstm(x)[0], peer(given)[0].numpy(), rtol=0, atol=2e-5)
        benchmark(peer, given) if who == "torch" else benchmark(lstm, x)


@pytest.mark.parametrize("who", ["torch", "numpy", "numba"])
@pytest.mark.parametrize("shape", GRID, ids=str)
def test_training(benchmark: Any, shape: tuple[int, int, int, int], who: str) -> None:
    benchmark.group = f"forward and backward {shape}"
    lstm, x = _pair(shape, who)
    torch, peer = _torch(lstm, shape[2], shape[3])
    given = torch.tensor(x, requires_grad=True)
    dy = np.random.default_rng(2).normal(size=(*shape[:2], shape[3])).astype(np.float32)

    def theirs() -> Any:
        peer.zero_grad()
        given.grad = None
        peer(given)[0].backward(torch.tensor(dy))
        return given.grad

    def ours() -> Any:
        _, _, tape = lstm.record(x)
        return lstm.backward(tape, dy).x

    expected = theirs().numpy()
    np.testing.assert_allclose(ours(), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    benchmark(theirs if who == "torch" else ours)
