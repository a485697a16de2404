r"""
4. When the gates read the cell
===============================

In the usual LSTM the gates read the last output, :math:`h_{t-1} = o_{t-1} \tanh(c_{t-1})`.
There is a variant in which they read the cell itself.
This part measures what changes.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM, datasets
from lstmcore.training import AdamW, Readout, SequenceModel, Trainer

# %%
# One word in the equations
# -------------------------
#
# With ``recurrence="cell"`` the recurrent input is :math:`c_{t-1}`:
#
# .. math:: z_t = W x_t + R\, c_{t-1} + b
#
# Parameters, their shapes and their number stay the same.
# The output gate is now outside of the loop: it decides what is shown, and nothing else.

H = 16
choices = ("hidden", "cell")
lstms = {name: LSTM(12, H, recurrence=name, dtype="float64", backend="numpy", seed=0) for name in choices}
assert all(np.array_equal(a, b) for a, b in zip(*(lstm.parameters.values() for lstm in lstms.values()), strict=True))

# %%
# A change of the output gate's bias reaches the cell in one of them only.
# ``jvp`` shows it without a difference quotient:

random = np.random.default_rng(0)
x = random.normal(size=(40, 1, 12))
moved = {"bias_l0": np.repeat([0.0, 0.0, 0.0, 1.0], H)}  # the rows of o
for name, lstm in lstms.items():
    ty, (th, tc) = lstm.jvp(x, None, tparameters=moved)
    print(f"{name:7} change of the last cell {np.abs(tc).max():.3f}, of the last output {np.abs(th).max():.3f}")
    assert (np.abs(tc).max() == 0) == (name == "cell")

# %%
# The cell has no bound
# ---------------------
#
# An output lies between -1 and 1, a cell can grow with every step.
# What the gates read is therefore larger, and they saturate sooner.
# Feed both networks the same constant input, and look at the largest number that the gates read:

steady = np.full((100, 1, 12), 0.5)
fig, axis = plt.subplots(figsize=(6.5, 3.5), layout="constrained")
for name, lstm in lstms.items():
    sizes, state = [], None
    for t in range(len(steady)):
        _, state = lstm(steady[t : t + 1], state)
        sizes.append(np.abs(state.c if name == "cell" else state.h).max())
    axis.plot(sizes, label=f'recurrence="{name}"')
axis.set(xlabel="$t$", ylabel=r"$\max\,|r_t|$")
axis.legend()
axis.grid(alpha=0.3)
plt.show()

# %%
# Trained on the same data
# ------------------------
#
# Three seeds each, same settings, the recordings of part 2.
# Three seeds are few: the spread between seeds is about as large as the difference.

data = datasets.load("japanese-vowels")
accuracies = {name: [] for name in choices}
for name in choices:
    begin = time.perf_counter()
    for seed in range(3):
        lstm = LSTM(12, H, recurrence=name, backend="numpy", seed=seed)
        model = SequenceModel(lstm, Readout(H, 9, activation="softmax", seed=seed))
        trainer = Trainer(model, optimizer=AdamW(0.02), input_noise=0.3, epochs=6, seed=seed, quiet=True)
        trainer.fit(data.train.inputs, data.train.targets)
        answers = np.argmax(model.predict(data.test.inputs), axis=1)
        accuracies[name].append(np.mean(answers == data.test.targets))
    seconds = time.perf_counter() - begin
    print(f"{name:7} " + "  ".join(f"{value:.1%}" for value in accuracies[name]) + f"   {seconds:.1f} s")
assert min(map(min, accuracies.values())) > 0.5

# %%
# On this data both learn.
# The measurement does not say which is better on yours: run it there, with more seeds.
# Both are switches of the same specification, so each backend is tested on both, with every gradient.
