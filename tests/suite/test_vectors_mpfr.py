"""The golden vectors against sections 2 to 7 of SPEC.md at 50 digits.

The equations are implemented here once more, on arrays of MPFR's numbers that record their operations. So gradients
come from the chain rule over additions, products and exponentials, and not from a derivation of the LSTM's backward
pass. Central differences along a random direction check the chain rule.

MPFR rounds every operation correctly to the precision of gmpy2's context, which belongs to a thread.
The fixture `digits` sets it for each test, so no number may be made at import.
Floats and integers are converted exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import gmpy2
import numpy as np
import pytest
from gmpy2 import mpfr

from golden_vectors import allowed
from lstmcore.backend import Masks, StackMasks
from lstmcore.config import Activation, LSTMConfig
from lstmcore_conformance.vectors import Entry, entries
from lstmcore_conformance.vectors.catalogue import PRECISIONS

#: 50 digits.
BITS: Final = 170
EXPM1, LOG, SQRT = (np.frompyfunc(f, 1, 1) for f in (gmpy2.expm1, gmpy2.log, gmpy2.sqrt))
Array = Any
NAMES = ("y", "h_n", "c_n")


@pytest.fixture(autouse=True)
def digits() -> Iterator[None]:
    """Compute at `BITS` bits, whatever the context of the thread is."""
    with gmpy2.context(precision=BITS):
        yield


class Var:
    """An array, its operands, and the functions that give their gradients.

    Parameters
    ----------
    value
        The array.
    parents
        Each operand, and the function from this array's gradient to the operand's.
    constant
        Whether no gradient is wanted. An array made of constants alone is a constant.
    """

    def __init__(self, value: Array, *parents: tuple[Var, Callable[[Array], Array]], constant: bool = False) -> None:
        self.value, self.grad = value, None
        self.parents = tuple((parent, back) for parent, back in parents if not parent.constant)
        self.constant = constant or bool(parents and not self.parents)

    def __add__(self, other: Any) -> Var:
        a, b = self, var(other)
        return Var(a.value + b.value, (a, lambda d: d), (b, lambda d: d))

    def __mul__(self, other: Any) -> Var:
        a, b = self, var(other)
        return Var(a.value * b.value, (a, lambda d: d * b.value), (b, lambda d: d * a.value))

    def __truediv__(self, other: Any) -> Var:
        a, b = self, var(other)
        value = a.value / b.value
        return Var(value, (a, lambda d: d / b.value), (b, lambda d: -d * value / b.value))

    def __matmul__(self, matrix: Var) -> Var:
        """Return ``self @ matrix.T``: rows of self are samples, rows of the matrix are outputs."""
        a, w = self, matrix
        return Var(a.value @ w.value.T, (a, lambda d: d @ w.value), (w, lambda d: d.T @ a.value))

    def __sub__(self, other: Any) -> Var:
        return self + var(other) * -1

    def __rsub__(self, other: Any) -> Var:
        return var(other) - self

    def __rtruediv__(self, other: Any) -> Var:
        return var(other) / self

    def __neg__(self) -> Var:
        return self * -1

    __radd__, __rmul__ = __add__, __mul__

    def __getitem__(self, index: Any) -> Var:
        def back(d: Array) -> Array:
            whole = zeros(self.value.shape)
            whole[index] = d
            return whole

        return Var(self.value[index], (self, back))

    def mean(self) -> Var:
        """Return the mean of each row."""
        size = self.value.shape[1]
        return Var(self.value.sum(axis=1, keepdims=True) / size, (self, lambda d: d / size + zeros(self.value.shape)))

    def sum(self) -> Var:
        """Return the sum of all elements, as an array of one."""
        value = np.array([[self.value.sum() + mpfr(0)]])
        return Var(value, (self, lambda d: zeros(self.value.shape) + d.item()))

    def backward(self) -> None:
        """Set the gradient of every array that this one depends on."""
        order: list[Var] = []
        seen: set[int] = set()
        stack: list[tuple[Var, bool]] = [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack += [(parent, False) for parent, _ in node.parents]
        self.grad = zeros(self.value.shape) + 1
        for node in reversed(order):
            for parent, back in node.parents:
                part = summed_to(back(node.grad), parent.value.shape)
                parent.grad = part if parent.grad is None else parent.grad + part


def var(value: Any) -> Var:
    """Return an array as a constant, and a number as a constant array of one."""
    if isinstance(value, Var):
        return value
    array = value if isinstance(value, np.ndarray) else np.array([[mpfr(value)]])
    return Var(array, constant=True)


def zeros(shape: tuple[int, ...]) -> Array:
    return np.full(shape, mpfr(0), object)


def summed_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Return the array summed over the axes that were broadcast from `shape`."""
    while array.ndim > len(shape):
        array = array.sum(axis=0)
    for axis, size in enumerate(shape):
        if size == 1 and array.shape[axis] != 1:
            array = array.sum(axis=axis, keepdims=True)
    return array


def expm1(z: Var) -> Var:
    value = EXPM1(z.value)
    return Var(value, (z, lambda d: d * (value + 1)))


def log(z: Var) -> Var:
    return Var(LOG(z.value), (z, lambda d: d / z.value))


def sqrt(z: Var) -> Var:
    value = SQRT(z.value)
    return Var(value, (z, lambda d: d / (2 * value)))


def where(chosen: Array, a: Any, b: Any) -> Var:
    chosen, a, b = np.asarray(chosen, bool), var(a), var(b)
    value = np.where(chosen, a.value, b.value)
    return Var(value, (a, lambda d: np.where(chosen, d, d * 0)), (b, lambda d: np.where(chosen, d * 0, d)))


def joined(parts: Sequence[Var], axis: int) -> Var:
    ends = np.cumsum([0] + [part.value.shape[axis] for part in parts])

    def back(start: int, stop: int) -> Callable[[Array], Array]:
        return lambda d: np.take(d, range(start, stop), axis)

    pieces = [(part, back(*ends[k : k + 2])) for k, part in enumerate(parts)]
    return Var(np.concatenate([part.value for part in parts], axis), *pieces)


def tanh(z: Var) -> Var:
    m = expm1(2 * z)
    return m / (m + 2)


def activation(function: Activation, z: Var) -> Var:
    """Return an activation of section 3; on a kink it has the side of section 7."""
    name, alpha, beta = function.name, mpfr(function.alpha or 0), mpfr(function.beta or 0)
    if name == "sigmoid":
        return 1 / (2 + expm1(-z))
    if name == "tanh":
        return tanh(z)
    if name == "scaled_tanh":
        return alpha * tanh(beta * z)
    if name == "relu":
        return where(z.value > 0, z, 0 * z.value)
    if name == "thresholded_relu":
        return where(z.value > alpha, z, 0 * z.value)
    if name == "leaky_relu":
        return where(z.value >= 0, z, alpha * z)
    if name == "elu":
        return where(z.value >= 0, z, alpha * expm1(z))
    if name == "softsign":
        return z / (1 + where(z.value >= 0, z, -z))
    if name == "softplus":
        return log(2 + expm1(z))
    if name == "identity":
        return z
    line = alpha * z + beta
    if name == "affine":
        return line
    assert name == "hard_sigmoid"
    return where((line.value > 0) & (line.value < 1), line, np.clip(line.value, 0, 1))


def clipped(z: Var, bound: float | None) -> Var:
    return z if bound is None else where(abs(z.value) <= bound, z, np.clip(z.value, -bound, bound))


def normed(v: Var, eps: float) -> Var:
    centred = v - v.mean()
    return centred / sqrt((centred * centred).mean() + mpfr(eps))


def gates(config: LSTMConfig, rows: dict[str, Var], peephole: dict[str, Var], before: Var) -> dict[str, Var]:
    """Return i, f and g; `rows` are the inputs of the gates, `before` is the cell of the step before."""
    gate = {}
    for k in "ifg":
        if k in rows:
            seen = rows[k] + peephole[k] * before if k in peephole else rows[k]
            function = config.cell_activation if k == "g" else config.gate_activation
            gate[k] = activation(function, clipped(seen, config.gate_clip))
    if config.coupling == "forget_from_input":
        gate["f"] = 1 - gate["i"]
    if config.coupling == "input_from_forget":
        gate["i"] = 1 - gate["f"]
    return gate


def layer(
    config: LSTMConfig, p: dict[str, Var], x: Var, state: tuple[Var, Var], ends: Array, masks: dict[str, Array]
) -> tuple[Var, Var, Var]:
    """Return y, the final h and the final c, by sections 2 and 4."""
    steps, H, (h, c) = len(x.value), config.hidden_size, state
    y: list[Any] = [None] * steps
    m_r, m_h, m_c = (masks.get(name) for name in ("recurrent", "zoneout_hidden", "zoneout_cell"))
    for t in reversed(range(steps)) if config.reverse else range(steps):
        before, r = c, c if config.recurrence == "cell" else h
        from_x, from_h = x[t] @ p["weight_x"], (r if m_r is None else r * m_r) @ p["weight_h"]
        if config.layer_norm:
            from_x = p["norm_gain_x"] * normed(from_x, config.layer_norm_eps)
            from_h = p["norm_gain_h"] * normed(from_h, config.layer_norm_eps)
        z = from_x + from_h + (p["bias"] if config.bias else 0)
        rows = {k: z[:, n * H : (n + 1) * H] for n, k in enumerate(config.gates)}
        peephole = {k: p["peephole"][n] for n, k in enumerate(config.peephole_gates)} if config.peephole else {}
        gate = gates(config, rows, peephole, before)
        fresh = clipped(gate["f"] * before + gate["i"] * gate["g"], config.cell_clip)
        keep = mpfr(config.zoneout_cell) if m_c is None else m_c[t]
        cell = before * keep + fresh * (1 - keep)
        seen = rows["o"] + peephole["o"] * cell if "o" in peephole else rows["o"]
        o = activation(config.gate_activation, clipped(seen, config.gate_clip))
        shown = cell
        if config.layer_norm:
            shown = p["norm_gain_c"] * normed(cell, config.layer_norm_eps) + (p["norm_bias_c"] if config.bias else 0)
        q = o * activation(config.hidden_activation, shown)
        if config.proj_size:
            q = clipped(q @ p["weight_proj"], config.proj_clip)
        keep = mpfr(config.zoneout_hidden) if m_h is None else m_h[t]
        active = (t < ends)[:, None]
        c, h = where(active, cell, before), where(active, h * keep + q * (1 - keep), h)
        y[t] = where(active, h, 0 * h.value)[None]
    return joined(y, 0) if steps else var(zeros((0, *h.value.shape))), h, c


def forward(entry: Entry, inputs: dict[str, Var]) -> dict[str, Var]:
    """Return the outputs by name: the layers composed by section 6."""
    case, data, stack = entry.case, entry.data, entry.case.stack
    ends = np.full(case.batch, case.steps) if data.lengths is None else data.lengths
    if stack is None:
        masks = numbers(data.masks or Masks())
        state = (inputs["h0"], inputs["c0"])
        return dict(zip(NAMES, layer(case.config, inputs, inputs["x"], state, ends, masks), strict=True))
    masks = data.masks or StackMasks(tuple(Masks() for _ in stack.configs))
    below, last = inputs["x"], []
    for number in range(stack.num_layers):
        if number and masks.dropout:
            below = below * clean(masks.dropout[number - 1])
        outputs = []
        for direction in range(stack.num_directions):
            k = number * stack.num_directions + direction
            config = stack.configs[k]
            p = {name: inputs[name + stack.suffixes[k]] for name in config.parameter_shapes}
            state = (inputs["h0"][k], inputs["c0"][k])
            y, h, c = layer(config, p, below, state, ends, numbers(masks.layers[k]))
            outputs.append(y)
            last.append((h[None], c[None]))
        below = joined(outputs, 2)
    return dict(zip(NAMES, (below, *(joined(parts, 0) for parts in zip(*last, strict=True))), strict=True))


def numbers(masks: Masks) -> dict[str, Array]:
    return {name: clean(mask) for name, mask in masks._asdict().items() if mask is not None}


def clean(array: Array) -> Array:
    """Return exact numbers, with 0 in place of NaN, which has no influence on the compared results."""
    known = np.nan_to_num(np.asarray(array, np.float64), nan=0.0)
    return known.astype(object) * mpfr(1)  # exact, and eight times as fast as mpfr(number)


def scalar(entry: Entry, outputs: dict[str, Var]) -> Var:
    """Return the scalar that is differentiated, as an array of one."""
    total = var(0)
    for name, along in zip(NAMES, (entry.data.dy, *(entry.data.dstate or (None, None))), strict=True):
        if along is not None:
            total = total + (outputs[name] * clean(along)).sum()
    return total


def evaluated(entry: Entry) -> tuple[dict[str, Var], dict[str, Var]]:
    """Return x, the initial state and the parameters with their gradients, and the outputs."""
    case, data = entry.case, entry.data
    rows = () if case.stack is None else (len(case.configs),)
    widths = {"h0": case.configs[0].output_size, "c0": case.configs[0].hidden_size}
    inputs = {"x": Var(clean(data.x))} | {key: Var(clean(array)) for key, array in data.parameters.items()}
    for key, array in zip(widths, data.state or (None, None), strict=True):
        inputs[key] = Var(clean(np.zeros((*rows, case.batch, widths[key])) if array is None else array))
    outputs = forward(entry, inputs)
    scalar(entry, outputs).backward()
    for leaf in inputs.values():
        leaf.grad = zeros(leaf.value.shape) if leaf.grad is None else leaf.grad
    return inputs, outputs


ENTRIES = {entry.case.id: entry for precision in PRECISIONS for entry in entries(precision)}
#: One id for each name: data differ only by rounding between precisions. A difference takes both sides of a kink.
NAMED = {entry.case.name: id for id, entry in ENTRIES.items() if not entry.case.name.startswith("kink,")}


@pytest.mark.parametrize("id", ENTRIES)
def test_they_are_right_at_50_digits(id: str) -> None:
    entry = ENTRIES[id]
    inputs, outputs = evaluated(entry)
    arrays = {key: out.value for key, out in outputs.items()}
    arrays |= {f"d{key}" if key in ("x", "h0", "c0") else f"d_{key}": leaf.grad for key, leaf in inputs.items()}
    for key, want in {**entry.outputs, **entry.gradients}.items():
        right = np.asarray(want.value, np.float64)
        assert arrays[key].shape == right.shape, key
        known = ~np.isnan(right)
        off = abs(clean(right[known]) - arrays[key][known])
        assert (off <= allowed(entry.case.precision, want.budget)).all(), key


@pytest.mark.parametrize("id", NAMED.values(), ids=NAMED)
def test_the_chain_rule_agrees_with_a_central_difference(id: str) -> None:
    entry = ENTRIES[id]
    inputs, _ = evaluated(entry)
    rng, step = np.random.default_rng(3), mpfr(10) ** -20
    along = {key: leaf.value * clean(rng.standard_normal(leaf.value.shape)) for key, leaf in inputs.items()}

    def moved(by: Any) -> Any:
        arrays = {key: var(leaf.value + by * along[key]) for key, leaf in inputs.items()}
        return scalar(entry, forward(entry, arrays)).value.item()

    parts = [leaf.grad * along[key] for key, leaf in inputs.items()]
    off = (moved(step) - moved(-step)) / (2 * step) - sum(part.sum() for part in parts)
    # the error of the difference: 20 of 50 digits and step^2, relative to terms that may cancel
    assert abs(off) <= mpfr(10) ** -22 * sum(abs(part).sum() for part in parts) + mpfr(10) ** -27
