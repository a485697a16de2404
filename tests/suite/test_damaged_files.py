"""Files that are damaged at any place are a ValueError that names the file; what is read can be shown."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import lstmcore.cli
from lstmcore.registry import get_backend
from lstmcore_conformance import run
from lstmcore_conformance.bench import summary, tables
from lstmcore_conformance.bench.jobs import MODES, Job, Point
from lstmcore_conformance.bench.results import Benchmark, Outcome, Result, Roof
from lstmcore_conformance.bench.startup import Start
from lstmcore_conformance.bench.summary import document
from lstmcore_conformance.bench.worker_client import Candidate
from lstmcore_conformance.render.scoreboard_markdown import excerpt, scoreboard
from lstmcore_conformance.scoreboard import load
from lstmcore_conformance.scoreboard.__main__ import main
from lstmcore_conformance.scoreboard.board import board, of_benchmark
from lstmcore_conformance.vectors import HERE, entries
from lstmcore_conformance.vectors.index import COMPACT, read_index
from lstmcore_conformance.vectors.reader import draws
from mutated_json import mutations


def refused_or_shown(file: Path, values: Any, show: Callable[[Path], None], every: int = 1) -> None:
    """Show each damaged copy of `values`, or see it refused by the name of `file`; count both."""
    file.write_text(json.dumps(values))
    show(file)
    counts = {"refused": 0, "shown": 0}
    for number, (change, damaged) in enumerate(mutations(values, each=1)):
        if number % every:
            continue
        file.write_text(json.dumps(damaged))
        try:
            show(file)
        except ValueError as error:
            if not str(error).startswith(str(file.parent)):
                raise AssertionError(f"{change}: expected the file's name; got {error}") from error
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{change}: {type(error).__name__}: {error}") from error
        else:
            counts["shown"] += 1
    assert min(counts.values()) > 3, counts


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    """A run by a formula: every mode, a peer, a variant, a result without a time, a start."""
    own, peer = Candidate("backend", "numpy", 1), Candidate("peer", "torch", 1)
    quantiles = {"0.5": 1e-3, "0.99": 2e-3}

    def timed(job: Job, candidate: Candidate, beside: bool = False) -> Result:
        known = {"share": 0.5, "median_s": 1e-3, "spread": 0.1, "rounds": (1e-3, 2e-3), "quantiles": quantiles}
        return Result(job, candidate, Outcome.MEASURED, beside_variants=beside, **known)  # type: ignore[arg-type]

    results = [timed(Job(mode, Point(3, 2, 4, 5)), one) for mode in MODES for one in (own, peer)]
    results += [timed(Job("inference", Point(3, 2, 4, 5), variant=name), own, True) for name in ("plain", "peephole")]
    results.append(Result(Job("inference", Point(3, 2, 4, 6)), own, Outcome.ERROR, "it ended"))
    runtimes = tuple({"kind": one.kind, "name": one.name, "threads": 1, "label": one.label} for one in (own, peer))
    machine = {"processor": "made up", "cores": 2, "load": 0.5}
    roofs = (Roof(1, "float32", 100.0, 8, {"1000": 10.0}),)
    starts = (Start(own, 0.1, 0.2, 0.3, 1000),)
    return Benchmark(
        "2026-01-02", 1.0, machine, {"grid": "quick"}, {"lstmcore": "1"}, runtimes, roofs, tuple(results), starts
    )


def cheap_ratio(above: Iterable[float], below: Iterable[float]) -> tuple[float, float, float]:
    """Stands for the bootstrap, which takes most of the time of this module; refuses other rounds as it does."""
    ratio = float(np.median(np.asarray(above) / np.asarray(below)))
    return ratio, ratio, ratio


def test_a_damaged_run(benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "paired_ratio", cheap_ratio)

    def show(file: Path) -> None:
        found = Benchmark.load(file)
        assert document(found)
        assert [tables.verdicts(found), tables.measured(found), tables.others(found), tables.runtimes(found)]
        assert scoreboard(board([], [of_benchmark(found)]))

    refused_or_shown(tmp_path / "run.json", json.loads(document(benchmark)), show, every=3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda run: run["results"].append(run["results"][0]),
            rf"results\[{2 * len(MODES) + 3}\]: expected a runtime once at inference",
        ),
        (lambda run: run["results"][1]["rounds"].append(1.0), r"results\[1\].rounds: expected 2, as others at"),
        (lambda run: run["results"].pop(0), "results: expected numpy at inference .* too; got none"),
        (lambda run: run["results"][0].pop("rounds"), r"results\[0\]: .*'rounds' is a required property"),
        (lambda run: run["results"][4].update(quantiles={}), r"results\[4\].quantiles: .*'0.5' is a required"),
        (
            lambda run: run["results"][0]["job"].update(variant="own"),
            r"results\[0\].job.variant: .*'own' is not one of",
        ),
    ],
)
def test_a_run_that_is_no_grid_is_told_with_its_place(
    benchmark: Benchmark, tmp_path: Path, change: Callable[[Any], Any], told: str
) -> None:
    values, file = json.loads(document(benchmark)), tmp_path / "run.json"
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"run\.json: {told}"):
        Benchmark.load(file)


def test_a_damaged_report_and_a_damaged_scoreboard(benchmark: Benchmark, tmp_path: Path) -> None:
    def show(file: Path) -> None:
        found = load([file])
        assert scoreboard(found)
        assert excerpt(found)

    report = run(get_backend("reference"), select="forward.no_state", precisions=["float64"]).to_dict()
    report |= {name: dict(list(report[name].items())[:2]) for name in ("undeclared", "versions")}
    refused_or_shown(tmp_path / "report.json", report, show, every=2)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    refused_or_shown(
        tmp_path / "scoreboard.json",
        json.loads(board(load([file]).reports, [of_benchmark(benchmark)]).to_json()),
        show,
        every=3,
    )


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """A folder with two cases of the vectors in float64, one of them a stack."""
    index = read_index(HERE)
    alone, stack = (
        next(
            case for case in index["cases"] if case["precision"] == "float64" and ("num_layers" in case["model"]) is two
        )
        for two in (False, True)
    )
    arrays = load_file(HERE / "float64.safetensors")
    keys = [f"{case['name']}/{name}" for case in (alone, stack) for name in case["tensors"]]
    save_file({key: arrays[key] for key in keys}, tmp_path / "float64.safetensors")
    (tmp_path / "index.json").write_text(json.dumps(index | {"cases": [alone, stack]}))
    return tmp_path


def test_a_damaged_index_of_vectors(vectors: Path) -> None:
    def show(file: Path) -> None:
        assert draws(file.parent)
        assert list(entries("float64", file.parent))

    values = json.loads((vectors / "index.json").read_text())
    refused_or_shown(vectors / "index.json", values, show, every=2)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("index.json", b"[]", "index.json: expected a JSON object; got list"),
        ("index.json", b"[" * 100_000, "index.json: expected JSON; it is nested too deep"),
        ("index.json", b'{"schema": NaN}', "index.json: expected JSON; NaN is no JSON"),
        ("index.json", b'{"budget": 1e999}', "index.json: expected JSON; 1e999 is beyond what float64 holds"),
        ("index.json", b'{"steps": %s}' % (b"9" * 30), "index.json: expected JSON; 9+... is beyond"),
        ("index.json", b'{"steps": "\xff"}', "index.json: expected JSON; .*utf-8"),
        (COMPACT, b"no gzip", "index.json.gz: expected a whole file that gzip wrote"),
        (COMPACT, gzip.compress(b"{}")[:-4], "index.json.gz: expected a whole file that gzip wrote"),
        (COMPACT, gzip.compress(bytes(1 << 27)), "index.json.gz: expected at most 67108864 bytes; got more"),
        ("float64.safetensors", b"x" * 40, "float64.safetensors: expected a whole safetensors file"),
        ("float64.safetensors", None, "float64.safetensors: expected a file; got a folder"),
    ],
    ids=["list", "deep", "nan", "infinity", "digits", "utf-8", "no-gzip", "half-gzip", "large", "no-tensors", "folder"],
)
def test_a_file_of_vectors_that_cannot_be_read(vectors: Path, name: str, content: bytes | None, told: str) -> None:
    file = vectors / name
    file.unlink(missing_ok=True)
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        list(entries("float64", vectors))


def test_arrays_that_do_not_fit_the_index(vectors: Path) -> None:
    arrays = load_file(vectors / "float64.safetensors")
    first = next(iter(json.loads((vectors / "index.json").read_text())["cases"]))["name"]
    save_file({key: value for key, value in arrays.items() if key != f"{first}/y"}, vectors / "float64.safetensors")
    with pytest.raises(ValueError, match=f"expected the tensor '{first}/y', which the index has; got none"):
        list(entries("float64", vectors))
    arrays[f"{first}/x"] = arrays[f"{first}/x"][:-1].copy()
    save_file(arrays, vectors / "float64.safetensors")
    with pytest.raises(ValueError, match=rf"case '{first}': x: expected shape \("):
        list(entries("float64", vectors))


def test_the_commands_tell_a_damaged_file_in_one_line(benchmark: Benchmark, tmp_path: Path) -> None:
    values, file = json.loads(document(benchmark)), tmp_path / "run.json"
    values["results"][0]["job"]["variant"] = "own"
    file.write_text(json.dumps(values))
    shown = CliRunner().invoke(lstmcore.cli.main, ["bench", "--read", str(file)])
    assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1), shown.output
    assert shown.stderr.startswith(f"lstmcore: error: {file}: results[0].job.variant: expected what bench/benchmark")
    made = CliRunner().invoke(main, [str(file)])
    assert made.exit_code == 2, made.output
    assert "results[0].job.variant" in made.stderr


def test_the_files_of_the_package_fit() -> None:
    root = Path(__file__).parents[2]
    assert len(draws(HERE)) > 500
    assert load([root / "docs" / "scoreboard.json"]).reports
    assert Benchmark.load(root / "docs" / "benchmarks" / "standard" / "run.json").results


def test_an_index_is_found_in_either_form(vectors: Path) -> None:
    expected = draws(vectors)
    (vectors / COMPACT).write_bytes(gzip.compress((vectors / "index.json").read_bytes()))
    (vectors / "index.json").unlink()
    assert draws(vectors) == expected
    shutil.rmtree(vectors)
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        draws(vectors)
