"""The compiled entries of the forward pass: of one layer, of two directions, of layers in a wavefront, and replays."""

from __future__ import annotations

import inspect
from typing import Any, Final

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.runtime.barrier import write
from lstmcore_numba.runtime.tasks import call_task, make_task, store_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.time_loop.forward import run_part

_ARGUMENTS: Final = list(inspect.signature(run_part).parameters)[2:]
#: Index of `y` and `x` among the stored arguments.
Y_INDEX: Final = _ARGUMENTS.index("y")
X_INDEX: Final = _ARGUMENTS.index("x")


@compiled
def _load_state(source: Any, target: Any) -> None:
    """Copy a state (N, P) to (N, Pp), with 0 behind the last unit."""
    for row in range(source.shape[0]):
        for k in range(target.shape[1]):
            target[row, k] = source[row, k] if k < source.shape[1] else 0


@compiled
def _store_state(source: Any, target: Any) -> None:
    """Copy a state (N, Pp) to (N, P).

    A loop, since an assignment of slices takes seconds to compile.
    """
    for row in range(target.shape[0]):
        for k in range(target.shape[1]):
            target[row, k] = source[row, k]


@compiled
def _prepare(  # noqa: PLR0913  (the flat entry of a pass)
    counter: Any, first_h: Any, first_c: Any, reverse: bool, h: Any, c: Any, y: Any
) -> None:
    """Copy the initial state to where the first step reads it, and reset the barrier."""
    start = y.shape[0] if reverse and h.shape[0] == y.shape[0] + 1 else 0
    _load_state(first_h, h[start])
    _load_state(first_c, c[start])
    counter[0] = 0


@compiled
def _finish(last_h: Any, last_c: Any, reverse: bool, h: Any, c: Any, y: Any) -> None:
    """Copy the final state from where the last step wrote it."""
    steps = y.shape[0]
    end = steps % 2
    if h.shape[0] == steps + 1:
        end = 0 if reverse else steps
    _store_state(h[end], last_h)
    _store_state(c[end], last_c)


@compiled
def store_forward(arguments: Any, fields: Any, *args: Any) -> int:
    """Store the arguments of `run_part` after `part` and `parts`, and return the address of the task's function.

    ``h`` (T + 1 or 2, N, Pp) and ``c`` (T + 1 or 2, N, Hp) hold the states, all of them or two in turn. The input
    projections are computed for `input_chunk` steps at a time, into `gates` (T or `input_chunk`, B, N, G, lanes), or
    into ``norms.x``. With `packed`, `x` and its weights are packed pairs, and `y` holds the bits of bfloat16.

    Parameters
    ----------
    arguments
        An array of `tasks.STORED_TASK_BYTES`, which gets the arguments.
    fields
        (arguments,) int64, see `tasks.store_task`.
    args
        The arguments.
    """
    function: int = store_task(run_part, args, arguments.ctypes.data, fields.ctypes.data)
    return function


@compiled
def forward(  # noqa: PLR0913  (the flat entry of a pass)
    threads: Any,
    function: int,
    arguments: int,
    counter: Any,
    first_h: Any,
    first_c: Any,
    last_h: Any,
    last_c: Any,
    reverse: bool,
    h: Any,
    c: Any,
    y: Any,
) -> None:
    """Run all steps of all rows. Threads share rows, or hidden units if `by_units`, with a barrier after each step.

    `function` is what `store_forward` returned, and `arguments` is the address of the stored arguments.
    """
    _prepare(counter, first_h, first_c, reverse, h, c, y)
    run_parts(threads, (function, arguments))
    _finish(last_h, last_c, reverse, h, c, y)


@compiled
def replay_forward(  # noqa: PLR0913  (the flat entry of a pass)
    threads: Any,
    function: int,
    arguments: int,
    y_field: int,
    x_field: int,
    counter: Any,
    first_h: Any,
    first_c: Any,
    last_h: Any,
    last_c: Any,
    reverse: bool,
    h: Any,
    c: Any,
    y: Any,
    x: Any,
) -> None:
    """Run `forward` with another `x` and `y`, whose data pointers go to the addresses of the two fields.

    States are (1, N, P) and (1, N, H).
    """
    write(y_field, y.ctypes.data)
    write(x_field, x.ctypes.data)
    _prepare(counter, first_h[0], first_c[0], reverse, h, c, y)
    run_parts(threads, (function, arguments))
    _finish(last_h[0], last_c[0], reverse, h, c, y)


@compiled
def _forward_both(part: int, parts: int, first: Any, second: Any) -> None:
    if parts == 1:
        call_task(first[0], first[1], 0, 1)
        call_task(second[0], second[1], 0, 1)
    elif part % 2 == 0:
        call_task(first[0], first[1], part // 2, (parts + 1) // 2)
    else:
        call_task(second[0], second[1], part // 2, parts // 2)


@compiled
def forward_both(threads: Any, first: Any, second: Any) -> None:
    """Run `forward` of two directions, each on half of the threads. Their arguments are two tuples."""
    _prepare(first[2], first[3], first[4], first[7], first[8], first[9], first[10])
    _prepare(second[2], second[3], second[4], second[7], second[8], second[9], second[10])
    run_parts(threads, make_task(_forward_both, (first[:2], second[:2])))
    _finish(first[5], first[6], first[7], first[8], first[9], first[10])
    _finish(second[5], second[6], second[7], second[8], second[9], second[10])


@compiled
def _forward_wavefront(part: int, parts: int, tasks: Any) -> None:
    count = len(tasks)
    for layer in range(part % count, count, parts):
        sharers = max(1, (parts - layer + count - 1) // count)
        call_task(tasks[layer, 0], tasks[layer, 1], part // count, sharers)


@compiled
def forward_wavefront(threads: Any, tasks: Any, layers: Any) -> None:
    """Run `forward` of the layers of a stack in a wavefront. Each pass has a `WavefrontProgress`.

    `tasks` (layers, 2) holds the arguments `function` and `arguments` of `forward`, `layers` the rest of its arguments.

    Threads are dealt to the layers in turn. If there are fewer threads than layers, layers are dealt to threads, from
    the lowest up. A layer waits only for the layer below. Either its own thread has finished that layer, or another
    thread runs it or will run it without waiting for this one. So one thread can always go on.
    """
    for layer in range(len(tasks)):
        args = layers[layer]
        _prepare(args[0], args[1], args[2], args[5], args[6], args[7], args[8])
    run_parts(threads, make_task(_forward_wavefront, (tasks,)))
    for layer in range(len(tasks)):
        args = layers[layer]
        _finish(args[3], args[4], args[5], args[6], args[7], args[8])
