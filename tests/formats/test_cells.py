"""Arrays of the cells of Equinox, Flax, Haiku and TensorFlow 1: the same outputs, and the same arrays back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore import LSTM
from lstmcore.dialects.cells import FORMATS, read_cell, write_cell

X = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(np.float32)
H = 5


def ours(name: str, arrays: dict[str, Any], wanted: Any, **options: Any) -> None:
    """Compare outputs (T, N, H), and the arrays after a turn."""
    found = LSTM.from_content(read_cell(name, arrays, **options), backend="numpy")
    np.testing.assert_allclose(found(X)[0], wanted, atol=1e-6)
    back = write_cell(name, found.content, **options)
    assert set(back) == set(arrays)
    for key, value in back.items():
        if FORMATS[name].forget_bias and key == FORMATS[name].bias:
            added = np.float32(options.get("forget_bias") or 1.0)  # it is added and taken off again: one rounding
            assert (np.abs(value - arrays[key]) <= np.spacing(np.abs(arrays[key]) + added)).all()
        else:
            assert value.tobytes() == np.ascontiguousarray(arrays[key]).tobytes()


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested arrays with their names joined."""
    if not hasattr(tree, "items"):
        return {prefix: np.asarray(tree)}
    return {
        name: value for key, each in tree.items() for name, value in flat(each, f"{prefix}/{key}".strip("/")).items()
    }


def run_steps(step: Any, state: Any) -> Any:
    outputs = []
    for x in X:
        state, y = step(state, x)
        outputs.append(np.asarray(y))
    return np.stack(outputs)


def shaken(tree: Any) -> Any:
    """Return the arrays with every number, also of a bias that begins with 0, at random."""
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: np.asarray(rng.standard_normal(a.shape) / 3, np.float32), tree)


@pytest.mark.parametrize("use_bias", [True, False])
def test_equinox(use_bias: bool) -> None:
    jax, eqx = pytest.importorskip("jax"), pytest.importorskip("equinox")
    cell = eqx.nn.LSTMCell(3, H, use_bias=use_bias, key=jax.random.key(0))

    def step(state: Any, x: Any) -> Any:
        state = jax.vmap(cell)(x, state)
        return state, state[0]

    names = ("weight_ih", "weight_hh", *(["bias"] if use_bias else []))
    wanted = run_steps(step, (np.zeros((4, H), "f4"), np.zeros((4, H), "f4")))
    ours("equinox", {name: np.asarray(getattr(cell, name)) for name in names}, wanted)


def test_haiku() -> None:
    jax, hk = pytest.importorskip("jax"), pytest.importorskip("haiku")
    core = hk.without_apply_rng(hk.transform(lambda x, state: hk.LSTM(H)(x, state)))
    start = hk.LSTMState(np.zeros((4, H), "f4"), np.zeros((4, H), "f4"))
    (parameters,) = (values := shaken(core.init(jax.random.key(0), X[0], start))).values()

    def step(state: Any, x: Any) -> Any:
        y, state = core.apply(values, x, state)
        return state, y

    ours("haiku", flat(parameters), run_steps(step, start))


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell"])
def test_flax_linen(kind: str) -> None:
    jax, nn = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    cell = getattr(nn, kind)(H)
    start = (np.zeros((4, H), "f4"), np.zeros((4, H), "f4"))
    values = shaken(cell.init(jax.random.key(0), start, X[0]))
    ours("flax", flat(values["params"]), run_steps(lambda state, x: cell.apply(values, state, x), start))


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell"])
def test_flax_nnx(kind: str) -> None:
    nnx = pytest.importorskip("flax.nnx")
    cell = getattr(nnx, kind)(3, H, rngs=nnx.Rngs(0))
    state = nnx.state(cell, nnx.Param)
    nnx.update(cell, shaken(state))
    arrays = flat(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    start = (np.zeros((4, H), "f4"), np.zeros((4, H), "f4"))
    wanted = run_steps(lambda state, x: cell(state, x), start)
    if kind == "LSTMCell":
        arrays = {name.replace("if_/", "if/"): value for name, value in arrays.items()}
    ours("flax" if kind == "LSTMCell" else "flax-nnx", arrays, wanted)


@pytest.mark.parametrize("forget_bias", [None, 0.0, 2.5])
def test_tensorflow_1(forget_bias: float | None) -> None:
    """As the text of BasicLSTMCell has it: gates i, j, f, o of one matrix, and a constant on f."""
    rng, added = np.random.default_rng(1), 1.0 if forget_bias is None else forget_bias
    kernel, bias = (rng.standard_normal(size).astype("f4") / 2 for size in ((3 + H, 4 * H), (4 * H,)))

    def sigmoid(z: Any) -> Any:
        return 1 / (1 + np.exp(-z))

    def step(state: Any, x: Any) -> Any:
        c, h = state
        i, j, f, o = np.split(np.concatenate([x, h], axis=1) @ kernel.astype("f8") + bias, 4, axis=1)
        c = c * sigmoid(f + added) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        return (c, h), h

    wanted = run_steps(step, (np.zeros((4, H)), np.zeros((4, H))))
    ours("tf1", {"kernel": kernel, "bias": bias}, wanted, forget_bias=forget_bias)


def test_what_is_no_cell_is_refused() -> None:
    f32 = np.float32
    good = {"weight_ih": np.zeros((20, 3), f32), "weight_hh": np.zeros((20, 5), f32), "bias": np.zeros(20, f32)}
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("other", good, "format: expected one of equinox, flax, flax-nnx, haiku, tf1; got 'other'"),
        ("haiku", good, "arrays: expected w; got bias, weight_hh, weight_ih"),
        ("equinox", good | {"more": np.zeros(3, f32)}, "arrays: expected weight_ih, weight_hh, bias; got more"),
        ("equinox", good | {"weight_hh": np.zeros((20, 4), f32)}, r"weight_hh: expected shapes of an LSTM with H=5"),
        ("equinox", good | {"weight_hh": np.zeros((18, 4), f32)}, r"weight_hh: expected 4 H units; got \(18, 4\)"),
        ("equinox", good | {"weight_hh": np.zeros(20, f32)}, r"weight_hh: expected 2 axes; got \(20,\)"),
        ("equinox", good | {"bias": np.zeros(16, f32)}, "bias: expected the same H=5 in all arrays"),
        ("equinox", good | {"bias": np.zeros(20)}, "arrays: expected one dtype; got float32, float64"),
        ("equinox", good | {"bias": np.zeros(20, int)}, "bias: expected floating-point numbers; got int64"),
        ("equinox", good | {"bias": [0.0] * 20}, "bias: expected a tensor or an array; got list"),
        ("equinox", good | {"bias": np.full(20, np.inf, f32)}, r"parameters\['bias_l0'\]: expected finite numbers"),
        ("tf1", {"kernel": np.zeros((5, 20), f32), "bias": np.zeros(20, f32)}, "kernel: expected shapes of an LSTM"),
    )
    for name, arrays, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            read_cell(name, arrays)
    for options, message in (
        ({"num_layers": 2}, "haiku: expected one layer in one direction"),
        ({"bidirectional": True}, "haiku: expected one layer in one direction"),
        ({"peephole": True}, "peephole: expected False, as a cell of haiku has it; got True"),
        ({"bias": False}, "bias: expected True, as a cell of haiku has it; got False"),
    ):
        with pytest.raises(ValueError, match=message):
            write_cell("haiku", LSTM(3, 5, backend="numpy", **options).content)
