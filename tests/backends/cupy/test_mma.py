"""Products on tensor cores: the lanes' fragments, and the product of the persistent kernels on them."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from emulation import EmulatedDevice, Order, tf32
from lstmcore.precision import PRECISIONS, numpy_dtype
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_cupy import program_source
from lstmcore_cupy.nvrtc import OPTIONS

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is not installed")
emulated = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

Floats = npt.NDArray[np.float32]
ORDERS: tuple[Order, ...] = ("ascending", "descending", "mixed")
STORAGE = {"float32": 1, "bfloat16": 2, "float16": 3}
EPSILON = 2.0**-23

#: One product of each kind by one warp. Its lanes read their fragments by the layout of the PTX ISA.
_FRAGMENTS = """
struct Sample {
    const real* a;      // (16, 16), of TF32 (16, 8)
    const real* b;      // (16, 8), of TF32 (8, 8)
    real* d;            // (16, 8)
};

KERNEL(sample, Sample) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    float d[4];
    for (int e = 0; e < 4; ++e) d[e] = a.d[(g + e / 2 * 8) * 8 + t * 2 + e % 2];
    unsigned x[4], y[2];
#if STORAGE == STORAGE_FLOAT32
    for (int e = 0; e < 4; ++e) x[e] = to_tf32(a.a[(g + e % 2 * 8) * 8 + t + e / 2 * 4]);
    for (int e = 0; e < 2; ++e) y[e] = to_tf32(a.b[(t + e * 4) * 8 + g]);
    mma_tf32(d, x, y);
#else
    alignas(16) __shared__ stored rows[16 * 16];
    for (int e = threadIdx.x; e < 16 * 16; e += WARP) rows[e] = rounded(a.a[e]);
    for (int e = 0; e < 2; ++e) {
        const real* column = a.b + (2 * t + e * 8) * 8 + g;
        y[e] = rounded(column[0]) | (unsigned)rounded(column[8]) << 16;
    }
    __syncthreads();
    load_matrices(x, rows + threadIdx.x % 16 * 16 + threadIdx.x / 16 * 8);
    mma_stored(d, x, y);
#endif
    for (int e = 0; e < 4; ++e) a.d[(g + e / 2 * 8) * 8 + t * 2 + e % 2] = d[e];
}
"""

#: The recurrent product of one block.
_PRODUCT = """
struct Sample {
    const real* weights;  // (outputs, K)
    long long outputs;
    long long K;
    const real* source;   // (rows, K)
    long long rows;
    long long depth;
    long long exact;
    real* found;          // (rows, outputs)
};

KERNEL(sample, Sample) {
    DYNAMIC_SHARED(char, room);
    auto* weights = (stored*)room;
    auto* tile = (real*)(room + TensorProduct::weights_bytes(a.outputs, a.K));
    auto* sums = (real*)((char*)tile + TensorProduct::tile_bytes(a.depth));
    const int outputs = (int)a.outputs;
    const auto weight = [&](const int o, const int k) { return a.weights[o * a.K + k]; };
    TensorProduct::keep(weights, outputs, a.K, a.exact, weight);
    for (int twice = 0; twice < 2; ++twice) {
        TensorProduct::product(weights, outputs, a.K, a.source, (int)a.rows, tile, a.depth, sums, a.exact);
        const int count = (int)a.rows * outputs, last = count - 1;  // other threads than those that wrote them
        for (int e = threadIdx.x; e < count; e += blockDim.x) a.found[last - e] = sums[last - e];
    }
}
"""


def _stored(array: npt.NDArray[Any], storage: str) -> Floats:
    """Return `array` rounded to the operands' format, in float32; that format is TF32 for float32."""
    if storage == "float32":
        return np.asarray(tf32(array.astype(np.float32)))
    return array.astype(numpy_dtype(storage)).astype(np.float32)


def _run(device: EmulatedDevice, storage: str, kernel: str, words: list[Any], threads: int, room: int = 0) -> None:
    text = f"#define STORAGE {STORAGE[storage]}\n" + program_source.source("mma.cuh") + kernel
    fields = np.array([each.ctypes.data if isinstance(each, np.ndarray) else each for each in words], np.int64)
    device.program(text).launch("sample", (1,), threads, fields, shared_bytes=room, cooperative=True)


def _fragments(device: EmulatedDevice, storage: str) -> tuple[Floats, npt.NDArray[Any], npt.NDArray[Any]]:
    """Return D of the warp, its exact value, and the sum of the sizes of its terms."""
    rng, depth = np.random.default_rng(5), 8 if storage == "float32" else 16
    a, b = (_stored(rng.standard_normal(shape), storage) for shape in ((16, depth), (depth, 8)))
    c = rng.standard_normal((16, 8), np.float32)
    d = c.copy()
    _run(device, storage, _FRAGMENTS, [a, b, d], 32)
    wide = a.astype(np.float64), b.astype(np.float64)
    return d, c + wide[0] @ wide[1], np.abs(c) + np.abs(wide[0]) @ np.abs(wide[1])


@emulated
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("storage", STORAGE)
def test_a_warp_multiplies_its_fragments(storage: str, order: Order) -> None:
    found, want, size = _fragments(EmulatedDevice(order), storage)
    assert (np.abs(found - want) <= 17 * EPSILON * size).all()  # each of 17 terms and the sum are cut off


#: Text of the sources -> its replacement, which has another layout than the PTX ISA, and a storage format.
LAYOUTS = {
    "x[e] = to_tf32(a.a[(g + e % 2 * 8) * 8 + t + e / 2 * 4]);": (
        "x[e] = to_tf32(a.a[(g + e / 2 * 8) * 8 + t + e % 2 * 4]);",
        "float32",
    ),
    "y[e] = to_tf32(a.b[(t + e * 4) * 8 + g]);": ("y[e] = to_tf32(a.b[(2 * t + e) * 8 + g]);", "float32"),
    "a.b + (2 * t + e * 8) * 8 + g": ("a.b + (4 * t + 2 * e) * 8 + g", "bfloat16"),
    "rows + threadIdx.x % 16 * 16 + threadIdx.x / 16 * 8": (
        "rows + (threadIdx.x % 8 + threadIdx.x / 16 * 8) * 16 + threadIdx.x / 8 % 2 * 8",
        "float16",
    ),
    "a.d[(g + e / 2 * 8) * 8 + t * 2 + e % 2]": ("a.d[(g + e % 2 * 8) * 8 + t * 2 + e / 2]", "bfloat16"),
}


@emulated
@pytest.mark.parametrize("there", LAYOUTS)
def test_another_layout_is_caught(there: str) -> None:
    instead, storage = LAYOUTS[there]
    assert there in _FRAGMENTS
    found, want, size = _fragments(EmulatedDevice(edit=lambda text: text.replace(there, instead)), storage)
    assert (np.abs(found - want) > 17 * EPSILON * size).any()


def _product(
    device: EmulatedDevice,
    storage: str,
    shape: tuple[int, int, int],
    *,
    tile: tuple[int, int],
    exact: bool,
    non_finite: bool = False,
) -> tuple[Floats, npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the product of a block, its exact value, and the sum of the sizes of its terms.

    `shape` is (rows, outputs, K), `tile` the columns of a tile and the number of warps.
    """
    (rows, outputs, K), (depth, warps) = shape, tile
    rng = np.random.default_rng(rows * 10_000 + outputs * 100 + K)
    weights = _stored(rng.standard_normal((outputs, K)), storage)
    source = np.ldexp(rng.standard_normal((rows, K), np.float32), rng.integers(-30, 30, (rows, 1)))
    if exact:
        source = _stored(rng.standard_normal((rows, K)), storage)
    if non_finite:
        source[1, K // 2], source[-1, 0] = np.nan, np.inf
    found = np.full((rows, outputs), np.nan, np.float32)
    size = 2 if storage != "float32" else 4
    columns = 32 // size
    over = lambda number, each: -(-number // each) * each  # noqa: E731  # one formula, thrice
    room = over(outputs, 8) * over(K, columns) * size + 16 * (over(4 * over(depth, columns), 128) + 32)
    room += 16 * 4 * max(outputs, 8 * warps)
    words = [weights, outputs, K, source, rows, depth, int(exact), found]
    _run(device, storage, _PRODUCT, words, 32 * warps, room)
    given = _stored(source, "float32") if storage == "float32" and not non_finite else source
    with np.errstate(invalid="ignore"):
        want, sizes = (f(given.astype(np.float64)) @ f(weights.astype(np.float64)).T for f in (np.asarray, np.abs))
    return found, want, sizes


#: (rows, outputs, K), columns of a tile, warps.
SHAPES = [
    ((1, 1, 1), 1, 1),
    ((16, 8, 16), 16, 1),
    ((3, 7, 15), 15, 2),
    ((5, 9, 17), 17, 3),
    ((16, 20, 70), 70, 2),
    ((13, 33, 100), 32, 8),
    ((2, 8, 200), 64, 8),
    ((9, 70, 41), 41, 8),
]


@emulated
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("storage", STORAGE)
def test_the_product_of_a_block(storage: str, exact: bool) -> None:
    devices = [EmulatedDevice(order) for order in ORDERS]
    for shape, depth, warps in SHAPES:
        first, *others = (_product(device, storage, shape, tile=(depth, warps), exact=exact) for device in devices)
        found, want, size = first
        terms = shape[2] + 8 + 2  # each is cut off, as are sums of parts; the second number of TF32 is rounded
        assert (np.abs(found - want) <= terms * EPSILON * size).all(), (shape, depth, warps)
        for other, *_ in others:
            np.testing.assert_array_equal(other, found)


@emulated
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("storage", STORAGE)
def test_non_finite_values_stay_in_their_row(storage: str, exact: bool) -> None:
    found, want, _ = _product(EmulatedDevice(), storage, (5, 9, 41), tile=(32, 2), exact=exact, non_finite=True)
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[4], want[4])
    assert np.isinf(found[4]).all()
    assert np.isfinite(found[[0, 2, 3]]).all()


@emulated
def test_columns_that_are_not_there_are_zero() -> None:
    there, instead = "row < rows && k < columns ?", "row < rows ?"
    assert there in program_source.source("mma.cuh")
    device = EmulatedDevice(edit=lambda text: text.replace(there, instead))
    found, *_ = _product(device, "float32", (5, 9, 41), tile=(32, 2), exact=False, non_finite=True)
    assert np.isnan(found[3]).all()  # infinity of the next row times a weight that is 0


#: Text of the source -> its replacement, and the storage format in which that is wrong in every order.
FAULTS = {
    "        __syncthreads();  // other threads may still read the last fragments and sums\n": ("", "float32"),
    "        __syncthreads();  // the fragments\n": ("", "float32"),
    "        __syncthreads();  // the sums of all parts of the columns\n": ("", "float32"),
    "        __syncthreads();  // the sums of all columns\n": ("", "float32"),
    "+ column / 8 * 2 + column % 2": ("+ column / 8 + column % 2 * 2", "bfloat16"),
    "{upper.of[0], lower.of[0], upper.of[1], lower.of[1]}": (
        "{upper.of[0], upper.of[1], lower.of[0], lower.of[1]}",
        "float32",
    ),
    "                mma_tf32(d, rest, b);\n": ("", "bfloat16"),
    "begin ? *sum + d[e] : d[e]": ("d[e]", "float32"),
    "lane % 16 * bytes + lane / 16 * 16": ("lane % 16 * bytes", "float16"),
}


#: Faults in code that runs only for a source that is exact in its format, or only for another one.
OF_EXACT = {"                mma_tf32(d, rest, b);\n": (False,), "lane % 16 * bytes + lane / 16 * 16": (True,)}


@emulated
@pytest.mark.parametrize("there", FAULTS)
def test_a_planted_fault_is_caught(there: str) -> None:
    instead, storage = FAULTS[there]
    assert program_source.source("mma.cuh").count(there) == 1

    def caught(order: Order, exact: bool) -> bool:
        device = EmulatedDevice(order, edit=lambda text: text.replace(there, instead))
        found, want, size = _product(device, storage, (13, 9, 70), tile=(32, 8), exact=exact)
        return not (np.abs(found - want) <= (70 + 10) * EPSILON * size).all()

    exacts = OF_EXACT.get(there, (False, True))
    assert [(order, exact) for order in ORDERS for exact in exacts if not caught(order, exact)] == []


def test_gpus_are_told_to_use_their_tensor_cores() -> None:
    from cupy.cuda.compiler import _NVRTCProgram

    tf32_product = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
    expected = {
        "float64": (),
        "float32": (tf32_product, "cvt.rna.tf32.f32"),
        "bfloat16": (tf32_product, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "ldmatrix.sync"),
        "float16": (tf32_product, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "ldmatrix.sync"),
    }
    for precision, instructions in expected.items():
        made = _NVRTCProgram(program_source.program(config_of(SWITCHES["plain"]), PRECISIONS[precision]), method="ptx")
        assembly, _ = made.compile((*OPTIONS, "-arch=compute_80"))
        text = assembly if isinstance(assembly, str) else assembly.decode()
        assert ("mma.sync" in text) == bool(instructions)
        assert all(each in text for each in instructions)
