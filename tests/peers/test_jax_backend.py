"""The backend ``jax``: the caller's JAX settings, dtypes, copies, programs, refusals.

The conformance suite has the rest. Nearly all tests share one configuration and one size, which JAX compiles once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from lstmcore import reference, registry
from lstmcore.backend import Forward, Gradients, Kernel, Masks, State, Tangents, UnsupportedError
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.extras import installing

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402  # needs JAX

import lstmcore_jax  # noqa: E402  # as above
from lstmcore_jax import kernel as module  # noqa: E402  # as above
from lstmcore_jax.kernel import JaxBackend  # noqa: E402  # as above

T, N, I, H, P = 5, 3, 4, 6, 2
LENGTHS = np.array([3, 0, 5])
PRECISIONS = ("float32", "float64")
#: Every switch that goes with the others, but layer norm.
SWITCHES: dict[str, Any] = {
    "proj_size": P,
    "peephole": True,
    "reverse": True,
    "gate_clip": 1.5,
    "cell_clip": 1.0,
    "proj_clip": 0.7,
    "recurrent_dropout": 0.4,
    "zoneout_hidden": 0.3,
    "zoneout_cell": 0.2,
}

Array = np.ndarray[Any, np.dtype[Any]]


def kernel(precision: str = "float32", **switches: Any) -> Kernel:
    return JaxBackend().compile(LSTMConfig(input_size=I, hidden_size=H, **(switches or SWITCHES)), precision)


class Given:
    """The numbers of a call of `kernel`, all exact in float32."""

    def __init__(self, precision: str = "float32") -> None:
        rng, config = np.random.default_rng(5), kernel(precision).config
        dtype = np.dtype(precision)

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(np.float32).astype(dtype)

        def state() -> State:
            return State(normal(N, P), normal(N, H))

        self.parameters = {name: normal(*shape) for name, shape in config.parameter_shapes.items()}
        self.x, self.state, self.dy, self.dstate = normal(T, N, I), state(), normal(T, N, P), state()
        self.tangents = Tangents(
            normal(T, N, I), state(), {name: normal(*shape) for name, shape in config.parameter_shapes.items()}
        )
        dropped = rng.integers(0, 2, (N, P)).astype(dtype) / dtype.type(0.6)
        self.masks = Masks(dropped, *(rng.integers(0, 2, (T, N, width)).astype(dtype) for width in (P, H)))

    def inputs(self) -> list[Array]:
        return [self.x, *self.state, self.dy, *self.dstate, *self.masks, *self.parameters.values()]


def compute(precision: str, given: Given | None = None) -> list[Array]:
    """Return outputs, gradients, outputs and tangents of `jvp`, and outputs without a tape."""
    one, given = kernel(precision), given or Given(precision)
    weights = one.pack(given.parameters)
    more: dict[str, Any] = {"lengths": LENGTHS, "masks": given.masks}
    found = one.forward(weights, given.x, given.state, record=True, **more)
    gradients = one.backward(weights, found.tape, given.dy, given.dstate)
    done, moved = one.jvp(weights, given.x, given.state, given.tangents, **more)
    quiet = one.forward(weights, given.x, given.state, **more)
    return [*outputs(found), *of(gradients), *outputs(done), *outputs(moved), *outputs(quiet)]


def outputs(found: Forward) -> list[Array]:
    return [found.y, *found.state]


def of(gradients: Gradients) -> list[Array]:
    names = sorted(gradients.parameters)
    return [gradients.x, *gradients.state, *(gradients.parameters[name] for name in names)]


def wanted(precision: str) -> list[Array]:
    """Return the results of `compute` by the reference."""
    given, config = Given(precision), kernel(precision).config
    arguments = (config, given.parameters, given.x, given.state)
    more: dict[str, Any] = {"lengths": LENGTHS, "masks": given.masks}
    found = reference.forward(*arguments, **more)
    gradients = reference.backward(config, found.tape, given.dy, given.dstate)
    done, moved = reference.jvp(*arguments, given.tangents, **more)
    return [*outputs(found), *of(gradients), *outputs(done), *outputs(moved), *outputs(found)]


def equal(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# Values ---------------------------------------------------------------------------------------------------------------


def test_what_has_no_tangent_is_a_constant() -> None:
    """A tangent of zeros would make NaN of an infinite x."""
    one, rng = kernel("float32", peephole=True), np.random.default_rng(5)
    parameters = {name: rng.standard_normal(shape, np.float32) for name, shape in one.config.parameter_shapes.items()}
    x = rng.standard_normal((T, N, I), np.float32)
    x[0, 0, 0] = np.inf
    for tangents in (Tangents(parameters={"bias": parameters["bias"]}), Tangents()):
        _, want = reference.jvp(one.config, parameters, x, None, tangents)
        _, moved = one.jvp(one.pack(parameters), x, None, tangents)
        for got, right in zip(outputs(moved), outputs(want), strict=True):
            assert np.isfinite(right).all()
            np.testing.assert_allclose(got, right, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_everything_at_once_is_what_the_reference_gives(precision: str) -> None:
    # A sum has at most T * N terms or those of a product, and goes through T steps: some rounding errors for each.
    budget = 4 * T * max(T * N, I + P) * np.finfo(precision).eps
    for found, expected in zip(compute(precision), wanted(precision), strict=True):
        assert found.dtype == precision
        np.testing.assert_allclose(found, expected, rtol=0, atol=budget * np.abs(expected).max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_are_arrays_of_their_own_that_can_be_written_to(precision: str) -> None:
    given = Given(precision)
    results = compute(precision, given)
    for k, result in enumerate(results):
        assert result.flags.owndata and result.flags.writeable
        assert not any(np.shares_memory(result, other) for other in (*given.inputs(), *results[:k]))


# Settings of the caller, and threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "setting",
    [
        lambda: module._enable_x64(True),
        lambda: module._enable_x64(False),
        lambda: jax.default_matmul_precision("bfloat16"),
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.transfer_guard("disallow_explicit"),
        lambda: jax.debug_nans(True),
    ],
    ids=["x64", "no x64", "matmul precision", "rank promotion", "dtype promotion", "transfer guard", "debug NaNs"],
)
def test_the_settings_of_the_caller_change_nothing(
    setting: Callable[[], AbstractContextManager[Any]], precision: str
) -> None:
    expected = compute(precision)
    with setting():
        equal(compute(precision), expected)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_callers_own_dtype_stays_as_it_was(precision: str, x64: bool) -> None:
    with module._enable_x64(True) if x64 else nullcontext():
        compute(precision)
        assert jnp.zeros(1).dtype == ("float64" if x64 else "float32")
        assert bool(jax.config.jax_enable_x64) is x64


def test_both_precisions_at_once_from_threads() -> None:
    precisions = PRECISIONS * 4
    expected = {precision: compute(precision) for precision in PRECISIONS}
    together = Barrier(len(precisions))

    def work(precision: str) -> list[list[Array]]:
        together.wait(60)
        return [compute(precision) for _ in range(3)]

    with ThreadPoolExecutor(len(precisions)) as pool:
        for precision, results in zip(precisions, pool.map(work, precisions), strict=True):
            for found in results:
                equal(found, expected[precision])


def test_all_runs_on_the_processor() -> None:
    """The backend stays on the processor if the caller has chosen another default device."""
    # A second device of the processor stands in; it exists only in a process that starts with it.
    code = """if True:
        import jax, numpy as np
        from lstmcore.backend import Tangents
        from lstmcore.config import LSTMConfig
        from lstmcore_jax.kernel import JaxBackend
        first, second = jax.devices()
        one = JaxBackend().compile(LSTMConfig(input_size=2, hidden_size=3, bias=False), "float32")
        x = np.ones((2, 1, 2), "float32")
        with jax.default_device(second):
            weights = one.pack({n: np.ones(s, "float32") for n, s in one.config.parameter_shapes.items()})
            found = one.forward(weights, x, record=True)
            one.backward(weights, found.tape, found.y)
            one.jvp(weights, x, None, Tangents(x))
            one.forward(weights, x)
        arrays = jax.live_arrays()
        assert arrays and {device for array in arrays for device in array.devices()} == {first}, arrays
    """
    flags = "--xla_force_host_platform_device_count=2"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")


# Memory ---------------------------------------------------------------------------------------------------------------


def aligned(array: Array) -> Array:
    """Return a copy that begins at a multiple of 64 bytes, whose memory JAX uses without a copy."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_writes_reach_neither_weights_nor_tape(lengths: Any) -> None:
    """Writes to inputs and results after a call change neither the weights nor the tape."""
    one, given = kernel(), Given()
    x, h, c, *masks = map(aligned, (given.x, *given.state, given.masks.recurrent, *given.masks[1:]))
    parameters = {name: aligned(array) for name, array in given.parameters.items()}
    weights = one.pack(parameters)

    def forward() -> Forward:
        return one.forward(weights, x, State(h, c), lengths=lengths, masks=Masks(*masks), record=True)

    def backward(found: Forward) -> list[Array]:
        return of(one.backward(weights, found.tape, given.dy, given.dstate))

    expected, found = backward(forward()), forward()
    for array in (x, h, c, *masks, *parameters.values(), *outputs(found)):
        array[...] = np.nan
    equal(backward(found), expected)
    for array, before in zip((x, h, c, *masks), (given.x, *given.state, *given.masks), strict=True):
        array[...] = before
    equal(backward(forward()), expected)


def test_the_reason_for_these_copies_is_true() -> None:
    array = aligned(np.zeros(64, np.float32))
    shared = jax.device_put(array)
    array[...] = 1
    assert shared.sum() == array.size


def test_inference_hands_the_arrays_over_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that records nothing hands the arrays over as they are."""
    one, given, seen = kernel(), Given(), []
    weights, run = one.pack(given.parameters), module._run_outputs
    monkeypatch.setattr(module, "_run_outputs", lambda *arguments: seen.append(arguments) or run(*arguments))
    one.forward(weights, given.x, given.state, lengths=LENGTHS, masks=given.masks)
    ((_, call, arguments),) = seen
    assert arguments.x is given.x
    for passed, array in zip((*arguments.state, *call.masks), (*given.state, *given.masks), strict=True):
        assert passed is array


def test_programs_are_forgotten_once_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    program, kept = module._Program(lambda x: x + 1), []
    for size in range(1, 9):
        np.testing.assert_array_equal(program(np.ones(size, "f4")), np.full(size, 2, "f4"))
        kept.append(program._jitted._cache_size())
    assert kept == [1, 2, 3, 1, 2, 3, 1, 2]


def test_a_kernel_made_again_compiles_nothing() -> None:
    compute("float32")
    programs = (module._run_outputs, module._run_recorded, module._run_gradients, module._run_jvp)
    before = [program._jitted._cache_size() for program in programs]
    compute("float32")
    assert [program._jitted._cache_size() for program in programs] == before


# Declarations and refusals --------------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    found = JaxBackend().capabilities()
    assert found.device == "cpu"
    assert found.precisions == {*PRECISIONS}
    assert found.derivatives == {"backward", "jvp"}
    left_out = {name for name in FEATURES if name.startswith("activation:")} - {"activation:sigmoid", "activation:tanh"}
    assert FEATURES - found.features == left_out | {"layer_norm"}
    assert found.reasons.keys() == {*(FEATURES - found.features), "tf32", "bfloat16", "float16"}


@pytest.mark.parametrize(
    ("precision", "switches", "told"),
    [
        ("float16", {"bias": False}, "float16: left out of this backend"),
        ("bfloat16", {"bias": False}, "bfloat16: left out of this backend"),
        ("tf32", {"bias": False}, "tf32: processors have no TF32"),
        ("float32", {"layer_norm": True}, "layer_norm: left out of this backend"),
        ("float32", {"cell_activation": "relu"}, "activation:relu: left out of this backend"),
    ],
)
def test_what_is_left_out_is_refused_with_the_reason(precision: str, switches: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        kernel(precision, **switches)


def test_the_reasons_for_writing_where_are_true() -> None:
    assert jax.grad(lambda z: jnp.clip(z, -1.0, 1.0))(1.0) == 0.5
    assert jax.grad(lambda z: module._clip(z, 1.0))(1.0) == 1.0
    nan = jnp.float32(np.nan)
    assert np.isnan(jax.grad(lambda w: jnp.where(False, w * nan, 0.0))(2.0))
    assert jax.grad(lambda w: jnp.where(False, w * module._own(jnp.asarray(False), nan), 0.0))(2.0) == 0.0


def test_the_flags_of_xla_are_told_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert JaxBackend().versions().keys() == {"jax", "jaxlib"}
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert JaxBackend().versions()["XLA_FLAGS"] == "--xla_backend_optimization_level=0"


# The plug-in ----------------------------------------------------------------------------------------------------------


def test_the_plugin_imports_no_jax() -> None:
    code = """if True:
        import sys, lstmcore_jax
        lstmcore_jax.lstmcore_backend_info().unavailable()
        print({"jax", "jaxlib"} & {*sys.modules})
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_where_jax_is_not_installed_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lstmcore_jax.lstmcore_backend_info().unavailable() is None
    monkeypatch.setattr(lstmcore_jax, "find_spec", lambda name: None)
    monkeypatch.setattr(registry, "_loaded", {})
    told = f"JAX is not installed; install it with: {installing('jax')}"
    with pytest.raises(registry.UnavailableError, match=re.escape(told)):
        registry.get_backend("jax")
