"""Right evaluations in many ways: a suite that fails one of them raises a false alarm.

Each is the naive evaluation with one thing done differently: every product, one function, the blend of zoneout, a sum,
or when and on which rows the steps run.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

import numpy as np

from lstmcore import activations, reference
from lstmcore.backend import Array, Backend, Gradients, Masks, State
from lstmcore_conformance.mutants import backend_of, edited
from lstmcore_conformance.mutants.equivalent import VARIANTS as FIRST
from lstmcore_conformance.mutants.right_orders import ORDERS
from lstmcore_conformance.oracle.naive import NaiveKernel

Product = Callable[[Array, Array], Array]

# Products -------------------------------------------------------------------------------------------------------------


class _Products(ast.NodeTransformer):
    """Replace every ``a @ b`` by ``_product(a, b)``."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        called = ast.Call(ast.Name("_product", ast.Load()), [node.left, node.right], [])
        return ast.copy_location(called, node)


def _with_product(product: Product) -> Backend:
    tree = ast.fix_missing_locations(_Products().visit(ast.parse(inspect.getsource(reference))))
    module = ModuleType(reference.__name__)
    module.__dict__["_product"] = product
    exec(compile(tree, f"<variant of {reference.__name__}>", "exec"), module.__dict__)
    return backend_of(type("VariantKernel", (NaiveKernel,), {"equations": module}))


def _blocks(a: Array, b: Array, size: int) -> Array:
    total = np.zeros((len(a), b.shape[1]), a.dtype)
    for start in range(0, a.shape[1], size):
        total = total + a[:, start : start + size] @ b[start : start + size]
    return total


def _pairwise(a: Array, b: Array) -> Array:
    middle = a.shape[1] // 2
    if middle == 0:
        return a @ b
    return _pairwise(a[:, :middle], b[:middle]) + _pairwise(a[:, middle:], b[middle:])


def _kahan(a: Array, b: Array) -> Array:
    total = np.zeros((len(a), b.shape[1]), a.dtype)
    lost = np.zeros_like(total)
    for column, row in zip(a.T, b, strict=True):
        term = column[:, None] * row - lost
        new = total + term
        lost = (new - total) - term
        total = new
    return total


def _fused(a: Array, b: Array) -> Array:
    """Return the product as fused multiply-adds make it: each sum is rounded once."""
    total = np.zeros((len(a), b.shape[1]), a.dtype)
    wide = np.longdouble if a.dtype == np.float64 else np.float64
    for column, row in zip(a.T.astype(wide), b.astype(wide), strict=True):
        total = (total + column[:, None] * row).astype(a.dtype)
    return total


def _bf16x3(a: Array, b: Array) -> Array:
    """Return a product of float32 as six products of bfloat16 with sums in float32."""
    if a.dtype != np.float32:
        return a @ b

    def split(array: Array) -> list[Array]:
        parts: list[Array] = []
        for _ in range(3):
            parts.append(reference._shortened(array, 16))
            array = array - parts[-1]
        return parts

    one, two = split(a), split(b)
    total: Array = sum(one[i] @ two[j] for i, j in ((0, 2), (1, 1), (2, 0), (0, 1), (1, 0), (0, 0)))
    return total


_PRODUCTS: Final[Mapping[str, Product]] = {
    "reversed": lambda a, b: np.ascontiguousarray(a[:, ::-1]) @ np.ascontiguousarray(b[::-1]),
    "in blocks of 7": lambda a, b: _blocks(a, b, 7),
    "in blocks of 64": lambda a, b: _blocks(a, b, 64),
    "one number after another": lambda a, b: _blocks(a, b, 1),
    "in pairs": _pairwise,
    "by Kahan": _kahan,
    "in float64": lambda a, b: (a.astype(np.float64) @ b.astype(np.float64)).astype(a.dtype),
    "by einsum": lambda a, b: np.einsum("ij,jk->ik", a, b),
    "row by row": lambda a, b: np.array([row @ b for row in a], a.dtype).reshape(len(a), b.shape[1]),
    "column by column": lambda a, b: np.array([a @ c for c in b.T], a.dtype).reshape(b.shape[1], len(a)).T,
    "transposed": lambda a, b: np.ascontiguousarray((b.T @ a.T).T),
    "fused": _fused,
    "bf16x3": _bf16x3,
}

# Functions ------------------------------------------------------------------------------------------------------------

Function = Callable[[Array], Array]


def _with_functions(functions: Mapping[str, Function], exact: bool) -> Backend:
    """Return a backend with other formulas of functions.

    The derivative follows from the value, or is `exact` if the value is some units off: ``1 - y`` of a y near 1 is then
    not the function's.
    """

    def value(activation: Any, z: Array) -> Array:
        if activation.name not in functions:
            return activations.value(activation, z)
        with np.errstate(over="ignore"):
            return np.asarray(functions[activation.name](z), z.dtype)

    def derivative(activation: Any, z: Array) -> Array:
        if activation.name not in functions or exact:
            return activations.derivative(activation, z)
        y = value(activation, z)
        return np.asarray(y * (1 - y) if activation.name == "sigmoid" else 1 - y * y, z.dtype)

    module = edited(("# The parts ----", f"# The parts: {id(functions)} ----"))
    module.__dict__.update(value=value, derivative=derivative)
    return backend_of(type("VariantKernel", (NaiveKernel,), {"equations": module}))


def _moved(array: Array, towards: int) -> Array:
    """Return the array moved by two units of the last place towards 0, or away from it (2) but not beyond 1."""
    aim = np.copysign(array.dtype.type(towards), array)
    twice = np.nextafter(np.nextafter(array, aim), aim)
    return np.where(np.isfinite(array), np.clip(twice, -1, 1), array)


def _sigmoid_expm1(z: Array) -> Array:
    return 1 / (2 + np.expm1(-z))


def _sigmoid_exp2(z: Array) -> Array:
    return 1 / (1 + np.exp2(-z * z.dtype.type(1.4426950408889634)))


def _tanh_expm1(z: Array) -> Array:
    grown = np.expm1(-2 * np.abs(z))
    return np.copysign(-grown / (2 + grown), z)


def _tanh_two_sided(z: Array) -> Array:
    near = np.abs(z) < 0.3
    square = z * z
    series = z * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    return np.where(near, series, _tanh_expm1(z)) if z.dtype != np.float64 else _tanh_expm1(z)


def _sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


_SIGMOID_UP, _SIGMOID_DOWN, _TANH_UP, _TANH_DOWN = (
    lambda z, function=function, towards=towards: _moved(function(z), towards)
    for function in (_sigmoid, np.tanh)
    for towards in (2, 0)
)
_FUNCTIONS: Final[Mapping[str, Mapping[str, Function]]] = {
    "sigmoid by 1 / (1 + exp(-z))": {"sigmoid": lambda z: 1 / (1 + np.exp(-z))},
    "sigmoid by expm1": {"sigmoid": _sigmoid_expm1},
    "sigmoid by exp2": {"sigmoid": _sigmoid_exp2},
    "sigmoid by exp of both signs": {"sigmoid": lambda z: np.exp(np.minimum(z, 0)) / (1 + np.exp(-np.abs(z)))},
    "sigmoid in float64": {"sigmoid": lambda z: 1 / (1 + np.exp(-z.astype(np.float64)))},
    "sigmoid 2 units too large": {"sigmoid": _SIGMOID_UP},
    "sigmoid 2 units too small": {"sigmoid": _SIGMOID_DOWN},
    "tanh by expm1": {"tanh": _tanh_expm1},
    "tanh by a series near 0": {"tanh": _tanh_two_sided},
    "tanh in float64": {"tanh": lambda z: np.tanh(z.astype(np.float64))},
    "tanh 2 units too large": {"tanh": _TANH_UP},
    "tanh 2 units too small": {"tanh": _TANH_DOWN},
    "sigmoid and tanh 2 units too large": {"sigmoid": _SIGMOID_UP, "tanh": _TANH_UP},
    "sigmoid and tanh 2 units too small": {"sigmoid": _SIGMOID_DOWN, "tanh": _TANH_DOWN},
}

# Texts ----------------------------------------------------------------------------------------------------------------

_H = "keep_h * step.h_before + (1 - keep_h) * h_new"
_C = "keep_c * c_before + (1 - keep_c) * c_new"
#: Models without zoneout have no blend: it would lose a small new value next to a large old one.
_ZONEOUT = "if config.zoneout_hidden or config.zoneout_cell else"
_CENTRED = "    centred = a - a.mean(axis=1, keepdims=True)\n"
_VARIANCE = "(centred * centred).mean(axis=1, keepdims=True)"
_PRODUCTS_OF_STEP = 'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T'
_SUM = '    z = from_x + from_h\n    if config.bias:\n        z = z + p["bias"]\n'
_CELL = 'step.c_unclipped = gate["f"] * c_before + gate["i"] * gate["g"]'
_TEXTS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "zoneout of h from the new value": ((_H, f"(h_new + keep_h * (step.h_before - h_new) {_ZONEOUT} h_new)"),),
    "zoneout of h from the old value": (
        (_H, f"(step.h_before + (1 - keep_h) * (h_new - step.h_before) {_ZONEOUT} h_new)"),
    ),
    "zoneout of c from the new value": ((_C, f"c_new + keep_c * (c_before - c_new) {_ZONEOUT} c_new"),),
    "zoneout of c from the old value": ((_C, f"c_before + (1 - keep_c) * (c_new - c_before) {_ZONEOUT} c_new"),),
    "cell with the products exchanged": ((_CELL, 'step.c_unclipped = gate["i"] * gate["g"] + gate["f"] * c_before'),),
    "cell in float64": (
        (
            _CELL,
            _CELL.replace('gate["f"] *', 'gate["f"].astype(np.float64) *') + "\n    "
            "step.c_unclipped = step.c_unclipped.astype(c_before.dtype)",
        ),
    ),
    "norm by the inverse of the deviation": (
        (
            "return Normalised(centred / deviation, deviation)",
            "return Normalised(centred * (1 / deviation), deviation)",
        ),
    ),
    "bias added to x": (
        (
            'z = from_x + from_h\n    if config.bias:\n        z = z + p["bias"]',
            'z = (from_x + p["bias"] if config.bias else from_x) + from_h',
        ),
    ),
    "norm by Welford": (
        (
            _CENTRED,
            "    mean, total = a[:, :1], np.zeros_like(a[:, :1])\n"
            "    for k in range(1, a.shape[1]):\n"
            "        off = a[:, k : k + 1] - mean\n"
            "        mean = mean + off / a.dtype.type(k + 1)\n"
            "        total = total + off * (a[:, k : k + 1] - mean)\n"
            "    centred = a - mean\n",
        ),
        (_VARIANCE, "total / a.dtype.type(a.shape[1])"),
    ),
    "norm in float64": (
        (_CENTRED, f"    dtype, a = a.dtype, a.astype(np.float64)\n{_CENTRED}"),
        (
            "Normalised(centred / deviation, deviation)",
            "Normalised(*(each.astype(dtype) for each in (centred / deviation, deviation)))",
        ),
    ),
    "norm of differences to the first element": (
        (_CENTRED, "    near = a - a[:, :1]\n    centred = near - near.mean(axis=1, keepdims=True)\n"),
    ),
    "bias, then h, then x": ((_SUM, '    z = (p["bias"] + from_h if config.bias else from_h) + from_x\n'),),
    "one product of x, h and 1": (
        (
            _SUM,
            "    if config.layer_norm or not config.bias:\n"
            '        z = from_x + from_h + (p["bias"] if config.bias else 0)\n'
            "    else:\n"
            "        one = np.ones_like(step.x[:, :1])\n"
            '        weights = (p["weight_x"], p["weight_h"], p["bias"][:, None])\n'
            "        z = np.hstack((step.x, step.recurrent, one)) @ np.hstack(weights).T\n",
        ),
    ),
    "a product for each gate": (
        (
            _PRODUCTS_OF_STEP,
            "from_x, from_h = (\n"
            "        np.hstack([array @ part.T for part in np.split(p[name], len(config.gates))[::-1]][::-1])\n"
            '        for array, name in ((step.x, "weight_x"), (step.recurrent, "weight_h"))\n'
            "    )",
        ),
    ),
    "no product with an h of zeros": (
        (
            _PRODUCTS_OF_STEP,
            'from_x = step.x @ p["weight_x"].T\n'
            "    from_h = np.zeros_like(from_x)\n"
            "    if np.any(step.recurrent != 0) or not np.isfinite(p['weight_h']).all():\n"
            '        from_h = step.recurrent @ p["weight_h"].T',
        ),
    ),
    "gradients of parameters in float64": (
        ("dp = {name: np.zeros(shape, tape.dtype)", "dp = {name: np.zeros(shape, np.float64)"),
    ),
    "gradient of the bias over rows backwards": (("dz_all.sum(axis=0)", "dz_all[::-1].sum(axis=0)"),),
    "gradient of the bias by a product": (
        ("dz_all.sum(axis=0)", "(np.ones((1, len(dz_all)), dz_all.dtype) @ dz_all)[0]"),
    ),
}

# Order of the work ----------------------------------------------------------------------------------------------------


class RecomputingKernel(NaiveKernel):
    """A kernel whose tape is the arguments: backward runs forward again."""

    def _forward(  # noqa: PLR0913  (the contract's signature)
        self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None, *, record: bool, out: Any
    ) -> tuple[Array, State, Any]:
        y, last, _ = super()._forward(weights, x, state, lengths, masks, record=False, out=out)
        if not record:
            return y, last, None
        state = None if state is None else State(*(np.array(array) for array in state))
        masks = None if masks is None else Masks(*(None if mask is None else np.array(mask) for mask in masks))
        return y, last, (weights, np.array(x), state, lengths, masks)

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        *_, tape = super()._forward(*saved, record=True, out=None)
        return super()._backward(weights, tape, dy, dstate)


def _variants() -> dict[str, Callable[[], Backend]]:
    found: dict[str, Callable[[], Backend]] = dict(FIRST)
    for name, product in _PRODUCTS.items():
        found[f"products {name}"] = lambda product=product: _with_product(product)  # type: ignore[misc]
    for name, functions in _FUNCTIONS.items():
        found[name] = lambda functions=functions, exact="units" in name: _with_functions(  # type: ignore[misc]
            functions, exact
        )
    for name, pairs in _TEXTS.items():
        found[name] = lambda pairs=pairs: backend_of(  # type: ignore[misc]
            type("VariantKernel", (NaiveKernel,), {"equations": edited(*pairs)})
        )
    return {**found, **ORDERS, "forward again in backward": lambda: backend_of(RecomputingKernel)}


#: Name -> function that makes a right backend.
RIGHT: Final[Mapping[str, Callable[[], Backend]]] = _variants()
