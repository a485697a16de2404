"""Training on several ranks, which are threads here: the result of one rank, and one end for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmcore.chain import Chain, Reversed
from lstmcore.distributed import DistributedError, agree, get_engine, share_text
from lstmcore.lstm import LSTM
from lstmcore.masks import BatchRows, stack_masks
from lstmcore.precision import PRECISIONS
from lstmcore.training import SGD, Callback, CrossEntropy, DivergedError, Readout, SequenceModel
from lstmcore.training.callbacks import epoch_numbers
from lstmcore.training.data_parallel import share_rows
from rank_cases import CASES, MASKED, assert_same, fit_case
from small_models import data, make, trainer
from thread_ranks import ThreadEngine, on_ranks


@pytest.mark.parametrize(("case", "ranks"), [*((case, 2) for case in CASES), ("masks", 3), ("truncated", 3)])
def test_ranks_give_the_result_of_one(case: str, ranks: int) -> None:
    """To the rounding of sums, in float64; with the same bits on every rank. The session mpi takes 3 for all."""
    wanted, alone = fit_case(case)
    found = on_ranks(ranks, lambda engine: fit_case(case, engine))
    for parameters, history in found:
        assert_same(parameters, wanted)
        assert_same(parameters, found[0][0], 0.0)
        assert history == found[0][1]
        assert (history.best, history.stopped) == (alone.best, alone.stopped)
        assert (history.stopped is None) == (case != "early stop")
        for epoch, other in zip(history.epochs, alone.epochs, strict=True):
            assert epoch_numbers(epoch) == pytest.approx(epoch_numbers(other), rel=1e-9)


def test_the_same_ranks_give_the_same_bits() -> None:
    first, second = (on_ranks(3, lambda engine: fit_case("masks", engine)) for _ in range(2))
    assert_same(first[1][0], second[2][0], 0.0)


class Spy(SGD):
    """Keeps the gradients of the last step."""

    def step(self, parameters: Any, gradients: Any) -> Any:
        self.seen = gradients
        return super().step(parameters, gradients)


def test_float32_ranks_give_the_result_of_one() -> None:
    """One gradient to 1e-6 of its norm, and the parameters after an epoch to 1e-4."""

    def run(engine: ThreadEngine | None) -> tuple[Any, Any]:
        model, spy = make(dtype="float32", **MASKED), Spy(0.5)
        trainer(model, epochs=1, batch_size=24, validation=0.0, optimizer=spy, distributed=engine).fit(*data())
        other = make(dtype="float32", **MASKED)
        trainer(other, epochs=1, distributed=engine).fit(*data())
        return np.concatenate([value.ravel() for value in spy.seen.values()]), other.parameters

    gradient, wanted = run(None)
    for found, parameters in on_ranks(3, run):
        assert found.dtype == np.float32
        assert np.linalg.norm(found - gradient) <= 1e-6 * np.linalg.norm(gradient)
        assert_same(parameters, wanted, 1e-4)


def test_a_chain_on_ranks_gives_the_result_of_one() -> None:
    def run(engine: ThreadEngine | None) -> dict[str, Any]:
        layers = [
            LSTM(2, 5, dtype="float64", seed=1, backend="numpy", recurrent_dropout=0.3),
            Reversed(LSTM(5, 3, dtype="float64", seed=2, backend="numpy", zoneout_cell=0.2)),
        ]
        model = SequenceModel(Chain(layers), Readout(3, 3, dtype="float64", seed=2))
        trainer(model, epochs=2, distributed=engine).fit(*data())
        return model.parameters

    wanted = run(None)
    for parameters in on_ranks(2, run):
        assert_same(parameters, wanted)


def test_a_step_adds_one_buffer() -> None:
    """Of all gradients and two numbers; and few others an epoch."""
    model = make()
    engines: list[ThreadEngine] = []

    def work(engine: ThreadEngine) -> None:
        engines.append(engine)
        trainer(make(), epochs=1, validation=0.0, distributed=engine).fit(*data(24))

    assert on_ranks(2, work) == [None, None]
    size = sum(value.size for value in model.parameters.values()) + 2
    for engine in engines:
        assert engine.sums.count(size) == 5  # 24 sequences in batches of 5
        assert sum(count for count in engine.sums if count != size) < 20


@pytest.mark.parametrize("batch", [1, 5, 8])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_masks_of_rows_are_those_of_the_batch(batch: int, width: int) -> None:
    switches: Any = {"dropout": 0.4, "recurrent_dropout": 0.3, "zoneout_hidden": 0.2}
    stack = LSTM(3, width, num_layers=2, bidirectional=True, backend="numpy", **switches).stack
    numbers = np.flatnonzero(np.random.default_rng(batch).integers(0, 2, batch) | (np.arange(batch) == 0))
    f64 = PRECISIONS["float64"]
    whole = stack_masks(stack, f64, 6, batch, seed=2**40 + 3, step=9)
    own = stack_masks(stack, f64, 4, len(numbers), seed=2**40 + 3, step=9, rows=BatchRows(numbers, batch))
    assert whole is not None and own is not None
    for wanted, got in zip(whole.layers, own.layers, strict=True):
        np.testing.assert_array_equal(got.recurrent, wanted.recurrent[numbers])
        np.testing.assert_array_equal(got.zoneout_hidden, wanted.zoneout_hidden[:4, numbers])
    np.testing.assert_array_equal(own[1][0], whole[1][0][:4, numbers])


def test_ranks_share_the_work() -> None:
    lengths = np.random.default_rng(0).integers(0, 90, 64)
    for size in (1, 3, 4):
        shares = share_rows(lengths, size)
        assert sorted(row for share in shares for row in share) == list(range(64))
        work = [int(lengths[share].sum()) for share in shares]
        assert max(work) - min(work) <= 90 / size
    assert [share.tolist() for share in share_rows([4], 3)] == [[0], [], []]


class StopAtTwo(Callback):
    """Counts its calls, and ends the run after the second epoch."""

    def __init__(self) -> None:
        self.calls = 0

    def on_epoch_end(self, model: SequenceModel, history: Any) -> str | None:
        self.calls += 1
        return "enough" if self.calls == 2 else None


def test_rank_0_alone_calls_back_and_writes(tmp_path: Path) -> None:
    """Its callback ends the run on every rank."""

    def work(engine: ThreadEngine) -> tuple[int, int, str | None]:
        callback = StopAtTwo()
        own = tmp_path / f"run-{engine.rank}"
        run = trainer(make(**MASKED), distributed=engine, callbacks=[callback], checkpoint=own)
        history = run.fit(*data())
        return callback.calls, len(history.epochs), history.stopped

    assert on_ranks(2, work) == [(2, 2, "enough"), (0, 2, "enough")]
    assert [file.name for file in tmp_path.iterdir()] == ["run-0"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_checkpoint_goes_on_with_other_ranks(ranks: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    wanted, _ = fit_case("masks", epochs=3)
    on_ranks(2, lambda engine: fit_case("masks", engine, epochs=1, checkpoint=path))
    for parameters, _ in on_ranks(ranks, lambda engine: fit_case("masks", engine, epochs=3, resume=path)):
        assert_same(parameters, wanted)


def test_other_data_on_a_rank_are_told() -> None:
    def work(engine: ThreadEngine) -> None:
        inputs, targets = data(24, seed=engine.rank)
        trainer(make(), distributed=engine).fit(inputs, targets)

    for error in on_ranks(2, work):
        assert isinstance(error, DistributedError)
        assert str(error).startswith("rank 1: ValueError: expected data_sha256=")


def test_bad_data_on_one_rank_end_all() -> None:
    def work(engine: ThreadEngine) -> None:
        inputs, targets = data()
        inputs[3] = inputs[3] * (np.nan if engine.rank == 1 else 1)
        trainer(make(), distributed=engine).fit(inputs, targets)

    for error in on_ranks(3, work):
        assert isinstance(error, DistributedError)
        assert str(error).startswith("rank 1: ValueError: inputs[3]")


def test_bad_data_on_all_ranks_are_told_as_by_one() -> None:
    def work(engine: ThreadEngine) -> None:
        trainer(make(), batch_size=2, distributed=engine).fit(*data())

    for error in on_ranks(3, work):
        assert isinstance(error, ValueError)
        assert str(error).startswith("distributed: expected at most 2 ranks")


class Faulty(CrossEntropy):
    """Raises in the third batch on rank 1, or is infinite there."""

    def __init__(self, rank: int, error: Exception | None) -> None:
        self.rank, self.error, self.calls = rank, error, 0

    def __call__(self, outputs: Any, targets: Any, mask: Any = None) -> tuple[float, Any]:
        self.calls += 1
        value, gradient = super().__call__(outputs, targets, mask)
        if self.rank == 1 and self.calls == 3:
            if self.error is not None:
                raise self.error
            value = float("inf")
        return value, gradient


def test_a_rank_that_fails_amid_the_run_ends_all() -> None:
    def work(engine: ThreadEngine) -> None:
        loss = Faulty(engine.rank, MemoryError("no room for a batch"))
        trainer(make(), distributed=engine, loss=loss).fit(*data())

    first, second = on_ranks(2, work)
    assert isinstance(second, MemoryError)
    assert isinstance(first, DistributedError)
    assert str(first) == "rank 1: MemoryError: no room for a batch"


def test_divergence_on_one_rank_is_seen_by_all() -> None:
    def work(engine: ThreadEngine) -> None:
        trainer(make(), loss=Faulty(engine.rank, None), distributed=engine).fit(*data())

    for error in on_ranks(2, work):
        assert isinstance(error, DivergedError)
        assert str(error).startswith("training diverged in epoch 1: loss inf")


def test_replicas_that_differ_are_told() -> None:
    class Meddle(Callback):
        def on_epoch_end(self, model: SequenceModel, history: Any) -> None:
            model.load_parameters({name: value * 1.5 for name, value in model.parameters.items()})

    def work(engine: ThreadEngine) -> None:
        trainer(make(), distributed=engine, callbacks=[Meddle()]).fit(*data())

    _, error = on_ranks(2, work)
    assert str(error).startswith("rank 1: expected the parameters of rank 0; got others: callbacks run on rank 0 alone")


def test_a_refused_fit_leaves_the_models_as_they_were() -> None:
    def work(engine: ThreadEngine) -> None:
        inputs, targets = data()
        model = make()
        model.lstm.step = 7
        with pytest.raises(DistributedError):
            trainer(model, distributed=engine).fit([x + engine.rank for x in inputs], targets)
        assert (model.input_scaling, model.target_scaling, model.lstm.step) == (None, None, 7)

    assert on_ranks(2, work) == [None, None]


def test_texts_and_failures_are_shared() -> None:
    assert on_ranks(3, lambda engine: share_text(engine, f"Grüße {engine.rank}", 2)) == ["Grüße 2"] * 3
    assert on_ranks(2, lambda engine: agree(engine, lambda: engine.rank)) == [0, 1]


def test_an_engine_is_found_or_told() -> None:
    with pytest.raises(ValueError, match=r"engine: expected one of gloo, mpi; got 'smoke'"):
        get_engine("smoke")
    with pytest.raises(TypeError, match="distributed: expected an Engine, the name of one, or None; got int"):
        trainer(make(), distributed=4)
