"""
6. 换一个后端，得到同样的数
===========================

后端负责计算。更换后端时，模型本身不变。
"""

import matplotlib.pyplot as plt
import numpy as np

from lstmcore import LSTM, backends

for record in backends():
    print(f"{record.name:12} {'available' if record.available else record.reason}")

# %%
# 同一个 LSTM，几个后端
# ---------------------
#
# 同一个种子在任何后端上都给出同样的参数。
# 参考实现用 float64 逐步计算规范里的方程，由它来评判。

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
# 图中是每个数组的最大相对误差；2 的 -23 次方是 float32 的分辨率。
# 一个梯度由几百项相加而成，误差为分辨率的几倍，已经是 float32 能达到的程度。

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
# “接近”还不是结论：多大的误差算正确，取决于尺寸、数据和精度。
# 下一节使用一致性测试套件，它为每个算例的每个数组计算误差预算。
