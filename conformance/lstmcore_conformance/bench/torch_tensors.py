"""`lstmcore.torch.LSTM` with tensors on a device beside PyTorch's own layer: values, gradients, and no copies."""

from __future__ import annotations

from typing import Any, Final

import torch

from lstmcore import registry
from lstmcore.torch import LSTM
from lstmcore.torch.shared_memory import adopt

Tensor = Any

#: The largest difference of a result, as a share of its largest magnitude.
LIMITS: Final = {"float64": 1e-10, "float32": 1e-4}
_SIZES: Final[dict[str, Any]] = {"input_size": 24, "hidden_size": 40, "num_layers": 2, "bidirectional": True}
_STEPS: Final = 21
_ROWS: Final = 5


def check(device: str, backend: str) -> dict[str, float]:
    """Return the largest difference by precision, as a share of `LIMITS`.

    Parameters
    ----------
    device
        PyTorch's name of it.
    backend
        The name of the backend that computes there.

    Raises
    ------
    ValueError
        A difference beyond its limit, or a tensor that the backend does not take where it is.
    """
    found = {}
    for name, limit in LIMITS.items():
        dtype = getattr(torch, name)
        torch.manual_seed(0)
        theirs = torch.nn.LSTM(**_SIZES, dtype=dtype)
        ours = LSTM(**_SIZES, dtype=dtype, backend=backend)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(_STEPS, _ROWS, _SIZES["input_size"], dtype=dtype)
        state = [torch.randn(4, _ROWS, _SIZES["hidden_size"], dtype=dtype) for _ in range(2)]
        wanted = _outcome(theirs.double(), x.double(), [part.double() for part in state])
        moved = x.to(device)
        if _address(adopt(registry.get_backend(backend), moved, name)) != moved.data_ptr():
            raise ValueError(f"{name}: x is copied on its way to backend {backend!r}")
        got = _outcome(ours.to(device), moved, [part.to(device) for part in state])
        differences = [_difference(one, other) / limit for one, other in zip(got, wanted, strict=True)]
        if bad := [value for value in differences if not value < 1]:
            raise ValueError(f"{name}: a difference of {bad[0]:.3g} times the limit between lstmcore.torch and PyTorch")
        found[name] = max(differences)
    return found


def _outcome(module: Any, x: Tensor, state: list[Tensor]) -> list[Tensor]:
    """Return y, h and c of a call, and the gradients of x and of all parameters, after a first call."""
    x = x.requires_grad_()
    for _ in range(2):  # the second one finds memory of the first, which was given back
        y, (h, c) = module(x, tuple(state))
        loss = sum(torch.sin(value).sum() for value in (y, h, c))
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
    return [y, h, c, *gradients]


def _difference(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest magnitude; NaN if one is NaN."""
    return float((got.detach().cpu().double() - wanted.detach()).abs().max() / wanted.detach().abs().max())


def _address(array: Any) -> int:
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return int(interface["data"][0])
