"""The command backends: every plug-in is listed, what is wrong with it is told, and a mistake is one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lstmcore import registry
from lstmcore.cli import main
from lstmcore.config import FEATURES
from plugins import Install, good

WIDTH = 160
HEADINGS = ("name", "runs", "version", "device", "precisions", "switches", "derivatives")
LONG = "and told in one line, however narrow the terminal; " * (WIDTH // 40) + "end"


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(main, ["backends", *arguments])


def listed(*arguments: str) -> list[dict[str, Any]]:
    """The records of ``--json``, which is alone on standard output."""
    found = run("--json", *arguments)
    assert found.exit_code == 0, found.output
    assert found.stderr == ""
    records = json.loads(found.stdout)
    assert isinstance(records, list)
    return records


#: The backends that this distribution brings.
OWN = sorted(point.name for point in distribution("lstmcore").entry_points.select(group="lstmcore.backends"))


def record(name: str) -> dict[str, Any]:
    return next(record for record in listed() if record["name"] == name)


def rows(output: str) -> dict[str, list[str]]:
    """Name -> the other cells of its row of the table; a cell begins where its heading does."""
    head, _, *lines = output.partition("\n\n")[0].splitlines()
    starts = [head.index(name) for name in HEADINGS]
    cells = [
        [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for line in lines
    ]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_no_word_is_broken(install: Install, width: int) -> None:
    """However narrow the terminal is: every word of every cell is there whole, in no line that is too long."""
    install("far", reason="run pip install far")
    found = CliRunner(env={"COLUMNS": str(width)}).invoke(main, ["backends"])
    assert found.exit_code == 0, found.output
    table, _, notes = found.stdout.partition("\n\n")
    assert all(len(line) <= width for line in table.splitlines())
    assert "far: run pip install far" in notes.splitlines()
    words = set(re.split(r"[ ,;:\n]+", table))
    declared = registry.get_backend("numpy").capabilities()
    names = {one.name for one in registry.backends()}
    assert words >= names | declared.precisions | declared.derivatives | {declared.device, *HEADINGS[2:]}
    assert any(line.startswith("numpy ") for line in table.splitlines()) == (width >= 80)  # a table, else a paragraph


def test_the_table_has_a_row_for_every_backend(install: Install) -> None:
    install("far", reason="run pip install far")
    found = run()
    assert found.exit_code == 0, found.output
    table = rows(found.stdout)
    assert list(table) == sorted(["far", *OWN]) == [one.name for one in registry.backends()]
    for name in ("numpy", "reference"):
        declared = registry.get_backend(name).capabilities()
        runs, version, device, precisions, switches, derivatives = table[name]
        assert (runs, device, switches) == ("yes", declared.device, "all")
        assert version == record(name)["version"] != ""
        assert precisions.split(", ") == sorted(declared.precisions)
        assert derivatives.split(", ") == sorted(declared.derivatives)
        assert f"{name}: {record(name)['summary']}" in found.stdout
    assert table["far"] == ["no", "1", "", "", "", ""]
    assert "far: run pip install far" in found.stdout.splitlines()


def test_a_backend_with_few_switches_tells_their_number(install: Install) -> None:
    declared = "Capabilities('cpu', frozenset({'float64'}), frozenset({'peephole', 'lengths'}))"
    few = f"Own.capabilities = lambda self: {declared}"
    code = "from lstmcore.backend import Capabilities\n" + good("few").replace("@hookimpl", f"{few}\n\n@hookimpl", 1)
    install("few", code)
    assert rows(run().stdout)["few"][4] == f"2 of {len(FEATURES)}"
    assert record("few")["capabilities"]["features"] == ["lengths", "peephole"]


def test_brackets_and_colons_of_a_plugin_are_text(install: Install) -> None:
    install("own", good("own").replace('"1"', '"[/1]:smile:"').replace("a test", "[/b] :smile:"))
    found = run()
    assert found.exit_code == 0, found.output
    assert rows(found.stdout)["own"][1] == "[/1]:smile:"
    assert "own: [/b] :smile:" in found.stdout.splitlines()


def test_json_has_what_a_backend_declares(install: Install) -> None:
    install("far", reason="run pip install far")
    found = listed()
    assert [one["name"] for one in found] == sorted(["far", *OWN])
    for one in found:
        assert set(one) == {"name", "available", "reason", "version", "summary", "device", "capabilities"}
    declared = registry.get_backend("numpy").capabilities()
    numpy = record("numpy")
    assert (numpy["available"], numpy["reason"], numpy["device"]) == (True, "", declared.device)
    assert set(numpy["capabilities"]["precisions"]) == declared.precisions
    assert set(numpy["capabilities"]["features"]) == declared.features
    assert set(numpy["capabilities"]["derivatives"]) == declared.derivatives
    assert numpy["capabilities"]["reasons"] == dict(declared.reasons)
    assert record("far") == {
        "name": "far",
        "available": False,
        "reason": "run pip install far",
        "version": "1",
        "summary": "a test",
        "device": None,
        "capabilities": None,
    }


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (f"raise RuntimeError('broken [here]\\n{LONG}')", f"RuntimeError: broken [here] {LONG}"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("", "lstmcore_backend_info: expected a BackendInfo; got None"),
        (good("bad").replace("return Own()", "1 / 0"), "lstmcore_backend failed: ZeroDivisionError: division by zero"),
        ("raise MemoryError", "cannot be loaded: MemoryError"),
    ],
)
def test_a_broken_plugin_is_shown_and_the_others_too(install: Install, code: str, told: str) -> None:
    install("bad", code)
    found = run()
    assert found.exit_code == 0, found.output
    assert "Traceback" not in found.output
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("bad: ")]
    assert line.endswith(told)
    assert rows(found.stdout)["bad"][0] == "no"
    assert rows(found.stdout)["numpy"][0] == "yes"
    assert not record("bad")["available"]
    assert record("bad")["reason"].endswith(told)
    assert record("numpy")["available"]


def test_a_plugin_that_prints_leaves_the_json_alone(install: Install) -> None:
    """By print, by the descriptor and by a child; in a process of its own, whose descriptors are no one else's."""
    prints = "import os, subprocess, sys\nprint('text')\nos.write(1, b'bytes\\n')\n"
    module = install("loud", f"{prints}subprocess.run([sys.executable, '-c', 'print(3)'])\n{good('loud')}")
    folder = Path(str(sys.path[0]))
    assert (folder / f"{module}.py").exists()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), registry.PLUGINS_VARIABLE: "loud,numpy"}
    command = [sys.executable, "-c", "from lstmcore.cli import main; main()", "backends", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [one["name"] for one in json.loads(done.stdout)] == ["loud", "numpy"]
    printed = [line for line in done.stderr.splitlines() if not line.startswith("lstmcore: ")]
    assert sorted(printed) == ["3", "bytes", "text"]


def test_a_closed_standard_output_is_no_traceback() -> None:
    command = f"{sys.executable} -c 'from lstmcore.cli import main; main()' backends --json >&-"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), registry.PLUGINS_VARIABLE: "numpy"}
    done = subprocess.run(command, env=environment, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_the_variable_limits_what_is_listed_and_loaded(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("loud", "raise SystemExit('this must not be loaded')")
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, " reference ,numpy")
    assert [one["name"] for one in listed()] == ["numpy", "reference"]
    assert "loud" not in run().output
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "")
    assert listed() == []
    assert run().exit_code == 0


def test_a_backend_is_compiled_ahead(install: Install) -> None:
    """A backend says what it compiled for which precision; one that compiles nothing is no error."""
    method = "    def warm(self, precision): return precision + ' loops'"
    install("own", good("own").replace("name = 'own'", f"name = 'own'\n{method}"))
    found = run("--warm", "own", "--precision", "float16")
    assert re.fullmatch(r"own: compiled in \d+\.\d s for float16: float16 loops\n", found.stdout), found.output
    assert run("--warm", "numpy").stdout == "numpy: has nothing to compile ahead\n"


@pytest.mark.parametrize(
    ("plugins", "arguments", "told"),
    [
        ("numpi", (), f"LSTMCORE_PLUGINS: expected one of {', '.join(OWN)}; got 'numpi'; did you mean 'numpy'?"),
        ("numpi", ("--json",), "did you mean 'numpy'?"),
        (None, ("--jsn",), "--jsn"),
        (None, ("numpy",), "numpy"),
        (None, ("--warm", "numpi"), "did you mean 'numpy'?"),
        (None, ("--warm", "numpy", "--json"), "--warm: expected no --json with it"),
    ],
)
def test_a_mistake_is_exit_code_2_and_one_line(
    install: Install, monkeypatch: pytest.MonkeyPatch, plugins: str | None, arguments: tuple[str, ...], told: str
) -> None:
    if plugins is not None:
        monkeypatch.setenv(registry.PLUGINS_VARIABLE, plugins)
    found = run(*arguments)
    assert found.exit_code == 2
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith("lstmcore: error: ") and told in line
    assert "Traceback" not in found.stderr
