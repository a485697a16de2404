"""
5. 训练、提前停止、保存
=======================

训练器反复读取数据，同时观察验证集，并保留最好的一轮。
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
# 用验证集提前停止
# ----------------
#
# ``validation=0.2`` 按类别留出五分之一的录音作为验证集。
# ``patience=3`` 表示：验证损失连续三轮没有下降，就停止训练。
# 最后保留的是最好那一轮的权重。

model = make()
trainer = Trainer(model, optimizer=AdamW(0.05), epochs=30, validation=0.2, patience=3, quiet=True)
history = trainer.fit(data.train.inputs, data.train.targets)
print(f"{len(history.epochs)} epochs, the best is {history.best}; stopped: {history.stopped}")
assert history.best is not None

# %%
# 用状态漂移提前停止
# ------------------
#
# *状态漂移* 是记忆单元在序列开头和结尾之间的距离。
# 如果记忆单元一轮比一轮大，可能是门已经关不上了。
# ``drift_threshold`` 给出上限，漂移超过它就停止；超过上限的那一轮不会被选为最好的一轮。

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
# 在没有见过的录音上评估
# ----------------------

evaluation = model.evaluate(model.scaled(data.test.inputs), data.test.targets, CrossEntropy())
print(f"loss {evaluation.loss:.3f}, accuracy {evaluation.accuracy:.1%}, drift {evaluation.drift:.2f}")
assert evaluation.accuracy > 0.8

# %%
# 保存与加载
# ----------
#
# 文件里有权重、标准化参数和配置，没有任何代码。
# 加载后的模型给出同样的数：

model.save("speakers.safetensors")
again = load_model("speakers.safetensors", backend="numpy")
same = all(
    np.array_equal(a, b) for a, b in zip(model.predict(data.test.inputs), again.predict(data.test.inputs), strict=True)
)
print("the same numbers:", same)
assert same
