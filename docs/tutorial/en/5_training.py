"""
5. Training, stopping, saving
=============================

A trainer goes over the data, watches a validation set and keeps the best epoch.
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM, datasets
from lstmcore.training import AdamW, CrossEntropy, Readout, SequenceModel, Trainer, load_model

data = datasets.load("japanese-vowels")


def make():
    """Return a new model; the same seeds give the same weights."""
    lstm = LSTM(12, 16, bidirectional=True, backend="numpy", seed=1)
    return SequenceModel(lstm, Readout(32, 9, activation="softmax", seed=1))


# %%
# Early stopping by validation
# ----------------------------
#
# ``validation=0.2`` holds out a fifth of the recordings, by class.
# ``patience=3`` stops after three epochs without a lower validation loss.
# The weights of the best epoch are the ones that stay.

model = make()
trainer = Trainer(model, optimizer=AdamW(0.05), epochs=30, validation=0.2, patience=3, quiet=True)
history = trainer.fit(data.train.inputs, data.train.targets)
print(f"{len(history.epochs)} epochs, the best is {history.best}; stopped: {history.stopped}")
assert history.best is not None

# %%
# Early stopping by state drift
# -----------------------------
#
# The *state drift* is the distance between the memory cell at the start and at the end of a sequence.
# Cells that grow from epoch to epoch can be a sign of gates that no longer close.
# ``drift_threshold`` stops a run when the drift passes a bound; the epoch above it is never the best one.

drifting = Trainer(make(), optimizer=AdamW(0.05), epochs=30, validation=0.2, drift_threshold=18.0, quiet=True)
by_drift = drifting.fit(data.train.inputs, data.train.targets)
print(f"{len(by_drift.epochs)} epochs; stopped: {by_drift.stopped}")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
numbers = [epoch.number for epoch in history.epochs]
axes[0].semilogy(numbers, [epoch.loss for epoch in history.epochs], label="training")
axes[0].semilogy(numbers, [epoch.validation_loss for epoch in history.epochs], label="validation")
axes[0].axvline(history.best, color="gray", linestyle=":", label="best epoch")
axes[0].set(xlabel="epoch", ylabel="loss")
axes[1].plot(numbers, [epoch.drift for epoch in history.epochs], label="run 1")
axes[1].plot([epoch.number for epoch in by_drift.epochs], [epoch.drift for epoch in by_drift.epochs], label="run 2")
axes[1].axhline(18.0, color="gray", linestyle="--", label="threshold of run 2")
axes[1].set(xlabel="epoch", ylabel="state drift")
for axis in axes:
    axis.legend()
    axis.grid(alpha=0.3)
plt.show()

# %%
# Evaluate on recordings that nobody saw
# --------------------------------------

evaluation = model.evaluate(model.scaled(data.test.inputs), data.test.targets, CrossEntropy())
print(f"loss {evaluation.loss:.3f}, accuracy {evaluation.accuracy:.1%}, drift {evaluation.drift:.2f}")
assert evaluation.accuracy > 0.8

# %%
# Save and load
# -------------
#
# The file holds weights, standardisation and configuration, and no code.
# A model that was loaded gives the same numbers:

model.save("speakers.safetensors")
again = load_model("speakers.safetensors", backend="numpy")
same = all(
    np.array_equal(a, b) for a, b in zip(model.predict(data.test.inputs), again.predict(data.test.inputs), strict=True)
)
print("the same numbers:", same)
assert same
