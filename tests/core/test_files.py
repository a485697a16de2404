"""Writing of files: whole or not at all, what cannot be written is told, and killed saves leave nothing for good."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lstmcore import files
from lstmcore.files import UnwritableError, write_atomically

#: Writes `name` into the working folder, and stops at the point where the file is synced.
SAVE = """
import os, signal, sys
from lstmcore import files
def stop(number):
    print("written", flush=True)
    {stop}
files.os.fsync = stop
files.write_atomically(sys.argv[1], b"new" * 1000)
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
WAIT = "sys.stdin.read()"
posix = pytest.mark.skipif(not files.HAS_LOCKS, reason="this system has no locks of files")


@contextmanager
def saving(folder: Path, name: str, stop: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes a file and stops in it; its end is waited for."""
    command = [sys.executable, "-c", SAVE.format(stop=stop), name]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process


def leave(folder: Path, name: str) -> None:
    """Kill a process that writes a file."""
    with saving(folder, name, KILL) as process:
        assert process.wait() == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
def test_the_next_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """Of the same name only, and not what a living process still writes or what is another file."""
    write_atomically(tmp_path / "model", b"old")
    leave(tmp_path, "model")
    (leftover,) = set(names(tmp_path)) - {"model"}
    assert (tmp_path / "model").read_bytes() == b"old"
    leave(tmp_path, "other")
    (tmp_path / f"{leftover}.d").mkdir()
    (tmp_path / f"{leftover}.l").symlink_to(tmp_path / "model")
    with saving(tmp_path, "model", WAIT) as living:
        before = names(tmp_path)
        assert leftover not in before
        write_atomically(tmp_path / "model", b"newer")
        assert names(tmp_path) == before  # with the temporary file of the living process
        assert living.communicate("")[0] == ""
    assert living.returncode == 0
    assert (tmp_path / "model").read_bytes() == b"new" * 1000
    write_atomically(tmp_path / "other", b"other")
    assert names(tmp_path) == [f"{leftover}.d", f"{leftover}.l", "model", "other"]


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_left(tmp_path: Path) -> None:
    leave(tmp_path, "model")
    (leftover,) = tmp_path.iterdir()
    os.chown(leftover, 12345, -1)
    write_atomically(tmp_path / "model", b"new")
    assert leftover.exists()


def test_the_longest_name_is_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("n" * 255), b"x")
    assert names(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "model"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_atomically(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert names(tmp_path) == ["model"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_goes_away_is_told_by_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the file is made, and while it is written."""
    folder = tmp_path / "folder"
    with pytest.raises(
        UnwritableError, match=r"^--out: expected a file in a folder that exists; got .*make the folder"
    ):
        write_atomically(folder / "model", b"x", name="--out")
    folder.mkdir()

    def vanish(_: int) -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    monkeypatch.setattr(files.os, "fsync", vanish)
    with pytest.raises(
        UnwritableError, match=r"^--out: expected a file in a folder that exists; .*folder went away"
    ) as e:
        write_atomically(folder / "model", b"x", name="--out")
    assert (e.value.name, e.value.path) == ("--out", folder / "model")


def test_a_working_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(UnwritableError, match=r"^path: expected a file in a folder that exists; got 'model'"):
        write_atomically("model", b"x")
