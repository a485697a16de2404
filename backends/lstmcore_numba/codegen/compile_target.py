"""The processor that code is compiled for: the host, or what Numba's environment variables name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import llvmlite.binding as llvm
from numba.core import codegen, config

#: Numba's type stubs are incomplete.
_CODEGEN: Final[Any] = codegen
_CONFIG: Final[Any] = config


@dataclass(frozen=True, slots=True)
class CompileTarget:
    """A processor in LLVM's terms.

    Attributes
    ----------
    triple
        Architecture and system, such as ``x86_64-unknown-linux-gnu``.
    cpu
        LLVM's name of the processor.
    features
        Comma-separated names, each after ``+`` or ``-``.
    """

    triple: str
    cpu: str
    features: str

    def has(self, *names: str) -> bool:
        """Return whether `features` enables all of `names`. Features that only `cpu` implies do not count."""
        return {f"+{name}" for name in names} <= set(self.features.split(","))

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector register: 64 with AVX-512, 32 with AVX2 and FMA, else 16."""
        return 64 if self.has("avx512f") else 32 if self.has("avx2", "fma") else 16

    @property
    def vector_registers(self) -> int:
        """Number of vector registers: 16 on x86 without AVX-512, else 32."""
        return 16 if self.triple.startswith(("x86_64", "i386", "i686")) and self.vector_bytes < 64 else 32

    def machine(self, *, jit: bool = True) -> llvm.TargetMachine:
        """Return a new target machine. An engine takes ownership of the one that it gets."""
        target = llvm.Target.from_triple(self.triple)
        return target.create_target_machine(cpu=self.cpu, features=self.features, opt=3, jit=jit)


def compile_target() -> CompileTarget:
    """Return the processor for which Numba compiles in this process.

    ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` name another processor than the host. Numba reads them when it is
    imported.
    """
    features = _CONFIG.CPU_FEATURES
    return CompileTarget(
        llvm.get_process_triple(),
        llvm.get_host_cpu_name() if _CONFIG.CPU_NAME is None else _CONFIG.CPU_NAME,
        _CODEGEN.get_host_cpu_features() if features is None else features,
    )
