"""A backend in a module of its own: crashes, hangs and failures in a child process, and the files of a failure."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from lstmcore.backend import Backend
from lstmcore.cli import main
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.plugin_calls import PluginError
from lstmcore_conformance.oracle.budgets import Expected
from lstmcore_conformance.suite import isolated
from lstmcore_conformance.suite.backend_under_test import Failure
from lstmcore_conformance.suite.error_map import CELLS, error_map
from lstmcore_conformance.suite.failure_files import format_config, save_failure
from lstmcore_conformance.suite.report import ItemReport, Outcome
from lstmcore_conformance.suite.runner import chosen_items, run_item
from lstmcore_conformance.suite.target import load_target

#: A module as a user writes one: the NumPy backend with a fault where there are peepholes.
MODULE = """
import os, signal, sys, time
import numpy as np
from lstmcore.backend import Forward
from lstmcore_numpy.kernel import NumpyBackend, NumpyKernel


class Faulty(NumpyKernel):
    def _forward(self, *arguments, **options):
        found = super()._forward(*arguments, **options)
        if self.config.peephole:
            print("a backend may print", flush=True)
            {fault}
        return found


class Mine(NumpyBackend):
    name = "mine"

    def _compile(self, config, precision):
        return Faulty(self, config, precision)


def make():
    return Mine()


ready = Mine()
number = 3
"""
ITEM = "forward.switches[float32-peephole]"
SELECT = ("--precision", "float32", "-k", "forward.switches and (float32-peephole or float32-reverse)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which modules are found; no module of an earlier test is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mykernel", raising=False)
    yield tmp_path
    sys.modules.pop("mykernel", None)


def write(folder: Path, fault: str) -> None:
    (folder / "mykernel.py").write_text(MODULE.format(fault=fault), "utf-8")


def conform(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["conform", *arguments])


def outcomes(path: Path) -> dict[str, tuple[str, str]]:
    report = json.loads(path.read_text("utf-8"))
    return {
        item["id"]: (item["outcome"], item.get("message", "")) for check in report["checks"] for item in check["items"]
    }


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process ended by SIGSEGV, at this case"),
        ("os.abort()", "the process ended by SIGABRT, at this case"),
        ("os._exit(7)", "the process ended by exit code 7, at this case"),
    ],
)
def test_a_crash_names_its_case_and_the_run_goes_on(folder: Path, fault: str, told: str) -> None:
    write(folder, fault)
    found = conform("mykernel:Mine", *SELECT, "--json", "report.json")
    assert found.exit_code == 1, found.output
    ended = outcomes(folder / "report.json")
    bad = {id: what for id, what in ended.items() if what[0] != "passed"}
    assert bad and all("peephole" in id for id in bad)
    assert bad[ITEM] == ("error", told)
    assert any("reverse" in id for id in set(ended) - set(bad))  # it comes after peephole


def test_a_hang_is_a_case_that_takes_too_long(folder: Path) -> None:
    write(folder, "time.sleep(3600)")
    found = conform("mykernel:Mine", "--precision", "float32", "-k", ITEM, "--timeout", "2")
    assert found.exit_code == 1
    assert f"ERROR {ITEM}\n  the process took more than 2 s (--timeout), at this case" in found.output


def test_the_limit_begins_with_the_first_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """To load the backend and to list the cases takes the time that it takes: on a busy machine over two seconds."""
    lines = iter(['{"loaded": "mine"}', '{"begun": "a"}', '{"item": {}, "extent": {}}', '{"begun": "b"}', None])
    limits: list[float | None] = []

    def follow(_lines: object, _process: object, limit: float | None) -> str | None:
        limits.append(limit)
        return next(lines)

    monkeypatch.setattr(isolated, "_next", follow)
    records = list(isolated._records(isolated.Job("mine"), 2.0))
    assert records[-1] == {"ended": "took more than 2 s (--timeout)"}
    assert limits == [None, None, 2.0, 2.0, 2.0]


def test_a_worker_that_a_crash_leaves_behind_holds_nothing_up(folder: Path) -> None:
    """The worker has the child's end of the pipe, and would keep it for an hour."""
    write(folder, "os.fork() or time.sleep(3600)\n            os.kill(os.getpid(), signal.SIGKILL)")
    found = conform("mykernel:Mine", "--precision", "float32", "-k", ITEM, "--json", "report.json")
    assert found.exit_code == 1
    assert outcomes(folder / "report.json") == {ITEM: ("error", "the process ended by SIGKILL, at this case")}


def test_a_child_that_never_begins_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "pass")
    monkeypatch.setattr(isolated, "_records", lambda job, timeout: iter([{"ended": "ended by SIGKILL"}]))
    job = isolated.Job("mykernel:Mine", ("float32",), "forward.no_state")
    with pytest.raises(RuntimeError, match="the process ended by SIGKILL before a case began, 3 times"):
        isolated.run_job(job)


def test_the_child_finds_what_this_process_finds(folder: Path) -> None:
    write(folder, "found = (found[0] * np.float32(1.5), *found[1:])")
    reports = []
    for options in ((), ("--in-process",)):
        found = conform("mykernel:make", *SELECT, "--json", "report.json", *options)
        assert found.exit_code == 1
        report = json.loads((folder / "report.json").read_text("utf-8"))
        for check in report["checks"]:
            for item in check["items"]:
                del item["seconds"]
        reports.append((report["checks"], report["extent"], report["verdict"]))
    assert reports[0] == reports[1]


def test_a_target_is_a_backend_or_what_makes_one(folder: Path) -> None:
    write(folder, "pass")
    for name in ("mykernel:Mine", "mykernel:make", "mykernel:ready"):
        assert load_target(name).name == "mine"
    assert isinstance(load_target("numpy"), Backend)
    with pytest.raises(PluginError, match=r"backend 'mykernl:Mine': cannot be imported: ModuleNotFoundError"):
        load_target("mykernl:Mine")
    with pytest.raises(PluginError, match=r"cannot be imported: AttributeError: .*nothing"):
        load_target("mykernel:nothing")
    with pytest.raises(TypeError, match=r"mykernel:number: expected a Backend, or what makes one; got int"):
        load_target("mykernel:number")
    with pytest.raises(ValueError, match=r"expected MODULE:ATTRIBUTE, such as mykernel:MyBackend; got 'mykernel:'"):
        load_target("mykernel:")


def test_the_command_that_reproduces_a_failure_works(folder: Path) -> None:
    write(folder, "found = (found[0] + 1, *found[1:])")
    found = conform("mykernel:Mine", *SELECT)
    command = next(line.strip() for line in found.output.splitlines() if line.strip().startswith("lstmcore conform"))
    assert command == f"lstmcore conform mykernel:Mine -k '{ITEM}'"
    again = conform("mykernel:Mine", "-k", ITEM, "--in-process")
    assert again.exit_code == 1
    assert f"FAILED {ITEM}" in again.output


def test_a_failing_call_is_saved_with_a_script(folder: Path) -> None:
    """The script imports nothing of the suite, and shows the same error."""
    write(folder, "found[0][2, 1, 3:] += 1")
    found = conform("mykernel:Mine", *SELECT, "--save-failure", "failures", "--in-process")
    assert found.exit_code == 1
    (script,) = [
        path for path in (folder / "failures").glob("*.py") if path.name.startswith("forward.switches_float32-peephole")
    ]
    text = script.read_text("utf-8")
    assert "lstmcore_conformance" not in text
    saved = load_file(script.with_suffix(".safetensors"))
    above = np.argwhere(np.abs(saved["got.y"] - saved["expected.y"]) > 0.5)
    assert {tuple(index[:2]) for index in above.tolist()} == {(2, 1)}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path[1:]))}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the check does not compare" not in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("y "))
    assert float(line.split("largest error")[1].split()[0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "select",
    [
        "backward.switches and everything",
        "jvp.switches and everything",
        "stack.backward and L=2",
        "masks.backward and everything",
        "lengths.backward and plain",
        "weights.",
    ],
)
def test_every_kind_of_call_is_saved(folder: Path, select: str) -> None:
    """Derivatives, masks, lengths, stacks and stored weights: a script makes each call and finds the same values."""
    write(folder, "pass")
    job = isolated.Job("mykernel:Mine", ("float32",), select, profile="smoke", failures="failures")
    tested = job.tested()
    for item in chosen_items(tested, job.precisions, job.select, job.profile)[:2]:
        assert run_item(tested, item).outcome is Outcome.PASSED
        path = save_failure(folder, tested, item.id, Failure("planted"))
        assert path is not None
        names = runpy.run_path(str(path))["got"]
        assert all(np.isfinite(np.asarray(array, np.float64)).all() for array in names.values())


def test_a_script_does_not_compare_what_has_another_shape(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check may compare some rows of a call only."""
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    write(folder, "pass")
    tested = isolated.Job("mykernel:Mine").tested()
    (item,) = chosen_items(tested, ["float32"], ITEM, "quick")
    run_item(tested, item)
    rows = {"y": (np.ones((4, 1, 7), np.float32), Expected(np.zeros((4, 1, 7)), 1e-6, "float32"))}
    path = save_failure(folder, tested, item.id, Failure("planted", None, rows))
    runpy.run_path(str(path))
    assert "y (4, 3, 7) the check does not compare this array as it is" in capsys.readouterr().out


def test_a_configuration_is_written_as_python() -> None:
    from lstmcore.config import Activation  # noqa: F401  (the text names it)

    layer = LSTMConfig(input_size=2, hidden_size=3, peephole=True, gate_activation="hard_sigmoid", cell_clip=1.5)
    stack = StackConfig.make(layer, num_layers=2, bidirectional=True, dropout=0.25)
    for model in (layer, stack):
        assert eval(format_config(model)) == model
    assert format_config(LSTMConfig(input_size=2, hidden_size=3)) == "LSTMConfig(input_size=2, hidden_size=3)"


def test_errors_are_told_by_step_row_and_unit() -> None:
    want, got = np.zeros((9, 3, 20)), np.zeros((9, 3, 20), np.float32)
    got[4:7, 1, 16:] = 5
    got[8, 1, 16] = np.nan
    found = error_map("y", got, Expected(want, 1.0, "float32"))
    assert found is not None
    assert str(found) == (
        "y: 13 of 540 values are above the budget: steps 4 to 8 of 9, 4 of them, row 1 of 3, units 16 to 19 of 20"
    )
    assert len(found.cells) == 9 and len(found.cells[0]) == 20
    assert found.cells[4][16] == 5 and found.cells[8][16] == np.inf and found.cells[3][16] == 0
    assert error_map("y", np.zeros_like(got), Expected(want, 1.0, "float32")) is None


def test_a_map_of_a_large_array_keeps_its_worst_entry() -> None:
    want = np.zeros((1000, 2, 700))
    got = want.astype(np.float32)
    got[777, 1, 333] = 42
    found = error_map("dx", got, Expected(want, 1.0, "float32"))
    assert found is not None
    assert len(found.cells) == len(found.cells[0]) == CELLS
    assert max(map(max, found.cells)) == 42
    assert sum(value > 0 for row in found.cells for value in row) == 1
    bias = error_map("d_bias", got[:, 0, 0] + 2, Expected(want[:, 0, 0], 1.0, "float32"))
    assert bias is not None and len(bias.cells) == 1 and str(bias).endswith("every gate row (1000)")


def test_a_report_of_an_item_crosses_processes(folder: Path) -> None:
    write(folder, "found = (found[0] * np.float32(np.nan), *found[1:])")
    job = isolated.Job("mykernel:Mine", ("float32",), ITEM)
    (said,) = [record for record in isolated.said(job) if "item" in record]
    again = ItemReport.from_record(json.loads(json.dumps(said["item"])))
    assert again.outcome is Outcome.FAILED
    assert again.where is not None and again.where.above == again.where.size
    assert json.dumps(again.to_record()) == json.dumps(said["item"])


def test_what_changed_since_a_report(folder: Path) -> None:
    write(folder, "pass")
    assert conform("mykernel:Mine", *SELECT, "--in-process", "--json", "before.json").exit_code == 0
    same = conform("mykernel:Mine", *SELECT, "--in-process", "--since", "before.json")
    assert same.output.rstrip().endswith("Since before.json:\n  nothing changed")
    sys.modules.pop("mykernel")
    write(folder, "found = (found[0] + 1, *found[1:])")
    found = conform(
        "mykernel:Mine",
        *SELECT[:3],
        "forward.switches and (plain or peephole)",
        "--in-process",
        "--since",
        "before.json",
    )
    after = found.output[found.output.index("Since before.json:") :]
    assert f"fail and did not before:\n    {ITEM}" in after
    assert "are not in this report:\n    forward.switches[float32-reverse]" in after
    assert "have a larger error:" in after
    (folder / "other.json").write_text("{}", "utf-8")
    wrong = conform("mykernel:Mine", *SELECT, "--since", "other.json")
    assert wrong.exit_code == 2
    assert "other.json: expected a report of 'lstmcore conform --json'; got another file" in wrong.output
