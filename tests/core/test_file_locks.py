"""Locks that end with their process, by the locks of this system and by those of Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lstmcore import files
from lstmcore.file_locks import hold_while_alive, wait_for_end
from windows_locks import SYSTEMS, make_msvcrt, use_locks_of

pytestmark = pytest.mark.skipif(not files.HAS_LOCKS, reason="the locks of Windows are simulated by those of others")

HOLD = """
import sys
from lstmcore.file_locks import hold_while_alive
file = open(sys.argv[1], "wb")
hold_while_alive(file)
print("held", flush=True)
sys.stdin.read()
"""
WAIT = """
import pathlib, sys
from lstmcore.file_locks import wait_for_end
with open(sys.argv[1], "rb") as file:
    print("waits", flush=True)
    wait_for_end(file)
    print(pathlib.Path(sys.argv[1] + ".mark").exists(), flush=True)
"""


def start(code: str, path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("system", SYSTEMS)
def test_others_wait_for_the_end_of_a_killed_process(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them, which both go on; a mark is there that was made while the process lived."""
    use_locks_of(system, tmp_path / "site", monkeypatch)
    path = tmp_path / "alive"
    with start(HOLD, path) as holder:
        assert line(holder) == "held"
        with start(WAIT, path) as one, start(WAIT, path) as two:
            assert [line(one), line(two)] == ["waits", "waits"]
            with pytest.raises(subprocess.TimeoutExpired):
                one.wait(1)
            Path(f"{path}.mark").touch()
            holder.kill()
            assert [line(one), line(two)] == ["True", "True"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_closed_file_is_free(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_locks_of(system, tmp_path / "site", monkeypatch)
    path = tmp_path / "alive"
    with path.open("wb") as file:
        hold_while_alive(file)
    with path.open("rb") as file:
        wait_for_end(file)


def test_the_locks_of_windows_do_not_wait(tmp_path: Path) -> None:
    """As its C library says of LK_NBLCK."""
    path, library = tmp_path / "alive", make_msvcrt()
    with path.open("wb") as one, path.open("rb") as two:
        library.locking(one.fileno(), library.LK_NBLCK, 1)
        with pytest.raises(PermissionError):
            library.locking(two.fileno(), library.LK_NBLCK, 1)
