"""
7. 验证你自己的内核
===================

测试套件会说明一个后端是否正确；如果不正确，会指出是哪一项检查没有通过。
这里的内核是仓库里的例子 ``examples/lstmcore_example_backend``：一百行代码，标准 LSTM，带反向传播。
"""

import matplotlib.pyplot as plt
import numpy as np
from lstmcore_example.kernel import ExampleBackend, ExampleKernel

from lstmcore_conformance import run

# %%
# 结论
# ----
#
# ``select`` 只选套件的一部分，所以这里的结论是“部分通过”。
# 不加它就运行整个套件。

part = "values or forward or backward.switches"
report = run(ExampleBackend(), precisions=["float32"], select=part, profile="smoke")
print(report.verdict)
assert not report.bad

# %%
# 放进一个错误
# ------------
#
# 只改一处：计算遗忘门的梯度时，用新的记忆单元代替旧的。
# 所有输出仍然正确。


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
# 误差占预算的比例
# ----------------
#
# 预算的来源：用同样的精度对同一个算例做一次朴素计算，看它损失多少。
# 比例不超过 1 即为通过。正确的内核远低于 1，有错误的远高于 1。


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
# 接下来换上你自己的内核。
# :doc:`编写后端 </howto/write-a-backend>` 从三个方法开始；:doc:`验证 C 内核 </howto/verify-a-c-kernel>` 不需要 Python。
