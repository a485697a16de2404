"""Discovery: broken plug-ins are told and stop nobody, names are checked, variables are obeyed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lstmcore import registry
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS
from plugins import Install, good


def _record(name: str) -> registry.BackendRecord:
    return next(record for record in registry.backends() if record.name == name)


def test_a_plugin_is_found_once(install: Install) -> None:
    install("own")
    assert _record("own").available
    assert registry.get_backend("own") is registry.get_backend("own")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise RuntimeError('broken here')", "RuntimeError: broken here"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("raise SystemExit('gone')", "SystemExit: gone"),
        (good("other"), "expected the name 'bad'; got 'other'"),
        (good("bad").replace("return Own()", "return 3"), "expected a Backend; got 3"),
        (good("bad").replace("return Own()", "1 / 0"), "ZeroDivisionError"),
        ("", "expected a BackendInfo"),
        (good("bad").replace('"1"', "1"), "version: expected a text; got 1"),
        (good("bad").replace("None)", "7)"), "unavailable: expected a text or None; got 7"),
        (good("bad").replace("None)", "None, priority=True)"), "priority: expected a whole number or None; got True"),
        (good("bad").replace("lambda: None", "exit"), "unavailable failed: SystemExit"),
        (
            good("bad").replace("@hookimpl", "Own.capabilities = lambda self: 3\n\n@hookimpl", 1),
            "capabilities: expected Capabilities; got 3",
        ),
        (
            good("bad").replace("@hookimpl", "Own.capabilities = lambda self: exit(0)\n\n@hookimpl", 1),
            "capabilities failed: SystemExit",
        ),
    ],
)
def test_a_broken_plugin_is_told_and_stops_nobody(install: Install, code: str, told: str) -> None:
    install("bad", code)
    record = _record("bad")
    assert not record.available
    assert told in record.reason
    assert _record("numpy").available
    with pytest.raises(registry.PluginError, match="bad"):
        registry.get_backend("bad")


def test_what_is_unavailable_says_why(install: Install) -> None:
    install("far", reason="run pip install far")
    assert _record("far").reason == "run pip install far"
    with pytest.raises(registry.UnavailableError, match="pip install far"):
        registry.get_backend("far")


def test_two_claims_to_a_name(install: Install) -> None:
    install("own", module="first_claim")
    install("own", module="second_claim")
    with pytest.raises(registry.PluginError, match=r"first_claim.*second_claim|second_claim.*first_claim"):
        registry.get_backend("own")
    assert "two distributions" in _record("own").reason


def test_unknown_name(install: Install) -> None:
    with pytest.raises(ValueError, match=r"expected one of .*numpy.*; got 'nunpy'; did you mean 'numpy'\?"):
        registry.get_backend("nunpy")


def test_a_name_loads_that_plugin_alone(install: Install) -> None:
    install("own")
    other = install("other")
    registry.get_backend("own")
    assert other not in sys.modules


def test_variables(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "reference")
    assert registry.get_backend().name == "reference"
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "nothing")
    stack = StackConfig.make(LSTMConfig(input_size=2, hidden_size=3))
    for call in (registry.get_backend, lambda: registry.select(stack, PRECISIONS["float32"])):
        with pytest.raises(
            ValueError, match=r"^LSTMCORE_BACKEND='nothing': backend: expected one of .*; got 'nothing'"
        ):
            call()
    with pytest.raises(ValueError, match=r"^backend: expected one of"):
        registry.get_backend("nothing")
    install("far", reason="run pip install far")
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "far")
    with pytest.raises(registry.UnavailableError, match=r"^LSTMCORE_BACKEND='far': backend 'far' cannot run here"):
        registry.get_backend()
    monkeypatch.setenv(registry.BACKEND_VARIABLE, "")
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "numpy,reference")
    assert registry.get_backend().name == "numpy"
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "reference")
    assert [record.name for record in registry.backends()] == ["reference"]
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "")
    assert registry.backends() == []
    with pytest.raises(ValueError, match="LSTMCORE_PLUGINS"):
        registry.get_backend()
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "numpi")
    with pytest.raises(ValueError, match=r"LSTMCORE_PLUGINS.*did you mean 'numpy'"):
        registry.backends()


def test_auto_passes_over_what_refuses_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstmcore_cupy._unavailable", lambda: "no cupy here")
    monkeypatch.delenv(registry.BACKEND_VARIABLE, raising=False)
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "cupy,numpy,reference")
    stack = StackConfig.make(LSTMConfig(input_size=2, hidden_size=3))
    selection = registry.select(stack, PRECISIONS["float32"], "auto")
    assert selection.backend.name == "numpy"
    assert "no cupy here" in selection.skipped["cupy"]
    with pytest.raises(ValueError, match="bfloat16"):
        registry.select(stack, PRECISIONS["bfloat16"], "auto")


def test_auto_takes_the_highest_priority(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in of a third party is found by `auto` if it asks to be; equal priorities go by name."""
    stack = StackConfig.make(LSTMConfig(input_size=2, hidden_size=3))

    def selected(*names: str) -> registry.Selection:
        monkeypatch.setenv(registry.PLUGINS_VARIABLE, ",".join(names))
        return registry.select(stack, PRECISIONS["float64"], "auto")

    for name, priority in (("second", "150"), ("first", "150"), ("slow", "-1"), ("silent", "None")):
        install(name, good(name).replace("None)", f"None, priority={priority})"))
    assert selected("numpy", "second", "first", "silent").backend.name == "first"
    assert selected("numpy", "second", "silent").backend.name == "second"
    assert selected("numpy", "slow").backend.name == "numpy"
    assert selected("slow").backend.name == "slow"
    with pytest.raises(ValueError, match=r"'auto' found none of the installed ones .*\(LSTMCORE_PLUGINS='silent'"):
        selected("silent")
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "first")
    with pytest.raises(ValueError, match=r"'auto' found none of first .*float32"):
        registry.select(stack, PRECISIONS["float32"], "auto")


def test_auto_says_which_plugin_tells_no_priority(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("bad", "raise RuntimeError('broken here')")
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "bad,numpy")
    stack = StackConfig.make(LSTMConfig(input_size=2, hidden_size=3))
    selection = registry.select(stack, PRECISIONS["float32"], "auto")
    assert (selection.backend.name, selection.skipped) == ("numpy", {})
    assert "bad has no known priority: backend 'bad': the plug-in" in selection.reason
    assert "broken here" in selection.reason


def test_importing_lstmcore_imports_no_backend() -> None:
    code = "import lstmcore, sys; print([m for m in sys.modules if m.startswith('lstmcore_')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
