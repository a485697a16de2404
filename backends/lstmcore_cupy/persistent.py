"""The persistent kernels: all steps in one launch. Each block keeps its rows of R in shared memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

from lstmcore_cupy import tuning
from lstmcore_cupy.launch import Call, Programs, cooperate

Name = Literal["forward_persistent", "backward_persistent"]
#: The same as in persistent.cuh.
_TILE: Final = 16
_BLOCK: Final = 4
_WARP: Final = 32
#: The same as in mma.cuh: outputs of a fragment, and bytes of its columns.
_OUTPUTS: Final = 8
_FRAGMENT: Final = 32
_MOST_WARPS: Final = 8
#: Numbers of parts into which the columns of a tile are cut if shared memory is short.
_PARTS: Final = (1, 2, 4, 8)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Plan:
    """The grid of a persistent kernel and the work of each block.

    Attributes
    ----------
    kernel
        The pass that it runs.
    units, rows
        Hidden units, and rows of the batch, of each block.
    depth
        Columns of a tile in shared memory.
    grid
        Blocks for all units, for all rows, for all directions.
    threads, shared_bytes
        Threads and dynamic shared memory of each block.
    """

    kernel: Name
    units: int
    rows: int
    depth: int
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int

    @property
    def blocks(self) -> int:
        """The number of blocks, of one direction or of both."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def run(self, programs: Programs, calls: Sequence[Call]) -> None:
        """Start the kernel on the calls of one direction or of both."""
        for call in calls:
            call.put(units=self.units, rows=self.rows, depth=self.depth)
        kernel = name_of(programs, self.kernel)
        cooperate(programs, kernel, calls, (*self.grid[:2], len(calls)), self.threads, self.shared_bytes)


class Loop(NamedTuple):
    """All steps of a call of one direction, and their plan."""

    plan: Plan
    programs: Programs
    call: Call


#: The pass of one direction. It yields loops, each of which must have run before it goes on.
Pass: TypeAlias = Generator[Loop, None, Result]


def run_passes(passes: Sequence[Pass[Result]]) -> list[Result]:
    """Run the passes of a layer's directions and return their results; loops share a launch if their plan says so."""
    results: dict[int, Result] = {}
    while len(results) < len(passes):
        loops: list[Loop] = []
        for index, each in enumerate(passes):
            if index not in results:
                try:
                    loops.append(next(each))
                except StopIteration as end:
                    results[index] = end.value
        joined = bool(loops) and loops[0].plan.grid[2] == len(loops)
        for launch in [loops] if joined else [[loop] for loop in loops]:
            launch[0].plan.run(launch[0].programs, [loop.call for loop in launch])
    return [results[index] for index in range(len(passes))]


def plan(programs: Programs, kernel: Name, batch: int, directions: int = 1) -> Plan | str:
    """Return the plan for a batch size, or the reason that there is none.

    Parameters
    ----------
    programs
        Those of the configuration.
    kernel
        The pass.
    batch
        N.
    directions
        Directions of the layer. If both do not fit into one launch, the plan is for one of them.
    """
    config = programs.config
    if config.layer_norm or config.proj_size:
        return f"the persistent kernels have no {'layer norm' if config.layer_norm else 'projection'}"
    shared = _plan(programs, kernel, batch, directions)
    return _plan(programs, kernel, batch, 1) if directions > 1 and isinstance(shared, str) else shared


def _plan(programs: Programs, kernel: Name, batch: int, directions: int) -> Plan | str:
    """Return the best plan whose blocks the device holds at once.

    Best are the fewest sums for a block; among equals, the fewest rows that a block reads.
    """
    device = programs.device
    plans = list(_plans(programs, kernel, batch, directions))
    if not plans:
        return f"{device.name} has fewer multiprocessors than there are directions"
    fitting = [each for each in plans if each.shared_bytes <= device.shared_bytes]
    if not fitting:
        least = min(each.shared_bytes for each in plans)
        have = f"of {device.name}, which has {device.shared_bytes}"
        return f"{kernel} needs {least} bytes of the shared memory of each multiprocessor {have}"
    fitting.sort(key=lambda each: (each.units * each.rows, each.rows, -each.depth))
    name, missed = name_of(programs, kernel), []
    for each in fitting:
        resident = programs.program.resident_blocks(name, each.threads, each.shared_bytes)
        if resident >= each.blocks:
            return each
        missed.append(f"{device.name} holds {resident} of the {each.blocks} blocks of {kernel} at once")
    return missed[0]


def _plans(programs: Programs, kernel: Name, batch: int, directions: int) -> Iterator[Plan]:
    """Yield a plan for each split of the rows over blocks; the units take all blocks that remain."""
    hidden, gates = programs.config.hidden_size, len(programs.config.gates)
    outputs, terms = (gates, hidden) if kernel == "forward_persistent" else (1, gates * hidden)
    available, height = programs.device.multiprocessors // directions, min(max(1, batch), _TILE)
    for rows in range(_TILE, max(1, batch) + _TILE, _TILE):
        groups = max(1, _over(batch, rows))
        if groups > available:
            continue
        units = _over(hidden, available // groups)
        for parts in _PARTS:
            depth = min(terms, _over(terms, parts * _WARP) * _WARP)
            warps = _warps(programs, units * outputs, height, depth)
            bias = units * outputs * programs.real.itemsize if kernel == "forward_persistent" else 0
            yield Plan(
                kernel,
                units,
                rows,
                depth,
                (_over(hidden, units), groups, directions),
                _WARP * warps,
                _shared_bytes(programs, units * outputs, terms, depth, warps) + bias,
            )


def name_of(programs: Programs, kernel: Name) -> str:
    """Return the name of the kernel in the sources. Those of float32 have a second kernel for tf32."""
    return f"{kernel}_tf32" if programs.tensor_cores and programs.storage == programs.real else kernel


def _warps(programs: Programs, outputs: int, height: int, depth: int) -> int:
    """Return the number of warps of a block that have something to multiply and to load."""
    if programs.tensor_cores:
        tasks = _over(outputs, _OUTPUTS) * _over(depth * programs.storage.itemsize, _FRAGMENT)
    else:
        tasks = _over(outputs, _BLOCK) * _over(height, _BLOCK)
    return min(_MOST_WARPS, max(tasks, _over(height * depth, tuning.LOADS * _WARP)))


def _shared_bytes(programs: Programs, outputs: int, terms: int, depth: int, warps: int) -> int:
    """Return the bytes of shared memory for the weights, a tile and the sums of a block."""
    size = programs.real.itemsize
    if not programs.tensor_cores:
        return (outputs * terms + _TILE * depth + _TILE * outputs) * size
    columns = _FRAGMENT // programs.storage.itemsize
    weights = _over(outputs, _OUTPUTS) * _OUTPUTS * _over(terms, columns) * _FRAGMENT
    pitch = _over(_over(depth, columns) * columns * size, 128) * 128 + 32  # as in mma.cuh, for a tile of float32
    return weights + _TILE * (pitch + max(outputs, _OUTPUTS * warps) * size)


def _over(number: int, each: int) -> int:
    """Return ``number / each``, rounded up."""
    return -(-number // each)
