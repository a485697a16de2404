"""Every kernel compiles for the supported GPUs, also on a machine without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest

import lstmcore_cupy
from lstmcore import registry
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import PRECISIONS
from lstmcore_conformance.cases.switches import SWITCHES, config_of
from lstmcore_cupy.cuda_device import STATIC_BYTES
from lstmcore_cupy.nvrtc import OPTIONS, cached_cubin, compile_cubin
from lstmcore_cupy.program_source import (
    fields,
    mask_program,
    product_program,
    program,
    rows_program,
    update_program,
)

ARCHITECTURES = (80, 90)
#: Registers of a thread at most. A multiprocessor has 65536, so it holds two blocks of 256 threads, or 2.5.
REGISTERS = {"float64": 128, "float32": 102, "bfloat16": 102, "float16": 102}
#: The same for the persistent kernels. Their shared memory lets a multiprocessor hold one block.
PERSISTENT_REGISTERS = {"float64": 168, "float32": 128, "bfloat16": 128, "float16": 128}
_KERNEL = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_SHARED = re.compile(r"(\d+) bytes smem")
_REGISTERS = re.compile(r"Used (\d+) registers")


def _programs() -> dict[str, tuple[str, str]]:
    """Return program text -> its storage format, and the name of its first configuration."""
    programs: dict[str, tuple[str, str]] = {}
    for storage in REGISTERS:
        programs[rows_program(PRECISIONS[storage])] = (storage, "rows")
        for name, changes in SWITCHES.items():
            programs.setdefault(program(config_of(changes), PRECISIONS[storage]), (storage, name))
    for storage in ("float64", "float32"):
        programs[mask_program(storage)] = (storage, "masks")
        programs[update_program(storage)] = (storage, "updates")
        for form in ("bfloat16", "float16", "int8"):
            programs[product_program(PRECISIONS[storage].with_weights(form))] = (storage, form)
    return programs


PROGRAMS = _programs()
#: Programs that are compiled in each format, also if the slow tests are left out.
ALWAYS = ("rows", "masks", "updates", "plain", "everything")


def _quick(storage: str, name: str) -> bool:
    """Return whether a program is not marked slow: one format of each switch, the formats in turn."""
    if name not in SWITCHES:
        return name in ALWAYS or storage == "float32"
    return name in ALWAYS or list(SWITCHES).index(name) % len(REGISTERS) == list(REGISTERS).index(storage)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id="-".join(names), marks=() if _quick(*names) else pytest.mark.slow)
        for text, names in PROGRAMS.items()
    ],
)
def test_every_kernel_compiles_without_spills(text: str) -> None:
    """Every kernel compiles within its registers and without spills."""
    storage, _ = PROGRAMS[text]
    with ThreadPoolExecutor(len(ARCHITECTURES)) as pool:
        both = pool.map(lambda architecture: compile_cubin(text, architecture, "--ptxas-options=-v"), ARCHITECTURES)
        for architecture, (code, log) in zip(ARCHITECTURES, both, strict=True):
            assert code.startswith(b"\x7fELF")
            kernels = _KERNEL.findall(log)
            assert {"forward_cell", "sum_rows", "multiply_rows", "draw_mask", "adam"} & set(kernels)
            registers = [int(number) for number in _REGISTERS.findall(log)]
            assert len(registers) == len(kernels) == len(_SPILLS.findall(log))
            for kernel, used in zip(kernels, registers, strict=True):
                limit = PERSISTENT_REGISTERS if "persistent" in kernel else REGISTERS
                assert used <= limit[storage], (architecture, kernel)
            assert ("backward_persistent" in kernels) == ("forward_persistent" in kernels)
            assert all(int(size) <= STATIC_BYTES for size in _SHARED.findall(log))
            spills = [numbers for numbers in _SPILLS.findall(log) if numbers != ("0", "0", "0")]
            assert not spills, architecture


@pytest.mark.parametrize(
    "name", ["plain", "layer_norm", "everything", "everything_coupled", "hidden_activation=softplus"]
)
def test_what_computes_in_float32_has_no_step_in_float64(name: str) -> None:
    from cupy.cuda.compiler import _NVRTCProgram

    for storage, there in (("float32", False), ("bfloat16", False), ("float64", True)):
        made = _NVRTCProgram(program(config_of(SWITCHES[name]), PRECISIONS[storage]), method="ptx")
        assembly, _ = made.compile((*OPTIONS, "-arch=compute_80"))
        text = assembly if isinstance(assembly, str) else assembly.decode()
        assert (".f64" in text) == there


def _assembly(storage: str, name: str) -> str:
    """Return the PTX of a kernel of the plain LSTM."""
    from cupy.cuda.compiler import _NVRTCProgram

    made = _NVRTCProgram(program(config_of(SWITCHES["plain"]), PRECISIONS[storage]), method="ptx")
    assembly, _ = made.compile((*OPTIONS, "-arch=compute_80"))
    text = assembly if isinstance(assembly, str) else assembly.decode()
    (body,) = re.findall(rf"\.entry {name}\(.*?^}}", text, re.DOTALL | re.MULTILINE)
    return str(body)


@pytest.mark.parametrize("name", ["forward_persistent", "backward_persistent"])
@pytest.mark.parametrize(("storage", "flight"), [("float64", 8), ("float32", 16), ("bfloat16", 16)])
def test_a_thread_asks_for_many_numbers_at_once(storage: str, flight: int, name: str) -> None:
    """A tile's loads come before its stores: one at a time, each would wait for the memory."""
    words = re.findall(r"ld\.global\.cg|st\.shared|bar\.sync", _assembly(storage, name))
    runs = [len(list(run)) for word, run in groupby(words) if word == "ld.global.cg"]
    assert runs and min(runs) == flight


def test_one_thread_of_a_block_orders_its_memory() -> None:
    """The barrier of the grid has no fence in every thread, which waits for the whole memory."""
    for name in ("forward_persistent", "backward_persistent"):
        text = _assembly("float32", name)
        assert text.count("red.release.gpu.global.add.u64") == 1
        assert text.count("ld.acquire.gpu.global.s64") == 2
        assert "membar.gl" not in text and "fence" not in text
        assert text.count("membar.sys") == 1  # of a launch that gives up


def test_products_of_a_step_are_rounded_by_themselves() -> None:
    """The host has no step that joins a product and a sum; only the sums of squares may."""
    from cupy.cuda.compiler import _NVRTCProgram

    made = _NVRTCProgram(update_program("float32"), method="ptx")
    assembly, _ = made.compile((*OPTIONS, "-arch=compute_80"))
    text = assembly if isinstance(assembly, str) else assembly.decode()
    assert "mul.rn.f32" in text and "div.rn.f32" in text and "sqrt.rn.f32" in text
    assert "fma.rn.f32" not in text and ".ftz" not in text and ".approx" not in text


def test_a_number_makes_no_program_of_its_own() -> None:
    one, two = (config_of({"cell_clip": bound, "zoneout_cell": bound, "layer_norm": True}) for bound in (0.25, 0.75))
    assert program(one, PRECISIONS["float32"]) == program(two, PRECISIONS["float32"])
    assert program(one, PRECISIONS["float32"]) == program(one, PRECISIONS["tf32"])


def test_fields_are_read_from_the_struct() -> None:
    assert list(fields("Call"))[:3] == ["s", "T", "N"]
    assert fields("Call")["t_y"] == len(fields("Call")) - 1
    with pytest.raises(ValueError, match="struct: expected one of the sources; got 'Cal'"):
        fields("Cal")


def test_a_mistake_in_a_source_is_told_with_its_line() -> None:
    from cupy.cuda.compiler import CompileException

    wrong = rows_program(PRECISIONS["float32"]).replace("real sum = 0;", "real sum = nothing;")
    with pytest.raises(CompileException, match=r'rows\.cu\(\d+\): error: identifier "nothing" is undefined'):
        compile_cubin(wrong, 90)


def test_machine_code_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = rows_program(PRECISIONS["float32"])
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kept"))
    first = cached_cubin(text, 90)
    (file,) = (tmp_path / "kept").iterdir()
    assert file.read_bytes() == first
    monkeypatch.setattr("lstmcore_cupy.nvrtc.compile_cubin", lambda *arguments: pytest.fail("compiled again"))
    assert cached_cubin(text, 90) == first
    monkeypatch.undo()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file"))
    assert cached_cubin(text, 90) == first
    file.unlink()
    file.mkdir()  # it cannot be read
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kept"))
    assert cached_cubin(text, 90) == first
    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.setattr(os.path, "expanduser", lambda text: text.replace("~", str(tmp_path / "home")))
    monkeypatch.setattr(Path, "home", lambda: pytest.fail("raises without a home folder"))
    assert cached_cubin(text, 90) == first
    assert list((tmp_path / "home" / ".cupy" / "kernel_cache").iterdir())


def test_without_a_gpu_it_is_listed_with_the_reason() -> None:
    """Without a GPU the backend is listed with the reason, and auto takes another one."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LSTMCORE_")}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    code = "import lstmcore, json; from lstmcore.cli import main; main(['backends'])"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "cupy: CuPy finds no usable NVIDIA GPU: " in run.stdout
    code = "import lstmcore; print(lstmcore.LSTM(2, 3).backend.name)"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout in ("numba\n", "numpy\n")


def test_a_gpu_that_is_too_old_is_passed_over_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 1)
    for capability, reason in (("75", "GPU 0 is of sm_75; sm_80 or newer is needed"), ("80", None), ("120", None)):
        made = SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(cupy.cuda, "Device", lambda number, made=made: made)
        assert lstmcore_cupy._unavailable() == reason


def test_auto_takes_it_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from emulation import EmulatedDevice

    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr("lstmcore_cupy._unavailable", lambda: None)
    monkeypatch.setattr("lstmcore_cupy.cuda_device.cuda_device", lambda number: EmulatedDevice())
    stack = StackConfig.make(LSTMConfig(input_size=2, hidden_size=3))
    assert registry.select(stack, PRECISIONS["float32"], "auto").backend.name == "cupy"
