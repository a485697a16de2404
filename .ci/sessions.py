"""Run nox sessions side by side and print a table of them.

``python .ci/sessions.py ci`` runs what has to pass before a change lands; ``full`` in its place runs every session.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pythons import NEWER
from session_results import (
    SLOWEST,
    Result,
    check_marks,
    closing_line,
    processors,
    replace_file,
    session_table,
    write_tables,
)
from session_runner import FOLDER, ROOT, Runner, Session


def conformance(backend: str, name: str = "", *arguments: str, **environment: str) -> Session:
    """Return the session that runs the conformance suite on a backend."""
    return Session(name or f"conformance {backend}", f"conformance(backend='{backend}')", arguments, environment)


#: XLA compiles four times as fast with these flags, and all but the extremes keeps its budget: docs/peers-jax.md.
FAST_XLA: Final = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

#: What pytest is asked for, so that the slowest tests are known.
TIMED: Final = (f"--durations={SLOWEST}",)

#: Compiling takes most of the Numba backend's time; `FULL` has float16, whose code is nearly bfloat16's, and float64.
NARROW: Final = tuple(word for name in ("float32", "bfloat16") for word in ("--precision", name))

#: Debian has them in qemu-user, gcc, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
EMULATION: Final = ("qemu-x86_64", "qemu-aarch64", "x86_64-linux-gnu-gcc", "aarch64-linux-gnu-gcc")

#: What has to pass before a change lands. The longest come first, so that no long one is left over at the end.
CI: Final = (
    Session("tests", arguments=TIMED, every_processor=True),
    Session("cupy", arguments=(*TIMED, "-m", "not slow"), every_processor=True, needs=("g++",)),
    conformance("numba", "", *NARROW),
    Session("build", installs_last=True),
    conformance("numpy"),
    conformance("reference"),
    Session("numba code", "numba", ("-k", "numba_tiles or numba_thread_pool")),
    Session("typecheck"),
    Session("plugin"),
    Session("bench-instructions", arguments=("--where-it-holds",), needs=("valgrind",)),
    Session("lint"),
)

#: Every session that judges, whole.
FULL: Final = (
    *(session for session in CI if session.name not in ("cupy", "conformance numba", "numba code")),
    conformance("numba"),
    Session("cupy", arguments=TIMED, every_processor=True, needs=("g++",)),
    Session("mutants", every_processor=True),
    Session("numba", arguments=TIMED, every_processor=True),
    Session("emulated", arguments=TIMED, needs=EMULATION),
    Session("peers", arguments=TIMED),
    Session("formats", arguments=TIMED),
    Session("examples"),
    Session("estimators", arguments=TIMED, every_processor=True),
    Session("models", arguments=TIMED),
    conformance("jax", "conformance jax", "-k", "not backward.extremes", XLA_FLAGS=FAST_XLA),
    conformance("torch"),
    Session("slow", arguments=TIMED, every_processor=True),
    conformance("jax", "conformance jax, extremes", "-k", "backward.extremes", "--json", str(FOLDER / "extremes.json")),
    Session("faults", arguments=("--kills", "200", *TIMED), every_processor=True),
    Session("mpi", arguments=TIMED, every_processor=True),
    Session("fuzz", arguments=("--minutes", "2"), every_processor=True),
    Session("quickstart", environment={"NOX_DEFAULT_VENV_BACKEND": "virtualenv"}),  # by pip, as without uv
    conformance("onnxruntime"),
    conformance("openvino"),
    conformance("openvino-onnx"),
    conformance("torch-int8"),
    conformance("onnxruntime-int8"),
    Session("oldest", arguments=TIMED, every_processor=True, needs=("uv",)),
    Session("oldest-backends", needs=("uv",)),
    Session("newest-python", arguments=TIMED, every_processor=True, needs=("|".join(NEWER),)),
    Session("docs", arguments=TIMED, needs=("cc",)),
    Session("forecasts"),
    Session("report", needs=("chromium|chromium-browser|google-chrome",)),
)

PLANS: Final = {"ci": CI, "full": FULL}


def tree() -> str | None:
    """Return what tells this tree from others: the commit, and a digest of what is changed since; None without git."""
    try:
        commit = _git("rev-parse", "HEAD").decode().strip()
        changes = hashlib.sha256(_git("diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD"))
        names = _git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return None
    for name in names:
        file = ROOT / os.fsdecode(name)
        changes.update(name + (hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b""))
    return f"{commit}+{changes.hexdigest()[:12]}"


def _git(*words: str) -> bytes:
    return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, check=True).stdout


def load(file: Path, of: str | None) -> dict[str, Result]:
    """Return the results in the file by session, none where they are not of the tree `of`."""
    if of is None or not file.exists():
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    results = [Result(**fields) for fields in kept["results"]] if kept["tree"] == of else []
    return {result.name: result for result in results}


def save(file: Path, of: str | None, results: Iterable[Result]) -> None:
    """Write the results of the tree `of`; those of a tree that has changed meanwhile are of none."""
    kept = {"tree": of if tree() == of else None, "results": [asdict(result) for result in results]}
    replace_file(file, json.dumps(kept, indent=1) + "\n")


def _chosen(plan: Sequence[Session], names: Sequence[str]) -> list[Session]:
    known = {session.name: session for session in plan}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"sessions: expected some of {', '.join(known)}; got {', '.join(unknown)}")
    return [known[name] for name in names] or list(plan)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("sessions", nargs="*", help="only these of the plan")
    parser.add_argument("--resume", action="store_true", help="leave out what has passed on this very tree")
    parser.add_argument("--times", type=Path, metavar="FILE", help="write the tables of times into this Markdown file")
    return parser.parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run a plan, print what each session gave, and return 0 where none failed."""
    options = _options(words)
    plan = _chosen(PLANS[options.plan], options.sessions)
    if options.times:
        check_marks(options.times)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file, here, started = FOLDER / f"{options.plan}.json", tree(), time.monotonic()
    if options.resume and here is None:
        raise SystemExit(
            "--resume: expected a git checkout, by which the tree is known; git does not say: leave it out"
        )
    known = load(file, here)
    todo = [
        session for session in plan if not (options.resume and session.name in known and known[session.name].complete)
    ]
    for session in todo:
        known.pop(session.name, None)
    for result in Runner(processors(), sys.stdout).run(todo):
        known[result.name] = result
        save(file, here, known.values())
    results = [known[session.name] for session in plan]
    took = f"{time.monotonic() - started:.0f} s in all; logs are in {FOLDER.relative_to(ROOT)}"
    print("", session_table(results), took, sep="\n\n")
    print("", *(result.line for result in results), closing_line(results), sep="\n", flush=True)
    if options.times:
        write_tables(options.times, results)
    return 1 if any(result.outcome == "failed" for result in results) else 0


if __name__ == "__main__":
    if importlib.util.find_spec("nox") is None:
        raise SystemExit(f"{sys.executable} has no nox; install it with: pip install nox uv")
    sys.exit(main())
