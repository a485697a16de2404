"""Random masks, drawn on the device by one launch each, with the bits of `lstmcore.masks`."""

from __future__ import annotations

from math import prod
from typing import Final

import numpy as np

from lstmcore.masks import MaskDraw
from lstmcore.precision import numpy_dtype
from lstmcore_cupy import program_source, tuning
from lstmcore_cupy.device import Array, Device
from lstmcore_cupy.launch import Call

_LOW: Final = 0xFFFFFFFF


def draw_mask(device: Device, draw: MaskDraw) -> Array:
    """Return a mask on a device that is active. Only the numbers of `draw.rows` are copied there, without a wait."""
    dtype = numpy_dtype(draw.dtype)
    mask = device.empty(draw.shape, dtype)
    if not prod(draw.shape):
        return mask
    runs, width = (1, prod(draw.shape)) if draw.rows is None else (prod(draw.shape[:-1]), draw.shape[-1])
    call = Call(device, device.program(program_source.mask_program(draw.dtype)), "Draw")
    call.put(key_low=draw.seed & _LOW, key_high=draw.seed >> 32, step=draw.step, stream=draw.stream)
    call.put(limit=draw.limit, runs=runs, width=width, mask=mask)
    call.put_numbers(dict(zip(("first", "second"), draw.values, strict=True)), dtype)
    if draw.rows is not None:
        rows = device.array(np.asarray(draw.rows.numbers, np.int64))
        call.put(rows=rows, own=draw.shape[-2], whole=draw.rows.whole)
    blocks = runs * ((width + 2) // 4 + 1)  # of four words: see the kernel
    call.launch("draw_mask", -(-blocks // tuning.MAX_THREADS), tuning.MAX_THREADS)
    return mask
