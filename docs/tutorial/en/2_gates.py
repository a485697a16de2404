r"""
2. The gates, on real data
==========================

This part computes one step by hand, and then looks at every gate while a trained network reads a recording.
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM, datasets
from lstmcore.training import AdamW, Readout, SequenceModel, Trainer

# %%
# One step by hand
# ----------------
#
# Two matrix products, four activations, two lines for the state.
# Rows of the weights are stacked by gate in the order i, f, g, o: input, forget, candidate, output.


def sigmoid(z):
    """Return the logistic function."""
    return 1 / (1 + np.exp(-z))


def step(parameters, x, h, c):
    """Return the gates and the next state of one row: x (I,), h (H,), c (H,)."""
    z = parameters["weight_x_l0"] @ x + parameters["weight_h_l0"] @ h + parameters["bias_l0"]
    i, f, g, o = np.split(z, 4)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c + i * g
    h = o * np.tanh(c)
    return (i, f, g, o), h, c


# %%
# It equals the library, from a state that is not zero:

random = np.random.default_rng(0)
lstm = LSTM(3, 5, dtype="float64", seed=0, backend="numpy")
x, h, c = random.normal(size=3), random.normal(size=5), random.normal(size=5)
_, h_hand, c_hand = step(lstm.parameters, x, h, c)
y, (h_n, c_n) = lstm(x[None, None], (h[None, None], c[None, None]))
print("largest differences:", np.abs(h_hand - h_n).max(), np.abs(c_hand - c_n).max())
assert np.allclose(h_hand, h_n, atol=1e-15)
assert np.allclose(c_hand, c_n, atol=1e-15)

# %%
# A network that has learned something
# ------------------------------------
#
# The recordings are two Japanese vowels by nine speakers.
# A small network learns to tell who speaks.

data = datasets.load("japanese-vowels")
lstm = LSTM(12, 16, dtype="float64", seed=1, forget_bias=1.0, backend="numpy")
model = SequenceModel(lstm, Readout(16, 9, activation="softmax", dtype="float64", seed=1))
trainer = Trainer(model, optimizer=AdamW(0.02), epochs=8, quiet=True)
trainer.fit(data.train.inputs, data.train.targets)
accuracy = np.mean(np.argmax(model.predict(data.test.inputs), axis=1) == data.test.targets)
print(f"accuracy on the test recordings: {accuracy:.1%}")
assert accuracy > 0.7

# %%
# Every gate while it reads
# -------------------------
#
# Take the longest test recording and step through it by hand.
# A row of a picture is a unit. Units are sorted by their mean forget gate.
# Those at the top keep the past, those at the bottom drop it.

recording = max(data.test.inputs, key=len)
(scaled,) = model.scaled([recording])
h, c = np.zeros(16), np.zeros(16)
traces = {name: [] for name in ("i", "f", "g", "o", "c", "h")}
for x in scaled:
    gates, h, c = step(lstm.parameters, x, h, c)
    for name, values in zip(traces, (*gates, c, h), strict=True):
        traces[name].append(values)
traces = {name: np.array(values).T for name, values in traces.items()}
assert np.allclose(traces["h"].T, lstm(scaled[:, None])[0][:, 0], atol=1e-12)

order = np.argsort(traces["f"].mean(axis=1))[::-1]
fig, axes = plt.subplots(2, 3, figsize=(9, 5), layout="constrained", sharex=True, sharey=True)
for axis, (name, values) in zip(axes.flat, traces.items(), strict=True):
    gate = name in "ifo"
    low, high = (0, 1) if gate else (-np.abs(values).max(), np.abs(values).max())
    image = axis.imshow(values[order], aspect="auto", vmin=low, vmax=high, cmap="viridis" if gate else "RdBu_r")
    axis.set_title(f"${name}$")
    fig.colorbar(image, ax=axis)
fig.supxlabel("$t$")
plt.show()

# %%
# - The *forget gate* f multiplies the old cell. Where it is near 1 the unit keeps what it has.
# - The *input gate* i says how much of the candidate is added.
# - The *candidate* g is the new content, between -1 and 1.
# - The *output gate* o says how much of the cell is shown. It changes nothing in the cell of that step.

# %%
# A series: the CO2 at Mauna Loa
# ------------------------------
#
# Gates and cell of one unit over a year of a weekly series.
# The network has learned to forecast the next week from 52 weeks, each relative to the last of them.

series = datasets.load("co2").filled("linear")
windows = datasets.Windows.cut(series, window=52, horizon=1, stop=len(series) - 208)
lstm = LSTM(1, 6, dtype="float64", seed=1, forget_bias=1.0, backend="numpy")
forecaster = SequenceModel(lstm, Readout(6, 1, dtype="float64", seed=1))
trainer = Trainer(
    forecaster,
    loss="mean-squared-error",
    standardize_targets=True,
    chronological=True,
    optimizer=AdamW(0.02),
    batch_size=128,
    epochs=4,
    quiet=True,
)
trainer.fit(tuple(windows.inputs), windows.targets)

held_out = datasets.Windows.cut(series, window=52, horizon=1, start=len(series) - 208)
(scaled,) = forecaster.scaled([held_out.inputs[-1]])
h, c, rows = np.zeros(6), np.zeros(6), []
for x in scaled:
    (i, f, g, o), h, c = step(lstm.parameters, x, h, c)
    rows.append((i[0], f[0], o[0], c[0]))
fig, axes = plt.subplots(2, 1, figsize=(8, 4.5), layout="constrained", sharex=True)
axes[0].plot(series.values[-53:-1], color="black")
axes[0].set_ylabel("CO$_2$, ppm")
for values, name in zip(np.array(rows).T, ("i", "f", "o", "c"), strict=True):
    axes[1].plot(values, label=f"${name}$")
axes[1].set_xlabel("$t$")
axes[1].legend(ncols=4)
plt.show()
