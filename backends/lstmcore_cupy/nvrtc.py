"""Machine code of CUDA sources by NVRTC, and its cache on disk."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

#: Options of NVRTC. Unlike CuPy's defaults they have no -ftz: denormal numbers stay.
OPTIONS: Final = ("-std=c++17",)


def compile_cubin(text: str, architecture: int, *options: str) -> tuple[bytes, str]:
    """Return the machine code of a source for an architecture such as 90, and the compiler's log.

    It needs no GPU and no driver.

    Raises
    ------
    cupy.cuda.compiler.CompileException
        The source is wrong.
    """
    from io import StringIO

    from cupy.cuda.compiler import _NVRTCProgram

    log = StringIO()
    program = _NVRTCProgram(text, "lstmcore.cu", method="cubin")
    code, _ = program.compile((*OPTIONS, f"-arch=sm_{architecture}", *options), log)
    return code, log.getvalue()


def cached_cubin(text: str, architecture: int) -> bytes:
    """Return the machine code of `compile_cubin`, kept in the folder of CuPy's cache."""
    from cupy_backends.cuda.libs import nvrtc

    key = hashlib.sha256(repr((text, architecture, OPTIONS, nvrtc.getVersion())).encode()).hexdigest()
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))
    file = folder / f"lstmcore_{key}.cubin"
    with suppress(OSError):  # missing or not readable
        return file.read_bytes()
    code, _ = compile_cubin(text, architecture)
    with suppress(OSError):  # without a cache each process compiles again
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
        part.write_bytes(code)
        part.replace(file)
    return code
