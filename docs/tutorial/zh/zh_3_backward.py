r"""
3. 反向传播
===========

序列的梯度就是链式法则：从最后一步开始，一步一步算回第一步。
本节写出标准 LSTM 的反向传播，并用两种方法检验。
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM

# %%
# 一步之内的方程
# --------------
#
# 设 :math:`S` 是被求导的数，:math:`dv` 表示 :math:`S` 对 :math:`v` 的梯度。
# 从后面的步传来的是 :math:`dh` 和 :math:`dc`。下面从这一步的最后一行写到第一行：
#
# .. math::
#
#    h = o \tanh(c): \quad & do = dh \tanh(c), \quad dc \mathrel{+}= dh\, o\, (1 - \tanh^2 c) \\
#    c = f c_{t-1} + i g: \quad & df = dc\, c_{t-1}, \quad di = dc\, g, \quad dg = dc\, i, \quad dc_{t-1} = dc\, f \\
#    i = \sigma(z_i): \quad & dz_i = di\, i (1 - i), \quad f, o \text{ 同理}; \quad dz_g = dg\,(1 - g^2) \\
#    z = W x + R h_{t-1} + b: \quad & dW \mathrel{+}= dz\, x^T, \quad dR \mathrel{+}= dz\, h_{t-1}^T, \\
#    & db \mathrel{+}= dz, \quad dx = W^T dz, \quad dh_{t-1} = R^T dz
#
# 传到 :math:`c_{t-1}` 的梯度只乘了遗忘门 f，这正是第 1 节说的那条通路。


def forward_and_backward(parameters, x, dy):
    """Return y (T, H), and the gradients of sum(dy * y) for x and the parameters; x is (T, I)."""
    W, R, b = (parameters[name] for name in ("weight_x_l0", "weight_h_l0", "bias_l0"))
    size = R.shape[1]
    h, c, tape, y = np.zeros(size), np.zeros(size), [], []
    for x_t in x:
        i, f, g, o = np.split(W @ x_t + R @ h + b, 4)
        i, f, g, o = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))
        before, c = (x_t, h, c), f * c + i * g
        h = o * np.tanh(c)
        tape.append((*before, i, f, g, o, c))
        y.append(h)
    dW, dR, db, dx = np.zeros_like(W), np.zeros_like(R), np.zeros_like(b), np.zeros_like(x)
    dh, dc = np.zeros(size), np.zeros(size)
    for t in reversed(range(len(x))):
        x_t, h_old, c_old, i, f, g, o, c = tape[t]
        dh = dh + dy[t]
        dc = dc + dh * o * (1 - np.tanh(c) ** 2)
        dz = np.concatenate(
            [dc * g * i * (1 - i), dc * c_old * f * (1 - f), dc * i * (1 - g**2), dh * np.tanh(c) * o * (1 - o)]
        )
        dW, dR, db = dW + np.outer(dz, x_t), dR + np.outer(dz, h_old), db + dz
        dx[t], dh, dc = W.T @ dz, R.T @ dz, dc * f
    return np.array(y), dx, {"weight_x_l0": dW, "weight_h_l0": dR, "bias_l0": db}


# %%
# 与本库一致
# ----------

random = np.random.default_rng(0)
T, I, H = 30, 3, 5
lstm = LSTM(I, H, dtype="float64", backend="numpy", seed=0)
x, dy = random.normal(size=(T, I)), random.normal(size=(T, H))
y_hand, dx_hand, by_hand = forward_and_backward(lstm.parameters, x, dy)

y, state, tape = lstm.record(x)
gradients = lstm.backward(tape, dy)
print("x:", np.abs(dx_hand - gradients.x).max())
for name, gradient in by_hand.items():
    print(f"{name}:", np.abs(gradient - gradients.parameters[name]).max())
    assert np.allclose(gradient, gradients.parameters[name], atol=1e-12)
assert np.allclose(dx_hand, gradients.x, atol=1e-12)

# %%
# 与有限差分一致
# --------------
#
# 两套代码即使结果相同，也可能犯同样的错。所以还要和一个不知道导数的方法比较。
# 让参数沿一个随机方向移动 :math:`\pm\epsilon`，再把 S 的差除以 :math:`2\epsilon`。


def scalar(parameters):
    """Return S = sum(dy * y) for these parameters."""
    moved = LSTM.from_config(lstm.stack, parameters, dtype="float64", backend="numpy")
    return np.sum(moved(x)[0] * dy)


direction = {name: random.normal(size=array.shape) for name, array in lstm.parameters.items()}
slope = sum(np.sum(gradients.parameters[name] * direction[name]) for name in direction)
sizes = 10.0 ** np.arange(-12, 0)
errors = []
for size in sizes:
    ends = [
        scalar({name: array + sign * size * direction[name] for name, array in lstm.parameters.items()})
        for sign in (1, -1)
    ]
    errors.append(abs((ends[0] - ends[1]) / (2 * size) - slope) / abs(slope))

fig, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.loglog(sizes, errors, marker="o")
axis.set(xlabel=r"$\epsilon$", ylabel="relative error")
axis.grid(alpha=0.3)
plt.show()
print(f"smallest relative error: {min(errors):.1e}")
assert min(errors) < 1e-8

# %%
# 误差曲线呈山谷形。
# 右侧的步长太大，误差随 :math:`\epsilon^2` 增长；左侧是舍入误差，随 :math:`1/\epsilon` 增长。
# 如果导数本身有错，就不会出现山谷：误差始终停在同一高度。
#
# 包含所有开关的完整推导见 :doc:`反向传播的推导 </backward>`。
