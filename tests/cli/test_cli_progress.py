"""Long commands tell how far they are: by a bar on a terminal, else by plain lines on standard error."""

from __future__ import annotations

import sys
from io import StringIO

import pytest

from lstmcore.cli._console import progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_where_nobody_looks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("lstmcore.cli._console.time.monotonic", lambda: now[0])
    for seconds, shown in ((0.0, (0, 1, 2, 3, 4)), (30.0, (0, 2, 4))):
        now[0] = 100.0
        with progress("bench", seconds) as tell:
            for done, later in enumerate((0.0, 29.0, 1.5, 29.0, 3660.0)):
                now[0] += later
                tell(done, 5, f"[b]{done}")
        times = ("0:00:00", "0:00:29", "0:00:30", "0:00:59", "1:01:59")
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err == "".join(f"bench: {times[done]}, {done} of 5 done, now [b]{done}\n" for done in shown)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Terminal()
    monkeypatch.setattr(sys, "stderr", seen)
    with progress("bench") as tell:
        tell(3, 7, "training [float32]")
    assert "3/7" in seen.getvalue()
    assert "training [float32]" in seen.getvalue()
    assert "of 7 done" not in seen.getvalue()
