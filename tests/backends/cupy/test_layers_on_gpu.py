"""Models with an embedding and with attention on a GPU, on the stand-in: runs equal to the host's, without waits."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from emulation.gpu import Gpu, GpuArray
from lstmcore import LSTM
from lstmcore.layers import AttentionPooling, Embedding
from lstmcore.training import SGD, Readout, SequenceModel, Trainer
from lstmcore.training.learning import Learner
from lstmcore_cupy.kernel import CupyBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

GPU = Gpu()
BACKEND = CupyBackend(GPU, persistent=False)
#: Units in the last place of float32, of numbers near 1, that a few steps of training may differ by.
CLOSE = 300 * 2.0**-24


def make(backend: Any, parts: str, steps: Any) -> SequenceModel:
    lstm = LSTM(3, 5, backend=backend, seed=1, dropout=0.2, num_layers=2)
    readout = Readout.of(lstm, 3, activation="softmax", seed=2, steps=steps, with_x="embedding" in parts)
    embedding = Embedding(11, 3, seed=3) if "embedding" in parts else None
    pooling = AttentionPooling(5, 4, seed=4) if "attention" in parts else None
    return SequenceModel(lstm, readout, embedding=embedding, pooling=pooling)


def data(parts: str, steps: Any) -> tuple[list[Any], list[Any]]:
    random, lengths = np.random.default_rng(3), (3, 7, 5, 4, 6, 1, 7, 2, 5, 3)
    codes = [random.integers(0, 11, length) for length in lengths]
    inputs = codes if "embedding" in parts else [random.standard_normal((length, 3)) for length in lengths]
    return inputs, [random.integers(0, 3, length if steps == "every" else ()) for length in lengths]


def trained(backend: Any, device: str | None, parts: str, steps: Any, **options: Any) -> tuple[Any, SequenceModel]:
    model = make(backend, parts, steps)
    options = {
        "epochs": 3,
        "batch_size": 4,
        "validation": 0.3,
        "optimizer": SGD(0.1, momentum=0.9),
        "quiet": True,
        **options,
    }
    return Trainer(model, device=device, **options).fit(*data(parts, steps)), model


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["whole", "by parts"])
@pytest.mark.parametrize("steps", ["last", "every"])
@pytest.mark.parametrize("parts", ["embedding", "attention", "embedding, attention"])
def test_a_run_is_that_of_the_host(parts: str, steps: str, options: dict[str, Any]) -> None:
    """Losses, accuracies, and all parameters, which are NumPy's again at the end.

    By gradient descent: Adam divides a small gradient by its own size, and with it the last places of its sums.
    """
    (own, model), (wanted, other) = (
        trained(backend, device, parts, steps, **options) for backend, device in ((BACKEND, "cuda"), ("numpy", None))
    )
    for name, value in other.parameters.items():
        found = model.parameters[name]
        assert type(found) is np.ndarray
        np.testing.assert_allclose(found, value, rtol=0, atol=CLOSE * max(1, np.abs(value).max()))
    for one, right in zip(own.epochs, wanted.epochs, strict=True):
        assert one.accuracy == right.accuracy
        assert one.loss == pytest.approx(right.loss, rel=CLOSE)
        assert one.validation_loss == pytest.approx(right.validation_loss, rel=CLOSE)


@pytest.mark.parametrize("parts", ["embedding", "attention"])
def test_nothing_waits_between_two_steps(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, int]] = []
    step = Learner._step

    def told(self: Learner, *arguments: Any) -> Any:
        norm = step(self, *arguments)
        counted.append((GPU.counts.waits, GPU.counts.copies_out))
        return norm

    monkeypatch.setattr(Learner, "_step", told)
    trained(BACKEND, "cuda", parts, "last", validation=0.0, epochs=1)
    assert len(counted) > 2 and len(set(counted)) == 1


def test_layers_compute_where_their_parameters_are() -> None:
    """Other places name both arguments."""
    pooling, embedding = AttentionPooling(4, seed=1), Embedding(6, 2, seed=2)
    x, codes = np.random.default_rng(0).standard_normal((5, 2, 4)).astype(np.float32), np.array([[1, 5], [0, 1]])
    wanted = pooling(x, np.array([5, 3])), embedding(codes)
    for layer in (pooling, embedding):
        layer.load_parameters({name: GPU.array_of(value) for name, value in layer.parameters.items()})
        assert all(isinstance(value, GpuArray) for value in layer.parameters.values())
    found: Any = pooling(GPU.array_of(x), np.array([5, 3])), embedding(GPU.array_of(codes))  # type: ignore[arg-type]
    for own, right in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(own.get(), right)
    for call in (lambda: pooling(x), lambda: embedding(codes)):
        with pytest.raises(TypeError, match=r"x: expected an array of .* as parameters; got one of"):
            call()


@pytest.mark.parametrize("layer", [Embedding(6, 2, seed=2), AttentionPooling(4, seed=1), Readout(5, 2, seed=1)])
def test_parameters_are_copied_on_their_gpu(layer: Any) -> None:
    """Another GPU is current; CuPy would make the copies there."""
    second = Gpu(1, GPU.cupy)
    layer.load_parameters({name: second.array_of(value) for name, value in layer.parameters.items()})
    assert GPU.cupy.current == 0
    assert {value.device.id for value in layer.parameters.values()} == {1}
