"""The command line with odd words and damaged files, and plug-ins that do what they should not."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final

import numpy as np
from click.testing import CliRunner, Result
from fuzz_source import ODD, Source, scratch

from lstmcore import LSTM, registry
from lstmcore.backend import Capabilities
from lstmcore.cli import COMMANDS, main
from lstmcore.hookspecs import BackendInfo, hookimpl
from lstmcore_reference.kernel import ReferenceBackend

WORDS: Final = (
    *(
        "japanese-vowels",
        "co2",
        "none.csv",
        "",
        "-",
        "--json",
        "--help",
        "--out",
        "m",
        "--target",
        "y",
        "--window",
        "0",
    ),
    *("--epochs", "-1", "nan", "1e999", "--backend", "numpy", "numpi", "--seed", "--dtype", "float16", "--series", "x"),
    *(
        "--hidden-size",
        "9" * 25,
        "--grid",
        "quick",
        "--read",
        "--compare",
        "--select",
        "forward.no_state",
        "--precision",
    ),
    *(
        "--profile",
        "smoke",
        "--weights",
        "int8",
        "--threads",
        "--point",
        "1,1,1",
        "--peers",
        "\x00",
        "é",
        "--fill",
        "linear",
    ),
)


def command_line(source: Source) -> None:
    """Run a sub-command with odd words. Those that would train or measure stop at a word that is refused."""
    name = source.pick((*COMMANDS, "no-command"))
    words = [source.pick(WORDS) for _ in range(source.below(6))]
    if name in ("train", "bench", "conform", "evaluate", "compress", "predict"):
        words += source.pick(([], ["--help"], ["--out"], ["--seed", "x"]))
        words += ["--no-such-option"] * 2  # an option before may take the first for its value
    _run(name, *words)


_WAVE: Final = "day,y,z\n" + "".join(
    f"2024-01-{day:02},{value:.3f},{day % 3}\n" for day, value in enumerate(np.sin(np.arange(1, 29)), 1)
)


def _run(*words: str) -> Result:
    """Run a command; whatever it is given, it ends with one of three codes and without a traceback."""
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{words}: {result.exception!r}") from result.exception
    assert result.exit_code in (0, 1, 2), words
    assert "Traceback" not in result.output, words
    return result


def _file(name: str, content: bytes) -> str:
    Path(scratch(name)).write_bytes(content)
    return scratch(name)


@functools.cache
def _models() -> dict[str, bytes]:
    """Return a model that forecasts, one that classifies, and a checkpoint."""
    data, walks = _file("whole.csv", _WAVE.encode()), _file("whole.npz", b"")
    np.savez(walks, X=np.ones((8, 3, 2)) * np.arange(8)[:, None, None], y=np.arange(8) % 2)
    short = ("--hidden-size", "2", "--epochs", "1", "--backend", "numpy", "--quiet")
    out, classes, kept = scratch("whole.model"), scratch("whole.classes"), scratch("whole.run")
    for words in (
        (data, "--target", "y", "--window", "3", "--out", out, "--checkpoint", kept),
        (walks, "--out", classes),
    ):
        result = _run("train", *words, *short)
        assert result.exit_code == 0, result.output
    made = {"model": out, "classes": classes, "run": kept, "archive": walks}
    return {name: Path(path).read_bytes() for name, path in made.items()}


def command_files(source: Source) -> None:
    """Run a command on a damaged model, checkpoint or data file."""
    models, backend = _models(), ("--backend", "numpy")
    kind = source.pick(("model", "classes", "data", "run", "archive"))
    model = _file("damaged.model", source.changed(models[kind]) if kind in ("model", "classes") else models["model"])
    data = _file("damaged.csv", source.changed(_WAVE.encode()) if kind == "data" else _WAVE.encode())
    classes, out = _file("whole.classes", models["classes"]), scratch("made.model")
    json_flag = ("--json",) * source.below(2)
    name = source.pick(("predict", "evaluate", "info", "convert", "list", "compress", "export", "train"))
    if kind == "archive":
        walks = _file("damaged.npz", source.changed(models["archive"]))
        short = ("--hidden-size", "2", "--epochs", "1", "--quiet", "--out", out)
        _run(
            *source.pick((("train", walks, *short), ("evaluate", classes, walks), ("predict", classes, walks))),
            *backend,
        )
    elif name == "train" or kind == "run":
        resume = _file("damaged.run", source.changed(models["run"]))
        words = (data, "--target", "y", "--window", "3", "--hidden-size", "2", "--epochs", "2", "--quiet", *backend)
        more = source.pick(((), ("--sort",), ("--fill", "linear"), ("--features", "z"), ("--time", "day")))
        _run("train", *words, "--out", out, *more, *(("--resume", resume) if kind == "run" else ()))
    elif name in ("predict", "evaluate"):
        _run(name, model, data, *backend, *json_flag, *source.pick(((), ("--fill", "previous"), ("--only", "x"))))
    elif name == "info":
        _run("info", model, *json_flag)
    elif name == "convert":
        _run("convert", model, scratch("made.safetensors"), *json_flag)
    elif name == "list":
        _run("convert", "--list", model)
    elif name == "compress":
        _run("compress", model, "--weights", source.pick(("int8", "float16")), "--out", out, *backend)
    else:
        _run("export", model, "--out", scratch(f"folder-{source.below(2**31)}"))


class _Silent(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class _Bare(BaseException):
    """What is no `Exception`."""


def _raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def _printing(*_: Any) -> Any:
    sys.stdout.write("from a plug-in\n")
    return None


_FAILURES: Final = (
    *map(
        _raising, (MemoryError(), SystemExit(0), _Silent(), _Bare(), RecursionError(), ImportError("no"), KeyError(1))
    ),
    *(_printing, lambda *_: object(), lambda *_: "no", lambda *_: 3),
)
_numbers: Final = itertools.count()


def _hook(made: Callable[[], Any], source: Source) -> Callable[[], Any]:
    return source.pick(_FAILURES) if source.below(5) == 1 else made


def plugins(source: Source) -> None:
    """List the backends with a plug-in that raises, prints or gives what it should not; and choose one."""
    name, odd = "odd", (*ODD, *_FAILURES)

    class Own(ReferenceBackend):
        pass

    Own.name = source.often(name, ODD, 8)
    declared = {
        "device": "cpu",
        "precisions": frozenset({"float64"}),
        "features": frozenset(),
        "reasons": {"backward": "no"},
    }
    given = {
        key: source.often(value, (*ODD, [1], {1: object()}, {"backward": object()}), 6)
        for key, value in declared.items()
    }
    backend = Own()
    for attribute, value in (("capabilities", lambda: Capabilities(**given)), ("refusal", lambda *_: "not this one")):
        setattr(backend, attribute, _hook(value, source))
    info = [source.often(value, odd, 10) for value in (name, "1", "a test", lambda: None, 400)]
    module = types.ModuleType(f"fuzz_plugin_{next(_numbers)}")
    hooks = {"lstmcore_backend_info": lambda: BackendInfo(*info), "lstmcore_backend": lambda: backend}
    for hook, made in hooks.items():
        if source.below(12):
            setattr(module, hook, hookimpl(_named(hook, _hook(made, source))))
    point = EntryPoint(name, module.__name__, registry.GROUP)
    sys.modules[module.__name__] = source.often(module, (object(),), 20)
    points = [point, *(p for p in _own_points() if p.name == "numpy")]
    whole, registry.entry_points = registry.entry_points, lambda group: points  # type: ignore[assignment]
    try:
        shown = _run("backends", "--json")
        assert shown.exit_code == 0, shown.output
        rows = {row["name"]: row for row in json.loads(shown.stdout)}
        assert set(rows) == {name, "numpy"} and rows["numpy"]["available"]
        assert rows[name]["available"] or rows[name]["reason"], rows[name]
        assert _run("backends").exit_code == 0
        assert LSTM(2, 3, seed=0).backend.name in (name, "numpy")
    finally:
        registry.entry_points = whole
        sys.modules.pop(module.__name__)
        for kept in (registry._loaded, registry._described_points):
            kept.pop(point, None)


def _named(hook: str, function: Callable[..., Any]) -> Callable[[], Any]:
    def call() -> Any:
        return function()

    call.__name__ = hook
    return call


@functools.cache
def _own_points() -> tuple[EntryPoint, ...]:
    return tuple(registry.entry_points(group=registry.GROUP))
