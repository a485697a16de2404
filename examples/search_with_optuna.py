"""Search the settings of a model with Optuna, several trials at a time on joblib's workers.

Install it by ``pip install '.[jobs]' optuna`` and run ``python examples/search_with_optuna.py --jobs 2``.
With ``--workers dask`` the trials run on the Dask cluster of ``DASK_SCHEDULER_ADDRESS``, or on one of this machine.
Ray works as well: after ``ray.util.joblib.register_ray()`` its workers have the name ``ray``.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click
import joblib
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lstmcore import LSTM, datasets
from lstmcore.training import AdamW, Readout, SequenceModel, Trainer

SPACE = {
    "hidden_size": IntDistribution(8, 40, log=True),
    "learning_rate": FloatDistribution(1e-3, 3e-2, log=True),
    "input_noise": FloatDistribution(0.0, 0.6),
    "bidirectional": CategoricalDistribution((False, True)),
}


def train(epochs: int, hidden_size: int, learning_rate: float, input_noise: float, bidirectional: bool) -> Any:
    """Return a trained model and its best validation loss; every call draws the same numbers."""
    data = datasets.load("japanese-vowels")
    lstm = LSTM(data.input_size, hidden_size, bidirectional=bidirectional, seed=1)
    model = SequenceModel(lstm, Readout.of(lstm, len(data.classes), activation="softmax", seed=1))
    trainer = Trainer(
        model, optimizer=AdamW(learning_rate), epochs=epochs, validation=0.3, input_noise=input_noise, quiet=True
    )
    epochs_done = trainer.fit(data.train.inputs, data.train.targets).epochs
    return model, min(epoch.validation_loss for epoch in epochs_done if epoch.validation_loss is not None)


def judge(settings: dict[str, Any]) -> float:
    """Return the loss of one trial, in a worker."""
    return float(train(8, **settings)[1])


def search(trials: int, jobs: int) -> optuna.Study:
    """Ask Optuna for as many trials as there are workers, and tell it their losses; the seed fixes the search."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for start in range(0, trials, jobs):
        asked = [study.ask(SPACE) for _ in range(min(jobs, trials - start))]
        losses = joblib.Parallel(n_jobs=jobs)(joblib.delayed(judge)(trial.params) for trial in asked)
        for trial, loss in zip(asked, losses, strict=True):
            study.tell(trial, loss)
    return study


@click.command(help=__doc__)
@click.option("--trials", type=click.IntRange(1), default=16, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Trials at a time.")
@click.option("--workers", type=click.Choice(("loky", "dask")), default="loky", show_default=True)
def main(trials: int, jobs: int, workers: str) -> None:
    """Search, train once more with the best settings, and judge that model on recordings that no trial has seen."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with ExitStack() as opened:
        if workers == "dask":
            from distributed import Client

            opened.enter_context(Client())
        opened.enter_context(joblib.parallel_config(backend=workers))
        study = search(trials, jobs)
    click.echo(f"best of {len(study.trials)} trials: {study.best_params}, validation loss {study.best_value:.3f}")
    data = datasets.load("japanese-vowels")
    accuracy = train(30, **study.best_params)[0].evaluate(data.test.inputs, data.test.targets).accuracy
    click.echo(f"accuracy on the test recordings {accuracy:.1%}")
    if accuracy < 0.9:
        raise SystemExit(f"expected an accuracy of at least 90 % on the test recordings; got {accuracy:.1%}")


if __name__ == "__main__":
    main()
