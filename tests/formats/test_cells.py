"""Arrays of the cells of Equinox, Flax, Haiku, TensorFlow and Core ML: the same outputs, and the same arrays back."""

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
        if (FORMATS[name].forget_bias or options.get("forget_bias")) and key in (
            FORMATS[name].bias,
            "forgetGateBiasVector",
        ):
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

    def step(state: Any, x: Any) -> Any:
        c, h = state
        i, j, f, o = np.split(np.concatenate([x, h], axis=1) @ kernel.astype("f8") + bias, 4, axis=1)
        c = c * sigmoid(f + added) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        return (c, h), h

    wanted = run_steps(step, (np.zeros((4, H)), np.zeros((4, H))))
    ours("tf1", {"kernel": kernel, "bias": bias}, wanted, forget_bias=forget_bias)


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def bounded(z: Any, bound: float) -> Any:
    return np.clip(z, -bound, bound) if bound > 0 else z


@pytest.mark.parametrize("projected", [0, 4])
@pytest.mark.parametrize("bounds", [(0.0, 0.0), (0.3, 0.15)])
@pytest.mark.parametrize("peephole", [False, True])
def test_tensorflow_1_with_all(projected: int, bounds: tuple[float, float], peephole: bool) -> None:
    """As the text of LSTMCell has it: use_peepholes, num_proj, cell_clip and proj_clip."""
    rng, width = np.random.default_rng(2), projected or H
    arrays = {"kernel": rng.standard_normal((3 + width, 4 * H)), "bias": rng.standard_normal(4 * H)}
    if peephole:
        arrays |= {f"w_{gate}_diag": rng.standard_normal(H) for gate in "fio"}
    if projected:
        arrays["projection/kernel"] = rng.standard_normal((H, width))
    arrays = {name: array.astype("f4") / 2 for name, array in arrays.items()}
    wide = {name: array.astype("f8") for name, array in arrays.items()}
    w = {gate: wide.get(f"w_{gate}_diag", 0.0) for gate in "fio"}

    def step(state: Any, x: Any) -> Any:
        c, m = state
        i, j, f, o = np.split(np.concatenate([x, m], axis=1) @ wide["kernel"] + wide["bias"], 4, axis=1)
        c = sigmoid(f + 1.0 + w["f"] * c) * c + sigmoid(i + w["i"] * c) * np.tanh(j)
        c = bounded(c, bounds[0])
        m = sigmoid(o + w["o"] * c) * np.tanh(c)
        m = bounded(m @ wide["projection/kernel"], bounds[1]) if projected else m
        return (c, m), m

    wanted = run_steps(step, (np.zeros((4, H)), np.zeros((4, width))))
    told = {"cell_clip": bounds[0], **({"proj_clip": bounds[1]} if projected else {})}
    ours("tf1", arrays, wanted, **told)


@pytest.mark.parametrize("name", ["tf-block", "tf-block-v2"])
@pytest.mark.parametrize("cell_clip", [None, 0.3, -1.0])
def test_tensorflow_block(name: str, cell_clip: float | None) -> None:
    """As the text of the operators has it: i, ci, f, o with a forget bias of 1 and a bound of 3, or i, f, ci, o."""
    rng, first = np.random.default_rng(3), name == "tf-block"
    arrays = {"w": rng.standard_normal((3 + H, 4 * H)), "b": 2 * rng.standard_normal(4 * H)}
    arrays |= {f"wc{gate}": rng.standard_normal(H) for gate in "ifo"}
    arrays = {key: array.astype("f4") for key, array in arrays.items()}
    bound = (3.0 if first else 0.0) if cell_clip is None else cell_clip

    def step(state: Any, x: Any) -> Any:
        cs, h = state
        i, f, ci, o = np.split(np.concatenate([x, h], axis=1) @ arrays["w"].astype("f8") + arrays["b"], 4, axis=1)
        if first:
            f, ci = ci + 1.0, f
        i, f = sigmoid(cs * arrays["wci"] + i), sigmoid(cs * arrays["wcf"] + f)
        cs = bounded(np.tanh(ci) * i + cs * f, bound)
        h = np.tanh(cs) * sigmoid(cs * arrays["wco"] + o)
        return (cs, h), h

    ours(name, arrays, run_steps(step, (np.zeros((4, H)), np.zeros((4, H)))), cell_clip=cell_clip)


def coreml_arrays(seed: int, *, coupled: bool = False, peephole: bool = True) -> dict[str, Any]:
    rng, made = np.random.default_rng(seed), {}
    for gate in ("inputGate", "forgetGate", "blockInput", "outputGate"):
        if coupled and gate == "forgetGate":
            continue
        made[f"{gate}WeightMatrix"] = rng.standard_normal((H, 3))
        made[f"{gate}RecursionMatrix"] = rng.standard_normal((H, H))
        made[f"{gate}BiasVector"] = rng.standard_normal(H)
        if peephole and gate != "blockInput":
            made[f"{gate}PeepholeVector"] = rng.standard_normal(H)
    return {name: array.astype("f4") / 2 for name, array in made.items()}


def run_coreml(arrays: dict[str, Any], x: Any, forget_bias: float = 0.0, bound: float = 50.0) -> Any:
    """Evaluate the equations of LSTMParams in NeuralNetwork.proto; the peephole of the output gate reads the new c."""
    h = c = np.zeros((x.shape[1], H))
    outputs = []
    for now in x.astype("f8"):
        z = {
            gate: now @ arrays[f"{gate}WeightMatrix"].T
            + h @ arrays[f"{gate}RecursionMatrix"].T
            + arrays.get(f"{gate}BiasVector", 0.0)
            for gate in ("inputGate", "forgetGate", "blockInput", "outputGate")
            if f"{gate}WeightMatrix" in arrays
        }
        peepholes = {gate: arrays.get(f"{gate}PeepholeVector", 0.0) for gate in z}
        i = sigmoid(z["inputGate"] + peepholes["inputGate"] * c)
        f = 1 - i
        if "forgetGate" in z:
            f = sigmoid(z["forgetGate"] + forget_bias + peepholes["forgetGate"] * c)
        c = bounded(c * f + i * np.tanh(z["blockInput"]), bound)
        h = sigmoid(z["outputGate"] + peepholes["outputGate"] * c) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("options", [{}, {"forget_bias": 1.0}, {"cell_clip": 0.2}])
@pytest.mark.parametrize("coupled", [False, True])
def test_coreml(coupled: bool, options: dict[str, float], peephole: bool) -> None:
    arrays = coreml_arrays(4, coupled=coupled, peephole=peephole)
    wanted = run_coreml(arrays, X, options.get("forget_bias", 0.0), options.get("cell_clip", 50.0))
    ours("coreml", arrays, wanted, **options)


def test_the_bounds_that_libraries_have() -> None:
    """What a cell is told by default is in the configuration; a small network does not reach a bound of 50."""
    block = {"w": np.zeros((8, 20), np.float32), "b": np.zeros(20, np.float32)}
    for name, arrays, bound in (
        ("coreml", coreml_arrays(0), 50.0),
        ("tf-block", block, 3.0),
        ("tf-block-v2", block, None),
    ):
        assert read_cell(name, arrays).layers.layers[0][0].cell_clip == bound
    assert read_cell("coreml-mil", to_mil(coreml_arrays(0))).layers.layers[0][0].cell_clip is None


@pytest.mark.parametrize("backward", [None, coreml_arrays(0)])
def test_no_arrays_are_refused(backward: dict[str, Any] | None) -> None:
    """None for the first direction is not left out, as it is for the second."""
    with pytest.raises(TypeError, match="arrays: expected a mapping"):
        read_cell("coreml", None, backward)  # type: ignore[arg-type]


def test_a_bound_of_0_is_what_the_library_makes_of_it() -> None:
    """Core ML's file does not tell 0 from a bound that is not given, which is 50; MIL's operator would hold c at 0."""
    arrays = coreml_arrays(0)
    content = read_cell("coreml", arrays, cell_clip=0)
    assert content.layers.layers[0][0].cell_clip == 50.0
    assert sorted(write_cell("coreml", content, cell_clip=0.0)) == sorted(arrays)
    with pytest.raises(ValueError, match=r"cell_clip: expected 50\.0, as a cell of coreml has it; got None"):
        write_cell("coreml", LSTM(3, 5, backend="numpy").content, cell_clip=0)
    with pytest.raises(ValueError, match=r"cell_clip: expected a bound above 0, or None for none; got 0\.0"):
        read_cell("coreml-mil", to_mil(arrays), cell_clip=0)


def to_mil(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of the operator lstm: gates i, f, o, z one below another."""
    words = ("inputGate", "forgetGate", "outputGate", "blockInput")
    kinds = {"weight_ih": "WeightMatrix", "weight_hh": "RecursionMatrix", "bias": "BiasVector"}
    made = {key: np.concatenate([arrays[word + kind] for word in words]) for key, kind in kinds.items()}
    return made | {"peephole": np.concatenate([arrays[f"{word}PeepholeVector"] for word in words[:3]])}


@pytest.mark.parametrize("cell_clip", [None, 0.2])
@pytest.mark.parametrize("name", ["coreml", "coreml-mil"])
def test_coreml_in_both_directions(name: str, cell_clip: float | None) -> None:
    each = [coreml_arrays(seed) for seed in (5, 6)]
    bound = (50.0 if name == "coreml" else 0.0) if cell_clip is None else cell_clip
    wanted = [run_coreml(each[0], X, 0.0, bound), run_coreml(each[1], X[::-1], 0.0, bound)[::-1]]
    given = each if name == "coreml" else [to_mil(arrays) for arrays in each]
    found = LSTM.from_content(read_cell(name, *given, cell_clip=cell_clip), backend="numpy")
    np.testing.assert_allclose(found(X)[0], np.concatenate(wanted, axis=2), atol=1e-6)
    for place, arrays in enumerate(given):
        back = write_cell(name, found.content, backward=place == 1, cell_clip=cell_clip)
        assert {key: value.tobytes() for key, value in back.items()} == {k: v.tobytes() for k, v in arrays.items()}


def test_bounds_and_directions_that_a_cell_lacks() -> None:
    tf1 = {"kernel": np.zeros((8, 20), np.float32), "bias": np.zeros(20, np.float32)}
    with pytest.raises(ValueError, match="backward: expected None, since a cell of tf1 has one direction"):
        read_cell("tf1", tf1, tf1)
    with pytest.raises(ValueError, match="cell_clip: expected None, since the cell has no such argument"):
        read_cell("haiku", {}, cell_clip=0.5)
    with pytest.raises(ValueError, match=r"projection/kernel: expected shape \(5, P\); got \(4, 3\)"):
        read_cell("tf1", tf1 | {"projection/kernel": np.zeros((4, 3), np.float32)})
    with pytest.raises(ValueError, match=r"w_\{\}_diag: expected H=5 numbers for each gate; got \(4,\)"):
        read_cell("tf1", tf1 | {f"w_{gate}_diag": np.zeros(4, np.float32) for gate in "ifo"})
    with pytest.raises(ValueError, match="arrays: expected w_i_diag; got"):
        read_cell("tf1", tf1 | {"w_f_diag": np.zeros(5, np.float32)})
    for name, key, allowed in (
        ("tf1", "cell_clip", "0 for none"),
        ("tf1", "proj_clip", "0 for none"),
        ("coreml", "cell_clip", r"0 for 50\.0"),
        ("coreml-mil", "cell_clip", "None for none"),
    ):
        with pytest.raises(ValueError, match=rf"{key}: expected a bound above 0, or {allowed}; got -1\.0"):
            read_cell(name, tf1, **{key: -1.0})
    content = LSTM(3, 5, backend="numpy", cell_clip=0.5).content
    with pytest.raises(ValueError, match="cell_clip: expected a bound above 0, or 0 for none"):
        write_cell("tf1", content, cell_clip=-0.5)
    with pytest.raises(ValueError, match="cell_clip: expected None, as a cell of tf1 has it"):
        write_cell("tf1", content)
    assert set(write_cell("tf1", content, cell_clip=0.5)) == {"kernel", "bias"}
    with pytest.raises(ValueError, match=r"cell_clip: expected 3\.0, as a cell of tf-block has it"):
        write_cell("tf-block", LSTM(3, 5, backend="numpy").content)
    with pytest.raises(ValueError, match="backward: expected False for a layer in one direction"):
        write_cell("coreml", LSTM(3, 5, backend="numpy", cell_clip=50.0).content, backward=True)
    with pytest.raises(ValueError, match="bias: expected True, as a cell of coreml has it; got False"):
        write_cell("coreml", LSTM(3, 5, backend="numpy", cell_clip=50.0, bias=False).content, forget_bias=1.0)


def test_what_is_no_cell_is_refused() -> None:
    f32 = np.float32
    good = {"weight_ih": np.zeros((20, 3), f32), "weight_hh": np.zeros((20, 5), f32), "bias": np.zeros(20, f32)}
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("other", good, "format: expected one of equinox, flax, flax-nnx, haiku, tf1, tf-block, .*; got 'other'"),
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
