"""From nothing to the first result: a user's script in new processes, with empty caches and with full ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from lstmcore_conformance.bench.jobs import Job, Point
from lstmcore_conformance.bench.judging import expectation, judge
from lstmcore_conformance.bench.worker_client import Candidate, environment
from lstmcore_conformance.cases.case import Data
from lstmcore_conformance.suite.backend_under_test import Failure

#: What the scripts compute, and how often with full caches; the median counts.
JOB: Final = Job("inference", Point(50, 16, 64, 128))
WARM: Final = 3
LIMIT: Final = 300.0

#: Where each library keeps what it compiled.
_CACHES: Final = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")


@dataclass(frozen=True, slots=True)
class Start:
    """How a runtime starts, in seconds since the interpreter runs.

    Attributes
    ----------
    import_s
        Until everything is imported, with full caches.
    cold_s, warm_s
        Until the first result, with empty caches and with full ones; the system has the files in memory both times.
    installed_bytes
        What the distributions that were imported take on disk, NumPy among them.
    message
        Why there are no times.
    """

    candidate: Candidate
    import_s: float | None = None
    cold_s: float | None = None
    warm_s: float | None = None
    installed_bytes: int | None = None
    message: str = ""


def start(candidate: Candidate) -> Start:
    """Run the script of the runtime; its result has to be right."""
    nothing, expected = Start(candidate), {"y": expectation(JOB)["y"]}
    if candidate.name not in SCRIPTS and candidate.kind == "peer":
        return replace(nothing, message="it has nothing to start")
    with tempfile.TemporaryDirectory(prefix="lstmcore-start-") as name:
        folder = Path(name)
        script = SCRIPTS[candidate.name] if candidate.kind == "peer" else BACKEND
        data = write_arrays(folder, JOB)
        if candidate.kind == "peer" and candidate.name == "onnxruntime":
            model = import_module("lstmcore_conformance.bench.runtimes.onnx_runtime").model(JOB, data)
            (folder / "model.onnx").write_bytes(model.SerializeToString())
        runs: list[Mapping[str, Any]] = []
        for _ in range(1 + WARM):
            try:
                runs.append(run_script(candidate, folder, script, _AFTER))
                with np.load(folder / "made.npz") as made:
                    judge(dict(made), expected)
            except Failure as error:
                return replace(nothing, message=f"does not conform: {error}")
            except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
                return replace(nothing, message=" ".join(str(error).split()))
    cold, *warm = runs
    return Start(
        candidate,
        import_s=float(np.median([one["import_s"] for one in warm])),
        cold_s=cold["first_s"],
        warm_s=float(np.median([one["first_s"] for one in warm])),
        installed_bytes=cold["installed_bytes"],
    )


def write_arrays(folder: Path, job: Job) -> Data:
    """Write data.npz, the arrays that the script of a job reads; return all data of the job."""
    data = job.case.data
    if data.state is None or data.dy is None or data.dstate is None:
        raise ValueError("data: expected a state, dy and dstate; got a case without one of them")
    arrays: dict[str, Any] = {"x": data.x, "h": data.state.h[None], "c": data.state.c[None], **data.parameters}
    if job.call == "training":
        arrays |= {"dy": data.dy, "dh": data.dstate.h[None], "dc": data.dstate.c[None]}
    np.savez(folder / "data.npz", **arrays)
    return data


def run_script(candidate: Candidate, folder: Path, script: str, after: str) -> Mapping[str, Any]:
    """Run a script and what comes after it in a new process, which keeps compiled code below the folder.

    Returns
    -------
    Mapping[str, Any]
        What the script printed last, as JSON.

    Raises
    ------
    RuntimeError
        The script failed; the message is its error.
    subprocess.TimeoutExpired
        It took longer than `LIMIT`.
    """
    env = dict(os.environ) | environment(candidate.threads) | {name: str(folder / name) for name in _CACHES}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    (folder / "start.py").write_text(_BEFORE + script + after, "utf-8")
    done = subprocess.run(  # noqa: S603  (this interpreter and a script from here)
        [sys.executable, "start.py", candidate.name],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise RuntimeError(told[-1] if told else f"exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


_BEFORE: Final = """
import time
start, started = time.perf_counter(), time.process_time()
import sys
import numpy as np
"""

BACKEND: Final = """
from lstmcore import LSTM
imported = time.perf_counter()
with np.load("data.npz") as data:
    given = dict(data)
x, h, c = (given.pop(name) for name in "xhc")
lstm = LSTM(x.shape[2], h.shape[2], backend=sys.argv[1], seed=0)
lstm.load_parameters({f"{name}_l0": array for name, array in given.items()})
y, _ = lstm(x, (h, c))
made = {"y": y}
"""

SCRIPTS: Final = {
    "torch": """
import torch
imported = time.perf_counter()
with np.load("data.npz") as data:
    given = {name: torch.from_numpy(data[name]) for name in data}
x, h, c = (given.pop(name) for name in "xhc")
lstm = torch.nn.LSTM(x.shape[2], h.shape[2])
with torch.inference_mode():
    for name, theirs in (("weight_x", "weight_ih_l0"), ("weight_h", "weight_hh_l0"), ("bias", "bias_ih_l0")):
        getattr(lstm, theirs).copy_(given[name])
    lstm.bias_hh_l0.zero_()
    made = {"y": lstm(x, (h, c))[0].numpy()}
""",
    "onnxruntime": """
import onnxruntime
imported = time.perf_counter()
with np.load("data.npz") as data:
    given = {"X": data["x"], "h": data["h"], "c": data["c"]}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
made = {"y": session.run(["Y"], given)[0][:, 0]}
""",
    "jax": """
import jax
import jax.numpy as jnp
imported = time.perf_counter()
with np.load("data.npz") as data:
    given = {name: jnp.asarray(data[name]) for name in data}

@jax.jit
def lstm(given):
    recurrent = given["weight_h"].T
    def step(state, z):
        h, c = state
        i, f, g, o = jnp.split(z + h @ recurrent, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h
    return jax.lax.scan(step, (given["h"][0], given["c"][0]), given["x"] @ given["weight_x"].T + given["bias"])[1]

made = {"y": np.asarray(lstm(given))}
""",
}

_AFTER: Final = """
first = time.perf_counter()
np.savez("made.npz", **made)
import json
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
names = packages_distributions()
found = {}
for top in {name.partition(".")[0] for name in sys.modules}:
    file = getattr(sys.modules.get(top), "__file__", None)
    for name in names.get(top, ()) if file else ():
        paths = {Path(distribution(name).locate_file(part)) for part in distribution(name).files or ()}
        if Path(file) not in paths:  # installed as a link to its sources
            paths |= set(Path(file).parent.rglob("*"))
        found.setdefault(name, set()).update(path for path in paths if path.is_file())
installed = sum(path.stat().st_size for path in set().union(*found.values()))
print(json.dumps({"import_s": imported - start, "first_s": first - start, "installed_bytes": installed}))
"""
