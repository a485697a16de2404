"""The error contract of `LSTM`: every argument wrong in each way gives one line that names it."""
# long file: one contract, as a table of mistakes for each argument

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from lstmcore.backend import Masks, StackMasks, State
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.lstm import LSTM
from lstmcore.notices import Notice
from stacks import NaiveBackend

T, N, H, P = 4, 3, 7, 2
WIDTH = 5
F32 = np.float32


@pytest.fixture(scope="module")
def lstm() -> LSTM:
    """Two layers in both directions with every random mask; float16, where h and c differ in dtype."""
    return _make()


def _make(**changes: Any) -> LSTM:
    arguments: dict[str, Any] = {
        "num_layers": 2,
        "bidirectional": True,
        "proj_size": P,
        "dropout": 0.3,
        "zoneout_cell": 0.2,
        "dtype": "float16",
        "seed": 0,
    }
    return LSTM(WIDTH, H, backend=NaiveBackend(), **(arguments | changes))


def half(*shape: int) -> Any:
    return np.zeros(shape, np.float16)


def single(*shape: int) -> Any:
    return np.zeros(shape, F32)


X = half(T, N, WIDTH)
STATE = (half(4, N, P), single(4, N, H))

X_ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([[[0.0] * WIDTH] * N] * T, TypeError, "x: expected a NumPy array of float16; got builtins.list"),
    "None": (None, TypeError, "x: expected a NumPy array of float16; got builtins.NoneType"),
    "dtype": (
        single(T, N, WIDTH),
        TypeError,
        "x: expected dtype float16; got float32: convert it with x.astype('float16')",
    ),
    "integers": (np.zeros((T, N, WIDTH), int), TypeError, "x: expected dtype float16; got int64"),
    "byte order": (X.astype(">f2"), TypeError, "x: expected dtype float16; got >f2"),
    "width": (half(T, N, WIDTH + 1), ValueError, "x: expected shape (any, any, 5) = (T, N, I); got (4, 3, 6)"),
    "rank 1": (half(WIDTH), ValueError, "x: expected shape (any, any, 5) = (T, N, I); got (5,)"),
    "rank 4": (half(1, T, N, WIDTH), ValueError, "x: expected shape (any, any, 5) = (T, N, I); got (1, 4, 3, 5)"),
    "width, no batch": (half(T, WIDTH - 1), ValueError, "x: expected shape (any, 5) = (T, I); got (4, 4)"),
}

STATE_ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "an array": (STATE[0], TypeError, "{}: expected a pair (h, c); got ndarray"),
    "three": ((*STATE, STATE[0]), TypeError, "{}: expected a pair (h, c); got tuple of 3"),
    "one": ((STATE[0],), TypeError, "{}: expected a pair (h, c); got tuple of 1"),
    "h missing": ((None, STATE[1]), TypeError, "{}.h: expected a NumPy array of float16; got builtins.NoneType"),
    "c missing": ((STATE[0], None), TypeError, "{}.c: expected a NumPy array of float32; got builtins.NoneType"),
    "h dtype": ((single(4, N, P), STATE[1]), TypeError, "{}.h: expected dtype float16; got float32"),
    "c dtype": ((STATE[0], half(4, N, H)), TypeError, "{}.c: expected dtype float32; got float16"),
    "h width": (
        (half(4, N, H), STATE[1]),
        ValueError,
        "{}.h: expected shape (4, 3, 2) = (L * D, N, P); got (4, 3, 7)",
    ),
    "c width": (
        (STATE[0], single(4, N, P)),
        ValueError,
        "{}.c: expected shape (4, 3, 7) = (L * D, N, H); got (4, 3, 2)",
    ),
    "batch": ((half(4, N + 1, P), STATE[1]), ValueError, "{}.h: expected shape (4, 3, 2)"),
    "layers": ((half(2, N, P), STATE[1]), ValueError, "{}.h: expected shape (4, 3, 2)"),
    "no batch": ((half(4, P), single(4, H)), ValueError, "{}.h: expected shape (4, 3, 2) = (L * D, N, P); got (4, 2)"),
}

LENGTHS_ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "too long": ([1, 5, 2], ValueError, "lengths[1]: expected 0 to T=4; got 5"),
    "negative": ([1, 2, -1], ValueError, "lengths[2]: expected 0 to T=4; got -1"),
    "too few": ([1, 2], ValueError, "lengths: expected shape (3,) = (N,); got (2,)"),
    "a number": (3, ValueError, "lengths: expected shape (3,) = (N,); got ()"),
    "rank": ([[1, 2, 3]], ValueError, "lengths: expected shape (3,) = (N,); got (1, 3)"),
    "fractions": ([1.0, 2.0, 3.0], TypeError, "lengths: expected whole numbers; got dtype float64"),
    "booleans": ([True, False, True], TypeError, "lengths: expected whole numbers; got dtype bool"),
    "text": (["1", "2", "3"], TypeError, "lengths: expected whole numbers; got dtype <U1"),
    "huge": (np.array([1, 2, 2**64 - 1], np.uint64), ValueError, "lengths[2]: expected 0 to T=4"),
}


def raises(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    text = str(caught.value)
    assert text.startswith(message), text
    assert "\n" not in text


CALLS: dict[str, Callable[..., Any]] = {
    "call": lambda lstm, x=X, state=None, lengths=None: lstm(x, state, lengths),
    "record": lambda lstm, x=X, state=None, lengths=None: lstm.record(x, state, lengths),
    "jvp": lambda lstm, x=X, state=None, lengths=None: lstm.jvp(x, None, state, lengths=lengths),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", X_ERRORS)
def test_x(lstm: LSTM, call: str, wrong: str) -> None:
    value, error, message = X_ERRORS[wrong]
    raises(error, message, lambda: CALLS[call](lstm, value))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", STATE_ERRORS)
def test_state(lstm: LSTM, call: str, wrong: str) -> None:
    value, error, message = STATE_ERRORS[wrong]
    raises(error, message.format("state"), lambda: CALLS[call](lstm, X, value))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", LENGTHS_ERRORS)
def test_lengths(lstm: LSTM, call: str, wrong: str) -> None:
    value, error, message = LENGTHS_ERRORS[wrong]
    raises(error, message, lambda: CALLS[call](lstm, X, None, value))


@pytest.mark.parametrize("wrong", STATE_ERRORS)
def test_dstate_and_tstate(lstm: LSTM, wrong: str) -> None:
    value, error, message = STATE_ERRORS[wrong]
    _, _, tape = lstm.record(X)
    raises(error, message.format("dstate"), lambda: lstm.backward(tape, None, value))
    raises(error, message.format("tstate"), lambda: lstm.jvp(X, None, None, value))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([0.0], TypeError, "dy: expected a NumPy array of float16; got builtins.list"),
        (single(T, N, 2 * P), TypeError, "dy: expected dtype float16; got float32"),
        (half(T, N, P), ValueError, "dy: expected shape (4, 3, 4) = (T, N, D * P); got (4, 3, 2)"),
        (half(N, T, 2 * P), ValueError, "dy: expected shape (4, 3, 4) = (T, N, D * P); got (3, 4, 4)"),
    ],
)
def test_dy(lstm: LSTM, value: Any, error: type[Exception], message: str) -> None:
    _, _, tape = lstm.record(X)
    raises(error, message, lambda: lstm.backward(tape, value))


def test_tape(lstm: LSTM) -> None:
    raises(TypeError, "tape: expected what record() returned last; got ndarray", lambda: lstm.backward(X))
    _, _, tape = _make().record(X)
    raises(ValueError, "tape: expected one that record() of this LSTM returned", lambda: lstm.backward(tape))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (half(T, N), ValueError, "tx: expected shape (4, 3, 5) = (T, N, I); got (4, 3)"),
        (single(T, N, WIDTH), TypeError, "tx: expected dtype float16; got float32"),
        (3, TypeError, "tx: expected a NumPy array of float16; got builtins.int"),
    ],
)
def test_tx(lstm: LSTM, value: Any, error: type[Exception], message: str) -> None:
    raises(error, message, lambda: lstm.jvp(X, value))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1], TypeError, "tparameters: expected a mapping of name to array; got list"),
        ({"weight_ih_l0": half(1)}, ValueError, "tparameters: unknown weight_ih_l0; expected weight_x_l0"),
        ({"bias_l1": half(3)}, ValueError, "tparameters['bias_l1']: expected shape (28,); got (3,)"),
        ({"bias_l1": single(28)}, TypeError, "tparameters['bias_l1']: expected dtype float16; got float32"),
    ],
)
def test_tparameters(lstm: LSTM, value: Any, error: type[Exception], message: str) -> None:
    raises(error, message, lambda: lstm.jvp(X, None, tparameters=value))


CELL = single(T, N, H)
BETWEEN = single(T, N, 2 * P)
ONE = Masks(zoneout_cell=CELL)
NOTHING: Any = None
NO_MASKS: Any = (CELL,)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ((ONE,) * 4, TypeError, "masks: expected lstmcore.backend.StackMasks; got tuple"),
        (ONE, TypeError, "masks: expected lstmcore.backend.StackMasks; got Masks"),
        (StackMasks(NOTHING), TypeError, "masks: expected StackMasks of two tuples"),
        (StackMasks((ONE,) * 3), ValueError, "masks.layers: expected 4, one for each layer and direction; got 3"),
        (StackMasks((ONE, ONE, NOTHING, ONE)), TypeError, "masks.layers[2]: expected lstmcore.backend.Masks; got None"),
        (StackMasks((ONE, ONE, NO_MASKS, ONE)), TypeError, "masks.layers[2]: expected lstmcore.backend.Masks"),
        (
            StackMasks((ONE, Masks(zoneout_cell=CELL[1:]), ONE, ONE)),
            ValueError,
            "masks.layers[1].zoneout_cell: expected shape (4, 3, 7); got (3, 3, 7)",
        ),
        (
            StackMasks((ONE, ONE, ONE, Masks(zoneout_cell=half(T, N, H)))),
            TypeError,
            "masks.layers[3].zoneout_cell: expected dtype float32; got float16",
        ),
        (
            StackMasks((Masks(recurrent=single(N, P)), ONE, ONE, ONE)),
            ValueError,
            "masks.layers[0].recurrent: expected None, since the configuration's rate is 0; got an array",
        ),
        (
            StackMasks((ONE,) * 4, (BETWEEN, BETWEEN)),
            ValueError,
            "masks.dropout: expected 1, one between each two layers, or none; got 2",
        ),
        (
            StackMasks((ONE,) * 4, (BETWEEN[:, 1:],)),
            ValueError,
            "masks.dropout[0]: expected shape (4, 3, 4) = (T, N, D * P); got (4, 2, 4)",
        ),
    ],
)
def test_masks(lstm: LSTM, value: Any, error: type[Exception], message: str) -> None:
    step = lstm.step
    raises(error, message, lambda: lstm.record(X, masks=value))
    raises(error, message, lambda: lstm.jvp(X, None, masks=value))
    assert lstm.step == step


def test_dropout_masks_without_dropout() -> None:
    masks = StackMasks((ONE,) * 4, (BETWEEN,))
    raises(ValueError, "masks.dropout: expected 0", lambda: _make(dropout=0.0).record(X, masks=masks))


def test_out(lstm: LSTM) -> None:
    frozen = half(T, N, 2 * P)
    frozen.flags.writeable = False
    own = half(T, N, WIDTH)
    shared = (half(4, N, 2 * P), single(4, N, H))
    cases: list[tuple[Any, type[Exception], str]] = [
        ([0.0], TypeError, "out: expected a NumPy array; got list"),
        (single(T, N, 2 * P), TypeError, "out: expected dtype float16; got float32"),
        (half(T, N, P), ValueError, "out: expected shape (4, 3, 4) = (T, N, D * P); got (4, 3, 2)"),
        (frozen, ValueError, "out: expected a writable array; got a read-only one"),
        (own[:, :, : 2 * P], ValueError, "out: expected memory of its own; it overlaps an input"),
        (shared[0], ValueError, "out: expected memory of its own; it overlaps an input"),
    ]
    for out, error, message in cases:
        state = (shared[0][:, :, :P], shared[1])
        raises(error, message, partial(lstm, own, state, out=out))
    turned = _make(batch_first=True)
    message = "out: expected shape (3, 4, 4) = (N, T, D * P); got (4, 3, 4)"
    raises(ValueError, message, lambda: turned(half(N, T, WIDTH), out=half(T, N, 2 * P)))
    message = "out: expected memory of its own"
    raises(ValueError, message, lambda: turned(own.swapaxes(0, 1), out=own.swapaxes(0, 1)[:, :, : 2 * P]))


def test_one_sequence_has_no_batch_axis(lstm: LSTM) -> None:
    """One sequence takes no lengths, and its states have no batch axis."""
    one = half(T, WIDTH)
    raises(ValueError, "lengths: expected None for x of shape (T, I)", lambda: lstm(one, None, [4]))
    raises(
        ValueError,
        "state.h: expected shape (4, 2) = (L * D, P); got (4, 1, 2)",
        lambda: lstm(one, (half(4, 1, P), single(4, H))),
    )
    raises(
        ValueError,
        "state.c: expected shape (4, 7) = (L * D, H); got (4, 2)",
        lambda: lstm(one, (half(4, P), single(4, P))),
    )
    _, _, tape = lstm.record(one)
    raises(ValueError, "dy: expected shape (4, 4) = (T, D * P)", lambda: lstm.backward(tape, half(T, 1, 2 * P)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers: expected at least 1; got 0"),
        ({"num_layers": 1.0}, TypeError, "num_layers: expected a whole number; got 1.0"),
        ({"num_layers": 10**9}, ValueError, "num_layers: expected at most 65536; got 1000000000"),
        ({"bias": 1}, TypeError, "bias: expected True or False; got 1"),
        ({"batch_first": 1}, TypeError, "batch_first: expected True or False; got 1"),
        ({"bidirectional": None}, TypeError, "bidirectional: expected True or False; got None"),
        ({"strict": "yes"}, TypeError, "strict: expected True or False; got 'yes'"),
        ({"proj_size": H}, ValueError, "proj_size: expected 0 or a value below hidden_size=7; got 7"),
        ({"dropout": 1.0}, ValueError, "dropout: expected a rate in [0, 1); got 1.0"),
        ({"dropout": float("nan")}, ValueError, "dropout: expected a finite number; got nan"),
        ({"dtype": "float8"}, ValueError, "dtype: expected one of float64, float32, tf32, bfloat16, float16; got"),
        ({"dtype": int}, ValueError, "dtype: expected one of float64"),
        ({"dtype": np.dtype(">f4")}, ValueError, "dtype: expected one of float64"),
        ({"seed": -1}, ValueError, "seed: expected 0 to 2**64 - 1; got -1"),
        ({"seed": 2**64}, ValueError, "seed: expected 0 to 2**64 - 1; got 18446744073709551616"),
        ({"seed": 1.5}, TypeError, "seed: expected a whole number; got 1.5"),
        ({"seed": True}, TypeError, "seed: expected a whole number; got True"),
        ({"init": "zeros"}, ValueError, "init: expected one of 'uniform', 'orthogonal'; got 'zeros'"),
        ({"forget_bias": "1"}, TypeError, "forget_bias: expected a number or None; got '1'"),
        ({"forget_bias": float("inf")}, ValueError, "forget_bias: expected a finite number; got inf"),
        ({"forget_bias": 1.0, "bias": False}, ValueError, "forget_bias: needs bias=True"),
        (
            {"forget_bias": 1.0, "coupling": "forget_from_input"},
            ValueError,
            "forget_bias: needs a forget gate with a bias of its own",
        ),
        ({"gate_activation": "tan"}, ValueError, "activation: expected one of sigmoid"),
        ({"zoneout_cell": 1.5}, ValueError, "zoneout_cell: expected a rate in [0, 1]; got 1.5"),
    ],
)
def test_constructor(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    raises(error, message, lambda: _make(**changes))


def test_step(lstm: LSTM) -> None:
    for value, error in ((-1, ValueError), (2**32, ValueError), (1.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match="step: expected"):
            lstm.step = value  # type: ignore[assignment]  # the mistakes under test


def test_load_parameters_changes_nothing_when_it_fails(lstm: LSTM) -> None:
    good = lstm.parameters
    nan = np.array(good["weight_h_l1"])
    nan[2, 1] = np.nan
    infinite = np.array(good["bias_l0_reverse"])
    infinite[4] = -np.inf
    without = {name: value for name, value in good.items() if name != "weight_proj_l0"}
    wrong: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "parameters: expected a mapping of name to array; got NoneType"),
        (without, ValueError, "parameters: weight_proj_l0 missing; expected weight_x_l0"),
        (good | {"weight_ih_l0": nan}, ValueError, "parameters: unknown weight_ih_l0"),
        (good | {"bias_l0": half(27)}, ValueError, "parameters['bias_l0']: expected shape (28,); got (27,)"),
        (good | {"bias_l0": single(28)}, TypeError, "parameters['bias_l0']: expected dtype float16; got float32"),
        (good | {"bias_l0": [0.0] * 28}, TypeError, "parameters['bias_l0']: expected an array of float16; got list"),
        (
            good | {"weight_h_l1": nan},
            ValueError,
            "parameters['weight_h_l1']: expected finite numbers; got nan at [2, 1]",
        ),
        (
            good | {"bias_l0_reverse": infinite},
            ValueError,
            "parameters['bias_l0_reverse']: expected finite numbers; got -inf at [4]",
        ),
    ]
    before = lstm(X)[0]
    for value, error, message in wrong:
        raises(error, message, partial(lstm.load_parameters, value))
    np.testing.assert_array_equal(lstm(X)[0], before)


def test_stack_from_dict() -> None:
    stack = StackConfig.make(LSTMConfig(input_size=3, hidden_size=2), num_layers=2, bidirectional=True, dropout=0.25)
    good = stack.to_dict()
    assert StackConfig.from_dict(good) == stack
    for wrong, message in (
        (good | {"version": 2}, "stack version: expected at most 1; got 2, written by a newer lstmcore"),
        ({key: value for key, value in good.items() if key != "version"}, "stack version: expected a whole number"),
        (good | {"width": 1}, "stack: unknown width; known are layers, dropout"),
        ({"version": 1}, "stack: layers missing"),
        (good | {"layers": "two"}, "stack layers: expected a list of lists"),
        (good | {"layers": [{}]}, "stack layers: expected a list of lists"),
        (good | {"layers": [[{"version": 9}]]}, "config version: expected at most 1; got 9"),
        (good | {"layers": []}, "layers: expected at least one layer; got none"),
        (good | {"dropout": 2}, "dropout: expected a rate in [0, 1)"),
    ):
        raises(ValueError, message, partial(StackConfig.from_dict, wrong))


def test_state_may_be_a_list_or_a_named_tuple(lstm: LSTM) -> None:
    expected = lstm(X, STATE)[0]
    np.testing.assert_array_equal(lstm(X, list(STATE))[0], expected)  # type: ignore[arg-type]  # lists work too
    np.testing.assert_array_equal(lstm(X, State(*STATE))[0], expected)


def test_masked_arrays_are_refused(lstm: LSTM) -> None:
    def masked(array: Any) -> Any:
        return np.ma.masked_array(array, mask=array == array)

    for call, name in (
        (lambda: lstm(masked(X)), "x"),
        (lambda: lstm(masked(X[:, 0])), "x"),
        (lambda: lstm(X, (masked(STATE[0]), STATE[1])), "state.h"),
        (lambda: lstm(X, lengths=masked(np.ones(N, int))), "lengths"),
        (lambda: lstm(X, out=masked(half(T, N, 2 * P))), "out"),
        (lambda: lstm.load_parameters({n: masked(v) for n, v in lstm.parameters.items()}), "parameters"),
    ):
        with pytest.raises(TypeError, match=rf"^{name}.*: expected a plain array; got a masked one"):
            call()


def test_ragged_lengths(lstm: LSTM) -> None:
    with pytest.raises(ValueError, match="lengths: expected an array; got rows of different lengths"):
        lstm(X, lengths=[[1], [2, 3], [1]])


def test_out_must_not_overlap_itself() -> None:
    lstm = LSTM(2, 3, dtype="float64", seed=0, backend="numpy")
    x = np.random.default_rng(0).standard_normal((4, 5, 2))
    wanted, _ = lstm(x)
    one = np.lib.stride_tricks.as_strided
    for strides in ((0, 24, 8), (120, 0, 8), (24, 24, 8), (8, 32, 8), (120, 24, 0), (120, 16, 8), (-24, 24, 8)):
        base = np.zeros(200)
        with pytest.raises(ValueError, match="out: expected memory of its own for every entry"):
            lstm(x, out=one(base[100:], (4, 5, 3), strides))
    for out in (
        np.zeros((4, 5, 3), order="F"),
        np.zeros((8, 5, 9))[::-2, ::-1, 1:9:3],
        np.zeros((5, 3, 4)).transpose(2, 0, 1),
        one(np.zeros(200), (4, 5, 3), (32, 8 * 17, 8)),
    ):
        y, _ = lstm(x, out=out)
        assert y is out
        np.testing.assert_array_equal(out, wanted)
    assert lstm(x[:, :1], out=one(np.zeros(12), (4, 1, 3), (24, 0, 8)))[0].shape == (4, 1, 3)  # one step of 0 is none


def test_sizes_beyond_any_memory() -> None:
    for sizes in ((3, 10**20), (10**20, 3), (3, 2**24)):
        with pytest.raises(ValueError, match="input_size, hidden_size: expected sizes that give at most"):
            LSTM(*sizes, backend="numpy")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_that_does_nothing_is_told(bidirectional: bool) -> None:
    """As in PyTorch. It is no error: a search over numbers of layers has it too."""
    with pytest.warns(Notice, match=r"^dropout: 0.3 does nothing with num_layers=1, since it acts between layers"):
        LSTM(WIDTH, H, 1, dropout=0.3, bidirectional=bidirectional, backend=NaiveBackend())
    LSTM(WIDTH, H, 2, dropout=0.3, bidirectional=bidirectional, backend=NaiveBackend())  # a warning is an error here
