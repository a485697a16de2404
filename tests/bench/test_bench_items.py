"""The benchmark's points as items of pytest-benchmark: what is collected, judged, saved and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lstmcore_conformance.bench import grids
from lstmcore_conformance.bench.jobs import MODES
from planted import planted
from plugins import Install

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

POINT = "inference-float32-100x1x32x32"
BENCH = "lstmcore_conformance.bench"

Items = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def items(install: Install, tmp_path: Path) -> Items:
    """Run pytest on the items, in a process that finds the planted backend `kind` under the name "planted"."""

    def run(kind: str, *options: str, package: str = BENCH) -> subprocess.CompletedProcess[str]:
        modules = list(tmp_path.glob("plugin_planted_*.py"))
        text = planted(kind).replace(f"'{kind}'", "'planted'")
        if modules:
            modules[0].write_text(text)
        else:
            install("planted", text)
        words = ["-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "-p", "no:cacheprovider", "-p", "no:xdist"]
        words += ["-p", "lstmcore_conformance.plugin", "--pyargs", package, "--lstm-backend", "planted"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # xdist's worker
        env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        return subprocess.run(
            [sys.executable, *words, *options], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    return run


def saved(folder: Path) -> Any:
    """Return the timings of the newest saved run."""
    return json.loads(max(folder.glob(".benchmarks/*/*.json")).read_text("utf-8"))["benchmarks"]


def test_every_point_and_mode_is_an_item(items: Items) -> None:
    found = items("right", "--collect-only")
    names = {line.partition("[")[2].rstrip("]") for line in found.stdout.splitlines() if "test_point[" in line}
    assert names == {
        f"{mode}-float32-{'x'.join(map(str, point))}" for mode in MODES for point in grids.points("quick", mode)
    }
    assert len(items("away", "--collect-only", "-k", POINT).stdout.split("test_point[")) == 3  # and with arrays there


def test_the_suite_does_not_collect_the_benchmark(items: Items) -> None:
    found = items("right", "--collect-only", package="lstmcore_conformance")
    assert "test_conforms[" in found.stdout
    assert "test_point[" not in found.stdout


def test_without_pytest_benchmark_there_is_the_install_line(items: Items) -> None:
    found = items("right", "-p", "no:benchmark")
    assert found.returncode != 0
    assert "'pytest-benchmark[histogram]>=5.1'" in found.stdout + found.stderr


def test_an_unknown_precision_is_a_mistake_of_the_command(items: Items) -> None:
    found = items("right", "--lstm-precision", "float99", "--collect-only")
    assert found.returncode != 0
    assert "--lstm-precision: " in found.stdout + found.stderr
    assert "float99" in found.stdout + found.stderr


@pytest.mark.parametrize("kind", ["wrong", "wrong_later"])
def test_wrong_values_fail_and_save_nothing(items: Items, tmp_path: Path, kind: str) -> None:
    found = items(kind, "-k", POINT, "--benchmark-max-time=0.01", "--benchmark-min-rounds=5", "--benchmark-autosave")
    assert found.returncode == 1
    assert "does not conform: y[" in found.stdout
    assert not list(tmp_path.glob(".benchmarks/*/*.json")) or saved(tmp_path) == []


@pytest.mark.slow  # three runs of pytest: four to twelve seconds
def test_a_slower_kernel_fails_the_comparison(items: Items, tmp_path: Path) -> None:
    """By a clock that moves by 1 ms a call, then 6: nothing else on the machine counts."""
    short = ("-k", POINT, "--benchmark-timer=stepping.seconds", "--benchmark-max-time=0.01")
    first = items("stepping", *short, "--benchmark-save=first")
    assert first.returncode == 0, first.stdout
    (one,) = saved(tmp_path)
    assert one["stats"]["median"] == pytest.approx(1e-3, rel=0.01)
    assert one["extra_info"]["point"] == {"T": 100, "N": 1, "I": 32, "H": 32}
    assert 0 < one["extra_info"]["share"] <= 1
    compare = ("--benchmark-compare=0001", "--benchmark-compare-fail=mean:10%")
    same = items("stepping", *short, *compare)
    assert same.returncode == 0, same.stdout
    slow = items("slow", *short, *compare)
    assert slow.returncode != 0
    assert "Performance has regressed" in slow.stdout + slow.stderr


# To import pygal here would put an importer into this process at which Python warns.
@pytest.mark.skipif(find_spec("pygal") is None, reason="pygal is not installed")
def test_the_histogram_is_drawn(items: Items, tmp_path: Path) -> None:
    short = ("-k", POINT, "--benchmark-max-time=0.01", "--benchmark-min-rounds=3")
    found = items("right", *short, "--benchmark-histogram=drawn")
    assert found.returncode == 0, found.stdout
    assert len(list(tmp_path.glob("drawn*.svg"))) == 1
