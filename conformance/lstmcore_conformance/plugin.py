"""The pytest plug-in: the checks of the suite, and the points of the benchmark, as test items.

``pytest -p lstmcore_conformance.plugin --pyargs lstmcore_conformance --lstm-backend NAME`` runs the suite,
``pytest -p lstmcore_conformance.plugin --pyargs lstmcore_conformance.bench --lstm-backend NAME`` the benchmark, by
pytest-benchmark.

The command line (or a root ``conftest.py``) names it. It has no entry point, since pytest would then rewrite the
asserts of every module of this distribution, compiled kernels included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from lstmcore.extras import installing
from lstmcore.precision import get_precision
from lstmcore_conformance.suite.backend_under_test import EXAMPLES, SEED, SMOKE_EXAMPLES, BackendUnderTest, Draws
from lstmcore_conformance.suite.check import PROFILES
from lstmcore_conformance.suite.runner import items

pytest.register_assert_rewrite("lstmcore_conformance.test_suite", "lstmcore_conformance.bench.test_points")

_BENCH: Final = Path(__file__).parent / "bench"
_BENCH_NAME: Final = "lstmcore_conformance.bench"

_TESTED = pytest.StashKey[BackendUnderTest]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("lstmcore", "LSTM conformance")
    group.addoption("--lstm-backend", metavar="NAME", help="The backend to test.")
    group.addoption(
        "--lstm-precision",
        metavar="NAME",
        action="append",
        help="A precision to test; may be given again.  [default: all that the backend declares]",
    )
    group.addoption(
        "--lstm-profile",
        choices=PROFILES,
        default="quick",
        help="full also runs what takes long, smoke a few cases of each check.  [default: quick]",
    )
    for name, least, default, text in (
        ("--lstm-seed", 0, SEED, f"Seed of the cases that are drawn.  [default: {SEED}]"),
        (
            "--lstm-max-examples",
            1,
            None,
            f"Cases that a check draws.  [default: {EXAMPLES}; {SMOKE_EXAMPLES} in smoke]",
        ),
        ("--lstm-max-work", 1, None, "Skip cases with more multiply-adds.  [default: no limit]"),
    ):
        group.addoption(name, metavar="N", type=_whole(least), default=default, help=text)
    group.addoption(
        "--lstm-grid",
        choices=("quick", "standard", "full"),
        default="quick",
        help="Sizes of lstmcore_conformance.bench.  [default: quick]",
    )


def _whole(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers of at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}; got {text!r}")
        return int(text)

    return read


def pytest_configure(config: pytest.Config) -> None:
    """Find the backend. A named backend that does not exist is an error, never a skip."""
    name = config.getoption("lstm_backend")
    if name is None:
        return
    from lstmcore.registry import get_backend

    option = config.getoption
    draws = Draws.of(option("lstm_profile"), option("lstm_seed"), option("lstm_max_examples"))
    try:
        config.stash[_TESTED] = BackendUnderTest(get_backend(name), draws, option("lstm_max_work"))
    except (ImportError, LookupError, RuntimeError, ValueError) as error:
        raise pytest.UsageError(f"--lstm-backend: {error}") from error


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return a line that says what is tested."""
    tested = config.stash.get(_TESTED, None)
    if tested is None:
        return None
    declared, profile = tested.declared, config.getoption("lstm_profile")
    known = " (a few cases of each check: no verdict)" if profile == "smoke" else ""
    return (
        f"lstm backend: {tested.backend.name} on {declared.device}, {', '.join(sorted(declared.precisions))}; "
        f"profile {profile}{known}"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for every check and case, or for every point of the benchmark."""
    if not {"lstm_item", "lstm_job"} & set(metafunc.fixturenames):
        return
    tested = metafunc.config.stash.get(_TESTED, None)
    if tested is None:
        raise pytest.UsageError("--lstm-backend: expected the name of the backend to test, such as numpy; got none")
    if "lstm_job" in metafunc.fixturenames:
        _generate_jobs(metafunc, tested)
        return
    option = metafunc.config.getoption
    try:
        chosen = list(items(tested, option("lstm_precision"), profile=option("lstm_profile")))
    except ValueError as error:
        raise pytest.UsageError(f"--lstm-precision: {error}") from error
    metafunc.parametrize("lstm_item", chosen, ids=[item.id for item in chosen])


def _generate_jobs(metafunc: pytest.Metafunc, tested: BackendUnderTest) -> None:
    """Make one test for every point of the grid and mode; a backend with a device has one for each way to call it."""
    from lstmcore_conformance.bench.jobs import MODES
    from lstmcore_conformance.bench.run import Request

    config = metafunc.config
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError(f"{_BENCH_NAME}: needs the plug-in pytest-benchmark: {installing('bench')}")
    precisions = tuple(config.getoption("lstm_precision") or ("float32",))
    try:
        for name in precisions:
            get_precision(name)
    except ValueError as error:
        raise pytest.UsageError(f"--lstm-precision: {error}") from error
    request = Request((tested.backend.name,), grid=config.getoption("lstm_grid"), modes=MODES, precisions=precisions)
    ways = (False,) if tested.declared.device == "cpu" else (False, True)
    items = [(job, resident) for (job,), _ in request.groups() for resident in ways]
    names = [
        f"{job.mode}-{job.precision}-{'x'.join(map(str, job.point))}{'-resident' * resident}" for job, resident in items
    ]
    metafunc.parametrize(("lstm_job", "lstm_resident"), items, ids=names, scope="session")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the benchmark out, unless the command line names it: it times for minutes and judges nothing new."""
    if _BENCH not in (collection_path, *collection_path.parents):
        return None
    for argument in config.args:
        name = argument.partition("::")[0]
        if name == _BENCH_NAME or name.startswith(f"{_BENCH_NAME}."):
            return None
        if _BENCH in ((path := Path(config.invocation_params.dir, name).resolve()), *path.parents):
            return None
    return True


@pytest.fixture(scope="session")
def lstm_backend_under_test(pytestconfig: pytest.Config) -> BackendUnderTest:
    """Return the backend under test."""
    return pytestconfig.stash[_TESTED]
