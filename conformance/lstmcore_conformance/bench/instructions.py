"""Instructions of a fixed set of small cases, counted by callgrind: a slower kernel shows on a noisy machine too.

``python -m lstmcore_conformance.bench.instructions`` compares with the stored baseline, ``--update`` makes a new
one. Valgrind shows every x86-64 machine with AVX2 the same processor, so that the counts are of the same code there.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from lstmcore.files import write_atomically
from lstmcore.registry import get_backend
from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.bench.machine import versions
from lstmcore_conformance.bench.worker_client import environment

CASES: Final[Mapping[str, Job]] = {
    "step, 1 row": Job("streaming", Point(1, 1, 32, 32)),
    "inference, 1 row": Job("inference", Point(20, 1, 32, 32)),
    "inference, 16 rows": Job("inference", Point(10, 16, 32, 64)),
    "training, 1 row": Job("training", Point(20, 1, 32, 32)),
    "training, 16 rows": Job("training", Point(10, 16, 32, 64)),
    "training, peephole": Job("training", Point(10, 4, 32, 64), variant="peephole"),
    "training, layer norm": Job("training", Point(10, 4, 32, 64), variant="layer_norm"),
}

#: Calls that are counted, and the name of the case that does nothing: what counting itself takes.
CALLS: Final = 5
NOTHING: Final = "nothing"
#: More instructions than this over the baseline fail, as a share of it.
MORE: Final = 0.02
#: Bytes by which the environment of each further count is longer. The interpreter's caches are indexed by address, so
#: that counts of the same code differ with where memory lies: by up to 2.2 % in nine runs. The least of them is judged.
PADDINGS: Final = (0, 2_000, 4_000)
#: A count below this share of the baseline's is told: with so old a baseline much has to go wrong before it fails.
FEWER: Final = 0.98
#: What code is made for by Numba: a processor with AVX2, as which valgrind shows itself.
CHIP: Final[Mapping[str, str]] = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2",
}
BASELINE: Final = Path(__file__).with_name("instructions.json")


def least(backend: str, baseline: Mapping[str, int]) -> dict[str, int]:
    """Case -> the least of up to three counts, which differ in where memory lies; no more where none is too many."""
    found: dict[str, int] = {}
    for padding in PADDINGS:
        counts = count(backend, padding)
        found = {case: min(number, found.get(case, number)) for case, number in counts.items()}
        if not more(found, baseline):
            break
    return found


def count(backend: str, padding: int = 0) -> dict[str, int]:
    """Case -> instructions of one call, everything that the call runs counted.

    The environment is longer by ``padding`` bytes.

    Raises
    ------
    FileNotFoundError
        Valgrind is not installed.
    RuntimeError
        The run failed, or valgrind counted nothing.
    """
    with tempfile.TemporaryDirectory(prefix="lstmcore-count-") as folder:
        words = [_valgrind(), "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        env = dict(os.environ) | environment(1) | dict(CHIP) | {"PYTHONHASHSEED": "0", "NUMBA_CACHE_DIR": folder}
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PADDING": "x" * padding}
        run = [sys.executable, "-m", "lstmcore_conformance.bench.counted", backend]
        for before in ([], words):  # first as it is: what it compiles and keeps would take minutes under valgrind
            done = subprocess.run([*before, *run], env=env, capture_output=True, text=True, check=False)  # noqa: S603  (our own words)
            if done.returncode:
                raise RuntimeError(f"{backend}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        found = dict(_read(path.read_text()) for path in Path(folder).glob("out.*"))
    counts = {case: (found[case] - found.get(NOTHING, 0)) // CALLS for case in CASES if found.get(case)}
    if missing := sorted(set(CASES) - set(counts)):
        raise RuntimeError(f"{backend}: callgrind counted nothing for {', '.join(missing)}")
    return counts


def _read(text: str) -> tuple[str, int]:
    """Return the case and the count of one of callgrind's files."""
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
    return (name[1] if name else "", int(total[1]) if total else 0)


def described(backend: str) -> dict[str, str]:
    """Return the versions that a baseline holds for: others run other code."""
    words = [_valgrind(), "--version"]
    valgrind = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603  (our own words)
    python = ".".join(platform.python_version_tuple()[:2])
    known = {"machine": platform.machine(), "python": python, "valgrind": valgrind.stdout.strip()}
    return known | versions(("numpy",)) | get_backend(backend).versions()


def _valgrind() -> str:
    found = shutil.which("valgrind")
    if found is None:
        raise FileNotFoundError("valgrind: expected it on the path; install it with: apt-get install valgrind")
    return found


def more(counts: Mapping[str, int], baseline: Mapping[str, int]) -> dict[str, float]:
    """Case -> count over the baseline's, of those that are too many or that the baseline does not have."""
    found = {case: number / baseline[case] if case in baseline else float("inf") for case, number in counts.items()}
    return {case: ratio for case, ratio in found.items() if ratio > 1 + MORE}


@click.command()
@click.argument("backends", nargs=-1)
@click.option("--update", is_flag=True, help="Make the counts the baseline.")
@click.option("--where-it-holds", is_flag=True, help="Tell, and do not fail, where the baseline is of other versions.")
def main(backends: tuple[str, ...], update: bool, where_it_holds: bool) -> None:
    """Count instructions of BACKENDS (those of the baseline, where none is named) and compare them with the baseline.

    The exit code is 0 if none needs over 2 % more than in the baseline, 1 if one does, and 2 if there is
    nothing to compare with: no valgrind, no baseline, or (without --where-it-holds) one of other versions.
    """
    baseline: dict[str, Any] = json.loads(BASELINE.read_text("utf-8")) if BASELINE.exists() else {}
    slow = False
    try:
        for name in backends or tuple(baseline):
            known, own = baseline.get(name, {}), described(name)
            if known.get("for") != own and not update:
                other = f"{name}: expected a baseline of {own}; got {known.get('for')}: --update makes one"
                if not where_it_holds or not known:
                    raise ValueError(other)
                click.echo(f"NOT CHECKED: {other}", err=True)
                continue
            before = known.get("counts", {})
            counts = least(name, {} if update else before)
            slow |= bool(too_many := more(counts, before)) and not update
            for case, number in counts.items():
                change = f"{number / before[case] - 1:+.1%}" if case in before else "new"
                told = ""
                if case in too_many:
                    told = "  TOO MANY"
                elif number < FEWER * before[case]:
                    told = "  fewer: --update"
                click.echo(f"{name:12} {case:24} {number:>12,} {change:>8}{'' if update else told}")
            baseline[name] = {"for": own, "counts": counts}
    except (ValueError, OSError, RuntimeError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    if update:
        write_atomically(BASELINE, (json.dumps(baseline, indent=1) + "\n").encode())
    elif slow:
        sys.exit(1)


if __name__ == "__main__":
    main()
