"""Saves and trainings that are killed, full disks and folders that change: no half file, and the same bits after."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_runs import error as told_by
from cli_runs import succeed
from lstmcore import LSTM
from lstmcore.files import write_atomically
from lstmcore.training import SequenceModel, Trainer
from small_models import data, make, trainer

#: What ends a program from outside: Ctrl-C, a manager of processes, a terminal that closes.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def in_child(run: Callable[[], None]) -> int:
    """Run a function in a forked process, and return its number; its exit code is 0 if nothing was raised."""
    child = os.fork()
    if child:
        return child
    try:
        run()
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def end(child: int, *, after_s: float | None = None) -> int:
    """Wait for a child, or kill it after a while, and return its exit code."""
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(one: SequenceModel, other: SequenceModel) -> bool:
    return one.parameters.keys() == other.parameters.keys() and all(
        np.array_equal(value, other.parameters[name]) for name, value in one.parameters.items()
    )


def header_of(path: Path) -> dict[str, Any]:
    """Return the header of a checkpoint."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["lstmcore"])
    return header


def test_killed_saves_lose_nothing(tmp_path: Path, kills: int) -> None:
    """The file is the old one or the new one, whole; what the killed processes left goes with the next save."""
    path, models = tmp_path / "model", (make(), make(peephole=True))
    models[0].save(path)
    random = np.random.default_rng(0)

    def save_again_and_again() -> None:
        for turn in range(10**6):
            models[turn % 2].save(path)

    killed = 0
    for _ in range(kills):
        killed += end(in_child(save_again_and_again), after_s=float(random.uniform(0, 0.02))) == -signal.SIGKILL
        found = SequenceModel.load(path, backend="numpy")
        assert same(found, models[0]) or same(found, models[1])
    models[1].save(path)
    assert killed == kills
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_killed_trainings_go_on_with_the_same_bits(tmp_path: Path, kills: int) -> None:
    inputs, targets = data()
    whole = make()
    expected = trainer(whole, epochs=8).fit(inputs, targets)
    random = np.random.default_rng(1)
    done = []
    for turn in range(max(kills // 10, 2)):
        path = tmp_path / f"run{turn}"
        child = in_child(lambda path=path: trainer(make(), epochs=8, checkpoint=path).fit(inputs, targets))
        while not path.exists():  # it comes with the first epoch
            time.sleep(0.001)
        end(child, after_s=float(random.uniform(0, 0.05)))
        model = make()
        done.append(len(header_of(path)["history"]["epochs"]))
        assert trainer(model, epochs=8, checkpoint=path).fit(inputs, targets, resume=path) == expected
        assert same(model, whole)
        assert [entry.name for entry in tmp_path.glob(".lstmcore*")] == []
    print(f"{len(done)} runs went on after {min(done)} to {max(done)} of 8 epochs")


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, size: int) -> None:
    """By the limit of a file's size, which needs no rights; the error names the file, and nothing is left over."""
    path, model = tmp_path / "model", make()
    model.save(path)
    before = path.read_bytes()
    assert len(before) > 2000

    def save() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with pytest.raises(OSError, match="File too large") as caught:
            model.save(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))

    assert end(in_child(save)) == 0
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_ends_no_training(tmp_path: Path) -> None:
    inputs, targets = data()
    whole = make()
    trainer(whole, epochs=2).fit(inputs, targets)

    def train() -> None:
        import warnings

        warnings.simplefilter("ignore")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        model = make()
        trainer(model, epochs=2, checkpoint=tmp_path / "run").fit(inputs, targets)
        assert same(model, whole)

    assert end(in_child(train)) == 0
    assert list(tmp_path.iterdir()) == []


def user() -> int:
    """Return a user without rights; as root the test gives its rights up."""
    return 65534 if os.geteuid() == 0 else os.geteuid()


def test_a_folder_that_gets_read_only_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chmod(tmp_path, 0o755)
    for above in tmp_path.parents[:2]:
        os.chmod(above, 0o755)
    folder.chmod(0o555)

    def save() -> None:
        if os.geteuid() == 0:
            os.setuid(user())
        with pytest.raises(ValueError, match=r"^--out: expected a file in a folder that you may write to; got "):
            write_atomically(folder / "model", b"x", name="--out")

    try:
        assert end(in_child(save)) == 0
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: folder.rmdir(), "expected a file in a folder that exists; got 'folder/m'"),
        (lambda folder: folder.chmod(0o555), "expected a file in a folder that you may write to; got 'folder/m'"),
    ],
    ids=["vanished", "read-only"],
)
def test_a_folder_that_changes_in_a_training_is_told_by_the_option(
    tmp_path: Path, change: Callable[[Path], None], told: str
) -> None:
    """The command checks the folder before it trains; here it changes after that."""
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o777)

    def train() -> None:
        os.chdir(tmp_path)
        Path("s.csv").write_text("y\n" + "".join(f"{k % 7}\n" for k in range(40)))
        small = ("--window", "3", "--epochs", "1", "--hidden-size", "2", "--quiet", "--backend", "numpy")
        words = ("train", "s.csv", "--target", "y", *small, "--out")
        succeed(*words, "m")  # imports what the user without rights may not read
        if os.geteuid() == 0:
            os.setuid(user())
        folder, fit = Path("folder"), Trainer.fit
        folder.mkdir()

        def fit_and_change(*given: Any, **named: Any) -> Any:
            history = fit(*given, **named)
            change(folder)
            return history

        Trainer.fit = fit_and_change  # type: ignore[method-assign]  # in this process, which ends after the command
        assert told_by(*words, "folder/m").startswith(f"--out: {told}")
        if folder.exists():
            folder.chmod(0o755)

    assert end(in_child(train)) == 0


@pytest.mark.parametrize("killed", [False, True], ids=["answers", "killed"])
def test_a_disk_that_stands_still(tmp_path: Path, killed: bool) -> None:
    """While a save waits for the disk, others read the old file, and save; then it is whole, or there is none of it."""
    path, models = tmp_path / "model", (make(), make(peephole=True))
    models[0].save(path)
    (waits, tell_waits), (go_on, tell_on) = os.pipe(), os.pipe()

    def save() -> None:
        flush = os.fsync

        def wait(number: int) -> None:
            os.write(tell_waits, b"x")
            os.read(go_on, 1)
            flush(number)

        os.fsync = wait
        models[1].save(path)

    child = in_child(save)
    assert os.read(waits, 1) == b"x"
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert len(names) == 2
    models[0].save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names  # with the file of the save that waits
    assert same(SequenceModel.load(path, backend="numpy"), models[0])
    if killed:
        assert end(child, after_s=0) == -signal.SIGKILL
        models[0].save(path)
    else:
        os.write(tell_on, b"x")
        assert end(child) == 0
    assert same(SequenceModel.load(path, backend="numpy"), models[not killed])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    for number in (waits, tell_waits, go_on, tell_on):
        os.close(number)


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from lstmcore.cli import main; main()", *words]


def test_out_of_memory_is_one_line(tmp_path: Path) -> None:
    """The limit is on the address space, which is what an array beyond the machine meets."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))"
    code = f"{limit}; from lstmcore.cli import main; main()"
    words = ("train", "japanese-vowels", "--hidden-size", "30000", "--backend", "numpy", "--out", "m", "--epochs", "1")
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lstmcore: error: out of memory")
    assert last.endswith("choose a smaller model, batch, window or precision")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def heed_signals() -> None:
    """Do with signals what a program in a terminal does: one that runs in the background may ignore some."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training with a checkpoint, after its first epoch."""
    words = ("train", "japanese-vowels", "--hidden-size", "8", "--backend", "numpy", "--epochs", "10000")
    process = subprocess.Popen(
        command(*words, "--checkpoint", "run", "--out", "m", "--patience", "0"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals,
    )  # fmt: skip
    end_s = time.monotonic() + 300
    while not (tmp_path / "run").exists() and process.poll() is None and time.monotonic() < end_s:
        time.sleep(0.05)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_training_and_leaves_a_whole_checkpoint(
    running: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    running.send_signal(number)
    _, errors = running.communicate(timeout=120)
    if number == signal.SIGINT:
        assert running.returncode == 130  # as a shell has it
        assert "--checkpoint run" in errors.strip().splitlines()[-1]  # the command that goes on
    else:
        assert running.returncode == -number
    assert "Traceback" not in errors
    assert len(header_of(tmp_path / "run")["history"]["epochs"]) >= 1


def test_a_clock_that_goes_backwards_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clock runs backwards by an hour a call, in a training and in a save."""
    now = [2e9]

    def back() -> float:
        now[0] -= 3600
        return now[0]

    inputs, targets = data()
    whole, model = make(), make()
    expected = trainer(whole, epochs=3).fit(inputs, targets)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, back)
    assert trainer(model, epochs=3, checkpoint=tmp_path / "run").fit(inputs, targets) == expected
    assert same(model, whole)
    lstm = LSTM(2, 3, seed=0, backend="numpy")
    lstm.save(tmp_path / "lstm")
    assert LSTM.load(tmp_path / "lstm", backend="numpy").stack == lstm.stack
