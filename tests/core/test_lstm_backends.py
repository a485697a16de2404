"""`LSTM` and its backend: devices, refusals, selection, receipts, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstm_stacks import assert_close, make, make_stack, run_all
from lstmcore import reference, registry
from lstmcore.backend import Backend, State, UnsupportedError
from lstmcore.config import StackConfig
from lstmcore.lstm import LSTM
from lstmcore_reference.kernel import ReferenceBackend
from stacks import Array, NaiveBackend, StackCase, make_stack_case

# Devices, backends, receipts ------------------------------------------------------------------------------------------


def test_a_device_is_reached_through_to_device_and_to_host(case: StackCase) -> None:
    backend = NaiveBackend(device="somewhere")
    lstm = make(case, backend)
    moved = len(backend.moved)
    assert moved == len(case.parameters)
    results = run_all(lstm, case)
    assert backend.moved[moved:].count("out") == len(results) + 3  # jvp also brings y and the state
    for found, expected in zip(results, run_all(make(case, NaiveBackend()), case), strict=True):
        np.testing.assert_array_equal(found, expected)
    out = np.empty_like(case.dy)
    assert lstm(case.x, out=out)[0] is out
    np.testing.assert_array_equal(out, lstm(case.x)[0])


@pytest.mark.parametrize(
    ("switch", "value", "name"),
    [
        ("gate_activation", "hard_sigmoid(1e39)", "gate_activation alpha"),
        ("cell_activation", "scaled_tanh(1, -1e39)", "cell_activation beta"),
        ("cell_clip", 1e39, "cell_clip"),
    ],
)
def test_a_number_beyond_the_dtype_is_refused(switch: str, value: Any, name: str) -> None:
    """A number that is infinite in the dtype of the arithmetic, which is float32 for float16, would make NaN of 0."""
    for dtype in ("float32", "float16"):
        expected = rf"^{name}: expected a magnitude of at most 3\.403e\+38, the largest number of float32 \(the arithme"
        with pytest.raises(ValueError, match=expected):
            LSTM(3, 4, dtype=dtype, backend="numpy", **{switch: value})
    LSTM(3, 4, dtype="float64", backend="numpy", **{switch: value})


@pytest.mark.parametrize("what", ["lengths", "masks", "backward", "jvp"])
def test_what_a_backend_does_not_declare_is_refused(what: str) -> None:
    case = make_stack_case(make_stack(2, dropout=0.3))
    lstm = make(case, NaiveBackend(without=frozenset({what})))
    calls: dict[str, Any] = {
        "lengths": lambda: lstm(case.x, None, case.lengths),
        "masks": lambda: lstm.record(case.x),
        "backward": lambda: lstm.record(case.x),
        "jvp": lambda: lstm.jvp(case.x, None),
    }
    with pytest.raises(UnsupportedError, match=f"backend 'naive' has no {what}: left out for a test"):
        calls[what]()


def test_a_config_that_a_backend_does_not_declare_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'naive' refuses this LSTM: peephole: left out for a test"):
        LSTM(3, 4, peephole=True, backend=NaiveBackend(without=frozenset({"peephole"})))
    with pytest.raises(UnsupportedError, match="'reference' refuses this LSTM: float32"):
        LSTM(3, 4, backend=ReferenceBackend())


def test_strict_raises_where_a_call_would_take_a_slower_path() -> None:
    lstm = LSTM(3, 4, 2, backend=NaiveBackend(), strict=True)
    x = np.zeros((101, 2, 3), np.float32)
    lstm(x[:100])
    for call in (lambda: lstm(x), lambda: lstm.record(x), lambda: lstm.jvp(x, None)):
        with pytest.raises(UnsupportedError, match=r"strict: .*'naive' would run l0 .*: more than 100 steps"):
            call()
    assert lstm.step == 0
    LSTM(3, 4, backend=NaiveBackend())(x)


def test_the_backend_comes_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    named = LSTM(3, 4, dtype="float64", backend="reference")
    assert str(named.explain()).splitlines()[0] == "backend reference on cpu, float64: named"
    monkeypatch.setenv("LSTMCORE_BACKEND", "reference")
    default = LSTM(3, 4, dtype="float64")
    assert default.backend is named.backend
    assert "LSTMCORE_BACKEND" in str(default.explain())
    with pytest.raises(ValueError, match="did you mean 'reference'"):
        LSTM(3, 4, dtype="float64", backend="refrence")
    with pytest.raises(TypeError, match=r"^backend: expected a name, a Backend or None; got int"):
        LSTM(3, 4, backend=3)  # type: ignore[arg-type]  # the mistake under test


def test_strict_objects_to_a_faster_backend_that_could_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry.Selection(NaiveBackend(), "auto", {"far": "no such device", "fast": "no peephole"})

    def get_backend(name: str) -> Backend:
        if name == "far":
            raise registry.UnavailableError("no such device")
        if name == "broken":
            raise registry.PluginError("cannot be loaded")
        return NaiveBackend()

    monkeypatch.setattr(registry, "select", lambda stack, precision, name: found)
    monkeypatch.setattr(registry, "get_backend", get_backend)
    with pytest.raises(UnsupportedError, match=r"^strict: auto passes over the faster backend 'fast': no peephole$"):
        LSTM(3, 4, strict=True)
    assert "far was passed over: no such device; fast was passed over: no peephole" in str(LSTM(3, 4).explain())
    del found.skipped["fast"]
    LSTM(3, 4, strict=True)
    found.skipped["broken"] = "cannot be loaded"
    with pytest.raises(UnsupportedError, match="'broken': cannot be loaded"):
        LSTM(3, 4, strict=True)


def test_explain_names_the_backend_and_every_path() -> None:
    explanation = LSTM(3, 4, 2, bidirectional=True, backend=NaiveBackend()).explain(200, 1)
    text = str(explanation)
    assert text.splitlines()[0].startswith("backend naive on cpu, float32:")
    assert text.count("naive: for tests") == 4
    assert text.count("not the fastest path: more than 100 steps") == 4
    assert [suffix for suffix, _ in explanation.receipts] == ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]


def test_from_config_is_the_constructor() -> None:
    made = LSTM(5, 4, 2, bidirectional=True, dropout=0.2, peephole=True, backend=NaiveBackend(), seed=3)
    again = LSTM.from_config(StackConfig.from_dict(made.stack.to_dict()), backend=NaiveBackend(), seed=3)
    assert again.stack == made.stack
    for name, value in made.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)
    with pytest.raises(TypeError, match="stack: expected a StackConfig; got dict"):
        LSTM.from_config(made.stack.to_dict())  # type: ignore[arg-type]  # the mistake under test


def test_the_article_s_recurrence() -> None:
    """``recurrence="cell"``, as a user sees it: the gates read the cell, step for step."""
    case = make_stack_case(make_stack(recurrence="cell"), batch=2)
    y, (h_n, c_n) = make(case)(case.x, case.state)
    weight, recurrent, bias = (case.parameters[f"{name}_l0"] for name in ("weight_x", "weight_h", "bias"))

    def sigmoid(z: Array) -> Array:
        return 1 / (1 + np.exp(-z))

    c = case.state.c[0]
    for t, x in enumerate(case.x):
        i, f, g, o = np.split(x @ weight.T + c @ recurrent.T + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        assert_close(y[t], h)
    assert_close(c_n[0], c)
    assert_close(h_n[0], h)


def test_repr() -> None:
    lstm = LSTM(12, 100, bidirectional=True, backend=NaiveBackend())
    assert repr(lstm) == "LSTM(12, 100, bidirectional=True, dtype='float32', backend='naive')"


def test_reference_is_what_the_tests_compare_with() -> None:
    """One layer through `LSTM` and through the function of the reference: the same bits."""
    case = make_stack_case(make_stack())
    own = {name: case.parameters[f"{name}_l0"] for name in case.stack.configs[0].parameter_shapes}
    direct = reference.forward(case.stack.configs[0], own, case.x, State(case.state.h[0], case.state.c[0]))
    np.testing.assert_array_equal(make(case)(case.x, case.state)[0], direct.y)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda lstm: pickle.loads(pickle.dumps(lstm))])
def test_copies_compute_the_same_and_are_apart(copied: Callable[[LSTM], LSTM]) -> None:
    lstm = LSTM(3, 5, 2, dropout=0.3, bidirectional=True, batch_first=True, proj_size=2, seed=4, backend="numpy")
    x = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    lstm.record(x)
    other = copied(lstm)
    assert (other.seed, other.step, repr(other)) == (4, 1, repr(lstm))
    assert str(other.explain()) == str(lstm.explain())
    assert other.backend is lstm.backend
    assert other._kernel is not lstm._kernel
    assert not other.parameters["bias_l0"].flags.writeable
    kept = lstm.parameters
    np.testing.assert_array_equal(lstm(x)[0], other(x)[0])
    np.testing.assert_array_equal(lstm.record(x)[0], other.record(x)[0])  # the same masks
    lstm.load_parameters({name: value + 1 for name, value in kept.items()})
    for name, value in other.parameters.items():
        np.testing.assert_array_equal(value, kept[name])
    with pytest.raises(ValueError, match="got one of another LSTM"):
        lstm.backward(other.record(x)[2])


def test_a_backend_of_ones_own_is_copied_as_it_is() -> None:
    lstm = LSTM(3, 5, seed=4, backend=NaiveBackend())
    other = copy.copy(lstm)
    assert other.backend is lstm.backend
    x = np.ones((2, 1, 3), np.float32)
    np.testing.assert_array_equal(copy.deepcopy(lstm)(x)[0], lstm(x)[0])
