"""Parquet files, which pandas and pyarrow read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from cli_runs import succeed
from lstmcore.datasets import Layout, read_csv, read_panel
from lstmcore.training import SequenceModel


def test_a_file_has_the_rows_of_the_same_csv(tmp_path: Path) -> None:
    days = pandas.date_range("2020-01-01", periods=9)
    frame = pandas.DataFrame({"day": days, "shop": list("ababababa"), "y": [0.1, None, *range(7)]})
    path = tmp_path / "my.parquet"
    frame.to_parquet(path)
    frame.to_csv(tmp_path / "my.csv", index=False)
    series, same = read_csv(path, "y"), read_csv(tmp_path / "my.csv", "y")
    for name in ("gaps", "times"):
        assert getattr(series, name).tolist() == getattr(same, name).tolist()
    assert series.filled("linear").values.tolist() == same.filled("linear").values.tolist()
    with pytest.raises(ValueError, match="separator, decimal, encoding: only for a CSV file"):
        read_panel(path, "y", Layout(separator=";"))


def test_a_model_is_trained_on_one(tmp_path: Path) -> None:
    """With the bits of the same run on CSV."""
    steps = np.arange(60)
    frame = pandas.DataFrame({"day": pandas.date_range("2020-01-01", periods=60), "y": np.sin(steps / 3)})
    frame.to_parquet(tmp_path / "my.parquet")
    frame.to_csv(tmp_path / "my.csv", index=False)
    models = []
    for ending in ("parquet", "csv"):
        out = tmp_path / f"{ending}.safetensors"
        settings = ("--window", "6", "--hidden-size", "4", "--epochs", "2", "--backend", "numpy", "--out", out)
        succeed("train", tmp_path / f"my.{ending}", "--target", "y", *settings)
        models.append(SequenceModel.load(out))
    for name, value in models[0].lstm.parameters.items():
        np.testing.assert_array_equal(models[1].lstm.parameters[name], value)
