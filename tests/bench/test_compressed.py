"""The benchmark of weights in fewer bytes: its rows, its page, and what it tells of large rows and steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lstmcore import LSTM
from lstmcore.stored_weights import FORMATS
from lstmcore.threads import THREADS_VARIABLE, asked_threads
from lstmcore_conformance.bench import compressed
from lstmcore_conformance.bench.compressed import Built, disturbed, main, page


def _scaled_over(axes: tuple[int, ...]) -> Any:
    """Return a candidate that rounds x to 8 bits with a scale that is shared along `axes` of (T, N, I)."""

    def build(lstm: LSTM) -> Built:
        def forward(x: Any) -> Any:
            scale = np.abs(x).max(axis=axes, keepdims=True) / np.float32(127)
            return lstm(np.rint(x / scale) * scale)[0]

        return Built(forward, 0, "")

    return build


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ((2,), set()),
        ((1, 2), {"another row"}),
        ((0, 2), {"an earlier step"}),
        ((0, 1, 2), {"another row", "an earlier step"}),
    ],
)
def test_a_shared_scale_is_told_with_the_smallest_size(axes: tuple[int, ...], told: set[str]) -> None:
    found = disturbed(_scaled_over(axes))
    assert set(found) == told
    assert all("at T = N = 2, I = H = 1" in text for text in found.values())


def test_the_page_has_each_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without peers, speed is over our own float32; errors follow the formats."""
    monkeypatch.setattr(compressed, "find_spec", lambda name: None)
    monkeypatch.setenv(THREADS_VARIABLE, "7")
    words = ["--backend", "numpy", "--threads", "3", "--point", "4,2,5,8", "--rounds", "2", "--seconds", "0"]
    words += ["--out", str(tmp_path)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert asked_threads() == 3  # the backend's too, not the peers' alone
    run = json.loads((tmp_path / "compressed.json").read_text())
    rows = {row["candidate"].removeprefix("numpy "): row for row in run["rows"]}
    assert set(rows) == {"float32", *FORMATS}
    assert rows["float32"]["largest"] < 1e-6 < rows["float16"]["largest"] < rows["bfloat16"]["largest"] < 2e-2
    assert rows["int8"]["size"] < rows["float16"]["size"] < rows["float32"]["size"]
    assert all(len(row["seconds"]) == 2 for row in rows.values())
    text = (tmp_path / "compressed.md").read_text()
    assert text == page(run)
    assert "| numpy int8a16 | nothing | nothing |" in text
    assert "| 1.00 |" in next(line for line in text.splitlines() if line.startswith("| numpy float32 |"))
    svg = compressed.picture(run).decode()
    assert "numpy int8a16" in svg or "<svg" in svg


def test_a_wrong_point_is_told() -> None:
    done = CliRunner().invoke(main, ["--point", "1,2", "--out", "x"])
    assert done.exit_code == 2
    assert "expected T,N,I,H; got '1,2'" in done.output
