"""
6. Another backend, the same numbers
====================================

A backend is what computes. The model does not change when it is swapped.
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM, backends

for record in backends():
    print(f"{record.name:12} {'available' if record.available else record.reason}")

# %%
# One LSTM, several backends
# --------------------------
#
# The seed gives the same parameters everywhere.
# The reference computes the equations in float64, one step after another; it is the judge.

installed = {record.name for record in backends() if record.available}
names = [name for name in ("numpy", "numba") if name in installed]
random = np.random.default_rng(0)
x = random.normal(size=(120, 4, 12)).astype(np.float32)
lengths = [120, 7, 64, 0]

exact = LSTM(12, 32, dtype="float64", backend="reference", seed=5)
y_exact, _ = exact(x.astype(np.float64), lengths=lengths)
dy = random.normal(size=y_exact.shape)
_, _, tape = exact.record(x.astype(np.float64), lengths=lengths)
right = exact.backward(tape, dy).parameters

worst = {}
for name in names:
    lstm = LSTM(12, 32, backend=name, seed=5)
    y, _, tape = lstm.record(x, lengths=lengths)
    got = lstm.backward(tape, dy.astype(np.float32)).parameters
    worst[name] = [np.abs(y - y_exact).max() / np.abs(y_exact).max()]
    worst[name] += [np.abs(got[key] - right[key]).max() / np.abs(right[key]).max() for key in right]
    print(f"{name:8} output {worst[name][0]:.1e}, worst gradient {max(worst[name][1:]):.1e}")
    assert max(worst[name]) < 1e-5
    print(str(lstm.explain(steps=120, batch=4)).splitlines()[0])

# %%
# The picture shows the largest relative error of each array; 2 to the power of -23 is the resolution of float32.
# The sums of a gradient have hundreds of terms, so an error of a few such steps is as near as float32 can come.

fig, axis = plt.subplots(figsize=(7, 4), layout="constrained")
places = np.arange(1 + len(right))
for offset, (name, errors) in enumerate(worst.items()):
    axis.scatter(places + 0.15 * offset, errors, label=name)
axis.axhline(np.finfo(np.float32).eps, color="gray", linestyle=":", label=r"$2^{-23}$")
axis.set_yscale("log")
axis.set_xticks(places, ["y", *right], rotation=90, fontsize="x-small")
axis.set_ylabel(r"$\max|\Delta|\,/\,\max|\cdot|$")
axis.legend()
plt.show()

# %%
# "Near" is no verdict: how much error is right depends on the sizes, the data and the precision.
# The next part uses the suite, which computes a budget for every array of every case.
