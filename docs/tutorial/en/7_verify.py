"""
7. Verify a kernel of your own
==============================

The suite says whether a backend is right, and which check says that it is not.
The kernel here is the example of the repository, ``examples/lstmcore_example_backend``.
It is a plain LSTM with a backward pass, in a hundred lines.
"""

import matplotlib.pyplot as plt
import numpy as np
from lstmcore_example.kernel import ExampleBackend, ExampleKernel

from lstmcore_conformance import run

# %%
# A verdict
# ---------
#
# ``select`` takes a part of the suite, so this verdict is partial.
# Without it the whole suite runs.

part = "values or forward or backward.switches"
report = run(ExampleBackend(), precisions=["float32"], select=part, profile="smoke")
print(report.verdict)
assert not report.bad

# %%
# A fault
# -------
#
# Change one thing: the derivative of the forget gate takes the new cell in place of the old one.
# Every output is still right.


class FaultyKernel(ExampleKernel):
    """Like the example, but its gradient of the forget gate is wrong."""

    def _backward(self, weights, saved, dy, dstate):
        shape, tape = saved
        tape = [(t, on, x, h, f * c + i * g, i, f, g, o, u) for t, on, x, h, c, i, f, g, o, u in tape]
        return super()._backward(weights, (shape, tape), dy, dstate)


class FaultyBackend(ExampleBackend):
    """Makes faulty kernels."""

    name = "faulty"

    def _compile(self, config, precision):
        return FaultyKernel(self, config, precision)


faulty = run(FaultyBackend(), precisions=["float32"], select=part, profile="smoke")
print(faulty.verdict)
print(faulty.bad[0].id, faulty.bad[0].message, sep="\n  ")
assert faulty.bad
assert all(item.message.startswith("d") for item in faulty.bad)

# %%
# Shares of the budget
# --------------------
#
# The budget of an array follows from what a naive evaluation in the same precision loses on the same case.
# A share of at most 1 passes. A right kernel stays well below it, a fault is far above.


def shares(report):
    """Return the largest share of each check that measured one."""
    return {check.id: check.worst.worst.share for check in report.checks if check.worst is not None}


fig, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
right, wrong = shares(report), shares(faulty)
places = np.arange(len(right))
axis.scatter(places, [max(value, 1e-3) for value in right.values()], label="example", marker="o")
axis.scatter(places, [max(wrong.get(name, np.nan), 1e-3) for name in right], label="faulty", marker="x")
axis.axhline(1, color="gray", linestyle="--", label="budget")
axis.set_yscale("log")
axis.set_xticks(places, right, rotation=90, fontsize="small")
axis.set_ylabel("share")
axis.legend()
plt.show()

# %%
# Now take your own kernel.
# :doc:`/howto/write-a-backend` starts from three methods, :doc:`/howto/verify-a-c-kernel` needs no Python.
