"""Mistakes of a first hour: each is told by what was given, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli_runs import error, run, succeed

SMALL = ("--hidden-size", "2", "--epochs", "1", "--backend", "numpy")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def series(name: str = "my.csv", head: str = "t,sales", rows: int = 60) -> str:
    Path(name).write_text("\n".join([head, *(f"{k},{k % 7}" for k in range(rows))]) + "\n")
    return name


def walks(name: str = "walks.csv", head: str = "walk,swing,gait", label: str = "slow") -> str:
    rows = [f"w{walk},{walk % 2 + step / 9:.2f},{('fast', label)[walk % 2]}" for walk in range(12) for step in range(4)]
    Path(name).write_text("\n".join([head, *rows]) + "\n")
    return name


def forecaster(out: str = "m.safetensors") -> str:
    succeed("train", series(), "--target", "sales", "--window", 8, "--out", out, *SMALL)
    return out


def test_a_model_and_its_data_change_places() -> None:
    """It was 'Error while deserializing header: header too large'."""
    model, data = forecaster(), series()
    for command in ("predict", "evaluate", "plot"):
        assert error(command, data, model) == "my.csv: expected a whole safetensors file; got a text file"
    told = "m.safetensors: expected a CSV file; got a safetensors file, such as a model: the model comes first, then"
    assert error("train", model, "--target", "sales").startswith(told)


def test_arrays_are_no_series() -> None:
    np.savez("arrays.npz", X=np.zeros((4, 5, 1)), y=np.arange(4) % 2)
    told = error("predict", forecaster(), "arrays.npz")
    assert told.startswith("arrays.npz: expected a CSV file; got a NumPy archive: it can hold sequences to classify")


def test_many_or_long_names_of_columns_are_cut() -> None:
    """All 300 were listed, and the whole text of a file whose first line is one name."""
    Path("wide.csv").write_text(",".join(f"sensor{k}" for k in range(300)) + "\n" + ",".join(["1"] * 300) + "\n")
    for words in (("--target", "temperature"), ()):
        told = error("train", "wide.csv", *words)
        assert told.endswith("sensor19, ... (300 in all)") and len(told) < 450
    Path("long.csv").write_text("x" * 5000 + "\n1\n")
    assert error("train", "long.csv", "--target", "y").endswith(f"no such column in {'x' * 60}...")


def test_a_checkpoint_is_no_model_and_a_model_no_checkpoint() -> None:
    succeed("train", series(), "--target", "sales", "--window", 8, "--out", "m", "--checkpoint", "c", *SMALL)
    told = error("predict", "c", "my.csv")
    assert told.endswith(
        "got 'lstmcore-checkpoint': go on with 'lstmcore train --resume', or give the model that the run wrote"
    )
    told = run("train", "my.csv", "--target", "sales", "--resume", "m", "--window", 8, *SMALL).stderr.strip()
    assert told.endswith(
        "got 'lstmcore-model': a run goes on from what 'lstmcore train --checkpoint' or Trainer(checkpoint=) wrote"
    )


def test_a_picture_is_named_by_its_option() -> None:
    pytest.importorskip("matplotlib")
    assert error("plot", forecaster(), "my.csv", "--out", "f.doc").startswith("--out: expected a file ending in one of")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("f.xlsx",), "--out: expected a name that ends in .csv; got 'f.xlsx'"),
        (("f.parquet",), "--out: expected a name that ends in .csv; got 'f.parquet'"),
        (("f.csv.gz",), "--out: expected a name that ends in .csv; got 'f.csv.gz'"),
        (("f.json.zip", "--json"), "--out: expected a name that ends in .json; got 'f.json.zip'"),
        (("f.json",), "--out: expected a name that ends in .csv; got 'f.json': choose --json for JSON"),
        (("f.CSV", "--json"), "--out: expected a name that ends in .json; got 'f.CSV': leave --json out for CSV"),
    ],
)
def test_predictions_in_a_file_of_another_kind(words: tuple[str, ...], told: str) -> None:
    """CSV was written under these names."""
    assert error("predict", forecaster(), "my.csv", "--out", *words) == told
    assert not Path(words[0]).exists()


def test_predictions_in_a_file_without_a_known_ending() -> None:
    model = forecaster()
    for words in (("f.csv",), ("f.txt",), ("f",), ("f.json", "--json"), ("g", "--json")):
        assert run("predict", model, "my.csv", "--out", *words).exit_code == 0
        content = Path(words[0]).read_text()
        assert json.loads(content) if "--json" in words else content.startswith("after,step,time,sales\n")


def test_a_file_whose_class_has_another_name() -> None:
    """It named no column."""
    succeed("train", walks(), "--id", "walk", "--label", "gait", "--out", "m", *SMALL)
    renamed = walks("new.csv", head="walk,swing,activity")
    told = "new.csv: expected a label for each sequence; got none: it has no column 'gait'"
    assert error("evaluate", "m", renamed) == told


def test_a_sequence_without_a_class() -> None:
    """It was 'expected one label for all rows of the sequence', where all rows were empty."""
    told = error("train", walks(label=""), "--id", "walk", "--label", "gait", *SMALL)
    assert told == (
        "walks.csv, line 6, column 'gait': expected the class of the sequence 'w1'; got an empty cell: fill it, or "
        "take the rows of this sequence out"
    )


def test_a_word_among_numbers_when_a_model_predicts() -> None:
    """It advised options that `predict` does not have, alone."""
    model = forecaster()
    Path("my.csv").write_text(Path("my.csv").read_text().replace("\n9,2\n", "\n9,fast\n"))
    told = error("predict", model, "my.csv")
    assert told.startswith("my.csv, line 11, column 'sales': expected a number; got 'fast': mend the cell, or, if")


def test_one_epoch_is_one_epoch() -> None:
    told = run("train", series(), "--target", "sales", "--window", 8, *SMALL).stdout
    assert told.startswith("1 epoch in ")


def test_a_year_beside_a_quarter() -> None:
    """Nothing was said, though no row was checked."""
    rows = [f"{1990 + k // 4},{k % 4 + 1},{k % 9}" for k in range(60)]
    Path("gdp.csv").write_text("\n".join(["year,quarter,gdp", *rows]) + "\n")
    told = run("train", "gdp.csv", "--target", "gdp", "--window", 8, "--quiet", *SMALL).stderr
    assert (
        "gdp.csv, column 'year': expected each time once; got only a part of the time, beside 'quarter': order" in told
    )


def test_an_option_without_its_value_names_the_help_of_its_command() -> None:
    """It named that of lstmcore."""
    assert error("train", "my.csv", "--resume").endswith(
        "--resume: expected a value; got none (see lstmcore train --help)"
    )


def test_a_column_that_is_there_twice() -> None:
    """The hint was: did you mean the same name."""
    told = "my.csv, line 1: expected one column 'n'; got 2 of them in n, n: give each column a name of its own"
    assert error("train", series(head="n,n"), "--target", "n") == told


def test_options_of_a_forecast_name_those_of_a_classification() -> None:
    both = ("--id", "walk", "--label", "gait")
    assert error("train", walks(), *both, "--series", "walk").endswith(
        ": --id names the column that tells the sequences apart"
    )
    assert error("train", walks(), *both, "--target", "swing").endswith(": --label names the column with the class")


def test_a_test_part_that_leaves_nothing_to_train_on() -> None:
    """It was said of --validation."""
    both = ("--id", "walk", "--label", "gait")
    told = "--test-fraction: expected a fraction of 12 sequences that leaves some on both sides; got 0.99: give more"
    assert error("train", walks(), *both, "--test-fraction", 0.99).startswith(told)


def cells(text: str, column: int) -> str:
    """Return the cells of a column of a table, those of a row that takes several lines put together."""
    rows = [line.split("│") for line in text.splitlines() if "│" in line]
    return "".join(row[column].strip() for row in rows)


def test_no_name_is_cut_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"{month}_temperature_of_the_sea_surface_in_the_third_region" for month in ("january", "february")]
    Path("sea.csv").write_text(
        "\n".join([",".join(["year", *names]), *(f"{1900 + k},{k % 5},{k % 7}" for k in range(60))])
    )
    succeed("train", "sea.csv", "--target", ",".join(names), "--window", 8, "--out", "m", *SMALL)
    judged = run("evaluate", "m", "sea.csv").stdout
    assert cells(judged, 1) == "".join(name for name in names for _ in range(3))
    assert all(name in cells(run("info", "m").stdout, 2) for name in names)
    label = "a_gait_with_a_name_that_is_much_longer_than_the_terminal_is_wide"
    succeed("train", walks(label=label), "--id", "walk", "--label", "gait", "--out", "c", *SMALL)
    assert cells(run("evaluate", "c", "walks.csv").stdout, 1) == f"{label}fast"
    assert label in cells(run("info", "c").stdout, 2)
