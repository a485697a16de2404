"""`Chain` against PyTorch: layers of other sizes, a reversed one and merges, every output and gradient in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore.chain import Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.lstm import LSTM

torch = pytest.importorskip("torch")
# PyTorch warns once that its fast path has no projection; its results are the same
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
T, N = 9, 4


def of_torch(layer: Any) -> dict[str, Any]:
    """Return the parameters of a ``torch.nn.LSTM`` under our names."""
    values = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    found = {}
    for name, value in values.items():
        if name.startswith("bias_ih"):
            found[name.replace("bias_ih", "bias")] = value + values[name.replace("bias_ih", "bias_hh")]
        elif not name.startswith("bias"):
            kind, _, rest = name.removeprefix("weight_").partition("_")
            found[f"weight_{ {'ih': 'x', 'hh': 'h', 'hr': 'proj'}[kind] }_{rest}"] = value
    return found


@pytest.mark.parametrize("merge", ["sum", "mul", "average", "concat"])
@pytest.mark.parametrize("ragged", [False, True])
def test_mixed_sizes(merge: Any, ragged: bool) -> None:
    torch.manual_seed(3)
    sizes: list[dict[str, Any]] = [
        {"input_size": 3, "hidden_size": 7},
        {"input_size": 7, "hidden_size": 5, "proj_size": 2},
        {"input_size": 2, "hidden_size": 4, "num_layers": 2, "bidirectional": True},
        {"input_size": 8 if merge == "concat" else 4, "hidden_size": 6},
    ]
    theirs = [torch.nn.LSTM(**size, dtype=torch.float64) for size in sizes]
    ours = [LSTM(**size, dtype="float64", backend="numpy", seed=0) for size in sizes]
    for layer, lstm in zip(theirs, ours, strict=True):
        lstm.load_parameters(of_torch(layer))
    chain = Chain([ours[0], Reversed(ours[1]), ours[2], Merge(merge), ours[3]])
    random = np.random.default_rng(5)
    x, dy = random.standard_normal((T, N, 3)), random.standard_normal((T, N, 6))
    lengths = np.array([9, 2, 5, 1]) if ragged else np.full(N, T)
    dy[np.arange(T)[:, None] >= lengths] = 0
    places = np.where(np.arange(T)[:, None] < lengths, lengths - 1 - np.arange(T)[:, None], np.arange(T)[:, None])
    turn = torch.from_numpy(places)[..., None]

    def run(layer: Any, value: Any) -> tuple[Any, Any]:
        packed = torch.nn.utils.rnn.pack_padded_sequence(value, torch.from_numpy(lengths), enforce_sorted=False)
        y, state = layer(packed)
        return torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)[0], state

    inputs = torch.from_numpy(x).requires_grad_()
    value, first = run(theirs[0], inputs)
    value, second = run(theirs[1], torch.take_along_dim(value, turn, 0))
    value, third = run(theirs[2], torch.take_along_dim(value, turn, 0))
    forward, reverse = value[..., :4], value[..., 4:]
    value = {"sum": forward + reverse, "mul": forward * reverse, "average": (forward + reverse) / 2, "concat": value}[
        merge
    ]
    value, fourth = run(theirs[3], value)
    (value * torch.from_numpy(dy)).sum().backward()
    y, state, tape = chain.record(x, lengths=lengths if ragged else None)
    gradients = chain.backward(tape, dy)
    np.testing.assert_allclose(y, value.detach().numpy(), rtol=1e-11, atol=1e-13)
    for (h, c), (other_h, other_c) in zip(state, (first, second, third, fourth), strict=True):
        np.testing.assert_allclose(h, other_h.detach().numpy(), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(c, other_c.detach().numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(gradients.x, inputs.grad.numpy(), rtol=1e-9, atol=1e-12)
    for index, layer in zip((0, 1, 2, 4), theirs, strict=True):
        wanted = {name: value.grad.numpy() for name, value in layer.named_parameters()}
        for name, value in wanted.items():
            kind, _, rest = name.partition("_")[2].partition("_")
            own = (
                f"bias_{rest}"
                if name.startswith("bias")
                else f"weight_{ {'ih': 'x', 'hh': 'h', 'hr': 'proj'}[kind] }_{rest}"
            )
            np.testing.assert_allclose(gradients.parameters[f"{index}.{own}"], value, rtol=1e-9, atol=1e-12)
