"""The public entries, each as a function of bytes. It returns, or raises an error that the entry documents."""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from click.testing import CliRunner
from fuzz_source import ODD, Source, scratch
from safetensors.numpy import save

from lstmcore import LSTM, Chain
from lstmcore.chain_layers import Merge, Reversed
from lstmcore.cli import COMMANDS, main
from lstmcore.config import LSTMConfig
from lstmcore.datasets import Layout, Windows, read_panel
from lstmcore.training import (
    SGD,
    Adam,
    AdamW,
    CrossEntropy,
    MeanSquaredError,
    Readout,
    SequenceModel,
    Standardizer,
    Trainer,
    batches_by_length,
    clip_by_global_norm,
    pad,
    split,
)

#: Errors of a wrong argument or file. OverflowError, KeyError, AttributeError and so on are faults.
REFUSALS: Final = (ValueError, TypeError, FileNotFoundError, MemoryError)


class Target(NamedTuple):
    """A function of an input; `cost` is about how many of the cheapest inputs take as long."""

    run: Callable[[Source], None]
    cost: int = 1
    needs: str = ""


def _refused(call: Callable[[], Any]) -> Any:
    """Return what `call` returns, None if it refuses its arguments."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except REFUSALS:
        return None


#: Switch of `LSTM` -> values that it may have.
SWITCHES: Final[Mapping[str, tuple[Any, ...]]] = {
    "num_layers": (1, 2),
    "bias": (True, False),
    "batch_first": (False, True),
    "dropout": (0.0, 0.5),
    "bidirectional": (False, True),
    "proj_size": (0, 2),
    "peephole": (False, True),
    "coupling": ("none", "forget_from_input", "input_from_forget"),
    "gate_clip": (None, 0.5),
    "cell_clip": (None, 0.5),
    "proj_clip": (None, 0.5),
    "gate_activation": ("sigmoid", "hard_sigmoid(alpha=0.3)"),
    "cell_activation": ("tanh", "elu(0.5)", "softplus"),
    "hidden_activation": ("tanh", "identity"),
    "recurrence": ("hidden", "cell"),
    "layer_norm": (False, True),
    "zoneout_hidden": (0.0, 0.25),
    "zoneout_cell": (0.0, 0.25),
    "recurrent_dropout": (0.0, 0.25),
    "dtype": ("float32", "float64"),
    "seed": (0, 7),
    "init": ("uniform", "orthogonal"),
    "forget_bias": (None, 1.0),
    "weights": ("same", "int8", "float16"),
}


def constructor(source: Source) -> None:
    """Make an LSTM of odd arguments, and the parts of a model."""
    odd = [value for value in ODD if not isinstance(value, int) or isinstance(value, bool) or abs(value) < 2**31]
    arguments = {
        name: source.often(source.pick(values), odd, 3) for name, values in SWITCHES.items() if source.below(3)
    }
    sizes = [source.often(source.pick((1, 3, 5)), odd, 4) for _ in range(2)]
    lstm = _refused(lambda: LSTM(*sizes, backend=source.pick(("numpy", "reference")), **arguments))
    if lstm is not None:
        assert _refused(lambda: repr(lstm))
        assert LSTMConfig.from_dict(json.loads(json.dumps(lstm.stack.configs[0].to_dict()))) == lstm.stack.configs[0]
    layers = [lstm, Merge(source.pick(("concat", "sum"))), source.pick(ODD)][: 1 + source.below(3)]
    _refused(lambda: Chain(layers, batch_first=source.often(False, ODD)))
    _refused(lambda: Chain([Reversed(lstm), lstm]))
    _refused(
        lambda: LSTMConfig.from_dict(
            {source.often("input_size", odd): source.pick(odd), "hidden_size": source.pick(odd)}
        )
    )
    pieces = [source.often(source.pick((1, 3)), odd, 4) for _ in range(3)]
    _refused(lambda: Readout(pieces[0], pieces[1], x_size=pieces[2], activation=source.often("none", odd)))
    _refused(lambda: SequenceModel(lstm, Readout(5, 3)))


@functools.cache
def _lstm(place: int) -> LSTM:
    made: tuple[dict[str, Any], ...] = (
        {},
        {"bidirectional": True, "num_layers": 2, "dropout": 0.5},
        {"peephole": True, "proj_size": 2, "cell_clip": 0.5},
        {"layer_norm": True, "zoneout_hidden": 0.25, "batch_first": True},
        {"dtype": "float64", "coupling": "input_from_forget", "bias": False},
    )
    return LSTM(3, 5, seed=0, backend="numpy", **made[place])


def calls(source: Source) -> None:
    """Call an LSTM with arrays that mostly fit: forward, record, backward, jvp, parameters."""
    lstm = _lstm(source.below(5))
    dtype, (steps, batch) = lstm.precision.storage, (source.pick((3, 0, 1)), source.pick((2, 0, 1)))
    outer = (batch, steps) if lstm.batch_first else (steps, batch)
    layers = lstm.stack.num_layers * lstm.stack.num_directions
    x = source.array((*outer, 3), dtype)
    pair = (source.array((layers, batch, lstm.stack.output_size), dtype), source.array((layers, batch, 5), dtype))
    state = source.often(pair, (None, *ODD)) if source.below(2) else None
    lengths = (
        source.often(np.arange(batch) % (steps + 1), (source.array((batch,), "int64"), *ODD))
        if source.below(2)
        else None
    )
    found = _refused(lambda: lstm(x, state, lengths=lengths))
    if found is not None:
        assert found[0].shape[:2] == tuple(x.shape[:2]) or x.ndim == 2
    recorded = _refused(lambda: lstm.record(x, state, lengths=lengths))
    if recorded is not None:
        y = recorded[0]
        dstate = source.often(None, (recorded[1], *ODD))
        _refused(lambda: lstm.backward(recorded[2], source.array(y.shape, dtype), dstate))
    _refused(lambda: lstm.jvp(x, source.array((*outer, 3), dtype), state, lengths=lengths))
    parameters = dict(lstm.parameters)
    name = source.pick(list(parameters))
    changed: Any = parameters | {
        source.often(name, ("x", "", 1, None, b"x")): source.array(parameters[name].shape, dtype)
    }
    other = LSTM(3, 5, seed=0, backend="numpy", dtype=lstm.precision.name)
    _refused(lambda: other.load_parameters(source.often(changed, ODD, 8)))


class Guarded:
    """Memory between two pages that nothing may touch: an access beside an array at its end ends the process."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self._map = mmap.mmap(-1, self.size + 2 * page)
        self.view = np.frombuffer(self._map, np.uint8)[page : page + self.size]
        start = self.view.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        for address in (start - page, start + self.size):
            if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def copy(self, array: Any, at_end: bool) -> Any:
        """Return a read-only copy of `array` at one end of the memory."""
        first = self.size - array.nbytes if at_end else 0
        view = self.view[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        view.flags.writeable = False
        return view


@functools.cache
def _pages() -> tuple[Guarded, ...]:
    return tuple(Guarded(1 << 16) for _ in range(6))


@functools.cache
def _kernel(backend: str, place: int) -> LSTM:
    made: tuple[dict[str, Any], ...] = ({}, {"bidirectional": True, "peephole": True, "layer_norm": True})
    dtype = "float64" if backend == "reference" else "float32"
    return LSTM(3, 7, num_layers=2, seed=0, backend=backend, dtype=dtype, **made[place])


def kernels(backend: str, source: Source) -> None:
    """Run a kernel on guarded buffers, and compare with the same call on other ones, bit for bit."""
    lstm = _kernel(backend, source.below(2))
    dtype, steps, batch = lstm.precision.storage, source.below(9), source.below(7)
    layers = 2 * lstm.stack.num_directions
    random = np.random.default_rng(source.below(2**31))
    shapes = ((steps, batch, 3), (layers, batch, 7), (layers, batch, 7), (steps, batch, 7 * lstm.stack.num_directions))
    arrays = [random.standard_normal(shape).astype(dtype) for shape in shapes]
    lengths = random.integers(0, steps + 1, batch) if source.below(2) else None
    at_end = bool(source.below(2))
    guarded = [page.copy(array, at_end) for page, array in zip(_pages(), arrays, strict=False)]
    found = []
    for x, h, c, dy in (arrays, guarded):
        lstm.step = 0
        y, state, tape = lstm.record(x, (h, c), lengths=lengths)
        gradients = lstm.backward(tape, dy, state)
        plain, _ = lstm(x, (h, c), lengths=lengths)
        found.append([y, plain, *state, gradients.x, *gradients.parameters.values()])
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other, equal_nan=True)


@functools.cache
def _files() -> dict[str, bytes]:
    """Return a whole file of each kind."""
    lstm = LSTM(2, 3, seed=0, backend="numpy", num_layers=2)
    chain = Chain([LSTM(2, 3, seed=0, backend="numpy"), LSTM(3, 2, seed=1, backend="numpy")])
    model = SequenceModel(LSTM(2, 3, seed=0, backend="numpy"), Readout(3, 2, seed=0))
    contents = {}
    for name, save_to in (("lstm", lstm.save), ("chain", chain.save), ("model", model.save)):
        path = scratch(name)
        save_to(path)
        contents[name] = Path(path).read_bytes()
    path = scratch("checkpoint")
    Trainer(model, loss="cross-entropy", epochs=1, checkpoint=path, quiet=True).fit(*_data())
    contents["checkpoint"] = Path(path).read_bytes()
    contents["torch"] = save(dict(lstm.to_torch()))
    return contents


def _data() -> tuple[list[Any], Any]:
    random = np.random.default_rng(0)
    return [random.standard_normal((3, 2)) for _ in range(6)], np.arange(6) % 2


def loaders(source: Source) -> None:
    """Read a damaged file of a model, of layers, of a checkpoint or of PyTorch's names."""
    kind = source.pick(("lstm", "chain", "model", "checkpoint", "torch"))
    path = Path(scratch("damaged"))
    path.write_bytes(source.changed(_files()[kind]))
    if kind == "checkpoint":
        model = SequenceModel(LSTM(2, 3, seed=0, backend="numpy"), Readout(3, 2, seed=0))
        _refused(lambda: Trainer(model, loss="cross-entropy", epochs=1, quiet=True).fit(*_data(), resume=path))
    else:
        reader = {"lstm": LSTM.load, "chain": Chain.load, "model": SequenceModel.load, "torch": LSTM.from_torch}[kind]
        named: dict[str, Any] = {"backend": "numpy"}
        refusal: Exception | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader(path, **named)
        except (ValueError, TypeError) as error:
            refusal = error
        if kind != "torch" and refusal is not None:
            assert isinstance(refusal, ValueError) and "damaged" in str(refusal), f"the file is not named: {refusal!r}"


CSV: Final = b"shop,date,y\na,2024-01-01,1.5\na,2024-01-02,\na,2024-01-04,-3e2\nb,2024-01-01,7\nb,2024-01-02,8\n"


def csv(source: Source) -> None:
    """Read a damaged CSV file, fill it and cut it."""
    path = Path(scratch("damaged.csv"))
    path.write_bytes(source.changed(CSV))
    layout = Layout(
        source.pick(("shop", None)), source.pick(("date", None)), bool(source.below(2)), bool(source.below(2))
    )
    for series in _refused(lambda: read_panel(path, "y", layout)) or ():
        filled = _refused(lambda series=series: series.filled(source.pick(("linear", "previous", "error"))))
        if filled is not None:
            windows = _refused(lambda filled=filled: Windows.cut(filled, 1 + source.below(2), 1))
            assert windows is None or np.isfinite(windows.inputs).all()


@functools.cache
def _texts() -> dict[str, bytes]:
    root = Path(__file__).parents[2]
    board = json.loads((root / "docs" / "scoreboard.json").read_bytes())
    board["reports"] = board["reports"][:1]
    run = json.loads((root / "docs" / "benchmarks" / "standard" / "run.json").read_bytes())
    run["results"], run["summary"], run["variants"] = [], [], []
    vectors = {"schema": "lstmcore-vectors", "version": 2, "defaults": {"bias": True}, "cases": []}
    return {name: json.dumps(value).encode() for name, value in (("board", board), ("run", run), ("index", vectors))}


def texts(source: Source) -> None:
    """Read a damaged scoreboard, run, index of vectors or list of expected failures."""
    from lstmcore_conformance.bench.results import Benchmark
    from lstmcore_conformance.scoreboard import load
    from lstmcore_conformance.suite import expected_failures
    from lstmcore_conformance.vectors.reader import draws

    kind = source.pick(("board", "run", "index", "toml"))
    path = Path(scratch("index.json"))
    sample = b'"forward.values" = "too slow"\n[other]\nx = 1\n' if kind == "toml" else _texts()[kind]
    path.write_bytes(source.changed(sample))
    if kind == "board":
        _refused(lambda: load([path]))
    elif kind == "run":
        _refused(lambda: Benchmark.load(path))
    elif kind == "index":
        _refused(lambda: draws(path.parent))
    else:
        _refused(lambda: expected_failures.load(path))


def onnx(source: Source) -> None:
    """Read the operator of a damaged ONNX model."""
    import onnx as package
    from google.protobuf.message import DecodeError

    from lstmcore_onnxruntime import translate

    config = LSTMConfig(input_size=3, hidden_size=5)
    parameters = {name: np.ones(shape, np.float32) for name, shape in config.parameter_shapes.items()}
    sample = translate.model(config, parameters).SerializeToString()
    try:
        model = package.load_from_string(source.changed(sample))
    except DecodeError:
        return
    weights = [source.array(shape) for shape in ((1, 20, 3), (1, 20, 5), (1, 40))]
    if all(isinstance(array, np.ndarray) and array.ndim == 3 - (place == 2) for place, array in enumerate(weights)):
        for node in model.graph.node:
            given = _refused(lambda node=node: translate.attributes_of(node))
            if given is not None:
                _refused(lambda given=given: translate.directions(given, *weights))


@functools.cache
def _lite(loop: bool) -> bytes:
    from tflite_models import add_fused, add_loop, one_graph

    return one_graph(lambda graph, x: add_loop(graph, x, 3)[0] if loop else add_fused(graph, x, 3, peephole=True))


def tflite(source: Source) -> None:
    """Read a damaged TFLite model."""
    path = Path(scratch("damaged"))
    path.write_bytes(source.changed(_lite(bool(source.below(2)))))
    refusal: Exception | None = None
    try:
        Chain.from_tflite(path, backend="numpy")
    except (ValueError, TypeError) as error:
        refusal = error
    assert refusal is None or "damaged" in str(refusal), f"the file is not named: {refusal!r}"


def parts(source: Source) -> None:
    """Call losses, optimizers, batches and standardisation with odd arrays."""
    loss = source.pick((CrossEntropy(), MeanSquaredError()))
    outputs = source.array((4, 3), "float64")
    targets = source.often(np.arange(4) % 3 if loss.of_linear else source.array((4, 3), "float64"), ODD)
    found = _refused(lambda: loss(outputs, targets, source.often(None, (np.ones(4, bool), *ODD))))
    assert found is None or found[1].shape == outputs.shape
    rule = source.pick((SGD, Adam, AdamW))
    named = {
        key: source.pick(ODD) for key in ("momentum", "beta1", "eps", "weight_decay", "nesterov") if not source.below(4)
    }
    optimizer = _refused(lambda: rule(source.often(0.1, ODD), **named)) or Adam()
    gradients = source.often({"w": source.array((2, 3))}, ODD)
    moved = _refused(lambda: optimizer.step({"w": source.array((2, 3))}, gradients))
    if moved is not None:
        _refused(lambda: Adam().load_state(source.often(1, ODD), source.often(optimizer.state(), ODD), moved))
    _refused(lambda: clip_by_global_norm(gradients, source.often(1.0, ODD)))
    scaling = _refused(lambda: Standardizer.fit([source.array((4, 3), "float64") for _ in range(2)]))
    if scaling is not None:
        _refused(lambda: scaling.undo(scaling.apply(source.array((4, 3), "float64"), "float32")))
    small = [value for value in ODD if not isinstance(value, int) or abs(value) < 2**16]
    _refused(lambda: pad(source.often([source.array((2, 3)) for _ in range(3)], ODD)))
    _refused(lambda: split(source.often(5, small), source.often(0.4, ODD), seed=source.often(0, ODD),
                           classes=source.often(None, ODD), chronological=bool(source.below(2)),
                           purge=source.often(0, small)))  # fmt: skip
    _refused(lambda: batches_by_length(source.often([3, 1, 2], ODD), source.often(2, small), seed=0, epoch=1))


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
        words += source.pick((["--no-such-option"], ["--help"], ["--out"], ["--seed", "x"]))
    result = CliRunner().invoke(main, [name, *words])
    fault = result.exception is not None and not isinstance(result.exception, SystemExit)
    assert not fault, repr(result.exception)
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output


TARGETS: Final[Mapping[str, Target]] = {
    "constructor": Target(constructor, 2),
    "calls": Target(calls, 4),
    "kernels-numpy": Target(functools.partial(kernels, "numpy"), 8),
    "kernels-reference": Target(functools.partial(kernels, "reference"), 8),
    "kernels-numba": Target(functools.partial(kernels, "numba"), 8, "numba"),
    "loaders": Target(loaders),
    "csv": Target(csv),
    "texts": Target(texts, 2),
    "onnx": Target(onnx, 1, "onnx"),
    "tflite": Target(tflite, 4, "tflite"),
    "parts": Target(parts, 2),
    "command-line": Target(command_line, 8),
}


def shown(targets: Mapping[str, Target]) -> Iterator[str]:
    """Yield a line for each target."""
    for name, target in targets.items():
        function = target.run.func if isinstance(target.run, functools.partial) else target.run
        yield f"{name}: {function.__doc__}"
