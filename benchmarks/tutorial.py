"""The LSTM as tutorials list it: one row after another, eight matrix-vector products a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def sigmoid(z: Any) -> Any:
    """As tutorials write it."""
    return 1 / (1 + np.exp(-z))


def forward(parameters: Mapping[str, Any], x: Any) -> Any:
    """y (T, N, H) of x (T, N, I) from a zero state; parameters of one layer, float32."""
    w_i, w_f, w_g, w_o = np.split(parameters["weight_x_l0"], 4)
    r_i, r_f, r_g, r_o = np.split(parameters["weight_h_l0"], 4)
    b_i, b_f, b_g, b_o = np.split(parameters["bias_l0"], 4)
    y = np.empty((*x.shape[:2], w_i.shape[0]), x.dtype)
    for n in range(x.shape[1]):
        h = np.zeros(w_i.shape[0], x.dtype)
        c = np.zeros_like(h)
        for t in range(x.shape[0]):
            i = sigmoid(w_i @ x[t, n] + r_i @ h + b_i)
            f = sigmoid(w_f @ x[t, n] + r_f @ h + b_f)
            g = np.tanh(w_g @ x[t, n] + r_g @ h + b_g)
            o = sigmoid(w_o @ x[t, n] + r_o @ h + b_o)
            c = f * c + i * g
            h = o * np.tanh(c)
            y[t, n] = h
    return y
