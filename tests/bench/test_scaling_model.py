"""The model of many ranks: its fits, its ring, its simulation, and the table of docs/scaling.md."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from doc_pages import ROOT
from lstmcore_conformance.bench.statistics import paired_ratio
from lstmcore_conformance.bench.tables import digits

names = runpy.run_path(str(ROOT / "examples" / "scaling_model.py"))
scaling = SimpleNamespace(**names)
FREE = scaling.Network("free", 0.0, np.inf)


def test_a_fit_finds_the_line_and_no_negative_start() -> None:
    x = np.array([1.0, 10.0, 300.0])
    assert scaling.fit(x, 2.0 + 0.5 * x) == pytest.approx((2.0, 0.5, 0.0), abs=1e-9)
    a, b, error = scaling.fit(x, [0.4, 5.0, 150.0])
    assert a == 0.0 and b == pytest.approx(0.5, rel=0.1) and 0.1 < error < 0.3


def test_a_ring_is_fitted_by_what_it_takes() -> None:
    network = scaling.Network("a", 7e-6, 3e9)
    sums = {size: network.ring(5, size) for size in (1e3, 1e6, 1e8)}
    found, error = scaling.fit_ring("a", 5, sums)
    assert found[1:] == pytest.approx(network[1:]) and error < 1e-9
    assert sums[1e6] == pytest.approx(8 * (7e-6 + 2e5 / 3e9))


@pytest.mark.parametrize("ranks", [2, 5, 64])
def test_the_simulation_is_the_model_where_nothing_varies(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without latency and without rows to share, a ring takes what the formula says."""
    rank, layer, network = scaling.Rank(0.01, np.inf), scaling.Layer(32), scaling.Network("a", 0.0, 1e9)
    monkeypatch.setitem(scaling.simulate.__globals__, "NOISE", 0.0)
    wanted = 0.01 + network.ring(ranks, layer.size)
    assert scaling.simulate(rank, layer, network, ranks, 3) == pytest.approx(wanted)
    assert scaling.model(rank, layer, network, ranks, 3) == pytest.approx(wanted)


def test_a_late_message_delays_the_ring() -> None:
    """Messages that vary cost more than their mean, and more than the slowest of ranks that do not wait (6 % here)."""
    network, layer = scaling.Network("a", 1e-3, 1e12), scaling.Layer(8)
    took = scaling.simulate(scaling.Rank(0.0, np.inf), layer, network, 64, 2) / network.ring(64, layer.size)
    assert 1.15 < took < 1.5


def test_the_slowest_rank_counts() -> None:
    """With few rows a rank, lengths cannot be shared out evenly; with many they can."""
    rank, layer = scaling.Rank(0.0, 1e9), scaling.Layer(16)
    few, many = (
        scaling.efficiency(rank, layer, scaling.simulate(rank, layer, FREE, 16, rows), rows) for rows in (1, 64)
    )
    assert few < 0.7 < 0.9 < many <= 1.0


def test_where_it_stops_to_pay() -> None:
    rank, layer = scaling.Rank(0.0, 1e9), scaling.Layer(64)
    assert scaling.last_paying(rank, layer, FREE) == scaling.ALL_ROWS
    assert scaling.last_paying(rank, layer, scaling.Network("post", 100.0, 1e9)) == 1


def test_the_page_has_the_measured_ratios() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    for point in json.loads(scaling.MEASURED.read_text("utf-8"))["points"]:
        cells = [", ".join(map(str, point["point"]))]
        cells += [digits(float(np.median(point["seconds"][way])) * 1e3) for way in ("one", "threads", "pair")]
        for way in ("one", "threads"):
            ratio, low, high = paired_ratio(point["seconds"][way], point["seconds"]["pair"])
            cells.append(f"{ratio:.2f} ({low:.2f} to {high:.2f})")
        cells += [digits(float(np.median(point["cpu"][way])) * 1e3) for way in ("one", "pair")]
        one, ranks = point["memory"]
        cells += [str(one >> 20), str(max(ranks) >> 20), f"{point['others']:.1f}"]
        assert f"| {' | '.join(cells)} |" in page


def test_the_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(scaling.draw.__globals__, "RANKS", (2, 4))
    scaling.draw(scaling.Rank(0.01, 1e10), str(tmp_path / "scaling.png"))
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
