"""`lstmcore.layers` beside PyTorch's layers: outputs and every gradient, from the same state_dict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lstmcore.layers import AttentionPooling, Conv1d, Embedding, Layer, Linear

TOLERANCE = {"float64": 1e-11, "float32": 3e-5}


def arrays(module: Any) -> dict[str, Any]:
    return {f"part.{name}": value.numpy() for name, value in module.state_dict().items()}


def compare(layer: Layer, module: Any, x: Any, theirs: Any, turn: Any = lambda y: y) -> None:
    """Compare outputs and gradients; `theirs` is x for PyTorch, `turn` gives its y our layout."""
    layer.load_parameters({"other.weight": np.zeros(2)} | arrays(module), "part.")
    y, tape = layer.record(x)
    wanted = turn(module(theirs))
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(layer.dtype)
    found = layer.backward(tape, dy)
    wanted.backward(torch.from_numpy(dy))
    close = {"rtol": TOLERANCE[layer.dtype], "atol": TOLERANCE[layer.dtype]}
    np.testing.assert_allclose(y, wanted.detach().numpy(), **close)
    assert y.dtype == layer.dtype and list(found.parameters) == list(layer.parameter_shapes)
    for name, parameter in module.named_parameters():
        assert found.parameters[name].dtype == layer.dtype
        np.testing.assert_allclose(found.parameters[name], parameter.grad.numpy(), **close)
    if found.x is not None:
        np.testing.assert_allclose(found.x, turn(theirs.grad).numpy(), **close)
    assert np.array_equal(layer(x), y)


def real(dtype: str, *shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 4, 3), (3,), (0, 3)], ids=str)
def test_linear(dtype: str, bias: bool, shape: tuple[int, ...]) -> None:
    x = real(dtype, *shape)
    module = torch.nn.Linear(3, 5, bias=bias, dtype=getattr(torch, dtype))
    compare(Linear(3, 5, bias, dtype=dtype), module, x, torch.from_numpy(x).requires_grad_())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["int64", "uint8"])
def test_embedding(dtype: str, kind: str) -> None:
    """Entries that come twice, and ones that do not come."""
    x = np.array([[1, 6, 1], [0, 6, 6]], kind)
    module = torch.nn.Embedding(7, 4, dtype=getattr(torch, dtype))
    compare(Embedding(7, 4, dtype=dtype), module, x, torch.from_numpy(x.astype("int64")))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 3, 0), (5, 2, 3), (1, 1, 0), (9, 4, 0)])
def test_convolution(dtype: str, rows: int, kernel: int, stride: int, padding: int) -> None:
    bias = kernel != 4
    module = torch.nn.Conv1d(3, 5, kernel, stride, padding, bias=bias, dtype=getattr(torch, dtype))
    layer = Conv1d(3, 5, kernel, stride=stride, padding=padding, bias=bias, dtype=dtype)
    x = real(dtype, rows, 3, 9)
    ours = x.transpose(2, 0, 1)
    assert rows == 1 or not ours.flags.c_contiguous
    compare(layer, module, ours, torch.from_numpy(x).requires_grad_(), lambda y: y.permute(2, 0, 1))


class Additive(torch.nn.Module):
    """The attention that `AttentionPooling` describes, as shipped models have it."""

    def __init__(self, width: int, hidden: int, dtype: Any) -> None:
        super().__init__()
        self.W = torch.nn.Linear(width, hidden, bias=False, dtype=dtype)
        self.U = torch.nn.Linear(width, hidden, bias=False, dtype=dtype)
        self.v = torch.nn.Linear(hidden, 1, bias=False, dtype=dtype)

    def forward(self, x: Any) -> Any:
        scores = self.v(torch.tanh(self.W(x)[:, None] + self.U(x)[None])).squeeze(-1)
        return torch.einsum("tsn,snc->tnc", torch.softmax(scores, dim=1), x)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("hidden", [None, 7])
def test_attention(dtype: str, hidden: int | None) -> None:
    x = real(dtype, 6, 4, 5)
    module = Additive(5, hidden or 5, getattr(torch, dtype))
    compare(AttentionPooling(5, hidden, dtype=dtype), module, x, torch.from_numpy(x).requires_grad_())


def test_attention_within_lengths() -> None:
    """A row has the values and gradients that it has alone; padding gets 0, whatever is in it."""
    layer, x, lengths = AttentionPooling(5, dtype="float64", seed=0), real("float64", 6, 4, 5), np.array([6, 2, 0, 5])
    dy = real("float64", 6, 4, 5)[::-1]
    y, tape = layer.record(x, lengths)
    found = layer.backward(tape, dy)
    parts = []
    for row, end in enumerate(lengths):
        alone, own = layer.record(x[:end, row : row + 1])
        parts.append(layer.backward(own, dy[:end, row : row + 1]))
        np.testing.assert_allclose(y[:end, row], alone[:, 0], atol=1e-14)
        np.testing.assert_allclose(found.x[:end, row], parts[-1].x[:, 0], atol=1e-13)
        assert not y[end:, row].any() and not found.x[end:, row].any()
    for name in found.parameters:
        np.testing.assert_allclose(found.parameters[name], sum(part.parameters[name] for part in parts), atol=1e-12)
