"""Inputs that failed once, and a few of each target by seed: the fuzzer's targets hold on them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from fuzz_source import Source, random_bytes
from fuzz_targets import TARGETS, missing

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
#: Others compile for a minute, or take a second to import; the fuzzer's session has them.
FAST = [name for name, target in TARGETS.items() if not target.apart and name != "kernels-numba"]


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.mkdir(exist_ok=True)
    monkeypatch.setenv("LSTMCORE_FUZZ_FOLDER", str(path))
    monkeypatch.chdir(path)


def run(name: str, data: bytes) -> None:
    if lacking := missing(name):
        pytest.skip(f"needs {lacking}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's about overflow
        TARGETS[name].run(Source(data))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_failed_once_holds(path: Path) -> None:
    run(path.parent.name, path.read_bytes())


@pytest.mark.parametrize("name", FAST)
def test_a_few_inputs_of_each_target(name: str) -> None:
    for seed in range(max(16 // TARGETS[name].cost, 1)):
        run(name, random_bytes(seed))


def test_the_corpus_is_of_targets_that_are_there() -> None:
    assert {path.parent.name for path in KEPT} <= set(TARGETS)
