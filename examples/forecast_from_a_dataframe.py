"""Forecast the sales of several shops from a DataFrame, with features, and save the model.

Install it by ``pip install '.[frames]' pandas`` and run ``python examples/forecast_from_a_dataframe.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import pandas

from lstmcore import LSTM, datasets
from lstmcore.training import AdamW, Cosine, Readout, SequenceModel, Trainer, load_model

HORIZON = 3
TEST_ROWS = 40


def sales() -> pandas.DataFrame:
    """Return three shops with a row a day: sales follow the weekday, the weather of two days before, and a trend."""
    random = np.random.default_rng(0)
    days = pandas.date_range("2023-01-02", periods=400)
    parts = []
    for number, shop in enumerate(("north", "south", "west")):
        warmth = 10 * np.sin(2 * np.pi * (days.day_of_year - 100) / 365) + random.normal(0, 4, len(days))
        weekly = np.array([0, 1, 2, 3, 8, 15, 5])[days.day_of_week]
        sold = 60 + 20 * number + 0.05 * np.arange(len(days)) + weekly + 1.5 * np.roll(warmth, 2)
        parts.append(pandas.DataFrame({"shop": shop, "day": days, "sold": sold, "warmth": warmth}))
    frame = pandas.concat(parts, ignore_index=True)
    angle = 2 * np.pi * frame["day"].dt.day_of_week / 7
    return frame.assign(weekday_sin=np.sin(angle), weekday_cos=np.cos(angle))


@click.command(help=__doc__)
def main() -> None:
    """Train on all shops but their last days, and compare the forecasts of those days with last week's sales."""
    features = ["warmth", "weekday_sin", "weekday_cos"]
    cut = datasets.windows(
        sales(), target=["sold"], features=features, series="shop", time="day", window=14, horizon=HORIZON
    )
    learned, tested = cut.split(TEST_ROWS)
    lstm = LSTM(len(cut.columns), 32, seed=0)
    model = SequenceModel(lstm, Readout.of(lstm, HORIZON, seed=0))
    trainer = Trainer(
        model,
        loss="mean-squared-error",
        optimizer=AdamW(0.01),
        schedule=Cosine(20),
        epochs=20,
        standardize_targets=True,
        chronological=True,
        purge=learned.purge,
        metrics=["mae"],
        quiet=True,
    )
    history = trainer.fit(learned.inputs, learned.targets)
    click.echo(f"mean absolute error while training, on the validation set: {history.epochs[-1].metrics['mae']:.2f}")

    forecast = tested.absolute(np.stack(model.predict(tested.inputs)))
    ours = float(np.abs(forecast - tested.actual).mean())
    week = tested.inputs[:, 7 : 7 + HORIZON, :1] + tested.last[:, None]
    naive = float(np.abs(week - tested.actual).mean())
    click.echo(f"mean absolute error on the last {TEST_ROWS} days: LSTM {ours:.2f}, sales of a week ago {naive:.2f}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shops.safetensors"
        model.save(path)
        ahead = cut.at_end()
        values = ahead.absolute(np.stack(load_model(path).predict(ahead.inputs)))
    table = pandas.DataFrame(values[..., 0], index=ahead.series, columns=[f"day {n}" for n in range(1, HORIZON + 1)])
    click.echo(table.round(1).to_string())
    if ours > 0.7 * naive:
        raise SystemExit(f"expected a much smaller error than {naive:.2f}; got {ours:.2f}")


if __name__ == "__main__":
    main()
