"""The benchmark of two ranks: what it measures, and that wrong values have no time."""

from __future__ import annotations

from typing import Any

import pytest

from lstmcore.distributed import Engine
from lstmcore_conformance.bench.jobs import Point
from lstmcore_conformance.bench.rank_efficiency import Measured, measure, table
from lstmcore_conformance.bench.rank_turns import SIZES, check_values

pytest.importorskip("mpi4py", reason="the session mpi installs it", exc_type=ImportError)


def test_every_way_has_a_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTMCORE_NUM_THREADS", "1")
    found = measure("numpy", Point(5, 4, 3, 6), 3, 0.01, sums=True)
    assert {way: len(times) for way, times in found.seconds.items()} == {"one": 3, "pair": 3, "threads": 3}
    assert all(0 < seconds < 60 for times in found.seconds.values() for seconds in times)
    assert found.gradient_bytes == 4 * (4 * 6 * (3 + 6 + 1) + 7 * (6 + 1))
    assert [int(size) for size in found.sums] == list(SIZES)
    one, ranks = found.memory
    assert len(ranks) == 2 and all(10 << 20 < size < 1 << 30 for size in (one, *ranks))
    assert len(table("numpy", [found]).rows) == 1


def test_ratios_are_of_one_rank_over_two() -> None:
    seconds = {"one": [9.0, 18.0, 9.0], "pair": [10.0, 20.0, 10.0], "threads": [8.0, 16.0, 8.0]}
    found = Measured(Point(1, 1, 1, 1), 1, 4, seconds, {}, {}, (1, [1, 1]), 0.0)
    assert [found.ratio(way)[0] for way in ("one", "threads")] == pytest.approx([0.9, 0.8])


class Deaf(Engine):
    """Two ranks, whose sums leave out the other one."""

    rank, size = 0, 2

    def allreduce_sum(self, buffer: Any) -> None:
        pass

    def broadcast(self, buffer: Any, root: int = 0) -> None:
        pass

    def barrier(self) -> None:
        pass

    def abort(self, message: str) -> None:
        raise SystemExit(message)


def test_ranks_with_other_values_are_not_timed() -> None:
    settings = {"backend": "numpy", "point": [5, 4, 3, 6]}
    with pytest.raises(ValueError, match=r": expected the parameters of one rank to 0\.0001; got an error of "):
        check_values(settings, Deaf())
