"""A GPU in one go: conformance in full, microbenchmarks, and the benchmark beside PyTorch's LSTM (cuDNN).

``python -m lstmcore_conformance.gpu --out FOLDER`` needs CuPy, NumPy, array-api-compat, pluggy and PyTorch alone;
docs/benchmarking.md says what it does. The engine is `lstmcore_conformance.bench`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lstmcore.files import write_atomically
from lstmcore_conformance.bench.device_run import STAGES, DeviceRun, commit
from lstmcore_conformance.bench.goals import lines
from lstmcore_conformance.bench.shards import make


def main(arguments: list[str] | None = None) -> int:
    """Run it; return 0 if all that ran conforms, 1 if something does not or failed, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m lstmcore_conformance.gpu",
        description="Conformance of the backend cupy on this GPU, and its speed beside PyTorch's LSTM (cuDNN).",
        epilog="Example: python -m lstmcore_conformance.gpu --out docs/gpu/h200 --minutes 8",
    )
    parser.add_argument("--out", default="gpu", metavar="FOLDER", help="where results.json goes (default: gpu)")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long it may take (default: 8)")
    parser.add_argument("--stage", action="append", choices=STAGES, help="only these; may be given again")
    parser.add_argument("--workers", type=int, default=None, help="processes of the conformance suite")
    parser.add_argument(
        "-k", dest="select", metavar="EXPRESSION", help="which cases of the suite; see lstmcore conform"
    )
    parser.add_argument("--commit", default=None, help="the commit of the code, where git cannot tell it")
    parser.add_argument(
        "--stand-in", action="store_true", help="try the run's logic on the processor; its times say nothing"
    )
    given = parser.parse_args(arguments)
    if given.minutes <= 0 or (given.workers is not None and given.workers < 1):
        parser.error("--minutes and --workers: expected more than 0")
    kind = "stand-in" if given.stand_in else "cuda"
    if not given.stand_in:
        from lstmcore_conformance.bench.cuda import missing

        if (reason := missing()) is not None:
            _say(f"no GPU: {reason}. Nothing was run; --stand-in tries the logic on the processor.")
            return 2
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    device_run = DeviceRun(make(kind), kind, folder, _say, given.commit or commit())
    workers = given.workers or max(1, min(8, (os.cpu_count() or 2) // 2))
    # What ends the run, the table and the last file, takes a moment too.
    values = device_run.run(given.stage or STAGES, 60 * given.minutes * 0.95, workers, given.select)
    text = "\n".join(lines(values))
    write_atomically(folder / "table.txt", f"{text}\n".encode())
    _say(text)
    return 0 if device_run.good else 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
