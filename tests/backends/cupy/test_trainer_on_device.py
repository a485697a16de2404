"""A training on a GPU: equal to the host's within float32, without waiting inside a step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emulation.gpu import Gpu, GpuArray
from lstmcore import LSTM, Chain
from lstmcore.training import (
    SGD,
    Adam,
    DivergedError,
    GaussianLoss,
    Readout,
    SequenceModel,
    Trainer,
    clip_by_global_norm,
    load_model,
)
from lstmcore.training.learning import Learner
from lstmcore_cupy.kernel import CupyBackend

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

GPU = Gpu()
BACKEND = CupyBackend(GPU, persistent=False)
#: Units in the last place of float32, of numbers near 1, that a few steps of training may differ by.
CLOSE = 300 * 2.0**-24


def make(backend: Any = BACKEND, **options: Any) -> SequenceModel:
    """Return a model of two layers, a classifier of 3 classes unless the options of its readout say otherwise."""
    sizes = {
        "num_layers": 2,
        "bidirectional": options.pop("bidirectional", True),
        "dropout": options.pop("dropout", 0.0),
    }
    lstm = LSTM(2, 5, backend=backend, seed=1, **sizes)
    options = {"activation": "softmax", "seed": 2, "steps": "last", **options}
    return SequenceModel(lstm, Readout.of(lstm, options.pop("outputs", 3), with_x=True, **options))


def data(steps: str, classes: bool) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(3)
    inputs = [random.standard_normal((length, 2)) for length in (3, 7, 5, 4, 6, 1, 7, 2, 5, 3)]
    if classes:
        targets = [random.integers(0, 3, len(x) if steps == "every" else ()) for x in inputs]
        if steps == "every":
            targets[1][2:4] = -100
    else:
        targets = [random.standard_normal((len(x), 1) if steps == "every" else (1,)) for x in inputs]
    return inputs, targets


def trained(model: SequenceModel, device: str | None, inputs: Any, targets: Any, **options: Any) -> tuple[Any, Any]:
    """Return the history and the model."""
    options = {"epochs": 3, "batch_size": 4, "validation": 0.3, "optimizer": Adam(0.01), "quiet": True, **options}
    resume = options.pop("resume", None)
    return Trainer(model, device=device, **options).fit(inputs, targets, resume=resume), model


def assert_close(found: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
    """Check parameters, and each number of each epoch."""
    for name, value in wanted[1].parameters.items():
        own = found[1].parameters[name]
        assert type(own) is np.ndarray
        np.testing.assert_allclose(own, value, rtol=0, atol=CLOSE * max(1, np.abs(value).max()))
    for own, other in zip(found[0].epochs, wanted[0].epochs, strict=True):
        assert own.accuracy == other.accuracy and own.validation_accuracy == other.validation_accuracy
        for name in ("loss", "validation_loss", "drift", "gradient_norm"):
            assert getattr(own, name) == pytest.approx(getattr(other, name), rel=CLOSE)


@pytest.mark.parametrize("steps", ["last", "every", "mean"])
@pytest.mark.parametrize("classes", [True, False], ids=["classes", "values"])
def test_a_run_on_a_gpu_is_that_of_the_host(steps: str, classes: bool) -> None:
    """With dropout, whose masks are the same, and metrics; the parameters are NumPy's again at the end."""
    options: dict[str, Any] = {"steps": steps, "dropout": 0.3}
    run: dict[str, Any] = {"metrics": ("f1",)}
    if not classes:
        options |= {"activation": "none", "outputs": 2}
        run = {"loss": GaussianLoss(), "metrics": ("rmse",), "standardize_targets": True}
    one, other = (
        trained(make(backend, **options), device, *data(steps, classes), **run)
        for backend, device in ((BACKEND, "cuda"), ("numpy", None))
    )
    assert_close(one, other)
    for own, wanted in zip(one[0].epochs, other[0].epochs, strict=True):
        assert own.metrics == pytest.approx(wanted.metrics, rel=CLOSE)


@pytest.mark.parametrize("options", [{"truncate": 3}, {"gradient_checkpointing": True}, {"accumulate": 2}], ids=str)
def test_parts_and_sums_of_batches_on_a_gpu(options: dict[str, Any]) -> None:
    """With dropout: parts that are recorded twice draw their masks themselves."""
    one, other = (
        trained(make(backend, steps="every", bidirectional=False, dropout=0.3), device, *data("every", True), **options)
        for backend, device in ((BACKEND, "cuda"), ("numpy", None))
    )
    assert_close(one, other)


def test_no_step_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of three times the steps waits and copies to the host as often: at the ends of its epochs."""
    counted = []
    for repeats in (1, 3):
        inputs, targets = data("last", True)
        GPU.counts.clear()
        trained(make(dropout=0.3), "cuda", inputs * repeats, targets * repeats, validation=0.0, epochs=2)
        counted.append((GPU.counts.copies_out, GPU.counts.waits))
    assert counted[0] == counted[1]
    assert counted[0][0] > 0


def test_a_step_of_the_optimizer_is_a_few_launches() -> None:
    """As many for 30 parameters as for 10: all are parts of one flat array. Nothing is copied."""
    counted = []
    for count in (10, 30):
        shapes = {f"p{index}": (index % 3, 4) for index in range(count)}
        parameters, gradients = (
            {name: GPU.array_of(np.full(shape, 0.5, np.float32)) for name, shape in shapes.items()} for _ in range(2)
        )
        rule = Adam()
        for _ in range(2):  # the second step arranges the moments that the first one has made
            rule.step(parameters, gradients)
        GPU.counts.clear()
        rule.step(parameters, clip_by_global_norm(gradients, 1.0)[0])
        counted.append(len(GPU.counts.launches))
        assert (GPU.counts.copies_in, GPU.counts.copies_out, GPU.counts.waits) == (0, 0, 0)
    assert counted[0] == counted[1] <= 30


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"truncate": 3}], ids=str)
def test_nothing_waits_between_two_steps(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step of an epoch to its last one the host waits for nothing, and copies nothing back."""
    counted: list[list[tuple[int, int]]] = []
    learn_epoch, step = Learner.learn_epoch, Learner._step

    def told_epoch(self: Learner, *arguments: Any) -> Any:
        counted.append([(GPU.counts.waits, GPU.counts.copies_out)])
        return learn_epoch(self, *arguments)

    def told_step(self: Learner, *arguments: Any) -> Any:
        norm = step(self, *arguments)
        counted[-1].append((GPU.counts.waits, GPU.counts.copies_out))
        return norm

    monkeypatch.setattr(Learner, "learn_epoch", told_epoch)
    monkeypatch.setattr(Learner, "_step", told_step)
    model = make(steps="every", bidirectional=False, dropout=0.3)
    trained(model, "cuda", *data("every", True), validation=0.0, **options)
    assert len(counted) == 3
    for seen in counted:
        assert len(seen) > 2 and len(set(seen)) == 1


def test_the_loss_is_looked_at_every_few_steps() -> None:
    """Each look is one wait more, and changes nothing of the run."""
    waits, runs = {}, []
    for every in (None, 1, 2, 4):
        GPU.counts.clear()
        runs.append(trained(make(dropout=0.3), "cuda", *data("last", True), validation=0.0, epochs=2, loss_every=every))
        waits[every] = GPU.counts.waits
    epochs, steps = 2, 3
    for every in (1, 2, 4):
        assert waits[every] - waits[None] == epochs * (steps // every)
    for history, model in runs[1:]:
        assert history.to_dict() == runs[0][0].to_dict()
        for name, value in runs[0][1].parameters.items():
            np.testing.assert_array_equal(model.parameters[name], value)


@pytest.mark.parametrize(
    ("every", "told", "taken"), [(None, "", 7), (1, ", by its step 2", 2), (4, ", by its step 4", 4)]
)
def test_a_diverged_run_ends_where_it_is_looked_at(every: int | None, told: str, taken: int) -> None:
    """The first step makes parameters of 1e30, so the loss of the second one is not finite."""
    model, rule = make(activation="none", outputs=1), SGD(1e30)
    before = {name: value.copy() for name, value in model.parameters.items()}
    inputs, targets = (values * 2 for values in data("last", False))
    options: dict[str, Any] = {"loss": "mean-squared-error", "optimizer": rule, "clip_norm": None, "validation": 0.0}
    with pytest.raises(DivergedError, match=rf"^training diverged in epoch 1{told}: (loss|gradient norm) \w+: lower"):
        trained(model, "cuda", inputs, targets, loss_every=every, batch_size=3, epochs=1, **options)
    assert rule.steps == taken
    for name, value in before.items():
        np.testing.assert_array_equal(model.parameters[name], value)


def test_steps_of_a_run_are_kernels() -> None:
    """Of the backend that the model's LSTM has; without its updates the run is the same but for the last places."""

    class Without(CupyBackend):
        def updates(self) -> Any:
            return None

    runs = []
    for backend, launched in ((BACKEND, {"adam", "squares", "clip"}), (Without(GPU, persistent=False), set[str]())):
        rule = Adam(0.01)
        GPU.counts.clear()
        runs.append(trained(make(backend), "cuda", *data("last", True), optimizer=rule, clip_norm=0.1))
        assert {"adam", "squares", "clip"} & set(GPU.counts.launches) == launched
        assert rule.steps == 6
        way = "one kernel of" if launched else "operations of the arrays' library:"
        assert rule.explain().startswith(f"{way} backend 'cupy'")
        if launched:
            assert [GPU.counts.launches.count(name) for name in ("adam", "squares", "clip")] == [6, 6, 6]
    assert_close(*runs)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_a_number_of_steps_that_is_none(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^loss_every: expected (a whole number|at least 1); got"):
        Trainer(make(), device="cuda", loss_every=value)


def test_the_same_seed_is_the_same_run_on_a_gpu(tmp_path: Path) -> None:
    """Also if it goes on from a checkpoint, which holds arrays of the host; and a model from it needs no GPU."""
    path = tmp_path / "run.safetensors"
    whole, again = (trained(make(), "cuda", *data("last", True), epochs=4) for _ in range(2))
    trained(make(), "cuda", *data("last", True), epochs=2, checkpoint=path)
    resumed = trained(make(), "cuda", *data("last", True), epochs=4, resume=path)
    for run in (again, resumed):
        assert run[0].to_dict() == whole[0].to_dict()
        for name, value in whole[1].parameters.items():
            np.testing.assert_array_equal(run[1].parameters[name], value)
    whole[1].save(tmp_path / "model.safetensors")
    inputs = data("last", True)[0]
    loaded = load_model(tmp_path / "model.safetensors", backend="numpy")
    np.testing.assert_allclose(loaded.predict(inputs), whole[1].predict(inputs), rtol=CLOSE)


def test_callbacks_see_a_model_that_computes_on_the_gpu() -> None:
    from lstmcore.training import Callback

    class Watch(Callback):
        def on_epoch_end(self, model: SequenceModel, history: Any) -> None:
            assert all(isinstance(value, GpuArray) for value in model.parameters.values())
            assert [type(output) for output in model.predict(data("last", True)[0][:2])] == [np.ndarray] * 2

    trained(make(), "cuda", *data("last", True), callbacks=[Watch()])


def test_a_run_that_diverges_is_told_at_the_end_of_its_epoch() -> None:
    model = make(activation="none", outputs=1)
    before = {name: value.copy() for name, value in model.parameters.items()}
    with pytest.raises(
        DivergedError, match=r"training diverged in epoch 1: .*; the model has the weights of the start"
    ):
        trained(model, "cuda", *data("last", False), loss="mean-squared-error", optimizer=SGD(1e30), clip_norm=None)
    for name, value in before.items():
        np.testing.assert_array_equal(model.parameters[name], value)


def chain(*backends: Any) -> SequenceModel:
    """Return a classifier whose LSTMs have these two backends."""
    first, second = backends
    stack = Chain([LSTM(2, 4, backend=first, seed=0), LSTM(4, 3, backend=second, seed=1)])
    return SequenceModel(stack, Readout.of(stack, 3, activation="softmax", seed=2))


def test_a_chain_trains_on_a_gpu() -> None:
    one, other = (
        trained(chain(backend, backend), device, *data("last", True))
        for backend, device in ((BACKEND, "cuda"), ("numpy", None))
    )
    assert_close(one, other)


def test_devices_that_are_refused() -> None:
    second = CupyBackend(Gpu(1, GPU.cupy))
    apart = "device: expected None, since the LSTMs of the model compute on cuda:0 and cuda:1; got 'cuda(:0)?'"
    for model, device, error, message in (
        (chain(BACKEND, "numpy"), "cuda", ValueError, "device: .* backend 'numpy' of the model computes on the host"),
        (chain("numpy", BACKEND), "cuda", ValueError, "device: .* backend 'numpy' of the model computes on the host"),
        (chain(BACKEND, second), "cuda", ValueError, apart),
        (chain(BACKEND, second), "cuda:0", ValueError, apart),
        (make("numpy"), "cuda", ValueError, "device: expected None, since backend 'numpy' .* computes on the host"),
        (make(), "cuda:3", ValueError, "device: expected 'cuda:0', where backend 'cupy' computes; got 'cuda:3'"),
        (make(), 0, TypeError, "device: expected the name of a device, such as 'cuda:0', or None; got 0"),
    ):
        with pytest.raises(error, match=message):
            Trainer(model, device=device)  # type: ignore[arg-type] # a number is none


def test_a_run_that_cannot_begin_leaves_the_model_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters are on the device already when the moments are refused."""

    def fail(self: Any, *arguments: Any) -> Any:
        raise MemoryError("a planted fault")

    model = make()
    before = {name: value.copy() for name, value in model.parameters.items()}
    monkeypatch.setattr(Adam, "load_state", fail)
    with pytest.raises(MemoryError, match="a planted fault"):
        trained(model, "cuda", *data("last", True), validation=0.0)
    for name, value in before.items():
        np.testing.assert_array_equal(model.parameters[name], value, strict=True)


# The way of batches to the device ----------------------------------------------------------------------------------

#: Bytes of the inputs of `data` on the device: a row of zeros and 43 steps of two numbers of float32.
RESIDENT = 44 * 8


PARTS = ({"truncate": 3}, {"gradient_checkpointing": True}, {"accumulate": 2}, {"weights": True})


@pytest.mark.parametrize(("steps", "options"), [("last", {}), *(("every", options) for options in PARTS)], ids=str)
def test_inputs_that_stay_on_the_gpu_give_the_same_bits(steps: str, options: dict[str, Any]) -> None:
    """Resident inputs, batches by copies ahead of their steps, and the host within float32."""
    inputs, targets = data(steps, True)
    settings = {name: value for name, value in options.items() if name != "weights"}
    weights = [0.5 + 0.1 * index for index in range(len(inputs))] if "weights" in options else None

    def run(backend: Any, device: str | None, resident: int | None) -> tuple[Any, Any]:
        model = make(backend, steps=steps, bidirectional=False, dropout=0.3)
        shared: dict[str, Any] = {"epochs": 2, "batch_size": 4, "validation": 0.3, "quiet": True, **settings}
        trainer = Trainer(model, device=device, resident_bytes=resident, **shared)
        GPU.counts.clear()
        return trainer.fit(inputs, targets, sample_weight=weights), model

    stayed = run(BACKEND, "cuda", None)
    copied, gathered = len(GPU.counts.copied), GPU.counts.launches.count("take")
    sent = run(BACKEND, "cuda", 0)
    assert len(GPU.counts.copied) == copied >= 4
    assert gathered - GPU.counts.launches.count("take") == copied
    assert stayed[0].to_dict() == sent[0].to_dict()
    for name, value in stayed[1].parameters.items():
        np.testing.assert_array_equal(value, sent[1].parameters[name])
    assert_close(stayed, run("numpy", None, None))


def test_the_next_batch_is_copied_before_the_step_of_this_one() -> None:
    """Each step waits for the copy of its own batch alone; the copy waits for the step before."""
    model = make()
    trainer = Trainer(model, device="cuda", resident_bytes=0, epochs=1, batch_size=4, validation=0.0, quiet=True)
    fresh = list(GPU.cupy.pinned())
    GPU.counts.clear()
    trainer.fit(*data("last", True))
    (stream,) = {entry.partition(":")[0] for entry in GPU.counts.order if entry.endswith(": copy")}
    shown = {f"{stream}: copy": "copy", f"null: wait for {stream}": "wait", "null: launch": "launch"}
    order = [shown[entry] for entry in GPU.counts.order if entry in shown]
    order = [entry for entry, before in zip(order, [None, *order], strict=False) if (entry, before) != ("launch",) * 2]
    begin = order.index("copy")
    assert order[begin:] == ["copy", "copy", "wait", "launch", "copy", "wait", "launch", "wait", "launch"]
    own = [entry for entry in GPU.counts.order if entry.startswith(f"{stream}:")]
    steps = ["wait for null", "copy", "record"] * 3
    assert own == [f"{stream}: {step}" for step in (*steps, "waited for by the host")]
    assert len(list(GPU.cupy.pinned())) == len(fresh) + 2


def test_a_batch_whose_step_fails_leaves_no_copy_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that were begun are waited for, before their memory is given back."""

    def fail(self: Any, *arguments: Any) -> Any:
        raise RuntimeError("a planted fault")

    monkeypatch.setattr(Adam, "step", fail)
    trainer = Trainer(make(), device="cuda", resident_bytes=0, batch_size=4, validation=0.0, quiet=True)
    GPU.counts.clear()
    with pytest.raises(RuntimeError, match="a planted fault"):
        trainer.fit(*data("last", True))
    assert len(GPU.counts.copied) == 2
    (stream,) = {entry.partition(":")[0] for entry in GPU.counts.order if entry.endswith(": copy")}
    assert f"{stream}: waited for by the host" in GPU.counts.order


@pytest.mark.parametrize("free", [4 * RESIDENT, 4 * RESIDENT - 1])
def test_inputs_stay_if_they_take_a_quarter_of_the_free_memory(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPU.cupy, "free_bytes", free)
    GPU.counts.clear()
    trained(make(), "cuda", *data("last", True), validation=0.0, epochs=1)
    found = GPU.counts.launches.count("take")
    GPU.counts.clear()
    trained(make(), "cuda", *data("last", True), validation=0.0, epochs=1, resident_bytes=0)
    assert found - GPU.counts.launches.count("take") == (3 if free == 4 * RESIDENT else 0)


def test_noise_and_sources_go_batch_by_batch() -> None:
    class Source:
        def __init__(self, pairs: Any) -> None:
            self.pairs = list(pairs)

        def __len__(self) -> int:
            return len(self.pairs)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return self.pairs[index]

    inputs, targets = data("last", True)
    noisy: tuple[Any, ...] = (inputs, targets), {"input_noise": 0.1}
    loaded: tuple[Any, ...] = (Source(zip(inputs, targets, strict=True)), None), {}
    for given, options in (noisy, loaded):
        gathered = []
        for most in (None, 0):
            GPU.counts.clear()
            one = trained(make(), "cuda", *given, resident_bytes=most, **options)
            gathered.append(GPU.counts.launches.count("take"))
            assert len(GPU.counts.copied) > 3
        assert gathered[0] == gathered[1]
        assert_close(one, trained(make("numpy"), None, *given, **options))


def test_resident_bytes_that_are_refused() -> None:
    for device, value, error, message in (
        (None, 5, ValueError, "resident_bytes: expected None without device; got 5: give device='cuda'"),
        ("cuda", -1, ValueError, "resident_bytes: expected .* got -1"),
        ("cuda", 1.5, TypeError, "resident_bytes: expected .* got 1.5"),
    ):
        with pytest.raises(error, match=message):
            Trainer(make(), device=device, resident_bytes=value)  # type: ignore[arg-type] # a float is no whole number
