"""cuBLAS for streams that record: CuPy's binding refuses every call of it then, see CuPy's issue 6290.

cuBLAS itself can be recorded. It shall not ask for memory meanwhile, so it is given a workspace.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Final

_POINTER: Final = ctypes.c_void_p
_NUMBER: Final = ctypes.c_int
#: The arguments of ``cublasGemmEx``: the handle, 5 numbers, a factor, two operands, a factor, the result, two numbers.
_MATRIX: Final = (_POINTER, _NUMBER, _NUMBER)
_GEMM: Final = (_POINTER, *[_NUMBER] * 5, _POINTER, *_MATRIX, *_MATRIX, _POINTER, *_MATRIX, _NUMBER, _NUMBER)
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cublasSetStream_v2": (_POINTER, _POINTER),
    "cublasSetWorkspace_v2": (_POINTER, _POINTER, ctypes.c_size_t),
    "cublasGemmEx": _GEMM,
}


class RecordedProducts:
    """A handle of cuBLAS of its own, for one stream at a time.

    Parameters
    ----------
    library
        cuBLAS.
    handle
        The handle, which nobody else uses.
    """

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self.handle = handle
        self._functions = {}
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, _NUMBER
            self._functions[name] = function

    def use(self, stream: int, workspace: int, size: int) -> None:
        """Let the next products go to a stream, with `size` bytes at the address `workspace`."""
        self._call("cublasSetStream_v2", self.handle, stream)
        self._call("cublasSetWorkspace_v2", self.handle, workspace, size)  # after the stream, which resets it

    def gemm(self, *arguments: int) -> None:
        """Start ``gemmEx``, with the arguments that CuPy's binding takes.

        Raises
        ------
        RuntimeError
            cuBLAS refuses them.
        """
        self._call("cublasGemmEx", *arguments)

    def _call(self, name: str, *arguments: int) -> None:
        status = self._functions[name](*arguments)
        if status:
            raise RuntimeError(f"{name}: cuBLAS's status {status}")


def loaded_cublas(maps: Path = Path("/proc/self/maps")) -> ctypes.CDLL:
    """Return the cuBLAS that CuPy has loaded into this process.

    Parameters
    ----------
    maps
        The memory map of the process.

    Raises
    ------
    RuntimeError
        It is not found.
    """
    lines = maps.read_text("utf-8", "replace").splitlines() if maps.exists() else []
    fields = (line.split(maxsplit=5) for line in lines)
    names = sorted({place[5] for place in fields if len(place) == 6 and "/libcublas.so" in place[5]})
    if len(names) != 1:
        raise RuntimeError(f"graphs: expected one libcublas.so in {maps}; got {names or 'none'}: use graphs=False")
    return ctypes.CDLL(names[0])
