"""Cached calls: later calls of the same sizes replay the pass of an earlier one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lstmcore import LSTM

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 7, 19


def numbers(rng: np.random.Generator, *shape: int) -> npt.NDArray[Any]:
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261124)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows with each call of `CallCache.replay`: whether it replayed a call."""
    from lstmcore_numba.call_cache import CallCache

    result: list[bool] = []
    replay = CallCache.replay

    def watched(*args: Any) -> Any:
        forward = replay(*args)
        result.append(forward is not None)
        return forward

    monkeypatch.setattr(CallCache, "replay", watched)
    return result


def pair(**options: Any) -> tuple[LSTM, LSTM]:
    """Return the same LSTM on Numba and on NumPy."""
    ours, other = (LSTM(INPUT, HIDDEN, dtype="float32", seed=3, backend=name, **options) for name in ("numba", "numpy"))
    return ours, other


def same(results: Any, expected: Any) -> None:
    for one, other in zip((results[0], *results[1]), (expected[0], *expected[1]), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


OPTIONS: list[dict[str, Any]] = [{}, {"proj_size": 6}, {"layer_norm": True}, {"peephole": True}, {"bias": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "plain"))
def test_every_call_has_its_own_results(options: dict[str, Any], rng: np.random.Generator, replays: list[bool]) -> None:
    ours, numpy = pair(**options)
    calls = []
    for k in range(4):
        x = numbers(rng, STEPS, BATCH, INPUT)
        width = options.get("proj_size", HIDDEN)
        state = (numbers(rng, 1, BATCH, width), numbers(rng, 1, BATCH, HIDDEN)) if k % 2 else None
        out = np.empty((STEPS, BATCH, width), np.float32) if k == 3 else None
        results = ours(x, state, out=out)
        assert out is None or results[0] is out
        calls.append((results, numpy(x, state)))
    for results, expected in calls:  # at the end: a result that a later call wrote to differs
        same(results, expected)
    assert replays == [False, True, True, True]


def test_new_parameters_count(rng: np.random.Generator, replays: list[bool]) -> None:
    ours, numpy = pair()
    x = numbers(rng, STEPS, BATCH, INPUT)
    for _ in range(2):
        ours(x)
    changed = {name: value * np.float32(0.5) for name, value in ours.parameters.items()}
    for lstm in (ours, numpy):
        lstm.load_parameters(changed)
    for _ in range(2):
        same(ours(x), numpy(x))
    assert replays == [False, True, False, True]


def test_other_calls_between_do_no_harm(rng: np.random.Generator, replays: list[bool]) -> None:
    ours, numpy = pair()
    x = numbers(rng, STEPS, BATCH, INPUT)
    ours(x)
    ours(x, lengths=np.array([0, 5, 2]))
    ours.record(x)
    ours(numbers(rng, 2, BATCH, INPUT))
    other = numbers(rng, STEPS, BATCH, INPUT)
    same(ours(other), numpy(other))
    assert replays == [False, False, True]


def test_arrays_that_are_not_contiguous_are_not_replayed(rng: np.random.Generator, replays: list[bool]) -> None:
    ours, numpy = pair()
    ours(numbers(rng, STEPS, BATCH, INPUT))
    apart = numbers(rng, STEPS, BATCH, 2 * INPUT)[:, :, ::2]
    locked = numbers(rng, STEPS, BATCH, INPUT)
    locked.flags.writeable = False
    h, c = (numbers(rng, 1, BATCH, 2 * HIDDEN)[:, :, ::2] for _ in range(2))
    plain = numbers(rng, STEPS, BATCH, INPUT)
    for x, state in ((apart, None), (locked, None), (plain, (h, c))):
        same(ours(x, state), numpy(x, state))
    assert replays[1:] == [False, False, False]


def test_each_thread_has_its_own_cache(rng: np.random.Generator) -> None:
    ours, numpy = pair()
    inputs = [numbers(rng, STEPS, BATCH, INPUT) for _ in range(4)]
    results: dict[int, list[Any]] = {}
    begin = threading.Barrier(len(inputs))

    def work(k: int) -> None:
        begin.wait()
        results[k] = [ours(inputs[k]) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, x in enumerate(inputs):
        expected = numpy(x)
        for result in results[k]:
            same(result, expected)
