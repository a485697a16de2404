r"""
2. 在真实数据上看各个门
=======================

本节先手算一步，再看训练好的网络读一段录音时，各个门的值如何变化。
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM, datasets
from lstmcore.training import AdamW, Readout, SequenceModel, Trainer

# %%
# 手算一步
# --------
#
# 两次矩阵乘法，四个激活函数，再加两行状态更新。
# 权重的行按 i、f、g、o 的顺序堆叠：输入门、遗忘门、候选、输出门。


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
# 初始状态不为零时，结果也与本库一致：

random = np.random.default_rng(0)
lstm = LSTM(3, 5, dtype="float64", seed=0, backend="numpy")
x, h, c = random.normal(size=3), random.normal(size=5), random.normal(size=5)
_, h_hand, c_hand = step(lstm.parameters, x, h, c)
y, (h_n, c_n) = lstm(x[None, None], (h[None, None], c[None, None]))
print("largest differences:", np.abs(h_hand - h_n).max(), np.abs(c_hand - c_n).max())
assert np.allclose(h_hand, h_n, atol=1e-15)
assert np.allclose(c_hand, c_n, atol=1e-15)

# %%
# 一个学到了东西的网络
# --------------------
#
# 数据是九位说话人的日语元音录音。
# 我们训练一个小网络来判断说话人是谁。

data = datasets.load("japanese-vowels")
lstm = LSTM(12, 16, dtype="float64", seed=1, forget_bias=1.0, backend="numpy")
model = SequenceModel(lstm, Readout(16, 9, activation="softmax", dtype="float64", seed=1))
trainer = Trainer(model, optimizer=AdamW(0.02), epochs=8, quiet=True)
trainer.fit(data.train.inputs, data.train.targets)
accuracy = np.mean(np.argmax(model.predict(data.test.inputs), axis=1) == data.test.targets)
print(f"accuracy on the test recordings: {accuracy:.1%}")
assert accuracy > 0.7

# %%
# 读录音时的每一个门
# ------------------
#
# 取最长的一段测试录音，逐步手算。
# 图中每一行是一个单元，按遗忘门的平均值排序：上面的单元保留过去，下面的单元丢弃过去。

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
# - *遗忘门* f 乘在旧的记忆单元上；接近 1 时，单元保留原有的内容。
# - *输入门* i 决定候选中有多少写入记忆单元。
# - *候选* g 是新的内容，取值在 -1 和 1 之间。
# - *输出门* o 决定记忆单元有多少被输出；它不改变这一步的记忆单元。

# %%
# 时间序列：莫纳罗亚的二氧化碳浓度
# --------------------------------
#
# 这里画出一年（52 周）内某个单元的各个门和记忆单元。
# 网络学的是：根据 52 周的数值预测下一周，输入都是相对最后一周的差值。

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
