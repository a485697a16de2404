"""Run nox sessions side by side and print a table of them.

``python .ci/sessions.py ci`` runs what has to pass before a change lands; ``full`` in its place runs every session.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from results import SLOWEST, Result, closing_line, processors, replace_file, session_table, write_tables
from runner import FOLDER, ROOT, Runner, Session


def conformance(backend: str, name: str = "", *arguments: str, **environment: str) -> Session:
    """The conformance suite on a backend."""
    return Session(name or f"conformance {backend}", f"conformance(backend='{backend}')", arguments, environment)


#: XLA compiles four times as fast with these flags, and all but the extremes keeps its budget: docs/peers-jax.md.
FAST_XLA: Final = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

#: What pytest is asked for, so that the slowest tests are known.
TIMED: Final = (f"--durations={SLOWEST}",)

#: What has to pass before a change lands. The longest come first, so that no long one is left over at the end.
CI: Final = (
    Session("tests", arguments=TIMED, every_processor=True),
    Session("cupy", arguments=(*TIMED, "-m", "not slow"), every_processor=True),
    conformance("numba"),
    Session("build", installs_last=True),
    conformance("numpy"),
    conformance("reference"),
    Session("typecheck"),
    Session("plugin"),
    Session("bench-instructions", arguments=("--where-it-holds",), needs=("valgrind",)),
    Session("lint"),
)

#: Every session that judges. `cupy` is whole here.
FULL: Final = (
    *(session for session in CI if session.name != "cupy"),
    Session("cupy", arguments=TIMED, every_processor=True),
    Session("mutants", every_processor=True),
    Session("numba", arguments=TIMED),
    Session("peers", arguments=TIMED),
    conformance("jax", "conformance jax", "-k", "not backward.extremes", XLA_FLAGS=FAST_XLA),
    conformance("torch"),
    Session("slow", arguments=TIMED, every_processor=True),
    conformance("jax", "conformance jax, extremes", "-k", "backward.extremes"),
    Session("quickstart"),
    conformance("onnxruntime"),
    Session("report", needs=("chromium",)),
)

PLANS: Final = {"ci": CI, "full": FULL}


def tree() -> str:
    """Return what tells this tree from others: the commit, and a digest of what is changed since."""
    commit, changes = _git("rev-parse", "HEAD").strip(), _git("diff", "HEAD")
    for name in _git("ls-files", "-z", "--others", "--exclude-standard").split("\0")[:-1]:
        changes += name + hashlib.sha256((ROOT / name).read_bytes()).hexdigest()
    return commit + (f"+{hashlib.sha256(changes.encode()).hexdigest()[:12]}" if changes else "")


def _git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True).stdout


def load(file: Path, of: str) -> dict[str, Result]:
    """Return the results in the file by session, none where they are not of the tree `of`."""
    if not file.exists():
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    results = [Result(**fields) for fields in kept["results"]] if kept["tree"] == of else []
    return {result.name: result for result in results}


def save(file: Path, of: str, results: Iterable[Result]) -> None:
    """Write the results of the tree `of`."""
    replace_file(file, json.dumps({"tree": of, "results": [asdict(result) for result in results]}, indent=1) + "\n")


def _chosen(plan: Sequence[Session], names: Sequence[str]) -> list[Session]:
    known = {session.name: session for session in plan}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"sessions: expected some of {', '.join(known)}; got {', '.join(unknown)}")
    return [known[name] for name in names] or list(plan)


def main(words: Sequence[str] | None = None) -> int:
    """Run a plan, print what each session gave, and return 0 where none failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("sessions", nargs="*", help="only these of the plan")
    parser.add_argument("--resume", action="store_true", help="leave out what has passed on this very tree")
    parser.add_argument("--times", metavar="FILE", help="write the tables of times into this Markdown file")
    options = parser.parse_intermixed_args(words)
    plan = _chosen(PLANS[options.plan], options.sessions)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file, here, started = FOLDER / f"{options.plan}.json", tree(), time.monotonic()
    known = load(file, here)
    todo = [session for session in plan if not (options.resume and session.name in known and known[session.name].good)]
    for result in Runner(processors(), sys.stdout).run(todo):
        known[result.name] = result
        save(file, here, known.values())
    results = [known[session.name] for session in plan]
    if options.times:
        write_tables(Path(options.times), results)
    took = f"{time.monotonic() - started:.0f} s in all; logs are in {FOLDER.relative_to(ROOT)}"
    print("", session_table(results), took, sep="\n\n")
    print("", *(result.line for result in results), closing_line(results), sep="\n", flush=True)
    return 1 if any(result.outcome == "failed" for result in results) else 0


if __name__ == "__main__":
    if importlib.util.find_spec("nox") is None:
        raise SystemExit(f"{sys.executable} has no nox; install it with: pip install nox uv")
    sys.exit(main())
