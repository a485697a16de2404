"""Trackers of experiments as they are: what tensorboardX and MLflow store of a run, read back from their files."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from lstmcore.training import Callback, Epoch, MLflow, TensorBoard, epoch_numbers
from small_models import data, make, trainer


def fit(tracker: Callback) -> list[Epoch]:
    inputs, targets = data()
    settings: dict[str, Any] = {"epochs": 3, "metrics": ["f1"], "callbacks": [tracker]}
    return trainer(make(), **settings).fit(inputs, targets).epochs


def wanted(epochs: list[Epoch]) -> dict[str, list[tuple[int, float]]]:
    """Name -> the numbers of every epoch; a run with validation and a metric has six names."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for epoch in epochs:
        for name, value in epoch_numbers(epoch).items():
            found[name].append((epoch.number, value))
    assert {"loss", "validation_loss", "validation_accuracy", "metrics/f1", "drift", "gradient_norm"} <= set(found)
    return dict(found)


def test_tensorboard_has_every_number(tmp_path: Path) -> None:
    """The event file is a row of records: length, checksum, message, checksum. Its numbers are float32."""
    pytest.importorskip("tensorboardX", reason="the session estimators installs it")
    from tensorboardX.proto.event_pb2 import Event

    epochs = fit(TensorBoard(tmp_path / "runs"))
    (file,) = (tmp_path / "runs").iterdir()
    content, found = file.read_bytes(), defaultdict(list)
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            found[value.tag].append((event.step, value.simple_value))
        content = content[16 + length :]
    expected = wanted(epochs)
    assert set(found) == set(expected)
    for name, numbers in expected.items():
        assert [step for step, _ in found[name]] == [1, 2, 3]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in numbers], rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # MLflow's own, which differ between its versions
def test_mlflow_has_every_number(tmp_path: Path) -> None:
    """In a run that the user started, which stays open, or in one that is started and ended."""
    mlflow = pytest.importorskip("mlflow", reason="the session estimators installs it")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs.db'}")
    mlflow.set_experiment("first")
    expected = {}
    with mlflow.start_run() as run:
        expected[run.info.run_id] = wanted(fit(MLflow()))
        assert mlflow.active_run().info.run_id == run.info.run_id
    epochs = fit(MLflow())
    assert mlflow.active_run() is None
    expected[mlflow.last_active_run().info.run_id] = wanted(epochs)
    assert len(expected) == 2
    client = mlflow.tracking.MlflowClient()
    for run_id, names in expected.items():
        assert set(client.get_run(run_id).data.metrics) == set(names)
        for name, numbers in names.items():
            assert [(one.step, one.value) for one in client.get_metric_history(run_id, name)] == numbers
