"""The reference against complex steps, the adjoint identity, the article's recurrence and frozen values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from lstmcore import reference
from lstmcore.backend import State, Tangents
from lstmcore.config import ACTIVATIONS, FEATURES, LSTMConfig
from lstmcore.masks import layer_masks
from lstmcore.precision import PRECISIONS
from lstmcore.registry import get_backend
from lstmcore_conformance.cases.switches import SWITCHES
from strategies import switch_config

STEP = 1e-30
T, N, I, H = 4, 3, 4, 5  # of the golden vectors and of the combinations
GOLDEN = Path(__file__).with_name("golden.safetensors")


def _random_switches(rng: np.random.Generator) -> dict[str, Any]:
    def one(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    proj = one(0, 3)
    return {
        "bias": one(True, False),
        "proj_size": proj,
        "reverse": one(True, False),
        "peephole": one(True, False),
        "coupling": one("none", "forget_from_input", "input_from_forget"),
        "gate_clip": one(None, 0.7),
        "cell_clip": one(None, 0.4),
        "proj_clip": one(None, 0.3) if proj else None,
        "gate_activation": one("sigmoid", *ACTIVATIONS),
        "cell_activation": one("tanh", *ACTIVATIONS),
        "hidden_activation": one("tanh", *ACTIVATIONS),
        "recurrence": one("hidden", "cell"),
        "layer_norm": one(True, False),
        "zoneout_hidden": one(0.0, 0.3),
        "zoneout_cell": one(0.0, 0.2),
        "recurrent_dropout": one(0.0, 0.4),
    }


def _data(config: LSTMConfig, rng: np.random.Generator) -> tuple[dict[str, Any], Any, State, Tangents]:
    def normal(shape: tuple[int, ...], scale: float = 1.0) -> Any:
        return rng.normal(size=shape) * scale

    parameters = {name: normal(shape, 0.5) + 0.05 for name, shape in config.parameter_shapes.items()}
    x = normal((T, N, config.input_size))
    state = State(normal((N, config.output_size), 0.3), normal((N, config.hidden_size), 0.3))
    directions = Tangents(
        normal(x.shape),
        State(normal(state.h.shape), normal(state.c.shape)),
        {name: normal(shape) for name, shape in config.parameter_shapes.items()},
    )
    return parameters, x, state, directions


def test_operands_of_tf32_have_10_bits() -> None:
    """To the nearest, ties to even, or cut off; NaN, infinity and what is complex stay."""
    unit = 2.0**-10
    given = np.array([1 + unit / 2, 1 + 1.5 * unit, 1 + 0.75 * unit, -1 - 0.75 * unit, 3 * 2.0**-149, np.inf, np.nan])
    nearest = [1, 1 + 2 * unit, 1 + unit, -1 - unit, 0, np.inf, np.nan]
    zero = [1, 1 + unit, 1, -1, 0, np.inf, np.nan]
    array, policy = given.astype(np.float32), PRECISIONS["tf32"]
    np.testing.assert_array_equal(reference._operand(array, policy), np.float32(nearest))
    np.testing.assert_array_equal(reference._operand(array, replace(policy, operands="towards zero")), np.float32(zero))
    for same in (PRECISIONS["float32"], PRECISIONS["float16"]):
        assert reference._operand(array, same) is array
    turned = array + 1j
    assert reference._operand(turned, policy) is turned


def _check_derivatives(config: LSTMConfig, seed: int, lengths: list[int] | None, with_masks: bool) -> None:
    rng = np.random.default_rng(seed)
    parameters, x, state, v = _data(config, rng)
    assert v.parameters is not None
    assert v.state is not None
    masks = layer_masks(config, PRECISIONS["float64"], T, N, seed=seed, index=0, step=0) if with_masks else None
    _, tangent = reference.jvp(config, parameters, x, state, v, lengths=lengths, masks=masks)
    moved = reference.forward(
        config,
        {name: value + 1j * STEP * v.parameters[name] for name, value in parameters.items()},
        x + 1j * STEP * v.x,
        State(state.h + 1j * STEP * v.state.h, state.c + 1j * STEP * v.state.c),
        lengths=lengths,
        masks=masks,
    )
    # Both are exact but for rounding; a few hundred operations in a row lose a few hundred epsilon.
    for got, expected in ((tangent.y, moved.y), (tangent.state.h, moved.state.h), (tangent.state.c, moved.state.c)):
        np.testing.assert_allclose(got, expected.imag / STEP, rtol=1e-11, atol=1e-11 * max(1, np.abs(got).max()))

    primal = reference.forward(config, parameters, x, state, lengths=lengths, masks=masks)
    dy, dh, dc = (rng.normal(size=a.shape) for a in (primal.y, *primal.state))
    grads = reference.backward(config, primal.tape, dy, State(dh, dc))
    forward_side = (dy * tangent.y).sum() + (dh * tangent.state.h).sum() + (dc * tangent.state.c).sum()
    pairs = [(grads.x, v.x), (grads.state.h, v.state.h), (grads.state.c, v.state.c)]
    pairs += [(grads.parameters[name], v.parameters[name]) for name in parameters]
    products = [(a * b).sum() for a, b in pairs]
    assert abs(forward_side - sum(products)) <= 1e-11 * max(1.0, sum(map(abs, products)))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("lengths", [None, [4, 0, 3]])
def test_derivatives_of_every_switch(name: str, lengths: list[int] | None) -> None:
    _check_derivatives(switch_config(name), 1, lengths, lengths is not None)


@pytest.mark.parametrize("seed", range(60))
def test_derivatives_of_combinations(seed: int) -> None:
    rng = np.random.default_rng([seed, 7])
    config = LSTMConfig(input_size=I, hidden_size=H, **_random_switches(rng))
    _check_derivatives(config, seed, [None, [4, 0, 3]][seed % 2], seed % 3 > 0)


@pytest.mark.parametrize(
    "name", ["plain", "peephole", "layer_norm", "proj_clip", "forget_from_input,peephole", "recurrence_cell,proj_size"]
)
def test_gradient_of_every_parameter_by_complex_step(name: str) -> None:
    config = switch_config(name)
    rng = np.random.default_rng(3)
    parameters, x, state, _ = _data(config, rng)
    primal = reference.forward(config, parameters, x, state)
    dy = rng.normal(size=primal.y.shape)
    grads = reference.backward(config, primal.tape, dy)
    for key, value in parameters.items():
        numeric = np.empty_like(value)
        for index in np.ndindex(value.shape):
            bumped = value.astype(complex)
            bumped[index] += 1j * STEP
            y = reference.forward(config, {**parameters, key: bumped}, x, state).y
            numeric[index] = (dy * y.imag).sum() / STEP
        np.testing.assert_allclose(grads.parameters[key], numeric, rtol=1e-10, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_recurrence_of_the_article(backend: str) -> None:
    """The gates read the cell: i, f, o = sigmoid(W x + R c + b), g = tanh(W x + R c + b), step for step."""
    config = LSTMConfig(input_size=I, hidden_size=H, recurrence="cell")
    parameters, x, state, _ = _data(config, np.random.default_rng(5))
    kernel = get_backend(backend).compile(config, "float64")
    y, last, _ = kernel.forward(kernel.pack(parameters), x, state)

    w, r, b = (parameters[name].reshape(4, H, -1) for name in ("weight_x", "weight_h", "bias"))
    for n in range(N):
        c = state.c[n]
        for t in range(T):
            i, f, g, o = (w[k] @ x[t, n] + r[k] @ c + b[k, :, 0] for k in range(4))
            i, f, g, o = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))
            c = f * c + i * g
            np.testing.assert_allclose(y[t, n], o * np.tanh(c), rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(last.c[n], c, rtol=1e-13, atol=1e-14)


def golden_configs() -> dict[str, LSTMConfig]:
    """Return the configurations of the frozen cases by name; ``add_golden_case.py`` adds one."""
    with safe_open(GOLDEN, "numpy") as file:
        return {name: LSTMConfig.from_dict(json.loads(text)) for name, text in sorted(file.metadata().items())}


def golden_cases() -> dict[str, dict[str, Any]]:
    """Return the arrays of the frozen cases by name."""
    cases: dict[str, dict[str, Any]] = {}
    for key, array in load_file(GOLDEN).items():
        name, _, part = key.partition("/")
        cases.setdefault(name, {})[part] = array
    return cases


def golden_results(config: LSTMConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what the reference gives for the inputs of a frozen case: outputs, states and gradients."""
    parameters = {key.removeprefix("parameter."): a for key, a in inputs.items() if key.startswith("parameter.")}
    primal = reference.forward(config, parameters, inputs["x"], State(inputs["h0"], inputs["c0"]), lengths=[4, 0, 3])
    grads = reference.backward(config, primal.tape, np.cos(np.arange(primal.y.size)).reshape(primal.y.shape))
    results = {"y": primal.y, "h": primal.state.h, "c": primal.state.c, "dx": grads.x}
    results |= {"dh0": grads.state.h, "dc0": grads.state.c}
    return results | {f"gradient.{key}": value for key, value in grads.parameters.items()}


def test_golden_vectors_hold() -> None:
    configs, cases = golden_configs(), golden_cases()
    assert set().union(*(config.features for config in configs.values())) == FEATURES - {"lengths", "masks"}
    assert set(cases) == set(configs)
    for name, frozen in cases.items():
        results = golden_results(configs[name], frozen)
        assert set(results) == {key for key in frozen if not key.startswith("parameter.")} - {"x", "h0", "c0"}
        for key, value in results.items():
            np.testing.assert_allclose(value, frozen[key], rtol=1e-12, atol=1e-13, err_msg=f"{name} {key}")


def test_a_golden_case_is_added_and_none_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import add_golden_case

    before, copy = golden_cases(), tmp_path / "golden.safetensors"
    copy.write_bytes(GOLDEN.read_bytes())
    monkeypatch.setattr("test_reference.GOLDEN", copy)
    monkeypatch.setattr(add_golden_case, "GOLDEN", copy)
    add_golden_case.add("two_clips", {"cell_clip": 0.3, "gate_clip": 0.8})
    after = golden_cases()
    assert golden_configs()["two_clips"].cell_clip == 0.3
    np.testing.assert_array_equal(after.pop("two_clips")["y"].shape, (T, N, H))
    assert {name: list(arrays) for name, arrays in after.items()} == {name: list(a) for name, a in before.items()}
    for name, arrays in before.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(after[name][key], array)
    with pytest.raises(ValueError, match="name: expected a new one; got 'plain', whose values are frozen"):
        add_golden_case.add("plain", {})
