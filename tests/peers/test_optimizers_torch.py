"""The optimizers give what PyTorch's give, step for step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore.training import SGD, Adam, AdamW, Optimizer, clip_by_global_norm

torch = pytest.importorskip("torch")

CASES: list[tuple[Optimizer, str, dict[str, Any]]] = [
    (SGD(0.05), "SGD", {"lr": 0.05}),
    (SGD(0.05, momentum=0.9, weight_decay=0.1), "SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    (SGD(0.05, momentum=0.8, nesterov=True), "SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    (Adam(0.02, beta1=0.8, beta2=0.9), "Adam", {"lr": 0.02, "betas": (0.8, 0.9)}),
    (Adam(0.02, weight_decay=0.3), "Adam", {"lr": 0.02, "weight_decay": 0.3}),
    (AdamW(0.02, weight_decay=0.3), "AdamW", {"lr": 0.02, "weight_decay": 0.3}),
]


@pytest.mark.parametrize(
    ("ours", "name", "settings"), CASES, ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_twenty_steps_as_in_torch(ours: Optimizer, name: str, settings: dict[str, Any]) -> None:
    random = np.random.default_rng(3)
    values = {"a": random.standard_normal((3, 5)), "b": random.standard_normal(4)}
    theirs = {key: torch.tensor(value, requires_grad=True) for key, value in values.items()}
    optimizer = getattr(torch.optim, name)(list(theirs.values()), **settings)
    for _ in range(20):
        gradients = {key: random.standard_normal(value.shape) for key, value in values.items()}
        for key, tensor in theirs.items():
            tensor.grad = torch.tensor(gradients[key])
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 2.0)
        optimizer.step()
        # torch divides by (norm + 1e-6); both get the same gradients, so that only the rules are compared
        clipped = {key: tensor.grad.numpy() for key, tensor in theirs.items()}
        for key, value in clip_by_global_norm(gradients, 2.0)[0].items():
            np.testing.assert_allclose(value, clipped[key], rtol=2e-6)
        values = ours.step(values, clipped)
    for key, tensor in theirs.items():
        np.testing.assert_allclose(values[key], tensor.detach().numpy(), rtol=20 * 16 * 2.0**-52, atol=1e-13)
