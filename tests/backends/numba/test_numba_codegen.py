"""Code generation of the Numba backend: gate functions, vector widths, and what shares code."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from lstmcore.precision import numpy_dtype

RunPython = Callable[..., tuple[str, str]]


DTYPES = ["float32", "float64"]

#: Bytes of vectors. Processors without AVX-512 have the narrower ones.
WIDTHS = [16, 32, 64]


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    """Return each width of vectors that the machine has."""
    from lstmcore_numba.codegen.compile_target import compile_target

    requested: int = request.param
    if requested > (own := compile_target().vector_bytes):
        pytest.skip(f"this machine has vectors of {own} bytes")
    return requested


def on_arrays(function: Callable[[Any], Any], dtype: str, width: int) -> Callable[[Any], Any]:
    """Return a function on arrays that calls `function` on vectors of `width` bytes."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    from lstmcore_numba.codegen.compile_target import compile_target
    from lstmcore_numba.codegen.emitter import INDEX, Emitter

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module("test")
    module.triple = llvm.get_process_triple()
    code = ir.Function(module, ir.FunctionType(ir.VoidType(), [INDEX] * 3), "f")
    builder = ir.IRBuilder(code.append_basic_block())
    e = Emitter(builder, dtype, width // np.dtype(dtype).itemsize)
    with e.loop(e.index(0), code.args[2], []) as loop:
        place = builder.mul(loop.i, e.index(width))
        e.store(function(e.load(e.address(code.args[0], place))), e.address(code.args[1], place))
    builder.ret_void()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), compile_target().machine())
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(engine.get_function_address("f"))

    def run(x: Any, engine: Any = engine) -> Any:
        whole = np.zeros(-(-len(x) * x.itemsize // width) * width // x.itemsize, dtype)
        whole[: len(x)] = x
        y = np.empty_like(whole)
        call(whole.ctypes.data, y.ctypes.data, whole.nbytes // width)
        return y[: len(x)]

    return run


#: Name -> the function in long double, and where it is tried.
FUNCTIONS = {
    "expm1": (np.expm1, (-30, 30)),
    "tanh": (np.tanh, (-30, 30)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), (-80, 80)),
    "log1p": (np.log1p, (0, 1)),
}


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="long double is no wider than double here")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_right_to_two_epsilons(name: str, dtype: str, width: int) -> None:
    from lstmcore_numba.codegen import gate_functions

    right, (low, high) = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(low, high, 4000), rng.uniform(0, 1, 1000) * 10.0 ** rng.uniform(-30, 0, 1000)])
    x = x.astype(dtype)
    got, want = on_arrays(getattr(gate_functions, name), dtype, width)(x), right(x.astype(np.longdouble))
    assert np.max(np.abs(got - want) / np.abs(want)) < 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_of_special_numbers(dtype: str, width: int) -> None:
    from lstmcore_numba.codegen import gate_functions

    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30], dtype)
    np.testing.assert_array_equal(on_arrays(gate_functions.tanh, dtype, width)(x), np.tanh(x))
    np.testing.assert_array_equal(
        on_arrays(gate_functions.sigmoid, dtype, width)(x), np.array([np.nan, 1, 0, 0.5, 0.5, 1, 0], dtype)
    )


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_vectors_are_rounded_as_arrays_are(storage: str, width: int) -> None:
    """A vector that is rounded to a storage dtype has the bits of an array that is converted to it and back."""
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    short = np.arange(2**16, dtype=np.uint32) << 16  # every bfloat16, and the middle between each and the next one
    x = np.concatenate([bits, short, short | 0x8000]).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(numpy_dtype(storage)).astype(np.float32)
    np.testing.assert_array_equal(on_arrays(lambda v: v.rounded_to(storage), "float32", width)(x), want)


#: Processors of the x86 family before AVX-512: LLVM's name, the features that its code may use, bytes of a vector.
OLDER = {
    "nehalem": ("", 16),
    "haswell": ("+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt", 32),
}


class Older(NamedTuple):
    """An older processor: Numba's environment variables for it, and bytes of its vectors."""

    environment: dict[str, str]
    vector_bytes: int


@pytest.fixture(params=OLDER)
def older(request: pytest.FixtureRequest) -> Older:
    """Return each processor with narrower vectors than this machine, which runs code for it."""
    from lstmcore_numba.codegen.compile_target import compile_target

    host, (features, width) = compile_target(), OLDER[request.param]
    if not host.triple.startswith("x86_64") or width >= host.vector_bytes:
        pytest.skip("the session conformance(backend='numba') runs the whole suite at this width, or wider vectors")
    return Older({"NUMBA_CPU_NAME": request.param, "NUMBA_CPU_FEATURES": features}, width)


@pytest.mark.parametrize(
    ("triple", "features", "width", "registers"),
    [
        ("x86_64-unknown-linux-gnu", "", 16, 16),
        ("x86_64-unknown-linux-gnu", "+avx2,-fma", 16, 16),
        ("x86_64-apple-darwin", "+avx,+avx2,+fma,-avx512f", 32, 16),
        ("x86_64-pc-windows-msvc", "+avx2,+fma,+avx512f", 64, 32),
        ("aarch64-unknown-linux-gnu", "+neon", 16, 32),
        ("arm64-apple-darwin", "", 16, 32),
    ],
)
def test_vector_registers_follow_from_features(triple: str, features: str, width: int, registers: int) -> None:
    from lstmcore_numba.codegen.compile_target import CompileTarget

    target = CompileTarget(triple, "generic", features)
    assert (target.vector_bytes, target.vector_registers) == (width, registers)


def test_the_compile_target_is_numbas() -> None:
    from numba.core.registry import cpu_target

    from lstmcore_numba.codegen.compile_target import compile_target

    target = compile_target()
    assert (target.triple, target.cpu, target.features) == cpu_target.target_context.codegen().magic_tuple()


def test_products_on_an_older_processor(run_python: RunPython, older: Older) -> None:
    """Products are exact for each dtype and every number of rows and vectors that a tile can have.

    Rows go to two tiles and one more. Values are small whole numbers, whose sums are exact.
    """
    code = """
import numpy as np
from numba.core.registry import cpu_target
from lstmcore_numba.codegen.compile_target import compile_target
from lstmcore_numba.gemm.vector import MAX_ROWS, VECTOR_BYTES
from products import matmul, pack
target = compile_target()
assert (target.triple, target.cpu, target.features) == cpu_target.target_context.codegen().magic_tuple()
rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for rows in range(1, 2 * MAX_ROWS + 2):
        for inner in (1, 2, 7, 64, 301):
            a = rng.integers(-9, 10, (rows, inner)).astype(dtype)
            for vectors in (1, 2, 3, 4, 6):
                b = rng.integers(-9, 10, (inner, vectors, VECTOR_BYTES // a.itemsize)).astype(dtype)
                c = np.ones((rows, b[0].size), dtype)
                for fresh, before in ((False, 1), (True, 0)):
                    matmul(a, pack(b), vectors, c, fresh)
                    np.testing.assert_array_equal(c, before + a @ b.reshape(inner, -1))
print(VECTOR_BYTES)
"""
    environment = older.environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert run_python(code, **environment)[0] == f"{older.vector_bytes}\n"


@pytest.mark.slow
def test_the_suite_on_an_older_processor(run_python: RunPython, older: Older) -> None:
    """Sizes and switches pass in code for an older processor, in each storage dtype that vectors know."""
    code = """
from lstmcore.registry import get_backend
from lstmcore_conformance import run
from lstmcore_numba.gemm.vector import VECTOR_BYTES
select = "forward.sizes or backward.sizes or jvp.sizes or forward.switches or backward.switches"
report = run(get_backend("numba"), precisions=["float32", "float64", "bfloat16"], select=select)
assert report.conforms, (report.verdict, [item.message for item in report.bad][:3])
print(VECTOR_BYTES)
"""
    assert run_python(code, **older.environment)[0] == f"{older.vector_bytes}\n"


def test_chains_stand_side_by_side_and_memory_in_its_order() -> None:
    from llvmlite import ir

    from lstmcore_numba.codegen.instruction_order import spread_chains

    number, place = ir.DoubleType(), ir.PointerType()
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [place, place, ir.IntType(64)]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    one, other, address = function.args
    same_place = builder.inttoptr(builder.add(address, address), place, name="same_place")
    old = builder.load(same_place, typ=number, name="old")
    chains = []
    for name in ("a", "b"):
        value = old
        for k in range(4):
            value = builder.fadd(value, ir.Constant(number, 1.0), name=f"{name}{k}")
        chains.append(value)
    early = builder.store(ir.Constant(number, 2.0), one)
    after = builder.load(one, typ=number, name="after")
    middle = builder.store(chains[0], other)
    last = builder.store(builder.fadd(after, chains[1], name="sum"), other)
    builder.ret_void()
    spread_chains(function)
    order = function.entry_basic_block.instructions
    names = [one.name for one in order if one.name and one.name[0] in "ab" and one.name != "after"]
    assert names == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]
    places = [order.index(one) for one in (old, early, after, middle, last)]
    assert places == sorted(places)
    assert order[-1].opname == "ret void"


def test_masks_of_any_order_share_code() -> None:
    """Masks are copied in C order, since each order of an array has a type and code of its own."""
    from lstmcore.backend import Masks
    from lstmcore.config import LSTMConfig
    from lstmcore_numba.packing import Layout, layout_masks

    recurrent, steps = (np.asfortranarray(np.random.default_rng(0).random(shape)) for shape in ((3, 4), (2, 3, 4)))
    layout = Layout(LSTMConfig(input_size=2, hidden_size=4), np.dtype(np.float32))
    own = layout_masks(layout, Masks(recurrent, steps, steps), None)
    assert all(mask.flags.c_contiguous for mask in (own.recurrent, own.hidden, own.cell))
    np.testing.assert_array_equal(own.recurrent, recurrent.astype(np.float32))


def step_addresses(hidden_size: int, input_size: int = 4, **switches: Any) -> dict[str, int]:
    """Return the addresses of the step functions of a layer, by the name of the emitter."""
    from lstmcore.config import LSTMConfig
    from lstmcore_numba import cell
    from lstmcore_numba.kernel import NumbaBackend

    config = LSTMConfig(input_size=input_size, hidden_size=hidden_size, **switches)
    layer = NumbaBackend().compile(config, "float32").layer
    every = [cell.forward, cell.backward, *((cell.forward_output,) if config.proj_size else ())]
    return {emit.__name__: layer.step_address(emit, layer.no_masks, record=True) for emit in every}


def lanes() -> int:
    """Return the numbers of float32 in a vector."""
    from lstmcore_numba.gemm.vector import VECTOR_BYTES

    return VECTOR_BYTES // 4


def test_models_of_as_many_vectors_share_the_code_of_their_steps() -> None:
    """They do unless one has padding and the other has none."""
    codes, most = step_addresses, 3 * lanes()
    assert codes(most, 4) == codes(most, 9, recurrence="cell")
    assert codes(most - 1, 9, reverse=True) == codes(most - lanes() + 1, 2, recurrence="cell")
    assert codes(most - 1, 4, proj_size=most - 2) == codes(most - 2, 4, proj_size=most - 3)
    alone = [codes(most, 4, **switches) for switches in ({}, {"peephole": True}, {"bias": False}, {"proj_size": 2})]
    alone += [codes(most + 1), codes(most - 1), codes(most, proj_size=lanes() + 1), codes(most, cell_clip=1.0)]
    forward = [addresses["forward"] for addresses in alone]
    assert len(set(forward)) == len(forward)


#: Switches whose numbers differ, and nothing else.
NUMBERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"gate_clip": 0.5}, {"gate_clip": 1.5}),
    ({"cell_clip": 0.5, "proj_size": 3, "proj_clip": 0.1}, {"cell_clip": 1.5, "proj_size": 3, "proj_clip": 0.2}),
    ({"zoneout_hidden": 0.1, "zoneout_cell": 0.2}, {"zoneout_hidden": 0.3, "zoneout_cell": 0.4}),
    ({"gate_activation": "hard_sigmoid(0.3, 0.4)"}, {"gate_activation": "hard_sigmoid(0.1, 0.6)"}),
    ({"hidden_activation": "scaled_tanh(1.5, 0.5)"}, {"hidden_activation": "scaled_tanh(0.5, 2)"}),
]


@pytest.mark.parametrize("switches", NUMBERS, ids=lambda pair: " ".join(pair[0]))
def test_numbers_are_no_code(switches: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Layers that differ in numbers alone share code, and compute with their own numbers."""
    from lstmcore import LSTM
    from lstmcore.domains import Activation

    parsed = [{k: Activation.parse(v) if isinstance(v, str) else v for k, v in each.items()} for each in switches]
    first, second = (step_addresses(2 * lanes() + 1, 4, **each) for each in parsed)
    assert first == second
    x = 3 * np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float32)
    for each in parsed:
        ours, exact = (LSTM(4, 2 * lanes() + 1, backend=name, seed=0, **each) for name in ("numba", "numpy"))
        (y, _, tape), (expected, _, expected_tape) = ours.record(x), exact.record(x)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            ours.backward(tape, expected).x, exact.backward(expected_tape, expected).x, rtol=1e-4, atol=1e-5
        )


def test_code_that_no_layer_uses_is_freed() -> None:
    """The step functions of the latest layers are kept, and those of layers that are there."""
    from lstmcore.config import LSTMConfig
    from lstmcore_numba import cell
    from lstmcore_numba.codegen import step_compiler
    from lstmcore_numba.codegen.step_emitter import StepVariant, step_config

    alive = weakref.WeakSet[Any]()

    def compile_steps(count: int) -> list[Any]:
        configs = (LSTMConfig(input_size=1, hidden_size=lanes() * (1 + k)) for k in range(count))
        variants = (StepVariant(step_config(c, lanes()), "float32", "float32", lanes()) for c in configs)
        steps = [step_compiler.compile_step(cell.forward_output, variant) for variant in variants]
        alive.update(step.engine for step in steps)
        return steps

    kept = compile_steps(step_compiler.KEPT_STEPS + 3)
    assert len(alive) == len(kept)
    del kept
    gc.collect()
    assert len(alive) == step_compiler.KEPT_STEPS
