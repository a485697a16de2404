"""The reference with wide sums of matrix products in order, as a plain loop has them.

A library for matrix products adds blocks, and so loses less than a loop does. Both are right, and a budget has room for
both: the naive evaluation of a large case also runs with these sums.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Final

import numpy as np

from lstmcore import reference
from lstmcore_conformance.cases.call_data import Array
from lstmcore_conformance.cases.case_spec import CaseSpec

#: The longest sum that is left to `@`.
WIDE: Final = 256

Product = Callable[[Array, Array], Array]


class _Products(ast.NodeTransformer):
    """Replace every ``a @ b`` by ``_product(a, b)``."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        called = ast.Call(ast.Name("_product", ast.Load()), [node.left, node.right], [])
        return ast.copy_location(called, node)


def with_product(product: Product) -> ModuleType:
    """Return the reference with another function for its matrix products."""
    tree = ast.fix_missing_locations(_Products().visit(ast.parse(inspect.getsource(reference))))
    module = ModuleType(reference.__name__)
    module.__dict__["_product"] = product
    exec(compile(tree, f"<products of {reference.__name__}>", "exec"), module.__dict__)
    return module


def product_in_order(a: Array, b: Array) -> Array:
    """Return ``a @ b``; a sum of more than `WIDE` numbers adds one after another."""
    rows, inner, columns = *a.shape, b.shape[1]
    if inner <= WIDE:
        return a @ b
    if inner > rows * columns:
        total: Array = np.add.accumulate(a[:, :, None] * b[None], axis=1)[:, -1]
        return total
    total = np.zeros((rows, columns), np.result_type(a, b))
    for column, row in zip(a.T, b, strict=True):
        total += column[:, None] * row
    return total


@lru_cache(maxsize=1)
def reference_in_order() -> ModuleType:
    """Return the reference with `product_in_order`."""
    return with_product(product_in_order)


def has_wide_sums(case: CaseSpec) -> bool:
    """Return whether a matrix product of a step of the case has sums of more than `WIDE` numbers."""
    widths = (max(config.input_size, len(config.gates) * config.hidden_size) for config in case.configs)
    return max(case.batch, *widths) > WIDE
