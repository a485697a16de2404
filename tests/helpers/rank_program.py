"""The program that ranks run in the tests: ``python rank_program.py FOLDER SETTINGS``, settings in JSON.

``name`` is the engine, MPI by default. Each case of ``cases`` is trained; its parameters go to FOLDER as CASE-RANK.npz.
``fault`` is [kind, rank, step]: what this rank does in this step of the first case.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lstmcore.distributed import get_engine
from lstmcore.training import Adam
from rank_cases import fit_case


class FaultyAdam(Adam):
    """Adam with one fault before a step."""

    def __init__(self, kind: str, at: int) -> None:
        super().__init__(0.02)
        self.kind, self.at = kind, at

    def step(self, parameters: Any, gradients: Any) -> Any:
        if self.steps == self.at:
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.kind == "hang":
                time.sleep(3600)
            else:
                raise MemoryError("no room for a step")
        return super().step(parameters, gradients)


def main(folder: Path, cases: list[str], fault: list[Any] | None = None, name: str = "mpi", **settings: Any) -> None:
    engine = get_engine(name)
    for case in cases:
        if fault is not None and fault[1] == engine.rank:
            settings["optimizer"] = FaultyAdam(fault[0], fault[2])
        parameters, history = fit_case(case, engine, **settings)
        np.savez(folder / f"{case}-{engine.rank}.npz", **parameters)
        if engine.rank == 0:
            print(json.dumps({case: history.stopped}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
