r"""
1. What a recurrent network forgets
===================================

A recurrent network reads a sequence one step at a time.
It learns that an early input matters only if a gradient reaches that input from the end.
This part measures how far the gradient reaches, in a plain network and in an LSTM, over 200 steps.
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM

T, I, H = 200, 4, 32
random = np.random.default_rng(0)
x = random.normal(size=(T, 1, I))

# %%
# A plain recurrent network
# -------------------------
#
# A plain network has one equation, :math:`h_t = \tanh(W x_t + R h_{t-1} + b)`.
# It is an LSTM whose gates do not move: the input gate and the output gate are 1, the forget gate is 0.
# So the library's own backward pass can be used for both.
# A bias of 40 opens a gate fully in float64, and a bias of -40 shuts it.


def plain(scale=1.0):
    """Return an LSTM that computes h[t] = tanh(W x[t] + scale R h[t-1] + b)."""
    lstm = LSTM(I, H, hidden_activation="identity", dtype="float64", backend="numpy", seed=0)
    parameters = {name: array.copy() for name, array in lstm.parameters.items()}
    for array in parameters.values():
        array.reshape(4, H, -1)[[0, 1, 3]] = 0  # the rows of i, f and o
    parameters["bias_l0"].reshape(4, H)[[0, 1, 3]] = np.array([[40], [-40], [40]])
    parameters["weight_h_l0"] *= scale
    lstm.load_parameters(parameters)
    return lstm


# %%
# Three lines of NumPy compute the same numbers:

network = plain()
W, R, b = (network.parameters[name].reshape(4, H, -1)[2] for name in ("weight_x_l0", "weight_h_l0", "bias_l0"))
h = np.zeros(H)
for t in range(T):
    h = np.tanh(W @ x[t, 0] + R @ h + b[:, 0])
print("largest difference:", np.abs(h - network(x)[0][-1, 0]).max())
assert np.allclose(h, network(x)[0][-1, 0], atol=1e-12)

# %%
# How far back the gradient reaches
# ---------------------------------
#
# Take the sum of the last output and differentiate it with respect to every input.
# The norm at step t says how much a small change of that input would move the end.


def reach(lstm):
    """Return (T,): the norm of the gradient of sum(h[T-1]) with respect to x[t]."""
    y, state, tape = lstm.record(x)
    gradients = lstm.backward(tape, None, (np.ones_like(state.h), np.zeros_like(state.c)))
    return np.linalg.norm(gradients.x[:, 0], axis=1)


def gated(forget_bias):
    """Return an LSTM with this bias of the forget gate."""
    return LSTM(I, H, dtype="float64", backend="numpy", seed=0, forget_bias=forget_bias)


curves = {
    "RNN": reach(plain()),
    "RNN, $2R$": reach(plain(2)),
    "LSTM, $b_f = 0$": reach(gated(0)),
    "LSTM, $b_f = 1$": reach(gated(1)),
    "LSTM, $b_f = 5$": reach(gated(5)),
}
fig, axis = plt.subplots(figsize=(7, 4), layout="constrained")
for name, norms in curves.items():
    axis.semilogy(np.arange(T)[::-1], norms, label=name, linestyle="--" if "RNN" in name else "-")
axis.set(xlabel="$T - 1 - t$", ylabel=r"$\|\partial\,\Sigma h_{T-1}\,/\,\partial x_t\|$", ylim=(1e-20, 1e2))
axis.legend()
axis.grid(alpha=0.3)
plt.show()

# %%
# Each step back multiplies the gradient by a Jacobian.
# In the plain network that is :math:`\mathrm{diag}(1 - h_t^2)\,R`.
# Its norm is below 1 here, so the gradient shrinks by the same factor at every step.
#
# In an LSTM the memory cell has a path of its own: :math:`c_t = f_t c_{t-1} + i_t g_t`.
# Along it the gradient is multiplied by the forget gate alone.
# With a forget bias of 0 the gate is near one half, and that network forgets too.
# A bias of 5 gives a gate of 0.993, and 0.993 to the power of 200 is still one quarter.
# The products of the gates add to that path; here they make the gradient a little larger.
# So an LSTM does not remember by itself. It can learn to, since the gate can be near 1.

for name, norms in curves.items():
    print(f"{name:20}  1 step: {norms[-2]:.1e}   50 steps: {norms[-51]:.1e}   199 steps: {norms[0]:.1e}")
assert curves["LSTM, $b_f = 5$"][0] > 1e-6 > 1e-20 > curves["RNN"][0]

# %%
# The same, forward in time
# -------------------------
#
# ``jvp`` follows a small change of the first input forward.
# It is the transpose of ``backward``.
# For all directions v and w, :math:`\langle J v, w\rangle = \langle v, J^T w\rangle`.

v = np.zeros_like(x)
v[0] = random.normal(size=(1, I))
fig, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, lstm in {"RNN": plain(), "LSTM, $b_f = 1$": gated(1), "LSTM, $b_f = 5$": gated(5)}.items():
    ty, tstate = lstm.jvp(x, v)
    axis.semilogy(np.linalg.norm(ty[:, 0], axis=1), label=name, linestyle="--" if name == "RNN" else "-")
    w = random.normal(size=ty.shape)
    y, state, tape = lstm.record(x)
    there, back = np.sum(ty * w), np.sum(v * lstm.backward(tape, w).x)
    assert np.isclose(there, back, rtol=1e-9)
axis.set(xlabel="$t$", ylabel=r"$\|\dot h_t\|$", ylim=(1e-20, 1e1))
axis.legend()
axis.grid(alpha=0.3)
plt.show()
