"""What the computer is and how busy it is."""

from __future__ import annotations

import filecmp
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

import lstmcore

#: Features of processors that LSTM kernels use, as Linux and NumPy name them.
FEATURES: Final = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "sve", "bf16", "i8mm",
)  # fmt: skip

#: How the variables begin that change what the runtimes do.
HEEDED: Final = (
    "LSTMCORE_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "BLIS_", "NUMBA_", "NPY_", "ONEDNN_", "DNNL_", "ATEN_",
    "TORCH_", "PYTORCH_", "ORT_", "JAX_", "XLA_", "CUDA_", "CUPY_", "CUBLAS_", "NVIDIA_", "MALLOC_", "GLIBC_", "LD_",
)  # fmt: skip


def cores() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> float:
    """Seconds that all processors together have worked since the machine started."""
    import psutil  # of the extra bench: a GPU is timed without it

    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def load() -> float:
    """Return how many processes ran or waited to, on average of the last minute."""
    return float(os.getloadavg()[0])


def describe() -> dict[str, Any]:
    """Return what is known of the machine, for the report."""
    import psutil  # as above

    known = _cpuinfo()
    flags = set(known.get("flags", known.get("Features", "")).split())
    clock = psutil.cpu_freq()
    return {
        "processor": known.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": cores(),
        "features": [name for name in FEATURES if name in flags],
        "caches": _caches(),
        "clock_mhz": None if clock is None else round(clock.current),
        "memory_bytes": psutil.virtual_memory().total,
        "load": load(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def blas() -> str:
    """Return the library of NumPy's products and its version."""
    found: Any = np.show_config(mode="dicts")
    known = found.get("Build Dependencies", {}).get("blas", {})
    return f"{known.get('name', 'unknown')} {known.get('version', '')}".strip()


def environment(besides: Iterable[str]) -> dict[str, str]:
    """Return the set variables that change what runtimes do, without paths and those of `besides`."""
    left_out = set(besides)
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(HEEDED) and name not in left_out and os.sep not in value
    }


def commit() -> str | None:
    """Return the commit of this code, with ``.changed`` if files differ from it; None outside a repository.

    An installed copy has the commit of the repository that it came from if it is still the same code.
    """
    own = Path(lstmcore.__file__).parent.parent
    source, git = _source(own), shutil.which("git")
    if source is None or git is None or not (source / ".git").exists():
        return None
    parts = ["lstmcore", "backends", "conformance"]
    if source != own and not all(_same(source / part, own / part.name) for part in _packages(source)):
        return None
    told = []
    for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", *parts]):
        done = subprocess.run([git, "-C", source, *words], capture_output=True, text=True, check=False)  # noqa: S603  (our own words)
        if done.returncode:
            return None
        told.append(done.stdout.strip())
    name, changed = told
    return f"{name}.changed" if changed else name


def _source(own: Path) -> Path | None:
    """Return the folder that this code was installed from, or is in."""
    if (own / "pyproject.toml").exists():
        return own
    try:
        text = distribution("lstmcore").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    parts = urlsplit(json.loads(text)["url"] if text else "")
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _packages(source: Path) -> list[Path]:
    """Return the packages of this distribution in its repository, as paths from there."""
    folders = (source, source / "backends", source / "conformance")
    return [
        path.parent.relative_to(source) for folder in folders for path in sorted(folder.glob("lstmcore*/__init__.py"))
    ]


def _same(there: Path, here: Path) -> bool:
    """Whether two packages have the same code."""
    files = [path.relative_to(there) for path in there.rglob("*.py")]
    return here.is_dir() and not any(filecmp.cmpfiles(there, here, map(str, files), shallow=False)[1:])


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _caches() -> dict[str, str]:
    """Level and kind -> size, of the first processor."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found
