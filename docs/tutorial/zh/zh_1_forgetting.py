r"""
1. 循环网络会忘记什么
=====================

循环神经网络逐步读取序列，每一步只把一个状态传给下一步。
它要学会“早先的某个输入很重要”，误差的梯度就必须能从序列末尾一直传回到那个输入。
本节在 200 步的序列上，用同一套反向传播来测量：普通循环网络和 LSTM 的梯度各能传多远。
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM

T, I, H = 200, 4, 32
random = np.random.default_rng(0)
x = random.normal(size=(T, 1, I))

# %%
# 普通的循环网络
# --------------
#
# 普通循环网络只有一个方程：:math:`h_t = \tanh(W x_t + R h_{t-1} + b)`。
# 它可以看作门固定不动的 LSTM：输入门和输出门恒为 1，遗忘门恒为 0。
# 因此两种网络可以共用本库的反向传播。
# 在 float64 下，偏置取 40 时门完全打开，取 -40 时完全关闭。


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
# 三行 NumPy 代码就能算出同样的数：

network = plain()
W, R, b = (network.parameters[name].reshape(4, H, -1)[2] for name in ("weight_x_l0", "weight_h_l0", "bias_l0"))
h = np.zeros(H)
for t in range(T):
    h = np.tanh(W @ x[t, 0] + R @ h + b[:, 0])
print("largest difference:", np.abs(h - network(x)[0][-1, 0]).max())
assert np.allclose(h, network(x)[0][-1, 0], atol=1e-12)

# %%
# 梯度能传回多远
# --------------
#
# 把最后一步的输出求和，再对每一步的输入求导。
# 第 t 步梯度的范数，表示该步输入的微小变化对最终结果的影响有多大。


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
# 每往回走一步，梯度就要乘上一个雅可比矩阵。
# 普通循环网络的雅可比矩阵是 :math:`\mathrm{diag}(1 - h_t^2)\,R`。
# 这里它的范数小于 1，所以梯度每走一步都按同样的比例缩小，也就是“梯度消失”。
#
# LSTM 的记忆单元有一条单独的通路：:math:`c_t = f_t c_{t-1} + i_t g_t`。
# 沿着这条通路，梯度只乘遗忘门的值。
# 遗忘门的偏置为 0 时，门的值约为 0.5，这样的 LSTM 同样会忘记。
# 偏置为 5 时，门的值约为 0.993，它的 200 次方仍有四分之一。
# 各个门自身的乘积也会给梯度添上一部分，在这里使它略微变大。
# 所以，LSTM 并不是天生就有长期记忆，而是能够学会记忆，因为遗忘门可以接近 1。

for name, norms in curves.items():
    print(f"{name:20}  1 step: {norms[-2]:.1e}   50 steps: {norms[-51]:.1e}   199 steps: {norms[0]:.1e}")
assert curves["LSTM, $b_f = 5$"][0] > 1e-6 > 1e-20 > curves["RNN"][0]

# %%
# 同样的事，沿时间向前看
# ----------------------
#
# ``jvp`` 把第一步输入的微小变化沿时间向前传播，也就是前向模式的导数。
# 它是 ``backward`` 的转置：对任意方向 v 和 w，都有 :math:`\langle J v, w\rangle = \langle v, J^T w\rangle`。

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
