"""Runs under callgrind: calls each case of `instructions.CASES`, with the counters on for some calls alone.

`instructions` starts it as ``python -m lstmcore_conformance.bench.counted BACKEND``.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Callable
from typing import Final

from lstmcore_conformance.bench.instructions import CALLS, CASES, NOTHING
from lstmcore_conformance.bench.runtimes.registered import Registered

#: What valgrind takes for a request (valgrind.h, x86-64), as a function of the address of its arguments:
#: mov rax, rdi; xor edx, edx; rol rdi by 3, 13, 61 and 51; xchg rbx, rbx; mov rax, rdx; ret.
_CODE: Final = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
#: Requests of callgrind.h.
_BASE: Final = ord("C") << 24 | ord("T") << 16
_ZERO, _DUMP, _ON, _OFF = _BASE + 1, _BASE + 3, _BASE + 4, _BASE + 5
#: Calls before those that are counted: they compile, allocate and fill caches, the interpreter's own among them.
_BEFORE: Final = 10


class Valgrind:
    """Asks the valgrind that this process runs under."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, len(_CODE), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.page.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        self.function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    def count(self, name: str, call: Callable[[], object]) -> None:
        """Let valgrind write a file of that name with the count of `CALLS` calls."""
        text = ctypes.create_string_buffer(name.encode())
        kinds = (_ON, _ZERO, _DUMP, _OFF)
        requests = [(ctypes.c_uint64 * 6)(kind, ctypes.addressof(text)) for kind in kinds]
        on, zero, dump, off = (ctypes.c_void_p(ctypes.addressof(request)) for request in requests)
        ask, calls = self.function, range(CALLS)
        for _ in range(_BEFORE):
            call()
        ask(on)
        ask(zero)
        for _ in calls:
            call()
        ask(dump)
        ask(off)


def main(name: str) -> None:
    """Count every case, and a call of nothing."""
    backend, valgrind = Registered(name, 1), Valgrind()
    gc.disable()
    valgrind.count(NOTHING, lambda: None)
    for case, job in CASES.items():
        valgrind.count(case, backend.prepare(job, job.case.data).call)


if __name__ == "__main__":
    main(sys.argv[1])
