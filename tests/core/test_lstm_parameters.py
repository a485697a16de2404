"""The parameters of `LSTM`: what a seed fixes, how they start, and that nothing goes stale."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest

from lstmcore.lstm import LSTM
from lstmcore.precision import numpy_dtype
from lstmcore_conformance.oracle import philox
from lstmcore_reference.kernel import ReferenceBackend
from stacks import NaiveBackend


def make(**changes: Any) -> LSTM:
    arguments: dict[str, Any] = {"input_size": 6, "hidden_size": 16, "backend": NaiveBackend(), "seed": 5}
    return LSTM(**(arguments | changes))


def test_the_seed_fixes_the_parameters_everywhere() -> None:
    """The seed fixes the parameters on every backend and in every precision."""
    wide = make(dtype="float64")
    for other in (make(dtype="float64"), make(dtype="float64", backend=ReferenceBackend())):
        for name, value in wide.parameters.items():
            np.testing.assert_array_equal(other.parameters[name], value)
    for dtype in ("float32", "float16"):
        for name, value in make(dtype=dtype).parameters.items():
            np.testing.assert_array_equal(value, wide.parameters[name].astype(dtype))


def test_known_first_parameters() -> None:
    """Frozen, so that a model that is built from its seed stays the same in later versions.

    The words are the first block of Philox4x32-10 with counter (0, 0, 0, 2**31) and key (5, 0).
    """
    from lstmcore.masks import philox4x32

    words = philox4x32(np.array([0, 0, 0, 2**31], np.uint32), (5, 0))
    expected = [(2 * (int(word) + 0.5) / 2**32 - 1) / 4 for word in words]
    np.testing.assert_array_equal(make(dtype="float64").parameters["weight_x_l0"].ravel()[:4], expected)


def gram_schmidt(block: list[list[float]]) -> list[list[float]]:
    """The columns of `block`, orthonormalised first to last; each is freed of the others twice, which is enough."""
    columns: list[list[float]] = []
    for column in zip(*block, strict=True):
        rest = list(column)
        for other in 2 * columns:
            along = sum(a * b for a, b in zip(rest, other, strict=True))
            rest = [a - along * b for a, b in zip(rest, other, strict=True)]
        length = math.sqrt(sum(a * a for a in rest))
        columns.append([a / length for a in rest])
    return [list(row) for row in zip(*columns, strict=True)]


def from_the_words_of_the_specification(
    shapes: list[tuple[str, tuple[int, ...]]], hidden: int, seed: int, init: str
) -> list[tuple[str, Any]]:
    """Section 6 of SPEC.md, number after number, from a Philox that is not the one of lstmcore."""
    made = []
    for j, (name, shape) in enumerate(shapes):
        count = math.prod(shape)

        def u(e: int, j: int = j) -> float:
            word = philox.block((e // 4, 0, 0, 2**31 + j), (seed % 2**32, seed // 2**32))[e % 4]
            return (word + 0.5) / 2**32

        if name.startswith("norm_"):
            values = [0.0 if "bias" in name else 1.0] * count
        elif name.startswith("weight_h_") and init == "orthogonal":
            normal = [math.sqrt(-2 * math.log(u(e))) * math.cos(2 * math.pi * u(count + e)) for e in range(count)]
            rows = [normal[first : first + shape[1]] for first in range(0, count, shape[1])]
            blocks = [gram_schmidt(rows[first : first + hidden]) for first in range(0, shape[0], hidden)]
            values = [value for one in blocks for row in one for value in row]
        else:
            values = [(2 * u(e) - 1) / math.sqrt(hidden) for e in range(count)]
        made.append((name, np.array(values).reshape(shape)))
    return made


@pytest.mark.parametrize("init", ["uniform", "orthogonal"])
@pytest.mark.parametrize("peephole", [False, True])
def test_the_parameters_are_those_of_the_specification(init: str, peephole: bool) -> None:
    seed, hidden, proj, width = 0x0123456789ABCDEF, 7, 3, 5
    lstm = make(
        input_size=width,
        hidden_size=hidden,
        proj_size=proj,
        peephole=peephole,
        layer_norm=True,
        num_layers=2,
        bidirectional=True,
        init=init,
        seed=seed,
        forget_bias=1.5,
        dtype="float64",
    )
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for suffix, inputs in (("_l0", width), ("_l0_reverse", width), ("_l1", 2 * proj), ("_l1_reverse", 2 * proj)):
        shapes += [(f"weight_x{suffix}", (4 * hidden, inputs)), (f"weight_h{suffix}", (4 * hidden, proj))]
        shapes += [(f"bias{suffix}", (4 * hidden,)), (f"weight_proj{suffix}", (proj, hidden))]
        shapes += [(f"peephole{suffix}", (3, hidden))] if peephole else []
        shapes += [(f"norm_gain_{which}{suffix}", (4 * hidden,)) for which in "xh"]
        shapes += [(f"norm_{which}_c{suffix}", (hidden,)) for which in ("gain", "bias")]
    expected = from_the_words_of_the_specification(shapes, hidden, seed, init)
    assert list(lstm.parameters) == [name for name, _ in expected]
    for name, values in expected:
        if name.startswith("bias"):
            values[hidden : 2 * hidden] = 1.5
        # Householder and Gram-Schmidt lose some epsilon times the condition of a (7, 3) block; the rest is one rounding
        exact = not (init == "orthogonal" and name.startswith("weight_h_"))
        np.testing.assert_allclose(
            lstm.parameters[name], values, rtol=2**-51 if exact else 0, atol=0 if exact else 1e-13, err_msg=name
        )


def test_another_seed_gives_other_parameters_and_none_draws_one() -> None:
    assert (make(seed=6).parameters["weight_x_l0"] != make().parameters["weight_x_l0"]).all()
    first, second = make(seed=None), make(seed=None)
    assert first.seed != second.seed
    assert 0 <= first.seed < 2**53
    again = make(seed=first.seed)
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], value)


def test_no_two_parameters_share_numbers() -> None:
    flat = np.concatenate([value.ravel() for value in make(num_layers=2, bidirectional=True).parameters.values()])
    assert np.unique(flat).size > 0.99 * flat.size


def test_uniform_is_pytorch_s() -> None:
    lstm = make(hidden_size=64, proj_size=20, peephole=True, layer_norm=True, dtype="float64")
    for name, value in lstm.parameters.items():
        if "norm_gain" in name:
            assert (value == 1).all()
        elif "norm_bias" in name:
            assert not value.any()
        else:
            # U(-b, b) with b = 1 / sqrt(64): the mean is 0 and the variance b**2 / 3, each within 5 standard errors
            bound, count = 1 / 8, value.size
            assert np.abs(value).max() <= bound
            assert abs(value.mean()) < 5 * bound / np.sqrt(3 * count)
            assert abs((value**2).mean() - bound**2 / 3) < 5 * bound**2 * np.sqrt(4 / 45 / count)


@pytest.mark.parametrize("changes", [{}, {"proj_size": 5}, {"coupling": "forget_from_input"}, {"recurrence": "cell"}])
def test_orthogonal(changes: dict[str, Any]) -> None:
    lstm = make(init="orthogonal", num_layers=2, dtype="float64", **changes)
    config = lstm.stack.configs[0]
    for suffix in lstm.stack.suffixes:
        blocks = lstm.parameters[f"weight_h{suffix}"].reshape(len(config.gates), 16, config.recurrent_size)
        for block in blocks:
            np.testing.assert_allclose(block.T @ block, np.eye(config.recurrent_size), rtol=0, atol=1e-14)
        assert (blocks[0] != blocks[1]).all()
    uniform = make(num_layers=2, dtype="float64", **changes)
    np.testing.assert_array_equal(lstm.parameters["weight_x_l1"], uniform.parameters["weight_x_l1"])


def test_orthogonal_is_uniform_over_rotations() -> None:
    """Without the signs of R the diagonal of Q would all be of one sign (Mezzadri 2007)."""
    signs = [np.sign(np.diag(make(init="orthogonal", seed=seed).parameters["weight_h_l0"][:16])) for seed in range(30)]
    share = (np.array(signs) > 0).mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(30 * 16)


def test_forget_bias() -> None:
    lstm, plain = make(forget_bias=1, bidirectional=True), make(bidirectional=True)
    for suffix in ("_l0", "_l0_reverse"):
        bias, before = (one.parameters[f"bias{suffix}"].reshape(4, 16) for one in (lstm, plain))
        assert (bias[1] == 1).all()
        np.testing.assert_array_equal(bias[[0, 2, 3]], before[[0, 2, 3]])
    coupled = make(forget_bias=-2.0, coupling="input_from_forget").parameters["bias_l0"].reshape(3, 16)
    assert (coupled[0] == -2).all()


def test_parameters_are_read_only_and_keep_their_values() -> None:
    lstm = make()
    old = lstm.parameters
    with pytest.raises(ValueError, match="read-only"):
        old["bias_l0"][0] = 1
    kept = old["bias_l0"].copy()
    lstm.load_parameters({name: value + 1 for name, value in old.items()})
    np.testing.assert_array_equal(old["bias_l0"], kept)
    np.testing.assert_array_equal(lstm.parameters["bias_l0"], kept + 1)
    old.clear()
    assert list(lstm.parameters) == list(lstm.stack.parameter_shapes)


def test_loaded_arrays_are_copied() -> None:
    lstm = make()
    values = {name: np.array(value) for name, value in lstm.parameters.items()}
    lstm.load_parameters(values)
    x = np.ones((3, 2, 6), np.float32)
    before = lstm(x)[0]
    for value in values.values():
        value[...] = 0
    np.testing.assert_array_equal(lstm(x)[0], before)
    assert lstm.parameters["weight_x_l0"].any()


def test_loading_packs_once() -> None:
    backend = NaiveBackend()
    lstm = make(backend=backend, num_layers=2)
    packed = backend.packed
    assert packed == 2
    lstm.load_parameters(lstm.parameters)
    for _ in range(3):
        lstm(np.ones((1, 1, 6), np.float32))
    assert backend.packed == packed + 2


def test_parameters_given_to_from_config() -> None:
    lstm = make()
    values = {name: value + 1 for name, value in lstm.parameters.items()}
    other = LSTM.from_config(lstm.stack, values, backend=NaiveBackend())
    for name, value in values.items():
        np.testing.assert_array_equal(other.parameters[name], value)


def test_bfloat16_without_its_package_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r"^dtype bfloat16: needs the package ml_dtypes: 'pip install ml_dtypes'$"):
        numpy_dtype("bfloat16")
