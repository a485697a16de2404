"""Recognise speakers by recordings of unequal length with scikit-learn's tools.

Install it by ``pip install '.[sklearn]'`` and run ``python examples/classify_with_scikit_learn.py``.
"""

from __future__ import annotations

import click
import numpy as np
from sklearn.metrics import classification_report
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from lstmcore import datasets
from lstmcore.sklearn import LSTMClassifier


@click.command(help=__doc__)
def main() -> None:
    """Search two settings by cross-validation, and judge the best on recordings that no fit has seen."""
    data = datasets.load("japanese-vowels")
    names = np.array(data.classes)
    train, labels = list(data.train.inputs), names[data.train.targets]
    estimator = LSTMClassifier(24, bidirectional=True, epochs=15, learning_rate=0.01, input_noise=0.3, random_state=0)
    search = GridSearchCV(
        estimator,
        {"pooling": ["last", "mean"], "weight_decay": [0.0, 0.001]},
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
    )
    search.fit(train, labels)
    click.echo(f"best settings: {search.best_params_}, accuracy in cross-validation {search.best_score_:.1%}")
    test, answers = list(data.test.inputs), names[data.test.targets]
    click.echo(classification_report(answers, search.predict(test), digits=3))
    score = search.score(test, answers)
    if score < 0.9:
        raise SystemExit(f"expected an accuracy of at least 90 % on the test recordings; got {score:.1%}")


if __name__ == "__main__":
    main()
