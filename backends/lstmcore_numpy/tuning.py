"""Constants of the NumPy backend that were chosen by measurement; docs/performance-tried-numpy.md has the figures."""

from __future__ import annotations

from typing import Final

#: The rows of a step's operand are padded to a multiple of this. Matrix products of other sizes are slower.
OPERAND_MULTIPLE: Final = 8
#: An input over this many times as wide as the recurrent input gets one matrix product for many steps.
WIDE_INPUT: Final = 2
#: Elements in the forward buffers of an unrecorded call. The steps that fit run as one block and stay in the cache.
FORWARD_BLOCK: Final = 1 << 19
#: Rows times steps over which one matrix product of the backward pass sums.
BACKWARD_BLOCK: Final = 1 << 11
#: Each array in the shared allocation of a tape begins at a multiple of this many elements.
ALIGNMENT: Final = 16
