"""Predict a value for sequences of unequal length, with an interval, and show that padding changes nothing.

Install it by ``pip install .`` and run ``python examples/regression_with_padding.py``.
"""

from __future__ import annotations

import click
import numpy as np

from lstmcore import LSTM
from lstmcore.training import Adam, QuantileLoss, Readout, SequenceModel, Trainer, pad


def trips(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return trips of 5 to 40 minutes, as speed and slope a minute, and the energy that each took."""
    random = np.random.default_rng(seed)
    sequences, energy = [], []
    for minutes in random.integers(5, 41, count):
        speed, slope = random.gamma(4, 10, minutes), random.normal(0, 2, minutes)
        sequences.append(np.stack([speed, slope], axis=1))
        used = (0.02 * speed + 0.0004 * speed**2 + 0.3 * np.maximum(slope, 0)).sum()
        energy.append(used * random.normal(1, 0.05))
    return sequences, np.array(energy)


@click.command(help=__doc__)
def main() -> None:
    """Train with three quantiles, and judge forecasts and intervals on fresh trips."""
    inputs, targets = trips(400, seed=0)
    lstm = LSTM(2, 24, seed=0)
    model = SequenceModel(lstm, Readout.of(lstm, 3, seed=0))
    trainer = Trainer(
        model,
        loss=QuantileLoss((0.05, 0.5, 0.95)),
        optimizer=Adam(0.01),
        standardize_targets=True,
        epochs=40,
        metrics=["mae", "r2"],
        quiet=True,
    )
    trainer.fit(inputs, targets)
    fresh, answers = trips(200, seed=1)
    found = np.stack(model.predict(fresh, coverage=0.9))[..., 0]
    metrics = model.evaluate(fresh, answers, metrics=["mae", "r2"]).metrics
    inside = float(((found[:, 0] < answers) & (answers < found[:, 2])).mean())
    click.echo(f"mean absolute error {metrics['mae']:.2f} of {answers.mean():.1f}, R2 {metrics['r2']:.3f}")
    click.echo(f"{inside:.0%} of the trips lie in the interval that promises 90 %")

    x, lengths = pad([sequence.astype(np.float32) for sequence in fresh[:3]])
    padded, _ = model.lstm(x, lengths=lengths)
    alone, _ = model.lstm(x[: lengths[1], 1:2])
    click.echo(f"padding changes a step by at most {np.abs(padded[: lengths[1], 1] - alone[:, 0]).max():.1e}")
    if metrics["r2"] < 0.9 or not 0.75 < inside < 0.99:
        raise SystemExit(f"expected R2 above 0.9 and about 90 % inside; got {metrics['r2']:.3f} and {inside:.0%}")


if __name__ == "__main__":
    main()
