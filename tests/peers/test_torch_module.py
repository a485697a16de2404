"""`lstmcore.torch.LSTM` beside ``torch.nn.LSTM``: values, gradients, errors, files, training."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import doc_pages
import lstmcore
import lstmcore.torch
from lstmcore.torch.shared_memory import to_array, to_tensor

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "batch_first": True},
    {"bidirectional": True, "bias": False},
    {"num_layers": 3, "bidirectional": True, "proj_size": 2, "batch_first": True},
)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6}
#: All switches that do not exclude each other.
SWITCHES: dict[str, Any] = {
    "peephole": True,
    "layer_norm": True,
    "cell_clip": 0.7,
    "gate_clip": 2.5,
    "zoneout_hidden": 0.2,
    "zoneout_cell": 0.3,
    "recurrent_dropout": 0.25,
}


def both(dtype: Any = torch.float64, **arguments: Any) -> tuple[Any, Any]:
    """Return ours and PyTorch's with the same weights."""
    torch.manual_seed(3)
    ours = lstmcore.torch.LSTM(3, 5, dtype=dtype, backend="numpy", **arguments)
    theirs = torch.nn.LSTM(3, 5, dtype=dtype, **arguments)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def leaf(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def state(module: Any, *rows: int, dtype: Any = torch.float64) -> tuple[Any, Any]:
    entries = module.num_layers * (1 + module.bidirectional)
    return tuple(leaf(entries, *rows, width, dtype=dtype) for width in (module.proj_size or 5, 5))


def outcome(module: Any, inputs: Iterable[Any], call: Callable[[Any], Any]) -> list[Any]:
    """Return y, h and c of a call and the gradients of a sum of all three, of the inputs and all parameters."""
    y, (h, c) = call(module)
    outputs = [y.data if isinstance(y, PackedSequence) else y, h, c]
    loss = sum((torch.sin(value) * (1 + index)).sum() for index, value in enumerate(outputs))
    gradients = torch.autograd.grad(loss, [*inputs, *module.parameters()])
    return [*outputs, *gradients]


def compare(one: list[Any], other: list[Any], tolerance: float) -> None:
    assert len(one) == len(other)
    for mine, wanted in zip(one, other, strict=True):
        assert (mine.shape, mine.dtype) == (wanted.shape, wanted.dtype)
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("arguments", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [(4,), ()], ids=["rows", "one"])
@pytest.mark.parametrize("given", [True, False], ids=["state", "zeros"])
def test_values_and_gradients(arguments: dict[str, Any], dtype: Any, rows: tuple[int, ...], given: bool) -> None:
    ours, theirs = both(dtype, **arguments)
    layout = (*rows, 7) if arguments.get("batch_first") else (7, *rows)
    x, hx = leaf(*layout, 3, dtype=dtype), state(ours, *rows, dtype=dtype) if given else None
    inputs = [x, *(hx or ())]
    found, wanted = (outcome(module, inputs, lambda m: m(x, hx)) for module in (ours, theirs))
    compare(found, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("arguments", SHAPES, ids=str)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["state", "zeros"])
def test_packed_sequences(arguments: dict[str, Any], ordered: bool, given: bool) -> None:
    ours, theirs = both(**arguments)
    ends = (6, 4, 4, 1) if ordered else (4, 1, 6, 4)
    rows, hx = [leaf(end, 3) for end in ends], state(ours, 4) if given else None
    inputs = [*rows, *(hx or ())]
    found, wanted = (
        outcome(module, inputs, lambda m: m(pack_sequence(rows, enforce_sorted=ordered), hx))
        for module in (ours, theirs)
    )
    compare(found, wanted, 1e-11)
    packed = pack_sequence(rows, enforce_sorted=ordered)
    y, mine = ours(packed, hx)[0], theirs(packed, hx)[0]
    for part, other in zip(y[1:], mine[1:], strict=True):
        assert part is other is None or torch.equal(part, other)
    assert pad_packed_sequence(y)[1].tolist() == list(ends)


def test_lengths_are_those_of_packed_rows() -> None:
    """Rows in any order; a row without steps, which PyTorch refuses, keeps its state."""
    ours, theirs = both(num_layers=2, bidirectional=True)
    x, hx, ends = leaf(6, 4, 3), state(ours, 4), [4, 1, 6, 3]

    def padded(module: Any) -> Any:
        y, last = module(pack_padded_sequence(x, torch.tensor(ends), enforce_sorted=False), hx)
        return pad_packed_sequence(y)[0], last

    wanted = outcome(theirs, [x, *hx], padded)
    for lengths in (ends, torch.tensor(ends), np.array(ends, np.int32)):
        compare(outcome(ours, [x, *hx], lambda m, given=lengths: m(x, hx, given)), wanted, 1e-11)
    y, (h, c) = ours(x, hx, [4, 0, 6, 3])
    assert torch.equal(h[:, 1], hx[0][:, 1]) and torch.equal(c[:, 1], hx[1][:, 1]) and not y[:, 1].any()
    assert not y[4:, 0].any() and y[3, 0].all()


BAD_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"hidden_size": 0},
    {"hidden_size": 2.5},
    {"input_size": "3"},
    {"num_layers": 0},
    {"bias": 1},
    {"batch_first": "yes"},
    {"dropout": 1.5},
    {"dropout": True},
    {"proj_size": -1},
    {"proj_size": 5},
)
#: Arguments of a call of LSTM(3, 5, num_layers=2).
BAD_CALLS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "four axes": lambda: (torch.zeros(2, 3, 4, 3),),
    "one axis": lambda: (torch.zeros(3),),
    "width": lambda: (torch.zeros(7, 4, 2),),
    "dtype": lambda: (torch.zeros(7, 4, 3, dtype=torch.float64),),
    "integers": lambda: (torch.zeros(7, 4, 3, dtype=torch.int64),),
    "state of one row": lambda: (torch.zeros(7, 4, 3), (torch.zeros(2, 5), torch.zeros(2, 5))),
    "state of rows": lambda: (torch.zeros(7, 3), (torch.zeros(2, 1, 5), torch.zeros(2, 1, 5))),
    "batch of h": lambda: (torch.zeros(7, 4, 3), (torch.zeros(2, 3, 5), torch.zeros(2, 4, 5))),
    "width of c": lambda: (torch.zeros(7, 4, 3), (torch.zeros(2, 4, 5), torch.zeros(2, 4, 6))),
    "layers of h": lambda: (torch.zeros(7, 4, 3), (torch.zeros(1, 4, 5), torch.zeros(2, 4, 5))),
}


@pytest.mark.parametrize("change", BAD_ARGUMENTS, ids=str)
def test_constructors_raise_alike(change: dict[str, Any]) -> None:
    arguments = {"input_size": 3, "hidden_size": 5} | change
    with pytest.raises((TypeError, ValueError)) as theirs:
        torch.nn.LSTM(**arguments)
    with pytest.raises(theirs.type):
        lstmcore.torch.LSTM(**arguments, backend="numpy")


@pytest.mark.parametrize("name", BAD_CALLS)
def test_calls_raise_alike(name: str) -> None:
    arguments = BAD_CALLS[name]()
    with pytest.raises((TypeError, ValueError, RuntimeError)) as theirs:
        torch.nn.LSTM(3, 5, num_layers=2)(*arguments)
    with pytest.raises(theirs.type, match=r"^(input|hx(\[.\])?): expected"):
        lstmcore.torch.LSTM(3, 5, num_layers=2, backend="numpy")(*arguments)


def test_errors_of_our_own() -> None:
    """PyTorch 2.13 takes packed rows of another width, and a state of other rows with them, without a word."""
    module = lstmcore.torch.LSTM(3, 5, backend="numpy")
    x = torch.zeros(7, 4, 3)
    with pytest.raises(RuntimeError, match="input: expected a last axis of input_size=3; got 2"):
        module(pack_sequence([x[:, 0, :2]]))
    with pytest.raises(RuntimeError, match=r"hx\[0\]: expected size \(1, 1, 5\); got \(1, 2, 5\)"):
        module(pack_sequence([x[:, 0]]), (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))
    for lengths, message in (([7, 7, 8, 1], r"lengths\[2\]: expected 0 to T=7"), ([7, 7], r"lengths: expected shape")):
        with pytest.raises(ValueError, match=message):
            module(x, lengths=lengths)
    with pytest.raises(TypeError, match="lengths: expected whole numbers"):
        module(x, lengths=[1.5, 2, 2, 2])
    with pytest.raises(ValueError, match="lengths: expected None for an input of shape"):
        module(x[:, 0], lengths=[7])
    with pytest.raises(ValueError, match="lengths: expected None with a PackedSequence"):
        module(pack_sequence([x[:, 0]]), lengths=[7])
    with pytest.raises(RuntimeError, match="input: expected a tensor on cpu, where the weights are; got meta"):
        module(x.to("meta"))
    with pytest.raises(TypeError, match="peepholes: expected a switch, one of bias"):
        lstmcore.torch.LSTM(3, 5, peepholes=True)
    with pytest.raises(TypeError, match="backend: expected a name or None; got NumpyBackend"):
        lstmcore.torch.LSTM(3, 5, backend=lstmcore.LSTM(3, 5, backend="numpy").backend)
    with pytest.raises(lstmcore.UnsupportedError, match="peephole"):
        lstmcore.torch.LSTM(3, 5, peephole=True, backend="torch")


@pytest.mark.parametrize("arguments", SHAPES, ids=str)
def test_the_same_seed_gives_the_weights_of_torch(arguments: dict[str, Any]) -> None:
    torch.manual_seed(9)
    ours = lstmcore.torch.LSTM(3, 5, backend="numpy", **arguments).state_dict()
    after = torch.rand(1)
    torch.manual_seed(9)
    theirs = torch.nn.LSTM(3, 5, **arguments).state_dict()
    assert list(ours) == list(theirs) and torch.equal(after, torch.rand(1))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("switches", [{}, SWITCHES, {"coupling": "forget_from_input"}], ids=["none", "many", "coupled"])
def test_copies_and_files(switches: dict[str, Any]) -> None:
    module = lstmcore.torch.LSTM(3, 5, 2, backend="numpy", **switches).eval()
    x = torch.randn(7, 2, 3)
    wanted = module(x)[0]
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    other = lstmcore.torch.LSTM(3, 5, 2, backend="numpy", **switches).eval()
    assert not torch.equal(other(x)[0], wanted)
    other.load_state_dict(module.state_dict())
    copies = [copy.deepcopy(module), torch.load(stream, weights_only=False), pickle.loads(pickle.dumps(module)), other]
    copies.append(lstmcore.torch.LSTM.from_lstm(module.to_lstm()).eval())
    for made in copies:
        assert torch.equal(made(x)[0], wanted)
        assert repr(made) == repr(module)
        with torch.no_grad():
            made.weight_hh_l1.zero_()
        assert not torch.equal(made(x)[0], wanted)
    assert torch.equal(module(x)[0], wanted)


def test_weights_without_torch_are_the_same_lstm() -> None:
    """Each switch; the result of `to_lstm` has the same bits."""
    torch.manual_seed(0)
    module = lstmcore.torch.LSTM(3, 5, 2, bidirectional=True, batch_first=True, backend="numpy", **SWITCHES).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, lengths = torch.randn(4, 7, 3), [7, 0, 3, 5]
    y, (h, c) = module(x, lengths=lengths)
    lstm = module.to_lstm()
    mine, last = lstm(x.numpy(), lengths=lengths)
    assert lstm.backend.name == "numpy" and lstm.batch_first
    for tensor, array in ((y, mine), (h, last.h), (c, last.c)):
        assert tensor.detach().numpy().tobytes() == array.tobytes()


def test_numbers_written_through_data_are_seen() -> None:
    """A version of a tensor does not count such writes, so the packed weights are compared by their numbers."""
    module, x = lstmcore.torch.LSTM(3, 5, backend="numpy"), torch.randn(7, 2, 3)
    with torch.no_grad():
        first = module(x)[0]
        version = module.weight_hh_l0._version
        module.weight_hh_l0.data[3, 2] += 1.0
        second = module(x)[0]
        assert module.weight_hh_l0._version == version and not torch.equal(first, second)
        module.weight_ih_l0.detach().numpy()[...] = 0.0
        assert not torch.equal(second, module(x)[0])
        module.weight_ih_l0.data = torch.ones(20, 3)
        wanted = torch.nn.LSTM(3, 5)
        wanted.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x)[0], wanted(x)[0])


def test_memory_is_shared() -> None:
    tensor = torch.randn(4, 3, dtype=torch.float32)
    assert np.shares_memory(to_array(tensor.requires_grad_(), "float32"), tensor.detach().numpy())
    assert np.shares_memory(to_array(tensor.T, "float32"), tensor.detach().numpy())
    array = np.ones((4, 3), np.float32)
    assert np.shares_memory(to_tensor(array, torch.float32).numpy(), array)


def test_sixteen_bits() -> None:
    """The same numbers in float64 are the reference; the state has the module's dtype, as PyTorch's has."""
    module = lstmcore.torch.LSTM(3, 5, 2, backend="numpy").half()
    x = torch.randn(7, 2, 3).half()
    y, (h, c) = module(x)
    y.float().square().sum().backward()
    assert {y.dtype, h.dtype, c.dtype, module.weight_hh_l1.grad.dtype} == {torch.float16}
    wide = copy.deepcopy(module).double()
    wide.zero_grad()
    wanted = wide(x.double())
    wanted[0].square().sum().backward()
    unit = torch.finfo(torch.float16).eps
    torch.testing.assert_close(y.double(), wanted[0], rtol=0, atol=8 * unit)
    torch.testing.assert_close(module.weight_hh_l1.grad.double(), wide.weight_hh_l1.grad, rtol=0, atol=16 * unit)


def test_bfloat16_is_exchanged_by_its_bits() -> None:
    pytest.importorskip("ml_dtypes")
    tensor = torch.randn(4, 3).bfloat16()
    array = to_array(tensor.T, "bfloat16")
    assert array.dtype.name == "bfloat16" and np.shares_memory(array, tensor.view(torch.int16).numpy())
    np.testing.assert_array_equal(array.astype("float32"), tensor.T.float().numpy())
    assert torch.equal(to_tensor(array, torch.bfloat16), tensor.T)
    assert torch.equal(to_tensor(array.astype("float32"), torch.bfloat16), tensor.T)


def test_autocast() -> None:
    """It computes in the dtype of the weights, and returns the dtype of autocast, as PyTorch does."""
    ours, theirs = both(torch.float32)
    x = torch.randn(7, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (x, x.bfloat16()):
            y, (h, c) = ours(given)
            wanted = theirs(given)[0]
            assert {y.dtype, h.dtype, c.dtype} == {wanted.dtype}
            torch.testing.assert_close(y, wanted, rtol=0, atol=3e-2)
        y.sum().backward()
    assert ours.weight_ih_l0.grad.dtype == torch.float32


def losses(module: Any, optimizer: Callable[[Any], Any], dtype: Any) -> list[float]:
    """Return the losses of 20 steps on rows of unequal lengths."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(11, 6, 3, generator=generator, dtype=dtype)
    ends = torch.tensor([11, 9, 7, 7, 3, 1])
    packed, targets = pack_padded_sequence(x, ends), torch.randn(6, 4, generator=generator, dtype=dtype)
    torch.manual_seed(6)
    head = torch.nn.Linear(10, 4, dtype=dtype)
    steps, made = optimizer([*module.parameters(), *head.parameters()]), []
    for _ in range(20):
        steps.zero_grad()
        _, (h, _) = module(packed)
        loss = torch.nn.functional.mse_loss(head(h[-2:].transpose(0, 1).flatten(1)), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        steps.step()
        made.append(loss.item())
    return made


def test_training_in_float64_is_that_of_torch() -> None:
    ours, theirs = both(num_layers=2, bidirectional=True)
    curves = [losses(module, lambda p: torch.optim.Adam(p, lr=0.02), torch.float64) for module in (ours, theirs)]
    np.testing.assert_allclose(*curves, rtol=1e-9)
    assert curves[0][-1] < 0.7 * curves[0][0]


def test_training_in_float32_is_that_of_torch() -> None:
    ours, theirs = both(torch.float32, num_layers=2, bidirectional=True)
    curves = [losses(module, lambda p: torch.optim.SGD(p, lr=0.3), torch.float32) for module in (ours, theirs)]
    np.testing.assert_allclose(*curves, rtol=1e-5)
    assert curves[0][-1] < 0.95 * curves[0][0]


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are marked as not run, since the session that builds the site has no PyTorch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSTMCORE_BACKEND", "numpy")
    name = "docs/howto/torch-module.md"
    text = (doc_pages.ROOT / name).read_text("utf-8")
    assert doc_pages.run_page(name, re.sub("<!-- not run: PyTorch is not installed.*\n", "", text), tmp_path) == 4
