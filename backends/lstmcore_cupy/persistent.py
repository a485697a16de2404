"""The persistent kernel: all steps in one launch, the rows of R in the shared memory of the blocks that use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lstmcore_cupy.calls import Call, Programs

KERNEL: Final = "forward_persistent"
#: As in persistent.cuh.
_TILE: Final = 16
_QUAD: Final = 4
_WARP: Final = 32
_MOST_WARPS: Final = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call is spread over the device: `units` hidden units for each block."""

    units: int
    blocks: int
    threads: int
    shared_bytes: int

    def run(self, call: Call, begin: int, steps: int) -> None:
        """Run `steps` steps from step `begin`."""
        call.put(s=begin, steps=steps, units=self.units)
        call.cooperate(KERNEL, self.blocks, self.threads, self.shared_bytes)


def plan(programs: Programs, batch: int) -> Plan | str:
    """The plan for a batch size, or why there is none."""
    config, device = programs.config, programs.device
    if config.layer_norm or config.proj_size:
        return f"the persistent kernel has no {'layer norm' if config.layer_norm else 'projection'}"
    units = -(-config.hidden_size // device.multiprocessors)
    blocks = -(-config.hidden_size // units)
    shared_bytes = (units * len(config.gates) + _TILE) * config.recurrent_size * programs.real.itemsize
    if shared_bytes > device.shared_bytes:
        have = f"of {device.name}, which has {device.shared_bytes}"
        return f"R and a tile of r need {shared_bytes} bytes of the shared memory of each multiprocessor {have}"
    quads = -(-min(batch, _TILE) // _QUAD)
    threads = _WARP * max(1, min(_MOST_WARPS, units * quads))
    held = programs.program.resident_blocks(KERNEL, threads, shared_bytes)
    if held < blocks:
        return f"{device.name} holds {held} of the {blocks} blocks of the persistent kernel at once"
    return Plan(units, blocks, threads, shared_bytes)
