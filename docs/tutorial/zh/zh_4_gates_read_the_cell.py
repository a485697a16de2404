r"""
4. 让门读取记忆单元
===================

标准 LSTM 的门读取上一步的输出 :math:`h_{t-1} = o_{t-1} \tanh(c_{t-1})`。
有一种变体让门直接读取记忆单元。
本节测量这样做会改变什么。
"""

import time

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM, datasets
from lstmcore.training import AdamW, Readout, SequenceModel, Trainer

# %%
# 方程里只改一个符号
# ------------------
#
# 设置 ``recurrence="cell"`` 后，循环输入变成 :math:`c_{t-1}`，方程是：
#
# .. math:: z_t = W x_t + R\, c_{t-1} + b
#
# 参数的形状和数量都不变。
# 输出门不再处于循环之中：它只决定输出什么，别无影响。

H = 16
choices = ("hidden", "cell")
lstms = {name: LSTM(12, H, recurrence=name, dtype="float64", backend="numpy", seed=0) for name in choices}
assert all(np.array_equal(a, b) for a, b in zip(*(lstm.parameters.values() for lstm in lstms.values()), strict=True))

# %%
# 改变输出门的偏置，只有在其中一种网络里会影响记忆单元。
# ``jvp`` 不用差商就能看出这一点：

random = np.random.default_rng(0)
x = random.normal(size=(40, 1, 12))
moved = {"bias_l0": np.repeat([0.0, 0.0, 0.0, 1.0], H)}  # the rows of o
for name, lstm in lstms.items():
    ty, (th, tc) = lstm.jvp(x, None, tparameters=moved)
    print(f"{name:7} change of the last cell {np.abs(tc).max():.3f}, of the last output {np.abs(th).max():.3f}")
    assert (np.abs(tc).max() == 0) == (name == "cell")

# %%
# 记忆单元没有上界
# ----------------
#
# 输出 h 的每个元素都在 -1 和 1 之间，而记忆单元可以逐步增大。
# 因此门读到的数更大，也更早饱和。
# 给两种网络同样的恒定输入，看门读到的最大值：

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
# 在同样的数据上训练
# ------------------
#
# 每种各用三个随机种子，其余设置相同，数据是第 2 节的录音。
# 三个种子太少：不同种子之间的差别，与两种网络之间的差别差不多大。

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
# 在这份数据上，两种网络都能学会。
# 这个结果不能说明哪一种更适合你的数据，请用更多的种子自己测量。
# 两者都是同一份规范里的开关，所以每个后端都要对两者接受测试，包括全部梯度。
