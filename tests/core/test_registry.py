"""Discovery: broken plug-ins are told and stop nobody, names are checked, variables are obeyed."""

from __future__ import annotations

import io
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from lstmcore import plugin_calls, registry
from lstmcore.cli import main
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS
from plugins import Install, good

#: An exception, or a value, that has no text.
UNTOLD = """
class Untold(Exception):
    def __str__(self): raise RuntimeError('no text')
    __repr__ = __str__
"""


def declaring(argument: str) -> str:
    """Return a plug-in whose capabilities have this argument."""
    name = argument.partition("=")[0]
    others = {"device": "'cpu'", "precisions": "{'float32'}", "features": "()"}
    arguments = ", ".join(f"{key}={value}" for key, value in others.items() if key != name)
    declared = f"Own.capabilities = lambda self: Capabilities({arguments}, {argument})"
    return "from lstmcore.backend import Capabilities\n" + good("bad").replace(
        "@hookimpl", f"{declared}\n\n@hookimpl", 1
    )


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
        (
            good("bad").replace("BackendInfo('bad'", "BackendInfo(__import__('numpy').ones(2)"),
            "expected the name 'bad'; got array([",
        ),
        (good("bad").replace("name = 'bad'", "name = __import__('numpy').ones(0)"), "the name 'bad'; got array([]"),
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
        ("raise MemoryError('no room')", "cannot be loaded: MemoryError: no room"),
        (good("bad").replace("return Own()", "raise MemoryError"), "lstmcore_backend failed: MemoryError"),
        (UNTOLD + "raise Untold()", "cannot be loaded: Untold: its text cannot be made (RuntimeError)"),
        (UNTOLD + good("bad").replace("return Own()", "raise Untold()"), "lstmcore_backend failed: Untold"),
        (UNTOLD + good("bad").replace("return Own()", "return Untold()"), "got a value of type Untold"),
        (
            UNTOLD + good("bad").replace("None)", "Untold())"),
            "unavailable: expected a text or None; got a value of type",
        ),
        (declaring("reasons={1: object()}"), "TypeError: reasons: expected a mapping of names to texts; got {1: <obj"),
        (declaring("reasons={'tf32': None}"), "reasons: expected a mapping of names to texts; got {'tf32': None}"),
        (declaring("reasons=[('tf32', 'no')]"), "reasons: expected a mapping of names to texts"),
        (declaring("device=None"), "TypeError: device: expected a name, such as 'cpu'; got None"),
        (declaring("device=''"), "device: expected a name"),
        (declaring("features=None"), "TypeError: features: expected a set of names; got None"),
        (declaring("precisions=[1, 'float32']"), "precisions: expected a set of names; got [1, 'float32']"),
        (
            good("bad").replace("name = 'bad'", "name = property(lambda self: 1 / 0)"),
            "Backend.name failed: ZeroDivisionError",
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


@pytest.mark.parametrize(
    "code",
    [
        good("odd").replace('"1"', r"'\udc80'"),
        good("odd").replace('"a test"', r"'\udc80'"),
        good("odd", "\udc80"),
        r"raise OSError('\udc80')",
    ],
    ids=["version", "summary", "reason", "error"],
)
def test_texts_of_plugins_can_be_printed(install: Install, code: str) -> None:
    """A lone surrogate, as in the name of a file that is no UTF-8, ended `lstmcore backends` with an error."""
    install("odd", code)
    shown = CliRunner().invoke(main, ["backends"])
    assert shown.exit_code == 0, shown.output
    assert "odd" in shown.output
    assert "udc80" in str(_record("odd")).replace("\\", "")
    str(_record("odd")).encode("utf-8")


def test_ctrl_c_in_a_plugin_ends_the_call(install: Install) -> None:
    install("bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        registry.backends()


def test_auto_goes_on_from_a_refusal_that_fails(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """`refusal` is a plug-in's code too: what it raises, or returns, stops no other backend."""
    stack = StackConfig.make(LSTMConfig(input_size=2, hidden_size=3))
    for name, body in (("raises", "1 / 0"), ("numbers", "7")):
        install(
            name,
            good(name)
            .replace("@hookimpl", f"Own.refusal = lambda *_: {body}\n\n@hookimpl", 1)
            .replace("None)", "None, priority=900)"),
        )
    monkeypatch.setenv(registry.PLUGINS_VARIABLE, "raises,numbers,numpy")
    selection = registry.select(stack, PRECISIONS["float32"], "auto")
    assert selection.backend.name == "numpy"
    assert selection.skipped == {
        "raises": "backend 'raises': refusal failed: ZeroDivisionError: division by zero",
        "numbers": "backend 'numbers': refusal: expected a text or None; got 7",
    }


def test_a_plugin_prints_to_standard_error(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    code = "print('at import')\n" + good("loud").replace("return Own()", "print('at the hook'); return Own()")
    install("loud", code)
    before = sys.stdout
    registry.get_backend("loud")
    assert sys.stdout is before
    assert capsys.readouterr() == ("", "at import\nat the hook\n")


def test_another_thread_prints_where_it_did(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import threading\nother = threading.Thread(target=print, args=('from another',))\nother.start()\nother.join()"
    )
    install("own", f"{code}\nprint('from the plug-in')\n{good('own')}")
    registry.get_backend("own")
    assert capsys.readouterr() == ("from another\n", "from the plug-in\n")


def test_a_slow_plugin_is_told_while_it_runs(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in itself waits for the word, so that the test depends on no time."""

    class Told(io.StringIO):
        event = threading.Event()

        def write(self, text: str) -> int:
            self.event.set()
            return super().write(text)

    monkeypatch.setattr(plugin_calls, "SLOW_S", 0.01)
    monkeypatch.setattr(sys, "stderr", told := Told())
    install("slow", f"import sys\nassert sys.stderr.event.wait(60)\n{good('slow')}")
    with plugin_calls.slow_calls_told():
        registry.get_backend("slow")
    line = told.getvalue().splitlines()[0]
    assert line.startswith("lstmcore: the plug-in of backend 'slow' has not answered for 0.01 s; still waiting")


def test_where_no_thread_starts_a_plugin_is_loaded(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    install("own")
    with plugin_calls.slow_calls_told():
        assert registry.get_backend("own").name == "own"


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
