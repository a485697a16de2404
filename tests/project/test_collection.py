"""Names of tests: the same in every process, or workers that share the tests refuse to begin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # the whole tree is collected twice
def test_two_collections_name_the_same_tests() -> None:
    """No name holds the time, a random number, an address or the order of a set."""
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", "-p", "no:benchmark", "tests"]
    collected = []
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        collected.append([line for line in done.stdout.splitlines() if "::" in line])
    assert len(collected[0]) > 1000
    assert collected[0] == collected[1]
