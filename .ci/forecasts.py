"""Forecast ten series from packages with the defaults of ``lstmcore train``, next to naive forecasts and AutoETS.

``python .ci/forecasts.py`` prints a table and compares the errors with docs/benchmarks/forecasts.json: a default that
makes one series worse by over 2 % fails. ``--write`` stores the errors and the table of docs/benchmarks/forecasts.md.
``--only NAME`` measures one series alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from click.testing import CliRunner

from lstmcore.cli import main as lstmcore

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "benchmarks" / "forecasts.md"
STORED: Final = ROOT / "docs" / "benchmarks" / "forecasts.json"
MARKS: Final = ("<!-- forecasts: made by nox -s forecasts -- --write -->", "<!-- end of the forecasts -->")
#: By how much a default may make the MASE of a series worse.
WORSE: Final = 1.02
SEEDS: Final = (0, 1, 2)
#: float64 on numpy: the same numbers on every processor, up to rounding that training does not amplify to 2 %.
OPTIONS: Final = ("--backend", "numpy", "--dtype", "float64", "--quiet", "--json")

Floats = npt.NDArray[np.float64]


class Source(NamedTuple):
    """A series: the package, the rows in a season (1 without one), and how to load it."""

    package: str
    season: int
    load: Callable[[], Any]


def _pmdarima(name: str) -> Callable[[], Any]:
    def load() -> Any:
        from pmdarima import datasets

        return getattr(datasets, f"load_{name}")()

    return load


def _bill_rate() -> Any:
    from statsmodels.datasets import macrodata

    return macrodata.load_pandas().data["tbilrate"].to_numpy()


def _elnino() -> Any:
    from statsmodels.datasets import elnino

    return elnino.load_pandas().data.iloc[:, 1:].to_numpy().ravel()  # a row a year, a column a month


def _nile() -> Any:
    from statsmodels.datasets import nile

    return nile.load_pandas().data["volume"].to_numpy()


def _seattle() -> Any:
    from vega_datasets import local_data

    return local_data.seattle_weather()["temp_max"].to_numpy()


SOURCES: Final[Mapping[str, Source]] = {
    "airline passengers, monthly": Source("pmdarima", 12, _pmdarima("airpassengers")),
    "Australian beer, quarterly": Source("pmdarima", 4, _pmdarima("ausbeer")),
    "Australian residents, quarterly": Source("pmdarima", 4, _pmdarima("austres")),
    "lynx trappings, yearly": Source("pmdarima", 10, _pmdarima("lynx")),
    "Australian wine, monthly": Source("pmdarima", 12, _pmdarima("wineind")),
    "woollen yarn, quarterly": Source("pmdarima", 4, _pmdarima("woolyrnq")),
    "US Treasury bill rate, quarterly": Source("statsmodels", 4, _bill_rate),
    "Seattle temperature, daily": Source("vega_datasets", 7, _seattle),
    "El Nino, monthly": Source("statsmodels", 12, _elnino),
    "Nile, yearly": Source("statsmodels", 1, _nile),
}


def run(*words: object) -> dict[str, Any]:
    """Run a command of lstmcore and return its JSON."""
    result = CliRunner().invoke(lstmcore, [str(word) for word in words])
    if result.exit_code:
        raise SystemExit(f"lstmcore {' '.join(map(str, words))}: {result.output}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def model_error(values: Floats, season: int) -> tuple[float, float, float]:
    """Return the MAE of the model, of the seasonal-naive and of the last-value forecast; the model's over the seeds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "series.csv")
        path.write_text("y\n" + "".join(f"{value!r}\n" for value in values.tolist()))
        found = []
        for seed in SEEDS:
            words = ("--target", "y", "--season", season, "--seed", seed, "--out", Path(folder, "m"))
            found.append({score["name"]: score["mae"] for score in run("train", path, *words, *OPTIONS)["held_out"]})
    model = float(np.mean([scores["model"] for scores in found]))
    return model, found[0][f"seasonal naive ({season} rows ago)"], found[0]["last value"]


def auto_ets_error(values: Floats, season: int, test_rows: int) -> float | None:
    """Return the MAE of AutoETS one row ahead, fitted before the test rows; None without statsforecast."""
    try:
        from statsforecast.models import AutoETS
    except ImportError:
        return None
    start = len(values) - test_rows
    model: Any = AutoETS(season_length=season).fit(values[:start])
    wrong = [float(model.forward(values[:row], h=1)["mean"][0]) - values[row] for row in range(start, len(values))]
    return float(np.mean(np.abs(wrong)))


def measure(names: Iterable[str]) -> dict[str, dict[str, float | int | None]]:
    """Return the MASE of each way to forecast each series one row ahead, over the test rows.

    MASE is the MAE over that of the seasonal-naive forecast in the training rows.
    """
    results: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        source = SOURCES[name]
        values = np.asarray(source.load(), np.float64)
        values = values[np.isfinite(values)]  # the last quarter of one series is not there yet
        test_rows = max(1, round(0.2 * len(values)))
        training = values[: len(values) - test_rows]
        scale = float(np.mean(np.abs(training[source.season :] - training[: -source.season])))
        model, seasonal, last = model_error(values, source.season)
        ets = auto_ets_error(values, source.season, test_rows)
        errors = {"lstmcore": model, "seasonal naive": seasonal, "last value": last, "AutoETS": ets}
        scaled = {way: None if error is None else round(error / scale, 4) for way, error in errors.items()}
        results[name] = {"rows": len(values), "season": source.season, **scaled}
        print(name, results[name], flush=True)
    return results


def worse(found: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is worse than stored by over 2 %, and what is missing."""
    lines = [f"{name}: not measured" for name in stored if name not in found]
    for name, one in found.items():
        if name not in stored:
            lines.append(f"{name}: not stored: run with --write")
        elif one["lstmcore"] > WORSE * stored[name]["lstmcore"]:
            lines.append(
                f"{name}: MASE {one['lstmcore']:.4f}; expected at most {WORSE} x {stored[name]['lstmcore']:.4f}"
            )
    return lines


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results in Markdown; the best of a row is bold."""
    ways = ("lstmcore", "seasonal naive", "last value", "AutoETS")
    lines = [f"| series | package | rows | season | {' | '.join(ways)} |", "|---|---|---|---|" + "---|" * len(ways)]
    for name, one in found.items():
        best = min(one[way] for way in ways if one[way] is not None)
        cells = ["not measured" if one[way] is None else f"{one[way]:.2f}" for way in ways]
        marked = [f"**{cell}**" if one[way] == best else cell for way, cell in zip(ways, cells, strict=True)]
        lines.append(f"| {name} | {SOURCES[name].package} | {one['rows']} | {one['season']} | {' | '.join(marked)} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Measure, compare or write, and return 0 if no series is worse."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the errors and the table")
    parser.add_argument("--only", action="append", choices=SOURCES, metavar="NAME", help="measure this series")
    options = parser.parse_args(words)
    stored = json.loads(STORED.read_text("utf-8"))
    found = measure(options.only or SOURCES)
    if options.write:
        found = {name: (stored | found)[name] for name in SOURCES}
        STORED.write_text(json.dumps(found, indent=1) + "\n")
        before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{table(found)}\n\n{MARKS[1]}{after}", "utf-8")
        return 0
    print(table(found))
    lines = worse(found, {name: one for name, one in stored.items() if not options.only or name in options.only})
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
