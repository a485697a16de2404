"""The ways to run the suite: ``lstmcore conform`` and the pytest plug-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lstmcore.cli import main
from lstmcore_conformance.mutants import MUTANTS

SELECT = ("-k", "forward.no_state")


def conform(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["conform", *arguments])


def test_a_backend_that_conforms_is_exit_code_0(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    found = conform("reference", *SELECT, "--json", str(path))
    assert found.exit_code == 0, found.output
    assert "forward.no_state" in found.output
    assert "not declared, the reference is evaluated in float64:\n  bfloat16, float16, float32, tf32\n" in found.output
    report = json.loads(path.read_text())
    assert report["conforms"]
    assert report["selection"] == "forward.no_state"


def test_a_failure_is_exit_code_1_and_tells_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lstmcore_conformance.suite.target.get_backend", lambda name: MUTANTS["contract.none_state"].make()
    )
    found = conform("naive", *SELECT, "--precision", "float32", "--in-process")
    assert found.exit_code == 1
    assert "FAILED forward.no_state[float32-no_state,plain]" in found.output
    assert "of the budget" in found.output
    assert "lstmcore conform naive -k 'forward.no_state[float32-no_state,plain]'" in found.output
    assert "does not conform" in found.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("refrence",), "did you mean 'reference'"),
        (("reference", "-k", "no_such_check"), "no_such_check"),
        (("reference", "--precision", "float16"), "float16"),
        (("reference", "--json", "no/such/folder/report.json"), "--json"),
    ],
)
def test_a_mistake_is_exit_code_2_and_one_line(arguments: tuple[str, ...], word: str) -> None:
    found = conform(*arguments)
    assert found.exit_code == 2
    assert word in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_json_on_standard_output_is_json_alone() -> None:
    found = conform("reference", *SELECT, "--json", "-")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["backend"] == "reference"


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "-p", "no:cacheprovider"]
    command += ["-p", "lstmcore_conformance.plugin", "--pyargs", "lstmcore_conformance", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_plugin_runs_the_same_items(tmp_path: Path) -> None:
    found = run_pytest(tmp_path, "--lstm-backend", "reference", "-v", "-rp", "-k", "no_state")
    assert found.returncode == 0, found.stdout
    for check in ("forward.no_state", "backward.no_state"):
        for name in ("plain", "proj_size", "peephole", "everything"):
            assert f"test_conforms[{check}[float64-no_state,{name}]]\n" in found.stdout


@pytest.mark.parametrize(
    "arguments",
    [(), ("--lstm-backend", "refrence"), ("--lstm-backend", "reference", "--lstm-precision", "float16")],
)
def test_the_plugin_never_skips_what_was_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    found = run_pytest(tmp_path, *arguments)
    assert found.returncode not in (0, 5)
    assert "skipped" not in found.stdout


@pytest.mark.parametrize("arguments", [("--lstm-seed", "-1"), ("--lstm-seed", "x"), ("--lstm-max-examples", "0")])
def test_the_plugin_refuses_draws_that_there_cannot_be(tmp_path: Path, arguments: tuple[str, str]) -> None:
    found = run_pytest(tmp_path, "--lstm-backend", "reference", *arguments)
    assert found.returncode == 4
    assert "expected a whole number of at least" in found.stderr


def test_the_plugin_draws_what_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(
        """
import pytest


@pytest.fixture(autouse=True, scope="session")
def printed(lstm_backend_under_test):
    draws = lstm_backend_under_test.draws
    print(f"seed {draws.seed}, {draws.max_examples} examples")
"""
    )
    options = ("--lstm-seed", "7", "--lstm-max-examples", "3", "-s", "-k", "drawn.forward", "-p", "counting")
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "-p", "no:cacheprovider"]
    command += ["-p", "lstmcore_conformance.plugin", "--pyargs", "lstmcore_conformance", "--lstm-backend", "reference"]
    found = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "seed 7, 3 examples" in found.stdout


@pytest.mark.parametrize("option", ["--json", "--junit", "--html", "--badge"])
def test_a_folder_in_place_of_a_file_is_refused_first(tmp_path: Path, option: str) -> None:
    """A folder in place of a file is refused before anything runs."""
    found = conform("reference", option, str(tmp_path))
    assert found.exit_code == 2
    assert f"{option}: expected a file; got the folder '{tmp_path}'" in found.output
    assert "passed" not in found.output


@pytest.mark.slow  # two collections of the suite: three to ten seconds
def test_the_full_profile_runs_more_and_the_report_names_it(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    found = conform("reference", "-k", "forward.long and plain", "--profile", "full", "--json", str(path))
    assert found.exit_code == 0, found.output
    assert json.loads(path.read_text())["profile"] == "full"
    listed = [
        run_pytest(tmp_path, "--lstm-backend", "reference", "--collect-only", "--lstm-profile", name).stdout
        for name in ("quick", "full")
    ]
    long = "test_conforms[state.long["
    assert long not in listed[0]
    assert long in listed[1]
