"""Sequences of one's own, classified on the command line: long CSV files and NumPy archives."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_runs import error, run, succeed
from lstmcore.datasets import LabelLayout, Layout, read_archive, read_labelled
from lstmcore.training import SequenceModel

SMALL = ("--hidden-size", "6", "--epochs", "4", "--backend", "numpy", "--quiet", "--unidirectional")
TABLE = ("--label", "gait", "--id", "walk")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def walks(count: int = 60, seed: int = 3) -> list[tuple[str, np.ndarray[Any, Any], str]]:
    """Name, (T, 2) and label of sequences of three classes, which differ in their speed."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        steps, kind = int(random.integers(6, 12)), number % 3
        phase = (kind + 1) * 0.7 * np.arange(steps) + random.uniform(0, 6)
        values = np.stack([np.sin(phase), np.cos(phase)], axis=1) + 0.05 * random.standard_normal((steps, 2))
        made.append((f"w{number}", np.round(values, 4), ("slow", "even", "fast")[kind]))
    return made


def write(name: str, made: list[tuple[str, np.ndarray[Any, Any], str]], *, labels: bool = True) -> Path:
    rows = ["walk,t,x,y" + ",gait" * labels]
    for key, values, label in made:
        rows += [f"{key},{t},{x},{y}" + f",{label}" * labels for t, (x, y) in enumerate(values.tolist())]
    Path(name).write_text("\n".join(rows) + "\n")
    return Path(name)


def test_from_a_long_table_to_probabilities() -> None:
    """Training tells the accuracy on what it kept; evaluate judges the same; predict goes through all sequences."""
    path = write("walks.csv", made := walks())
    told = succeed("train", path, *TABLE, "--out", "m", "--epochs", 40, "--lr", 0.03, "--input-noise", 0.05,
                   *SMALL[:2], *SMALL[4:], "--json")  # fmt: skip
    assert told["held_out"]["sequences"] == 12 and told["held_out"]["accuracy"] > 0.6
    judged = succeed("evaluate", "m", path, "--backend", "numpy", "--json")
    assert judged["sequences"] == 12 and judged["accuracy"] == told["held_out"]["accuracy"]
    assert {name: counts["of"] for name, counts in judged["classes"].items()} == {"even": 4, "fast": 4, "slow": 4}
    assert judged["notes"] == ["48 more sequences, which the model was trained on, are left out"]
    rows = list(csv.DictReader(io.StringIO(succeed("predict", "m", path, "--probabilities"))))
    assert [row["sequence"] for row in rows] == [key for key, _, _ in made]
    assert [row["actual"] for row in rows] == [label for _, _, label in made]
    model = SequenceModel.load("m", backend="numpy")
    outputs = np.array(model.predict([values for _, values, _ in made]))
    found = np.array([[float(row[f"p({label})"]) for label in ("even", "fast", "slow")] for row in rows])
    np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert [row["class"] for row in rows] == [("even", "fast", "slow")[k] for k in outputs.argmax(axis=1)]


def test_other_sequences_of_the_same_names_are_judged() -> None:
    """What was trained on is known by its numbers, not by its name; a file without labels can be predicted."""
    path = write("walks.csv", walks())
    succeed("train", path, *TABLE, "--out", "m", *SMALL)
    other = write("other.csv", walks(9, seed=8))
    judged = succeed("evaluate", "m", other, "--json")
    assert judged["sequences"] == 9 and judged["notes"] == []
    half = write("half.csv", walks()[:9])
    seen = succeed("evaluate", "m", half, "--json")
    assert seen["sequences"] < 9 and "more sequences, which the model was trained on" in seen["notes"][0]
    bare = write("bare.csv", walks(4, seed=8), labels=False)
    assert "actual" not in json.loads(run("predict", "m", bare, "--json").stdout)[0]
    assert (
        error("evaluate", "m", bare)
        == "bare.csv: expected a label for each sequence; got none: it has no column 'gait'"
    )
    strange = write("strange.csv", [(key, values, "odd") for key, values, _ in walks(3, seed=8)])
    wanted = "strange.csv, sequence 'w0': expected one of the classes even, fast, slow; got 'odd'"
    assert error("evaluate", "m", strange) == wanted


def test_a_model_of_all_sequences_says_so() -> None:
    path = write("walks.csv", walks(12))
    told = succeed("train", path, *TABLE, "--out", "m", *SMALL, "--test-fraction", 0, "--json")
    assert "held_out" not in told
    judged = succeed("evaluate", "m", path, "--json")
    assert judged["sequences"] == 12
    assert judged["notes"] == ["the model was trained on all 12 sequences: its errors on others are larger"]


def test_columns_times_and_gaps() -> None:
    path = write("walks.csv", walks(12))
    rows = path.read_text().splitlines()
    data = read_labelled(path, LabelLayout("walk", "gait"))
    assert data.features == ("x", "y") and len(data) == 12
    only = read_labelled(path, LabelLayout("walk", "gait", ("y",)))
    np.testing.assert_array_equal(only.inputs[3], data.inputs[3][:, 1:])
    mixed = [rows[0], *sorted(rows[1:], key=lambda row: hash(row) % 97)]
    Path("mixed.csv").write_text("\n".join(mixed) + "\n")
    with pytest.raises(ValueError, match=r"column 't': expected times that ascend in each sequence; .* with --sort"):
        read_labelled("mixed.csv", LabelLayout("walk", "gait"))
    again = read_labelled("mixed.csv", LabelLayout("walk", "gait", rows=Layout(sort=True)))
    by_name = dict(zip(again.ids, again.inputs, strict=True))
    for name, values in zip(data.ids, data.inputs, strict=True):
        np.testing.assert_array_equal(by_name[name], values)
    cells = rows[3].split(",")
    Path("gap.csv").write_text("\n".join([*rows[:3], ",".join([*cells[:2], "", *cells[3:]]), *rows[4:]]) + "\n")
    train = ("train", "gap.csv", *TABLE, "--out", "m", *SMALL)
    assert error(*train).startswith("gap.csv, sequence 'w0', line 4, column 'x': expected a number; got a gap (1 of")
    succeed(*train, "--fill", "linear")
    assert json.loads(run("predict", "m", "gap.csv", "--json").stdout)[0]["sequence"] == "w0"
    filled = read_labelled("gap.csv", LabelLayout("walk", "gait", fill="linear")).inputs[0]
    assert filled[2, 0] == pytest.approx((filled[1, 0] + filled[3, 0]) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [rows[0], rows[1], rows[2].replace("slow", "fast"), *rows[3:]],
         "line 3, column 'gait': expected one label for all rows of the sequence 'w0'; got 'fast' after 'slow'"),
        (lambda rows: [rows[0], rows[1].replace("slow", ""), *rows[2:]],
         "line 2, column 'gait': expected the class of the sequence 'w0'; got an empty cell: fill it"),
        (lambda rows: [rows[0], rows[1].replace("w0", ""), *rows[2:]],
         "line 2, column 'walk': expected the name of a sequence; got an empty cell"),
        (lambda rows: [rows[0], rows[1], rows[1], *rows[2:]],
         "line 3, column 't': expected times that ascend in each sequence; got '0' after '0': take one of the"),
        (lambda rows: [row.replace("fast", "slow").replace("even", "slow") for row in rows],
         "expected at least two classes; got 'slow' alone"),
        (lambda rows: [rows[0].replace("x", "site"), *rows[1:]], None),
    ],
)  # fmt: skip
def test_tables_that_are_refused(change: Any, message: str | None) -> None:
    path = write("walks.csv", walks(12))
    Path("bad.csv").write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    train = ("train", "bad.csv", *TABLE, "--out", "m", *SMALL)
    if message is None:
        succeed(*train)
        wanted = "expected one column 'site'; got no such column in walk, t, x, y, gait"
        assert wanted in error("predict", "m", path)
        return
    assert message in error(*train)


def test_an_archive(folder: Path) -> None:
    made = walks(48)
    lengths = np.array([len(values) for _, values, _ in made])
    x = np.zeros((48, lengths.max(), 2))
    for row, (_, values, _) in enumerate(made):
        x[row, : len(values)] = values
    labels = np.array([label for _, _, label in made])
    np.savez("walks.npz", X=x, y=labels, lengths=lengths)
    write("walks.csv", made)
    data, table = read_archive("walks.npz"), read_labelled("walks.csv", LabelLayout("walk", "gait"))
    assert data.labels == table.labels
    for one, two in zip(data.inputs, table.inputs, strict=True):
        np.testing.assert_array_equal(one, two)
    told = succeed("train", "walks.npz", "--out", "m", *SMALL, "--json")
    assert told["held_out"]["sequences"] == 10
    assert succeed("evaluate", "m", "walks.npz", "--json")["accuracy"] == told["held_out"]["accuracy"]
    np.savez("parts.npz", X_train=x[:30], y_train=labels[:30], X_test=x[30:], y_test=labels[30:])
    told = succeed("train", "parts.npz", "--out", "n", *SMALL, "--json")
    judged = succeed("evaluate", "n", "parts.npz", "--json")
    assert told["held_out"]["sequences"] == judged["sequences"] == 18
    assert judged["accuracy"] == told["held_out"]["accuracy"]
    assert error("train", "parts.npz", *SMALL, "--test-fraction", 0.3) == (
        "--test-fraction: only for data without a test part; parts.npz has X_test"
    )
    assert error("train", "walks.npz", *SMALL, "--label", "y").startswith("--label: only for a CSV file; walks.npz is")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((4, 3, 2))}, "expected an array 'X'; got x"),
        ({"X": np.ones(4)}, r"X: expected numbers \(N, T, I\); got float64 \(4,\)"),
        (
            {"X": np.ones((4, 3)), "y": np.ones(3, int)},
            r"y: expected 4 labels, whole numbers or texts; got int64 \(3,\)",
        ),
        ({"X": np.ones((4, 3)), "y": np.ones(4)}, "y: expected 4 labels, whole numbers or texts; got float64"),
        ({"X": np.full((4, 3), np.nan), "y": np.ones(4, int)}, r"X\[0\]: expected finite numbers; got NaN"),
        ({"X": np.ones((4, 3)), "lengths": np.array([3, 4, 3, 3])}, "lengths: expected 4 whole numbers from 1 to 3"),
        (
            {"X": np.array([np.ones(3), np.ones(2)], object)},
            "X: expected numbers or texts; got objects: save it without: pad X",
        ),
    ],
)
def test_archives_that_are_refused(arrays: dict[str, Any], message: str) -> None:
    np.savez("bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_archive("bad.npz")


def damaged_archives() -> dict[str, bytes]:
    """Return archives that the readers of zip, of its ways to pack, and of NumPy each refuse by errors of their own."""
    stream = io.BytesIO()
    np.savez_compressed(stream, X=np.ones((4, 3, 2)), y=np.arange(4))
    whole, at = stream.getvalue(), stream.getvalue().index(b"X.npy") + 40
    made = {"half": whole[: len(whole) // 2], "bits": whole[:at] + b"\xff" * 8 + whole[at + 8 :], "empty": b""}
    made["before the beginning"] = whole[60:]
    made["encrypted"] = re.sub(rb"(PK\x01\x02.{4})\x00", lambda found: found[1] + b"\x01", whole, flags=re.DOTALL)
    for name, content in (("no array", b"text"), ("no header", b"\x93NUMPY\x01\x00\xff\xff{")):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("X.npy", content)
        made[name] = stream.getvalue()
    return made | {"no zip": b"PK\x03\x04 and no more", "one array": b"\x93NUMPY\x01\x00"}


@pytest.mark.parametrize("name", damaged_archives())
def test_a_damaged_archive_is_one_line(name: str) -> None:
    """Readers of zip raise BadZipFile, RuntimeError and OSError, which were tracebacks of the commands."""
    Path("bad.npz").write_bytes(damaged_archives()[name])
    with pytest.raises(ValueError, match=r"^bad\.npz: expected a NumPy archive of numbers and texts; "):
        read_archive("bad.npz")
    assert error("train", "bad.npz", *SMALL).startswith("bad.npz: expected a NumPy archive of numbers and texts; ")


def test_one_column_for_two_uses_is_refused() -> None:
    path = write("walks.csv", walks(12))
    train = ("train", path, *SMALL)
    for column, name in (("gait", "label"), ("walk", "id")):
        wanted = f"features: expected columns besides those of id, label and time; got '{column}', {name}"
        assert wanted in error(*train, *TABLE, "--features", f"x,{column}")
    assert "label: expected another column than that of id; got 'walk'" in error(
        *train, "--id", "walk", "--label", "walk"
    )


def test_dates_of_any_name_are_no_feature() -> None:
    rows = [f"w{k // 3},2020-01-{k % 3 + 1:02},{k},{'ab'[k // 3 % 2]}" for k in range(12)]
    Path("dated.csv").write_text("\n".join(["walk,taken,x,gait", *rows]) + "\n")
    assert read_labelled("dated.csv", LabelLayout("walk", "gait")).features == ("x",)


def test_a_model_of_an_archive() -> None:
    """An archive is known by its name in any case; another file is named."""
    x, y = np.random.default_rng(0).standard_normal((12, 4, 2)), np.arange(12) % 2
    for name in ("own.npz", "upper.npz"):
        np.savez(name, X=x, y=y)
    Path("upper.npz").rename("upper.NPZ")
    succeed("train", "own.npz", "--out", "m", *SMALL)
    assert len(json.loads(run("predict", "m", "upper.NPZ", "--json").stdout)) == 12
    path = write("walks.csv", walks(3))
    wanted = "m: expected own.npz, which the model was trained on, or another NumPy archive; got walks.csv"
    assert error("predict", "m", path) == wanted


def test_options_of_the_wrong_kind() -> None:
    path = write("walks.csv", walks(12))
    assert error("train", path, *TABLE, "--target", "x").startswith("--target: only for forecasting; got it with")
    assert (
        error("train", path, "--label", "gait") == "--id: expected the column that tells the sequences apart; got none"
    )
    assert error("train", path, "--id", "walk") == "--label: expected the column that names the class; got none"
    succeed("train", path, *TABLE, "--out", "m", *SMALL)
    assert (
        error("evaluate", "m", path, "--test-rows", 3) == "--test-rows: only for forecasting; m is a model to classify"
    )
    assert error("predict", "m", path, "--only", "w1") == "--only: only for forecasting; m is a model to classify"
    assert "expected a model to forecast; got one to classify" in error("plot", "m", path)
