"""Trainings that several ranks and one must do alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore.distributed import Engine
from lstmcore.training import Adam, History
from small_models import NOISY, REGRESSION, data, make, trainer

#: Every random mask.
MASKED: dict[str, Any] = {**NOISY, "zoneout_hidden": 0.2}

#: Settings of the trainer, and switches of the model.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "masks": ({"input_noise": 0.3}, MASKED),
    "every step": ({"metrics": ["f1"]}, {**MASKED, "steps": "every"}),
    "values": ({**REGRESSION, "standardize_targets": True, "accumulate": 2}, {"bidirectional": False, "x": True}),
    "no validation": ({"validation": 0.0, "class_weight": "balanced", "clip_norm": None}, {"steps": "mean"}),
    "truncated": ({"truncate": 3}, {**MASKED, "bidirectional": False, "steps": "every"}),
    "checkpointed": ({"gradient_checkpointing": True}, {**MASKED, "bidirectional": False}),
    "early stop": ({"epochs": 9, "patience": 1, "batch_size": 3}, {"hidden": 3}),
}


def fit_case(name: str, engine: Engine | None = None, **more: Any) -> tuple[dict[str, Any], History]:
    """Train a new model on sequences of 1 to 7 steps, with weights; return its parameters and the history.

    The last batch has fewer rows than there are ranks. `more` are settings of the trainer, and ``resume``.
    """
    settings, switches = CASES[name]
    random = np.random.default_rng(5)
    model = make(**switches)
    inputs, targets = data(17)
    targets = np.asarray(random.permutation(targets) if name == "early stop" else targets)
    inputs[:2] = [sequence[:1] for sequence in inputs[:2]]
    weight = random.uniform(0, 2, 17)
    if model.readout.steps == "every":
        targets = [random.integers(0, 3, len(sequence)) for sequence in inputs]
    if "loss" in settings:
        targets = random.standard_normal((17, 3))
    resume = more.pop("resume", None)
    own = {"epochs": 2, "batch_size": 4, "clip_norm": 0.05, "optimizer": Adam(0.02), **settings, **more}
    history = trainer(model, distributed=engine, **own).fit(inputs, targets, sample_weight=weight, resume=resume)
    return model.parameters, history


def assert_same(parameters: dict[str, Any], wanted: dict[str, Any], atol: float = 1e-10) -> None:
    """Raise AssertionError unless all parameters are those that are wanted, to a tolerance."""
    assert set(parameters) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(parameters[name], value, rtol=0, atol=atol, err_msg=name)
